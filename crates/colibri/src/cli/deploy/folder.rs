//! A folder's files, read for packing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use functions::pack::{ARCHIVE_LIMIT_BYTES, FILES_LIMIT, File, PackError};

use super::ignore::Ignore;

/// Files that are no code, and change what is deployed.
const SETTINGS: [&str; 4] = ["function.yml", "function.yaml", ".colibriignore", ".gitignore"];

/// Why a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// The system refused.
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// Names go into archives and are shown: they must be text.
    #[error("the name {0:?} is not UTF-8; rename the file or name it in .colibriignore")]
    Name(PathBuf),
    /// A link that cannot be followed.
    #[error(
        "{0} is a link to something that is not a file inside the folder; copy the file, or name the link in .colibriignore"
    )]
    Link(PathBuf),
    /// A socket, pipe or device.
    #[error("{0} is neither a file nor a folder; name it in .colibriignore")]
    Special(PathBuf),
    /// Too much.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// Every file below `root` that is not left out by `.colibriignore`, or by `.gitignore` where that is not there.
pub fn read(root: &Path) -> Result<BTreeMap<String, File>, FolderError> {
    let real_root = fs::canonicalize(root).map_err(|source| FolderError::Read { path: root.to_path_buf(), source })?;
    let mut reader =
        Reader { ignore: Ignore::new(&ignored(root)), root: real_root.clone(), files: BTreeMap::new(), bytes: 0 };
    let mut folders = vec![(real_root, String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        reader.folder(&folder, &prefix, &mut folders)?;
    }
    Ok(reader.files)
}

/// When each file of an upload was changed last, and how long it is; `function.yml` and the ignore file are among them.
/// What cannot be read is left out.
pub fn stamps(root: &Path) -> BTreeMap<PathBuf, (SystemTime, u64)> {
    let ignore = Ignore::new(&ignored(root));
    let mut found = BTreeMap::new();
    let mut folders = vec![(root.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let is_setting = SETTINGS.contains(&name.as_str());
            if found.len() >= FILES_LIMIT || (!is_setting && ignore.leaves_out(&name, metadata.is_dir())) {
                continue;
            }
            if metadata.is_file() {
                let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.insert(entry.path(), (changed, metadata.len()));
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !entry.path().join("pyvenv.cfg").exists() {
                folders.push((entry.path(), format!("{name}/")));
            }
        }
    }
    found
}

/// The text of the file that says what stays out.
fn ignored(root: &Path) -> String {
    let mut texts = [".colibriignore", ".gitignore"].iter().filter_map(|name| fs::read_to_string(root.join(name)).ok());
    texts.next().unwrap_or_default()
}

struct Reader {
    ignore: Ignore,
    root: PathBuf,
    files: BTreeMap<String, File>,
    bytes: u64,
}

impl Reader {
    fn folder(&mut self, folder: &Path, prefix: &str, folders: &mut Vec<(PathBuf, String)>) -> Result<(), FolderError> {
        let failed = |source| FolderError::Read { path: folder.to_path_buf(), source };
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                return Err(FolderError::Name(path));
            };
            let kind = entry.file_type().map_err(failed)?;
            if self.ignore.leaves_out(&name, kind.is_dir()) {
                continue;
            }
            if kind.is_dir() {
                // A virtual environment holds another machine's interpreter.
                if !path.join("pyvenv.cfg").exists() {
                    folders.push((path, format!("{name}/")));
                }
            } else if kind.is_file() {
                self.file(&path, name)?;
            } else if kind.is_symlink() {
                let target = fs::canonicalize(&path).ok();
                match target.filter(|target| target.starts_with(&self.root) && target.is_file()) {
                    Some(target) => self.file(&target, name)?,
                    None => return Err(FolderError::Link(path)),
                }
            } else {
                return Err(FolderError::Special(path));
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: String) -> Result<(), FolderError> {
        let failed = |source| FolderError::Read { path: path.to_path_buf(), source };
        let metadata = fs::metadata(path).map_err(failed)?;
        self.bytes += metadata.len();
        if self.bytes > ARCHIVE_LIMIT_BYTES {
            return Err(PackError::Bytes.into());
        }
        if self.files.len() >= FILES_LIMIT {
            return Err(PackError::Files.into());
        }
        let content = fs::read(path).map_err(failed)?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        self.files.insert(name, File { content, executable });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn names(dir: &Path) -> Vec<String> {
        read(dir).unwrap().into_keys().collect()
    }

    #[test]
    fn what_is_not_code_stays_out() {
        let dir = folder(&[
            ("main.py", "x"),
            ("lib/util.py", "y"),
            ("function.yml", ""),
            (".git/config", ""),
            ("__pycache__/main.cpython-311.pyc", ""),
            ("env/pyvenv.cfg", ""),
            ("env/lib/flask.py", ""),
            ("secret.txt", ""),
            (".colibriignore", "secret.txt\n"),
        ]);
        assert_eq!(names(dir.path()), ["lib/util.py", "main.py"]);
    }

    #[test]
    fn gitignore_holds_where_there_is_no_colibriignore() {
        let dir = folder(&[("main.py", "x"), ("a.log", ""), (".gitignore", "*.log\n")]);
        assert_eq!(names(dir.path()), ["main.py"]);
        fs::write(dir.path().join(".colibriignore"), "").unwrap();
        assert_eq!(names(dir.path()), ["a.log", "main.py"]);
    }

    #[test]
    fn the_same_code_packs_to_the_same_bytes_whatever_its_times() {
        let first = folder(&[("b.py", "2"), ("a/x.py", "1")]);
        let second = folder(&[("a/x.py", "1"), ("b.py", "2")]);
        let file = fs::File::options().write(true).open(second.path().join("b.py")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        let pack = |dir: &tempfile::TempDir| functions::pack::pack(&read(dir.path()).unwrap()).unwrap();
        assert_eq!(pack(&first), pack(&second));
    }

    #[test]
    fn links_are_followed_inside_the_folder_only() {
        let dir = folder(&[("main.py", "x")]);
        std::os::unix::fs::symlink("main.py", dir.path().join("same.py")).unwrap();
        assert_eq!(names(dir.path()), ["main.py", "same.py"]);
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("users")).unwrap();
        let error = read(dir.path()).unwrap_err();
        assert!(matches!(error, FolderError::Link(_)), "{error}");
    }

    #[test]
    fn a_pipe_is_named() {
        let dir = folder(&[("main.py", "x")]);
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(dir.path()).unwrap_err(), FolderError::Special(path) if path.ends_with("pipe")));
    }
}
