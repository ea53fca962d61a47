//! A container's root file system: layers or the host's allow-list, and everything that is mounted in it.
//!
//! Sources are opened as detached mounts first; then the new root becomes the root; then targets are looked up. So a
//! symbolic link in an image can lead nowhere but into the image, and no host path is reachable once the first target
//! is touched.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use supervisor::{ContainerSpec, HostRoot, MountSource, Root};

use super::child::Orders;
use super::{Failure, Step, sys};

const NONE: Option<&str> = None;

/// Parts of `/proc` that say too much or do too much.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// Parts of `/proc` that may be read only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The devices of `/dev`: name, major, minor.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// A mount that is not attached yet.
struct Detached {
    mount: OwnedFd,
    target: PathBuf,
    is_dir: bool,
}

/// Makes the root file system of `orders`' container the root of this mount namespace.
pub fn enter(orders: &Orders, map: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let spec = &orders.spec;
    let run = orders.memory.join("run").join(format!("{}-{}", spec.name, spec.run));
    let root = run.join("root");
    fs::create_dir_all(&root).step("making folders in memory")?;
    let mut later = Vec::new();
    match &spec.root {
        Root::Layers(layers) => mount_layers(orders, layers, &run, map)?,
        Root::Host(host) => {
            mount(Some("root"), &root, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("size=1m,mode=755"))
                .step("mounting the root")?;
            for path in &host.binds {
                later.push(detach(path, None, path.clone(), true, None)?);
            }
        }
    }
    own_files(orders, &mut later)?;
    for mount in &spec.mounts {
        later.push(volume(orders, mount, map)?);
    }
    sys::pivot_root(&root).step("changing the root")?;
    if let Root::Host(host) = &spec.root {
        fill_host_root(host, orders.owner)?;
    }
    mount_system(orders)?;
    for detached in later {
        attach(&detached, orders.owner)?;
    }
    make_dirs(Path::new(&spec.cwd), orders.owner).step(format!("making the working directory {}", spec.cwd))?;
    seal(spec)
}

/// Layers, the lowest first, under a writable one.
fn mount_layers(orders: &Orders, layers: &[PathBuf], run: &Path, map: Option<BorrowedFd<'_>>) -> Result<(), Failure> {
    let spec = &orders.spec;
    let lower = run.join("l");
    fs::create_dir_all(&lower).step("making folders in memory")?;
    for (index, layer) in layers.iter().enumerate() {
        let at = lower.join(index.to_string());
        fs::create_dir(&at).step("making folders in memory")?;
        let detached = detach(layer, None, PathBuf::new(), true, map)?;
        move_mount(&detached.mount, "", rustix::fs::CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .step("attaching a layer")?;
    }
    if layers.is_empty() {
        fs::create_dir(lower.join("0")).step("making folders in memory")?;
    }
    let writable = orders.dir.join("rw").join(format!("{}-{}", spec.name, spec.run));
    let upper = writable.join("u");
    fs::create_dir_all(&upper)
        .and_then(|()| fs::create_dir_all(writable.join("w")))
        .step("making the writable layer")?;
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).step("making the writable layer")?;
    chown(&upper, Some(orders.owner), Some(orders.owner)).step("making the writable layer")?;
    // Numbers relative to a folder and a descriptor, so that neither the length nor the characters of paths matter.
    std::env::set_current_dir(&lower).step("entering the layers")?;
    let folder = fs::File::open(&writable).step("opening the writable layer")?;
    let lowers: Vec<String> = (0..layers.len().max(1)).rev().map(|index| index.to_string()).collect();
    let base = format!("/proc/self/fd/{}", folder.as_raw_fd());
    let options = format!("lowerdir={},upperdir={base}/u,workdir={base}/w,volatile", lowers.join(":"));
    let flags = MsFlags::MS_NODEV;
    let target = run.join("root");
    mount(Some("overlay"), &target, Some("overlay"), flags, Some(options.as_str())).step("mounting the layers")
}

/// A copy of a mount (`None` in `at`: the path itself; else the path below that descriptor), read only or not.
fn detach(
    path: &Path,
    at: Option<BorrowedFd<'_>>,
    target: PathBuf,
    read_only: bool,
    map: Option<BorrowedFd<'_>>,
) -> Result<Detached, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = match at {
        None => open_tree(rustix::fs::CWD, path, flags),
        Some(fd) => open_tree(fd, "", flags | OpenTreeFlags::AT_EMPTY_PATH),
    }
    .step(format!("opening {}", path.display()))?;
    let mut set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID;
    if map.is_some() {
        set &= !libc::MOUNT_ATTR_NOSUID; // layers keep theirs
    }
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    sys::mount_setattr(mount.as_fd(), set, map, false).step(format!("restricting {}", path.display()))?;
    let is_dir = fs::metadata(format!("/proc/self/fd/{}", mount.as_raw_fd())).step("looking at a mount")?.is_dir();
    Ok(Detached { mount, target, is_dir })
}

