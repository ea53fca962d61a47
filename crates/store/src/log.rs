//! The log on disk.
//!
//! The folder holds numbered files. `N.log` holds batches of writes; `N.snap` holds all records as they were when `N.log`
//! would have begun, so that older files are of no use. A start reads the newest snapshot and the logs after it, and
//! goes on with the last log.
//!
//! | file | content |
//! |---|---|
//! | each | head: magic, the number of the first batch (of a log: in it; of a snapshot: after it), checksum |
//! | `.log` | frames: length, checksum, number of the batch, operations |
//! | `.snap` | frames as well, numbered from 0; the last one holds nothing |
//!
//! Invariants: batches are numbered without a gap, across files; a frame counts only whole and with its checksum; a file
//! is removed only after the snapshot that stands for it is synced.
//!
//! What is wrong is told apart so: a last log that ends in the middle of a frame is a write that was never acknowledged,
//! and is cut off. A bad frame with a good one of a later batch behind it, or in any other file, is damage to
//! something that was acknowledged: the log is not opened. So a store that was closed in order shows every flipped bit;
//! after a crash one in the very last batch looks like a write that was cut off, which is warned of.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use crate::OpenError;

const MAGIC: [u8; 8] = *b"colibri1";
/// Magic, number of the first batch, checksum.
const HEAD_BYTES: usize = 20;
/// Length, checksum, number of the batch.
const FRAME_HEAD_BYTES: usize = 16;
/// A snapshot is written in frames of about this size.
const SNAPSHOT_FRAME_BYTES: usize = 1 << 20;
/// Logs of less than this are not worth a snapshot.
const SNAPSHOT_ABOVE_BYTES: u64 = 8 << 20;

const PUT: u8 = 1;
const REMOVE: u8 = 2;
const RESERVE: u8 = 3;

/// Everything that was on the disk.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// By table and key: revision and bytes.
    pub records: BTreeMap<(String, String), (u64, Bytes)>,
    /// A revision at least as high as any that was ever handed out.
    pub revision: u64,
}

/// The open log.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    file: File,
    /// Number of the file.
    number: u64,
    /// Number of the next batch.
    next: u64,
    /// Length of what is good in the file.
    length: u64,
    /// Length of all logs since the snapshot.
    total: u64,
    /// Bytes of the newest snapshot.
    snapshot: u64,
    /// The file is not what it should be: a write to it may be lost.
    broken: bool,
    snapshotting: Option<JoinHandle<io::Result<u64>>>,
    _lock: File,
}

/// Writes that reach the disk together or not at all.
#[derive(Debug, Default)]
pub(crate) struct Batch(Vec<u8>);

impl Batch {
    pub(crate) fn put(&mut self, table: &str, key: &str, revision: u64, bytes: &[u8]) {
        self.0.push(PUT);
        self.text(table);
        self.text(key);
        self.0.extend_from_slice(&revision.to_le_bytes());
        self.bytes(bytes);
    }

    pub(crate) fn remove(&mut self, table: &str, key: &str) {
        self.0.push(REMOVE);
        self.text(table);
        self.text(key);
    }

