//! Ordered tables of records with one revision, compare-and-swap writes, watches, and a durable log.
//!
//! - Reads and watches come from memory; the disk is read once, at the start.
//! - Every write gets the next revision. One committer applies them in that order: it collects what waits, puts it in
//!   the log in one batch, syncs once, then makes it visible and answers. So nothing is seen before it is durable.
//! - A write that the disk refuses (it is full) changes nothing and says why; reads go on, and writes are taken again as
//!   soon as the disk does.
//! - [`Class::Lazy`] writes take the same way but do not ask for the sync; they are on the disk within a second.
//! - Each table remembers its latest changes in a ring ([`Limits`]); a watch that asks for older ones is told so.
//!
//! Surprises: after a crash the revision may jump ahead (numbers are reserved in blocks), so that a revision which was
//! handed out for a lazy write that got lost is never used twice. In memory mode there is no thread: a write is done
//! when `write` is first polled.

pub mod cas;
mod log;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Semaphore, oneshot};

use log::{Batch, Batches, Log};
pub use table::{Change, Compacted, Entry, Limits, Snapshot, Table, Watch};

/// What a store keeps: bytes, and whatever was parsed out of them.
pub trait Record: Send + Sync + Sized + 'static {
    /// What goes to the disk.
    fn bytes(&self) -> &Bytes;
    /// A record read back from the disk.
    ///
    /// # Errors
    ///
    /// A text that says what is wrong with the bytes; the store then does not open.
    fn load(table: &str, key: &str, bytes: Bytes) -> Result<Self, String>;
}

/// How soon a write is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Before it is acknowledged or seen.
    Sync,
    /// Within a second.
    Lazy,
}

/// What must be true of the key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last written at this revision.
    Revision(u64),
}

/// Makes the record once its revision is known. Runs on the committer: must be quick.
pub type Encode<V> = Box<dyn FnOnce(u64) -> V + Send>;

/// What a write does.
pub enum Action<V> {
    /// Creates or replaces.
    Put(Encode<V>),
    /// Removes; the record is what watchers are shown as the last state.
    Delete(Encode<V>),
}

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// [`Expect::Absent`], but the key is there.
    #[error("the key exists")]
    Exists,
    /// [`Expect::Revision`], but the key is gone.
    #[error("the key does not exist")]
    Missing,
    /// [`Expect::Revision`], but the key was written since.
    #[error("the key was last written at revision {actual}")]
    Conflict {
        /// Revision of the last write.
        actual: u64,
    },
    /// The disk has no room for the write. Later ones may be taken.
    #[error("the disk is full: {0}")]
    Full(String),
    /// The log could not be written. Later writes may be taken.
    #[error("the store's log cannot be written: {0}")]
    Disk(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be used.
    #[error("the store in {path} cannot be opened")]
    Folder {
        /// Folder of the store.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file of it cannot be read.
    #[error("the store's file {file} cannot be read")]
    File {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another process has it open.
    #[error("the store in {path} is open in another process")]
    Locked {
        /// Folder of the store.
        path: PathBuf,
    },
    /// It was written by a version that kept it in another format.
    #[error(
        "the store in {path} is of an earlier version, which this one does not read: move the folder away to begin with an empty one"
    )]
    Foreign {
        /// Folder of the store.
        path: PathBuf,
    },
    /// A file does not hold what was written to it.
    #[error(
        "the store's file {file} is damaged at byte {offset}: {why}. Restore the store's folder from a backup, or move it away to begin with an empty one"
    )]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where the damage begins.
        offset: usize,
        /// What is wrong.
        why: String,
    },
    /// A record could not be read back.
    #[error("record {key:?} of table {table:?} in the store cannot be read: {why}")]
    Record {
        /// Table of the record.
        table: String,
        /// Key of the record.
        key: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Where a store lives and what it remembers.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Folder of the log; `None` keeps everything in memory only.
    pub path: Option<PathBuf>,
    /// How much history each table keeps for watches.
    pub limits: Limits,
}

/// Writes that wait for the committer; more callers than this wait for their turn.
const QUEUE_LIMIT: usize = 8192;
/// Writes in one batch of the log.
const BATCH_LIMIT: usize = 512;
/// Revisions that are reserved on the disk at a time.
const RESERVE: u64 = 10_000;
/// Lazy writes are synced after this time at the latest.
const LAZY_SYNC: Duration = Duration::from_secs(1);
/// Pause between tries to begin a broken log anew.
const MEND_PAUSE: Duration = Duration::from_secs(1);

struct Pending<V> {
    table: Arc<Table<V>>,
    key: Arc<str>,
    expect: Expect,
    action: Action<V>,
    class: Class,
    done: oneshot::Sender<Result<Entry<V>, WriteError>>,
}