/// `/etc/hosts`, `/etc/resolv.conf`, `/etc/hostname` and the termination log.
fn own_files(orders: &Orders, later: &mut Vec<Detached>) -> Result<(), Failure> {
    for name in ["hosts", "resolv.conf", "hostname"] {
        let target = Path::new("/etc").join(name);
        let covered = orders.spec.mounts.iter().any(|mount| Path::new(&mount.target) == target);
        if !covered {
            later.push(detach(&orders.memory.join("etc").join(name), None, target, true, None)?);
        }
    }
    let log = orders.memory.join("term").join(format!("{}-{}", orders.spec.name, orders.spec.run));
    later.push(detach(&log, None, PathBuf::from(&orders.spec.termination_log), false, None)?);
    Ok(())
}

/// A volume, or a part of it that is looked up without leaving it.
fn volume(orders: &Orders, mount: &supervisor::Mount, map: Option<BorrowedFd<'_>>) -> Result<Detached, Failure> {
    let target = PathBuf::from(&mount.target);
    let (root, sub_path) = match &mount.source {
        MountSource::Host(path) => return detach(path, None, target, mount.read_only, map),
        MountSource::Volume { name, sub_path } => {
            let root = orders.volumes.get(name);
            let root =
                root.ok_or_else(|| Failure::config("mounting a volume", format!("there is no volume {name}")))?;
            (root, sub_path)
        }
    };
    // What is not the sandbox's own (code, images) is shared: read only, with its owners as the container sees them.
    let own = root.starts_with(&orders.dir);
    let (read_only, map) = (mount.read_only || !own, map.filter(|_| !own));
    if sub_path.is_empty() {
        return detach(root, None, target, read_only, map);
    }
    let folder = fs::File::open(root).step("opening a volume")?;
    let inside = |path: &Path| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&folder, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    let path = Path::new(sub_path);
    let found = match inside(path) {
        Err(rustix::io::Errno::NOENT) if own => {
            make_below(&folder, path, orders.owner)?;
            inside(path)
        }
        other => other,
    };
    let found = found.map_err(|error| Failure::config(format!("opening sub path {sub_path}"), error.to_string()))?;
    detach(path, Some(found.as_fd()), target, read_only, map)
}

/// Makes the folders of a sub path that is not there, one by one, without leaving the volume.
fn make_below(folder: &fs::File, path: &Path, owner: u32) -> Result<(), Failure> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let mut at = folder.try_clone().step("opening a volume")?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            return Err(Failure::config("making a sub path", "it has parts that are no names"));
        };
        if rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)).is_ok() {
            let id = Some(rustix::fs::Uid::from_raw(owner));
            let group = Some(rustix::fs::Gid::from_raw(owner));
            rustix::fs::chownat(&at, name, id, group, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .step("making a sub path")?;
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        at = rustix::fs::openat2(&at, Path::new(name), flags, Mode::empty(), resolve).step("making a sub path")?.into();
    }
    Ok(())
}

