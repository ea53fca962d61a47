//! Archives from strangers: image layers and function sources.
//!
//! An archive is hostile until it is unpacked. Invariants:
//! - nothing is written outside the directory that was given: every path is resolved by the kernel beneath that
//!   directory, and no symbolic link is ever followed (see [`tree`]);
//! - bytes, entries, names and nesting are bounded by [`Limits`] before they are acted on;
//! - what is refused is refused by the entry's name, and the unpacked directory is then thrown away by the caller.

pub mod layer;
pub mod source;
pub mod tar;
pub(crate) mod tree;
#[cfg(test)]
pub(crate) mod zoo;

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use store::cas::Digest;

/// What an archive may hold at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes after decompression, headers included.
    pub unpacked_bytes: u64,
    /// Entries of every kind.
    pub entries: u64,
    /// Bytes of one path, and of one link's target.
    pub path_bytes: usize,
    /// Components of one path.
    pub depth: usize,
    /// Bytes of one entry's extended header (names, attributes).
    pub extension_bytes: u64,
}

impl Limits {
    /// The default for one image layer: 16 GiB, 1,000,000 entries.
    pub const fn layer() -> Self {
        Self { unpacked_bytes: 16 << 30, entries: 1_000_000, path_bytes: 4095, depth: 255, extension_bytes: 1 << 20 }
    }

    /// The default for a function's source: 512 MiB, 50,000 entries.
    pub const fn source() -> Self {
        Self { unpacked_bytes: 512 << 20, entries: 50_000, path_bytes: 1024, depth: 64, extension_bytes: 64 << 10 }
    }
}

/// Why an archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// One entry is not acceptable.
    #[error("archive entry {name:?} is refused: {why}")]
    Entry {
        /// The entry's name as the archive gives it, shortened.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// One entry could not be written.
    #[error("archive entry {name:?} could not be written")]
    Write {
        /// The entry's name, shortened.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// A bound of [`Limits`] was met.
    #[error("archive holds more than {limit} {what}, which is the limit")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// The bytes are no archive, or are cut off.
    #[error("archive cannot be read")]
    Read(#[source] io::Error),
    /// The bytes start like none of the known kinds.
    #[error("archive is neither a tar (plain, gzip or zstd) nor a zip file")]
    UnknownKind,
    /// The unpacked bytes are not those that the image names.
    #[error("layer unpacks to {found}, but the image's configuration names {wanted}")]
    DiffId {
        /// From the image's configuration.
        wanted: Digest,
        /// Of the bytes.
        found: Digest,
    },
}

impl ArchiveError {
    pub(crate) fn entry(name: &[u8], why: impl Into<String>) -> Self {
        Self::Entry { name: shown(name), why: why.into() }
    }

    /// A failed system call on an entry; those that only a hostile path can cause become [`ArchiveError::Entry`].
    pub(crate) fn write(name: &[u8], source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::ELOOP) => Self::entry(name, "its path goes through a symbolic link"),
            Some(libc::EXDEV) => Self::entry(name, "its path leads out of the archive"),
            Some(libc::ENOTDIR) => Self::entry(name, "its path goes through a file that is not a directory"),
            Some(libc::ENAMETOOLONG) => Self::entry(name, "its name is too long for the file system"),
            _ => Self::Write { name: shown(name), source },
        }
    }

    /// An error of reading the archive's stream; a limit that a reader met becomes [`ArchiveError::Limit`].
    pub(crate) fn read(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<LimitMet>()) {
            Some(met) => Self::Limit { what: "bytes when unpacked", limit: met.0 },
            None => Self::Read(error),
        }
    }
}

/// A name as it is shown in messages: lossy and at most 200 characters.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(200).collect()
}

