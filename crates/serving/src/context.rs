//! What all controllers share: caches, queues, the links to others, and the little memory that is not in the API.

use std::collections::HashSet;
use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Configuration, Revision, Route, Service};
use base::RevisionId;
use client::images::ImageResolver;
use client::link::GatewayLink;
use client::{Cache, Caches, Live, ObjectKey, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service as CoreService};
use kube::Client;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::autoscaler::Autoscaler;
use crate::config::Config;
use crate::domain::Domains;
use crate::instances::Instances;
use crate::pace::Pace;
use crate::revision::Digests;
use crate::served::Served;
use crate::write::Writer;

/// Caches of the kinds that the controllers read.
pub(crate) struct Kinds {
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) configurations: Arc<Cache<Configuration>>,
    pub(crate) routes: Arc<Cache<Route>>,
    pub(crate) revisions: Arc<Cache<Revision>>,
    pub(crate) autoscalers: Arc<Cache<PodAutoscaler>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) services_core: Arc<Cache<CoreService>>,
    pub(crate) config_maps: Arc<Cache<ConfigMap>>,
    pub(crate) mappings: Arc<Cache<DomainMapping>>,
    pub(crate) claims: Arc<Cache<ClusterDomainClaim>>,
}

impl Kinds {
    pub(crate) fn new(caches: &Caches) -> Self {
        Self {
            services: caches.of(),
            configurations: caches.of(),
            routes: caches.of(),
            revisions: caches.of(),
            autoscalers: caches.of(),
            pods: caches.of(),
            services_core: caches.of(),
            config_maps: caches.of_system(),
            mappings: caches.of(),
            claims: caches.of(),
        }
    }

    /// Waits until each kind was listed once: nothing is decided on half a picture.
    pub(crate) async fn synced(&self) {
        self.services.synced().await;
        self.configurations.synced().await;
        self.routes.synced().await;
        self.revisions.synced().await;
        self.autoscalers.synced().await;
        self.pods.synced().await;
        self.services_core.synced().await;
        self.config_maps.synced().await;
        self.mappings.synced().await;
        self.claims.synced().await;
    }
}

/// One queue for each controller.
#[derive(Default)]
pub(crate) struct Queues {
    pub(crate) services: Arc<Queue<ObjectKey>>,
    pub(crate) configurations: Arc<Queue<ObjectKey>>,
    pub(crate) routes: Arc<Queue<ObjectKey>>,
    pub(crate) revisions: Arc<Queue<ObjectKey>>,
    pub(crate) autoscalers: Arc<Queue<ObjectKey>>,
    pub(crate) instances: Arc<Queue<ObjectKey>>,
    pub(crate) mappings: Arc<Queue<ObjectKey>>,
}

/// Everything that a controller needs.
pub(crate) struct Context {
    pub(crate) config: Config,
    /// The ConfigMaps.
    pub(crate) live: Live,
    pub(crate) client: Client,
    pub(crate) writer: Writer,
    pub(crate) pace: Pace,
    pub(crate) caches: Kinds,
    pub(crate) queues: Queues,
    pub(crate) gateway: Arc<dyn GatewayLink>,
    pub(crate) resolver: Arc<dyn ImageResolver>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) autoscaler: Autoscaler,
    pub(crate) instances: Instances,
    pub(crate) digests: Digests,
    /// Routes that the gateway serves.
    pub(crate) served_routes: Arc<Served>,
    /// DomainMappings that the gateway serves.
    pub(crate) served_mappings: Arc<Served>,
    pub(crate) domains: Domains,
    /// Routes with a target that does not exist yet.
    pub(crate) unresolved: Mutex<HashSet<ObjectKey>>,
}

impl Context {
    /// The wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Wakes the Routes of a namespace that wait for something to appear.
    pub(crate) fn wake_unresolved(&self, namespace: &str) {
        for key in self.unresolved.lock().iter().filter(|key| key.namespace == namespace) {
            self.queues.routes.add(key.clone());
        }
    }
}

/// A Revision's identity on the wire.
pub(crate) fn revision_id(key: &ObjectKey) -> RevisionId {
    RevisionId::new(&key.namespace, &key.name)
}

/// The key of a Revision on the wire.
pub(crate) fn revision_key(id: &RevisionId) -> ObjectKey {
    ObjectKey::new(&*id.namespace, &*id.name)
}
