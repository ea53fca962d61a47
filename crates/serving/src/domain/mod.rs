//! DomainMapping: a domain of its owner's choice that leads to a Service or a Route of its namespace.
//!
//! Who may map a domain says its ClusterDomainClaim, which is made here where the administrator lets it be. It goes with
//! the mapping that it was made for; one that an administrator made stays. The gateway routes by the claim and by the
//! mapping's status, which names the target: a reference that cannot be resolved leaves the traffic where it is.
//!
//! A public host of a Route is the Route's, whoever maps it; the mapping's condition says so.

mod plan;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use api::serving::Route;
use api::serving::annotations::{AUTOCREATED_LABEL, VISIBILITY_LABEL};
use api::serving::domain::{ClusterDomainClaim, DomainMapping, Reference};
use base::MappingId;
use client::queue::Outcome;
use client::{Change, ObjectKey};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt};
use parking_lot::Mutex;

use crate::context::Context;
use crate::meta::{controller, is_deleted};
use crate::served::version_of;
use crate::write::{Write, WriteError};

/// How often a Secret is looked at that cannot be used.
const SECRET_LOOKS: Duration = Duration::from_secs(5);

/// Which domains are mapped, and which hosts the Routes have: what a change of one means for the others.
#[derive(Default)]
pub(crate) struct Domains {
    /// Domains and the mappings of them.
    mapped: Mutex<BTreeSet<(String, ObjectKey)>>,
    /// Public hosts and the Routes that have them.
    routed: Mutex<BTreeSet<(String, ObjectKey)>>,
}

/// The entries of one name.
fn of_name(entries: &Mutex<BTreeSet<(String, ObjectKey)>>, name: &str) -> Vec<ObjectKey> {
    let start = Bound::Included((name.to_owned(), ObjectKey::new("", "")));
    let entries = entries.lock();
    let found = entries.range((start, Bound::Unbounded)).take_while(|(own, _)| own == name);
    found.map(|(_, key)| key.clone()).collect()
}

/// What is known about one DomainMapping.
#[derive(Clone, Debug)]
struct Observed {
    mapping: Arc<DomainMapping>,
    claim: Option<Arc<ClusterDomainClaim>>,
    /// What the reference names in the mapping's own namespace.
    referent: Referent,
    /// A Route that has the domain as its own public host.
    occupant: Option<ObjectKey>,
    /// Whether the gateway serves this generation.
    served: bool,
    /// What the certificate lacks that the mapping names.
    certificate: Result<(), String>,
}

/// An object that a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Referent {
    /// It does not exist, or is of a kind that nobody looks for.
    Missing,
    Found {
        /// Its URL inside the cluster, once it has one.
        address: Option<String>,
        /// Whether a Route is behind it.
        routed: bool,
    },
}

fn observe(context: &Context, key: &ObjectKey) -> Option<Observed> {
    let caches = &context.caches;
    let mapping = caches.mappings.get_key(key)?;
    let claim = caches.claims.get("", &key.name);
    let referent = find(context, &mapping.spec.reference, &key.namespace).unwrap_or(Referent::Missing);
    let occupant = of_name(&context.domains.routed, &key.name).into_iter().next();
    let served = context.served_mappings.holds(key, &version_of(mapping.as_ref()));
    Some(Observed { mapping, claim, referent, occupant, served, certificate: Ok(()) })
}

/// Looks in the mapping's namespace, whatever the reference says.
fn find(context: &Context, reference: &Reference, namespace: &str) -> Option<Referent> {
    let (caches, name) = (&context.caches, &reference.name);
    let (address, routed) = match plan::Kind::of(reference)? {
        plan::Kind::Service => {
            let service = caches.services.get(namespace, name)?;
            (service.status.as_ref().and_then(|status| status.address.clone()).and_then(|address| address.url), true)
        }
        plan::Kind::Route => {
            let route = caches.routes.get(namespace, name)?;
            (route.status.as_ref().and_then(|status| status.address.clone()).and_then(|address| address.url), true)
        }
        plan::Kind::CoreService => {
            let service = caches.services_core.get(namespace, name)?;
            let address = format!("http://{name}.{namespace}.svc.{}", context.config.addresses.cluster_domain);
            (Some(address), controller(service.as_ref()).is_some_and(|owner| owner.kind == "Route"))
        }
    };
    Some(Referent::Found { address, routed })
}

/// Brings one DomainMapping's claim and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(mut observed) = observe(&context, &key) else {
        context.served_mappings.forget(&key);
        release(&context, &key).await?;
        return Ok(Outcome::Done);
    };
    if let Some(tls) = &observed.mapping.spec.tls {
        observed.certificate = look_at_secret(&context, &key.namespace, &tls.secret_name).await?;
    }
    let plan = plan::plan(&observed, &context.config.addresses, &context.live.get().network, context.now());
    if !plan.routed {
        context.served_mappings.forget(&key);
    }
    context.writer.apply_all(observed.mapping.as_ref(), &plan.writes).await?;
    if plan.routed && !observed.served {
        let version = version_of(observed.mapping.as_ref());
        let generation = version.1;
        context.served_mappings.note(&context, &context.queues.mappings, &key, version, || {
            context.gateway.mapped(MappingId::new(&key.namespace, &key.name), generation)
        });
    }
    // Secrets are not watched here, since most of them are nobody's business.
    Ok(if observed.certificate.is_ok() { Outcome::Done } else { Outcome::After(SECRET_LOOKS) })
}

