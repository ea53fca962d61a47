//! The built-in runtimes' own files, embedded in the binary. They are written to the data directory at start and
//! mounted read-only into the sandboxes of functions.
//!
//! Each version of the files has a folder of its own, named after their content: a pod that was started by an older
//! platform keeps the files that it started with, and byte code never belongs to another source.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use sha2::{Digest, Sha256};
use tokio::process::Command;
use tracing::{debug, warn};

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../runtimes/", $path)))),*]
    };
}

/// Path below the folder of runtimes, and content.
const FILES: &[(&str, &str)] = embedded![
    "binary/start.sh",
    "nodejs/boot.js",
    "nodejs/colibri-runtime/answer.js",
    "nodejs/colibri-runtime/events.js",
    "nodejs/colibri-runtime/index.js",
    "nodejs/colibri-runtime/load.js",
    "nodejs/colibri-runtime/logs.js",
    "nodejs/colibri-runtime/message.js",
    "nodejs/colibri-runtime/package.json",
    "nodejs/colibri-runtime/server.js",
    "nodejs/colibri-runtime/shape.js",
    "python/boot.py",
    "python/colibri_runtime/__init__.py",
    "python/colibri_runtime/answer.py",
    "python/colibri_runtime/asgi.py",
    "python/colibri_runtime/events.py",
    "python/colibri_runtime/http1.py",
    "python/colibri_runtime/load.py",
    "python/colibri_runtime/logs.py",
    "python/colibri_runtime/loop.py",
    "python/colibri_runtime/message.py",
    "python/colibri_runtime/server.py",
    "python/colibri_runtime/shape.py",
    "python/colibri_runtime/wsgi.py",
];

/// File that says by which interpreter the Python files were compiled.
const STAMP: &str = ".compiled";
/// Compiles a folder, giving way to everything else. The byte code is not checked against its source: nothing else
/// writes there. Each file appears whole or not at all.
const COMPILE: &str = "import os, sys
os.nice(10)
import compileall, py_compile
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, force=True, invalidation_mode=mode))";

/// Why the runtimes' files could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the runtime file {path} cannot be written")]
pub struct InstallError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Command of a runtime's container, as seen from inside.
pub fn command(runtime: &str) -> Option<Vec<String>> {
    let root = api::functions::RUNTIME_PATH;
    let words: Vec<String> = match runtime {
        // Isolated from the environment and the user's site, without `site` itself, and writing no byte code: each of
        // them costs time at every start.
        "python" => {
            let options = ["-I", "-S", "-B", "-X", "utf8"].map(str::to_owned);
            [vec!["python3".to_owned()], options.to_vec(), vec![format!("{root}/python/boot.py")]].concat()
        }
        "nodejs" => vec!["node".to_owned(), format!("{root}/nodejs/boot.js")],
        "binary" => vec!["/bin/sh".to_owned(), format!("{root}/binary/start.sh")],
        _ => return None,
    };
    Some(words)
}

/// Where [`install`] writes the files below `dir`.
pub fn folder(dir: &Path) -> PathBuf {
    let mut hash = Sha256::new();
    for (name, content) in FILES {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(content.as_bytes());
        hash.update([0]);
    }
    dir.join(hex::encode(&hash.finalize()[..8]))
}

/// Writes the runtimes' files below `dir`, where they are not there as they should be; answers their folder.
///
/// # Errors
///
/// [`InstallError`] names the file.
pub fn install(dir: &Path) -> Result<PathBuf, InstallError> {
    let folder = folder(dir);
    for (name, content) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|present| present == content.as_bytes()) {
            continue;
        }
        write(&path, content).map_err(|source| InstallError { path, source })?;
    }
    Ok(folder)
}

/// Compiles the Python files in that folder for the interpreter of this machine, unless that was done: it takes about
/// 10 ms from every start of a function. Functions run without it too, so nothing has to wait for it.
pub async fn compile(folder: PathBuf) {
    let Some(python) = interpreter("python3") else { return };
    let (file, stamp) = (folder.join(STAMP), stamp(&python));
    if fs::read_to_string(&file).is_ok_and(|present| present == stamp) {
        return;
    }
    if let Err(error) = run_compiler(&python, &folder.join("python/colibri_runtime")).await {
        warn!(%error, "cannot compile the Python runtime; functions start more slowly");
    } else if let Err(error) = write(&file, &stamp) {
        warn!(%error, file = %file.display(), "cannot note that the Python runtime is compiled");
    } else {
        debug!(folder = %folder.display(), "Python runtime compiled");
    }
}

