//! Events of pods: written lazily, dropped when too many wait.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Events that wait; more are dropped.
const WAITING: usize = 256;
/// Longest message.
const MESSAGE_BYTES: usize = 1024;

/// What an event means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Something needs attention.
    Warning,
}

/// Where events are posted.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    node: String,
}

impl Events {
    /// Events of `node`, written through `client` until `stop`.
    pub fn start(node: String, client: Client, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let (queue, mut waiting) = mpsc::channel::<Event>(WAITING);
        tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = stop.cancelled() => return,
                    event = waiting.recv() => event,
                };
                let Some(event) = event else { return };
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let created = Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await;
                if let Err(error) = created {
                    debug!(%error, "an event was not taken");
                }
            }
        });
        Self { queue, node }
    }

    /// Posts an event about a pod.
    pub fn post(&self, pod: &Pod, severity: Severity, reason: &str, mut message: String) {
        while message.len() > MESSAGE_BYTES {
            message.pop();
        }
        let now = Timestamp::now();
        // As client-go names events: the object's name and the time in nanoseconds, hexadecimal.
        let name = pod.metadata.name.as_ref().map(|name| format!("{name}.{:x}", now.as_nanosecond()));
        let now = Time(now);
        let event = Event {
            metadata: ObjectMeta { name, namespace: pod.metadata.namespace.clone(), ..ObjectMeta::default() },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: pod.metadata.name.clone(),
                namespace: pod.metadata.namespace.clone(),
                uid: pod.metadata.uid.clone(),
                ..ObjectReference::default()
            },
            type_: Some(if severity == Severity::Normal { "Normal" } else { "Warning" }.into()),
            reason: Some(reason.into()),
            message: Some(message),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(self.node.clone()) }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            debug!(reason, "too many events, one is dropped");
        }
    }
}