/// What a Secret lacks to be a domain's certificate, in the words of the condition.
async fn look_at_secret(context: &Context, namespace: &str, name: &str) -> Result<Result<(), String>, WriteError> {
    let secrets = Api::<Secret>::namespaced(context.client.clone(), namespace);
    let found = secrets.get_opt(name).await;
    let found =
        found.map_err(|source| WriteError::Refused { write: format!("get Secret {namespace}/{name}"), source })?;
    let Some(secret) = found else { return Ok(Err(format!("Secret {name:?} not found"))) };
    let kind = secret.type_.as_deref().unwrap_or_default();
    if kind != "kubernetes.io/tls" {
        return Ok(Err(format!("Secret {name:?} is of type {kind:?}, not kubernetes.io/tls")));
    }
    let holds = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).is_some_and(|text| !text.0.is_empty());
    let lacks = ["tls.crt", "tls.key"].into_iter().find(|key| !holds(key));
    Ok(lacks.map_or(Ok(()), |key| Err(format!("Secret {name:?} has no {key}"))))
}

/// Deletes the claim that was made for a mapping that is gone.
async fn release(context: &Context, key: &ObjectKey) -> Result<(), WriteError> {
    let claim = context.caches.claims.get("", &key.name);
    let is_ours = |claim: &Arc<ClusterDomainClaim>| {
        claim.spec.namespace == key.namespace
            && claim.labels().get(AUTOCREATED_LABEL).is_some_and(|value| value == "true")
            && !is_deleted(claim.as_ref())
    };
    let Some(claim) = claim.filter(is_ours) else { return Ok(()) };
    let write = Write::Delete(claim.as_ref().clone().into());
    // The cache may be behind: others would take the domain of a mapping that is there.
    let mappings = Api::<DomainMapping>::namespaced(context.client.clone(), &key.namespace);
    let found = mappings.get_metadata_opt(&key.name).await;
    let found = found.map_err(|source| WriteError::Refused { write: write.to_string(), source })?;
    if found.is_none() {
        context.writer.apply(&write).await?;
    }
    Ok(())
}

/// Looks at a mapping that has changed.
pub(crate) fn mapping_changed(context: &Context, change: &Change<DomainMapping>) {
    let key = change.key();
    let entry = (key.name.clone(), key.clone());
    if change.new.is_some() {
        context.domains.mapped.lock().insert(entry);
    } else {
        context.domains.mapped.lock().remove(&entry);
    }
    context.queues.mappings.add(key);
}

/// Looks at all mappings of a domain, and at the one that the claim was made for, which may be gone.
pub(crate) fn claim_changed(context: &Context, change: &Change<ClusterDomainClaim>) {
    let claim = change.object();
    let domain = claim.name_any();
    wake(context, &domain);
    context.queues.mappings.add(ObjectKey::new(&claim.spec.namespace, domain));
}

/// Looks at the mappings that lead to an object of that name.
pub(crate) fn target_changed(context: &Context, key: &ObjectKey) {
    for mapping in context.caches.mappings_to.get(&key.namespace, &key.name) {
        context.queues.mappings.add(ObjectKey::of(mapping.as_ref()));
    }
}

/// Looks at the mappings that lead to a Route, and at those of the hosts that it has or had.
pub(crate) fn route_changed(context: &Context, change: &Change<Route>) {
    let key = change.key();
    target_changed(context, &key);
    let hosts = |route: Option<&Arc<Route>>| route.map(|route| public_hosts(route)).unwrap_or_default();
    let (before, now) = (hosts(change.old.as_ref()), hosts(change.new.as_ref()));
    if before == now && change.old.is_some() && change.new.is_some() {
        return;
    }
    {
        let mut routed = context.domains.routed.lock();
        for host in before.difference(&now) {
            routed.remove(&(host.clone(), key.clone()));
        }
        routed.extend(now.iter().map(|host| (host.clone(), key.clone())));
    }
    before.symmetric_difference(&now).for_each(|host| wake(context, host));
}

/// Looks at all mappings of a domain.
fn wake(context: &Context, domain: &str) {
    of_name(&context.domains.mapped, domain).into_iter().for_each(|key| context.queues.mappings.add(key));
}

/// The hosts that the public reaches a Route and its tags by.
fn public_hosts(route: &Route) -> BTreeSet<String> {
    let Some(status) = &route.status else { return BTreeSet::new() };
    if route.labels().get(VISIBILITY_LABEL).is_some_and(|visibility| visibility == "cluster-local") {
        return BTreeSet::new();
    }
    let tags = status.traffic.iter().filter_map(|target| target.url.as_deref());
    let hosts = status.url.as_deref().into_iter().chain(tags).filter_map(plan::host_of);
    hosts.filter(|host| !host.ends_with(".svc.cluster.local")).map(str::to_owned).collect()
}
