//! What all controllers share: caches, queues, the links to others, and the little memory that is not in the API.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::serving::annotations::{CONFIGURATION_LABEL, ROUTES_ANNOTATION};
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Configuration, Revision, Route, Service};
use base::RevisionId;
use client::images::ImageResolver;
use client::link::GatewayLink;
use client::{Cache, Caches, Index, Live, ObjectKey, Queue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service as CoreService};
use kube::{Client, Resource, ResourceExt};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::autoscaler::Autoscaler;
use crate::config::Config;
use crate::domain::Domains;
use crate::instances::Instances;
use crate::meta::controller;
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
    /// Revisions by their Configuration.
    pub(crate) revisions_of: Arc<Index<Revision>>,
    /// Revisions by the Routes that they name.
    pub(crate) revisions_routed: Arc<Index<Revision>>,
    /// Core Services by the uid of what controls them.
    pub(crate) services_owned: Arc<Index<CoreService>>,
    /// DomainMappings by the name of what they lead to.
    pub(crate) mappings_to: Arc<Index<DomainMapping>>,
}

impl Kinds {
    pub(crate) fn new(caches: &Caches) -> Self {
        let (revisions, services_core) = (caches.of::<Revision>(), caches.of::<CoreService>());
        let mappings = caches.of::<DomainMapping>();
        Self {
            revisions_of: revisions.index(|revision| revision.labels().get(CONFIGURATION_LABEL).cloned()),
            revisions_routed: revisions.index(|revision| named_routes(revision).map(str::to_owned).collect::<Vec<_>>()),
            services_owned: services_core.index(|service| controller(service).map(|owner| owner.uid.clone())),
            mappings_to: mappings.index(|mapping| Some(mapping.spec.reference.name.clone())),
            services: caches.of(),
            configurations: caches.of(),
            routes: caches.of(),
            revisions,
            autoscalers: caches.of(),
            pods: caches.of(),
            services_core,
            config_maps: caches.of_system(),
            mappings,
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
    pub(crate) unresolved: Mutex<Unresolved>,
}

impl Context {
    /// The wall clock.
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Wakes the Routes that wait for the Configuration or Revision of that name.
    pub(crate) fn wake_unresolved(&self, target: &ObjectKey) {
        for route in self.unresolved.lock().routes.get(target).into_iter().flatten() {
            self.queues.routes.add(route.clone());
        }
    }
}

/// Routes that wait for Configurations or Revisions of certain names.
#[derive(Default)]
pub(crate) struct Unresolved {
    /// The Routes that wait for each name.
    routes: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// What each Route waits for.
    targets: HashMap<ObjectKey, Vec<ObjectKey>>,
}

impl Unresolved {
    /// From now on the Route waits for those names, all of its own namespace, and for no others.
    pub(crate) fn set(&mut self, route: &ObjectKey, names: impl IntoIterator<Item = String>) {
        for target in self.targets.remove(route).into_iter().flatten() {
            if let Some(routes) = self.routes.get_mut(&target) {
                routes.remove(route);
                if routes.is_empty() {
                    self.routes.remove(&target);
                }
            }
        }
        let targets: Vec<ObjectKey> = names.into_iter().map(|name| ObjectKey::new(&route.namespace, name)).collect();
        for target in &targets {
            self.routes.entry(target.clone()).or_default().insert(route.clone());
        }
        if !targets.is_empty() {
            self.targets.insert(route.clone(), targets);
        }
    }
}

/// The Routes that an object names itself.
pub(crate) fn named_routes<K: Resource>(object: &K) -> impl Iterator<Item = &str> {
    let routes = object.annotations().get(ROUTES_ANNOTATION).map(String::as_str).unwrap_or_default();
    routes.split(',').filter(|name| !name.is_empty())
}

/// A Revision's identity on the wire.
pub(crate) fn revision_id(key: &ObjectKey) -> RevisionId {
    RevisionId::new(&key.namespace, &key.name)
}

/// The key of a Revision on the wire.
pub(crate) fn revision_key(id: &RevisionId) -> ObjectKey {
    ObjectKey::new(&*id.namespace, &*id.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_waits_for_what_it_named_last() {
        let mut unresolved = Unresolved::default();
        let (one, two) = (ObjectKey::new("a", "one"), ObjectKey::new("a", "two"));
        unresolved.set(&one, ["x".to_owned(), "y".to_owned()]);
        unresolved.set(&two, ["y".to_owned()]);
        let waiting = |unresolved: &Unresolved, name: &str| -> Vec<String> {
            let routes = unresolved.routes.get(&ObjectKey::new("a", name)).into_iter().flatten();
            routes.map(|route| route.name.clone()).collect()
        };
        assert_eq!(waiting(&unresolved, "y"), ["one", "two"]);
        unresolved.set(&one, ["z".to_owned()]);
        assert_eq!(waiting(&unresolved, "x"), Vec::<String>::new());
        assert_eq!((waiting(&unresolved, "y"), waiting(&unresolved, "z")), (vec!["two".into()], vec!["one".into()]));
        unresolved.set(&one, []);
        unresolved.set(&two, []);
        assert!(unresolved.routes.is_empty() && unresolved.targets.is_empty());
    }
}
