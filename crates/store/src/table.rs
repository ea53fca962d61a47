//! One table: its records in the order of their keys, and the ring of its latest changes.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use tokio::sync::watch;

use crate::Record;

/// A record and the revision of its last write.
#[derive(Debug)]
pub struct Entry<V> {
    /// Revision of the last write.
    pub revision: u64,
    /// The record.
    pub record: Arc<V>,
}

impl<V> Clone for Entry<V> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, record: self.record.clone() }
    }
}

/// One write, as watches see it.
#[derive(Debug)]
pub struct Change<V> {
    /// Key that was written.
    pub key: Arc<str>,
    /// The record before; `None` for a creation.
    pub old: Option<Entry<V>>,
    /// The record after; for a removal its last state, with the revision of the removal.
    pub new: Entry<V>,
    /// Whether the key was removed.
    pub deleted: bool,
}

impl<V> Change<V> {
    /// Revision of the write.
    pub fn revision(&self) -> u64 {
        self.new.revision
    }
}

/// How much history a table keeps. What exceeds any of the three goes, oldest first.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Changes.
    pub changes: usize,
    /// Bytes of the records in them.
    pub bytes: usize,
    /// Age, looked at when something is written, and by [`Store::forget_old`](crate::Store::forget_old).
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { changes: 50_000, bytes: 8 << 20, age: Duration::from_secs(300) }
    }
}

/// The history that was asked for is no longer (or not yet) there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {asked} is too old, the oldest is {oldest}")]
pub struct Compacted {
    /// Revision asked for.
    pub asked: u64,
    /// Oldest revision from which all changes are known.
    pub oldest: u64,
}

/// Records at one revision.
#[derive(Debug)]
pub struct Snapshot<V> {
    /// The revision.
    pub revision: u64,
    /// Keys and records, in the order of the keys.
    pub entries: Vec<(Arc<str>, Entry<V>)>,
    /// How many more there are behind a limit; `None` if the snapshot is complete.
    pub remaining: Option<usize>,
}

struct State<V> {
    records: BTreeMap<Arc<str>, Entry<V>>,
    ring: VecDeque<(Instant, Arc<Change<V>>)>,
    ring_bytes: usize,
    /// All changes after this revision are in the ring.
    floor: u64,
    /// Revision of the last change applied here.
    last: u64,
}

/// One table of a [`Store`](crate::Store).
pub struct Table<V> {
    name: Arc<str>,
    state: RwLock<State<V>>,
    visible: Arc<AtomicU64>,
    wake: watch::Sender<u64>,
    limits: Limits,
}

impl<V: Record> Table<V> {
    pub(crate) fn new(name: &str, visible: Arc<AtomicU64>, floor: u64, limits: Limits) -> Arc<Self> {
        let state = State { records: BTreeMap::new(), ring: VecDeque::new(), ring_bytes: 0, floor, last: floor };
        Arc::new(Self {
            name: name.into(),
            state: RwLock::new(state),
            visible,
            wake: watch::Sender::new(floor),
            limits,
        })
    }

    pub(crate) fn restore(&self, key: Arc<str>, revision: u64, record: V) {
        self.state.write().records.insert(key, Entry { revision, record: Arc::new(record) });
    }

    /// All records.
    pub(crate) fn all(&self) -> Vec<(Arc<str>, Entry<V>)> {
        self.state.read().records.iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// Name of the table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The record of a key.
    pub fn get(&self, key: &str) -> Option<Entry<V>> {
        self.state.read().records.get(key).cloned()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.state.read().records.len()
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The records whose keys begin with `prefix`, after the key `after`, at most `limit` of those that `keep` wants.
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize, keep: impl Fn(&V) -> bool) -> Snapshot<V> {
        // Everything up to `visible` is applied before `visible` says so; reading it first keeps the promise.
        let visible = self.visible.load(Ordering::Acquire);
        let state = self.state.read();
        let from = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        let mut range =
            state.records.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(prefix));
        let mut entries = Vec::new();
        let mut remaining = None;
        for (key, entry) in range.by_ref() {
            if !keep(&entry.record) {
                continue;
            }
            if entries.len() == limit {
                remaining = Some(1 + range.filter(|(_, entry)| keep(&entry.record)).count());
                break;
            }
            entries.push((key.clone(), entry.clone()));
        }
        Snapshot { revision: visible.max(state.last), entries, remaining }
    }

