//! A pod's status, made from its machine.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::machine::{Container, Ended, Machine, Phase};

/// Addresses of pod and node; the pod has none while it has no sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The pod's.
    pub pod: String,
    /// The node's.
    pub host: String,
}

/// The status of `pod`.
pub fn make(pod: &Pod, machine: &Machine, addresses: &Addresses, now: Timestamp) -> PodStatus {
    let old = pod.status.clone().unwrap_or_default();
    let has_sandbox = !addresses.pod.is_empty();
    let of_kind = |init: bool| -> Vec<ContainerStatus> {
        let wanted = machine.containers.iter().filter(|container| container.plan.init == init);
        wanted.map(|container| container_status(pod, container)).collect()
    };
    let (init, main) = (of_kind(true), of_kind(false));
    let set = |list: Vec<_>| (!list.is_empty()).then_some(list);
    PodStatus {
        phase: Some(phase(machine).into()),
        conditions: Some(conditions(&old, machine, has_sandbox, now)),
        // Empty, not absent, so that a patch clears what was there.
        pod_ip: Some(addresses.pod.clone()),
        pod_ips: Some(if has_sandbox { vec![PodIP { ip: addresses.pod.clone() }] } else { Vec::new() }),
        host_ip: Some(addresses.host.clone()),
        host_ips: Some(vec![HostIP { ip: addresses.host.clone() }]),
        start_time: old.start_time.or(Some(Time(now))),
        init_container_statuses: set(init),
        container_statuses: set(main),
        qos_class: old.qos_class,
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// Adds to the conditions that are not True what is known of the containers that are not ready: after the list of
/// their names, as in `containers with unready status: [web]: nothing listens on port 8080`.
pub fn explain(status: &mut PodStatus, hints: &BTreeMap<String, String>) {
    let text = hints.values().cloned().collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        return;
    }
    for condition in status.conditions.iter_mut().flatten() {
        if condition.reason.as_deref() == Some("ContainersNotReady") {
            condition.message = Some(format!("{}: {text}", condition.message.as_deref().unwrap_or_default()));
        }
    }
}

fn phase(machine: &Machine) -> &'static str {
    let main = || machine.containers.iter().filter(|container| !container.plan.init);
    let ended = |container: &Container| match &container.phase {
        Phase::Ended(ended) => Some(ended.code),
        _ => None,
    };
    let init_failed = |container: &Container| container.plan.init && ended(container).is_some_and(|code| code != 0);
    if machine.containers.iter().any(init_failed) {
        return "Failed";
    }
    if main().all(|container| ended(container).is_some()) {
        return if main().all(|container| ended(container) == Some(0)) { "Succeeded" } else { "Failed" };
    }
    let began = |container: &Container| container.last.is_some() || matches!(container.phase, Phase::Running { .. });
    if main().all(began) { "Running" } else { "Pending" }
}

fn conditions(old: &PodStatus, machine: &Machine, has_sandbox: bool, now: Timestamp) -> Vec<PodCondition> {
    let not_ready: Vec<&str> = machine
        .containers
        .iter()
        .filter(|container| !container.plan.init && !matches!(container.phase, Phase::Running { ready: true, .. }))
        .map(|container| container.plan.name.as_str())
        .collect();
    let ready = machine.ready();
    let why = || {
        (!ready).then(|| {
            ("ContainersNotReady".to_string(), format!("containers with unready status: [{}]", not_ready.join(" ")))
        })
    };
    let initialized = machine.initialized();
    let list = [
        ("PodReadyToStartContainers", has_sandbox, None),
        (
            "Initialized",
            initialized,
            (!initialized)
                .then(|| ("ContainersNotInitialized".to_string(), "init containers have not completed".to_string())),
        ),
        ("Ready", ready, why()),
        ("ContainersReady", ready, why()),
        ("PodScheduled", true, None),
    ];
    let kept = |kind: &str| old.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    list.into_iter()
        .map(|(kind, value, why)| {
            let status = if value { "True" } else { "False" };
            let same = kept(kind).filter(|condition| condition.status == status);
            let since = same.and_then(|condition| condition.last_transition_time.clone()).unwrap_or(Time(now));
            let (reason, message) = why.unzip();
            PodCondition {
                type_: kind.into(),
                status: status.into(),
                reason,
                message,
                last_transition_time: Some(since),
                ..PodCondition::default()
            }
        })
        .collect()
}

fn container_status(pod: &Pod, container: &Container) -> ContainerStatus {
    let name = &container.plan.name;
    let spec = pod.spec.as_ref();
    let all = spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let image = all.clone().find(|container| container.name == *name).and_then(|container| container.image.clone());
    let waiting = |reason: &str, message: &str| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.into()),
            message: (!message.is_empty()).then(|| message.into()),
        }),
        ..ContainerState::default()
    };
    let terminated =
        |ended: &Ended| ContainerState { terminated: Some(terminated(ended)), ..ContainerState::default() };
    let state = match &container.phase {
        Phase::Waiting { reason, message, .. } | Phase::Preparing { reason, message } => waiting(reason, message),
        Phase::Starting => waiting("ContainerCreating", ""),
        Phase::Running { since, .. } => ContainerState {
            running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
            ..ContainerState::default()
        },
        Phase::Ended(ended) => terminated(ended),
    };
    let (started, ready) = match container.phase {
        Phase::Running { started, ready, .. } => (started, ready),
        Phase::Ended(ref ended) => (false, container.plan.init && ended.code == 0),
        _ => (false, false),
    };
    let last = container.last.as_ref().filter(|_| !matches!(container.phase, Phase::Ended(_)));
    ContainerStatus {
        name: name.clone(),
        image: image.unwrap_or_default(),
        image_id: container.image_id.clone(),
        ready,
        started: Some(started),
        restart_count: i32::try_from(container.restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: last.map(terminated),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: ended.code,
        signal: ended.signal,
        reason: Some(ended.reason.clone()),
        message: (!ended.message.is_empty()).then(|| ended.message.clone()),
        started_at: ended.started.map(Time),
        finished_at: Some(Time(ended.finished)),
        ..ContainerStateTerminated::default()
    }
}
