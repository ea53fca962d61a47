//! What to write for a Revision. Pure.

use api::autoscaling::{PodAutoscaler, PodAutoscalerStatus};
use api::conditions::{ConditionStatus, Conditions};
use api::serving::{REVISION_DEPENDENTS, Revision, RevisionStatus};
use jiff::Timestamp;

use super::digests::Resolution;
use super::failures::{self, Failure};
use super::{Observed, resources};
use crate::meta::{adopt, is_controlled_by, is_deleted};
use crate::write::Write;

const RESOURCES_AVAILABLE: &str = "ResourcesAvailable";
const CONTAINER_HEALTHY: &str = "ContainerHealthy";
const ACTIVE: &str = "Active";

/// The writes that bring PodAutoscaler and status up to date.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Vec<Write> {
    let revision = observed.revision.as_ref();
    if is_deleted(revision) {
        return Vec::new();
    }
    let mut writes = Vec::new();
    let status = status(observed, now);
    // No pod before its image is known: the PodAutoscaler makes the pods.
    if matches!(observed.images, Resolution::Done { .. }) {
        writes.extend(autoscaler(revision, &status, observed.autoscaler.as_deref()));
    }
    if revision.status.as_ref() != Some(&status) {
        let next = Revision { status: Some(status), ..revision.clone() };
        // The pods are made from the digests in the status, so that comes first.
        writes.insert(0, Write::Status(next.into()));
    }
    writes
}

fn autoscaler(revision: &Revision, status: &RevisionStatus, present: Option<&PodAutoscaler>) -> Option<Write> {
    let wanted = resources::autoscaler(revision, &status.conditions);
    let Some(present) = present else { return Some(Write::Create(wanted.into())) };
    if !is_controlled_by(present, revision) || is_deleted(present) {
        return None;
    }
    let mut next = present.clone();
    let changed = adopt(&mut next.metadata, &wanted.metadata) | (next.spec != wanted.spec);
    next.spec = wanted.spec;
    changed.then(|| Write::Update(next.into()))
}

fn status(observed: &Observed, now: Timestamp) -> RevisionStatus {
    let revision = observed.revision.as_ref();
    let mut status = revision.status.clone().unwrap_or_default();
    let mut conditions = Conditions::resume(REVISION_DEPENDENTS, std::mem::take(&mut status.conditions), now);
    match &observed.images {
        Resolution::Pending => {
            for condition in [CONTAINER_HEALTHY, RESOURCES_AVAILABLE] {
                conditions.mark_unknown(condition, "ResolvingDigests", "");
            }
        }
        Resolution::Failed { image, why } => {
            let message = format!("Unable to fetch image {image:?}: {why}");
            conditions.mark_unknown(RESOURCES_AVAILABLE, "ResolvingDigests", "");
            conditions.mark_false(CONTAINER_HEALTHY, "ContainerMissing", &message);
        }
        Resolution::Done { containers, init_containers } => {
            status.container_statuses = containers.clone();
            status.init_container_statuses = init_containers.clone();
            from_autoscaler(observed, &mut status, &mut conditions);
        }
    }
    status.log_url = observed.log_url.clone();
    status.conditions = conditions.into_list();
    status.observed_generation = revision.metadata.generation;
    status
}

fn from_autoscaler(observed: &Observed, status: &mut RevisionStatus, conditions: &mut Conditions) {
    if let Some(foreign) =
        observed.autoscaler.as_deref().filter(|present| !is_controlled_by(*present, observed.revision.as_ref()))
    {
        let name = foreign.metadata.name.as_deref().unwrap_or_default();
        let message = format!("There is an existing PodAutoscaler {name:?} that we do not own.");
        return conditions.mark_false(RESOURCES_AVAILABLE, "NotOwned", &message);
    }
    let own = observed.autoscaler.as_deref().and_then(|present| present.status.as_ref());
    status.actual_replicas = own.and_then(|own| own.actual_scale).or(Some(0));
    status.desired_replicas = own.and_then(|own| own.desired_scale).filter(|desired| *desired >= 0);
    let active = own.and_then(|own| condition(own, ACTIVE));
    match active {
        Some(active) => conditions.copy_from(ACTIVE, active),
        None => conditions.mark_unknown(ACTIVE, "Deploying", ""),
    }
    // Once it was ready it stays so, at zero and through the failure of single pods.
    if own.is_some_and(|own| is_true(own, "ScaleTargetInitialized")) {
        conditions.mark_true(RESOURCES_AVAILABLE);
        conditions.mark_true(CONTAINER_HEALTHY);
        return;
    }
    let timed_out = active
        .is_some_and(|active| active.status == ConditionStatus::False && active.reason.as_deref() == Some("TimedOut"));
    let failure = failures::of_pods(observed.pods.iter().map(AsRef::as_ref));
    match failure.or_else(|| refused(observed)) {
        Some(Failure::Resources { reason, message }) => {
            conditions.mark_false(RESOURCES_AVAILABLE, &reason, &message);
        }
        Some(Failure::Container { reason, message }) => conditions.mark_false(CONTAINER_HEALTHY, &reason, &message),
        // No pod says otherwise: what the last one told before it was stopped stays.
        None if observed.pods.is_empty()
            && (is_failed(conditions, CONTAINER_HEALTHY) || is_failed(conditions, RESOURCES_AVAILABLE)) => {}
        None if timed_out => {
            // What the containers said before they were stopped tells more than the deadline.
            if !is_failed(conditions, CONTAINER_HEALTHY) {
                let last = conditions.get(CONTAINER_HEALTHY).and_then(|condition| condition.message.as_deref());
                let last = last.filter(|last| !last.is_empty()).map(|last| format!(": {last}"));
                let message = format!("Initial scale was never achieved{}", last.unwrap_or_default());
                conditions.mark_false(RESOURCES_AVAILABLE, "ProgressDeadlineExceeded", &message);
            }
        }
        None => {
            let hint = failures::hint(observed.pods.iter().map(AsRef::as_ref)).unwrap_or_default();
            // In both: Ready shows the first of them.
            conditions.mark_unknown(RESOURCES_AVAILABLE, "Deploying", &hint);
            conditions.mark_unknown(CONTAINER_HEALTHY, "Deploying", &hint);
        }
    }
}

fn refused(observed: &Observed) -> Option<Failure> {
    let message = observed.refused.clone()?;
    Some(Failure::Resources { reason: "FailedCreate".to_owned(), message })
}

fn is_failed(conditions: &Conditions, kind: &str) -> bool {
    conditions.get(kind).is_some_and(|condition| condition.status == ConditionStatus::False)
}

fn condition<'a>(status: &'a PodAutoscalerStatus, kind: &str) -> Option<&'a api::Condition> {
    status.conditions.iter().find(|condition| condition.kind == kind)
}

fn is_true(status: &PodAutoscalerStatus, kind: &str) -> bool {
    condition(status, kind).is_some_and(|condition| condition.status == ConditionStatus::True)
}
