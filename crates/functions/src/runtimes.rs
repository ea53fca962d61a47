//! The built-in runtimes' own files, embedded in the binary. They are written to the data directory at start and
//! mounted read-only into the sandboxes of functions, one folder for each runtime.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};
use tracing::{info, warn};

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!("../../../runtimes/", $path)))),*]
    };
}

/// Path below the folder of runtimes, and content.
const FILES: &[(&str, &str)] = embedded![
    "binary/start.sh",
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

/// File that says which files were written and by which interpreter they were compiled.
const STAMP: &str = ".stamp";

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
        "binary" => vec!["/bin/sh".to_owned(), format!("{root}/binary/start.sh")],
        _ => return None,
    };
    Some(words)
}

/// Writes the runtimes' files below `dir`, where they are not there already, and compiles the Python ones for the
/// interpreter of this machine, which takes about 10 ms from every start. Blocks for up to a second.
///
/// # Errors
///
/// [`InstallError`] names the file. A missing interpreter is no error: functions of that runtime say so themselves.
pub fn install(dir: &Path) -> Result<(), InstallError> {
    let python = interpreter("python3");
    let stamp = stamp(python.as_deref());
    if fs::read_to_string(dir.join(STAMP)).is_ok_and(|present| present == stamp) {
        return Ok(());
    }
    for (name, content) in FILES {
        let path = dir.join(name);
        write(&path, content).map_err(|source| InstallError { path, source })?;
    }
    if let Some(python) = &python {
        compile(python, &dir.join("python/colibri_runtime"));
    }
    let path = dir.join(STAMP);
    write(&path, &stamp).map_err(|source| InstallError { path, source })
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

/// Changes when a file or the interpreter does.
fn stamp(python: Option<&Path>) -> String {
    let mut hash = Sha256::new();
    for (name, content) in FILES {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update(content.as_bytes());
        hash.update([0]);
    }
    let real = python.and_then(|path| fs::canonicalize(path).ok());
    let changed = real.as_ref().and_then(|path| fs::metadata(path).ok()).and_then(|meta| meta.modified().ok());
    format!("{} {real:?} {changed:?}\n", hex::encode(hash.finalize()))
}

/// Byte code that is not checked against its source: nothing else writes there.
fn compile(python: &Path, folder: &Path) {
    let mut command = Command::new(python);
    command.args(["-I", "-S", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]).arg(folder);
    match command.stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => info!(folder = %folder.display(), "Python runtime compiled"),
        Ok(output) => warn!(
            error = %String::from_utf8_lossy(&output.stderr).trim(),
            "cannot compile the Python runtime; functions will start more slowly"
        ),
        Err(error) => warn!(%error, "cannot compile the Python runtime; functions will start more slowly"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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
                } else if name.ends_with(".py") || name.ends_with(".sh") {
                    found.insert(name);
                }
            }
        }
        assert_eq!(found, FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
    }

    #[test]
    fn installing_twice_writes_once_and_an_update_is_written() {
        let dir = tempfile::tempdir().unwrap();
        install(dir.path()).unwrap();
        let boot = dir.path().join("python/boot.py");
        fs::write(&boot, "changed by hand").unwrap();
        install(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&boot).unwrap(), "changed by hand", "the stamp still holds");
        fs::write(dir.path().join(STAMP), "of another version").unwrap();
        install(dir.path()).unwrap();
        assert!(fs::read_to_string(&boot).unwrap().contains("server.main()"));
    }

    #[test]
    fn the_python_runtime_passes_its_own_tests() {
        let Some(python) = interpreter("python3") else {
            eprintln!("skipped: no python3 here; sudo apt install python3");
            return;
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runtimes/python");
        let mut command = Command::new(python);
        command.args(["-B", "-W", "ignore", "-m", "unittest", "discover", "-s", "tests"]).current_dir(folder);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
