//! What to write for a Route. Pure.

use std::time::Duration;

use api::conditions::{ConditionStatus, Conditions, READY};
use api::serving::annotations as keys;
use api::serving::{Addressable, ROUTE_DEPENDENTS, Revision, Route, RouteStatus, TrafficTarget};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service as CoreService;
use kube::ResourceExt;

use super::resources::Naming;
use super::rollout::{self, Split};
use super::{Observed, resources};
use crate::meta::{adopt, controller, is_deleted};
use crate::write::Write;

const ALL_TRAFFIC_ASSIGNED: &str = "AllTrafficAssigned";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

/// What to write, whether every target could be resolved, and when a rollout's next step is due.
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) resolved: bool,
    pub(super) next_step: Option<Duration>,
}

/// Why a target gets no traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BadTarget {
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

/// The writes that bring status, placeholders and the Revisions' routing state up to date.
pub(super) fn plan(observed: &Observed, naming: &Naming<'_>, now: Timestamp) -> Plan {
    let route = observed.route.as_ref();
    if is_deleted(route) {
        return Plan { writes: Vec::new(), resolved: true, next_step: None };
    }
    let traffic = resolve(observed, naming);
    let resolved = traffic.is_ok();
    let split = traffic.map(|traffic| rollout::split(observed, traffic, &naming.settings.network, now));
    let next_step = split.as_ref().ok().and_then(|split| split.next_step);
    let status = status(observed, split, naming, now);
    let mut writes = placeholders(observed, naming);
    // Revisions are marked before the traffic moves to them, and unmarked after it has left.
    let (marks, unmarks) = routing_states(observed, &status, now);
    writes.extend(marks);
    if route.status.as_ref() != Some(&status) {
        writes.push(Write::Status(Route { status: Some(status), ..route.clone() }.into()));
    }
    writes.extend(unmarks);
    Plan { writes, resolved, next_step }
}

/// The targets as the status shows them, each with its Revision.
fn resolve(observed: &Observed, naming: &Naming<'_>) -> Result<Vec<TrafficTarget>, BadTarget> {
    let targets = observed.route.spec.traffic.iter();
    targets.map(|target| resolve_target(observed, target, naming)).collect()
}

fn resolve_target(
    observed: &Observed,
    target: &TrafficTarget,
    naming: &Naming<'_>,
) -> Result<TrafficTarget, BadTarget> {
    let follows = target.configuration_name.as_deref().filter(|name| !name.is_empty());
    let name = match follows {
        Some(configuration) => latest_ready(observed, configuration)?,
        None => fixed(observed, target.revision_name.as_deref().unwrap_or_default())?,
    };
    let tag = target.tag.clone().filter(|tag| !tag.is_empty());
    Ok(TrafficTarget {
        url: tag.as_deref().map(|tag| resources::url(&observed.route, Some(tag), naming)),
        tag,
        revision_name: Some(name),
        configuration_name: None,
        latest_revision: Some(follows.is_some()),
        percent: Some(target.percent.unwrap_or_default()),
    })
}

fn latest_ready(observed: &Observed, name: &str) -> Result<String, BadTarget> {
    let Some(configuration) = observed.configurations.get(name) else {
        return Err(missing("ConfigurationMissing", "Configuration", name));
    };
    let status = configuration.status.as_ref();
    if let Some(latest) = status.and_then(|status| status.latest_ready_revision_name.clone()) {
        return if observed.revisions.contains_key(&latest) {
            Ok(latest)
        } else {
            Err(missing("RevisionMissing", "Revision", &latest))
        };
    }
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.kind == READY);
    Err(match ready.map(|ready| ready.status) {
        Some(ConditionStatus::False) => BadTarget {
            status: ConditionStatus::False,
            reason: "RevisionMissing",
            message: format!("Configuration {name:?} does not have any ready Revision."),
        },
        _ => BadTarget {
            status: ConditionStatus::Unknown,
            reason: "RevisionMissing",
            message: format!("Configuration {name:?} is waiting for a Revision to become ready."),
        },
    })
}

fn fixed(observed: &Observed, name: &str) -> Result<String, BadTarget> {
    let Some(revision) = observed.revisions.get(name) else {
        return Err(missing("RevisionMissing", "Revision", name));
    };
    let conditions = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.kind == READY).map(|ready| ready.status);
    match ready.unwrap_or_default() {
        ConditionStatus::True => Ok(name.to_owned()),
        status @ ConditionStatus::False => Err(BadTarget {
            status,
            reason: "RevisionMissing",
            message: format!("Revision {name:?} failed to become ready."),
        }),
        status @ ConditionStatus::Unknown => Err(BadTarget {
            status,
            reason: "RevisionMissing",
            message: format!("Revision {name:?} is not yet ready."),
        }),
    }
}

fn missing(reason: &'static str, kind: &str, name: &str) -> BadTarget {
    let message = format!("{kind} {name:?} referenced in traffic not found.");
    BadTarget { status: ConditionStatus::False, reason, message }
}

