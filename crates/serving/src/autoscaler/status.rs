//! A PodAutoscaler's status. Pure.
//!
//! Source: `knative/serving/pkg/reconciler/autoscaling/kpa/kpa.go`, `pa_lifecycle.go`.

use api::autoscaling::{POD_AUTOSCALER_DEPENDENTS, PodAutoscalerStatus};
use api::conditions::{ConditionStatus, Conditions};
use autoscale::zero::Activity;
use jiff::Timestamp;

use super::scaler::{Advice, Restored};
use crate::instances::Counts;

const ACTIVE: &str = "Active";
const SCALE_TARGET_INITIALIZED: &str = "ScaleTargetInitialized";
/// Whether what the pods use is known, where it decides. The name and the reasons are the horizontal autoscaler's.
const SCALING_ACTIVE: &str = "ScalingActive";

/// Reason of an activation that took too long.
const TIMED_OUT: &str = "TimedOut";

/// What the status tells of the time before this process started.
pub(super) fn restored(status: Option<&PodAutoscalerStatus>, now: Timestamp) -> Restored {
    let conditions = status.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let find = |kind: &str| conditions.iter().find(|condition| condition.kind == kind);
    let active = find(ACTIVE);
    let activating = active.filter(|active| active.status == ConditionStatus::Unknown);
    let since = activating.and_then(|active| active.last_transition_time);
    Restored {
        initialized: find(SCALE_TARGET_INITIALIZED).is_some_and(|found| found.status == ConditionStatus::True),
        timed_out: active.is_some_and(|active| {
            active.status == ConditionStatus::False && active.reason.as_deref() == Some(TIMED_OUT)
        }),
        activating_for: since.and_then(|since| now.duration_since(since).try_into().ok()).unwrap_or_default(),
    }
}

/// What the status tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) counts: Counts,
    pub(super) desired: i32,
    pub(super) activity: Activity,
    pub(super) initialized: bool,
    pub(super) advice: Option<Advice>,
}

/// The status that `seen` calls for in that generation, going on from the present one.
pub(super) fn status(
    present: Option<&PodAutoscalerStatus>,
    generation: Option<i64>,
    seen: &Seen,
    now: Timestamp,
) -> PodAutoscalerStatus {
    let mut status = present.cloned().unwrap_or_default();
    let list = std::mem::take(&mut status.conditions);
    let mut conditions = Conditions::resume(POD_AUTOSCALER_DEPENDENTS, list, now);
    if seen.initialized {
        conditions.mark_true(SCALE_TARGET_INITIALIZED);
    }
    match seen.activity {
        Activity::Active { .. } => conditions.mark_true(ACTIVE),
        Activity::Activating { .. } => conditions.mark_unknown(
            ACTIVE,
            "Queued",
            "Requests to the target are being buffered as resources are provisioned.",
        ),
        Activity::Inactive { timed_out: true, .. } => {
            conditions.mark_false(ACTIVE, TIMED_OUT, "The target could not be activated.");
        }
        Activity::Inactive { timed_out: false, .. } => {
            conditions.mark_false(ACTIVE, "NoTraffic", "The target is not receiving traffic.");
        }
    }
    match &seen.advice {
        Some(Advice::Given) => conditions.mark_true(SCALING_ACTIVE),
        Some(Advice::Missing { reason, message }) => conditions.mark_false(SCALING_ACTIVE, reason, message),
        None => {}
    }
    status.conditions = conditions.into_list();
    status.desired_scale = Some(seen.desired);
    status.actual_scale = Some(seen.counts.ready);
    status.observed_generation = generation;
    status
}
