//! Machine mode's own cluster controllers: what a Kubernetes cluster has anyway, for the embedded API server.
//!
//! - [`collector`]: deletes what its owners left behind (background, foreground, orphan).
//! - [`namespaces`]: empties a namespace that is being deleted, then lets it go.
//! - [`accounts`]: gives each namespace its default service account and the CA's certificate.
//! - [`scheduler`]: binds pods to nodes.
//! - [`endpoints`]: says who answers for each Service.
//! - [`protection`]: lets claims and volumes go once nothing uses them.
//!
//! Invariants: no controller here knows Knative's kinds or ours by name; none keeps state that a restart would miss.

pub mod accounts;
pub mod collector;
pub mod endpoints;
pub mod namespaces;
pub mod protection;
pub mod resources;
pub mod scheduler;

use std::sync::Arc;

use client::Caches;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What the controllers need to know.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Certificate of the cluster's CA, as PEM, for the ConfigMap `kube-root-ca.crt`.
    pub root_ca_pem: String,
}

/// Starts every controller; they run until `stop`.
pub fn start(config: Config, caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    accounts::start(config.root_ca_pem, caches, tasks, stop);
    scheduler::start(caches, tasks, stop);
    endpoints::start(caches, tasks, stop);
    namespaces::start(caches, tasks, stop);
    collector::start(caches, tasks, stop);
    protection::start(caches, tasks, stop);
}

/// Why a controller's step failed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The API server refused or could not be reached.
    #[error("{action}")]
    Api {
        /// What was attempted.
        action: &'static str,
        /// The API server's answer.
        #[source]
        source: Box<kube::Error>,
    },
    /// Objects are still there; their own controllers have to finish first.
    #[error("{0}")]
    NotYet(String),
}

impl StepError {
    fn api(action: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { action, source: Box::new(source) }
    }
}

/// Whether an answer says that the object is not there.
fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether an answer says that the object has changed or is another one by now.
fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Makes "not there any more" a success: what was to be removed is gone.
fn unless_gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}
