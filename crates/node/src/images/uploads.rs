//! Source archives that were uploaded, per namespace.
//!
//! The blob is in the content store, where two namespaces may share it; that a namespace has it is a small file. No
//! namespace can use an archive that it did not upload, whatever digest it names.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::cas::Digest;
use tokio::io::AsyncRead;

use super::error::{ImagesError, blocking};
use super::records::write_synced;
use super::{Inner, manifest};

/// Files that an answer names at most.
const NAMED_FILES: usize = 1000;

/// An uploaded archive, as the answer to the upload gives it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredArchive {
    /// Names the archive in a Function's `spec.source.archive.digest`.
    pub digest: Digest,
    /// Its bytes, packed.
    pub size: u64,
    /// Bytes of its files.
    pub unpacked_bytes: u64,
    /// Its files, sorted; the first thousand.
    pub files: Vec<String>,
}

impl Inner {
    pub(crate) async fn store_archive(
        self: &Arc<Self>,
        namespace: &str,
        source: impl AsyncRead + Unpin,
    ) -> Result<StoredArchive, ImagesError> {
        let marks = self.marks(namespace)?;
        let hold = Arc::new(self.cas.hold());
        let stored = self.cas.put_async_held(source, self.config.source_bytes, None, &hold).await?;
        let _lock = self.locks.lock(stored.digest).await;
        let inner = Arc::clone(self);
        let archive = blocking(move || {
            inner.unpack_code(stored.digest).and_then(|source| {
                let files = source.files.iter().take(NAMED_FILES).map(|file| file.display().to_string()).collect();
                let archive =
                    StoredArchive { digest: stored.digest, size: stored.size, unpacked_bytes: source.bytes, files };
                fs::create_dir_all(&marks).map_err(ImagesError::io("make", &marks))?;
                let text = serde_json::to_vec(&archive).map_err(|error| ImagesError::Source(error.into()))?;
                write_synced(&marks.join(stored.digest.hex()), &text)?;
                Ok(archive)
            })
        });
        let archive = archive.await;
        drop(hold);
        if archive.is_err() && stored.fresh {
            self.cas.discard(&stored.digest)?;
        }
        archive
    }

    pub(crate) fn has_archive(&self, namespace: &str, digest: &Digest) -> bool {
        self.marks(namespace).is_ok_and(|marks| marks.join(digest.hex()).is_file()) && self.cas.contains(digest)
    }

    pub(crate) fn remove_archive(&self, namespace: &str, digest: &Digest) -> Result<bool, ImagesError> {
        let mark = self.marks(namespace)?.join(digest.hex());
        match fs::remove_file(&mark) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(ImagesError::io("remove", &mark)(error)),
        }
    }

    /// Archives of every namespace.
    pub(crate) fn archives(&self) -> Result<HashSet<Digest>, ImagesError> {
        let mut all = HashSet::new();
        for namespace in names(&self.uploads)? {
            let marks = names(&self.uploads.join(namespace))?;
            all.extend(marks.iter().filter_map(|name| format!("sha256:{name}").parse::<Digest>().ok()));
        }
        Ok(all)
    }

    fn marks(&self, namespace: &str) -> Result<PathBuf, ImagesError> {
        if !base::names::is_dns1123_label(namespace) {
            return Err(ImagesError::manifest(format!("for namespace {namespace:?}"), "that is no namespace's name"));
        }
        Ok(self.uploads.join(namespace))
    }

    /// Removes blobs, layers and code that nothing names. See [`super::Images::collect`].
    pub(crate) fn collect(
        &self,
        in_use: &HashSet<Digest>,
        code_in_use: &HashSet<Digest>,
    ) -> Result<Collected, ImagesError> {
        let mut layers = HashSet::new();
        let mut code = HashSet::new();
        let mut failure = None;
        let blobs = self.cas.gc(|| {
            let mut keep = HashSet::new();
            match self.archives() {
                Ok(archives) => code = archives.union(code_in_use).copied().collect(),
                Err(error) => failure = Some(error),
            }
            for digest in self.records.digests().union(in_use) {
                // A manifest that is not readable keeps nothing; its image must be fetched again anyway.
                let Ok((manifest, passed)) = manifest::stored(&self.cas, "", *digest, &self.config) else { continue };
                keep.extend(passed);
                keep.insert(manifest.config.digest);
                keep.extend(manifest.layers.iter().map(|layer| layer.digest));
                let file =
                    self.cas.read(&manifest.config.digest, self.config.manifest_bytes).map_err(ImagesError::from);
                if let Ok(file) = file.and_then(|bytes| manifest::parse_config("", &bytes)) {
                    layers.extend(file.diff_ids);
                }
            }
            keep.extend(&code);
            if failure.is_some() {
                // Without the list of archives everything is kept.
                keep.extend(self.cas.list().unwrap_or_default());
            }
            keep
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        self.unpacked.lock().clear();
        let mut directories = 0;
        for (parent, keep) in [(&self.layers, &layers), (&self.code, &code)] {
            for name in names(parent)? {
                let kept = format!("sha256:{name}").parse::<Digest>().is_ok_and(|digest| keep.contains(&digest));
                if !kept {
                    let path = parent.join(name);
                    fs::remove_dir_all(&path).map_err(ImagesError::io("remove", &path))?;
                    directories += 1;
                }
            }
        }
        Ok(Collected { blobs: blobs.removed, blob_bytes: blobs.removed_bytes, directories })
    }
}

/// What a collection removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Blobs.
    pub blobs: u64,
    /// Bytes of the blobs.
    pub blob_bytes: u64,
    /// Unpacked layers and source archives.
    pub directories: u64,
}

fn names(path: &Path) -> Result<Vec<String>, ImagesError> {
    let entries = fs::read_dir(path).map_err(ImagesError::io("list", path))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}
