//! The data directory: where it is, and that only one platform uses it.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Name of the file with the addresses.
pub const ENDPOINTS: &str = "endpoints.json";
/// Name of the administrator's kubeconfig.
pub const KUBECONFIG: &str = "kubeconfig";

/// Where state is kept if nothing else is said: `/var/lib/colibri` for root, else the XDG state folder.
pub fn default_path() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/colibri");
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state"));
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    state.unwrap_or_else(std::env::temp_dir).join("colibri")
}

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// It cannot be made or written.
    #[error(
        "the data directory {path} cannot be written: {source}. Choose another with --data-dir, or give yourself the right to write there"
    )]
    Unwritable {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another platform runs on it.
    #[error(
        "another colibri (process {pid}) runs on the data directory {path}. Stop it, or choose another directory with --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Its process, as it wrote it down.
        pid: String,
    },
}

/// The data directory of a running platform; locked until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if it is not there, and locks it.
    ///
    /// # Errors
    ///
    /// [`DataDirError`] names the directory and what cures it.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let unwritable = |source| DataDirError::Unwritable { path: path.to_path_buf(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unwritable)?;
        let path = path.canonicalize().map_err(unwritable)?;
        let file = path.join("lock");
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
        let mut lock = options.open(&file).map_err(unwritable)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let pid = std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
            return Err(DataDirError::InUse { path, pid });
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(unwritable)?;
        let data_dir = Self { path, _lock: lock };
        data_dir.remove(ENDPOINTS);
        Ok(data_dir)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A folder or file in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file whole or not at all; only its owner can read it.
    ///
    /// # Errors
    ///
    /// [`DataDirError::Unwritable`].
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), DataDirError> {
        let write = || {
            let temporary = self.path.join(format!(".{name}.new"));
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(content)?;
            std::fs::rename(&temporary, self.path.join(name))
        };
        write().map_err(|source| DataDirError::Unwritable { path: self.path.clone(), source })
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) {
        if let Err(error) = std::fs::remove_file(self.path.join(name))
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, name, "cannot remove a file of the data directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_platform_is_told_who_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let text = DataDir::open(&path).unwrap_err().to_string();
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn files_are_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let data_dir = DataDir::open(&dir.path().join("data")).unwrap();
        data_dir.write(KUBECONFIG, b"secret").unwrap();
        let mode = std::fs::metadata(data_dir.join(KUBECONFIG)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "").unwrap();
        let text = DataDir::open(&path.join("below")).unwrap_err().to_string();
        assert!(text.contains("--data-dir"), "{text}");
    }
}
