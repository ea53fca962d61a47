//! What a plan is made from.

use std::sync::Arc;

use api::functions::{Function, admission};
use api::serving::{Revision, Service};
use client::{Caches, ObjectKey};

use crate::code::CodeStore;
use crate::fetch::Progress;
use crate::pack;

use super::ReconcileError;
use super::resources::service::Code;

/// The code of a Function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An archive in the store.
    Archive { digest: String },
    /// A container image.
    Image { reference: String },
    /// The object is wrong: every problem in one text.
    Invalid { message: String },
    /// The archive is not there.
    Missing { digest: String },
    /// The archive is at a URL and is to be fetched.
    Elsewhere { url: String, digest: String, progress: Progress },
}

impl Source {
    /// What can be run; `None` while there is nothing, and what serves goes on serving.
    pub fn code(&self) -> Option<Code<'_>> {
        match self {
            Self::Archive { digest } => Some(Code::Archive { digest }),
            Self::Image { reference } => Some(Code::Image { reference }),
            Self::Invalid { .. } | Self::Missing { .. } | Self::Elsewhere { .. } => None,
        }
    }
}

/// One Function and what belongs to it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The Function.
    pub function: Arc<Function>,
    /// Its code.
    pub source: Source,
    /// The Service of the same name, whoever it belongs to.
    pub service: Option<Arc<Service>>,
    /// The newest Revision of that Service.
    pub revision: Option<Arc<Revision>>,
}

/// Reads the caches, and the code store: an inline source is put there.
///
/// `None` when the Function is gone or going; its Service goes with it by its owner reference.
pub async fn observe(
    caches: &Caches,
    code: &dyn CodeStore,
    key: &ObjectKey,
) -> Result<Option<Observed>, ReconcileError> {
    let Some(function) = caches.of::<Function>().get_key(key) else { return Ok(None) };
    if function.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let source = source(&function, code, &key.namespace).await?;
    let service = caches.of::<Service>().get_key(key);
    let newest = service.as_ref().and_then(|service| service.status.as_ref()?.latest_created_revision_name.clone());
    let revision = newest.and_then(|name| caches.of::<Revision>().get(&key.namespace, &name));
    Ok(Some(Observed { function, source, service, revision }))
}

pub(super) async fn source(
    function: &Function,
    code: &dyn CodeStore,
    namespace: &str,
) -> Result<Source, ReconcileError> {
    let problems = admission::validate(function);
    if !problems.is_empty() {
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        return Ok(Source::Invalid { message: texts.join("; ") });
    }
    let Some(source) = &function.spec.source else {
        return Ok(Source::Invalid { message: "spec.source: is missing".to_owned() });
    };
    if let Some(reference) = &source.image {
        return Ok(Source::Image { reference: reference.clone() });
    }
    if let Some(files) = &source.inline {
        return match pack::pack_inline(files) {
            Ok(archive) => Ok(Source::Archive { digest: inline(code, namespace, archive).await? }),
            Err(error) => Ok(Source::Invalid { message: format!("spec.source.inline: {error}") }),
        };
    }
    let archive = source.archive.clone().unwrap_or_default();
    let digest = archive.digest.or(archive.sha256.map(|sha256| format!("sha256:{sha256}"))).unwrap_or_default();
    let found = code.contains(namespace, &digest).await?;
    Ok(match archive.url {
        _ if found => Source::Archive { digest },
        Some(url) => Source::Elsewhere { url, digest, progress: Progress::Running },
        None => Source::Missing { digest },
    })
}

async fn inline(code: &dyn CodeStore, namespace: &str, archive: Vec<u8>) -> Result<String, ReconcileError> {
    let digest = pack::digest(&archive);
    if code.contains(namespace, &digest).await? {
        return Ok(digest);
    }
    Ok(code.put(namespace, archive).await?)
}
