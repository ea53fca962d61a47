//! A PodAutoscaler's status. Pure.
//!
//! Source: `knative/serving/pkg/reconciler/autoscaling/kpa/kpa.go`, `pa_lifecycle.go`.

use api::autoscaling::{POD_AUTOSCALER_DEPENDENTS, PodAutoscaler, PodAutoscalerStatus};
use api::conditions::Conditions;
use autoscale::zero::Activity;
use jiff::Timestamp;

use crate::instances::Counts;

const ACTIVE: &str = "Active";
const SCALE_TARGET_INITIALIZED: &str = "ScaleTargetInitialized";

/// What the status tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) counts: Counts,
    pub(super) desired: i32,
    pub(super) activity: Activity,
    pub(super) initialized: bool,
}

/// The status that `seen` calls for, going on from the present one.
pub(super) fn status(autoscaler: &PodAutoscaler, seen: &Seen, now: Timestamp) -> PodAutoscalerStatus {
    let mut status = autoscaler.status.clone().unwrap_or_default();
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
            conditions.mark_false(ACTIVE, "TimedOut", "The target could not be activated.");
        }
        Activity::Inactive { timed_out: false, .. } => {
            conditions.mark_false(ACTIVE, "NoTraffic", "The target is not receiving traffic.");
        }
    }
    status.conditions = conditions.into_list();
    status.desired_scale = Some(seen.desired);
    status.actual_scale = Some(seen.counts.ready);
    status.observed_generation = autoscaler.metadata.generation;
    status
}
