//! The serving controllers: Service, Configuration, Revision, Route, PodAutoscaler, DomainMapping and the pods of each
//! Revision.
//!
//! | folder | takes | makes |
//! |---|---|---|
//! | [`service`] | Service | Configuration, Route |
//! | [`configuration`] | Configuration | Revision |
//! | [`revision`] | Revision, its pods | PodAutoscaler, images by digest |
//! | [`route`] | Route, Configurations, Revisions | the split that the gateway serves, placeholder Services |
//! | [`domain`] | DomainMapping, ClusterDomainClaim | claims, the domains that the gateway serves |
//! | [`autoscaler`] | PodAutoscaler, the gateway's statistics | a number of pods |
//! | [`instances`] | that number | Pods |
//!
//! Each controller observes caches only, plans without I/O, and writes what the plan says; planning again after that
//! says nothing. Invariants: a controller writes the status of its own kind only; no pod is made or removed but by
//! `instances`; nothing waits for a tick between a request and its pod.

mod autoscaler;
mod config;
mod configuration;
mod context;
mod domain;
mod instances;
mod meta;
mod pace;
mod revision;
mod route;
mod served;
mod service;
#[cfg(test)]
mod tests;
mod write;

use std::sync::Arc;

use api::autoscaling::PodAutoscaler;
use api::config as settings;
use api::serving::annotations::{CONFIGURATION_LABEL, SERVICE_LABEL};
use api::serving::{Configuration, Revision, Route, Service};
use base::{PodId, RevisionId};
use client::images::ImageResolver;
use client::link::{AutoscalerLink, GatewayLink, Stat};
use client::queue::Outcome;
use client::{Caches, Change, ObjectKey, Queue, run_workers};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service as CoreService};
use kube::{Resource, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Addresses, Config};
use context::{Context, Kinds, Queues, named_routes, revision_key};
pub use instances::sample_pod;
use write::WriteError;

/// The running controllers.
pub struct Serving {
    context: Arc<Context>,
}

impl Serving {
    /// Starts the controllers on `tasks`; they run until `stop`. Returns once every kind was listed.
    pub async fn start(
        config: Config,
        caches: Arc<Caches>,
        gateway: Arc<dyn GatewayLink>,
        resolver: Arc<dyn ImageResolver>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let kinds = Kinds::new(&caches);
        tokio::select! {
            () = kinds.synced() => {}
            () = stop.cancelled() => {}
        }
        let context = Arc::new(Context {
            config,
            live: client::Live::default(),
            client: caches.client().clone(),
            writer: write::Writer::new(caches.client().clone()),
            pace: pace::Pace::default(),
            caches: kinds,
            queues: Queues::default(),
            gateway,
            resolver,
            tasks,
            stop,
            autoscaler: autoscaler::Autoscaler::default(),
            instances: instances::Instances::default(),
            digests: revision::Digests::default(),
            served_routes: Arc::default(),
            served_mappings: Arc::default(),
            domains: domain::Domains::default(),
            unresolved: parking_lot::Mutex::default(),
        });
        subscribe(&context);
        run(&context);
        Arc::new(Self { context })
    }
}

impl AutoscalerLink for Serving {
    fn report(&self, stats: &[Stat]) {
        self.context.autoscaler.report(&self.context, stats);
    }

    fn poke(&self, revision: &RevisionId) {
        self.context.autoscaler.poke(&self.context, revision_key(revision));
    }

    fn released(&self, pods: &[PodId]) {
        instances::release(&self.context, pods);
    }
}

/// Starts each controller's workers.
fn run(context: &Arc<Context>) {
    let queues = &context.queues;
    workers(context, "service", &queues.services, service::reconcile);
    workers(context, "configuration", &queues.configurations, configuration::reconcile);
    workers(context, "route", &queues.routes, route::reconcile);
    workers(context, "domain", &queues.mappings, domain::reconcile);
    workers(context, "revision", &queues.revisions, revision::reconcile);
    workers(context, "autoscaler", &queues.autoscalers, autoscaler::reconcile);
    workers(context, "instances", &queues.instances, instances::reconcile);
    context.tasks.spawn(autoscaler::usage::follow(context.clone()));
}

fn workers<F>(
    context: &Arc<Context>,
    name: &'static str,
    queue: &Arc<Queue<ObjectKey>>,
    reconcile: fn(Arc<Context>, ObjectKey) -> F,
) where
    F: Future<Output = Result<Outcome, WriteError>> + Send + 'static,
{
    let shared = context.clone();
    let work = move |key: ObjectKey| {
        let done = reconcile(shared.clone(), key.clone());
        async move {
            match done.await {
                // Somebody else wrote first, or our own last write is not in the cache yet: no failure.
                Err(WriteError::Stale { write, .. } | WriteError::Behind { write }) => {
                    tracing::debug!(controller = name, %key, write, "planned from an old picture");
                    Ok(Outcome::Again)
                }
                other => other,
            }
        }
    };
    run_workers(name, queue, context.config.workers, &context.tasks, &context.stop, work);
}

