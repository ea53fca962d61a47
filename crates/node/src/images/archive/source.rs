//! Unpacks a function's source archive (tar, tar.gz, tar.zst or zip) into a directory that is then read-only.
//!
//! Stricter than a layer: files, directories, and links that stay inside; no owners, no attributes, no whiteouts.
//! Modes are made uniform: 0444 or 0555 for files, 0555 for directories, so that every user of a sandbox may read the
//! code and nobody may change it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::layer::copy_content;
use super::tar::{Entry, Kind, each_entry};
use super::tree::{Attributes, Found, Tree};
use super::{ArchiveError, Limits, decompress, entry_path, read_full, stays_inside};

/// First bytes of a zip file: a local header, or the end record of an empty one.
const ZIP_STARTS: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];
/// File type bits of a symbolic link in a Unix mode.
const S_IFMT: u32 = 0o170_000;
const S_IFLNK: u32 = 0o120_000;
/// Longest link target in a zip file.
const LINK_BYTES: u64 = 4095;

/// What an archive held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Paths of its files and links, sorted.
    pub files: BTreeSet<PathBuf>,
    /// Bytes of its files together.
    pub bytes: u64,
}

/// Unpacks `archive` into `into`, an empty directory; the kind is seen from its first bytes. After an error the
/// directory holds some of it and must be thrown away.
///
/// # Errors
///
/// See [`ArchiveError`].
pub fn unpack_source(archive: impl Read + Seek + Send, into: &Path, limits: &Limits) -> Result<Source, ArchiveError> {
    let mut archive = archive;
    let mut start = [0; 4];
    read_full(&mut archive, &mut start).map_err(ArchiveError::Read)?;
    archive.seek(SeekFrom::Start(0)).map_err(ArchiveError::Read)?;
    let tree = Tree::open(into).map_err(|error| ArchiveError::write(b".", error))?;
    let mut writer = Writer { tree, limits, directories: BTreeSet::from([PathBuf::new()]), source: Source::default() };
    if ZIP_STARTS.contains(&&start[..]) {
        writer.unpack_zip(archive)?;
    } else {
        writer.unpack_tar(archive)?;
    }
    writer.finish()
}

struct Writer<'a> {
    tree: Tree,
    limits: &'a Limits,
    directories: BTreeSet<PathBuf>,
    source: Source,
}

