//! The content-addressed store: blobs by their sha256 digest, in a directory.
//!
//! Invariants:
//! - a blob that can be seen under its digest was complete and synced when it appeared there;
//! - nothing that was read is taken for whole before its digest was compared;
//! - [`Cas::gc`] never removes a blob that a living [`Hold`] keeps.
//!
//! A blob is written to a temporary file in the same file system, hashed on the way, synced, and renamed. There are
//! no reference counts: the owner of the references tells [`Cas::gc`] what to keep.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes that are moved at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What names a blob: the sha256 of its bytes, written `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest from its 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a sha256 digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} is not `sha256:` followed by 64 lower-case hexadecimal digits")]
pub struct ParseDigestError(String);

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseDigestError(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
        let lower = digits.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let mut bytes = [0; 32];
        if !lower || hex::decode_to_slice(digits, &mut bytes).is_err() {
            return Err(refuse());
        }
        Ok(Self(bytes))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a blob could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CasError {
    /// A file of the store could not be used.
    #[error("content store: cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The source of a blob failed while it was read.
    #[error("content store: the data that was to be stored could not be read")]
    Source(#[source] io::Error),
    /// No such blob.
    #[error("content store has no blob {0}")]
    Missing(Digest),
    /// What is on disk is not what was stored; `gc`, or removing the blob, and fetching it again cures it.
    #[error("content store: blob {wanted} is damaged on disk: its bytes have digest {found}")]
    Corrupt {
        /// The blob's name.
        wanted: Digest,
        /// The digest of the bytes that were found.
        found: Digest,
    },
    /// What was handed in is not what was announced.
    #[error("content has digest {found}, but {wanted} was announced")]
    WrongDigest {
        /// What was announced.
        wanted: Digest,
        /// What came.
        found: Digest,
    },
    /// More bytes than are allowed.
    #[error("content is larger than the limit of {limit_bytes} bytes")]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
}

impl CasError {
    /// The store's own error inside an I/O error of a [`BlobReader`], if there is one.
    pub fn in_io(error: &io::Error) -> Option<&CasError> {
        error.get_ref()?.downcast_ref()
    }
}

/// The content-addressed store. Clones share one store. Methods block; call them from `spawn_blocking` where it
/// matters, or use those named `_async`.
#[derive(Clone, Debug)]
pub struct Cas {
    blobs: Arc<Path>,
    temporary: Arc<Path>,
    pins: Arc<Mutex<Pins>>,
}

#[derive(Debug, Default)]
struct Pins {
    held: HashMap<Digest, u32>,
    /// Blobs that were held at some time while a collection runs.
    during_gc: Option<HashSet<Digest>>,
}

/// What [`Cas::gc`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Blobs that were removed.
    pub removed: u64,
    /// Their size together.
    pub removed_bytes: u64,
    /// Blobs that are still there.
    pub kept: u64,
}

impl Cas {
    /// Opens the store in `dir`, which is made if it is missing. What an interrupted write left is removed.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`] when the directory cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self, CasError> {
        let blobs = dir.join("sha256");
        let temporary = dir.join("incoming");
        if temporary.exists() {
            fs::remove_dir_all(&temporary).map_err(io_error("remove", &temporary))?;
        }
        for path in [&blobs, &temporary] {
            fs::create_dir_all(path).map_err(io_error("make", path))?;
        }
        Ok(Self { blobs: blobs.into(), temporary: temporary.into(), pins: Arc::default() })
    }

    /// The file that holds a blob, whether it exists or not.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Whether the blob is there.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// The blob's size in bytes.
    ///
    /// # Errors
    ///
    /// [`CasError::Missing`], [`CasError::Io`].
    pub fn size(&self, digest: &Digest) -> Result<u64, CasError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CasError::Missing(*digest)),
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    /// Starts a blob of at most `limit_bytes`.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`] when no temporary file can be made.
    pub fn writer(&self, limit_bytes: u64) -> Result<BlobWriter, CasError> {
        let file = NamedTempFile::new_in(&self.temporary).map_err(io_error("make a file in", &self.temporary))?;
        Ok(BlobWriter { cas: self.clone(), file, hash: Sha256::new(), written: 0, limit_bytes, hold: None })
    }

    /// Stores `bytes`.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, CasError> {
        let digest = Digest::of(bytes);
        if self.contains(&digest) {
            return Ok(digest);
        }
        let mut writer = self.writer(bytes.len() as u64)?;
        writer.push(bytes)?;
        writer.commit(Some(&digest)).map(|stored| stored.digest)
    }

    /// Stores all that `source` gives, at most `limit_bytes`, and checks it against `wanted` if given.
    ///
    /// # Errors
    ///
    /// [`CasError::TooLarge`], [`CasError::WrongDigest`], [`CasError::Source`], [`CasError::Io`]; nothing is stored then.
    pub fn put_reader(
        &self,
        source: &mut dyn Read,
        limit_bytes: u64,
        wanted: Option<&Digest>,
    ) -> Result<Stored, CasError> {
        let mut writer = self.writer(limit_bytes)?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => return writer.commit(wanted),
                Ok(count) => writer.push(&buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CasError::Source(error)),
            }
        }
    }

    /// As [`Cas::put_reader`], from an asynchronous source. Disk work is done on the blocking pool.
    ///
    /// # Errors
    ///
    /// As [`Cas::put_reader`].
    pub async fn put_async(
        &self,
        source: impl AsyncRead + Unpin,
        limit_bytes: u64,
        wanted: Option<Digest>,
    ) -> Result<Stored, CasError> {
        self.put_async_held(source, limit_bytes, wanted, &Arc::new(self.hold())).await
    }

    /// As [`Cas::put_async`]; the blob is kept by `hold` from the moment it appears.
    ///
    /// # Errors
    ///
    /// As [`Cas::put_reader`].
    pub async fn put_async_held(
        &self,
        mut source: impl AsyncRead + Unpin,
        limit_bytes: u64,
        wanted: Option<Digest>,
        hold: &Arc<Hold>,
    ) -> Result<Stored, CasError> {
        let (cas, hold) = (self.clone(), Arc::clone(hold));
        let mut writer = blocking(move || Ok(cas.writer(limit_bytes)?.held_by(hold))).await?;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match source.read(&mut buffer[filled..]).await.map_err(CasError::Source)? {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                return blocking(move || writer.commit(wanted.as_ref())).await;
            }
            (writer, buffer) = blocking(move || writer.push(&buffer[..filled]).map(|()| (writer, buffer))).await?;
        }
    }

    /// Opens a blob. The reader compares the digest when the end is reached: only a reader that returned `Ok(0)` gave
    /// whole and true content.
    ///
    /// # Errors
    ///
    /// [`CasError::Missing`], [`CasError::Io`].
    pub fn reader(&self, digest: &Digest) -> Result<BlobReader, CasError> {
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(BlobReader { file, hash: Some(Sha256::new()), wanted: *digest }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(CasError::Missing(*digest)),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }

    /// A whole blob of at most `limit_bytes`, verified.
    ///
    /// # Errors
    ///
    /// [`CasError::Missing`], [`CasError::TooLarge`], [`CasError::Corrupt`], [`CasError::Io`].
    pub fn read(&self, digest: &Digest, limit_bytes: u64) -> Result<Bytes, CasError> {
        let size = self.size(digest)?;
        if size > limit_bytes {
            return Err(CasError::TooLarge { limit_bytes });
        }
        let path = self.path(digest);
        let bytes = fs::read(&path).map_err(io_error("read", &path))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(CasError::Corrupt { wanted: *digest, found });
        }
        Ok(Bytes::from(bytes))
    }

    /// Reads a blob through and compares its digest.
    ///
    /// # Errors
    ///
    /// [`CasError::Missing`], [`CasError::Corrupt`], [`CasError::Io`].
    pub fn verify(&self, digest: &Digest) -> Result<(), CasError> {
        let path = self.path(digest);
        let mut file = self.reader(digest)?.file;
        let mut hash = Sha256::new();
        io::copy(&mut file, &mut hash).map_err(io_error("read", &path))?;
        let found = Digest(hash.finalize().into());
        if found == *digest { Ok(()) } else { Err(CasError::Corrupt { wanted: *digest, found }) }
    }

    /// Removes a blob; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`].
    pub fn remove(&self, digest: &Digest) -> Result<(), CasError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Removes a blob unless a [`Hold`] keeps it: for what was stored and then found useless.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`].
    pub fn discard(&self, digest: &Digest) -> Result<(), CasError> {
        let pins = self.pins.lock();
        if pins.held.contains_key(digest) { Ok(()) } else { self.remove(digest) }
    }

    /// A hold that keeps blobs from being collected while they are written and not yet referred to.
    pub fn hold(&self) -> Hold {
        Hold { pins: Arc::clone(&self.pins), kept: Mutex::default() }
    }

    /// Removes every blob that `keep` does not name and no [`Hold`] keeps. `keep` is called after the collection has
    /// begun, so a reference that is written before its [`Hold`] ends is always seen.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`]; blobs removed until then stay removed.
    pub fn gc(&self, keep: impl FnOnce() -> HashSet<Digest>) -> Result<GcReport, CasError> {
        self.pins.lock().during_gc = Some(HashSet::new());
        let result = self.list().and_then(|blobs| {
            let keep = keep();
            let mut report = GcReport::default();
            for digest in blobs {
                // The lock is taken for each blob: a hold is never made to wait for the whole collection.
                let pins = self.pins.lock();
                let held = pins.held.contains_key(&digest)
                    || pins.during_gc.as_ref().is_some_and(|seen| seen.contains(&digest));
                if held || keep.contains(&digest) {
                    report.kept += 1;
                    continue;
                }
                report.removed_bytes += self.size(&digest).unwrap_or(0);
                self.remove(&digest)?;
                report.removed += 1;
            }
            Ok(report)
        });
        self.pins.lock().during_gc = None;
        result
    }

    /// Every blob's digest, in no order.
    ///
    /// # Errors
    ///
    /// [`CasError::Io`].
    pub fn list(&self) -> Result<Vec<Digest>, CasError> {
        let entries = fs::read_dir(&self.blobs).map_err(io_error("list", &self.blobs))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| format!("sha256:{name}").parse().ok()).collect())
    }
}

