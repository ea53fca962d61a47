//! Reads tar streams: V7, ustar, PAX and GNU long names.
//!
//! The `tar` crate decodes the headers. Its iterator is not used, because it holds extended headers of any length in
//! memory and splits their records at newlines, which binary attributes (file capabilities) may contain.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::{ArchiveError, Limits, read_full};

const BLOCK_BYTES: usize = 512;
/// Prefix of the PAX records that carry extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A further name of an entry that came before.
    HardLink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// One entry's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name as written, trailing slash included.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: whole seconds since 1970.
    pub mtime: i64,
    /// Bytes that follow.
    pub size: u64,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Calls `visit` for each entry of a plain tar stream, with a reader of the entry's bytes; what it leaves unread is
/// skipped. Reads to the end of `source`, so that a hashing reader sees every byte.
///
/// # Errors
///
/// Those of `visit`, [`ArchiveError::Read`], [`ArchiveError::Limit`] and [`ArchiveError::Entry`].
pub fn each_entry(
    source: &mut dyn Read,
    limits: &Limits,
    mut visit: impl FnMut(&Entry, &mut dyn Read) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut extensions = Extensions::default();
    let mut entries = 0;
    while let Some(header) = next_header(source)? {
        entries += 1;
        if entries > limits.entries {
            return Err(ArchiveError::Limit { what: "entries", limit: limits.entries });
        }
        let stored = header.entry_size().map_err(ArchiveError::Read)?;
        let kind = header.entry_type();
        if extensions.take(kind, stored, source, limits)? {
            continue;
        }
        let entry = decode(&header, std::mem::take(&mut extensions))?;
        let mut content = source.take(entry.size);
        visit(&entry, &mut content)?;
        let unread = content.limit();
        skip(source, unread + padding(entry.size))?;
    }
    if !extensions.is_empty() {
        return Err(malformed("it ends after an extended header"));
    }
    io::copy(source, &mut io::sink()).map_err(ArchiveError::read)?;
    Ok(())
}

/// The next header, or `None` at the end: a block of zeros or the end of the stream.
fn next_header(source: &mut dyn Read) -> Result<Option<Header>, ArchiveError> {
    let mut header = Header::new_old();
    match read_full(source, header.as_mut_bytes()).map_err(ArchiveError::read)? {
        0 => return Ok(None),
        BLOCK_BYTES => {}
        _ => return Err(malformed("it ends within a header")),
    }
    let block = header.as_bytes();
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let sum: u32 =
        block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum();
    if header.cksum().map_err(ArchiveError::Read)? != sum {
        return Err(malformed("a header's checksum is wrong; the file is no tar archive or is damaged"));
    }
    Ok(Some(header))
}

/// What extended headers say about the entry that follows.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
    sparse: bool,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pending: bool,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        !self.pending
    }

    /// Takes in one extended header; false when `kind` is none.
    fn take(
        &mut self,
        kind: EntryType,
        size: u64,
        source: &mut dyn Read,
        limits: &Limits,
    ) -> Result<bool, ArchiveError> {
        let known = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if !known {
            return Ok(false);
        }
        if size > limits.extension_bytes {
            return Err(ArchiveError::Limit { what: "bytes in an extended header", limit: limits.extension_bytes });
        }
        let mut bytes = Vec::new();
        source.take(size).read_to_end(&mut bytes).map_err(ArchiveError::read)?;
        if bytes.len() as u64 != size {
            return Err(malformed("it ends within an extended header"));
        }
        skip(source, padding(size))?;
        self.pending |= !kind.is_pax_global_extensions();
        if kind.is_gnu_longname() {
            self.name = Some(until_nul(bytes));
        } else if kind.is_gnu_longlink() {
            self.link = Some(until_nul(bytes));
        } else if kind.is_pax_local_extensions() {
            for (key, value) in pax_records(&bytes)? {
                self.set(key, value)?;
            }
        }
        // Global records (git writes a comment) say nothing that is needed here.
        Ok(true)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), ArchiveError> {
        match key {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => {
                let seconds = value.split(|c| *c == b'.').next().unwrap_or_default();
                self.mtime = std::str::from_utf8(seconds).ok().and_then(|text| text.parse().ok());
            }
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// The records `LENGTH KEY=VALUE\n` of a PAX header.
fn pax_records(mut bytes: &[u8]) -> Result<Vec<Record<'_>>, ArchiveError> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let record = (|| {
            let space = bytes.iter().take(20).position(|c| *c == b' ')?;
            let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
            let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
            let equals = record.iter().position(|c| *c == b'=')?;
            Some((length, &record[..equals], &record[equals + 1..]))
        })();
        let Some((length, key, value)) = record else {
            return Err(malformed("a PAX record is not `LENGTH KEY=VALUE`"));
        };
        records.push((key, value));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn decode(header: &Header, extensions: Extensions) -> Result<Entry, ArchiveError> {
    let name = extensions.name.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extensions.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    let link = || {
        link.clone()
            .filter(|link| !link.is_empty())
            .ok_or_else(|| ArchiveError::entry(&name, "it is a link without a target"))
    };
    let raw = header.entry_type();
    if extensions.sparse || raw.is_gnu_sparse() {
        return Err(ArchiveError::entry(&name, "it is a sparse file; pack it without --sparse"));
    }
    let kind = match raw {
        // In the oldest form a directory is a file whose name ends with a slash.
        EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link()?),
        EntryType::Link => Kind::HardLink(link()?),
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char | EntryType::Block => Kind::Device,
        other => {
            let why = format!("its type {:?} is not known", char::from(other.as_byte()));
            return Err(ArchiveError::entry(&name, why));
        }
    };
    // A field that is left empty means 0, as other readers take it.
    let field = |bytes: &[u8], value: io::Result<u64>| {
        let empty = bytes.iter().all(|byte| matches!(byte, 0 | b' '));
        let unreadable = |_| ArchiveError::entry(&name, "a number in its header is not readable");
        if empty { Ok(0) } else { value.map_err(unreadable) }
    };
    let fields = header.as_old();
    let id = |value: u64| {
        u32::try_from(value)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| ArchiveError::entry(&name, "its owner is not a 32-bit number"))
    };
    let uid = id(extensions.uid.map_or_else(|| field(&fields.uid, header.uid()), Ok)?)?;
    let gid = id(extensions.gid.map_or_else(|| field(&fields.gid, header.gid()), Ok)?)?;
    let mode = u32::try_from(field(&fields.mode, header.mode().map(u64::from))? & 0o7777).unwrap_or(0);
    let mtime =
        extensions.mtime.unwrap_or_else(|| header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0));
    let size = match kind {
        Kind::File => extensions.size.map_or_else(|| field(&fields.size, header.entry_size()), Ok)?,
        // Links and directories may carry a size but never bytes.
        _ => 0,
    };
    Ok(Entry { kind, mode, uid, gid, mtime, size, xattrs: extensions.xattrs, name })
}

