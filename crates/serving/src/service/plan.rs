//! What to write for a Service. Pure.

use api::conditions::Conditions;
use api::serving::{Configuration, Route, SERVICE_DEPENDENTS, Service, ServiceStatus, TrafficTarget};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Observed, resources};
use crate::configuration::is_taken;
use crate::meta::{adopt, is_controlled_by, is_deleted};
use crate::write::Write;

const CONFIGURATIONS_READY: &str = "ConfigurationsReady";
const ROUTES_READY: &str = "RoutesReady";

/// The writes that bring children and status up to date.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Vec<Write> {
    let service = observed.service.as_ref();
    if is_deleted(service) {
        return Vec::new();
    }
    let mut writes = Vec::new();
    writes.extend(configuration(service, observed.configuration.as_deref()));
    // Nothing may lead traffic to a Revision that only has the right name.
    if taken(observed).is_none() {
        writes.extend(route(service, observed.route.as_deref()));
    }
    let status = status(observed, now);
    if service.status.as_ref() != Some(&status) {
        writes.push(Write::Status(Service { status: Some(status), ..service.clone() }.into()));
    }
    writes
}

/// The name that the template asks for, if the Revision that bears it is none of this template.
fn taken(observed: &Observed) -> Option<String> {
    let own = |present: &&Configuration| is_controlled_by(*present, observed.service.as_ref());
    let (configuration, named) = (observed.configuration.as_deref().filter(own)?, observed.named.as_deref()?);
    // Not before the Configuration has this template.
    let current = configuration.spec.template == observed.service.spec.template;
    (current && is_taken(named, configuration)).then(|| named.name_any())
}

fn configuration(service: &Service, present: Option<&Configuration>) -> Option<Write> {
    let wanted = resources::configuration(service);
    let Some(present) = present else { return Some(Write::Create(wanted.into())) };
    if !is_controlled_by(present, service) || is_deleted(present) {
        return None;
    }
    let mut next = present.clone();
    let changed = adopt(&mut next.metadata, &wanted.metadata) | (next.spec != wanted.spec);
    next.spec = wanted.spec;
    changed.then(|| Write::Update(next.into()))
}

fn route(service: &Service, present: Option<&Route>) -> Option<Write> {
    let wanted = resources::route(service);
    let Some(present) = present else { return Some(Write::Create(wanted.into())) };
    if !is_controlled_by(present, service) || is_deleted(present) {
        return None;
    }
    let mut next = present.clone();
    let changed = adopt(&mut next.metadata, &wanted.metadata) | (next.spec != wanted.spec);
    next.spec = wanted.spec;
    changed.then(|| Write::Update(next.into()))
}

fn status(observed: &Observed, now: Timestamp) -> ServiceStatus {
    let service = observed.service.as_ref();
    let mut status = service.status.clone().unwrap_or_default();
    let mut conditions = Conditions::resume(SERVICE_DEPENDENTS, std::mem::take(&mut status.conditions), now);
    match observed.configuration.as_deref() {
        Some(present) if !is_controlled_by(present, service) => {
            not_owned(&mut conditions, CONFIGURATIONS_READY, "Configuration", service)
        }
        present => from_configuration(&mut status, &mut conditions, service, present),
    }
    match observed.route.as_deref() {
        Some(present) if !is_controlled_by(present, service) => {
            not_owned(&mut conditions, ROUTES_READY, "Route", service)
        }
        present => from_route(&mut status, &mut conditions, service, present),
    }
    if let Some(name) = taken(observed) {
        let message =
            format!("The revision name {name:?} is taken by a conflicting Revision, so traffic will not be migrated");
        conditions.mark_false(ROUTES_READY, "RevisionNameTaken", &message);
    }
    if let (Some(configuration), Some(route)) = (observed.configuration.as_deref(), observed.route.as_deref())
        && conditions.is_true(ROUTES_READY)
        && !is_migrated(configuration, route)
    {
        conditions.mark_unknown(
            ROUTES_READY,
            "TrafficNotMigrated",
            "Traffic is not yet migrated to the latest revision.",
        );
    }
    status.conditions = conditions.into_list();
    status.observed_generation = service.metadata.generation;
    status
}

fn not_owned(conditions: &mut Conditions, condition: &str, kind: &str, service: &Service) {
    let name = service.name_any();
    conditions.mark_false(condition, "NotOwned", &format!("There is an existing {kind} {name:?} that we do not own."));
}

fn out_of_date(conditions: &mut Conditions, condition: &str, kind: &str) {
    let message = format!("The {kind} is still working to reflect the latest desired specification.");
    conditions.mark_unknown(condition, "OutOfDate", &message);
}

