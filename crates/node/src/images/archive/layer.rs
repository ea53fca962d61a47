//! Unpacks one image layer into a directory of its own, ready to be a lower directory of overlayfs.
//!
//! Rules:
//! - `.wh.NAME` becomes a character device 0/0 named NAME, `.wh..wh..opq` the attribute `trusted.overlay.opaque` of
//!   its directory (`user.overlay.opaque` without root, for mounts with `userxattr`). Both act on lower layers only;
//!   what the same layer holds under that name stays.
//! - Of several entries with one name the last wins.
//! - Owner, mode with set-id bits, time (whole seconds), hard links, `user.*`, file capabilities and ACLs are kept.
//!   Other attributes are dropped; those that steer overlayfs are refused.
//! - Device nodes are refused, except below `dev/`, which a container never sees: those are left out.
//! - An entry whose path goes through a symbolic link or out of the layer is refused.
//!
//! Source: OCI image specification, "Image Layer Filesystem Changeset"; Linux, `Documentation/filesystems/overlayfs.rst`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use store::cas::Digest;

use super::tar::{Entry, Kind, each_entry};
use super::tree::{Attributes, Found, Tree};
use super::{ArchiveError, Limits, decompress, entry_path};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of names that older union file systems kept for themselves.
const RESERVED: &[u8] = b".wh..wh.";

/// What a layer held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the layer's tar stream: its diffID.
    pub diff_id: Digest,
    /// Entries in it.
    pub entries: u64,
    /// Bytes of its tar stream.
    pub bytes: u64,
}

/// Unpacks a layer (plain, gzip or zstd tar) into `into`, an empty directory. After an error the directory holds some
/// of the layer and must be thrown away.
///
/// # Errors
///
/// See [`ArchiveError`]; [`ArchiveError::DiffId`] when `wanted` is given and is not the stream's digest.
pub fn unpack_layer(
    source: impl Read + Send,
    into: &Path,
    limits: &Limits,
    wanted: Option<&Digest>,
) -> Result<Unpacked, ArchiveError> {
    let plain = decompress(source, limits.unpacked_bytes).map_err(ArchiveError::Read)?;
    let mut stream = Hashing { inner: plain, hash: Sha256::new(), bytes: 0 };
    let mut layer = Layer::open(into, limits)?;
    let mut entries = 0;
    each_entry(&mut stream, limits, |entry, content| {
        entries += 1;
        layer.add(entry, content)
    })?;
    layer.finish()?;
    let diff_id = Digest::from_bytes(stream.hash.finalize().into());
    if let Some(wanted) = wanted.filter(|wanted| **wanted != diff_id) {
        return Err(ArchiveError::DiffId { wanted: *wanted, found: diff_id });
    }
    Ok(Unpacked { diff_id, entries, bytes: stream.bytes })
}

struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

struct Layer<'a> {
    tree: Tree,
    limits: &'a Limits,
    root_user: bool,
    /// Attributes of directories: set at the end, when nothing changes their times any more.
    directories: BTreeMap<PathBuf, (Vec<u8>, Attributes)>,
}

impl<'a> Layer<'a> {
    fn open(into: &Path, limits: &'a Limits) -> Result<Self, ArchiveError> {
        let tree = Tree::open(into).map_err(|error| ArchiveError::write(b".", error))?;
        let root_user = rustix::process::geteuid().is_root();
        Ok(Self { tree, limits, root_user, directories: BTreeMap::new() })
    }

    fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = entry_path(&entry.name, self.limits)?;
        let written = |result: io::Result<()>| result.map_err(|error| ArchiveError::write(&entry.name, error));
        let name = path.file_name().map_or(&b""[..], OsStrExt::as_bytes);
        if name.starts_with(WHITEOUT) {
            return self.add_whiteout(entry, &path, name);
        }
        if path.as_os_str().is_empty() && entry.kind != Kind::Directory {
            return Err(ArchiveError::entry(&entry.name, "it would replace the layer's root"));
        }
        match &entry.kind {
            Kind::Directory => self.add_directory(entry, path),
            Kind::File => self.add_file(entry, &path, content),
            Kind::Symlink(target) => {
                self.check_target(entry, target)?;
                let attributes = self.attributes(entry)?;
                written(self.tree.clear(&path, false).map(drop))?;
                written(self.tree.make_symlink(&path, OsStr::from_bytes(target)))?;
                written(self.tree.finish_other(&path, &attributes, false))
            }
            Kind::HardLink(target) => self.add_hard_link(entry, &path, target),
            Kind::Fifo => {
                let attributes = self.attributes(entry)?;
                written(self.tree.clear(&path, false).map(drop))?;
                written(self.tree.make_fifo(&path))?;
                written(self.tree.finish_other(&path, &attributes, true))
            }
            Kind::Device if path.starts_with("dev") => Ok(()),
            Kind::Device => Err(ArchiveError::entry(&entry.name, "it is a device node")),
        }
    }

    fn add_whiteout(&mut self, entry: &Entry, path: &Path, name: &[u8]) -> Result<(), ArchiveError> {
        let written = |result: io::Result<()>| result.map_err(|error| ArchiveError::write(&entry.name, error));
        let directory = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            return written(self.make_opaque(directory));
        }
        if name.starts_with(RESERVED) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(ArchiveError::entry(&entry.name, "it is a whiteout of no name"));
        }
        let hidden = directory.join(OsStr::from_bytes(hidden));
        let found = self.tree.look(&hidden).map_err(|error| ArchiveError::write(&entry.name, error))?;
        written(match found {
            Found::Nothing => self.tree.make_whiteout(&hidden),
            Found::Directory => self.make_opaque(&hidden),
            Found::Whiteout | Found::Other => Ok(()),
        })
    }

    fn add_directory(&mut self, entry: &Entry, path: PathBuf) -> Result<(), ArchiveError> {
        let attributes = self.attributes(entry)?;
        let make = |layer: &mut Self| {
            let found = layer.tree.clear(&path, true)?;
            layer.tree.make_directory(&path)?;
            if found == Found::Whiteout { layer.make_opaque(&path) } else { Ok(()) }
        };
        make(self).map_err(|error| ArchiveError::write(&entry.name, error))?;
        self.directories.insert(path, (entry.name.clone(), attributes));
        Ok(())
    }

    fn add_file(&mut self, entry: &Entry, path: &Path, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let write = |error| ArchiveError::write(&entry.name, error);
        let attributes = self.attributes(entry)?;
        self.tree.clear(path, false).map_err(write)?;
        let mut file = self.tree.make_file(path).map_err(write)?;
        copy_content(entry, content, &mut file)?;
        attributes.set(&file).map_err(write)
    }

    fn add_hard_link(&mut self, entry: &Entry, path: &Path, target: &[u8]) -> Result<(), ArchiveError> {
        // The target is a name of this archive, held to the same rules.
        let target = entry_path(target, self.limits).map_err(|error| match error {
            ArchiveError::Entry { name, why } => {
                ArchiveError::entry(&entry.name, format!("it is a hard link to {name:?}: {why}"))
            }
            other => other,
        })?;
        if target == path {
            return Ok(());
        }
        let write = |error| ArchiveError::write(&entry.name, error);
        match self.tree.look(&target).map_err(write)? {
            Found::Other => {}
            Found::Nothing | Found::Whiteout => {
                return Err(ArchiveError::entry(
                    &entry.name,
                    "it is a hard link to a file that the layer does not hold",
                ));
            }
            Found::Directory => return Err(ArchiveError::entry(&entry.name, "it is a hard link to a directory")),
        }
        self.tree.clear(path, false).map_err(write)?;
        self.tree.make_hard_link(path, &target).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => ArchiveError::entry(&entry.name, "it is a hard link into what it replaces"),
            _ => write(error),
        })
    }

    fn make_opaque(&mut self, directory: &Path) -> io::Result<()> {
        let name = if self.root_user { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
        self.tree.set_directory_xattr(directory, name, b"y")
    }

    fn check_target(&self, entry: &Entry, target: &[u8]) -> Result<(), ArchiveError> {
        if target.len() > self.limits.path_bytes || target.contains(&0) {
            return Err(ArchiveError::entry(&entry.name, "the target of its link is too long or holds a NUL byte"));
        }
        Ok(())
    }

    fn attributes(&self, entry: &Entry) -> Result<Attributes, ArchiveError> {
        let mut xattrs = Vec::new();
        for (name, value) in &entry.xattrs {
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                return Err(ArchiveError::entry(&entry.name, "it has an attribute that steers overlayfs"));
            }
            let kept = name.starts_with(b"user.")
                || name == b"security.capability"
                || name == b"system.posix_acl_access"
                || name == b"system.posix_acl_default";
            if kept && !name.contains(&0) && name.len() <= 255 {
                xattrs.push((name.clone(), value.clone()));
            }
        }
        let owner = self.root_user.then_some((entry.uid, entry.gid));
        Ok(Attributes { owner, mode: entry.mode, mtime: entry.mtime, xattrs })
    }

    /// Sets the directories' attributes, the deepest first, and writes all to disk.
    fn finish(mut self) -> Result<(), ArchiveError> {
        for (path, (name, attributes)) in self.directories.iter().rev() {
            self.tree.finish_directory(path, attributes).map_err(|error| ArchiveError::write(name, error))?;
        }
        self.tree.sync().map_err(|error| ArchiveError::write(b".", error))
    }
}