/// Keeps blobs from [`Cas::gc`] until it is dropped.
#[derive(Debug)]
pub struct Hold {
    pins: Arc<Mutex<Pins>>,
    kept: Mutex<Vec<Digest>>,
}

impl Hold {
    /// Keeps `digest`, whether the blob exists yet or not. Look for the blob after this call, not before.
    pub fn keep(&self, digest: Digest) {
        let mut pins = self.pins.lock();
        *pins.held.entry(digest).or_insert(0) += 1;
        self.kept.lock().push(digest);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        for digest in self.kept.get_mut().drain(..) {
            if let Some(count) = pins.held.get_mut(&digest) {
                *count -= 1;
                if *count == 0 {
                    pins.held.remove(&digest);
                }
            }
            if let Some(seen) = &mut pins.during_gc {
                seen.insert(digest);
            }
        }
    }
}

/// A blob that was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether this write made it; false when the store had it already.
    pub fresh: bool,
}

/// A blob that is being written. Dropped before [`BlobWriter::commit`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    cas: Cas,
    file: NamedTempFile,
    hash: Sha256,
    written: u64,
    limit_bytes: u64,
    hold: Option<Arc<Hold>>,
}

impl BlobWriter {
    /// Lets `hold` keep the blob from the moment it appears.
    pub fn held_by(self, hold: Arc<Hold>) -> Self {
        Self { hold: Some(hold), ..self }
    }

