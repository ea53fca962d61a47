//! The work queue of a controller: keys, each at most once, with delays and back-off.
//!
//! Semantics of client-go's rate-limited work queue: a key that is added while it is worked on is handed out again
//! once that work is done; two workers never hold the same key. Bounded by the number of objects.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use base::Backoff;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// First delay after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// Longest delay between two tries.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What a key must be.
pub trait Key: Clone + Eq + Hash + Ord + Debug + Display + Send + Sync + 'static {}
impl<K: Clone + Eq + Hash + Ord + Debug + Display + Send + Sync + 'static> Key for K {}

/// A queue of keys.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    working: HashSet<K>,
    again: HashSet<K>,
    delayed: BTreeMap<(Instant, K), ()>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, Backoff>,
}

impl<K: Key> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            working: HashSet::new(),
            again: HashSet::new(),
            delayed: BTreeMap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }
}

impl<K: Key> Queue<K> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Asks for work on `key` now.
    pub fn add(&self, key: K) {
        if self.state.lock().add(key) {
            self.changed.notify_one();
        }
    }

    /// Asks for work on `key` after `delay`; the earliest of several delays counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().delay(key, Instant::now() + delay);
        self.changed.notify_one();
    }

    /// Asks for work on `key` after its back-off.
    pub fn retry(&self, key: K) -> Duration {
        let delay = {
            let mut state = self.state.lock();
            let fresh = || Backoff::new(FIRST_RETRY, LAST_RETRY);
            state.failures.entry(key.clone()).or_insert_with(fresh).next_delay()
        };
        self.add_after(key, delay);
        delay
    }

    /// Forgets the failures of `key`.
    pub fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// The next key; call [`Queue::done`] when its work is done.
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let wake = {
                let mut state = self.state.lock();
                state.release(Instant::now());
                if let Some(key) = state.take() {
                    if !state.ready.is_empty() {
                        self.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.first_key_value().map(|((at, _), ())| *at)
            };
            match wake {
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(at) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Ends the work on `key`.
    pub fn done(&self, key: &K) {
        let mut state = self.state.lock();
        state.working.remove(key);
        if state.again.remove(key) && state.add(key.clone()) {
            self.changed.notify_one();
        }
    }
}

impl<K: Key> State<K> {
    /// Whether a worker should wake up.
    fn add(&mut self, key: K) -> bool {
        if let Some(at) = self.due.remove(&key) {
            self.delayed.remove(&(at, key.clone()));
        }
        if self.working.contains(&key) {
            self.again.insert(key);
            return false;
        }
        if !self.waiting.insert(key.clone()) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn delay(&mut self, key: K, at: Instant) {
        if self.waiting.contains(&key) || self.due.get(&key).is_some_and(|due| *due <= at) {
            return;
        }
        if let Some(later) = self.due.insert(key.clone(), at) {
            self.delayed.remove(&(later, key.clone()));
        }
        self.delayed.insert((at, key), ());
    }

    fn release(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let ((_, key), ()) = entry.remove_entry();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.working.insert(key.clone());
        Some(key)
    }
}

/// What a worker says of a key it worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until something changes.
    Done,
    /// Look again after that time.
    After(Duration),
    /// The work was done on an old picture: try again after a back-off, unless a change comes first.
    Again,
}

/// What workers do with a key; a function that answers a future of an [`Outcome`].
pub trait Work<K>: Fn(K) -> Self::Future + Clone + Send + Sync + 'static {
    /// Why it was not done.
    type Error: std::error::Error + Send + 'static;
    /// The work on one key.
    type Future: Future<Output = Result<Outcome, Self::Error>> + Send;
}

impl<K, W, F, E> Work<K> for W
where
    W: Fn(K) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Outcome, E>> + Send,
    E: std::error::Error + Send + 'static,
{
    type Error = E;
    type Future = F;
}

/// Starts `count` workers that take keys from `queue` until `stop`; an error means another try after a back-off.
pub fn run_workers<K: Key>(
    name: &'static str,
    queue: &Arc<Queue<K>>,
    count: usize,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    work: impl Work<K>,
) {
    for _ in 0..count {
        let (queue, stop, work) = (queue.clone(), stop.clone(), work.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = stop.cancelled() => return,
                    key = queue.next() => key,
                };
                match work(key.clone()).await {
                    Ok(Outcome::Again) => {
                        queue.retry(key.clone());
                    }
                    Ok(outcome) => {
                        queue.forget(&key);
                        if let Outcome::After(delay) = outcome {
                            queue.add_after(key.clone(), delay);
                        }
                    }
                    Err(error) => {
                        let delay = queue.retry(key.clone());
                        let error: &dyn std::error::Error = &error;
                        warn!(error, controller = name, %key, ?delay, "reconciling failed, trying again");
                    }
                }
                queue.done(&key);
            }
        });
    }
}