enum Message<V> {
    #[cfg(test)]
    Break,
    Write(Pending<V>, tokio::sync::OwnedSemaphorePermit),
    Stop,
}

enum Writer<V> {
    Inline(Mutex<Committer<V>>),
    Thread {
        queue: Mutex<mpsc::Sender<Message<V>>>,
        permits: Arc<Semaphore>,
        handle: Mutex<Option<std::thread::JoinHandle<()>>>,
    },
}

type Tables<V> = RwLock<BTreeMap<String, Arc<Table<V>>>>;

/// The store.
pub struct Store<V> {
    tables: Arc<Tables<V>>,
    visible: Arc<AtomicU64>,
    limits: Limits,
    writer: Writer<V>,
}

impl<V: Record> Store<V> {
    /// Opens a store and loads what is in it.
    ///
    /// # Errors
    ///
    /// [`OpenError`] if the folder is not a store, is locked by another process, or holds a record that `V` refuses.
    pub fn open(config: Config) -> Result<Arc<Self>, OpenError> {
        let Some(path) = config.path else {
            let committer = Committer {
                visible: Arc::default(),
                revision: 0,
                reserved: u64::MAX,
                tables: Arc::default(),
                log: None,
                refused: None,
                failing: false,
            };
            let (visible, committer_tables) = (committer.visible.clone(), committer.tables.clone());
            let writer = Writer::Inline(Mutex::new(committer));
            return Ok(Arc::new(Self { tables: committer_tables, visible, limits: config.limits, writer }));
        };
        let (log, loaded) = Log::open(&path)?;
        let visible = Arc::new(AtomicU64::new(loaded.revision));
        let mut tables = BTreeMap::new();
        for ((table, key), (revision, bytes)) in loaded.records {
            let table_ref = tables
                .entry(table.clone())
                .or_insert_with(|| Table::new(&table, visible.clone(), loaded.revision, config.limits));
            match V::load(&table, &key, bytes) {
                Ok(record) => table_ref.restore(key.into(), revision, record),
                Err(why) => return Err(OpenError::Record { table, key, why }),
            }
        }
        let tables = Arc::new(RwLock::new(tables));
        let committer = Committer {
            visible: visible.clone(),
            revision: loaded.revision,
            reserved: loaded.revision,
            tables: tables.clone(),
            log: Some(log),
            refused: None,
            failing: false,
        };
        let (queue, messages) = mpsc::channel();
        let spawned = std::thread::Builder::new().name("store".into()).spawn(move || committer.run(&messages));
        let handle = spawned.map_err(|source| OpenError::Folder { path, source })?;
        let permits = Arc::new(Semaphore::new(QUEUE_LIMIT));
        let writer = Writer::Thread { queue: Mutex::new(queue), permits, handle: Mutex::new(Some(handle)) };
        Ok(Arc::new(Self { tables, visible, limits: config.limits, writer }))
    }

    /// The table of that name; it is made at the first use.
    pub fn table(&self, name: &str) -> Arc<Table<V>> {
        if let Some(table) = self.tables.read().get(name) {
            return table.clone();
        }
        let mut tables = self.tables.write();
        let make = || Table::new(name, self.visible.clone(), self.revision(), self.limits);
        tables.entry(name.to_string()).or_insert_with(make).clone()
    }

    /// Names of the tables that exist.
    pub fn table_names(&self) -> Vec<String> {
        self.tables.read().keys().cloned().collect()
    }

