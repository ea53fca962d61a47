//! Archives at a URL: fetched once, checked against the digest that the Function names, kept in the code store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{ObjectKey, Queue};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::code::CodeStore;
use crate::pack;

/// Archives that are fetched at the same time.
const AT_ONCE: usize = 4;
/// Time until a failed fetch is tried again; doubled with each failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest such time.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Gets what is at a URL. The error says what went wrong, in words for the one who wrote the Function.
pub trait Fetch: Send + Sync + 'static {
    /// The bytes at `url`.
    fn fetch(&self, url: &str) -> BoxFuture<'static, Result<Vec<u8>, String>>;
}

/// What is known of a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is on its way for the first time; the Function is worked on again when it ends.
    Running,
    /// It failed, and is tried again: after that time, or just now.
    Failed { message: String, again: Option<Duration> },
}

/// One archive that a Function wants.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    url: String,
    digest: String,
}

struct State {
    wanted: Wanted,
    failures: u32,
    /// What the last try that failed said.
    message: Option<String>,
    /// When the next one begins; `None` while one runs.
    next: Option<Instant>,
}

impl State {
    fn progress(&self, now: Instant) -> Progress {
        let again = self.next.map(|next| next.saturating_duration_since(now));
        self.message.clone().map_or(Progress::Running, |message| Progress::Failed { message, again })
    }
}

/// The fetches of all Functions, one for each at most.
pub struct Fetches {
    fetch: Arc<dyn Fetch>,
    code: Arc<dyn CodeStore>,
    tasks: TaskTracker,
    permits: Arc<Semaphore>,
    states: Mutex<HashMap<ObjectKey, State>>,
}

impl Fetches {
    /// Fetches into `code`, in `tasks`.
    pub fn new(fetch: Arc<dyn Fetch>, code: Arc<dyn CodeStore>, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { fetch, code, tasks, permits: Arc::new(Semaphore::new(AT_ONCE)), states: Mutex::default() })
    }

    /// How far the fetch for a Function is; begun where it is not, or where its time has come again.
    pub fn progress(
        self: &Arc<Self>,
        key: &ObjectKey,
        url: &str,
        digest: &str,
        queue: &Arc<Queue<ObjectKey>>,
    ) -> Progress {
        let wanted = Wanted { url: url.to_owned(), digest: digest.to_owned() };
        let mut states = self.states.lock();
        let now = Instant::now();
        if states.get(key).is_none_or(|state| state.wanted != wanted) {
            let state = State { wanted: wanted.clone(), failures: 0, message: None, next: Some(now) };
            states.insert(key.clone(), state);
        }
        let Some(state) = states.get_mut(key) else { return Progress::Running };
        if state.next.is_none_or(|next| now < next) {
            return state.progress(now);
        }
        state.next = None;
        let progress = state.progress(now);
        drop(states);
        let (fetches, key, queue) = (self.clone(), key.clone(), queue.clone());
        self.tasks.spawn(async move {
            let result = fetches.get(&key.namespace, &wanted).await;
            fetches.ended(&key, &wanted, result);
            queue.add(key);
        });
        progress
    }

    /// Forgets a Function that is gone, or wants nothing fetched.
    pub fn forget(&self, key: &ObjectKey) {
        self.states.lock().remove(key);
    }

    async fn get(&self, namespace: &str, wanted: &Wanted) -> Result<(), String> {
        let Wanted { url, digest } = wanted;
        let _permit = self.permits.acquire().await;
        let archive = self.fetch.fetch(url).await.map_err(|why| format!("spec.source.archive.url: {why}"))?;
        let found = pack::digest(&archive);
        if found != *digest {
            let (found, digest) = (bare(&found), bare(digest));
            return Err(format!(
                "spec.source.archive.sha256: what {url} gives has the SHA-256 {found}, not {digest}; correct the digest, or the URL"
            ));
        }
        let kept = self.code.put(namespace, archive).await;
        kept.map(drop).map_err(|error| format!("spec.source.archive.url: {url} cannot be used: {}", error.0))
    }

    fn ended(&self, key: &ObjectKey, wanted: &Wanted, result: Result<(), String>) {
        let mut states = self.states.lock();
        // The Function may want something else by now.
        let Some(state) = states.get_mut(key).filter(|state| state.wanted == *wanted) else { return };
        match result {
            Ok(()) => drop(states.remove(key)),
            Err(message) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << state.failures.min(10)).min(LONGEST_PAUSE);
                state.failures += 1;
                state.message = Some(message);
                state.next = Some(Instant::now() + pause);
            }
        }
    }
}

fn bare(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::code::memory::MemoryStore;

    /// Answers that were laid down, one after another.
    struct Script(Mutex<VecDeque<Result<Vec<u8>, String>>>);

    impl Fetch for Script {
        fn fetch(&self, _: &str) -> BoxFuture<'static, Result<Vec<u8>, String>> {
            let answer = self.0.lock().pop_front().expect("one more answer");
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                answer
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_archive_is_fetched_again_with_growing_pauses_until_it_is_what_was_named() {
        let answers = [Err("it answered 404 Not Found".to_owned()), Ok(b"other".to_vec()), Ok(b"code".to_vec())];
        let (store, queue) = (Arc::new(MemoryStore::default()), Queue::<ObjectKey>::new());
        let script = Arc::new(Script(Mutex::new(answers.into())));
        let fetches = Fetches::new(script, store.clone(), TaskTracker::new());
        let key = ObjectKey::new("default", "greet");
        let digest = pack::digest(b"code");
        let look = || fetches.progress(&key, "https://example.com/code.tar", &digest, &queue);
        let failed = |progress: Progress| match progress {
            Progress::Failed { message, again } => (message, again.expect("a pause").as_secs_f64().round()),
            Progress::Running => panic!("it still runs"),
        };
        assert_eq!((look(), look()), (Progress::Running, Progress::Running), "it is begun once");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let (message, again) = failed(look());
        assert_eq!(message, "spec.source.archive.url: it answered 404 Not Found");
        assert!((1.0..=2.0).contains(&again), "{again}");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(look(), Progress::Failed { message, again: None }, "it runs again, and still says why");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let (message, again) = failed(look());
        assert!(
            message.starts_with("spec.source.archive.sha256: what https://example.com/code.tar gives has"),
            "{message}"
        );
        assert!((3.0..=4.0).contains(&again), "{again}");
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert_eq!(look(), Progress::Failed { message, again: None });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(store.contains("default", &digest).await.unwrap());
        assert!(fetches.states.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_fetch_that_nobody_wants_any_more_changes_nothing() {
        let answers = [Err("old".to_owned()), Err("new".to_owned())];
        let script = Arc::new(Script(Mutex::new(answers.into())));
        let fetches = Fetches::new(script, Arc::new(MemoryStore::default()), TaskTracker::new());
        let (key, queue) = (ObjectKey::new("default", "greet"), Queue::<ObjectKey>::new());
        let digest = pack::digest(b"code");
        assert_eq!(fetches.progress(&key, "https://a", &digest, &queue), Progress::Running);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(fetches.progress(&key, "https://b", &digest, &queue), Progress::Running);
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(fetches.progress(&key, "https://b", &digest, &queue), Progress::Running, "the old one has ended");
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(
            matches!(fetches.progress(&key, "https://b", &digest, &queue), Progress::Failed { message, .. } if message.contains("new"))
        );
        fetches.forget(&key);
        assert!(fetches.states.lock().is_empty());
    }
}
