//! Fetches images, each once at a time, and only for those who may have them.
//!
//! What was fetched with credentials serves nobody who did not show the registry credentials of his own: the list of
//! who was granted what is kept in memory, and after a restart the registry is asked again. What a registry gives to
//! everybody, and what an operator loaded, serves all.

use std::collections::HashSet;
use std::sync::Arc;

use client::images::{ImageError, RegistryAuth};
use futures::future::{BoxFuture, FutureExt, Shared};
use futures::stream::{self, TryStreamExt};
use store::cas::{Digest, Hold};

use super::Inner;
use super::error::{ImagesError, blocking};
use super::manifest::{self, Document, Manifest, Piece};
use super::records::Record;
use super::reference::Reference;
use super::registry::{Access, Login, logins};

/// Indexes that may point to indexes.
const INDEX_DEPTH: usize = 3;
/// Grants that are remembered; when there are more, all are forgotten and asked for again.
const GRANTS: usize = 10_000;

/// When a registry is asked. Images that were loaded from a file are used under every policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// The registry is asked what a tag stands for now.
    Always,
    /// A tag that was fetched before stays what it was.
    #[default]
    IfNotPresent,
    /// No registry is asked.
    Never,
}

/// An image that is in the store, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The reference in full, with its digest.
    pub reference: Reference,
    /// The digest: hand it to `unpack`.
    pub digest: Digest,
}

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullEvent {
    /// The reference that is fetched, in full.
    pub reference: String,
    /// What happened.
    pub stage: PullStage,
}

/// Stages of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullStage {
    /// The registry is asked.
    Started,
    /// The manifest is known.
    Manifest {
        /// Layers of the image.
        layers: usize,
        /// Their compressed bytes together.
        bytes: u64,
    },
    /// A layer is in the store.
    Layer {
        /// Its digest.
        digest: Digest,
        /// Its compressed bytes.
        bytes: u64,
        /// False when the store had it already.
        fetched: bool,
    },
    /// The image is complete.
    Done {
        /// Its digest.
        digest: Digest,
    },
    /// It could not be fetched.
    Failed {
        /// Why.
        why: String,
    },
}

/// A pull that others can wait for too.
pub(crate) type SharedPull = Shared<BoxFuture<'static, Result<Pulled, Arc<ImageError>>>>;

/// What makes two pulls the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PullKey {
    image: Reference,
    logins: Vec<Login>,
    policy: PullPolicy,
}

/// Who may use what: repository, digest, login.
pub(crate) type Grants = HashSet<(String, Digest, Login)>;

impl Inner {
    /// The digest of an image that an operator loaded, if `image` is one.
    pub(crate) fn loaded(&self, image: &Reference) -> Option<Digest> {
        match image.digest() {
            Some(digest) => self.records.is_loaded(&digest).then_some(digest),
            None => self.records.get(image).filter(|record| record.loaded).map(|record| record.digest),
        }
    }

    pub(crate) async fn pull(
        self: &Arc<Self>,
        image: Reference,
        auth: Vec<RegistryAuth>,
        policy: PullPolicy,
    ) -> Result<Pulled, ImageError> {
        if let Some(digest) = self.loaded(&image) {
            return Ok(Pulled { reference: image.at(digest), digest });
        }
        let key = PullKey { logins: logins(&image, &auth), image, policy };
        let pull = {
            let mut pulls = self.pulls.lock();
            match pulls.get(&key) {
                Some(pull) => pull.clone(),
                None => {
                    let pull = self.clone().start(key.clone(), auth);
                    pulls.insert(key, pull.clone());
                    pull
                }
            }
        };
        pull.await.map_err(|error| copy(&error))
    }

    /// Starts a pull in a task of its own: a waiter that goes away does not stop it for the others.
    fn start(self: Arc<Self>, key: PullKey, auth: Vec<RegistryAuth>) -> SharedPull {
        let task = tokio::spawn(async move {
            let reference = key.image.to_string();
            let result = self.fetch(&key, &auth).await;
            let stage = match &result {
                Ok(pulled) => PullStage::Done { digest: pulled.digest },
                Err(error) => PullStage::Failed { why: error.to_string() },
            };
            match &result {
                Ok(pulled) => tracing::debug!(%reference, digest = %pulled.digest, "image is present"),
                Err(error) => tracing::debug!(%reference, %error, "image could not be fetched"),
            }
            self.tell(&reference, stage);
            self.pulls.lock().remove(&key);
            result.map_err(Arc::new)
        });
        let wait = async move {
            task.await.unwrap_or_else(|error| {
                Err(Arc::new(ImageError::Unreachable(format!("the pull was cut off: {error}"))))
            })
        };
        wait.boxed().shared()
    }

