//! Which references the store knows, kept in `images.json`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use store::cas::Digest;

use super::error::ImagesError;
use super::reference::Reference;

/// What is known of one reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The manifest or index that the reference stands for.
    pub(crate) digest: Digest,
    /// Taken in from a file, so that no registry is asked; else fetched from a registry.
    pub(crate) loaded: bool,
    /// A registry gave it to everybody, without credentials.
    #[serde(default)]
    pub(crate) public: bool,
}

#[derive(Default, Serialize, Deserialize)]
struct File {
    images: BTreeMap<String, Record>,
}

/// The table. Every change is on disk before the call returns.
pub(crate) struct Records {
    path: PathBuf,
    file: Mutex<File>,
}

impl Records {
    pub(crate) fn open(path: PathBuf) -> Result<Self, ImagesError> {
        let file = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| ImagesError::Io {
                action: "make sense of the list of images (remove the file and load the images again)",
                path: path.clone(),
                source: error.into(),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => File::default(),
            Err(error) => return Err(ImagesError::io("read", &path)(error)),
        };
        Ok(Self { path, file: Mutex::new(file) })
    }

    pub(crate) fn get(&self, reference: &Reference) -> Option<Record> {
        self.file.lock().images.get(&reference.to_string()).copied()
    }

    /// Whether an image with this digest was taken in from a file, under any name.
    pub(crate) fn is_loaded(&self, digest: &Digest) -> bool {
        self.file.lock().images.values().any(|record| record.loaded && record.digest == *digest)
    }

    pub(crate) fn all(&self) -> Vec<(String, Record)> {
        self.file.lock().images.iter().map(|(name, record)| (name.clone(), *record)).collect()
    }

    pub(crate) fn digests(&self) -> HashSet<Digest> {
        self.file.lock().images.values().map(|record| record.digest).collect()
    }

    pub(crate) fn set(&self, name: String, record: Record) -> Result<(), ImagesError> {
        self.change(|images| images.insert(name, record) != Some(record)).map(drop)
    }

    /// Forgets one name; false if it was not known.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, ImagesError> {
        self.change(|images| images.remove(name).is_some())
    }

    /// Changes the table and writes it when `change` says so.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Record>) -> bool) -> Result<bool, ImagesError> {
        let mut file = self.file.lock();
        let mut images = file.images.clone();
        if !change(&mut images) {
            return Ok(false);
        }
        let next = File { images };
        let text =
            serde_json::to_vec_pretty(&next).map_err(|error| ImagesError::io("write", &self.path)(error.into()))?;
        write_synced(&self.path, &text)?;
        *file = next;
        Ok(true)
    }
}

/// Replaces a file as a whole: after a crash it holds the old text or the new.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), ImagesError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(ImagesError::io("write", path))
}