/// Leads each change to the controllers that it concerns.
fn subscribe(context: &Arc<Context>) {
    // The settings come first: the first decision is made by them.
    on(context, &context.caches.config_maps, config_map_changed);
    on(context, &context.caches.pods, pod_changed);
    on(context, &context.caches.services, service_changed);
    on(context, &context.caches.configurations, configuration_changed);
    on(context, &context.caches.routes, route_changed);
    on(context, &context.caches.revisions, revision_changed);
    on(context, &context.caches.autoscalers, autoscaler_changed);
    on(context, &context.caches.services_core, core_service_changed);
    on(context, &context.caches.mappings, domain::mapping_changed);
    on(context, &context.caches.claims, domain::claim_changed);
}

fn on<K: client::cache::Cacheable>(
    context: &Arc<Context>,
    cache: &client::Cache<K>,
    changed: impl Fn(&Context, &Change<K>) + Send + Sync + 'static,
) {
    // The caches outlive the controllers; what they hold must not keep the controllers alive.
    let context = Arc::downgrade(context);
    cache.subscribe(move |change| {
        let Some(context) = context.upgrade() else { return };
        if change.new.is_none() {
            context.writer.forget::<K>(change.key());
        }
        changed(&context, change);
    });
}

fn configuration_changed(context: &Context, change: &Change<Configuration>) {
    let key = change.key();
    context.queues.services.add(key.clone());
    let routes = routes_of(change.object().as_ref(), &key.namespace);
    routes.into_iter().for_each(|route| context.queues.routes.add(route));
    context.wake_unresolved(&key);
    context.queues.configurations.add(key);
}

fn service_changed(context: &Context, change: &Change<Service>) {
    domain::target_changed(context, &change.key());
    context.queues.services.add(change.key());
}

fn route_changed(context: &Context, change: &Change<Route>) {
    domain::route_changed(context, change);
    context.queues.services.add(change.key());
    context.queues.routes.add(change.key());
}

fn revision_changed(context: &Context, change: &Change<Revision>) {
    let revision = change.object();
    let key = change.key();
    if let Some(configuration) = revision.labels().get(CONFIGURATION_LABEL) {
        let configuration = ObjectKey::new(&key.namespace, configuration);
        context.wake_unresolved(&configuration);
        context.queues.configurations.add(configuration);
    }
    let routes = routes_of(revision.as_ref(), &key.namespace);
    routes.into_iter().for_each(|route| context.queues.routes.add(route));
    context.wake_unresolved(&key);
    context.queues.instances.add(key.clone());
    context.queues.revisions.add(key);
}

/// The Routes that an object names itself, and that of its Service.
fn routes_of<K: Resource>(object: &K, namespace: &str) -> Vec<ObjectKey> {
    let service = object.labels().get(SERVICE_LABEL).map(String::as_str);
    let names = named_routes(object).chain(service);
    names.map(|name| ObjectKey::new(namespace, name)).collect()
}

fn autoscaler_changed(context: &Context, change: &Change<PodAutoscaler>) {
    context.queues.autoscalers.add(change.key());
    context.queues.revisions.add(change.key());
}

fn pod_changed(context: &Context, change: &Change<Pod>) {
    let Some(key) = context.instances.observe(change) else { return };
    let configuration = change.object().labels().get(CONFIGURATION_LABEL);
    if let Some(configuration) = configuration.filter(|_| change.new.is_none()) {
        // A Revision is collected after its last pod.
        context.queues.configurations.add(ObjectKey::new(&key.namespace, configuration));
    }
    context.queues.autoscalers.add(key.clone());
    context.queues.instances.add(key.clone());
    context.queues.revisions.add(key);
}

fn core_service_changed(context: &Context, change: &Change<CoreService>) {
    domain::target_changed(context, &change.key());
    let service = change.object();
    if let Some(owner) = meta::controller(service.as_ref()).filter(|owner| owner.kind == "Route") {
        context.queues.routes.add(ObjectKey::new(change.key().namespace, &owner.name));
    } else if context.caches.routes.get_key(&change.key()).is_some() {
        context.queues.routes.add(change.key());
    }
}

fn config_map_changed(context: &Context, change: &Change<ConfigMap>) {
    match context.live.observe(change) {
        Some(settings::autoscaler::NAME) => {
            context.autoscaler.configure(&context.live.get().autoscaler);
            add_all(&context.caches.autoscalers, &context.queues.autoscalers);
        }
        Some(settings::gc::NAME) => add_all(&context.caches.configurations, &context.queues.configurations),
        Some(settings::network::NAME | settings::domain::NAME) => {
            add_all(&context.caches.routes, &context.queues.routes);
            add_all(&context.caches.mappings, &context.queues.mappings);
        }
        Some(settings::deployment::NAME | settings::observability::NAME) => {
            add_all(&context.caches.revisions, &context.queues.revisions);
        }
        _ => {}
    }
}

/// Looks at every object of a kind again.
fn add_all<K: client::cache::Cacheable>(cache: &client::Cache<K>, queue: &Queue<ObjectKey>) {
    cache.list().iter().for_each(|object| queue.add(ObjectKey::of(object.as_ref())));
}
