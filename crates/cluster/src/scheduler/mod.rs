//! Binds pods to nodes: the first node that fits and has the most room left.

mod fit;

use std::sync::Arc;

use client::{Cache, Caches, Index, ObjectKey, Queue, queue::Outcome, run_workers_after};
use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{StepError, is_conflict, is_not_found, unless_gone};

/// Pods that name another scheduler are left alone.
const SCHEDULER_NAME: &str = "default-scheduler";

pub(crate) fn start(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<ObjectKey>::new();
    let pods = caches.of::<Pod>();
    let nodes = caches.of::<Node>();
    let pending = pods.index(|pod| is_pending(pod).then(String::new));
    let (add, waiting) = (queue.clone(), pending.clone());
    pods.subscribe(move |change| {
        match &change.new {
            Some(pod) if is_pending(pod) => add.add(ObjectKey::of(pod.as_ref())),
            Some(pod) if !fit::is_finished(pod) => {}
            // Room was freed: look again at those that did not fit.
            _ => add_pending(&waiting, &add),
        }
    });
    let (add, waiting) = (queue.clone(), pending);
    nodes.subscribe(move |change| {
        let relevant = |node: &Node| (node.spec.clone(), node.metadata.labels.clone(), fit::is_ready(node));
        if change.old.as_deref().map(relevant) != change.new.as_deref().map(relevant) {
            add_pending(&waiting, &add);
        }
    });
    let client = caches.client().clone();
    let (first_pods, first_nodes) = (pods.clone(), nodes.clone());
    let ready = async move {
        first_pods.synced().await;
        first_nodes.synced().await;
    };
    run_workers_after(ready, "scheduler", &queue, 1, tasks, stop, move |key: ObjectKey| {
        let (client, pods, nodes) = (client.clone(), pods.clone(), nodes.clone());
        async move {
            match pods.get_key(&key).filter(|pod| is_pending(pod)) {
                Some(pod) => schedule(&client, &pods, &nodes, &pod).await,
                None => Ok(Outcome::Done),
            }
        }
    });
}

fn add_pending(pending: &Index<Pod>, queue: &Queue<ObjectKey>) {
    pending.keys().into_iter().for_each(|pod| queue.add(pod));
}

fn is_pending(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().unwrap_or(SCHEDULER_NAME) == SCHEDULER_NAME;
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && spec.node_name.is_none() && pod.metadata.deletion_timestamp.is_none()
}

async fn schedule(client: &Client, pods: &Cache<Pod>, nodes: &Cache<Node>, pod: &Pod) -> Result<Outcome, StepError> {
    match fit::choose(pod, &nodes.list(), &pods.list()) {
        Ok(node) => bind(client, pod, &node).await?,
        Err(why) => report_unschedulable(client, pod, &why).await?,
    }
    Ok(Outcome::Done)
}

async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<(), StepError> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let binding = Binding {
        metadata: ObjectMeta { name: Some(name.clone()), uid: pod.uid(), ..ObjectMeta::default() },
        target: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = Api::<Pod>::namespaced(client.clone(), &namespace);
    let bound =
        api.create_subresource::<_, serde_json::Value>("binding", &name, &PostParams::default(), &binding).await;
    match bound {
        // Gone, replaced or bound by now: the cache will tell.
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
        other => other.map(|_| ()).map_err(StepError::api("binding a pod")),
    }
}

async fn report_unschedulable(client: &Client, pod: &Pod, why: &str) -> Result<(), StepError> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let present = conditions.iter().find(|condition| condition.type_ == "PodScheduled");
    if present.is_some_and(|condition| condition.status == "False" && condition.message.as_deref() == Some(why)) {
        return Ok(());
    }
    let since = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let patch = json!({"status": {"conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why,
        "lastTransitionTime": since,
    }]}});
    let api = Api::<Pod>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    unless_gone(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)
        .map_err(StepError::api("saying why a pod cannot be scheduled"))
}