    pub(crate) fn reserve(&mut self, revision: u64) {
        self.0.push(RESERVE);
        self.0.extend_from_slice(&revision.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("the API server bounds the size of an object far below 4 GiB");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(bytes);
    }
}

impl Log {
    /// Opens the log in `dir` and reads it.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Loaded), OpenError> {
        let fail = |source| OpenError::Folder { path: dir.to_path_buf(), source };
        fs::create_dir_all(dir).map_err(fail)?;
        if dir.join("keyspaces").exists() {
            return Err(OpenError::Foreign { path: dir.to_path_buf() });
        }
        let lock = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(fail)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(OpenError::Locked { path: dir.to_path_buf() });
        }
        let Present { snapshot, logs, stale } = Present::look(dir).map_err(fail)?;
        for path in &stale {
            fs::remove_file(path).map_err(fail)?;
        }
        let mut loaded = Loaded::default();
        let (mut next, mut number, mut snapshot_bytes) = (0, 0, 0);
        if let Some(newest) = snapshot {
            let path = dir.join(snapshot_name(newest));
            let bytes = read(&path)?;
            next = read_snapshot(&path, &bytes, &mut loaded)?;
            (number, snapshot_bytes) = (newest, bytes.len() as u64);
        }
        let (mut total, mut length) = (0, None);
        for (index, log) in logs.iter().enumerate() {
            let path = dir.join(log_name(*log));
            let bytes = read(&path)?;
            let is_last = index + 1 == logs.len();
            let (good, after) = read_log(&path, &bytes, next, is_last, &mut loaded)?;
            if good > 0 && good < bytes.len() {
                cut(&path, good).map_err(fail)?;
            }
            (next, number, total) = (after, *log, total + good as u64);
            length = (good > 0).then_some(good);
        }
        let file = if length.is_some() {
            File::options().append(true).open(dir.join(log_name(number))).map_err(fail)?
        } else {
            // The last one may be half made.
            number = logs.last().copied().unwrap_or(number + 1);
            create(dir, &log_name(number), next).map_err(fail)?
        };
        let log = Self {
            dir: dir.to_path_buf(),
            file,
            number,
            next,
            length: length.unwrap_or(HEAD_BYTES) as u64,
            total,
            snapshot: snapshot_bytes,
            broken: false,
            snapshotting: None,
            _lock: lock,
        };
        Ok((log, loaded))
    }

    /// Appends a batch, and brings it and all before it onto the disk if `sync`.
    ///
    /// After an error the batch is not in the log, or [`Log::is_broken`] says that nobody knows.
    pub(crate) fn append(&mut self, batch: &Batch, sync: bool) -> io::Result<()> {
        let frame = frame(self.next, &batch.0);
        if let Err(error) = self.file.write_all(&frame) {
            // Half of it may be there.
            self.broken = self.file.set_len(self.length).is_err();
            return Err(error);
        }
        self.length += frame.len() as u64;
        self.total += frame.len() as u64;
        self.next += 1;
        if sync { self.sync() } else { Ok(()) }
    }

    /// Brings what was written onto the disk.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        // After a failed sync the kernel may have dropped what it could not write.
        self.file.sync_data().inspect_err(|_| self.broken = true)
    }

    #[cfg(test)]
    pub(crate) fn break_for_tests(&mut self) {
        self.broken = true;
    }

    /// Whether the log must be [begun anew](Log::begin_anew) before it is written again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Writes all records to a new snapshot, in place of whatever the files hold now.
    pub(crate) fn begin_anew(&mut self, records: &Batches) -> io::Result<()> {
        self.join_snapshot();
        self.number += 2;
        write_snapshot(&self.dir, self.number - 1, self.next, records)?;
        self.file = create(&self.dir, &log_name(self.number), self.next)?;
        (self.length, self.total) = (HEAD_BYTES as u64, 0);
        self.broken = false;
        remove_before(&self.dir, self.number - 1);
        Ok(())
    }

    /// Whether the logs have grown so much that a snapshot makes the next start quicker.
    pub(crate) fn wants_snapshot(&mut self) -> bool {
        if self.snapshotting.as_ref().is_some_and(JoinHandle::is_finished) {
            self.join_snapshot();
        }
        let is_long = self.total > SNAPSHOT_ABOVE_BYTES.max(2 * self.snapshot);
        self.snapshotting.is_none() && !self.broken && is_long
    }

    /// Begins a new log and writes all records to a snapshot in a thread of its own.
    pub(crate) fn start_snapshot(&mut self, records: Batches) -> io::Result<()> {
        self.sync()?;
        let (number, next, dir) = (self.number + 1, self.next, self.dir.clone());
        self.file = create(&self.dir, &log_name(number + 1), next)?;
        (self.number, self.length, self.total) = (number + 1, HEAD_BYTES as u64, 0);
        let write = move || {
            let bytes = write_snapshot(&dir, number, next, &records)?;
            remove_before(&dir, number);
            Ok(bytes)
        };
        self.snapshotting = Some(std::thread::Builder::new().name("store-snapshot".into()).spawn(write)?);
        Ok(())
    }

    fn join_snapshot(&mut self) {
        match self.snapshotting.take().map(JoinHandle::join) {
            Some(Ok(Ok(bytes))) => self.snapshot = bytes,
            // The logs are all still there; the next try comes when they have grown again.
            Some(Ok(Err(error))) => tracing::warn!(%error, "no snapshot of the store could be written"),
            Some(Err(_)) => tracing::error!("the thread that writes a snapshot of the store has panicked"),
            None => {}
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.join_snapshot();
    }
}

/// All records, as batches to be written.
#[derive(Debug, Default)]
pub(crate) struct Batches(Vec<Batch>);

impl Batches {
    pub(crate) fn put(&mut self, table: &str, key: &str, revision: u64, bytes: &[u8]) {
        self.last().put(table, key, revision, bytes);
    }

    pub(crate) fn reserve(&mut self, revision: u64) {
        self.last().reserve(revision);
    }