    /// Adds bytes.
    ///
    /// # Errors
    ///
    /// [`CasError::TooLarge`], [`CasError::Io`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), CasError> {
        self.written = self.written.saturating_add(bytes.len() as u64);
        if self.written > self.limit_bytes {
            return Err(CasError::TooLarge { limit_bytes: self.limit_bytes });
        }
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(io_error("write", self.file.path()))
    }

    /// Makes the blob visible under its digest, synced to disk.
    ///
    /// # Errors
    ///
    /// [`CasError::WrongDigest`] when `wanted` is another digest, [`CasError::Io`].
    pub fn commit(self, wanted: Option<&Digest>) -> Result<Stored, CasError> {
        let digest = Digest(self.hash.finalize().into());
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            return Err(CasError::WrongDigest { wanted: *wanted, found: digest });
        }
        if let Some(hold) = &self.hold {
            hold.keep(digest);
        }
        let path = self.cas.path(&digest);
        let fresh = !self.cas.contains(&digest);
        self.file.as_file().sync_all().map_err(io_error("sync", self.file.path()))?;
        // A blob that is there already is replaced by the same bytes: that mends one that was damaged on disk.
        self.file.persist(&path).map_err(|error| io_error("rename to", &path)(error.error))?;
        let directory = File::open(&self.cas.blobs).map_err(io_error("open", &self.cas.blobs))?;
        directory.sync_all().map_err(io_error("sync", &self.cas.blobs))?;
        Ok(Stored { digest, size: self.written, fresh })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a blob and compares its digest at the end; damage is an `InvalidData` error that holds
