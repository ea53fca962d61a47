//! What is wrong with a Revision's pods, in the words of its conditions. Pure.
//!
//! Source: `knative/serving/pkg/reconciler/revision/reconcile_resources.go`, `pkg/apis/serving/v1/revision_lifecycle.go`.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodStatus};

/// Longest text of a condition's message, in bytes.
const MESSAGE_LIMIT_BYTES: usize = 2_048;

/// A failure that a condition tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// `ResourcesAvailable` is False.
    Resources {
        /// One word.
        reason: String,
        /// What a person should read.
        message: String,
    },
    /// `ContainerHealthy` is False.
    Container {
        /// One word.
        reason: String,
        /// What a person should read.
        message: String,
    },
}

/// The first failure that any of the pods shows. Pods on their way out say nothing.
pub(super) fn of_pods<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Option<Failure> {
    let live = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    live.filter_map(|pod| pod.status.as_ref()).find_map(of_status)
}

/// Why the pods are not ready yet, as far as their node can tell: what it adds to the list of unready containers.
pub(super) fn hint<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Option<String> {
    let live = pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    live.filter_map(|pod| pod.status.as_ref()).find_map(|status| {
        let unready = status.conditions.iter().flatten().find(|condition| {
            condition.type_ == "ContainersReady" && condition.reason.as_deref() == Some("ContainersNotReady")
        })?;
        let (_, text) = unready.message.as_deref()?.split_once("]: ")?;
        Some(cut(text))
    })
}

fn of_status(status: &PodStatus) -> Option<Failure> {
    unschedulable(status).or_else(|| waiting(status)).or_else(|| terminated(status))
}

fn unschedulable(status: &PodStatus) -> Option<Failure> {
    let condition = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled" && condition.status == "False" && condition.reason.is_some()
    })?;
    Some(Failure::Resources {
        reason: condition.reason.clone().unwrap_or_default(),
        message: cut(condition.message.as_deref().unwrap_or_default()),
    })
}

/// A container that cannot start for a reason that waiting alone does not cure.
fn waiting(status: &PodStatus) -> Option<Failure> {
    const FATAL: [&str; 7] = [
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
    ];
    containers(status).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.clone().filter(|reason| FATAL.contains(&reason.as_str()))?;
        Some(Failure::Resources { reason, message: cut(waiting.message.as_deref().unwrap_or_default()) })
    })
}

/// A container that ended, now or in its last run, and is not ready again.
fn terminated(status: &PodStatus) -> Option<Failure> {
    containers(status).filter(|container| !container.ready).find_map(|container| {
        let state = |state: &k8s_openapi::api::core::v1::ContainerState| state.terminated.clone();
        let ended = container.state.as_ref().and_then(state);
        let ended = ended.or_else(|| container.last_state.as_ref().and_then(state))?;
        Some(Failure::Container {
            reason: format!("ExitCode{}", ended.exit_code),
            message: format!("Container failed with: {}", cut(&why(&ended))),
        })
    })
}

fn why(ended: &ContainerStateTerminated) -> String {
    let message = ended.message.as_deref().map(str::trim).filter(|message| !message.is_empty());
    match (message, ended.reason.as_deref()) {
        (Some(message), Some("OOMKilled")) => format!("OOMKilled: {message}"),
        (Some(message), _) => message.to_owned(),
        (None, Some("OOMKilled")) => "OOMKilled: the container used more memory than its limit".to_owned(),
        (None, _) if ended.exit_code == 0 => "container exited with no error".to_owned(),
        (None, reason) => reason.unwrap_or_default().to_owned(),
    }
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &k8s_openapi::api::core::v1::ContainerStatus> {
    status.container_statuses.iter().flatten().chain(status.init_container_statuses.iter().flatten().filter(|init| {
        // An init container that did its work has ended too.
        let state = init.state.as_ref().and_then(|state| state.terminated.as_ref());
        state.is_none_or(|ended| ended.exit_code != 0)
    }))
}

/// The end of a long text: errors stand last.
fn cut(text: &str) -> String {
    let mut start = text.len().saturating_sub(MESSAGE_LIMIT_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    text[start..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn check(status: Value, wanted: Option<(&str, &str)>) {
        let pod: Pod = serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).unwrap();
        let found = of_pods([&pod]).map(|failure| match failure {
            Failure::Resources { reason, message } | Failure::Container { reason, message } => (reason, message),
        });
        let found = found.as_ref().map(|(reason, message)| (reason.as_str(), message.as_str()));
        assert_eq!(found, wanted, "{status}");
    }

    fn container(fields: Value) -> Value {
        let mut status =
            json!({ "name": "user-container", "ready": false, "restartCount": 0, "image": "", "imageID": "" });
        status.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "containerStatuses": [status] })
    }

    #[test]
    fn a_node_may_tell_why_a_pod_is_not_ready() {
        let pod = |message: &str| -> Pod {
            let condition = json!({ "type": "ContainersReady", "status": "False", "reason": "ContainersNotReady",
                "message": message });
            serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": [condition] } })).unwrap()
        };
        let unready = "containers with unready status: [user-container]";
        assert_eq!(hint([&pod(unready)]), None);
        let explained = pod(&format!("{unready}: nothing listens on port 8080"));
        assert_eq!(hint([&pod(unready), &explained]).as_deref(), Some("nothing listens on port 8080"));
    }

    #[test]
    fn pods_tell_what_is_wrong() {
        check(json!({}), None);
        check(container(json!({ "state": { "waiting": { "reason": "ContainerCreating" } } })), None);
        check(
            container(json!({ "state": { "waiting": { "reason": "ImagePullBackOff", "message": "no such image" } } })),
            Some(("ImagePullBackOff", "no such image")),
        );
        check(
            container(json!({ "state": { "terminated": { "exitCode": 1, "message": "main.py:3: SyntaxError\n" } } })),
            Some(("ExitCode1", "Container failed with: main.py:3: SyntaxError")),
        );
        check(
            container(json!({ "state": { "waiting": { "reason": "CrashLoopBackOff" } },
                "lastState": { "terminated": { "exitCode": 0 } } })),
            Some(("ExitCode0", "Container failed with: container exited with no error")),
        );
        check(
            container(json!({ "state": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } })),
            Some(("ExitCode137", "Container failed with: OOMKilled: the container used more memory than its limit")),
        );
        check(
            container(
                json!({ "ready": true, "state": { "running": {} }, "lastState": { "terminated": { "exitCode": 1 } } }),
            ),
            None,
        );
        check(
            json!({ "conditions": [{ "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/1 nodes" }] }),
            Some(("Unschedulable", "0/1 nodes")),
        );
    }

    #[test]
    fn a_long_message_keeps_its_end() {
        let text = format!("{}é!", "x".repeat(4_000));
        let kept = cut(&text);
        assert!(kept.len() <= MESSAGE_LIMIT_BYTES && kept.ends_with("é!"));
    }
}
