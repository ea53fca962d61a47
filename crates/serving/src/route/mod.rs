//! Route: which Revisions the traffic goes to, under which URLs.
//!
//! The gateway routes by a Route's status alone. A target that cannot be served leaves the status's traffic as it was,
//! so that a failed new Revision moves nothing.

mod plan;
mod resources;
mod rollout;

use std::collections::BTreeMap;
use std::sync::Arc;

use api::config::Settings;
use api::serving::{Configuration, Revision, Route, RouteStatus, TrafficTarget};
use base::RouteId;
use client::ObjectKey;
use client::queue::Outcome;
use k8s_openapi::api::core::v1::Service as CoreService;
use kube::ResourceExt;

use crate::context::Context;
use crate::pace::Verdict;
use crate::served::version_of;
use crate::write::{Object, Write, WriteError};

const KIND: &str = "Route";

/// What is known about one Route.
#[derive(Clone, Debug)]
struct Observed {
    route: Arc<Route>,
    configurations: BTreeMap<String, Arc<Configuration>>,
    /// Revisions that the Route names, directly or as a Configuration's latest ready one.
    revisions: BTreeMap<String, Arc<Revision>>,
    /// Revisions that say that this Route leads to them.
    routed: Vec<Arc<Revision>>,
    /// Core Services that bear the Route's names.
    placeholders: BTreeMap<String, Arc<CoreService>>,
    /// Core Services that this Route controls.
    owned_placeholders: Vec<Arc<CoreService>>,
    /// Whether the gateway serves this generation.
    programmed: bool,
}

fn observe(context: &Context, key: &ObjectKey, settings: &Settings) -> Option<Observed> {
    let caches = &context.caches;
    let route = caches.routes.get_key(key)?;
    let mut configurations = BTreeMap::new();
    let mut revisions = BTreeMap::new();
    for target in &route.spec.traffic {
        let mut name = target.revision_name.clone();
        if let Some(configuration) = &target.configuration_name
            && let Some(found) = caches.configurations.get(&key.namespace, configuration)
        {
            name = found.status.as_ref().and_then(|status| status.latest_ready_revision_name.clone());
            configurations.insert(configuration.clone(), found);
        }
        if let Some(found) = name.and_then(|name| caches.revisions.get(&key.namespace, &name)) {
            revisions.insert(found.name_any(), found);
        }
    }
    let owned_placeholders = caches.services_owned.get(&key.namespace, &route.uid().unwrap_or_default());
    let placeholders = resources::placeholder_names(&route, settings)
        .into_iter()
        .filter_map(|name| Some((name.clone(), caches.services_core.get(&key.namespace, &name)?)))
        .collect();
    let routed = caches.revisions_routed.get(&key.namespace, &key.name);
    let programmed = context.served_routes.holds(key, &version_of(route.as_ref()));
    Some(Observed { route, configurations, revisions, routed, placeholders, owned_placeholders, programmed })
}

/// The Configuration and the Revision that a target names.
fn targets(target: &TrafficTarget) -> impl Iterator<Item = String> {
    [target.configuration_name.clone(), target.revision_name.clone()].into_iter().flatten()
}

/// Brings one Route's status, placeholders and Revisions' routing state up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let settings = context.live.get();
    let Some(observed) = observe(&context, &key, &settings) else {
        context.served_routes.forget(&key);
        context.pace.forget(KIND, &key);
        context.unresolved.lock().set(&key, []);
        return Ok(Outcome::Done);
    };
    let naming = resources::Naming { addresses: &context.config.addresses, settings: &settings };
    let mut plan = plan::plan(&observed, &naming, context.now());
    // Whoever waits for something that does not exist yet is woken by it.
    let waits_for = observed.route.spec.traffic.iter().filter(|_| !plan.resolved).flat_map(targets);
    context.unresolved.lock().set(&key, waits_for);
    let is_minor = |write: &Write| is_minor(&observed.route, write);
    let wait = context.pace.hold(KIND, &key, &mut plan.writes, is_minor, context.config.status_delay);
    context.writer.apply_all(observed.route.as_ref(), &plan.writes).await?;
    if let Some(next) = plan.next_step {
        context.queues.routes.add_after(key.clone(), next);
    }
    if plan.resolved && !observed.programmed {
        let version = version_of(observed.route.as_ref());
        let generation = version.1;
        context.served_routes.note(&context, &context.queues.routes, &key, version, || {
            context.gateway.programmed(RouteId::new(&key.namespace, &key.name), generation)
        });
    }
    Ok(wait.map_or(Outcome::Done, Outcome::After))
}

/// Whether a status changes nothing but words about whether the Route is ready.
fn is_minor(route: &Route, write: &Write) -> bool {
    let Write::Status(Object::Route(next)) = write else { return false };
    let Some(next) = &next.status else { return false };
    let verdict = |status: &RouteStatus| Verdict::new(&status.conditions, status.observed_generation);
    let serves = |status: &RouteStatus| {
        (status.traffic.clone(), status.annotations.clone(), status.url.clone(), status.address.clone())
    };
    match &route.status {
        Some(present) => verdict(next).is_old(Some(verdict(present))) && serves(next) == serves(present),
        None => verdict(next).is_old(None) && next.traffic.is_empty(),
    }
}