/// An entry's path below the archive's root: relative, without `.`, `..`, empty components or NUL. The empty path is
/// the root itself.
///
/// # Errors
///
/// [`ArchiveError::Entry`] when the name is absolute, has `..`, or is longer or deeper than `limits` allow.
pub fn entry_path(name: &[u8], limits: &Limits) -> Result<PathBuf, ArchiveError> {
    let refuse = |why: &str| Err(ArchiveError::entry(name, why));
    if name.is_empty() {
        return refuse("its name is empty");
    }
    if name.len() > limits.path_bytes {
        return refuse("its name is too long");
    }
    if name.contains(&0) {
        return refuse("its name holds a NUL byte");
    }
    if name == b"/" {
        return Ok(PathBuf::new());
    }
    if name[0] == b'/' {
        return refuse("its name is absolute");
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for part in name.split(|c| *c == b'/').filter(|part| !part.is_empty() && *part != b".") {
        if part == b".." {
            return refuse("its name has a `..` component");
        }
        if part.len() > 255 {
            return refuse("a component of its name is longer than 255 bytes");
        }
        depth += 1;
        if depth > limits.depth {
            return refuse("it is nested too deep");
        }
        path.push(OsStr::from_bytes(part));
    }
    Ok(path)
}

/// Whether a link at `link` (a path from [`entry_path`]) that points to `target` stays below the archive's root, by
/// the letter of the paths alone.
pub(crate) fn stays_inside(link: &Path, target: &[u8]) -> bool {
    if target.is_empty() || target[0] == b'/' || target.contains(&0) {
        return false;
    }
    let mut depth = link.components().count().saturating_sub(1);
    for part in target.split(|c| *c == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return false,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    true
}

/// How a stream is compressed, by its first bytes; media types lie too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, as far as can be seen.
    None,
    /// RFC 1952, one or several members.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Looks at the first bytes of a stream.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The decompressed bytes of `source`, at most `limit_bytes`; more is an error that [`ArchiveError`] turns into
/// [`ArchiveError::Limit`].
///
/// # Errors
///
/// Those of the first read.
pub fn decompress<'a>(source: impl Read + Send + 'a, limit_bytes: u64) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut source = BufReader::with_capacity(64 * 1024, source);
    let compression = Compression::of(fill(&mut source)?);
    let plain: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(source),
        Compression::Gzip => Box::new(MultiGzDecoder::new(source)),
        // libzstd itself refuses windows above 128 MiB.
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
    };
    Ok(Box::new(Bounded { inner: plain, left: limit_bytes, limit_bytes }))
}

/// The reader's next bytes without taking them; a read that was interrupted is repeated.
fn fill(source: &mut impl BufRead) -> io::Result<&[u8]> {
    loop {
        match source.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => break,
        }
    }
    source.fill_buf()
}

#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct LimitMet(u64);

/// Fails once more than a number of bytes has been read.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit_bytes: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => return Err(io::Error::other(LimitMet(self.limit_bytes))),
        }
        Ok(count)
    }
}

/// Reads as much as there is, up to the buffer's length.
pub(crate) fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_become_paths_below_the_root() {
        let rows: &[(&[u8], Option<&str>)] = &[
            (b"a/b", Some("a/b")),
            (b"./a//b/./", Some("a/b")),
            (b"./", Some("")),
            (b"/", Some("")),
            (b"a b/\xc3\xa9", Some("a b/\u{e9}")),
            (b"...", Some("...")),
            (b"..a/b..", Some("..a/b..")),
            (b"", None),
            (b"/etc/passwd", None),
            (b"//etc", None),
            (b"..", None),
            (b"a/../b", None),
            (b"./../x", None),
            (b"a\0b", None),
            (&[b'a'; 256], None),
            (&[b'/'; 5000], None),
        ];
        for (name, wanted) in rows {
            let path = entry_path(name, &Limits::layer()).ok();
            assert_eq!(path.as_deref(), wanted.map(Path::new), "{:?}", shown(name));
        }
        let deep = "a/".repeat(256);
        assert!(entry_path(deep.as_bytes(), &Limits::layer()).is_err());
    }

    #[test]
    fn links_that_leave_are_seen() {
        let rows: &[(&str, &str, bool)] = &[
            ("bin/tool", "../lib/tool.js", true),
            ("bin/tool", "../../x", false),
            ("tool", "..", false),
            ("tool", "/etc", false),
            ("a/b/c", "../../x/../y", true),
            ("a", "b/../../c", false),
            ("a", "", false),
        ];
        for (link, target, inside) in rows {
            assert_eq!(stays_inside(Path::new(link), target.as_bytes()), *inside, "{link} -> {target}");
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let bomb = zstd::encode_all(&vec![0_u8; 1 << 20][..], 1).unwrap();
        let mut reader = decompress(&bomb[..], 1000).unwrap();
        let error = ArchiveError::read(reader.read_to_end(&mut Vec::new()).unwrap_err());
        assert!(matches!(error, ArchiveError::Limit { limit: 1000, .. }), "{error}");
    }

    proptest! {
        #[test]
        fn a_path_never_leaves(name in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)) {
            if let Ok(path) = entry_path(&name, &Limits::layer()) {
                prop_assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))));
            }
        }

        #[test]
        fn decompression_of_anything_ends(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
            let mut data = match kind { 0 => vec![0x1f, 0x8b, 8], 1 => vec![0x28, 0xb5, 0x2f, 0xfd], _ => vec![] };
            data.extend(bytes);
            if let Ok(mut reader) = decompress(&data[..], 10_000) {
                let _ = reader.read_to_end(&mut Vec::new());
            }
        }
    }
}
