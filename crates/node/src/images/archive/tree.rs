//! A directory that is filled from an archive, by descriptors only.
//!
//! The kernel resolves every path with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`: a path that leaves the directory or
//! meets a symbolic link fails, whatever the archive made before. Needs Linux 5.6.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};

/// Mode of directories that an archive names only as part of a path.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);

/// The directory.
pub(crate) struct Tree {
    root: OwnedFd,
    /// The directory of the last entry: archives list directory by directory.
    last: Option<(PathBuf, OwnedFd)>,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Directory,
    /// A character device 0/0: overlayfs reads it as "removed here".
    Whiteout,
    Other,
}

impl Tree {
    /// The directory at `path`, which must exist and be no link.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::openat(CWD, path, flags, Mode::empty())?, last: None })
    }

    /// Writes everything of the file system that holds the directory to disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    /// What lies at `path`; nothing too if its directory is missing.
    pub(crate) fn look(&mut self, path: &Path) -> io::Result<Found> {
        let Some((parent, name)) = split(path) else { return Ok(Found::Directory) };
        match self.directory(parent, false) {
            Ok(fd) => look_in(fd, name),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Makes room at `path`: removes what is there, directories with all they hold. With `keep_directory` a directory
    /// stays.
    pub(crate) fn clear(&mut self, path: &Path, keep_directory: bool) -> io::Result<Found> {
        let Some((parent, name)) = split(path) else { return Ok(Found::Directory) };
        let parent = self.directory(parent, true)?;
        let found = look_in(parent, name)?;
        match found {
            Found::Nothing => return Ok(found),
            Found::Directory if keep_directory => return Ok(found),
            Found::Directory => remove_directory(parent, name)?,
            Found::Whiteout | Found::Other => rustix::fs::unlinkat(parent, name, AtFlags::empty())?,
        }
        // The remembered directory may be the one that went.
        self.last = None;
        Ok(found)
    }

    /// Makes a directory unless there is one.
    pub(crate) fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.directory(path, true).map(drop)
    }

    /// Makes a new empty file, for the owner alone until [`Attributes`] are set.
    pub(crate) fn make_file(&mut self, path: &Path) -> io::Result<File> {
        let (parent, name) = split(path).ok_or_else(not_the_root)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.directory(parent, true)?;
        Ok(File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))?))
    }

    /// Makes a symbolic link; the target is never looked at.
    pub(crate) fn make_symlink(&mut self, path: &Path, target: &OsStr) -> io::Result<()> {
        let (parent, name) = split(path).ok_or_else(not_the_root)?;
        Ok(rustix::fs::symlinkat(target, self.directory(parent, true)?, name)?)
    }

    /// Makes `path` a further name of `target`, both below the directory.
    pub(crate) fn make_hard_link(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        let (target_parent, target_name) = split(target).ok_or_else(not_the_root)?;
        let (parent, name) = split(path).ok_or_else(not_the_root)?;
        let from = open_beneath(self.root.as_fd(), target_parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let to = self.directory(parent, true)?;
        Ok(rustix::fs::linkat(from, target_name, to, name, AtFlags::empty())?)
    }

    /// Makes a named pipe.
    pub(crate) fn make_fifo(&mut self, path: &Path) -> io::Result<()> {
        self.make_node(path, FileType::Fifo)
    }

    /// Makes an overlayfs whiteout.
    pub(crate) fn make_whiteout(&mut self, path: &Path) -> io::Result<()> {
        self.make_node(path, FileType::CharacterDevice)
    }

    fn make_node(&mut self, path: &Path, kind: FileType) -> io::Result<()> {
        let (parent, name) = split(path).ok_or_else(not_the_root)?;
        Ok(rustix::fs::mknodat(self.directory(parent, true)?, name, kind, Mode::from_raw_mode(0o600), 0)?)
    }

    /// Sets an extended attribute of a directory.
    pub(crate) fn set_directory_xattr(&mut self, path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
        let directory = self.directory(path, true)?;
        Ok(rustix::fs::fsetxattr(directory, name, value, XattrFlags::empty())?)
    }

    /// Sets a directory's attributes; false when there is none at `path` any more.
    pub(crate) fn finish_directory(&mut self, path: &Path, attributes: &Attributes) -> io::Result<bool> {
        match open_beneath(self.root.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => attributes.set(&fd).map(|()| true),
            Err(rustix::io::Errno::NOTDIR | rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets owner and time of something that cannot be opened: a link or a pipe. A pipe's mode is set too.
    pub(crate) fn finish_other(&mut self, path: &Path, attributes: &Attributes, has_mode: bool) -> io::Result<()> {
        let (parent, name) = split(path).ok_or_else(not_the_root)?;
        let parent = self.directory(parent, false)?;
        if let Some((uid, gid)) = attributes.owner {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        if has_mode {
            // The name was made just now and is no link.
            rustix::fs::chmodat(parent, name, Mode::from_raw_mode(attributes.mode), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(parent, name, &timestamps(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// The directory at `path`, made with its parents if `make`.
    fn directory(&mut self, path: &Path, make: bool) -> io::Result<BorrowedFd<'_>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root.as_fd());
        }
        let remembered = matches!(&self.last, Some((last, _)) if last == path);
        if !remembered {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let fd = match open_beneath(self.root.as_fd(), path, flags) {
                Err(rustix::io::Errno::NOENT) if make => self.make_directories(path)?,
                result => result?,
            };
            self.last = Some((path.to_owned(), fd));
        }
        let (_, fd) = self.last.as_ref().expect("the directory was remembered above");
        Ok(fd.as_fd())
    }

    fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = self.root.try_clone()?;
        for part in path.iter() {
            match rustix::fs::mkdirat(&at, part, IMPLIED_MODE) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            at = open_beneath(at.as_fd(), Path::new(part), flags)?;
        }
        Ok(at)
    }
}

/// What is set on an entry after it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Owner and group; `None` leaves the caller's.
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mode: u32,
    pub(crate) mtime: i64,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Attributes {
    /// Sets everything on an open file or directory. The order matters: a change of owner clears set-id bits and
    /// capabilities.
    pub(crate) fn set(&self, fd: impl AsFd) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            match rustix::fs::fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty()) {
                // The file system keeps none of these, or this user may not set them.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(rustix::io::Errno::PERM) if !rustix::process::geteuid().is_root() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(rustix::fs::futimens(&fd, &timestamps(self.mtime))?)
    }
}

fn timestamps(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    if path.as_os_str().is_empty() {
        return rustix::fs::openat(root, ".", flags | OFlags::CLOEXEC, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // The kernel asks for another try when a directory was renamed meanwhile.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            result => return result,
        }
    }
}

fn look_in(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<Found> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) => Ok(Found::Nothing),
        Err(error) => Err(error.into()),
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Found::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
            _ => Found::Other,
        }),
    }
}

/// Removes a directory and all below it without following anything. Recursion ends: depth is bounded by the archive's
/// limits.
fn remove_directory(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if bytes == b"." || bytes == b".." {
            continue;
        }
        match rustix::fs::unlinkat(&directory, entry.file_name(), AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
                use std::os::unix::ffi::OsStrExt;
                remove_directory(directory.as_fd(), OsStr::from_bytes(bytes))?;
            }
            result => result?,
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Directory and name of a path; `None` for the root.
fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

fn not_the_root() -> io::Error {
    io::Error::from_raw_os_error(libc::EEXIST)
}