/// Copies an entry's bytes; fewer than announced is an error.
pub(crate) fn copy_content(
    entry: &Entry,
    content: &mut dyn Read,
    file: &mut std::fs::File,
) -> Result<(), ArchiveError> {
    let mut buffer = vec![0; usize::try_from(entry.size.clamp(1, 128 * 1024)).unwrap_or(128 * 1024)];
    let mut copied = 0;
    loop {
        let count = super::read_full(content, &mut buffer).map_err(ArchiveError::read)?;
        if count == 0 {
            break;
        }
        io::Write::write_all(file, &buffer[..count]).map_err(|error| ArchiveError::write(&entry.name, error))?;
        copied += count as u64;
    }
    if copied == entry.size {
        return Ok(());
    }
    Err(ArchiveError::entry(&entry.name, format!("the archive ends after {copied} of its {} bytes", entry.size)))
}

#[cfg(test)]
mod tests {
    use super::super::zoo::{Zoo, is_root};
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn unpack(zoo: &Zoo) -> (tempfile::TempDir, Result<Unpacked, ArchiveError>) {
        let dir = tempfile::tempdir().unwrap();
        let bytes = zoo.bytes();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let result = unpack_layer(&bytes[..], &root, &Limits::layer(), Some(&Digest::of(&bytes)));
        (dir, result)
    }

    #[track_caller]
    fn good(zoo: Zoo) -> (tempfile::TempDir, PathBuf) {
        let (dir, result) = unpack(&zoo);
        result.unwrap();
        let root = dir.path().join("root");
        (dir, root)
    }

