//! How far the instances have come that a request waits for, by what their pods' status says.

use std::fmt;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

/// What keeps requests waiting; of several instances the one that has come furthest counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// There is no pod.
    #[default]
    Missing,
    /// A pod has no node.
    Scheduling(String),
    /// An image is not there.
    Pulling(String),
    /// Containers are being made, or end as soon as they run.
    Starting(String),
    /// The containers run, and the readiness probe has not succeeded.
    NotReady,
    /// Instances are in rotation, each with as many requests as it may have.
    Busy,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, reason) = match self {
            Self::Missing => ("no instance has been created", ""),
            Self::Scheduling(reason) => ("its instance waits for a node", reason.as_str()),
            Self::Pulling(reason) => ("its instance is pulling an image", reason.as_str()),
            Self::Starting(reason) => ("its instance is starting", reason.as_str()),
            Self::NotReady => ("its instance runs and is not ready", ""),
            Self::Busy => ("all instances are busy", ""),
        };
        f.write_str(text)?;
        if reason.is_empty() { Ok(()) } else { write!(f, " ({reason})") }
    }
}

impl Stage {
    /// How far one pod has come, short of being in rotation.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        let conditions = || status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        let unscheduled = |condition: &&PodCondition| condition.type_ == "PodScheduled" && condition.status == "False";
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if let Some(condition) = conditions().find(unscheduled) {
            return Self::Scheduling(condition.reason.clone().unwrap_or_default());
        }
        let containers = status.map(|s| s.init_container_statuses.iter().chain(&s.container_statuses).flatten());
        let containers: Vec<&ContainerStatus> = containers.into_iter().flatten().collect();
        if containers.is_empty() && node.is_empty() {
            return Self::Scheduling(String::new());
        }
        let stages = containers.iter().filter_map(|container| Self::of_container(container));
        let running = |container: &&ContainerStatus| container.state.as_ref().is_some_and(|s| s.running.is_some());
        let all = if containers.iter().any(running) { Self::NotReady } else { Self::Starting(String::new()) };
        stages.min().unwrap_or(all)
    }

    /// What keeps a container that waits.
    fn of_container(container: &ContainerStatus) -> Option<Self> {
        let state = container.state.as_ref()?;
        if let Some(waiting) = &state.waiting {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let pulls =
                reason.contains("Image") || waiting.message.as_deref().is_some_and(|m| m.starts_with("pulling "));
            return Some(match reason {
                _ if pulls => Self::Pulling(if reason.contains("Image") { reason.to_owned() } else { String::new() }),
                // What every container goes through says nothing.
                "ContainerCreating" | "PodInitializing" => Self::Starting(String::new()),
                _ => Self::Starting(reason.to_owned()),
            });
        }
        let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
        Some(Self::Starting(ended.reason.clone().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(status: &Value, want: &str) {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": []}, "status": status});
        assert_eq!(Stage::of(&serde_json::from_value(pod).unwrap()).to_string(), want, "{status}");
    }

    #[test]
    fn the_container_that_is_behind_names_the_stage() {
        let of = |states: &[Value]| {
            let named = states.iter().map(|state| {
                json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state})
            });
            json!({"containerStatuses": named.collect::<Vec<_>>()})
        };
        let waiting = |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
        let running = json!({"running": {}});
        check(&json!({}), "its instance is starting");
        check(&of(&[waiting("ContainerCreating", "")]), "its instance is starting");
        check(&of(&[waiting("ContainerCreating", "pulling image \"a\"")]), "its instance is pulling an image");
        check(
            &of(&[running.clone(), waiting("ImagePullBackOff", "x")]),
            "its instance is pulling an image (ImagePullBackOff)",
        );
        check(&of(&[waiting("CrashLoopBackOff", "")]), "its instance is starting (CrashLoopBackOff)");
        check(&of(&[json!({"terminated": {"exitCode": 1, "reason": "Error"}})]), "its instance is starting (Error)");
        check(&of(&[running]), "its instance runs and is not ready");
        let unscheduled = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"});
        check(&json!({"conditions": [unscheduled]}), "its instance waits for a node (Unschedulable)");
    }

    #[test]
    fn a_pod_that_nobody_has_placed_waits_for_a_node() {
        let pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": []}})).unwrap();
        assert_eq!(Stage::of(&pod), Stage::Scheduling(String::new()));
        assert!(Stage::NotReady > Stage::Starting("z".into()) && Stage::Missing < Stage::Scheduling(String::new()));
    }
}
