//! Lets a claim that is being deleted go once no pod uses it, and a volume once no claim is bound to it.
//!
//! Source: Kubernetes' `pvc-protection` and `pv-protection` controllers. The API server gives both their finalizer when
//! they are created.

use std::sync::Arc;
use std::time::Duration;

use client::queue::Outcome;
use client::{Caches, ObjectKey, Queue, run_workers};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{StepError, is_conflict, unless_gone};

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
/// Time before another try after somebody else wrote first.
const STALE_PAUSE: Duration = Duration::from_millis(15);

pub(crate) fn start(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    start_claims(caches, tasks, stop);
    start_volumes(caches, tasks, stop);
}

fn start_claims(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<ObjectKey>::new();
    let claims = caches.of::<PersistentVolumeClaim>();
    let add = queue.clone();
    claims.subscribe(move |change| {
        if change.new.as_ref().is_some_and(|claim| is_waiting(claim.as_ref(), CLAIM_FINALIZER)) {
            add.add(change.key());
        }
    });
    let add = queue.clone();
    caches.of::<Pod>().subscribe(move |change| {
        if change.new.as_ref().is_none_or(|pod| is_terminated(pod)) {
            let namespace = change.key().namespace;
            for claim in claims_of(change.object()) {
                add.add(ObjectKey::new(namespace.clone(), claim));
            }
        }
    });
    let client = caches.client().clone();
    run_workers("claim protection", &queue, 1, tasks, stop, move |key: ObjectKey| {
        let (client, claim) = (client.clone(), claims.get_key(&key));
        async move {
            match claim.filter(|claim| is_waiting(claim.as_ref(), CLAIM_FINALIZER)) {
                Some(claim) => release_claim(&client, &claim, &key).await,
                None => Ok(Outcome::Done),
            }
        }
    });
}

fn start_volumes(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<ObjectKey>::new();
    let volumes = caches.of::<PersistentVolume>();
    let add = queue.clone();
    volumes.subscribe(move |change| {
        if change.new.as_ref().is_some_and(|volume| may_go(volume)) {
            add.add(change.key());
        }
    });
    let client = caches.client().clone();
    run_workers("volume protection", &queue, 1, tasks, stop, move |key: ObjectKey| {
        let (client, volume) = (client.clone(), volumes.get_key(&key));
        async move {
            match volume.filter(|volume| may_go(volume)) {
                Some(volume) => release(Api::all(client), volume.as_ref(), VOLUME_FINALIZER).await,
                None => Ok(Outcome::Done),
            }
        }
    });
}

/// Takes the finalizer away unless a pod uses the claim. The pods are asked for anew: a cache may not know yet of one
/// that has just been made. The end of a pod that is in the way brings the work back.
async fn release_claim(client: &Client, claim: &PersistentVolumeClaim, key: &ObjectKey) -> Result<Outcome, StepError> {
    let pods = Api::<Pod>::namespaced(client.clone(), &key.namespace).list(&ListParams::default()).await;
    let pods = pods.map_err(StepError::api("listing the pods that may use a claim"))?;
    if pods.items.iter().any(|pod| uses(pod, &key.name)) {
        return Ok(Outcome::Done);
    }
    release(Api::namespaced(client.clone(), &key.namespace), claim, CLAIM_FINALIZER).await
}

async fn release<K>(api: Api<K>, object: &K, finalizer: &str) -> Result<Outcome, StepError>
where
    K: Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let mut next = object.clone();
    next.finalizers_mut().retain(|name| name != finalizer);
    match api.replace(&object.name_any(), &PostParams::default(), &next).await {
        Err(error) if is_conflict(&error) => Ok(Outcome::After(STALE_PAUSE)),
        written => {
            unless_gone(written).map_err(StepError::api("removing a protection's finalizer"))?;
            Ok(Outcome::Done)
        }
    }
}

/// Whether an object is being deleted and waits for that finalizer's removal.
fn is_waiting<K: Resource>(object: &K, finalizer: &str) -> bool {
    object.meta().deletion_timestamp.is_some() && object.finalizers().iter().any(|name| name == finalizer)
}

fn may_go(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    is_waiting(volume, VOLUME_FINALIZER) && phase != Some("Bound")
}

fn uses(pod: &Pod, claim: &str) -> bool {
    !is_terminated(pod) && claims_of(pod).any(|name| name == claim)
}

fn is_terminated(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Names of the claims that a pod's volumes refer to; an ephemeral volume's claim is named after pod and volume.
fn claims_of(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => Some(claim.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", pod.name_any(), volume.name)),
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(phase: &str) -> Pod {
        let volumes = json!([
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "own", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            {"name": "scratch", "emptyDir": {}},
        ]);
        let pod = json!({
            "metadata": {"name": "web"}, "spec": {"containers": [], "volumes": volumes}, "status": {"phase": phase},
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn a_claim_is_used_by_pods_that_have_not_ended() {
        for phase in ["Pending", "Running", "Unknown"] {
            let used: Vec<bool> = ["data", "web-own", "own", "other"].map(|claim| uses(&pod(phase), claim)).into();
            assert_eq!(used, [true, true, false, false], "{phase}");
        }
        for phase in ["Succeeded", "Failed"] {
            assert!(!uses(&pod(phase), "data"), "{phase}");
        }
    }

    #[test]
    fn a_volume_goes_when_it_is_being_deleted_and_not_bound() {
        let volume = |metadata: Value, phase: &str| -> PersistentVolume {
            let volume = json!({"metadata": metadata, "spec": {}, "status": {"phase": phase}});
            serde_json::from_value(volume).unwrap()
        };
        let deleted =
            json!({"name": "v", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": [VOLUME_FINALIZER]});
        let rows = [
            (deleted.clone(), "Available", true),
            (deleted.clone(), "Released", true),
            (deleted, "Bound", false),
            (json!({"name": "v", "finalizers": [VOLUME_FINALIZER]}), "Available", false),
            (json!({"name": "v", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["a/b"]}), "Failed", false),
        ];
        for (metadata, phase, expected) in rows {
            assert_eq!(may_go(&volume(metadata.clone(), phase)), expected, "{metadata} {phase}");
        }
    }
}