/// [`CasError::Corrupt`].
#[derive(Debug)]
pub struct BlobReader {
    file: File,
    hash: Option<Sha256>,
    wanted: Digest,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if count > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&buffer[..count]);
            }
        } else if !buffer.is_empty()
            && let Some(hash) = self.hash.take()
        {
            let found = Digest(hash.finalize().into());
            if found != self.wanted {
                // The next read at the end must fail too.
                self.hash = Some(Sha256::new());
                let error = CasError::Corrupt { wanted: self.wanted, found };
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
        Ok(count)
    }
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CasError + use<'a> {
    move |source| CasError::Io { action, path: path.to_owned(), source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CasError> + Send + 'static,
) -> Result<T, CasError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(CasError::Source(io::Error::other(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Cas) {
        let dir = tempfile::tempdir().unwrap();
        let cas = Cas::open(dir.path()).unwrap();
        (dir, cas)
    }

    #[test]
    fn a_blob_comes_back_as_it_was() {
        let (_dir, cas) = store();
        let digest = cas.put(b"colibri").unwrap();
        assert_eq!(digest, Digest::of(b"colibri"));
        assert_eq!(&cas.read(&digest, 100).unwrap()[..], b"colibri");
        let mut text = String::new();
        cas.reader(&digest).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "colibri");
        assert_eq!(cas.list().unwrap(), [digest]);
    }

    #[test]
    fn wrong_digests_and_sizes_store_nothing() {
        let (dir, cas) = store();
        let wanted = Digest::of(b"other");
        let error = cas.put_reader(&mut &b"some"[..], 10, Some(&wanted)).unwrap_err();
        assert!(matches!(error, CasError::WrongDigest { .. }), "{error}");
        let error = cas.put_reader(&mut &b"twelve bytes"[..], 11, None).unwrap_err();
        assert!(matches!(error, CasError::TooLarge { limit_bytes: 11 }), "{error}");
        assert!(cas.put_reader(&mut &b"twelve bytes"[..], 12, None).is_ok());
        assert_eq!(cas.list().unwrap().len(), 1);
        assert_eq!(fs::read_dir(dir.path().join("incoming")).unwrap().count(), 0);
    }

    #[test]
    fn a_flipped_bit_is_found_on_every_way_of_reading() {
        let (_dir, cas) = store();
        let digest = cas.put(b"colibri").unwrap();
        fs::write(cas.path(&digest), b"colibrI").unwrap();
        assert!(matches!(cas.read(&digest, 100), Err(CasError::Corrupt { .. })));
        assert!(matches!(cas.verify(&digest), Err(CasError::Corrupt { .. })));
        let mut reader = cas.reader(&digest).unwrap();
        for _ in 0..2 {
            let error = reader.read_to_end(&mut Vec::new()).unwrap_err();
            assert!(matches!(CasError::in_io(&error), Some(CasError::Corrupt { .. })), "{error}");
        }
        // Storing it again mends it.
        cas.put_reader(&mut &b"colibri"[..], 100, None).unwrap();
        cas.verify(&digest).unwrap();
    }

    #[test]
    fn collection_spares_what_is_kept_or_held() {
        let (_dir, cas) = store();
        let [kept, held, lost] = [&b"kept"[..], b"held", b"lost"].map(|bytes| cas.put(bytes).unwrap());
        let hold = cas.hold();
        hold.keep(held);
        let report = cas.gc(|| HashSet::from([kept])).unwrap();
        assert_eq!(report, GcReport { removed: 1, removed_bytes: 4, kept: 2 });
        assert!(!cas.contains(&lost));
        drop(hold);
        cas.gc(HashSet::new).unwrap();
        assert!(cas.list().unwrap().is_empty());
    }

    #[test]
    fn a_blob_that_was_held_while_a_collection_ran_survives_it() {
        let (_dir, cas) = store();
        let digest = cas.put(b"old garbage, found useful").unwrap();
        let seen = cas.gc(|| {
            let hold = cas.hold();
            hold.keep(digest);
            HashSet::new()
        });
        assert_eq!(seen.unwrap().kept, 1);
        assert!(cas.contains(&digest));
    }

    #[test]
    fn digests_are_read_strictly() {
        let good = Digest::of(b"").to_string();
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        for bad in [&good[7..], "sha256:", "sha512:00", &good.to_uppercase(), &good[..70], &format!("{good}0"), ""] {
            assert!(bad.parse::<Digest>().is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn asynchronous_sources_are_stored_too() {
        let (_dir, cas) = store();
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|n| (n % 251) as u8).collect();
        let stored = cas.put_async(&bytes[..], 1 << 20, Some(Digest::of(&bytes))).await.unwrap();
        assert_eq!((stored.size, stored.fresh), (bytes.len() as u64, true));
        let again = cas.put_async(&bytes[..], 1 << 20, None).await.unwrap();
        assert!(!again.fresh);
        assert!(matches!(cas.put_async(&bytes[..], 10, None).await, Err(CasError::TooLarge { .. })));
    }
}