    /// The archive is refused with these words, and nothing appeared beside the directory.
    #[track_caller]
    fn refused(zoo: Zoo, name: &str, why: &str) {
        let (dir, result) = unpack(&zoo);
        match result.unwrap_err() {
            ArchiveError::Entry { name: found, why: text } => {
                assert_eq!(found, name);
                assert!(text.contains(why), "{text:?} does not say {why:?}");
            }
            other => panic!("{other}"),
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn files_directories_and_links_are_kept() {
        let zoo = Zoo::default()
            .dir("usr/", 0o755)
            .dir("usr/bin/", 0o711)
            .file_mode("usr/bin/su", b"#!", 0o4755)
            .symlink("bin", "usr/bin")
            .symlink("evil", "../../../etc/passwd")
            .hard_link("usr/bin/su2", "usr/bin/su")
            .file("implied/parent/file", b"x");
        let (_dir, root) = good(zoo);
        let su = fs::metadata(root.join("usr/bin/su")).unwrap();
        assert_eq!(su.mode() & 0o7777, 0o4755);
        assert_eq!(su.nlink(), 2);
        assert_eq!(su.mtime(), 1_000_000_000);
        assert_eq!(fs::metadata(root.join("usr/bin")).unwrap().mode() & 0o7777, 0o711);
        assert_eq!(fs::metadata(root.join("usr/bin")).unwrap().mtime(), 1_000_000_000);
        assert_eq!(fs::read_link(root.join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(fs::read_link(root.join("evil")).unwrap(), Path::new("../../../etc/passwd"));
        assert_eq!(fs::read(root.join("implied/parent/file")).unwrap(), b"x");
    }

    #[test]
    fn owners_and_capabilities_are_kept() {
        if !is_root() {
            println!("skipped: needs root to change owners");
            return;
        }
        // VFS_CAP_REVISION_2 with cap_net_bind_service effective; its bytes hold a newline too.
        let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let zoo = Zoo::default()
            .xattr("security.capability", &capability)
            .xattr("user.note", b"a\nb")
            .xattr("security.selinux", b"dropped")
            .owner(1234, 5678)
            .file("bin/ping", b"x")
            .owner(7, 8)
            .symlink("link", "bin/ping");
        let (_dir, root) = good(zoo);
        let path = root.join("bin/ping");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
        let link = fs::symlink_metadata(root.join("link")).unwrap();
        assert_eq!((link.uid(), link.gid()), (7, 8));
        let mut buffer = [0_u8; 64];
        let length = rustix::fs::getxattr(&path, "security.capability", &mut buffer[..]).unwrap();
        assert_eq!(buffer[..length], capability);
        if let Ok(length) = rustix::fs::getxattr(&path, "user.note", &mut buffer[..]) {
            assert_eq!(&buffer[..length], b"a\nb");
        }
    }

    #[test]
    fn whiteouts_become_what_overlayfs_reads() {
        if !is_root() {
            println!("skipped: needs root to make whiteouts");
            return;
        }
        let zoo = Zoo::default()
            .file("etc/.wh.gone", b"")
            .dir("opaque/", 0o755)
            .file("opaque/.wh..wh..opq", b"")
            .file("opaque/new", b"new")
            .file(".wh.replaced", b"")
            .dir("replaced/", 0o755)
            .dir("late/", 0o755)
            .file(".wh.late", b"")
            .file("kept", b"kept")
            .file(".wh.kept", b"")
            .file(".wh..wh.plnk/1.2", b"")
            .file(".wh..wh.aufs", b"");
        let (_dir, root) = good(zoo);
        let gone = fs::symlink_metadata(root.join("etc/gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        for directory in ["opaque", "replaced", "late"] {
            let mut buffer = [0_u8; 8];
            let length = rustix::fs::getxattr(root.join(directory), "trusted.overlay.opaque", &mut buffer[..]).unwrap();
            assert_eq!(&buffer[..length], b"y", "{directory}");
        }
        assert_eq!(fs::read(root.join("opaque/new")).unwrap(), b"new");
        assert_eq!(fs::read(root.join("kept")).unwrap(), b"kept");
        assert!(!root.join(".wh..wh.aufs").exists());
    }

    #[test]
    fn the_last_of_two_entries_wins() {
        let zoo = Zoo::default()
            .file("a", b"first")
            .file("a", b"second")
            .file("b/c/d", b"x")
            .file("b", b"now a file")
            .symlink("s", "a")
            .file("s", b"not through the link")
            .file("f", b"file")
            .dir("f/", 0o755)
            .file("f/g", b"in it");
        let (_dir, root) = good(zoo);
        assert_eq!(fs::read(root.join("a")).unwrap(), b"second");
        assert_eq!(fs::read(root.join("b")).unwrap(), b"now a file");
        assert_eq!(fs::read(root.join("s")).unwrap(), b"not through the link");
        assert_eq!(fs::read(root.join("f/g")).unwrap(), b"in it");
    }

    #[test]
    fn hostile_entries_are_refused_by_name() {
        let zoo = Zoo::default;
        refused(zoo().file("../outside", b"x"), "../outside", "`..`");
        refused(zoo().file("/absolute", b"x"), "/absolute", "absolute");
        refused(zoo().file("a/../../outside", b"x"), "a/../../outside", "`..`");
        refused(zoo().symlink("l", "..").file("l/outside", b"x"), "l/outside", "symbolic link");
        refused(zoo().symlink("l", "/tmp").dir("l/deep/er/", 0o755), "l/deep/er/", "symbolic link");
        refused(zoo().symlink("l", ".").symlink("l/m", "x"), "l/m", "symbolic link");
        refused(zoo().symlink("l", "..").hard_link("h", "l/root"), "h", "symbolic link");
        refused(zoo().symlink("l", "..").file("l/.wh.root", b""), "l/.wh.root", "symbolic link");
        refused(zoo().symlink("l", "..").file("l/.wh..wh..opq", b""), "l/.wh..wh..opq", "symbolic link");
        refused(zoo().hard_link("h", "../../etc/passwd"), "h", "`..`");
        refused(zoo().hard_link("h", "/etc/passwd"), "h", "absolute");
        refused(zoo().hard_link("h", "missing"), "h", "does not hold");
        refused(zoo().dir("d/", 0o755).hard_link("h", "d"), "h", "directory");
        refused(zoo().device("disk"), "disk", "device node");
        refused(zoo().device("dev/../disk"), "dev/../disk", "`..`");
        refused(zoo().file("f", b"").file("f/g", b""), "f/g", "not a directory");
        refused(zoo().symlink("./", "/"), "./", "root");
        refused(zoo().file(".wh...", b""), ".wh...", "no name");
        refused(zoo().file("d/.wh.", b""), "d/.wh.", "no name");
        refused(zoo().xattr("trusted.overlay.redirect", b"/etc").dir("d/", 0o755), "d/", "overlayfs");
        refused(zoo().file("a/b", b"").hard_link("a", "a/b"), "a", "replaces");
        refused(zoo().raw(b'S', "sparse"), "sparse", "sparse");
        refused(zoo().raw(b'Z', "strange"), "strange", "type");
    }

    #[test]
    fn a_link_is_replaced_and_not_followed_when_a_directory_comes() {
        let (dir, root) = good(Zoo::default().symlink("l", "..").dir("l/", 0o755).file("l/inside", b"x"));
        assert_eq!(fs::read(root.join("l/inside")).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn device_nodes_below_dev_are_left_out() {
        let (_dir, root) = good(Zoo::default().dir("dev/", 0o755).device("dev/sda"));
        assert_eq!(fs::read_dir(root.join("dev")).unwrap().count(), 0);
    }

    #[test]
    fn limits_compression_and_digests() {
        let zoo = Zoo::default().file("big", &[0; 100_000]);
        let bytes = zoo.bytes();
        let run = |data: &[u8], limits: &Limits, wanted| {
            let dir = tempfile::tempdir().unwrap();
            unpack_layer(data, dir.path(), limits, wanted)
        };
        let small = Limits { unpacked_bytes: 50_000, ..Limits::layer() };
        assert!(matches!(run(&bytes, &small, None), Err(ArchiveError::Limit { limit: 50_000, .. })));
        assert!(matches!(run(&zoo.gzip(), &small, None), Err(ArchiveError::Limit { .. })));
        let diff_id = Digest::of(&bytes);
        let zstd = zstd::encode_all(&bytes[..], 3).unwrap();
        for data in [&bytes, &zoo.gzip(), &zstd] {
            assert_eq!(run(data, &Limits::layer(), None).unwrap().diff_id, diff_id);
        }
        let other = Digest::of(b"other");
        assert!(matches!(run(&bytes, &Limits::layer(), Some(&other)), Err(ArchiveError::DiffId { .. })));
        assert!(run(&zoo.gzip()[..60], &Limits::layer(), None).is_err());
    }
}
