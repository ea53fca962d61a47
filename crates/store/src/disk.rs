//! The log on disk: one fjall keyspace for records, one for the reserved revision.

use std::path::Path;

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::OpenError;

/// Key of the reserved revision.
const RESERVED: &[u8] = b"reserved";

/// Everything that was on the disk.
pub(crate) struct Loaded {
    /// Table, key, revision, bytes.
    pub records: Vec<(String, String, u64, Bytes)>,
    /// A revision at least as high as any that was ever handed out.
    pub revision: u64,
}

/// The open log.
pub(crate) struct Disk {
    database: Database,
    records: Keyspace,
    meta: Keyspace,
}

impl Disk {
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), OpenError> {
        let database_error = |source| OpenError::Database { path: path.to_path_buf(), source };
        let disk = Self::open_database(path).map_err(database_error)?;
        let mut loaded = Loaded { records: Vec::new(), revision: 0 };
        if let Some(reserved) = disk.meta.get(RESERVED).map_err(database_error)? {
            loaded.revision = number(&reserved).unwrap_or(0);
        }
        for guard in disk.records.iter() {
            let (place, value) = guard.into_inner().map_err(database_error)?;
            let (table, key) = split(&place);
            let Some(revision) = number(&value) else {
                return Err(OpenError::Record { table, key, why: "the record is shorter than its revision".into() });
            };
            loaded.revision = loaded.revision.max(revision);
            loaded.records.push((table, key, revision, Bytes::copy_from_slice(&value[8..])));
        }
        Ok((disk, loaded))
    }

    fn open_database(path: &Path) -> Result<Self, fjall::Error> {
        // Records are read once, at the start: caches and memtables can be small.
        let database =
            Database::builder(path).cache_size(1 << 20).worker_threads(1).max_journaling_size(64 << 20).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
        let records = database.keyspace("records", options)?;
        let meta = database.keyspace("meta", options)?;
        Ok(Self { database, records, meta })
    }

    /// An empty batch.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { disk: self, batch: self.database.batch() }
    }

    /// Brings what was written onto the disk.
    pub(crate) fn sync(&self) -> Result<(), fjall::Error> {
        self.database.persist(PersistMode::SyncData)
    }

    /// As [`Disk::sync`], and gives reserved revisions back.
    pub(crate) fn finish(&self, revision: u64) -> Result<(), fjall::Error> {
        let mut batch = self.batch();
        batch.reserve(revision);
        batch.commit(true)
    }
}

/// Writes that reach the disk together or not at all.
pub(crate) struct Batch<'a> {
    disk: &'a Disk,
    batch: fjall::OwnedWriteBatch,
}

impl Batch<'_> {
    pub(crate) fn put(&mut self, table: &str, key: &str, revision: u64, bytes: &[u8]) {
        let mut value = Vec::with_capacity(8 + bytes.len());
        value.extend_from_slice(&revision.to_le_bytes());
        value.extend_from_slice(bytes);
        self.batch.insert(&self.disk.records, place(table, key), value);
    }

    pub(crate) fn remove(&mut self, table: &str, key: &str) {
        self.batch.remove(&self.disk.records, place(table, key));
    }

    pub(crate) fn reserve(&mut self, revision: u64) {
        self.batch.insert(&self.disk.meta, RESERVED, revision.to_le_bytes());
    }

    pub(crate) fn commit(self, sync: bool) -> Result<(), fjall::Error> {
        self.batch.durability(Some(if sync { PersistMode::SyncData } else { PersistMode::Buffer })).commit()
    }
}

fn place(table: &str, key: &str) -> Vec<u8> {
    [table.as_bytes(), &[0], key.as_bytes()].concat()
}

fn split(place: &[u8]) -> (String, String) {
    let text = String::from_utf8_lossy(place);
    let (table, key) = text.split_once('\0').unwrap_or((&text, ""));
    (table.to_string(), key.to_string())
}

fn number(bytes: &[u8]) -> Option<u64> {
    bytes.get(..8)?.try_into().ok().map(u64::from_le_bytes)
}