    /// Revision of the last visible write, 0 in a new store.
    pub fn revision(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    /// Drops the history of all tables that exceeds the limits; answers how many changes went. A store that is written
    /// to does that by itself.
    pub fn forget_old(&self, now: Instant) -> usize {
        let tables: Vec<Arc<Table<V>>> = self.tables.read().values().cloned().collect();
        tables.iter().map(|table| table.forget_old(now)).sum()
    }

    /// Writes one key and returns the record as written.
    ///
    /// # Errors
    ///
    /// [`WriteError`]; nothing was written then, save that after [`WriteError::Disk`] it may be there after a crash.
    pub async fn write(
        &self,
        table: &Arc<Table<V>>,
        key: &str,
        expect: Expect,
        action: Action<V>,
        class: Class,
    ) -> Result<Entry<V>, WriteError> {
        let (done, answer) = oneshot::channel();
        let pending = Pending { table: table.clone(), key: key.into(), expect, action, class, done };
        match &self.writer {
            Writer::Inline(committer) => {
                committer.lock().commit(vec![pending]);
            }
            Writer::Thread { queue, permits, .. } => {
                let permit = permits.clone().acquire_owned().await.map_err(|_| WriteError::Closed)?;
                queue.lock().send(Message::Write(pending, permit)).map_err(|_| WriteError::Closed)?;
            }
        }
        answer.await.map_err(|_| WriteError::Closed)?
    }

    #[cfg(test)]
    fn break_log_for_tests(&self) {
        if let Writer::Thread { queue, .. } = &self.writer {
            queue.lock().send(Message::Break).unwrap();
        }
    }

    /// Writes what waits, syncs and stops. Later writes fail.
    pub fn close(&self) {
        if let Writer::Thread { queue, handle, permits } = &self.writer {
            permits.close();
            let _ = queue.lock().send(Message::Stop);
            if let Some(handle) = handle.lock().take() {
                let _ = handle.join();
            }
        }
    }
}

impl<V> Drop for Store<V> {
    fn drop(&mut self) {
        if let Writer::Thread { queue, handle, .. } = &self.writer {
            let _ = queue.lock().send(Message::Stop);
            if let Some(handle) = handle.lock().take() {
                let _ = handle.join();
            }
        }
    }
}

struct Committer<V> {
    visible: Arc<AtomicU64>,
    revision: u64,
    reserved: u64,
    tables: Arc<Tables<V>>,
    log: Option<Log>,
    /// Why the broken log could not be begun anew, and when.
    refused: Option<(Instant, WriteFailure)>,
    /// Whether the last write was refused by the disk.
    failing: bool,
}

/// Why the log was not written; told to all that waited for it.
#[derive(Clone, Debug)]
struct WriteFailure {
    is_full: bool,
    text: String,
}

impl From<std::io::Error> for WriteFailure {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        Self { is_full: matches!(error.kind(), StorageFull | QuotaExceeded), text: error.to_string() }
    }
}

impl From<WriteFailure> for WriteError {
    fn from(failure: WriteFailure) -> Self {
        if failure.is_full { Self::Full(failure.text) } else { Self::Disk(failure.text) }
    }
}

/// Table (by address) and key, to what the batch has made of it so far.
type Overlay<V> = HashMap<(usize, Arc<str>), Option<Entry<V>>>;

struct Done<V> {
    table: Arc<Table<V>>,
    change: Change<V>,
    answer: oneshot::Sender<Result<Entry<V>, WriteError>>,
}