/// Attaches a mount in the new root; the place for it is made where it is missing.
fn attach(detached: &Detached, owner: u32) -> Result<(), Failure> {
    let target = &detached.target;
    let step = || format!("mounting {}", target.display());
    if detached.is_dir {
        make_dirs(target, owner).step(step())?;
    } else {
        make_dirs(target.parent().unwrap_or(Path::new("/")), owner).step(step())?;
        if !target.exists() {
            fs::File::create(target).and_then(|_| chown(target, Some(owner), Some(owner))).step(step())?;
        }
    }
    move_mount(&detached.mount, "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).step(step())
}

/// Makes a folder and its parents, owned by the containers' root.
fn make_dirs(path: &Path, owner: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dirs(parent, owner)?;
    }
    match fs::create_dir(path) {
        Ok(()) => chown(path, Some(owner), Some(owner)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn fill_host_root(host: &HostRoot, owner: u32) -> Result<(), Failure> {
    for (path, target) in &host.links {
        make_dirs(Path::new(path).parent().unwrap_or(Path::new("/")), 0).step("making links")?;
        symlink(target, path).step(format!("linking {path}"))?;
    }
    for (path, content) in &host.files {
        make_dirs(Path::new(path).parent().unwrap_or(Path::new("/")), 0).step("making files")?;
        fs::write(path, content).step(format!("writing {path}"))?;
    }
    for path in &host.scratch {
        make_dirs(Path::new(path), 0).step("making folders")?;
        tmpfs(path, &format!("mode={},uid={owner},gid={owner}", if path == "/tmp" { "1777" } else { "755" }))?;
    }
    for name in ["/proc", "/sys", "/dev"] {
        make_dirs(Path::new(name), 0).step("making folders")?;
    }
    Ok(())
}

fn tmpfs(path: &str, options: &str) -> Result<(), Failure> {
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .step(format!("mounting {path}"))
}

/// `/proc`, `/sys`, `/dev`, and `/tmp` where an image has none.
fn mount_system(orders: &Orders) -> Result<(), Failure> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    for name in ["/proc", "/sys", "/dev"] {
        make_dirs(Path::new(name), orders.owner).step(format!("making {name}"))?;
    }
    mount(Some("proc"), "/proc", Some("proc"), quiet, NONE).step("mounting /proc")?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), quiet | MsFlags::MS_RDONLY, NONE).step("mounting /sys")?;
    mount_cgroups(orders, quiet | MsFlags::MS_RDONLY);
    mount_dev(orders.owner)?;
    if !Path::new("/tmp").exists() {
        make_dirs(Path::new("/tmp"), orders.owner).step("making /tmp")?;
        fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777)).step("making /tmp")?;
    }
    for path in READ_ONLY {
        if Path::new(path).exists() {
            mount(Some(path), path, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).step(format!("binding {path}"))?;
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | quiet;
            mount(NONE, path, NONE, flags, NONE).step(format!("making {path} read only"))?;
        }
    }
    for path in MASKED {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                mount(Some("tmpfs"), path, Some("tmpfs"), quiet | MsFlags::MS_RDONLY, Some("size=0")).map(drop)
            }
            Ok(_) => mount(Some("/dev/null"), path, NONE, MsFlags::MS_BIND, NONE),
            Err(_) => Ok(()),
        }
        .step(format!("masking {path}"))?;
    }
    Ok(())
}

/// The container's own limits, to be read. A hierarchy that cannot be mounted again is left out.
fn mount_cgroups(orders: &Orders, flags: MsFlags) {
    let place = "/sys/fs/cgroup";
    if orders.v1_controllers.is_empty() {
        let _ = mount(Some("cgroup2"), place, Some("cgroup2"), flags, NONE);
        return;
    }
    if mount(Some("tmpfs"), place, Some("tmpfs"), flags & !MsFlags::MS_RDONLY, Some("size=64k,mode=755")).is_err() {
        return;
    }
    for controller in &orders.v1_controllers {
        let at = format!("{place}/{controller}");
        if fs::create_dir(&at).is_ok() {
            let _ = mount(Some("cgroup"), at.as_str(), Some("cgroup"), flags, Some(controller.as_str()));
        }
    }
    let _ = mount(NONE, place, NONE, flags | MsFlags::MS_REMOUNT, NONE);
}

fn mount_dev(owner: u32) -> Result<(), Failure> {
    let dev = Path::new("/dev");
    let options = format!("size=64k,mode=755,uid={owner},gid={owner}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), dev, Some("tmpfs"), flags, Some(options.as_str())).step("mounting /dev")?;
    for (name, major, minor) in DEVICES {
        sys::make_device(&dev.join(name), major, minor).step(format!("making /dev/{name}"))?;
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlink(target, dev.join(name)).step(format!("linking /dev/{name}"))?;
    }
    for name in ["pts", "shm", "mqueue"] {
        fs::create_dir(dev.join(name)).step(format!("making /dev/{name}"))?;
    }
    mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some("newinstance,ptmxmode=0666,mode=0620"))
        .step("mounting /dev/pts")?;
    let quiet = flags | MsFlags::MS_NODEV;
    mount(Some("shm"), "/dev/shm", Some("tmpfs"), quiet, Some("size=64m,mode=1777")).step("mounting /dev/shm")?;
    // Absent on kernels without message queues.
    let _ = mount(Some("mqueue"), "/dev/mqueue", Some("mqueue"), quiet, NONE);
    Ok(())
}

/// Makes the root read only where asked for: always for the host's allow-list, whose root holds nothing to write.
fn seal(spec: &ContainerSpec) -> Result<(), Failure> {
    if !spec.read_only_root && matches!(spec.root, Root::Layers(_)) {
        return Ok(());
    }
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).step("opening the root")?;
    sys::mount_setattr(root.as_fd(), libc::MOUNT_ATTR_RDONLY, None, false).step("making the root read only")
}

/// Whether a path is absolute and has no `..`.
pub fn is_plain(path: impl AsRef<OsStr>) -> bool {
    let path = Path::new(path.as_ref());
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}