fn number(text: &[u8]) -> Result<u64, ArchiveError> {
    let parsed = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| malformed("a PAX record that must be a number is none"))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// Bytes that fill up the last block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK_BYTES as u64
}

fn skip(source: &mut dyn Read, bytes: u64) -> Result<(), ArchiveError> {
    let skipped = io::copy(&mut source.take(bytes), &mut io::sink()).map_err(ArchiveError::read)?;
    if skipped == bytes { Ok(()) } else { Err(malformed("it ends within an entry")) }
}

fn malformed(why: &'static str) -> ArchiveError {
    ArchiveError::Read(io::Error::new(io::ErrorKind::InvalidData, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(bytes: &[u8]) -> Result<Vec<String>, ArchiveError> {
        let mut names = Vec::new();
        each_entry(&mut &bytes[..], &Limits::source(), |entry, content| {
            let mut text = String::new();
            content.read_to_string(&mut text).map_err(ArchiveError::read)?;
            names.push(format!("{} {text}", String::from_utf8_lossy(&entry.name)));
            Ok(())
        })?;
        Ok(names)
    }

    fn file(name: &str, content: &str) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn long_names_and_pax_records_are_read() {
        let long = format!("{}/end", "d".repeat(150));
        assert_eq!(names(&file(&long, "x")).unwrap(), [format!("{long} x")]);

        let mut builder = tar::Builder::new(Vec::new());
        let records: [(&str, &[u8]); 2] = [("path", b"renamed"), ("SCHILY.xattr.security.capability", b"a\nb\0=")];
        builder.append_pax_extensions(records).unwrap();
        let mut header = Header::new_ustar();
        header.set_size(0);
        header.set_path("plain").unwrap();
        header.set_cksum();
        builder.append(&header, io::empty()).unwrap();
        let bytes = builder.into_inner().unwrap();
        each_entry(&mut &bytes[..], &Limits::source(), |entry, _| {
            assert_eq!(entry.name, b"renamed");
            assert_eq!(entry.xattrs, [(b"security.capability".to_vec(), b"a\nb\0=".to_vec())]);
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn damage_and_bombs_in_headers_are_errors() {
        let good = file("a", "content");
        assert_eq!(names(&good).unwrap(), ["a content"]);
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        assert!(names(&flipped).is_err());
        for cut in [1, 511, 513, 518] {
            assert!(names(&good[..cut]).is_err(), "cut at {cut}");
        }
        let huge = file(&"n".repeat(100_000), "");
        assert!(matches!(names(&huge), Err(ArchiveError::Limit { .. })));
        let limits = Limits { entries: 1, ..Limits::source() };
        let two = [&good[..1024], &good[..]].concat();
        assert!(matches!(each_entry(&mut &two[..], &limits, |_, _| Ok(())), Err(ArchiveError::Limit { limit: 1, .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), fix in any::<bool>()) {
            if fix && bytes.len() >= 512 {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(&bytes[..512]);
                header.set_cksum();
                bytes[..512].copy_from_slice(header.as_bytes());
            }
            let _ = names(&bytes);
        }

        #[test]
        fn any_pax_header_ends(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = pax_records(&bytes);
        }
    }
}