fn status(observed: &Observed, split: Result<Split, BadTarget>, naming: &Naming<'_>, now: Timestamp) -> RouteStatus {
    let route = observed.route.as_ref();
    let mut status = route.status.clone().unwrap_or_default();
    let mut conditions = Conditions::resume(ROUTE_DEPENDENTS, std::mem::take(&mut status.conditions), now);
    status.url = Some(resources::url(route, None, naming));
    status.address = Some(Addressable { url: Some(resources::local_url(route, naming)) });
    conditions.mark_true_with(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
    let rolls_out = split.as_ref().is_ok_and(|split| split.in_progress);
    match split {
        Ok(split) => {
            status.traffic = split.traffic;
            match split.state {
                Some(state) => status.annotations.insert(keys::ROLLOUT_ANNOTATION.to_owned(), state),
                None => status.annotations.remove(keys::ROLLOUT_ANNOTATION),
            };
            conditions.mark_true(ALL_TRAFFIC_ASSIGNED);
        }
        Err(bad) if bad.status == ConditionStatus::False => {
            conditions.mark_false(ALL_TRAFFIC_ASSIGNED, bad.reason, &bad.message);
        }
        Err(bad) => conditions.mark_unknown(ALL_TRAFFIC_ASSIGNED, bad.reason, &bad.message),
    }
    if let Some(foreign) = foreign_placeholder(observed) {
        let message = format!("There is an existing placeholder Service {foreign:?} that we do not own.");
        conditions.mark_false(INGRESS_READY, "NotOwned", &message);
    } else if rolls_out {
        let message = "A gradual rollout of the latest revision(s) is in progress.";
        conditions.mark_unknown(INGRESS_READY, "RolloutInProgress", message);
    } else if observed.programmed && conditions.is_true(ALL_TRAFFIC_ASSIGNED) {
        conditions.mark_true(INGRESS_READY);
    } else if !(conditions.is_true(INGRESS_READY) && status.observed_generation == route.metadata.generation) {
        conditions.mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
    }
    status.conditions = conditions.into_list();
    status.observed_generation = route.metadata.generation;
    status
}

fn foreign_placeholder(observed: &Observed) -> Option<&String> {
    let own = observed.route.uid();
    let mut placeholders = observed.placeholders.iter();
    let owner = |service: &CoreService| controller(service).map(|owner| owner.uid.clone());
    placeholders.find(|(_, service)| owner(service.as_ref()) != own).map(|(name, _)| name)
}

fn placeholders(observed: &Observed, naming: &Naming<'_>) -> Vec<Write> {
    let route = observed.route.as_ref();
    let names = resources::placeholder_names(route, naming.settings);
    let mut writes = Vec::new();
    for name in &names {
        let wanted = resources::placeholder(route, name, naming);
        match observed.placeholders.get(name) {
            None => writes.push(Write::Create(wanted.into())),
            Some(present) if controller(present.as_ref()).map(|owner| &owner.uid) == route.metadata.uid.as_ref() => {
                let mut next = present.as_ref().clone();
                let host = |service: &CoreService| service.spec.as_ref().and_then(|spec| spec.external_name.clone());
                let moved = host(&next) != host(&wanted);
                if adopt(&mut next.metadata, &wanted.metadata) | moved {
                    if moved {
                        next.spec = wanted.spec;
                    }
                    writes.push(Write::Update(next.into()));
                }
            }
            Some(_) => {}
        }
    }
    let gone = observed
        .owned_placeholders
        .iter()
        .filter(|service| !names.contains(&service.name_any()) && !is_deleted(service.as_ref()));
    writes.extend(gone.map(|service| Write::Delete(service.as_ref().clone().into())));
    writes
}

/// Marks the Revisions that the Route names as active, and then those that it has left as reserve.
fn routing_states(observed: &Observed, status: &RouteStatus, now: Timestamp) -> (Vec<Write>, Vec<Write>) {
    let route = observed.route.name_any();
    let named = |revision: &Revision| {
        let name = revision.name_any();
        let shown = status.traffic.iter().any(|target| target.revision_name.as_ref() == Some(&name));
        shown || observed.route.spec.traffic.iter().any(|target| target.revision_name.as_ref() == Some(&name))
    };
    // A Revision that never had traffic bears its Route's name from birth; while it is the newest it may yet get some.
    // One that was just born its Configuration's status does not know yet.
    let newest = |revision: &Revision| {
        let name = revision.name_any();
        let generation = revision.labels().get(keys::CONFIGURATION_GENERATION_LABEL).and_then(|text| text.parse().ok());
        observed.configurations.values().any(|configuration| {
            let status = configuration.status.as_ref();
            let is_latest = status.and_then(|status| status.latest_created_revision_name.as_ref()) == Some(&name);
            let is_own = revision.labels().get(keys::CONFIGURATION_LABEL) == Some(&configuration.name_any());
            is_latest || (is_own && generation >= configuration.metadata.generation)
        })
    };
    let pending = |revision: &Revision| {
        revision.labels().get(keys::ROUTING_STATE_LABEL).is_some_and(|state| state == "pending") && newest(revision)
    };
    let active = observed.revisions.values().filter(|revision| named(revision));
    let left = observed.routed.iter().filter(|revision| !named(revision) && !pending(revision));
    (
        active.filter_map(|revision| routing_state(revision, &route, true, now)).collect(),
        left.filter_map(|revision| routing_state(revision, &route, false, now)).collect(),
    )
}

fn routing_state(revision: &Revision, route: &str, active: bool, now: Timestamp) -> Option<Write> {
    let state = revision.labels().get(keys::ROUTING_STATE_LABEL).map(String::as_str);
    if is_deleted(revision) {
        return None;
    }
    let present = revision.annotations().get(keys::ROUTES_ANNOTATION).map(String::as_str).unwrap_or_default();
    let mut routes: Vec<&str> = present.split(',').filter(|name| !name.is_empty() && *name != route).collect();
    if active {
        routes.push(route);
    }
    routes.sort_unstable();
    let wanted = if routes.is_empty() { "reserve" } else { "active" };
    let joined = routes.join(",");
    if state == Some(wanted) && present == joined {
        return None;
    }
    let mut next = revision.clone();
    if state != Some(wanted) {
        let modified = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
        next.labels_mut().insert(keys::ROUTING_STATE_LABEL.to_owned(), wanted.to_owned());
        next.annotations_mut().insert(keys::ROUTING_STATE_MODIFIED_ANNOTATION.to_owned(), modified);
    }
    if joined.is_empty() {
        next.annotations_mut().remove(keys::ROUTES_ANNOTATION);
    } else {
        next.annotations_mut().insert(keys::ROUTES_ANNOTATION.to_owned(), joined);
    }
    Some(Write::Update(next.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use api::config::Settings;
    use serde_json::{Value, json};

    use super::*;
    use crate::config::Addresses;

    fn revision(name: &str, generation: &str, state: &str) -> Arc<Revision> {
        let revision = json!({
            "metadata": {
                "name": name, "namespace": "default", "annotations": {keys::ROUTES_ANNOTATION: "c"},
                "labels": {
                    keys::ROUTING_STATE_LABEL: state, keys::CONFIGURATION_LABEL: "c",
                    keys::CONFIGURATION_GENERATION_LABEL: generation,
                },
            },
            "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        Arc::new(serde_json::from_value(revision).unwrap())
    }

    /// A Route that serves `shown` and follows its Configuration, which has that generation and status.
    fn observed(generation: i64, status: Value, shown: &str, routed: &[Arc<Revision>]) -> Observed {
        let meta = json!({"name": "c", "namespace": "default", "generation": generation});
        let route = json!({
            "metadata": meta, "spec": {"traffic": [{"configurationName": "c", "percent": 100}]},
            "status": {"traffic": [{"revisionName": shown, "latestRevision": true, "percent": 100}]},
        });
        let latest = status["latestReadyRevisionName"].clone();
        let configuration = json!({"metadata": meta, "spec": {"template": {"spec": {}}}, "status": status});
        let named = routed.iter().filter(|revision| latest == revision.name_any());
        Observed {
            route: Arc::new(serde_json::from_value(route).unwrap()),
            configurations: [("c".to_owned(), Arc::new(serde_json::from_value(configuration).unwrap()))].into(),
            revisions: named.map(|revision| (revision.name_any(), revision.clone())).collect(),
            routed: routed.to_vec(),
            placeholders: BTreeMap::new(),
            owned_placeholders: Vec::new(),
            programmed: true,
        }
    }

    fn writes(observed: &Observed) -> Vec<String> {
        let naming = Naming { addresses: &Addresses::default(), settings: &Settings::default() };
        let plan = plan(observed, &naming, Timestamp::UNIX_EPOCH);
        plan.writes.iter().skip(1).map(ToString::to_string).collect()
    }

    #[test]
    fn a_revision_is_left_after_the_traffic_has_left_it() {
        let routed = [revision("c-1", "1", "active"), revision("c-2", "2", "pending")];
        let status = json!({"latestReadyRevisionName": "c-2", "latestCreatedRevisionName": "c-2"});
        let wanted = ["update Revision default/c-2", "status Route default/c", "update Revision default/c-1"];
        assert_eq!(writes(&observed(2, status, "c-1", &routed)), wanted);
    }

    #[test]
    fn a_revision_that_was_just_born_is_not_left() {
        let routed = [revision("c-1", "1", "active"), revision("c-2", "2", "pending")];
        let status = json!({"latestReadyRevisionName": "c-1", "latestCreatedRevisionName": "c-1"});
        for generation in [1, 2] {
            let told = writes(&observed(generation, status.clone(), "c-1", &routed));
            assert!(!told.iter().any(|write| write.contains("c-2")), "{told:?}");
        }
        // One that was overtaken before it had any traffic is.
        let told = writes(&observed(3, status, "c-1", &routed));
        assert!(told.iter().any(|write| write == "update Revision default/c-2"), "{told:?}");
    }
}
