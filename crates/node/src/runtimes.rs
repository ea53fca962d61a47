//! The host-root runtime: what of the host the built-in function runtimes see. An allow-list.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use supervisor::HostRoot;

/// Where the kernel looks for programs when a container's environment does not say.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PASSWD: &str = "root:x:0:0:root:/home:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Why a runtime cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// There is no such runtime.
    #[error("there is no built-in runtime {0:?}; there are python, nodejs and binary")]
    Unknown(String),
    /// Its interpreter is not on the host.
    #[error("the interpreter {program} is not installed on this machine: apt-get install {package}")]
    Missing {
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
}

/// A runtime's root and its search path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// What it sees.
    pub root: HostRoot,
    /// Value of `PATH`.
    pub path: String,
}

/// The runtime that an image's repository name asks for; `None` when the image is none of ours.
pub fn name_of(image: &str) -> Option<&str> {
    let name = image.strip_prefix(api::functions::RUNTIME_REGISTRY)?.strip_prefix('/')?;
    Some(name.split([':', '@']).next().unwrap_or(name))
}

/// Finds a runtime on this host. Blocks for as long as an interpreter that lies outside `/usr` takes to start.
///
/// # Errors
///
/// [`RuntimeError`].
pub fn find(name: &str) -> Result<Runtime, RuntimeError> {
    let prefix = match name {
        "python" => python_prefix()?,
        "nodejs" => node_prefix()?,
        "binary" => None,
        _ => return Err(RuntimeError::Unknown(name.into())),
    };
    let mut root = root(prefix.clone());
    if name == "nodejs" {
        // What functions import from the runtime is found as any package is: in the `node_modules` of a folder above.
        let package = format!("{}/nodejs/colibri-runtime", api::functions::RUNTIME_PATH);
        root.links.push(("/node_modules/colibri-runtime".into(), package));
    }
    let path = prefix.as_ref().map_or_else(|| PATH.to_string(), |prefix| format!("{}/bin:{PATH}", prefix.display()));
    Ok(Runtime { root, path })
}

fn python_prefix() -> Result<Option<PathBuf>, RuntimeError> {
    if Path::new("/usr/bin/python3").exists() {
        return Ok(None);
    }
    let missing = RuntimeError::Missing { program: "python3", package: "python3" };
    let output = Command::new("python3").args(["-I", "-S", "-c", "import sys; print(sys.base_prefix)"]).output();
    let output = output.map_err(|_| missing.clone())?;
    let prefix = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    outside_usr(prefix).ok_or(missing)
}

fn node_prefix() -> Result<Option<PathBuf>, RuntimeError> {
    if Path::new("/usr/bin/node").exists() {
        return Ok(None);
    }
    let missing = RuntimeError::Missing { program: "node", package: "nodejs" };
    let output = Command::new("node").args(["-p", "process.execPath"]).output().map_err(|_| missing.clone())?;
    let program = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let prefix = program.parent().and_then(Path::parent).map(Path::to_path_buf);
    prefix.and_then(outside_usr).ok_or(missing)
}

/// `None` for what is no prefix of its own; an inner `None` for what `/usr` holds anyway.
fn outside_usr(prefix: PathBuf) -> Option<Option<PathBuf>> {
    let depth = prefix.components().count();
    match prefix.starts_with("/usr") {
        true => Some(None),
        false if prefix.is_absolute() && depth >= 3 && prefix.is_dir() => Some(Some(prefix)),
        false => None,
    }
}

fn root(prefix: Option<PathBuf>) -> HostRoot {
    let mut host = HostRoot { binds: vec!["/usr".into()], ..HostRoot::default() };
    host.binds.extend(prefix);
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let path = PathBuf::from("/").join(name);
        match fs::read_link(&path) {
            Ok(target) => host.links.push((path.display().to_string(), target.display().to_string())),
            Err(_) if path.is_dir() => host.binds.push(path),
            Err(_) => {}
        }
    }
    host.files = [("/etc/passwd", PASSWD), ("/etc/group", GROUP), ("/etc/nsswitch.conf", NSSWITCH)]
        .map(|(path, text)| (path.to_string(), text.to_string()))
        .to_vec();
    if Path::new("/etc/ssl/certs").is_dir() {
        host.binds.push("/etc/ssl/certs".into());
    }
    if let Ok(target) = fs::canonicalize("/etc/localtime")
        && target.starts_with("/usr")
    {
        host.links.push(("/etc/localtime".into(), target.display().to_string()));
    }
    host.scratch = ["/tmp", "/home", "/run", "/var"].map(String::from).to_vec();
    host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runtimes_are_told_from_images() {
        assert_eq!(name_of("runtime.colibri.local/python"), Some("python"));
        assert_eq!(name_of("runtime.colibri.local/python:latest"), Some("python"));
        assert_eq!(name_of("docker.io/library/python"), None);
        assert_eq!(find("cobol").unwrap_err(), RuntimeError::Unknown("cobol".into()));
    }

    #[test]
    fn a_prefix_is_never_a_whole_host() {
        assert_eq!(outside_usr("/usr/local".into()), Some(None));
        for path in ["/", "/root", "relative/path", "/no/such/folder"] {
            assert_eq!(outside_usr(path.into()), None, "{path}");
        }
    }
}
