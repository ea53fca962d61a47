//! A registry and a code store in memory.

use std::collections::BTreeSet;
use std::sync::Arc;

use client::images::{ImageError, ImageResolver, RegistryAuth};
use functions::Fetch;
use functions::code::{CodeError, CodeStore};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::dice::Dice;
use crate::trace::fnv;
use crate::wire::Wire;

/// The registry.
pub struct Registry {
    wire: Arc<Wire>,
    dice: Dice,
}

impl Registry {
    /// A registry that fails while the wire does.
    pub fn new(wire: Arc<Wire>, dice: Dice) -> Arc<Self> {
        Arc::new(Self { wire, dice })
    }
}

impl ImageResolver for Registry {
    fn resolve(&self, reference: String, _auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        let delay = self.dice.millis(5..200);
        let fails = self.wire.has_faults() && self.dice.chance(100);
        Box::pin(async move {
            sleep(delay).await;
            if fails {
                return Err(ImageError::Unreachable(format!("{reference}: the registry does not answer")));
            }
            let repository = reference.rsplit_once(':').map_or(reference.as_str(), |(repository, _)| repository);
            let digest = format!("{:016x}", fnv(reference.as_bytes())).repeat(4);
            Ok(format!("{repository}@sha256:{digest}"))
        })
    }
}

/// The code store.
#[derive(Default)]
pub struct Code(Mutex<BTreeSet<(String, String)>>);

impl CodeStore for Code {
    fn put(&self, namespace: &str, archive: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>> {
        let digest = format!("sha256:{}", format!("{:016x}", fnv(&archive)).repeat(4));
        self.0.lock().insert((namespace.to_owned(), digest.clone()));
        Box::pin(async move { Ok(digest) })
    }

    fn contains(&self, namespace: &str, digest: &str) -> BoxFuture<'static, Result<bool, CodeError>> {
        let found = self.0.lock().contains(&(namespace.to_owned(), digest.to_owned()));
        Box::pin(async move { Ok(found) })
    }
}

/// No URL answers: what is fetched is tested beside the fetching.
pub struct Nowhere;

impl Fetch for Nowhere {
    fn fetch(&self, url: &str) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let message = format!("{url} does not answer");
        Box::pin(async { Err(message) })
    }
}