fn from_configuration(
    status: &mut ServiceStatus,
    conditions: &mut Conditions,
    service: &Service,
    present: Option<&Configuration>,
) {
    let own = present.and_then(|present| present.status.as_ref());
    if let Some(own) = own {
        status.latest_created_revision_name = own.latest_created_revision_name.clone();
        status.latest_ready_revision_name = own.latest_ready_revision_name.clone();
    }
    // A change of the Service that has not reached the Configuration yet is not ready either.
    let current = present.is_some_and(|present| {
        present.spec.template == service.spec.template
            && own.is_some_and(|own| own.observed_generation == present.metadata.generation)
    });
    match own.and_then(|own| ready(&own.conditions)) {
        Some(ready) if current => conditions.copy_from(CONFIGURATIONS_READY, ready),
        _ => out_of_date(conditions, CONFIGURATIONS_READY, "Configuration"),
    }
}

fn from_route(status: &mut ServiceStatus, conditions: &mut Conditions, service: &Service, present: Option<&Route>) {
    let own = present.and_then(|present| present.status.as_ref());
    if let Some(own) = own {
        status.url = own.url.clone();
        status.address = own.address.clone();
        status.traffic = own.traffic.clone();
    }
    let current = present.is_some_and(|present| {
        present.spec == resources::route(service).spec
            && own.is_some_and(|own| own.observed_generation == present.metadata.generation)
    });
    match own.and_then(|own| ready(&own.conditions)) {
        Some(ready) if current => conditions.copy_from(ROUTES_READY, ready),
        _ => out_of_date(conditions, ROUTES_READY, "Route"),
    }
}

fn ready(conditions: &[api::Condition]) -> Option<&api::Condition> {
    conditions.iter().find(|condition| condition.kind == api::conditions::READY)
}

/// Whether the Route's status serves what its spec and the Configuration's latest ready Revision ask for.
fn is_migrated(configuration: &Configuration, route: &Route) -> bool {
    let Some(status) = &route.status else { return false };
    let latest = configuration.status.as_ref().and_then(|status| status.latest_ready_revision_name.clone());
    let own = Some(configuration.name_any());
    let bare = |target: &TrafficTarget, revision_name| TrafficTarget {
        revision_name,
        tag: target.tag.clone(),
        percent: Some(target.percent.unwrap_or_default()),
        ..TrafficTarget::default()
    };
    let wanted = route.spec.traffic.iter().map(|target| {
        let follows = target.configuration_name == own;
        bare(target, if follows { latest.clone() } else { target.revision_name.clone() })
    });
    let served = status.traffic.iter().map(|target| bare(target, target.revision_name.clone()));
    wanted.eq(served)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(generation: i64, spec: &Value, status: Value) -> Arc<K> {
        let owner = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello", "uid": "1",
            "controller": true});
        let metadata = json!({"name": "hello", "namespace": "default", "uid": "1", "generation": generation,
            "ownerReferences": [owner]});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap())
    }

    /// Reason of the two conditions while the children are at those generations, and traffic goes to that Revision.
    fn reasons(configuration: i64, route: i64, served: &str) -> [Option<String>; 2] {
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let template = json!({"spec": {"containers": [{"image": "a"}]}});
        let traffic = json!([{"revisionName": served, "percent": 100, "latestRevision": true}]);
        let latest = json!({"conditions": ready, "observedGeneration": 2, "latestReadyRevisionName": "hello-00002"});
        let routed = json!({"conditions": ready, "observedGeneration": 2, "traffic": traffic});
        let target = json!([{"configurationName": "hello", "latestRevision": true, "percent": 100}]);
        let observed = Observed {
            service: object(1, &json!({"template": template}), json!({})),
            configuration: Some(object(configuration, &json!({"template": template}), latest)),
            route: Some(object(route, &json!({"traffic": target}), routed)),
            named: None,
        };
        let status = status(&observed, Timestamp::UNIX_EPOCH);
        [CONFIGURATIONS_READY, ROUTES_READY].map(|kind| {
            status.conditions.iter().find(|condition| condition.kind == kind).and_then(|found| found.reason.clone())
        })
    }

    #[test]
    fn children_that_are_behind_are_not_ready() {
        let reason = |text: &str| Some(text.to_owned());
        assert_eq!(reasons(2, 2, "hello-00002"), [None, None]);
        assert_eq!(reasons(3, 2, "hello-00002"), [reason("OutOfDate"), None]);
        assert_eq!(reasons(2, 3, "hello-00002"), [None, reason("OutOfDate")]);
        assert_eq!(reasons(2, 2, "hello-00001"), [None, reason("TrafficNotMigrated")]);
    }
}
