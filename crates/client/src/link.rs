//! The one wire between roles besides API objects: statistics and pokes from the gateway to the autoscaler; routes
//! that are live and instances that are out of rotation between the gateway and the serving controllers.
//!
//! In one process both sides hold each other's trait object; between processes the binary puts an HTTP/2 stream between
//! them. Nothing here is durable: the next second's report repairs a lost one.

use std::sync::Arc;
use std::time::Duration;

use base::{MappingId, PodId, RevisionId, RouteId};
use futures::future::BoxFuture;
use parking_lot::RwLock;

/// One second of one revision, as one gateway counted it.
#[derive(Clone, Debug, PartialEq)]
pub struct Stat {
    /// The revision.
    pub revision: RevisionId,
    /// Time-weighted average of requests in flight and waiting over the second.
    pub concurrency: f64,
    /// Requests that arrived in the second.
    pub requests: f64,
}

/// What the gateway tells the autoscaler. Calls return at once.
pub trait AutoscalerLink: Send + Sync + 'static {
    /// Takes one second's statistics; a revision without traffic is left out after its last change.
    fn report(&self, stats: &[Stat]);
    /// A request waits at `revision` and no instance can take it: decide now, not at the next tick.
    fn poke(&self, revision: &RevisionId);
    /// Instances that a controller asked to retire which is gone since: they are out of rotation for good and drained,
    /// and may be deleted. Within one process both end together, and nobody has anything to release.
    fn released(&self, _pods: &[PodId]) {}
}

/// What the serving controllers ask of the gateway.
pub trait GatewayLink: Send + Sync + 'static {
    /// Resolves once requests are routed by the Route's status of that generation: its hosts, tags and percentages.
    fn programmed(&self, route: RouteId, generation: i64) -> BoxFuture<'static, ()>;
    /// Resolves once the public's requests for the mapping's domain go where its status of that generation says.
    fn mapped(&self, mapping: MappingId, generation: i64) -> BoxFuture<'static, ()>;
    /// Takes up to `count` instances out of rotation for good, idle ones first, then those with the fewest requests,
    /// waits until each is drained (at most `drain_timeout`), and names those that may be deleted now.
    fn retire(&self, revision: RevisionId, count: usize, drain_timeout: Duration) -> BoxFuture<'static, Vec<PodId>>;
    /// Requests of the revision in flight and waiting at this moment.
    fn load(&self, revision: &RevisionId) -> usize;
}

/// A link whose far side is set once it exists.
pub struct Late<T: ?Sized>(RwLock<Option<Arc<T>>>);

impl<T: ?Sized> Late<T> {
    /// A link with no far side yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(RwLock::new(None)))
    }

    /// Sets the far side.
    pub fn set(&self, far: Arc<T>) {
        *self.0.write() = Some(far);
    }

    /// The far side, if it is there.
    pub fn get(&self) -> Option<Arc<T>> {
        self.0.read().clone()
    }
}

impl AutoscalerLink for Late<dyn AutoscalerLink> {
    fn report(&self, stats: &[Stat]) {
        if let Some(far) = self.get() {
            far.report(stats);
        }
    }

    fn poke(&self, revision: &RevisionId) {
        if let Some(far) = self.get() {
            far.poke(revision);
        }
    }

    fn released(&self, pods: &[PodId]) {
        if let Some(far) = self.get() {
            far.released(pods);
        }
    }
}