impl Writer<'_> {
    fn unpack_tar(&mut self, archive: impl Read + Send) -> Result<(), ArchiveError> {
        let mut plain = decompress(archive, self.limits.unpacked_bytes).map_err(ArchiveError::Read)?;
        let mut any = false;
        let limits = self.limits;
        let result = each_entry(&mut plain, limits, |entry, content| {
            any = true;
            self.add(entry, content)
        });
        match result {
            Err(ArchiveError::Read(_)) if !any => Err(ArchiveError::UnknownKind),
            other => other,
        }
    }

    fn unpack_zip(&mut self, archive: impl Read + Seek) -> Result<(), ArchiveError> {
        let mut zip = zip::ZipArchive::new(archive).map_err(|error| ArchiveError::Read(error.into()))?;
        if zip.len() as u64 > self.limits.entries {
            return Err(ArchiveError::Limit { what: "entries", limit: self.limits.entries });
        }
        let mut left = self.limits.unpacked_bytes;
        for index in 0..zip.len() {
            let mut file = zip.by_index(index).map_err(|error| ArchiveError::Read(error.into()))?;
            let name = match std::str::from_utf8(file.name_raw()) {
                Ok(_) => file.name_raw().to_vec(),
                Err(_) => file.name().map_err(|error| ArchiveError::Read(error.into()))?.as_bytes().to_vec(),
            };
            if name.contains(&b'\\') {
                return Err(ArchiveError::entry(&name, "its name holds a backslash; pack it with forward slashes"));
            }
            let size = file.size();
            // What is announced is counted, and the reader below gives no more than that.
            left = left
                .checked_sub(size)
                .ok_or(ArchiveError::Limit { what: "bytes when unpacked", limit: self.limits.unpacked_bytes })?;
            let mode = file.unix_mode().unwrap_or(0o644);
            let kind = if file.is_dir() {
                Kind::Directory
            } else if mode & S_IFMT == S_IFLNK {
                let mut target = Vec::new();
                file.by_ref().take(LINK_BYTES + 1).read_to_end(&mut target).map_err(ArchiveError::Read)?;
                Kind::Symlink(target)
            } else {
                Kind::File
            };
            let entry = Entry { name, kind, mode: mode & 0o7777, uid: 0, gid: 0, mtime: 0, size, xattrs: Vec::new() };
            // One byte more than announced is asked for: the reader checks the sum of the content at its end.
            self.add(&entry, &mut file.take(size.saturating_add(1)))?;
        }
        Ok(())
    }

    fn add(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), ArchiveError> {
        let path = entry_path(&entry.name, self.limits)?;
        let write = |error| ArchiveError::write(&entry.name, error);
        if path.as_os_str().is_empty() {
            let root = entry.kind == Kind::Directory;
            return if root { Ok(()) } else { Err(ArchiveError::entry(&entry.name, "it would replace the root")) };
        }
        let parents = path.ancestors().skip(1).map(Path::to_owned);
        match &entry.kind {
            Kind::Directory => {
                self.directories.extend(parents);
                self.tree.clear(&path, true).map_err(write)?;
                self.tree.make_directory(&path).map_err(write)?;
                self.source.files.remove(&path);
                self.directories.insert(path);
                return Ok(());
            }
            Kind::File => {
                self.clear(entry, &path)?;
                let mut file = self.tree.make_file(&path).map_err(write)?;
                copy_content(entry, content, &mut file)?;
                let mode = if entry.mode & 0o111 == 0 { 0o444 } else { 0o555 };
                uniform(mode).set(&file).map_err(write)?;
                self.source.bytes += entry.size;
            }
            Kind::Symlink(target) => {
                if target.len() > self.limits.path_bytes || !stays_inside(&path, target) {
                    return Err(ArchiveError::entry(
                        &entry.name,
                        "it is a symbolic link that leads out of the archive",
                    ));
                }
                self.clear(entry, &path)?;
                self.tree.make_symlink(&path, OsStr::from_bytes(target)).map_err(write)?;
            }
            Kind::HardLink(target) => {
                let target = entry_path(target, self.limits)
                    .map_err(|_| ArchiveError::entry(&entry.name, "it is a hard link that leads out of the archive"))?;
                if target == path {
                    return Ok(());
                }
                if self.tree.look(&target).map_err(write)? != Found::Other {
                    return Err(ArchiveError::entry(&entry.name, "it is a hard link to no file of the archive"));
                }
                self.clear(entry, &path)?;
                self.tree.make_hard_link(&path, &target).map_err(write)?;
            }
            Kind::Fifo | Kind::Device => {
                return Err(ArchiveError::entry(&entry.name, "it is neither file, directory nor link"));
            }
        }
        self.directories.extend(parents);
        self.source.files.insert(path);
        Ok(())
    }

    fn clear(&mut self, entry: &Entry, path: &Path) -> Result<(), ArchiveError> {
        let found = self.tree.clear(path, false).map_err(|error| ArchiveError::write(&entry.name, error))?;
        if found == Found::Directory {
            self.source.files.retain(|file| !file.starts_with(path));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Source, ArchiveError> {
        for path in self.directories.iter().rev() {
            let name = path.as_os_str().as_bytes();
            self.tree.finish_directory(path, &uniform(0o555)).map_err(|error| ArchiveError::write(name, error))?;
        }
        self.tree.sync().map_err(|error| ArchiveError::write(b".", error))?;
        Ok(self.source)
    }
}

fn uniform(mode: u32) -> Attributes {
    Attributes { owner: None, mode, mtime: 0, xattrs: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::zoo::Zoo;
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::io::{Cursor, Write};
    use std::os::unix::fs::MetadataExt;
    use zip::write::SimpleFileOptions;

    fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<Source, ArchiveError>) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let result = unpack_source(Cursor::new(bytes), &root, &Limits::source());
        (dir, result)
    }

    #[track_caller]
    fn refused(bytes: &[u8], name: &str, why: &str) {
        let (dir, result) = unpack(bytes);
        let text = result.unwrap_err().to_string();
        assert!(text.contains(&format!("{name:?}")) && text.contains(why), "{text}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    fn zipped(write: impl FnOnce(&mut zip::ZipWriter<Cursor<Vec<u8>>>)) -> Vec<u8> {
        let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
        write(&mut zip);
        zip.finish().unwrap().into_inner()
    }

    fn options() -> SimpleFileOptions {
        SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated)
    }

    #[test]
    fn every_kind_gives_the_same_read_only_files() {
        let tar = Zoo::default()
            .file("main.py", b"print(1)")
            .file_mode("bin/run", b"#!", 0o4777)
            .symlink("lib/run", "../bin/run");
        let zip = zipped(|zip| {
            zip.start_file("main.py", options()).unwrap();
            zip.write_all(b"print(1)").unwrap();
            zip.add_directory("bin/", options()).unwrap();
            zip.start_file("bin/run", options().unix_permissions(0o755)).unwrap();
            zip.write_all(b"#!").unwrap();
            zip.add_symlink("lib/run", "../bin/run", options()).unwrap();
        });
        for bytes in [tar.bytes(), tar.gzip(), zip] {
            let (dir, result) = unpack(&bytes);
            let source = result.unwrap();
            let wanted = ["bin/run", "lib/run", "main.py"].map(PathBuf::from);
            assert!(source.files.iter().eq(&wanted), "{:?}", source.files);
            assert_eq!(source.bytes, 10);
            let root = dir.path().join("root");
            let mode = |path: &str| fs::metadata(root.join(path)).unwrap().mode() & 0o7777;
            assert_eq!([mode("main.py"), mode("bin/run"), mode("bin"), mode("")], [0o444, 0o555, 0o555, 0o555]);
            assert_eq!(fs::read(root.join("lib/run")).unwrap(), b"#!");
        }
    }

    #[test]
    fn hostile_archives_are_refused() {
        refused(&Zoo::default().file("../x", b"").bytes(), "../x", "`..`");
        refused(&Zoo::default().symlink("l", "/etc").bytes(), "l", "leads out");
        refused(&Zoo::default().symlink("l", "../..").bytes(), "l", "leads out");
        refused(&Zoo::default().symlink("a", ".").file("a/x", b"").bytes(), "a/x", "symbolic link");
        refused(&Zoo::default().hard_link("h", "../../etc/passwd").bytes(), "h", "leads out");
        refused(&Zoo::default().device("dev/null").bytes(), "dev/null", "neither");
        let slip = zipped(|zip| {
            zip.start_file("../../x", options()).unwrap();
        });
        refused(&slip, "../../x", "`..`");
        let windows = zipped(|zip| {
            zip.start_file("a\\b", options()).unwrap();
        });
        assert!(unpack(&windows).1.is_err() || !windows.windows(3).any(|part| part == b"a\\b"));
        let link = zipped(|zip| {
            zip.add_symlink("l", "/etc/passwd", options()).unwrap();
        });
        refused(&link, "l", "leads out");
        assert!(matches!(unpack(b"just some text, no archive").1, Err(ArchiveError::UnknownKind)));
        assert!(matches!(unpack(b"PK\x03\x04 and then nothing").1, Err(ArchiveError::Read(_))));
    }

    #[test]
    fn a_zip_bomb_is_stopped() {
        let bomb = zipped(|zip| {
            zip.start_file("zeros", options()).unwrap();
            zip.write_all(&vec![0; 2_000_000]).unwrap();
        });
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { unpacked_bytes: 1_000_000, ..Limits::source() };
        let error = unpack_source(Cursor::new(&bomb), dir.path(), &limits).unwrap_err();
        assert!(matches!(error, ArchiveError::Limit { limit: 1_000_000, .. }), "{error}");
        // The same with a size in its headers that lies.
        let mut liar = bomb;
        let size = 2_000_000_u32.to_le_bytes();
        while let Some(at) = liar.windows(4).position(|window| window == size) {
            liar[at..at + 4].copy_from_slice(&10_u32.to_le_bytes());
        }
        let dir = tempfile::tempdir().unwrap();
        let result = unpack_source(Cursor::new(&liar), dir.path(), &limits);
        assert!(result.is_err());
        assert!(fs::metadata(dir.path().join("zeros")).map_or(0, |file| file.len()) <= 1_000_000);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_damaged_zip_never_writes_outside(at in 0_usize..400, byte in any::<u8>()) {
            let mut bytes = zipped(|zip| {
                zip.start_file("main.py", options()).unwrap();
                zip.write_all(b"print(1)").unwrap();
                zip.add_symlink("link", "main.py", options()).unwrap();
            });
            let length = bytes.len();
            bytes[at % length] = byte;
            let (dir, _) = unpack(&bytes);
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
