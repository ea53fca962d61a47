//! The pod of a Revision.

use api::serving::annotations as keys;
use api::serving::{ContainerStatus, Revision, RevisionTemplate};
use base::names::{child_name, suffix};
use k8s_openapi::api::core::v1::{Container, ContainerPort, EnvVar, Pod, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::DEFAULT_TIMEOUT_SECONDS;
use crate::meta::{annotations_of_revision, controlled_by, labels_of_revision};

/// Port of a container that names none.
const DEFAULT_PORT: i32 = 8080;
/// Characters of a pod's own part of its name.
const SUFFIX_LENGTH: usize = 5;

/// A pod of `revision`, with a name of its own.
pub(super) fn pod(revision: &Revision, node_name: Option<&str>, random: &mut dyn FnMut() -> u8) -> Pod {
    let name = format!("{}-{}", child_name(&revision.name_any(), "-deployment"), suffix(SUFFIX_LENGTH, random));
    Pod {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: revision.namespace(),
            labels: Some(labels_of_revision(revision)),
            annotations: Some(annotations_of_revision(revision)),
            owner_references: controlled_by(revision),
            ..ObjectMeta::default()
        },
        spec: Some(spec(revision, node_name)),
        status: None,
    }
}

/// The pod that a Revision of that template would have, as far as the template says.
pub fn sample_pod(template: &RevisionTemplate, namespace: &str, name: &str) -> Pod {
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..template.metadata.clone().unwrap_or_default()
    };
    let revision = Revision { metadata, spec: template.spec.clone(), status: None };
    let mut pod = pod(&revision, None, &mut || 0);
    pod.metadata.name = Some(name.to_owned());
    pod
}

fn spec(revision: &Revision, node_name: Option<&str>) -> PodSpec {
    let mut spec = revision.spec.pod.clone();
    let status = revision.status.clone().unwrap_or_default();
    let serving = serving_container(&spec.containers);
    for (index, container) in spec.containers.iter_mut().enumerate() {
        use_digest(container, index, &status.container_statuses);
        let port = (index == serving).then(|| user_port(container));
        if let Some(port) = port {
            container.ports = Some(vec![ContainerPort { name: Some(port_name(container)), ..port.clone() }]);
            add_env(container, "PORT", &port.container_port.to_string());
            fill_probe_ports(container, port.container_port);
        }
        for (name, value) in identity(revision) {
            add_env(container, name, &value);
        }
        // What a program printed last tells why it ended, where it left no message of its own.
        if container.termination_message_policy.as_deref().is_none_or(str::is_empty) {
            container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
        }
    }
    for (index, container) in spec.init_containers.iter_mut().flatten().enumerate() {
        use_digest(container, index, &status.init_container_statuses);
    }
    let timeout = revision.spec.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    spec.termination_grace_period_seconds = Some(timeout);
    spec.enable_service_links = spec.enable_service_links.or(Some(false));
    if spec.node_name.is_none() {
        spec.node_name = node_name.map(str::to_owned);
    }
    spec
}

/// Index of the container that requests go to: the one with a port, else the first.
fn serving_container(containers: &[Container]) -> usize {
    containers.iter().position(|container| container.ports.iter().flatten().next().is_some()).unwrap_or_default()
}

fn user_port(container: &Container) -> ContainerPort {
    let given = container.ports.iter().flatten().next().cloned().unwrap_or_default();
    let container_port = if given.container_port == 0 { DEFAULT_PORT } else { given.container_port };
    ContainerPort { container_port, protocol: Some("TCP".to_owned()), ..given }
}

/// The port's name tells the protocol in a Revision; in a pod it is `user-port`, as tools expect.
fn port_name(container: &Container) -> String {
    let h2c = container.ports.iter().flatten().any(|port| port.name.as_deref() == Some("h2c"));
    if h2c { "h2c".to_owned() } else { "user-port".to_owned() }
}

fn use_digest(container: &mut Container, index: usize, statuses: &[ContainerStatus]) {
    if let Some(digest) = statuses.get(index).and_then(|status| status.image_digest.clone()) {
        container.image = Some(digest);
    }
    if container.name.is_empty() {
        container.name =
            if index == 0 { keys::USER_CONTAINER.to_owned() } else { format!("{}-{index}", keys::USER_CONTAINER) };
    }
}

fn identity(revision: &Revision) -> [(&'static str, String); 3] {
    let label = |key: &str| revision.labels().get(key).cloned().unwrap_or_default();
    [
        ("K_REVISION", revision.name_any()),
        ("K_CONFIGURATION", label(keys::CONFIGURATION_LABEL)),
        ("K_SERVICE", label(keys::SERVICE_LABEL)),
    ]
}

/// Adds a variable that the user has not set (a sidecar may set `PORT`).
fn add_env(container: &mut Container, name: &str, value: &str) {
    let env = container.env.get_or_insert_default();
    if !env.iter().any(|present| present.name == name) {
        env.push(EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None });
    }
}

/// Port 0 of a probe means the container's.
fn fill_probe_ports(container: &mut Container, port: i32) {
    let probes = [&mut container.readiness_probe, &mut container.liveness_probe, &mut container.startup_probe];
    for probe in probes.into_iter().flatten() {
        fill_probe_port(probe, port);
    }
}

fn fill_probe_port(probe: &mut Probe, port: i32) {
    let unset = |present: &IntOrString| match present {
        IntOrString::Int(number) => *number == 0,
        IntOrString::String(name) => name.is_empty(),
    };
    if let Some(action) = probe.http_get.as_mut().filter(|action| unset(&action.port)) {
        action.port = IntOrString::Int(port);
    }
    if let Some(action) = probe.tcp_socket.as_mut().filter(|action| unset(&action.port)) {
        action.port = IntOrString::Int(port);
    }
    if let Some(action) = probe.grpc.as_mut().filter(|action| action.port == 0) {
        action.port = port;
    }
    // Knative's 0 means "as fast as it makes sense"; a pod's period is at least 1 s, and the node polls a starting
    // container faster than that anyway.
    if probe.period_seconds == Some(0) {
        probe.period_seconds = None;
    }
}
