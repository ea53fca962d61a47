//! All revisions, kept up to date from the caches.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use api::config;
use api::config::Flag;
use api::config::network::HttpProtocol;
use api::serving::annotations::{self, REVISION_LABEL, TARGET_ANNOTATION};
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Revision as RevisionObject, Route};
use base::{MappingId, PodId, RevisionId, RouteId};
use client::Live;
use client::cache::{Cache, Caches, Change, Index, ObjectKey};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::ResourceExt;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::warn;

use crate::certificates;
use crate::proxy::{Proxy, Target};
use crate::revision::{PodSeen, Revision, Shared};
use crate::routes::hosts_of;
use crate::settings::Settings;
use crate::stage::Stage;

/// All revisions, and what is routed to them.
pub struct Fleet {
    routes: Arc<Cache<Route>>,
    mappings: Arc<Cache<DomainMapping>>,
    claims: Arc<Cache<ClusterDomainClaim>>,
    /// Secrets with certificates.
    secrets: Arc<Cache<Secret>>,
    /// Mapped domains by the Secret that their mapping names.
    secret_of: Arc<Index<DomainMapping>>,
    live: Live,
    shared: Arc<Shared>,
    proxy: Arc<Proxy>,
    revisions: RwLock<HashMap<RevisionId, Arc<Revision>>>,
    /// What each Route is routed by.
    routed: RwLock<HashMap<RouteId, Routed>>,
    /// Routes as they are to be routed once their revisions are known.
    early: Mutex<HashMap<RouteId, Arc<Route>>>,
    /// The mapping that each domain follows: its namespace, and the generation that its status speaks of.
    mapped: Mutex<HashMap<String, (String, i64)>>,
    changes: watch::Sender<()>,
    /// Whether a revision may have become empty since the last sweep.
    untidy: AtomicBool,
}

/// The status by which a Route is routed.
struct Routed {
    generation: i64,
    revisions: BTreeSet<RevisionId>,
}

impl Fleet {
    /// Subscribes to what requests are routed by.
    pub fn start(shared: Arc<Shared>, proxy: Arc<Proxy>, caches: &Caches) -> Arc<Self> {
        let mappings = caches.of::<DomainMapping>();
        let secret = |mapping: &DomainMapping| mapping.spec.tls.as_ref().map(|tls| tls.secret_name.clone());
        let fleet = Arc::new(Self {
            routes: caches.of::<Route>(),
            secrets: caches.of_selected::<Secret>(certificates::SECRETS),
            secret_of: mappings.index(secret),
            mappings,
            claims: caches.of::<ClusterDomainClaim>(),
            live: Live::default(),
            shared,
            proxy,
            revisions: RwLock::default(),
            routed: RwLock::default(),
            early: Mutex::default(),
            mapped: Mutex::default(),
            changes: watch::Sender::new(()),
            untidy: AtomicBool::new(false),
        });
        let this = fleet.clone();
        caches.of_system::<ConfigMap>().subscribe(move |change| this.settings_changed(change));
        let this = fleet.clone();
        caches.of::<RevisionObject>().subscribe(move |change| this.revision_changed(change));
        let this = fleet.clone();
        fleet.routes.subscribe(move |change| this.look_at(&change.key()));
        let this = fleet.clone();
        fleet.mappings.subscribe(move |change| this.map(&change.key().name));
        let this = fleet.clone();
        fleet.claims.subscribe(move |change| this.map(&change.key().name));
        let this = fleet.clone();
        fleet.secrets.subscribe(move |change| this.secret_changed(&change.key()));
        let this = fleet.clone();
        caches.of::<Pod>().subscribe(move |change| this.pod_changed(change));
        fleet
    }

    /// The revision of that name, known or not.
    fn revision(&self, id: &RevisionId) -> Arc<Revision> {
        if let Some(revision) = self.revisions.read().get(id) {
            return revision.clone();
        }
        let mut revisions = self.revisions.write();
        let make = || Revision::new(id.clone(), self.shared.clone());
        revisions.entry(id.clone()).or_insert_with(make).clone()
    }

    /// The revision of that name, if anything is known of it.
    pub fn find(&self, id: &RevisionId) -> Option<Arc<Revision>> {
        self.revisions.read().get(id).cloned()
    }

    /// All revisions.
    pub fn all(&self) -> Vec<Arc<Revision>> {
        self.revisions.read().values().cloned().collect()
    }

    /// Forgets the revisions of which nothing is left and that no Route names.
    pub fn sweep(&self) {
        if !self.untidy.swap(false, Ordering::Relaxed) {
            return;
        }
        self.revisions.write().retain(|_, revision| {
            let empty = revision.is_empty();
            // One owner: the map itself. Else a Route still names it, or a request has it.
            let keep = !empty || Arc::strong_count(revision) > 1;
            if empty && keep {
                self.untidy.store(true, Ordering::Relaxed);
            }
            keep
        });
    }

