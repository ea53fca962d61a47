//! The pod's volumes and the files that all its containers share.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use supervisor::{PodConfig, Volume, VolumeFile};

use super::sandbox::{Sandbox, make_dir};
use super::{Failure, Step};

/// Makes or renews what `config` asks for; the folder of each volume.
pub fn apply(sandbox: &Sandbox, config: &PodConfig) -> Result<BTreeMap<String, PathBuf>, Failure> {
    nix::unistd::sethostname(&config.hostname).step("setting the host name")?;
    let etc = sandbox.memory().join("etc");
    let hostname = format!("{}\n", config.hostname);
    for (name, content) in [("hosts", &config.hosts), ("resolv.conf", &config.resolv_conf), ("hostname", &hostname)] {
        fs::write(etc.join(name), content).step(format!("writing {name}"))?;
        fs::set_permissions(etc.join(name), Permissions::from_mode(0o644)).step(format!("writing {name}"))?;
    }
    config.volumes.iter().map(|(name, volume)| Ok((name.clone(), make(sandbox, config, name, volume)?))).collect()
}

fn make(sandbox: &Sandbox, config: &PodConfig, name: &str, volume: &Volume) -> Result<PathBuf, Failure> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(Failure::config("making a volume", format!("{name:?} is no name")));
    }
    let owner = sandbox.owner();
    let group = config.fs_group.map_or(owner, |group| owner + group);
    let in_memory = sandbox.memory().join("v").join(name);
    match volume {
        Volume::Host(path) => return Ok(path.clone()),
        Volume::Disk => {
            let parent = sandbox.setup.dir.join("v");
            make_dir(&parent)?;
            let path = parent.join(name);
            open_to_all(&path, owner, group)?;
            return Ok(path);
        }
        Volume::Memory { size_bytes } => {
            if !in_memory.exists() {
                make_dir(&in_memory)?;
                let options = size_bytes.map(|size| format!("size={size}"));
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
                mount(Some("memory"), &in_memory, Some("tmpfs"), flags, options.as_deref()).step("mounting memory")?;
                open_to_all(&in_memory, owner, group)?;
            }
        }
        Volume::Files(files) => write_files(&in_memory, files, owner, group)?,
    }
    Ok(in_memory)
}

fn open_to_all(path: &Path, owner: u32, group: u32) -> Result<(), Failure> {
    make_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o2777))
        .and_then(|()| chown(path, Some(owner), Some(group)))
        .step(format!("making volume folder {}", path.display()))
}

/// Files change all at once: they lie in a folder of their own that a link names, and the link is replaced.
fn write_files(root: &Path, files: &[VolumeFile], owner: u32, group: u32) -> Result<(), Failure> {
    make_dir(root)?;
    let own = |path: &Path, mode: u32| -> io::Result<()> {
        chown(path, Some(owner), Some(group))?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    };
    own(root, 0o755).step("making a volume")?;
    let old = fs::read_link(root.join("..data")).ok();
    let generation = (0..).map(|number| format!("..{number}")).find(|name| !root.join(name).exists());
    let generation = generation.unwrap_or_default();
    let folder = root.join(&generation);
    let write = |file: &VolumeFile| -> io::Result<()> {
        let path = folder.join(&file.path);
        for parent in path.ancestors().skip(1).take_while(|parent| parent.starts_with(&folder)) {
            fs::create_dir_all(parent)?;
            own(parent, 0o755)?;
        }
        fs::write(&path, &file.content.0)?;
        own(&path, file.mode & 0o777)
    };
    fs::create_dir(&folder).and_then(|()| own(&folder, 0o755)).step("making a volume")?;
    for file in files {
        let plain = Path::new(&file.path).components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || file.path.is_empty() {
            return Err(Failure::config("making a volume", format!("{:?} is no path below it", file.path)));
        }
        write(file).step(format!("writing volume file {}", file.path))?;
    }
    let swap = root.join("..next");
    symlink(&generation, &swap).and_then(|()| fs::rename(&swap, root.join("..data"))).step("renewing a volume")?;
    link_names(root, files).step("linking a volume's files")?;
    if let Some(old) = old {
        // What is still open stays readable.
        let _ = fs::remove_dir_all(root.join(old));
    }
    Ok(())
}

fn link_names(root: &Path, files: &[VolumeFile]) -> io::Result<()> {
    let names: std::collections::BTreeSet<&str> = files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            fs::remove_file(root.join(name.as_ref()))?;
        }
    }
    for name in names {
        match symlink(Path::new("..data").join(name), root.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use supervisor::Content;

    fn file(path: &str, text: &str) -> VolumeFile {
        VolumeFile { path: path.into(), mode: 0o644, content: Content(text.into()) }
    }

    #[test]
    fn files_are_replaced_at_once_and_old_ones_go() {
        let root = std::env::temp_dir().join(format!("supervisor-volume-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
        write_files(&root, &[file("a", "1"), file("b/c", "2")], uid, gid).unwrap();
        assert_eq!(fs::read_to_string(root.join("b/c")).unwrap(), "2");
        write_files(&root, &[file("a", "3")], uid, gid).unwrap();
        assert_eq!(fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(root.join("b")).is_err());
        let hostile = write_files(&root, &[file("../x", "4")], uid, gid).unwrap_err();
        assert!(hostile.config && hostile.to_string().contains("no path below"));
        fs::remove_dir_all(&root).unwrap();
    }
}