    /// As [`Table::list`], but as the table was at `revision`.
    ///
    /// # Errors
    ///
    /// [`Compacted`] if the changes since then are no longer known.
    pub fn list_at(
        &self,
        revision: u64,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        keep: impl Fn(&V) -> bool,
    ) -> Result<Snapshot<V>, Compacted> {
        let state = self.state.read();
        if revision < state.floor {
            return Err(Compacted { asked: revision, oldest: state.floor });
        }
        // What changed since, as it was: the oldest change of a key wins.
        let mut before: BTreeMap<&Arc<str>, Option<&Entry<V>>> = BTreeMap::new();
        for (_, change) in state.ring.iter().rev().take_while(|(_, change)| change.revision() > revision) {
            before.insert(&change.key, change.old.as_ref());
        }
        let mut merged: BTreeMap<&Arc<str>, &Entry<V>> = state
            .records
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| !before.contains_key(key))
            .collect();
        merged.extend(before.into_iter().filter(|(key, _)| key.starts_with(prefix)).filter_map(|(k, e)| Some((k, e?))));
        let wanted: Vec<_> = merged
            .into_iter()
            .filter(|(key, entry)| after.is_none_or(|after| &***key > after) && keep(&entry.record))
            .collect();
        let remaining = wanted.len().checked_sub(limit).filter(|more| *more > 0);
        let entries = wanted.into_iter().take(limit).map(|(key, entry)| (key.clone(), entry.clone())).collect();
        Ok(Snapshot { revision, entries, remaining })
    }

    /// All changes after `revision`, then those to come.
    ///
    /// # Errors
    ///
    /// [`Compacted`] if some of them are no longer known.
    pub fn watch(self: &Arc<Self>, revision: u64) -> Result<Watch<V>, Compacted> {
        let changed = self.wake.subscribe();
        let floor = self.state.read().floor;
        if revision < floor {
            return Err(Compacted { asked: revision, oldest: floor });
        }
        Ok(Watch { table: self.clone(), cursor: revision, changed })
    }

    pub(crate) fn apply(&self, change: Change<V>) {
        let now = Instant::now();
        let mut state = self.state.write();
        state.last = change.revision();
        if change.deleted {
            state.records.remove(&change.key);
        } else {
            state.records.insert(change.key.clone(), change.new.clone());
        }
        state.ring_bytes += change.new.record.bytes().len();
        state.ring.push_back((now, Arc::new(change)));
        self.shorten(&mut state, now);
    }

    /// Drops the history that exceeds the limits; answers how many changes went.
    pub(crate) fn forget_old(&self, now: Instant) -> usize {
        let mut state = self.state.write();
        let before = state.ring.len();
        self.shorten(&mut state, now);
        let gone = before - state.ring.len();
        if gone > 0 {
            // What is left after a burst of writes may be a small part of it.
            let spare = state.ring.len() * 2;
            state.ring.shrink_to(spare);
        }
        gone
    }

    fn shorten(&self, state: &mut State<V>, now: Instant) {
        while let Some((at, oldest)) = state.ring.front() {
            let over = state.ring.len() > self.limits.changes || state.ring_bytes > self.limits.bytes;
            if !over && now.saturating_duration_since(*at) <= self.limits.age {
                break;
            }
            let (revision, bytes) = (oldest.revision(), oldest.new.record.bytes().len());
            state.floor = revision;
            state.ring_bytes -= bytes;
            state.ring.pop_front();
        }
    }

    pub(crate) fn wake(&self, revision: u64) {
        self.wake.send_replace(revision);
    }
}

/// Changes of one table, in order.
pub struct Watch<V> {
    table: Arc<Table<V>>,
    cursor: u64,
    changed: watch::Receiver<u64>,
}

/// Changes that one call of [`Watch::next`] returns at most.
const WATCH_BATCH: usize = 256;

impl<V: Record> Watch<V> {
    /// Revision up to which everything was returned.
    pub fn revision(&self) -> u64 {
        self.cursor
    }

    /// The next changes, at least one; waits for it.
    ///
    /// # Errors
    ///
    /// [`Compacted`] if the reader is so slow that changes were dropped before they were read.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change<V>>>, Compacted> {
        loop {
            self.changed.borrow_and_update();
            let ready = self.ready()?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            if self.changed.changed().await.is_err() {
                // The table holds the sender, and we hold the table.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is there without waiting; may be empty.
    ///
    /// # Errors
    ///
    /// As [`Watch::next`].
    pub fn ready(&mut self) -> Result<Vec<Arc<Change<V>>>, Compacted> {
        let visible = self.table.visible.load(Ordering::Acquire);
        let state = self.table.state.read();
        if self.cursor < state.floor {
            return Err(Compacted { asked: self.cursor, oldest: state.floor });
        }
        let start = state.ring.partition_point(|(_, change)| change.revision() <= self.cursor);
        let ready: Vec<_> = state.ring.range(start..).take(WATCH_BATCH).map(|(_, change)| change.clone()).collect();
        match ready.last() {
            Some(last) => self.cursor = last.revision(),
            None => self.cursor = self.cursor.max(visible),
        }
        Ok(ready)
    }
}
