//! What to write for a Configuration. Pure.

use api::conditions::{Condition, ConditionStatus, Conditions, READY};
use api::serving::annotations::CONFIGURATION_GENERATION_LABEL;
use api::serving::{CONFIGURATION_DEPENDENTS, Configuration, ConfigurationStatus, Revision};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Observed, is_taken, resources};
use crate::meta::{is_controlled_by, is_deleted};
use crate::write::Write;

/// The writes that bring the Revision and the status up to date.
pub(super) fn plan(observed: &Observed, now: Timestamp) -> Vec<Write> {
    let configuration = observed.configuration.as_ref();
    if is_deleted(configuration) {
        return Vec::new();
    }
    let mut writes = Vec::new();
    if observed.named.is_none() && !was_deleted(configuration) {
        writes.push(Write::Create(resources::revision(configuration, now).into()));
    }
    let status = status(observed, now);
    if configuration.status.as_ref() != Some(&status) {
        writes.push(Write::Status(Configuration { status: Some(status), ..configuration.clone() }.into()));
    }
    writes
}

/// Whether the Revision of this generation was seen before and is gone: it is not made again.
fn was_deleted(configuration: &Configuration) -> bool {
    configuration.status.as_ref().is_some_and(|status| {
        status.observed_generation == configuration.metadata.generation
            && status.latest_created_revision_name.as_ref() == Some(&resources::revision_name(configuration))
    })
}

fn status(observed: &Observed, now: Timestamp) -> ConfigurationStatus {
    let configuration = observed.configuration.as_ref();
    let name = resources::revision_name(configuration);
    let mut status = configuration.status.clone().unwrap_or_default();
    let mut conditions = Conditions::resume(CONFIGURATION_DEPENDENTS, std::mem::take(&mut status.conditions), now);
    let latest = observed.named.as_deref().filter(|named| !is_taken(named, configuration));
    match latest {
        None if observed.named.is_some() => {
            let taken = format!("revisions.serving.knative.dev {name:?} already exists");
            let message = format!("Revision creation failed with message: {taken}.");
            conditions.mark_false(READY, "RevisionFailed", &message);
        }
        None if was_deleted(configuration) => {
            conditions.mark_false(READY, "RevisionDeleted", &format!("Revision {name:?} was deleted."));
        }
        None => conditions.mark_unknown(READY, "", ""),
        Some(latest) => {
            status.latest_created_revision_name = Some(name.clone());
            from_revision(&mut conditions, latest, &name);
        }
    }
    status.latest_ready_revision_name = latest_ready(observed, status.latest_ready_revision_name.take());
    status.conditions = conditions.into_list();
    status.observed_generation = configuration.metadata.generation;
    status
}

fn from_revision(conditions: &mut Conditions, latest: &Revision, name: &str) {
    match ready(latest) {
        Some(ready) if ready.status == ConditionStatus::True => conditions.mark_true(READY),
        Some(ready) if ready.status == ConditionStatus::False => {
            let why = ready.message.as_deref().unwrap_or_default();
            let message = format!("Revision {name:?} failed with message: {why}.");
            conditions.mark_false(READY, "RevisionFailed", &message);
        }
        _ => conditions.mark_unknown(READY, "", ""),
    }
}

/// The newest Revision that is ready. It never goes back to an older one: `present` stays until a newer one is ready,
/// unless it is gone.
fn latest_ready(observed: &Observed, present: Option<String>) -> Option<String> {
    let configuration = observed.configuration.as_ref();
    let own = observed.revisions.iter().filter(|revision| is_controlled_by(revision.as_ref(), configuration));
    let candidates = own.filter(|revision| {
        let is_present = Some(revision.name_any()) == present;
        is_present || ready(revision).is_some_and(|ready| ready.status == ConditionStatus::True)
    });
    candidates.max_by_key(|revision| generation_label(revision)).map(|revision| revision.name_any())
}

fn generation_label(revision: &Revision) -> i64 {
    let label = revision.labels().get(CONFIGURATION_GENERATION_LABEL);
    label.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn ready(revision: &Revision) -> Option<&Condition> {
    revision.status.as_ref()?.conditions.iter().find(|condition| condition.kind == READY)
}
