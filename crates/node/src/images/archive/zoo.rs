//! Builds tar archives for tests, the hostile ones that no honest tool writes among them.

use std::io::Write;

use tar::{EntryType, Header};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// An archive in the making. Owner and attributes apply to the next entry.
#[derive(Clone, Default)]
pub(crate) struct Zoo {
    bytes: Vec<u8>,
    owner: Option<(u64, u64)>,
    records: Vec<u8>,
}

impl Zoo {
    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.file_mode(name, content, 0o644)
    }

    pub(crate) fn file_mode(self, name: &str, content: &[u8], mode: u32) -> Self {
        self.entry(EntryType::Regular, name, "", content, mode)
    }

    pub(crate) fn dir(self, name: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, name, "", b"", mode)
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"", 0o777)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, b"", 0o644)
    }

    pub(crate) fn device(self, name: &str) -> Self {
        self.entry(EntryType::Block, name, "", b"", 0o666)
    }

    pub(crate) fn raw(self, kind: u8, name: &str) -> Self {
        self.entry(EntryType::new(kind), name, "", b"", 0o644)
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let rest = format!(" SCHILY.xattr.{name}=").len() + value.len() + 1;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        write!(self.records, "{length} SCHILY.xattr.{name}=").unwrap();
        self.records.extend(value);
        self.records.push(b'\n');
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        [&self.bytes[..], &[0; 1024]].concat()
    }

    pub(crate) fn gzip(&self) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&self.bytes()).unwrap();
        encoder.finish().unwrap()
    }

    fn entry(mut self, kind: EntryType, name: &str, target: &str, content: &[u8], mode: u32) -> Self {
        let records = std::mem::take(&mut self.records);
        if !records.is_empty() {
            self.push(EntryType::XHeader, "pax", "", &records, 0o644);
        }
        self.push(kind, name, target, content, mode);
        self.owner = None;
        self
    }

    fn push(&mut self, kind: EntryType, name: &str, target: &str, content: &[u8], mode: u32) {
        let mut header = Header::new_ustar();
        // The fields are written directly: the library refuses the names that are needed here.
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        let (uid, gid) = self.owner.unwrap_or((0, 0));
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
    }
}
