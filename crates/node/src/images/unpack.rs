//! Unpacks images and function code, once each, into directories that are then only read.
//!
//! A directory appears under its final name when it is complete and on disk. Layers are keyed by diffID, the digest of
//! what was unpacked, so images share them and no image can put its content in another's place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use store::cas::{CasError, Digest};

use super::Inner;
use super::archive::layer::unpack_layer;
use super::archive::source::{Source, unpack_source};
use super::error::{ImagesError, blocking};
use super::manifest::{self, ImageConfig, Manifest};

/// Images whose description is kept in memory; when there are more, all are read again.
const CACHED: usize = 4096;

/// An image that is ready to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnpackedImage {
    /// The digest that was asked for.
    pub digest: Digest,
    /// Directories of its layers, the LOWEST FIRST; overlayfs's `lowerdir` wants them in reverse.
    pub layers: Vec<PathBuf>,
    /// How a container of it is started.
    pub config: ImageConfig,
}

impl Inner {
    pub(crate) async fn unpack(self: &Arc<Self>, digest: Digest) -> Result<Arc<UnpackedImage>, ImagesError> {
        if let Some(image) = self.unpacked.lock().get(&digest) {
            return Ok(Arc::clone(image));
        }
        let inner = Arc::clone(self);
        let (manifest, file) = blocking(move || {
            let what = digest.to_string();
            let (manifest, _) = manifest::stored(&inner.cas, &what, digest, &inner.config)?;
            let file =
                manifest::parse_config(&what, &inner.cas.read(&manifest.config.digest, inner.config.manifest_bytes)?)?;
            Ok((manifest, file))
        })
        .await?;
        if file.diff_ids.len() != manifest.layers.len() {
            return Err(ImagesError::manifest(
                digest,
                "its configuration and its manifest name different numbers of layers",
            ));
        }
        let layers = self.unpack_layers(&manifest, &file.diff_ids).await?;
        let image = Arc::new(UnpackedImage { digest, layers, config: file.config });
        let mut cache = self.unpacked.lock();
        if cache.len() >= CACHED {
            cache.clear();
        }
        cache.insert(digest, Arc::clone(&image));
        Ok(image)
    }

    async fn unpack_layers(
        self: &Arc<Self>,
        manifest: &Manifest,
        diff_ids: &[Digest],
    ) -> Result<Vec<PathBuf>, ImagesError> {
        let layers = manifest.layers.iter().map(|layer| layer.digest).zip(diff_ids.iter().copied());
        let tasks = layers.map(|(blob, diff_id)| self.unpack_layer(blob, diff_id));
        // Collected first: a stream of borrowed closures would tie the future to their lifetimes.
        let tasks: Vec<_> = tasks.collect();
        stream::iter(tasks).buffered(self.config.layers_at_once).try_collect().await
    }

    fn unpack_layer(
        self: &Arc<Self>,
        blob: Digest,
        diff_id: Digest,
    ) -> impl Future<Output = Result<PathBuf, ImagesError>> + Send + use<> {
        let inner = Arc::clone(self);
        async move {
            let path = inner.layer_path(&diff_id);
            // Present layers are the rule on a cold start: looked for without the lock.
            if path.is_dir() {
                return Ok(path);
            }
            let _lock = inner.locks.lock(diff_id).await;
            if path.is_dir() {
                return Ok(path);
            }
            let working = Arc::clone(&inner);
            blocking(move || {
                let final_path = working.layer_path(&diff_id);
                working.make_directory(&final_path, |into| {
                    let limits = &working.config.layer_limits;
                    let reader = working.cas.reader(&blob)?;
                    match unpack_layer(reader, into, limits, Some(&diff_id)) {
                        Ok(unpacked) => {
                            tracing::debug!(%diff_id, unpacked.entries, unpacked.bytes, "layer unpacked");
                            Ok(())
                        }
                        Err(error) => Err(working
                            .blame(blob, ImagesError::archive(format!("layer {blob} cannot be unpacked"))(error))),
                    }
                })
            })
            .await?;
            Ok(path)
        }
    }

    /// The directory of a source archive, unpacked if it is not yet.
    pub(crate) async fn code_dir(self: &Arc<Self>, digest: Digest) -> Result<PathBuf, ImagesError> {
        let path = self.code_path(&digest);
        if path.is_dir() {
            return Ok(path);
        }
        let _lock = self.locks.lock(digest).await;
        if path.is_dir() {
            return Ok(path);
        }
        let inner = Arc::clone(self);
        blocking(move || inner.unpack_code(digest).map(drop)).await?;
        Ok(path)
    }

    /// Unpacks a source archive; the caller holds its lock.
    pub(crate) fn unpack_code(&self, digest: Digest) -> Result<Source, ImagesError> {
        self.cas.verify(&digest).map_err(|error| self.blame(digest, error.into()))?;
        let blob = self.cas.path(&digest);
        let mut source = Source::default();
        self.make_directory(&self.code_path(&digest), |into| {
            let file = fs::File::open(&blob).map_err(ImagesError::io("open", &blob))?;
            let refuse = ImagesError::archive("the source archive cannot be used");
            source = unpack_source(file, into, &self.config.source_limits).map_err(refuse)?;
            Ok(())
        })?;
        Ok(source)
    }

    /// Fills a new directory and gives it its final name.
    fn make_directory(
        &self,
        path: &Path,
        fill: impl FnOnce(&Path) -> Result<(), ImagesError>,
    ) -> Result<(), ImagesError> {
        let parent = &self.incoming;
        let work = tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(parent)
            .map_err(ImagesError::io("make a directory in", parent))?;
        let inside = work.path().join("root");
        fs::create_dir(&inside).map_err(ImagesError::io("make", &inside))?;
        // Whatever the umask: users inside a container must be able to enter their root.
        fs::set_permissions(&inside, fs::Permissions::from_mode(0o755))
            .map_err(ImagesError::io("set the mode of", &inside))?;
        fill(&inside)?;
        if path.is_dir() {
            // The same content is there, and pods may have it mounted.
            return Ok(());
        }
        fs::rename(&inside, path).map_err(ImagesError::io("rename to", path))
    }

    /// Finds out whether a blob is damaged when using it failed; a damaged one is removed, so that it is fetched anew.
    fn blame(&self, blob: Digest, error: ImagesError) -> ImagesError {
        match self.cas.verify(&blob) {
            Err(damage @ CasError::Corrupt { .. }) => {
                tracing::warn!(%blob, "a stored blob is damaged and was removed");
                let _ = self.cas.remove(&blob);
                damage.into()
            }
            _ => error,
        }
    }

    pub(crate) fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex())
    }

    pub(crate) fn code_path(&self, digest: &Digest) -> PathBuf {
        self.code.join(digest.hex())
    }
}
