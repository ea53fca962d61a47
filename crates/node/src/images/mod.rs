//! The image store: images from registries and files, unpacked for the sandbox; and the code of functions.
//!
//! What is kept: blobs in the content store ([`store::cas::Cas`]), the list of known references (`images.json`) and
//! the marks of uploaded archives (`uploads/`). What can be made again from them: `layers/` and `code/`, directories
//! that are unpacked once and then only read.
//!
//! - [`reference`]: references in one form;
//! - [`archive`]: archives from strangers;
//! - [`pack`]: makes an image from a static binary.
//!
//! Invariants:
//! - content is verified before it is used, whichever way it came;
//! - an image that was loaded from a file is used without asking any registry, `:latest` and `Always` included;
//! - what was fetched with credentials serves nobody who has none.

pub mod archive;
mod bridge;
mod config;
mod error;
mod load;
mod locks;
mod manifest;
pub mod pack;
mod pull;
mod records;
pub mod reference;
mod registry;
#[cfg(test)]
mod tests;
mod unpack;
mod uploads;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use client::images::{ImageError, ImageResolver, RegistryAuth};
use futures::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use store::cas::{Cas, Digest, Hold};
use tokio::io::AsyncRead;
use tokio::sync::{Semaphore, broadcast};

pub use config::Config;
pub use error::ImagesError;
pub use load::LoadedImage;
pub use manifest::{ImageConfig, platform};
pub use pull::{PullEvent, PullPolicy, PullStage, Pulled};
pub use reference::Reference;
pub use unpack::UnpackedImage;
pub use uploads::{Collected, StoredArchive};

/// Events that a slow listener may be behind; older ones are dropped for it.
const EVENTS: usize = 256;

/// The image store. Clones share it.
#[derive(Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: Arc<Config>,
    cas: Cas,
    layers: PathBuf,
    code: PathBuf,
    uploads: PathBuf,
    incoming: PathBuf,
    records: records::Records,
    registries: registry::Registries,
    grants: Mutex<pull::Grants>,
    pulls: Mutex<HashMap<pull::PullKey, pull::SharedPull>>,
    pull_slots: Semaphore,
    locks: locks::Locks,
    unpacked: Mutex<HashMap<Digest, Arc<UnpackedImage>>>,
    events: broadcast::Sender<PullEvent>,
}

/// One known reference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// The reference in full; by digest for an image that was loaded without a name.
    pub reference: String,
    /// Digest of its manifest or index.
    pub digest: Digest,
    /// Bytes of its blobs; 0 when some are missing.
    pub size: u64,
    /// Loaded from a file, so that no registry is asked.
    pub loaded: bool,
}

