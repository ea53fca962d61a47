//! Which pods to make, to delete and to let the gateway retire. Pure.

use k8s_openapi::api::core::v1::Pod;

use super::{Observed, resources};
use crate::meta::is_deleted;
use crate::write::Write;

/// Most pods that one pass makes; the next pass follows at once when they appear.
const CREATE_LIMIT: usize = 100;

/// What to do about the number of pods.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) create: Vec<Write>,
    pub(super) delete: Vec<Write>,
    pub(super) retire: usize,
}

/// Whether the pod counts: it runs or may still run.
pub(super) fn is_live(pod: &Pod) -> bool {
    !is_deleted(pod) && !is_finished(pod)
}

/// Whether the pod ended for good, so that another must stand in.
fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether the pod's condition `Ready` is True.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn has_address(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.pod_ip.as_ref().is_some_and(|address| !address.is_empty()))
}

/// Brings the number of pods to what is wanted.
pub(super) fn plan(observed: &Observed, node_name: Option<&str>, random: &mut dyn FnMut() -> u8) -> Plan {
    let mut plan = Plan::default();
    // The pods of a Revision that is gone are the garbage collector's.
    let Some(revision) = observed.revision.as_deref().filter(|revision| !is_deleted(*revision)) else { return plan };
    let finished = observed.pods.iter().filter(|pod| is_finished(pod) && !is_deleted(pod.as_ref()));
    plan.delete.extend(finished.map(|pod| Write::Delete(pod.as_ref().clone().into())));
    let Some(wanted) = observed.wanted.and_then(|wanted| usize::try_from(wanted).ok()) else { return plan };
    let live: Vec<&Pod> = observed.pods.iter().map(AsRef::as_ref).filter(|pod| is_live(pod)).collect();
    let staying = live.len().saturating_sub(observed.retiring);
    let present = staying + observed.expected;
    if wanted > present {
        // One that is drained, or whose deletion is under way, still takes its place.
        let room = observed.limit.saturating_sub(observed.occupied + observed.expected);
        let missing = (wanted - present).min(CREATE_LIMIT).min(room);
        plan.create.extend((0..missing).map(|_| Write::Create(resources::pod(revision, node_name, random).into())));
        return plan;
    }
    // Pods that were only asked for are decided on once they are there.
    let surplus = staying.saturating_sub(wanted);
    scale_in(&mut plan, live, surplus, observed.unknown_to_gateway);
    plan
}

/// Removes pods that cannot have a request at once, and leaves the others to the gateway.
fn scale_in(plan: &mut Plan, mut live: Vec<&Pod>, surplus: usize, gateway_knows_none: bool) {
    // Newest first: what has not started costs nothing to stop.
    live.sort_by_key(|pod| (is_ready(pod), has_address(pod), std::cmp::Reverse(created(pod))));
    let free = live.into_iter().filter(|pod| !has_address(pod) || gateway_knows_none);
    let deleted = plan.delete.len();
    // Only as it was seen: by now it may have an address, and then requests.
    plan.delete.extend(free.take(surplus).map(|pod| Write::DeleteUnchanged(pod.clone().into())));
    plan.retire = surplus - (plan.delete.len() - deleted);
}

fn created(pod: &Pod) -> Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time> {
    pod.metadata.creation_timestamp.clone()
}