    /// Resolves once requests are routed by that generation of the Route, to revisions that are known; also when the
    /// Route was there and is deleted, since nobody will wait for it any more.
    pub async fn programmed(self: Arc<Self>, route: RouteId, generation: i64) {
        let mut changes = self.changes.subscribe();
        let mut was_there = false;
        while !self.is_routed(&route, generation) {
            let is_there = self.routes.get(&route.namespace, &route.name).is_some();
            if was_there && !is_there {
                return;
            }
            was_there = is_there;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Resolves once the public's requests for the mapping's domain go where its status of that generation says; also
    /// when the mapping was there and is deleted.
    pub async fn mapped(self: Arc<Self>, mapping: MappingId, generation: i64) {
        let mut changes = self.changes.subscribe();
        let mut was_there = false;
        while !self.is_mapped(&mapping, generation) {
            let is_there = self.mappings.get(&mapping.namespace, &mapping.name).is_some();
            if was_there && !is_there {
                return;
            }
            was_there = is_there;
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn is_mapped(&self, mapping: &MappingId, generation: i64) -> bool {
        let follows = self
            .mapped
            .lock()
            .get(&*mapping.name)
            .is_some_and(|(namespace, observed)| **namespace == *mapping.namespace && *observed >= generation);
        let entry = self.proxy.table.get(&mapping.name).filter(|entry| follows && entry.mapped);
        let is_own = self.proxy.extra.load().contains_key(&*mapping.name);
        let object = self.mappings.get(&mapping.namespace, &mapping.name);
        if object.is_some_and(|object| object.spec.tls.is_some()) && !self.proxy.certificates.has(&mapping.name) {
            return false;
        }
        entry.and_then(|entry| entry.public.clone()).filter(|_| !is_own).is_some_and(|targets| {
            let known = |target: &Target| target.revision.settings.load().is_some();
            !targets.shares().is_empty() && targets.shares().iter().all(|(_, target)| known(target))
        })
    }

    /// Looks at a domain again. The mapping of the namespace that has claimed it counts, and leads into that namespace.
    fn map(&self, domain: &str) {
        // Held until the end: of two looks at once the later one must be the last.
        let mut mapped = self.mapped.lock();
        let claim = self.claims.get("", domain);
        let mapping = claim.and_then(|claim| self.mappings.get(&claim.spec.namespace, domain));
        let status = mapping.as_ref().and_then(|mapping| mapping.status.as_ref());
        let target = status.and_then(|status| Some((status.annotations.get(TARGET_ANNOTATION)?, status)));
        let namespace = mapping.as_ref().and_then(|mapping| mapping.namespace()).unwrap_or_default();
        match target {
            Some((name, status)) => {
                let host = format!("{name}.{namespace}.svc.cluster.local");
                let annotations = mapping.as_ref().map(|mapping| mapping.annotations());
                let http = annotations.and_then(|all| annotations::value(all, annotations::HTTP_PROTOCOL));
                // First the certificate: nobody is to see another one for a domain that is served.
                let secret = mapping.as_ref().and_then(|mapping| mapping.spec.tls.as_ref());
                self.show(domain, &namespace, secret.map(|tls| &*tls.secret_name));
                self.proxy.table.alias(domain, Some(&host), http.and_then(HttpProtocol::parse));
                mapped.insert(domain.to_owned(), (namespace, status.observed_generation.unwrap_or_default()));
            }
            None => {
                self.proxy.table.alias(domain, None, None);
                self.proxy.certificates.set(domain, None);
                mapped.remove(domain);
            }
        }
        drop(mapped);
        self.changes.send_replace(());
    }

    /// Shows the Secret's certificate for a domain. One that cannot be used leaves what is shown, as it may be half of a
    /// renewal; one that is gone, or of another type, takes it away.
    fn show(&self, domain: &str, namespace: &str, secret: Option<&str>) {
        let secret = secret.and_then(|name| self.secrets.get(namespace, name));
        match secret.as_deref().map(certificates::read) {
            Some(Ok(certificate)) => self.proxy.certificates.set(domain, Some(Arc::new(certificate))),
            Some(Err(error)) => warn!(domain, namespace, %error, "the certificate of a domain cannot be used"),
            None => self.proxy.certificates.set(domain, None),
        }
    }

    /// Looks at the domains again whose mapping names the Secret.
    fn secret_changed(&self, key: &ObjectKey) {
        for mapping in self.secret_of.get(&key.namespace, &key.name) {
            self.map(&mapping.name_any());
        }
    }

    fn is_routed(&self, route: &RouteId, generation: i64) -> bool {
        let routed = self.routed.read();
        let Some(routed) = routed.get(route).filter(|routed| routed.generation >= generation) else {
            return false;
        };
        routed.revisions.iter().all(|id| self.knows(id))
    }

    /// Whether the revision can take requests.
    fn knows(&self, id: &RevisionId) -> bool {
        self.find(id).is_some_and(|revision| revision.settings.load().is_some())
    }

    fn revision_changed(&self, change: &Change<RevisionObject>) {
        let ObjectKey { namespace, name } = change.key();
        let settings = change.new.as_deref().map(Settings::of);
        if settings.is_none() {
            self.untidy.store(true, Ordering::Relaxed);
        }
        self.revision(&RevisionId::new(namespace, name)).configure(settings);
        let mut early = self.early.lock();
        let due: Vec<RouteId> =
            early.iter().filter(|(id, route)| !self.is_early(id, route)).map(|(id, _)| id.clone()).collect();
        for id in due {
            let route = early.remove(&id);
            self.route(id, route.as_deref());
        }
        drop(early);
        self.changes.send_replace(());
    }

    fn settings_changed(&self, change: &Change<ConfigMap>) {
        match self.live.observe(change) {
            Some(config::features::NAME) => {
                let on = self.live.get().features.tag_header_based_routing == Flag::Enabled;
                self.shared.tag_header.store(on, Ordering::Relaxed);
            }
            Some(config::gateway::NAME) => self.shared.clients.set_limits(self.live.get().gateway.clone()),
            Some(config::observability::NAME) => {
                let (tasks, abort) = (&self.shared.background, &self.shared.abort);
                self.shared.telemetry.set(&self.live.get().observability, tasks, abort);
            }
            Some(config::network::NAME) => {
                for route in self.routes.list() {
                    self.look_at(&ObjectKey::of(route.as_ref()));
                }
            }
            _ => {}
        }
    }

    /// Looks at a Route again.
    fn look_at(&self, key: &ObjectKey) {
        let id = RouteId::new(&key.namespace, &key.name);
        // Held until the end: no revision becomes known between the look and its note, and of two looks at once the later
        // one is the last.
        let mut early = self.early.lock();
        let route = self.routes.get_key(key);
        match route.clone().filter(|route| self.is_early(&id, route)) {
            Some(route) => drop(early.insert(id, route)),
            None => {
                early.remove(&id);
                self.route(id, route.as_deref());
            }
        }
        drop(early);
        self.changes.send_replace(());
    }

    /// Whether the watch of Routes is ahead of that of Revisions: the Route names a revision that is not known yet, and
    /// all that it is routed to is still there. Requests stay with those until then.
    fn is_early(&self, id: &RouteId, route: &Route) -> bool {
        let serves = self
            .routed
            .read()
            .get(id)
            .is_some_and(|routed| !routed.revisions.is_empty() && routed.revisions.iter().all(|id| self.knows(id)));
        let claims = hosts_of(route, &self.live.get().network);
        let mut targets = claims.iter().flat_map(|claim| claim.targets.shares());
        serves && targets.any(|(_, revision)| !self.knows(revision))
    }

    fn route(&self, id: RouteId, route: Option<&Route>) {
        let claims = route.map(|route| hosts_of(route, &self.live.get().network)).unwrap_or_default();
        let metrics = self.shared.metrics.of_route(&id);
        self.proxy
            .table
            .set(&id, &claims, |revision| Target { revision: self.revision(revision), route: metrics.clone() });
        if route.is_none() {
            self.shared.metrics.forget_route(&id);
        }
        let routed = route.and_then(|route| route.status.as_ref()).filter(|s| s.url.is_some());
        match routed.and_then(|status| status.observed_generation) {
            Some(generation) => {
                let targets = claims.iter().flat_map(|claim| claim.targets.shares());
                let revisions = targets.map(|(_, revision)| revision.clone()).collect();
                self.routed.write().insert(id, Routed { generation, revisions });
            }
            None => {
                self.routed.write().remove(&id);
            }
        }
    }

    fn pod_changed(&self, change: &Change<Pod>) {
        let pod = change.object();
        let (Some(revision), Some(namespace)) = (pod.labels().get(REVISION_LABEL), pod.namespace()) else {
            return;
        };
        if change.new.is_none() {
            self.untidy.store(true, Ordering::Relaxed);
        }
        self.revision(&RevisionId::new(&namespace, revision)).observe(seen(pod, change.new.is_none()));
    }
}

fn seen(pod: &Pod, deleted: bool) -> PodSeen {
    let status = pod.status.as_ref();
    let ended = status.and_then(|s| s.phase.as_deref()).is_some_and(|phase| ["Succeeded", "Failed"].contains(&phase));
    let mut conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
    PodSeen {
        pod: PodId::new(pod.namespace().unwrap_or_default(), pod.name_any()),
        uid: pod.uid().unwrap_or_default(),
        ip: status.and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok()),
        deleting: pod.metadata.deletion_timestamp.is_some(),
        gone: deleted || ended,
        ready: conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True"),
        stage: Stage::of(pod),
    }
}