impl Images {
    /// Opens the store in `dir`, which is made if it is missing and closed to other users: layers hold set-id programs.
    ///
    /// # Errors
    ///
    /// [`ImagesError::Io`] when the directory cannot be used.
    pub fn open(dir: &Path, cas: Cas, config: Config) -> Result<Self, ImagesError> {
        // Registry clients take the process's TLS provider; a provider that is set already stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let paths = ["layers", "code", "uploads", "incoming"].map(|name| dir.join(name));
        let [layers, code, uploads, incoming] = paths.clone();
        if incoming.exists() {
            fs::remove_dir_all(&incoming).map_err(ImagesError::io("remove", &incoming))?;
        }
        for path in &paths {
            fs::create_dir_all(path).map_err(ImagesError::io("make", path))?;
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(ImagesError::io("close", dir))?;
        let config = Arc::new(config);
        let inner = Inner {
            cas,
            layers,
            code,
            uploads,
            incoming,
            records: records::Records::open(dir.join("images.json"))?,
            registries: registry::Registries::new(Arc::clone(&config)),
            grants: Mutex::default(),
            pulls: Mutex::default(),
            pull_slots: Semaphore::new(config.pulls.max(1)),
            locks: locks::Locks::default(),
            unpacked: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            config,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Takes in the images of a tar stream: an OCI layout or an archive of `docker save`, compressed or not. With
    /// `name` the archive must hold one image, which gets that name.
    ///
    /// # Errors
    ///
    /// [`ImagesError`]; then no image of the archive is known, and what it stored is removed.
    pub async fn load(
        &self,
        source: impl AsyncRead + Unpin,
        name: Option<Reference>,
    ) -> Result<Vec<LoadedImage>, ImagesError> {
        let inner = Arc::clone(&self.inner);
        bridge::with_reader(source, move |reader| {
            inner.take_in(name, |hold, fresh| load::from_tar(&inner.cas, hold, reader, &inner.config, fresh))
        })
        .await
    }

    /// As [`Images::load`], from a file or from the directory of an OCI layout.
    ///
    /// # Errors
    ///
    /// As [`Images::load`].
    pub async fn load_path(&self, path: &Path, name: Option<Reference>) -> Result<Vec<LoadedImage>, ImagesError> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        error::blocking(move || {
            inner.take_in(name, |hold, fresh| {
                if path.is_dir() {
                    return load::from_directory(&inner.cas, hold, &path, &inner.config, fresh);
                }
                let file = fs::File::open(&path).map_err(ImagesError::io("open", &path))?;
                load::from_tar(&inner.cas, hold, file, &inner.config, fresh)
            })
        })
        .await
    }

    /// Every known reference, sorted.
    pub async fn list(&self) -> Vec<ImageSummary> {
        let inner = Arc::clone(&self.inner);
        let list = error::blocking(move || {
            let summary = |(reference, record): (String, records::Record)| ImageSummary {
                size: inner.size(record.digest).unwrap_or(0),
                reference,
                digest: record.digest,
                loaded: record.loaded,
            };
            Ok(inner.records.all().into_iter().map(summary).collect())
        });
        list.await.unwrap_or_default()
    }

    /// Forgets a reference. Its content stays until [`Images::collect`].
    ///
    /// # Errors
    ///
    /// [`ImagesError::NotFound`], [`ImagesError::Reference`], [`ImagesError::Io`].
    pub async fn remove(&self, reference: &str) -> Result<(), ImagesError> {
        let name = reference.parse::<Reference>()?.to_string();
        let inner = Arc::clone(&self.inner);
        error::blocking(move || {
            if inner.records.remove(&name)? { Ok(()) } else { Err(ImagesError::NotFound(format!("image {name}"))) }
        })
        .await
    }

    /// `repository@sha256:...` for a reference; see [`ImageResolver::resolve`]. A reference with a digest, and one of
    /// the platform's own runtimes, comes back without anybody being asked.
    ///
    /// # Errors
    ///
    /// [`ImageError`], which names registry, repository and cause.
    pub async fn resolve(&self, reference: &str, auth: &[RegistryAuth]) -> Result<String, ImageError> {
        let image = parse(reference)?;
        if image.registry() == reference::RUNTIME_REGISTRY {
            return Ok(reference.to_owned());
        }
        if image.digest().is_some() {
            return Ok(image.to_string());
        }
        if let Some(digest) = self.inner.loaded(&image) {
            return Ok(image.at(digest).to_string());
        }
        let granted = self.inner.registries.digest(&image, auth).await?;
        Ok(image.at(granted.value).to_string())
    }

    /// `repository@sha256:...` of an image that was loaded from a file; no registry is asked.
    pub fn loaded(&self, image: &Reference) -> Option<String> {
        self.inner.loaded(image).map(|digest| image.at(digest).to_string())
    }

    /// Makes sure that an image is in the store, complete and verified. Layers come in parallel; two pulls of one image
    /// are one.
    ///
    /// # Errors
    ///
    /// [`ImageError`], which names registry, repository and cause.
    pub async fn pull(
        &self,
        reference: &str,
        auth: Vec<RegistryAuth>,
        policy: PullPolicy,
    ) -> Result<Pulled, ImageError> {
        self.inner.pull(parse(reference)?, auth, policy).await
    }

    /// How pulls go on from now.
    pub fn events(&self) -> broadcast::Receiver<PullEvent> {
        self.inner.events.subscribe()
    }

    /// The directories and the configuration of an image that is in the store; unpacked now if it is not yet. Cheap
    /// when it is.
    ///
    /// # Errors
    ///
    /// [`ImagesError`]; with [`ImagesError::is_lost_content`] a pull helps.
    pub async fn unpack(&self, digest: Digest) -> Result<Arc<UnpackedImage>, ImagesError> {
        self.inner.unpack(digest).await
    }

    /// The read-only directory that holds an archive's files, unpacked now if it is not yet.
    ///
    /// # Errors
    ///
    /// [`ImagesError`].
    pub async fn code_dir(&self, digest: Digest) -> Result<PathBuf, ImagesError> {
        self.inner.code_dir(digest).await
    }

    /// Stores an uploaded source archive (tar, tar.gz, tar.zst, zip) for a namespace, after unpacking it once: what
    /// cannot be used is refused here.
    ///
    /// # Errors
    ///
    /// [`ImagesError`]; [`ImagesError::is_input`] tells whether the archive is to blame.
    pub async fn store_archive(
        &self,
        namespace: &str,
        source: impl AsyncRead + Unpin,
    ) -> Result<StoredArchive, ImagesError> {
        self.inner.store_archive(namespace, source).await
    }

    /// Whether a namespace uploaded this archive.
    pub fn has_archive(&self, namespace: &str, digest: &Digest) -> bool {
        self.inner.has_archive(namespace, digest)
    }

    /// The bytes of an archive that a namespace uploaded; `None` if it did not.
    ///
    /// # Errors
    ///
    /// [`ImagesError`], when it is longer than `limit_bytes` or cannot be read.
    pub async fn archive(
        &self,
        namespace: &str,
        digest: Digest,
        limit_bytes: u64,
    ) -> Result<Option<Bytes>, ImagesError> {
        let inner = Arc::clone(&self.inner);
        if !inner.has_archive(namespace, &digest) {
            return Ok(None);
        }
        error::blocking(move || Ok(Some(inner.cas.read(&digest, limit_bytes)?))).await
    }

    /// Takes an archive from a namespace; false if it had none. The content stays until [`Images::collect`].
    ///
    /// # Errors
    ///
    /// [`ImagesError::Io`].
    pub fn remove_archive(&self, namespace: &str, digest: &Digest) -> Result<bool, ImagesError> {
        self.inner.remove_archive(namespace, digest)
    }

    /// Removes blobs, layers and code that no known reference, no upload, and none of the digests given names. The
    /// caller names the images (`in_use`) and archives (`code_in_use`) of all pods and functions there are, and starts
    /// no pod meanwhile.
    ///
    /// # Errors
    ///
    /// [`ImagesError`]; what was removed until then stays removed.
    pub async fn collect(
        &self,
        in_use: HashSet<Digest>,
        code_in_use: HashSet<Digest>,
    ) -> Result<Collected, ImagesError> {
        let inner = Arc::clone(&self.inner);
        error::blocking(move || inner.collect(&in_use, &code_in_use)).await
    }
}

impl ImageResolver for Images {
    fn resolve(&self, reference: String, auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        let images = self.clone();
        async move { images.resolve(&reference, &auth).await }.boxed()
    }
}

impl Inner {
    /// Runs a load, records what it found, and removes what it stored for nothing.
    fn take_in(
        &self,
        name: Option<Reference>,
        load: impl FnOnce(&Arc<Hold>, &mut Vec<Digest>) -> Result<load::Found, ImagesError>,
    ) -> Result<Vec<LoadedImage>, ImagesError> {
        let hold = Arc::new(self.cas.hold());
        let mut fresh = Vec::new();
        let loaded = load(&hold, &mut fresh).and_then(|found| self.adopt(found, name));
        let mut used = HashSet::new();
        for image in loaded.iter().flatten() {
            used.extend(load::reachable(&self.cas, image.digest, &self.config)?);
        }
        // Another load or pull may have come to need the same blobs: its hold keeps them.
        drop(hold);
        for digest in fresh.iter().filter(|digest| !used.contains(digest)) {
            self.cas.discard(digest)?;
        }
        loaded
    }

    fn adopt(&self, found: load::Found, name: Option<Reference>) -> Result<Vec<LoadedImage>, ImagesError> {
        let mut images = found;
        if let Some(name) = name {
            if name.digest().is_some() {
                return Err(ImagesError::Layout(format!("{name} cannot be given as a name: a digest is not chosen")));
            }
            let digests: HashSet<Digest> = images.iter().map(|(_, digest)| *digest).collect();
            let [digest] = digests.into_iter().collect::<Vec<_>>()[..] else {
                return Err(ImagesError::Layout(format!(
                    "it holds {} images, so none can be named {name}",
                    images.len()
                )));
            };
            images = vec![(Some(name), digest)];
        }
        let mut loaded = Vec::new();
        for (reference, digest) in images {
            let record = records::Record { digest, loaded: true, public: true };
            let name = match &reference {
                Some(reference) => reference.to_string(),
                // Known by its digest alone, under a repository of its own.
                None => format!("{}/unnamed@{digest}", reference::LOCAL_REGISTRY),
            };
            self.records.set(name, record)?;
            let reference = reference.map(|reference| reference.to_string());
            loaded.push(LoadedImage { reference, digest, size: self.size(digest)? });
        }
        Ok(loaded)
    }

    fn size(&self, digest: Digest) -> Result<u64, ImagesError> {
        let blobs: HashSet<Digest> = load::reachable(&self.cas, digest, &self.config)?.into_iter().collect();
        blobs.iter().map(|blob| Ok(self.cas.size(blob)?)).sum()
    }
}

fn parse(reference: &str) -> Result<Reference, ImageError> {
    reference.parse().map_err(|error| ImageError::from(ImagesError::Reference(error)))
}