    fn last(&mut self) -> &mut Batch {
        if self.0.last().is_none_or(|batch| batch.0.len() >= SNAPSHOT_FRAME_BYTES) {
            self.0.push(Batch::default());
        }
        self.0.last_mut().expect("one was pushed above")
    }
}

/// The files of a folder.
#[derive(Debug, Default)]
struct Present {
    snapshot: Option<u64>,
    /// Those after the snapshot, in order.
    logs: Vec<u64>,
    /// What is of no use any more.
    stale: Vec<PathBuf>,
}

impl Present {
    fn look(dir: &Path) -> io::Result<Self> {
        let mut present = Self::default();
        let mut files = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            match name.split_once('.') {
                Some((_, "snap.new")) => present.stale.push(path),
                Some((number, kind @ ("log" | "snap"))) => {
                    if let Ok(number) = u64::from_str_radix(number, 16) {
                        files.push((number, kind == "snap", path.clone()));
                    }
                }
                _ => {}
            }
        }
        present.snapshot = files.iter().filter(|(_, is_snapshot, _)| *is_snapshot).map(|(number, ..)| *number).max();
        files.sort();
        for (number, is_snapshot, path) in files {
            match present.snapshot {
                Some(newest) if number < newest => present.stale.push(path),
                _ if is_snapshot => {}
                _ => present.logs.push(number),
            }
        }
        Ok(present)
    }
}

fn log_name(number: u64) -> String {
    format!("{number:016x}.log")
}

fn snapshot_name(number: u64) -> String {
    format!("{number:016x}.snap")
}

fn head(first: u64) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&first.to_le_bytes());
    let sum = crc32fast::hash(&head[..16]);
    head[16..].copy_from_slice(&sum.to_le_bytes());
    head
}

#[cfg(test)]
pub(crate) fn head_for_tests(first: u64) -> [u8; HEAD_BYTES] {
    head(first)
}

/// The number of the first batch.
fn read_head(bytes: &[u8]) -> Option<u64> {
    let found = bytes.get(..HEAD_BYTES)?;
    let first = u64::from_le_bytes(found[8..16].try_into().ok()?);
    (found == head(first)).then_some(first)
}

fn checksum(number: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&(payload.len() as u64).to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn frame(number: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a batch holds at most 512 objects");
    let mut frame = Vec::with_capacity(FRAME_HEAD_BYTES + payload.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&checksum(number, payload).to_le_bytes());
    frame.extend_from_slice(&number.to_le_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A frame at `at` that is whole and good: its number and where its payload lies.
fn read_frame(bytes: &[u8], at: usize) -> Option<(u64, Range<usize>)> {
    let head = bytes.get(at..at + FRAME_HEAD_BYTES)?;
    let length = u32::from_le_bytes(head[..4].try_into().ok()?) as usize;
    let sum = u32::from_le_bytes(head[4..8].try_into().ok()?);
    let number = u64::from_le_bytes(head[8..].try_into().ok()?);
    let range = at + FRAME_HEAD_BYTES..(at + FRAME_HEAD_BYTES).checked_add(length)?;
    let payload = bytes.get(range.clone())?;
    (checksum(number, payload) == sum).then_some((number, range))
}

/// Reads a snapshot; the number of the batch after it.
fn read_snapshot(path: &Path, bytes: &[u8], loaded: &mut Loaded) -> Result<u64, OpenError> {
    let next = read_head(bytes).ok_or_else(|| damaged(path, 0, "its head is not readable"))?;
    let (mut at, mut expected) = (HEAD_BYTES, 0);
    loop {
        match read_frame(bytes, at) {
            Some((number, range)) if number == expected => {
                at = range.end;
                expected += 1;
                if range.is_empty() && at == bytes.len() {
                    return Ok(next);
                }
                apply(path, bytes, range, loaded)?;
            }
            _ => return Err(damaged(path, at, "what follows is not what was written")),
        }
    }
}

/// Reads a log; the length of what is good, and the number of the batch after it.
fn read_log(
    path: &Path,
    bytes: &[u8],
    next: u64,
    is_last: bool,
    loaded: &mut Loaded,
) -> Result<(usize, u64), OpenError> {
    let Some(first) = read_head(bytes) else {
        // Shorter: killed while the file was made, before its first batch.
        let is_whole = !is_last || bytes.len() > HEAD_BYTES;
        return if is_whole { Err(damaged(path, 0, "its head is not readable")) } else { Ok((0, next)) };
    };
    if next != first {
        let why = format!("it begins with batch {first}, not {next}: an older file is missing or cut");
        return Err(damaged(path, 0, &why));
    }
    let (mut at, mut expected) = (HEAD_BYTES, first);
    while let Some((number, range)) = read_frame(bytes, at).filter(|(number, _)| *number == expected) {
        at = range.end;
        expected = number + 1;
        apply(path, bytes, range, loaded)?;
    }
    let left = bytes.len() - at;
    if left == 0 {
        return Ok((at, expected));
    }
    // Numbers of later batches are close: a search by them costs no checksums.
    let limit = expected.saturating_add(left as u64);
    let is_later = |from: usize| {
        let number = bytes.get(from + 8..from + FRAME_HEAD_BYTES).and_then(|bytes| bytes.try_into().ok());
        number.map(u64::from_le_bytes).is_some_and(|number| (expected..=limit).contains(&number))
    };
    let is_good = |from: &usize| is_later(*from) && read_frame(bytes, *from).is_some();
    if !is_last || (at + 1..bytes.len()).any(|from| is_good(&from)) {
        return Err(damaged(path, at, &format!("batch {expected} is not what was written")));
    }
    tracing::warn!(
        file = %path.display(), offset = at, bytes = left,
        "the store's log ends in the middle of a write that was not acknowledged; it is cut off"
    );
    Ok((at, expected))
}

fn damaged(path: &Path, offset: usize, why: &str) -> OpenError {
    OpenError::Damaged { file: path.to_path_buf(), offset, why: why.to_string() }
}

/// Reads the operations of a batch.
struct Operations<'a>(&'a [u8]);

impl<'a> Operations<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        self.take(length as usize)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn apply_one(&mut self, loaded: &mut Loaded) -> Option<()> {
        match self.take(1)? {
            [PUT] => {
                let place = (self.text()?, self.text()?);
                let revision = self.number()?;
                loaded.revision = loaded.revision.max(revision);
                loaded.records.insert(place, (revision, Bytes::copy_from_slice(self.bytes()?)));
            }
            [REMOVE] => {
                let place = (self.text()?, self.text()?);
                loaded.records.remove(&place);
            }
            // The last word counts: a closed store gives back what it did not use.
            [RESERVE] => loaded.revision = self.number()?,
            _ => return None,
        }
        Some(())
    }
}