impl<V: Record> Committer<V> {
    fn run(mut self, messages: &mpsc::Receiver<Message<V>>) {
        let mut dirty_since: Option<Instant> = None;
        loop {
            let wait = dirty_since.map_or(Duration::from_secs(3600), |since| LAZY_SYNC.saturating_sub(since.elapsed()));
            let mut batch = Vec::new();
            let mut permits = Vec::new();
            let mut stop = false;
            let mut next = messages.recv_timeout(wait);
            loop {
                match next {
                    Ok(Message::Write(pending, permit)) => {
                        batch.push(pending);
                        permits.push(permit);
                    }
                    #[cfg(test)]
                    Ok(Message::Break) => self.log.iter_mut().for_each(Log::break_for_tests),
                    Ok(Message::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                        stop = true;
                        break;
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => break,
                }
                if batch.len() >= BATCH_LIMIT {
                    break;
                }
                next = messages.try_recv().map_err(|error| match error {
                    mpsc::TryRecvError::Empty => mpsc::RecvTimeoutError::Timeout,
                    mpsc::TryRecvError::Disconnected => mpsc::RecvTimeoutError::Disconnected,
                });
            }
            if !batch.is_empty() {
                let synced = self.commit(batch);
                dirty_since = if synced { None } else { dirty_since.or(Some(Instant::now())) };
            }
            let due = dirty_since.is_some_and(|since| since.elapsed() >= LAZY_SYNC);
            if (due || stop)
                && let Some(log) = &mut self.log
            {
                dirty_since = None;
                let result = if stop { finish(log, self.revision) } else { log.sync() };
                if let Err(error) = result {
                    tracing::error!(%error, "the store's log cannot be written");
                }
            }
            if stop {
                return;
            }
            self.shorten_log();
        }
    }

    /// Replaces the log by a snapshot once it has grown long.
    fn shorten_log(&mut self) {
        if !self.log.as_mut().is_some_and(Log::wants_snapshot) {
            return;
        }
        let records = self.records();
        if let Some(log) = &mut self.log
            && let Err(error) = log.start_snapshot(records)
        {
            tracing::warn!(%error, "no snapshot of the store could be begun");
        }
    }

    /// All that is visible, as it goes to a snapshot.
    fn records(&self) -> Batches {
        let mut batches = Batches::default();
        for (name, table) in self.tables.read().iter() {
            for (key, entry) in table.all() {
                batches.put(name, &key, entry.revision, entry.record.bytes());
            }
        }
        batches.reserve(self.reserved.max(self.revision));
        batches
    }

    /// Makes a broken log usable again; tried once a second.
    fn mend(&mut self) -> Result<(), WriteFailure> {
        if !self.log.as_ref().is_some_and(Log::is_broken) {
            return Ok(());
        }
        if let Some((at, failure)) = &self.refused
            && at.elapsed() < MEND_PAUSE
        {
            return Err(failure.clone());
        }
        let records = self.records();
        let Some(log) = &mut self.log else { return Ok(()) };
        log.begin_anew(&records).map_err(|error| {
            let failure = WriteFailure::from(error);
            self.refused = Some((Instant::now(), failure.clone()));
            failure
        })?;
        self.refused = None;
        Ok(())
    }

    /// Does what can be done of `batch`, in order; returns whether the log was synced.
    fn commit(&mut self, batch: Vec<Pending<V>>) -> bool {
        if let Err(failure) = self.mend() {
            for pending in batch {
                let _ = pending.done.send(Err(failure.clone().into()));
            }
            return false;
        }
        let mut overlay = Overlay::new();
        let mut sync = false;
        let mut done: Vec<Done<V>> = Vec::with_capacity(batch.len());
        let first = self.revision;
        for pending in batch {
            let place = (Arc::as_ptr(&pending.table) as usize, pending.key.clone());
            let current = match overlay.get(&place) {
                Some(entry) => entry.clone(),
                None => pending.table.get(&pending.key),
            };
            if let Some(error) = refuse(pending.expect, current.as_ref()) {
                let _ = pending.done.send(Err(error));
                continue;
            }
            self.revision += 1;
            sync |= pending.class == Class::Sync;
            let (encode, deleted) = match pending.action {
                Action::Put(encode) => (encode, false),
                Action::Delete(encode) => (encode, true),
            };
            let entry = Entry { revision: self.revision, record: Arc::new(encode(self.revision)) };
            overlay.insert(place, (!deleted).then(|| entry.clone()));
            let change = Change { key: pending.key, old: current, new: entry, deleted };
            done.push(Done { table: pending.table, change, answer: pending.done });
        }
        if done.is_empty() {
            return false;
        }
        if let Err(error) = self.append(&done, &mut sync) {
            if !std::mem::replace(&mut self.failing, true) {
                tracing::error!(%error, "the store's log cannot be written, writes are refused");
            }
            // Watchers never saw these revisions, but the disk may have.
            self.revision = if self.log.as_ref().is_some_and(Log::is_broken) { self.revision } else { first };
            let failure = WriteFailure::from(error);
            for Done { answer, .. } in done {
                let _ = answer.send(Err(failure.clone().into()));
            }
            return false;
        }
        if std::mem::take(&mut self.failing) {
            tracing::info!("the store's log can be written again");
        }
        self.publish(done);
        sync
    }

    fn append(&mut self, done: &[Done<V>], sync: &mut bool) -> std::io::Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        let mut batch = Batch::default();
        for Done { table, change, .. } in done {
            let name = table.name();
            if change.deleted {
                batch.remove(name, &change.key);
            } else {
                batch.put(name, &change.key, change.new.revision, change.new.record.bytes());
            }
        }
        let reserve = self.revision >= self.reserved;
        if reserve {
            batch.reserve(self.revision + RESERVE);
            *sync = true;
        }
        log.append(&batch, *sync)?;
        if reserve {
            self.reserved = self.revision + RESERVE;
        }
        Ok(())
    }

    fn publish(&mut self, done: Vec<Done<V>>) {
        let mut touched: Vec<Arc<Table<V>>> = Vec::new();
        let mut answers = Vec::with_capacity(done.len());
        for Done { table, change, answer } in done {
            answers.push((answer, change.new.clone()));
            table.apply(change);
            if !touched.iter().any(|t| Arc::ptr_eq(t, &table)) {
                touched.push(table);
            }
        }
        self.visible.store(self.revision, Ordering::Release);
        for table in touched {
            table.wake(self.revision);
        }
        for (answer, entry) in answers {
            // A caller that went away does not undo its write.
            let _ = answer.send(Ok(entry));
        }
    }
}

/// Gives reserved revisions back and syncs: the last word of a store that is closed in order.
fn finish(log: &mut Log, revision: u64) -> std::io::Result<()> {
    if log.is_broken() {
        return Ok(()); // What is missing was refused.
    }
    let mut batch = Batch::default();
    batch.reserve(revision);
    log.append(&batch, true)
}

fn refuse<V>(expect: Expect, current: Option<&Entry<V>>) -> Option<WriteError> {
    match (expect, current) {
        (Expect::Absent, None) => None,
        (Expect::Absent, Some(_)) => Some(WriteError::Exists),
        (Expect::Revision(_), None) => Some(WriteError::Missing),
        (Expect::Revision(wanted), Some(entry)) if entry.revision == wanted => None,
        (Expect::Revision(_), Some(entry)) => Some(WriteError::Conflict { actual: entry.revision }),
    }
}

#[cfg(test)]
mod tests;