/// Where an interpreter is: `/usr/bin` first, as in the sandbox, then `PATH`.
pub fn interpreter(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(PathBuf::from("/usr/bin")).chain(std::env::split_paths(&path));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn write(path: &Path, content: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("new");
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}

/// Changes when the interpreter does.
fn stamp(python: &Path) -> String {
    let real = fs::canonicalize(python).unwrap_or_else(|_| python.to_path_buf());
    let changed = fs::metadata(&real).ok().and_then(|meta| meta.modified().ok());
    format!("{real:?} {changed:?}\n")
}

async fn run_compiler(python: &Path, folder: &Path) -> io::Result<()> {
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-c", COMPILE]).arg(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::process::Command;

    use super::*;

    #[test]
    fn every_runtime_file_is_embedded() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes");
        let mut found = BTreeSet::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                if path.is_dir() && !name.ends_with("tests") && !name.ends_with("__pycache__") {
                    folders.push(path);
                } else if path.is_file() && !name.contains("tests/") {
                    found.insert(name);
                }
            }
        }
        assert_eq!(found, FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
    }

    #[test]
    fn what_is_not_as_it_should_be_is_written_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let folder = install(dir.path()).unwrap();
        assert_eq!(folder.parent(), Some(dir.path()));
        let (boot, start) = (folder.join("python/boot.py"), folder.join("binary/start.sh"));
        let written = |file: &Path| fs::metadata(file).unwrap().modified().unwrap();
        let before = written(&start);
        fs::write(&boot, "torn").unwrap();
        assert_eq!(install(dir.path()).unwrap(), folder);
        assert!(fs::read_to_string(&boot).unwrap().contains("server.main()"));
        assert_eq!(written(&start), before);
    }

    #[tokio::test]
    async fn byte_code_is_made_once_for_each_interpreter() {
        if interpreter("python3").is_none() {
            eprintln!("skipped: no python3 here; sudo apt install python3");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let folder = install(dir.path()).unwrap();
        let cache = folder.join("python/colibri_runtime/__pycache__");
        assert!(!cache.exists(), "installing compiles nothing");
        compile(folder.clone()).await;
        let sources = FILES.iter().filter(|(name, _)| name.starts_with("python/colibri_runtime/")).count();
        assert_eq!(fs::read_dir(&cache).unwrap().count(), sources);
        fs::remove_dir_all(&cache).unwrap();
        compile(folder.clone()).await;
        assert!(!cache.exists(), "the stamp still holds");
        fs::write(folder.join(STAMP), "another interpreter").unwrap();
        compile(folder).await;
        assert_eq!(fs::read_dir(&cache).unwrap().count(), sources);
    }

    #[test]
    fn a_binary_function_starts_its_executable_or_says_what_is_wrong() {
        use std::os::unix::fs::PermissionsExt;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/binary/start.sh");
        type Files<'a> = &'a [(&'a str, u32)];
        let run = |files: Files, handler: &str| {
            let dir = tempfile::tempdir().unwrap();
            for (name, mode) in files {
                let file = dir.path().join(name);
                fs::write(&file, "#!/bin/sh\necho this is $0\n").unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(*mode)).unwrap();
            }
            let mut command = Command::new("/bin/sh");
            command.arg(&script).env("COLIBRI_CODE", dir.path()).env("COLIBRI_HANDLER", handler);
            let output = command.output().unwrap();
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        let rows: [(Files, &str, &str); 6] = [
            (&[("server", 0o755), ("data.txt", 0o644)], "", "this is ./server"),
            (&[("a", 0o755), ("b", 0o755)], "b", "this is ./b"),
            (&[("a", 0o755), ("b", 0o755)], "", "several executables, a and b; name one"),
            (&[("a", 0o644)], "", "no executable at its top; run chmod +x"),
            (&[("a", 0o644)], "a", "not executable; run chmod +x"),
            (&[("a", 0o755)], "c", "no such file; it has: a"),
        ];
        for (files, handler, expected) in rows {
            let found = run(files, handler);
            assert!(found.contains(expected), "{found:?} does not contain {expected:?}");
        }
    }

    #[test]
    fn every_runtime_of_the_api_has_a_command() {
        for runtime in api::functions::admission::RUNTIMES {
            assert!(command(runtime).is_some(), "{runtime}");
        }
        assert_eq!(command("cobol"), None);
    }
}