fn apply(path: &Path, bytes: &[u8], range: Range<usize>, loaded: &mut Loaded) -> Result<(), OpenError> {
    let at = range.start;
    let mut operations = Operations(&bytes[range]);
    while !operations.0.is_empty() {
        let applied = operations.apply_one(loaded);
        applied.ok_or_else(|| damaged(path, at, "it holds an operation that this version does not know"))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, OpenError> {
    fs::read(path).map_err(|source| OpenError::File { file: path.to_path_buf(), source })
}

fn cut(path: &Path, length: usize) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(length as u64)?;
    file.sync_all()
}

fn create(dir: &Path, name: &str, first: u64) -> io::Result<File> {
    let path = dir.join(name);
    let made = || {
        // A file of that number is half made or of no use.
        drop(fs::remove_file(&path));
        let mut file = File::options().append(true).create_new(true).open(&path)?;
        file.write_all(&head(first))?;
        file.sync_all()?;
        sync_folder(dir)?;
        Ok(file)
    };
    // Half a file would be taken for damage.
    made().inspect_err(|_| drop(fs::remove_file(&path)))
}

fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes a snapshot whole or not at all; its length.
fn write_snapshot(dir: &Path, number: u64, next: u64, records: &Batches) -> io::Result<u64> {
    let path = dir.join(snapshot_name(number));
    let temporary = path.with_extension("snap.new");
    let written = || {
        let mut file = File::create(&temporary)?;
        file.write_all(&head(next))?;
        let mut count = 0;
        for batch in &records.0 {
            file.write_all(&frame(count, &batch.0))?;
            count += 1;
        }
        file.write_all(&frame(count, &[]))?;
        file.sync_all()?;
        let length = file.metadata()?.len();
        fs::rename(&temporary, &path)?;
        sync_folder(dir)?;
        Ok(length)
    };
    written().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes the files that a snapshot stands for.
fn remove_before(dir: &Path, number: u64) {
    let removed = Present::look(dir).and_then(|present| {
        debug_assert_eq!(present.snapshot, Some(number));
        present.stale.iter().try_for_each(fs::remove_file)
    });
    if let Err(error) = removed {
        tracing::warn!(%error, "old files of the store are left until the next start");
    }
}
