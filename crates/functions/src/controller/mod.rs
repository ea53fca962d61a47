//! Function -> Knative Service.
//!
//! A key names a Function. Work on it: observe (caches and the code store), plan (pure), apply (the only writes).
//!
//! | Condition     | True when                                                                       |
//! |---------------|---------------------------------------------------------------------------------|
//! | SourceReady   | the code is in the store: inline files packed, an uploaded archive found         |
//! | BuildReady    | the code can be run as it is (there are no builds yet)                          |
//! | RevisionReady | the newest version is ready; when it failed, the message is the runtime's own   |
//! | RouteReady    | the URL is served                                                               |

mod apply;
mod observe;
mod plan;
mod resources;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use api::functions::Function;
use api::serving::annotations::FUNCTION_LABEL;
use api::serving::{Revision, Service};
use client::queue::Outcome;
use client::{Caches, ObjectKey, Queue, run_workers};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::code::{CodeError, CodeStore};
use crate::fetch::{Fetch, Fetches};

use self::observe::Source;

/// Time before another look at a Function whose plan was made from an old picture.
const STALE_PAUSE: Duration = Duration::from_millis(15);

/// Settings of the controller.
#[derive(Clone, Debug)]
pub struct Config {
    /// Functions that are worked on at the same time. Default 4.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { workers: 4 }
    }
}

/// Why work on a Function failed; it is tried again.
#[derive(Debug, thiserror::Error)]
enum ReconcileError {
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The cache that the plan was made from is behind.
    #[error("the {what} has changed meanwhile")]
    Stale { what: &'static str, source: kube::Error },
    #[error("cannot write the {what}")]
    Write { what: &'static str, source: kube::Error },
}

/// The running controller.
pub struct Functions {
    caches: Arc<Caches>,
    code: Arc<dyn CodeStore>,
    fetches: Arc<Fetches>,
    queue: Arc<Queue<ObjectKey>>,
}

impl Functions {
    /// Starts the controller; it works until `stop`.
    pub fn start(
        config: Config,
        caches: Arc<Caches>,
        code: Arc<dyn CodeStore>,
        fetch: Arc<dyn Fetch>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let queue = Queue::<ObjectKey>::new();
        let fetches = Fetches::new(fetch, code.clone(), tasks.clone());
        let functions = Arc::new(Self { caches, code, fetches, queue: queue.clone() });
        let (starting, work, stop_start) = (functions.clone(), functions.clone(), stop.clone());
        let tracker = tasks.clone();
        let stopped = stop.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = stop_start.cancelled() => return,
                () = starting.synced() => {}
            }
            starting.subscribe(&queue);
            run_workers("functions", &queue, config.workers, &tracker, &stopped, move |key| {
                let work = work.clone();
                async move { work.reconcile(key).await }
            });
        });
        functions
    }

    async fn synced(&self) {
        let (functions, services, revisions) =
            (self.caches.of::<Function>(), self.caches.of::<Service>(), self.caches.of::<Revision>());
        tokio::join!(functions.synced(), services.synced(), revisions.synced());
    }

    /// A change of a Function, of its Service or of one of its Revisions asks for work on the Function.
    fn subscribe(&self, queue: &Arc<Queue<ObjectKey>>) {
        let to = queue.clone();
        self.caches.of::<Function>().subscribe(move |change| to.add(change.key()));
        let to = queue.clone();
        self.caches.of::<Service>().subscribe(move |change| {
            // By name, so that a Service in the way is noticed, and noticed again when it goes.
            to.add(change.key());
        });
        let to = queue.clone();
        self.caches.of::<Revision>().subscribe(move |change| {
            let revision = change.object();
            if let Some(function) = revision.labels().get(FUNCTION_LABEL) {
                to.add(ObjectKey::new(revision.namespace().unwrap_or_default(), function.as_str()));
            }
        });
    }

    async fn reconcile(&self, key: ObjectKey) -> Result<Outcome, ReconcileError> {
        let Some(mut observed) = observe::observe(&self.caches, self.code.as_ref(), &key).await? else {
            self.fetches.forget(&key);
            return Ok(Outcome::Done);
        };
        match &observed.source {
            Source::Elsewhere { url, digest, .. } => {
                let progress = self.fetches.progress(&key, url, digest, &self.queue);
                let (url, digest) = (url.clone(), digest.clone());
                observed.source = Source::Elsewhere { url, digest, progress };
            }
            _ => self.fetches.forget(&key),
        }
        let plan = plan::plan(&observed, Timestamp::now());
        let outcome = plan.outcome;
        match apply::apply(self.caches.client(), &observed, plan).await {
            // Somebody else wrote first, or our own last write is not in the cache yet: no failure.
            Err(ReconcileError::Stale { what, .. }) => {
                debug!(%key, what, "planned from an old picture");
                Ok(Outcome::After(STALE_PAUSE))
            }
            applied => applied.map(|()| outcome),
        }
    }
}