    async fn fetch(self: &Arc<Self>, key: &PullKey, auth: &[RegistryAuth]) -> Result<Pulled, ImageError> {
        let image = &key.image;
        let known = match image.digest() {
            Some(digest) => Some(digest),
            None if key.policy == PullPolicy::Always => None,
            None => self.records.get(image).map(|record| record.digest),
        };
        if let Some(digest) = known
            && self.may_use(image, digest, &key.logins)
            && self.is_complete(digest).await
        {
            return Ok(Pulled { reference: image.at(digest), digest });
        }
        if key.policy == PullPolicy::Never {
            return Err(ImageError::Refused(format!(
                "image {image} is not present, and the pull policy is Never; load it or choose IfNotPresent"
            )));
        }
        // A semaphore that is never closed always gives.
        let _slot = self.pull_slots.acquire().await.map_err(|error| ImageError::Unreachable(error.to_string()))?;
        let reference = image.to_string();
        self.tell(&reference, PullStage::Started);
        let digest = match image.digest() {
            Some(digest) => digest,
            None => self.registries.digest(image, auth).await?.value,
        };
        let hold = self.cas.hold();
        let (manifest, access) = self.fetch_manifest(image, digest, auth, &hold).await?;
        let bytes = manifest.layers.iter().map(|layer| layer.size).sum();
        self.tell(&reference, PullStage::Manifest { layers: manifest.layers.len(), bytes });
        self.fetch_blobs(image, &manifest, &access, &hold, &reference).await?;
        self.check(&reference, &manifest).await?;
        let public = access.is_public();
        let record = Record { digest, loaded: false, public };
        let (inner, target) = (Arc::clone(self), image.clone());
        blocking(move || {
            inner.records.set(target.at(digest).to_string(), record)?;
            if target.digest().is_none() { inner.records.set(target.to_string(), record) } else { Ok(()) }
        })
        .await?;
        let mut grants = self.grants.lock();
        if grants.len() >= GRANTS {
            grants.clear();
        }
        grants.insert((image.name(), digest, access.login));
        drop(hold);
        Ok(Pulled { reference: image.at(digest), digest })
    }

    /// Fetches the manifest, through indexes, and stores all that was passed.
    async fn fetch_manifest(
        &self,
        image: &Reference,
        digest: Digest,
        auth: &[RegistryAuth],
        hold: &Hold,
    ) -> Result<(Manifest, Access), ImageError> {
        let mut at = digest;
        for _ in 0..=INDEX_DEPTH {
            let granted = self.registries.manifest(image, at, auth).await?;
            hold.keep(at);
            let (cas, bytes) = (self.cas.clone(), granted.value.clone());
            blocking(move || Ok(cas.put(&bytes)?)).await?;
            match manifest::parse(&image.to_string(), at, &granted.value, &self.config)? {
                Document::Image(manifest) => return Ok((manifest, granted.access)),
                Document::Index(piece) => at = piece.digest,
            }
        }
        Err(ImagesError::manifest(image, "its indexes are nested too deep").into())
    }

    async fn fetch_blobs(
        &self,
        image: &Reference,
        manifest: &Manifest,
        access: &Access,
        hold: &Hold,
        reference: &str,
    ) -> Result<(), ImageError> {
        let pieces =
            std::iter::once((&manifest.config, false)).chain(manifest.layers.iter().map(|layer| (layer, true)));
        stream::iter(pieces.map(Ok))
            .try_for_each_concurrent(self.config.layers_at_once, |(piece, is_layer)| async move {
                hold.keep(piece.digest);
                let fetched = self.fetch_blob(image, piece, access).await?;
                if is_layer {
                    self.tell(reference, PullStage::Layer { digest: piece.digest, bytes: piece.size, fetched });
                }
                Ok(())
            })
            .await
    }

    /// Fetches one blob unless the store has it; another pull that fetches it is waited for.
    async fn fetch_blob(&self, image: &Reference, piece: &Piece, access: &Access) -> Result<bool, ImageError> {
        let _lock = self.locks.lock(piece.digest).await;
        if self.cas.contains(&piece.digest) {
            return Ok(false);
        }
        self.registries.blob(image, access, &self.cas, piece.digest, piece.size).await.map(|()| true)
    }

    /// Whether the configuration fits the layers and this machine.
    async fn check(&self, what: &str, manifest: &Manifest) -> Result<(), ImageError> {
        let (cas, config, manifest, what) =
            (self.cas.clone(), Arc::clone(&self.config), manifest.clone(), what.to_owned());
        let checked = blocking(move || {
            let file = manifest::parse_config(&what, &cas.read(&manifest.config.digest, config.manifest_bytes)?)?;
            if file.diff_ids.len() == manifest.layers.len() {
                return Ok(());
            }
            Err(ImagesError::manifest(what, "its configuration and its manifest name different numbers of layers"))
        });
        Ok(checked.await?)
    }

    fn may_use(&self, image: &Reference, digest: Digest, logins: &[Login]) -> bool {
        let Some(record) = self.records.get(&image.at(digest)) else { return false };
        let grants = self.grants.lock();
        record.public || logins.iter().any(|login| grants.contains(&(image.name(), digest, login.clone())))
    }

    async fn is_complete(self: &Arc<Self>, digest: Digest) -> bool {
        let inner = Arc::clone(self);
        let check = blocking(move || {
            let (manifest, _) = manifest::stored(&inner.cas, "", digest, &inner.config)?;
            let pieces = manifest.layers.iter().chain([&manifest.config]);
            Ok(pieces.map(|piece| &piece.digest).all(|digest| inner.cas.contains(digest)))
        });
        check.await.unwrap_or(false)
    }

    /// Tells listeners; without any, nothing happens.
    fn tell(&self, reference: &str, stage: PullStage) {
        let _ = self.events.send(PullEvent { reference: reference.to_owned(), stage });
    }
}

fn copy(error: &ImageError) -> ImageError {
    match error {
        ImageError::Reference { reference, why } => {
            ImageError::Reference { reference: reference.clone(), why: why.clone() }
        }
        ImageError::Refused(text) => ImageError::Refused(text.clone()),
        ImageError::Unreachable(text) => ImageError::Unreachable(text.clone()),
    }
}
