//! What a Function's status says.

use api::conditions::{Condition, ConditionStatus, Conditions, READY};
use api::functions::{BuildStatus, FUNCTION_DEPENDENTS, FunctionStatus};
use api::serving::{Revision, Service, ServiceStatus};
use jiff::Timestamp;

use super::observe::{Observed, Source};
use super::plan::belongs;
use super::resources::service;
use crate::fetch::Progress;

/// What Knative puts before a container's own last words.
const CONTAINER_PREFIX: &str = "Container failed with: ";

/// The status for what was observed.
pub fn status(observed: &Observed, now: Timestamp) -> FunctionStatus {
    let before = observed.function.status.clone().unwrap_or_default();
    let mut conditions = Conditions::resume(FUNCTION_DEPENDENTS, before.conditions.clone(), now);
    let is_current = belongs(observed);
    let service = observed.service.as_deref().filter(|_| is_current);
    let code_is_there = mark_source(observed, &mut conditions);
    if code_is_there {
        mark_service(observed, service, &mut conditions);
    }
    let known = service.and_then(|service| service.status.as_ref());
    FunctionStatus {
        observed_generation: observed.function.metadata.generation,
        conditions: conditions.into_list(),
        url: known.and_then(|status| status.url.clone()).or(before.url),
        version: known.and_then(|status| status.latest_ready_revision_name.clone()).or(before.version),
        build: build(observed),
    }
}

fn build(observed: &Observed) -> Option<BuildStatus> {
    match &observed.source {
        Source::Archive { digest } => Some(BuildStatus { state: "Succeeded".to_owned(), digest: Some(digest.clone()) }),
        Source::Image { .. } => None,
        Source::Invalid { .. } | Source::Missing { .. } | Source::Elsewhere { .. } => {
            observed.function.status.as_ref()?.build.clone()
        }
    }
}

/// Whether there is code to go on with.
fn mark_source(observed: &Observed, conditions: &mut Conditions) -> bool {
    match &observed.source {
        Source::Archive { .. } | Source::Image { .. } => {
            conditions.mark_true("SourceReady");
            conditions.mark_true("BuildReady");
            true
        }
        Source::Invalid { message } => {
            conditions.mark_false("SourceReady", "InvalidSpec", message);
            false
        }
        Source::Missing { digest } => {
            let message = format!(
                "spec.source.archive.digest: {digest} was not uploaded to this namespace; run colibri deploy DIR"
            );
            conditions.mark_false("SourceReady", "ArchiveNotFound", &message);
            false
        }
        Source::Elsewhere { url, progress: Progress::Running, .. } => {
            conditions.mark_unknown("SourceReady", "Fetching", &format!("the code is being fetched from {url}"));
            false
        }
        Source::Elsewhere { progress: Progress::Failed { message, .. }, .. } => {
            conditions.mark_false("SourceReady", "FetchFailed", message);
            false
        }
    }
}

fn mark_service(observed: &Observed, service: Option<&Service>, conditions: &mut Conditions) {
    let Some(service) = service else {
        if observed.service.is_some() {
            let name = observed.function.metadata.name.as_deref().unwrap_or_default();
            let message = format!(
                "there is a service.serving.knative.dev {name} that does not belong to this function; delete it or choose another name"
            );
            conditions.mark_unknown("RevisionReady", "ServiceNotOwned", &message);
            conditions.mark_false("RouteReady", "ServiceNotOwned", &message);
        } else {
            conditions.mark_unknown("RevisionReady", "Deploying", "the service is being made");
            conditions.mark_unknown("RouteReady", "Deploying", "the service is being made");
        }
        return;
    };
    let status = service.status.clone().unwrap_or_default();
    let wanted = wanted(observed);
    let taken = wanted.as_ref().is_none_or(|wanted| service::is_as_wanted(service, wanted));
    if !taken || status.observed_generation != service.metadata.generation {
        conditions.mark_unknown("RevisionReady", "Deploying", "the new version is being made");
        conditions.mark_unknown("RouteReady", "Deploying", "the new version is being made");
        return;
    }
    // A Service's status may for a moment name the Revision of before: its failure is not that of the new code.
    let newest = observed.revision.as_deref();
    let newest =
        newest.filter(|revision| wanted.as_ref().is_none_or(|wanted| service::is_of_template(revision, wanted)));
    mark_revision(newest, &status, conditions);
    match find(&status.conditions, "RoutesReady") {
        // What the Service says of its route is of the version before.
        _ if newest.is_some_and(|revision| is_ready(revision) && !is_routed(revision, &status)) => {
            conditions.mark_unknown("RouteReady", "Deploying", "the new version is being routed");
        }
        // A failed new version leaves the routes as they were.
        Some(routes) if routes.status == ConditionStatus::True => conditions.mark_true("RouteReady"),
        Some(routes) => conditions.copy_from("RouteReady", routes),
        None => conditions.mark_unknown("RouteReady", "Deploying", "the route is being made"),
    }
}

/// The Service that the Function asks for, where its code is there.
fn wanted(observed: &Observed) -> Option<Service> {
    Some(service::make(&observed.function, &observed.source.code()?))
}

/// What is said of the newest Revision; `None` while the newest is not made or not seen yet.
fn mark_revision(revision: Option<&Revision>, status: &ServiceStatus, conditions: &mut Conditions) {
    let Some(revision) = revision else {
        return conditions.mark_unknown("RevisionReady", "Deploying", "the new version is being made");
    };
    let known = revision.status.as_ref().and_then(|status| find(&status.conditions, READY));
    match known {
        Some(ready) if ready.status == ConditionStatus::False => {
            let message = ready.message.as_deref().unwrap_or("the version failed and did not say why");
            let message = message.strip_prefix(CONTAINER_PREFIX).unwrap_or(message).trim();
            conditions.mark_false("RevisionReady", ready.reason.as_deref().unwrap_or("RevisionFailed"), message);
        }
        Some(ready) if ready.status == ConditionStatus::True || is_routed(revision, status) => {
            conditions.mark_true("RevisionReady");
        }
        Some(ready) => conditions.copy_from("RevisionReady", ready),
        None => conditions.mark_unknown("RevisionReady", "Deploying", "the new version is starting"),
    }
}

fn is_ready(revision: &Revision) -> bool {
    let ready = revision.status.as_ref().and_then(|status| find(&status.conditions, READY));
    ready.is_some_and(|ready| ready.status == ConditionStatus::True)
}

/// Whether the Service knows that the Revision is its newest one that is ready, and so answers for its route.
fn is_routed(revision: &Revision, status: &ServiceStatus) -> bool {
    status.latest_ready_revision_name == revision.metadata.name
}

fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}