/// As [`run_workers`], once `ready` has ended, such as the first lists of the caches that `work` looks at.
pub fn run_workers_after<K: Key>(
    ready: impl Future<Output = ()> + Send + 'static,
    name: &'static str,
    queue: &Arc<Queue<K>>,
    count: usize,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    work: impl Work<K>,
) {
    let (queue, workers, stop) = (queue.clone(), tasks.clone(), stop.clone());
    tasks.spawn(async move {
        if stop.run_until_cancelled(ready).await.is_some() {
            run_workers(name, &queue, count, &workers, &stop, work);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_handed_out_once_and_again_if_added_during_its_work() {
        let queue = Queue::<String>::new();
        queue.add("a".into());
        queue.add("a".into());
        queue.add("b".into());
        assert_eq!(queue.next().await, "a");
        queue.add("a".into());
        assert_eq!(queue.next().await, "b");
        let idle = tokio::time::timeout(Duration::from_secs(1), queue.next()).await;
        assert!(idle.is_err(), "a is still being worked on");
        queue.done(&"a".into());
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_delay_counts_and_an_add_cuts_it_short() {
        let queue = Queue::<String>::new();
        let start = Instant::now();
        queue.add_after("a".into(), Duration::from_secs(9));
        queue.add_after("a".into(), Duration::from_secs(3));
        queue.add_after("a".into(), Duration::from_secs(6));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 3);
        queue.done(&"a".into());
        queue.add_after("b".into(), Duration::from_secs(9));
        queue.add("b".into());
        assert_eq!(queue.next().await, "b");
        queue.done(&"b".into());
        let idle = tokio::time::timeout(Duration::from_secs(60), queue.next()).await;
        assert!(idle.is_err(), "the delay was replaced by the add");
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_that_is_due_while_worked_on_comes_after() {
        let queue = Queue::<String>::new();
        queue.add("a".into());
        assert_eq!(queue.next().await, "a");
        queue.add_after("a".into(), Duration::from_secs(1));
        let idle = tokio::time::timeout(Duration::from_secs(5), queue.next()).await;
        assert!(idle.is_err());
        queue.done(&"a".into());
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn work_on_an_old_picture_is_tried_again_ever_more_slowly() {
        let (tasks, stop, queue) = (TaskTracker::new(), CancellationToken::new(), Queue::<String>::new());
        let start = Instant::now();
        let tries = Arc::new(Mutex::new(Vec::new()));
        let seen = tries.clone();
        run_workers("test", &queue, 1, &tasks, &stop, move |_| {
            seen.lock().push(start.elapsed().as_millis());
            futures::future::ready(Ok::<_, std::fmt::Error>(Outcome::Again))
        });
        queue.add("a".into());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(*tries.lock(), [0, 5, 15, 35, 75]);
        queue.add("a".into());
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(tries.lock().last(), Some(&100), "a change does not wait");
        stop.cancel();
    }

    #[tokio::test(start_paused = true)]
    async fn retries_back_off() {
        let queue = Queue::<String>::new();
        let delays: Vec<u128> = (0..4).map(|_| queue.retry("a".into()).as_millis()).collect();
        assert_eq!(delays, [5, 10, 20, 40]);
        queue.forget(&"a".into());
        assert_eq!(queue.retry("a".into()).as_millis(), 5);
    }
}
