//! Columns of Pods.
//!
//! Source: `k8s.io/kubernetes/pkg/printers/internalversion`, `printPod`.

use base::duration;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::is_sidecar;
use crate::kinds::columns::{Doc, age, columns as make};
use crate::kinds::json::{at, items, number, text};
use crate::resource::Columns;

/// The columns.
pub fn columns() -> Columns {
    make(
        &[
            ("Name", "string", 0, Doc::NAME),
            ("Ready", "string", 0, Doc::Own("The aggregate readiness state of this pod for accepting traffic.")),
            ("Status", "string", 0, Doc::Own("The aggregate status of the containers in this pod.")),
            (
                "Restarts",
                "string",
                0,
                Doc::Own(
                    "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
                ),
            ),
            ("Age", "string", 0, Doc::AGE),
            ("IP", "string", 1, Doc::Of("core.v1.PodStatus", "podIP")),
            ("Node", "string", 1, Doc::Of("core.v1.PodSpec", "nodeName")),
            ("Nominated Node", "string", 1, Doc::Of("core.v1.PodStatus", "nominatedNodeName")),
            ("Readiness Gates", "string", 1, Doc::Of("core.v1.PodSpec", "readinessGates")),
        ],
        cells,
    )
}

fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let state = State::of(pod);
    let restarts = match state.last_restart {
        Some(time) if state.restarts > 0 => {
            format!("{} ({} ago)", state.restarts, duration::human(now.as_second() - time.as_second()))
        }
        _ => state.restarts.to_string(),
    };
    let address = match items(pod, "status.podIPs").first() {
        Some(first) => text(first, "ip"),
        None => text(pod, "status.podIP"),
    };
    vec![
        json!(text(pod, "metadata.name")),
        json!(format!("{}/{}", state.ready, state.total)),
        json!(state.reason),
        json!(restarts),
        age(pod, now),
        or_none(address),
        or_none(text(pod, "spec.nodeName")),
        or_none(text(pod, "status.nominatedNodeName")),
        gates(pod),
    ]
}

fn gates(pod: &Value) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return json!("<none>");
    }
    let passed = gates.iter().filter(|gate| {
        let wanted = text(gate, "conditionType");
        items(pod, "status.conditions").iter().any(|c| text(c, "type") == wanted && text(c, "status") == "True")
    });
    json!(format!("{}/{}", passed.count(), gates.len()))
}

struct State {
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    reason: String,
}

impl State {
    fn of(pod: &Value) -> Self {
        let reason = match text(pod, "status.reason") {
            "" => text(pod, "status.phase"),
            reason => reason,
        };
        let mut state = Self {
            ready: 0,
            total: items(pod, "spec.containers").len(),
            restarts: 0,
            last_restart: None,
            reason: reason.to_string(),
        };
        let gated = items(pod, "status.conditions")
            .iter()
            .any(|c| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated");
        if gated {
            state.reason = "SchedulingGated".to_string();
        }
        let initialising = state.init_containers(pod);
        if !initialising {
            state.containers(pod);
        }
        if !at(pod, "metadata.deletionTimestamp").is_null() {
            let lost = text(pod, "status.reason") == "NodeLost";
            let over = matches!(text(pod, "status.phase"), "Succeeded" | "Failed");
            if lost {
                state.reason = "Unknown".into();
            } else if !over {
                state.reason = "Terminating".into();
            }
        }
        state
    }

    fn count(&mut self, status: &Value) {
        self.restarts += number(status, "restartCount").unwrap_or(0);
        let finished = text(status, "lastState.terminated.finishedAt").parse::<Timestamp>().ok();
        self.last_restart = self.last_restart.max(finished);
    }

    /// Whether the pod is still in its init containers; the reason says where.
    fn init_containers(&mut self, pod: &Value) -> bool {
        let containers = items(pod, "spec.initContainers");
        let sidecar = |name: &str| containers.iter().any(|c| text(c, "name") == name && is_sidecar(c));
        self.total += containers.iter().filter(|c| is_sidecar(c)).count();
        for (index, status) in items(pod, "status.initContainerStatuses").iter().enumerate() {
            self.count(status);
            let name = text(status, "name");
            let terminated = at(status, "state.terminated");
            if terminated.is_object() && number(terminated, "exitCode") == Some(0) {
                continue;
            }
            if sidecar(name) && at(status, "started") == &json!(true) {
                self.ready += usize::from(at(status, "ready") == &json!(true));
                continue;
            }
            self.reason = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else {
                match text(status, "state.waiting.reason") {
                    "" | "PodInitializing" => format!("Init:{index}/{}", containers.len()),
                    reason => format!("Init:{reason}"),
                }
            };
            return true;
        }
        false
    }

    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for status in items(pod, "status.containerStatuses").iter().rev() {
            self.count(status);
            let terminated = at(status, "state.terminated");
            let waiting = text(status, "state.waiting.reason");
            if !waiting.is_empty() {
                self.reason = waiting.to_string();
            } else if terminated.is_object() {
                self.reason = ended(terminated);
            } else if at(status, "ready") == &json!(true) && at(status, "state.running").is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = items(pod, "status.conditions")
                .iter()
                .any(|c| text(c, "type") == "Ready" && text(c, "status") == "True");
            self.reason = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
}

fn ended(terminated: &Value) -> String {
    let signal = number(terminated, "signal").unwrap_or(0);
    match text(terminated, "reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", number(terminated, "exitCode").unwrap_or(0)),
        reason => reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(pod: Value) -> (String, String) {
        let state = State::of(&pod);
        (format!("{}/{}", state.ready, state.total), state.reason)
    }

    #[test]
    fn status_says_what_the_containers_do() {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let rows = [
            (json!({"phase": "Pending"}), "0/1", "Pending"),
            (
                json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]}),
                "1/1",
                "Running",
            ),
            (
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
                "0/1",
                "ImagePullBackOff",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                "0/1",
                "ExitCode:3",
            ),
            (
                json!({"phase": "Pending", "initContainerStatuses": [
                    {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                    {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
                "0/1",
                "Init:1/2",
            ),
        ];
        for (status, ready, wanted) in rows {
            let got = reason(json!({"spec": spec, "status": status}));
            assert_eq!(got, (ready.to_string(), wanted.to_string()));
        }
    }
}
