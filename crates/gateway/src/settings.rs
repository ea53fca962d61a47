//! What the gateway needs to know of a Revision, parsed once.

use std::sync::Arc;
use std::time::Duration;

use api::serving::annotations::{self, AFFINITY_COOKIE, CONFIGURATION_LABEL, SERVICE_LABEL, SESSION_AFFINITY};
use api::serving::{Revision, RevisionSpec};
use http::{HeaderName, HeaderValue};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe as PodProbe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

/// Port that a container listens on where its spec names none.
///
/// Source: Knative runtime contract, environment variable `PORT`.
const DEFAULT_PORT: u16 = 8080;
/// Source: Knative Serving, config-defaults `revision-timeout-seconds`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// How requests reach the instances of one Revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Most requests in flight for each instance; 0 is no limit.
    pub concurrency: u32,
    /// Longest time that a request may take once an instance has it, and longest time that it waits for one.
    pub timeout: Duration,
    /// Longest time until the response starts.
    pub response_start_timeout: Option<Duration>,
    /// Longest time without a byte of the response.
    pub idle_timeout: Option<Duration>,
    /// Port that the serving container listens on.
    pub port: u16,
    /// Protocol that it speaks.
    pub protocol: Protocol,
    /// How to see that it is ready.
    pub probe: Probe,
    /// Whether a client's requests go to the instance that served it first.
    pub affinity: bool,
    /// Service that the Revision belongs to; empty without one.
    pub service: Arc<str>,
    /// Configuration that the Revision belongs to; empty without one.
    pub configuration: Arc<str>,
}

/// Protocol spoken to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge: the port's name is `h2c`.
    H2c,
}

/// How an instance shows that it is ready.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// It takes a TCP connection.
    Tcp {
        /// Port to connect to.
        port: u16,
    },
    /// It answers a GET with a status from 200 to 399.
    Http {
        /// Port to connect to.
        port: u16,
        /// Path and query.
        path: String,
        /// Value of the Host header; the address where unset.
        host: Option<String>,
        /// Further headers.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
    /// Its node says so (exec and gRPC probes), and its port takes a TCP connection.
    Node,
}

impl Settings {
    /// Reads a Revision. What is missing gets Knative's default.
    pub fn of(revision: &Revision) -> Self {
        let spec = &revision.spec;
        let container = serving_container(spec);
        let (port, protocol) = port_of(container);
        let label = |key| Arc::from(revision.labels().get(key).map_or("", String::as_str));
        Self {
            concurrency: spec.container_concurrency.and_then(|n| u32::try_from(n).ok()).unwrap_or(0),
            timeout: seconds(spec.timeout_seconds).unwrap_or(DEFAULT_TIMEOUT),
            response_start_timeout: seconds(spec.response_start_timeout_seconds),
            idle_timeout: seconds(spec.idle_timeout_seconds),
            port,
            protocol,
            probe: probe_of(container.and_then(|c| c.readiness_probe.as_ref()), port),
            affinity: annotations::value(revision.annotations(), SESSION_AFFINITY) == Some(AFFINITY_COOKIE),
            service: label(SERVICE_LABEL),
            configuration: label(CONFIGURATION_LABEL),
        }
    }
}

/// 0 and absent both mean "not set".
fn seconds(value: Option<i64>) -> Option<Duration> {
    value.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0).map(Duration::from_secs)
}

/// The one container with a port; where none has one, the first.
fn serving_container(spec: &RevisionSpec) -> Option<&Container> {
    let with_port = |c: &&Container| c.ports.as_ref().is_some_and(|ports| !ports.is_empty());
    spec.pod.containers.iter().find(with_port).or(spec.pod.containers.first())
}

fn port_of(container: Option<&Container>) -> (u16, Protocol) {
    let port = container.and_then(|c| c.ports.as_ref()).and_then(|ports| ports.first());
    let number = port.and_then(|p| valid_port(p.container_port)).unwrap_or(DEFAULT_PORT);
    let h2c = port.and_then(|p| p.name.as_deref()) == Some("h2c");
    (number, if h2c { Protocol::H2c } else { Protocol::Http1 })
}

fn probe_of(probe: Option<&PodProbe>, port: u16) -> Probe {
    let Some(probe) = probe else {
        return Probe::Tcp { port };
    };
    if let Some(get) = &probe.http_get {
        return http_probe(get, port);
    }
    if probe.exec.is_some() || probe.grpc.is_some() {
        return Probe::Node;
    }
    let named = probe.tcp_socket.as_ref().and_then(|socket| numbered(&socket.port));
    Probe::Tcp { port: named.unwrap_or(port) }
}

fn http_probe(get: &HTTPGetAction, port: u16) -> Probe {
    let port = numbered(&get.port).unwrap_or(port);
    if get.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
        return Probe::Tcp { port };
    }
    let mut host = get.host.clone();
    let mut headers = Vec::new();
    for header in get.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host = Some(header.value.clone());
        } else if let (Ok(name), Ok(value)) = (header.name.parse(), header.value.parse()) {
            headers.push((name, value));
        }
    }
    let path = get.path.clone().filter(|path| path.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Probe::Http { port, path, host, headers }
}

/// A named port, and Knative's 0, mean the serving port.
fn numbered(port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => valid_port(*number),
        IntOrString::String(text) => text.parse().ok().filter(|number| *number != 0),
    }
}

fn valid_port(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(spec: Value) -> Settings {
        let revision = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "r", "labels": {SERVICE_LABEL: "s"}}, "spec": spec});
        Settings::of(&serde_json::from_value(revision).unwrap())
    }

    #[test]
    fn an_empty_revision_gets_the_references_defaults() {
        let settings = settings(json!({"containers": [{"name": "c"}]}));
        assert_eq!((settings.concurrency, settings.timeout.as_secs(), settings.port), (0, 300, 8080));
        assert_eq!((settings.protocol, settings.probe), (Protocol::Http1, Probe::Tcp { port: 8080 }));
        assert_eq!((&*settings.service, &*settings.configuration), ("s", ""));
    }

    #[test]
    fn limits_and_the_container_with_the_port_are_read() {
        let settings = settings(json!({
            "containerConcurrency": 3, "timeoutSeconds": 9, "responseStartTimeoutSeconds": 4, "idleTimeoutSeconds": 0,
            "containers": [{"name": "sidecar"}, {"name": "app", "ports": [{"containerPort": 9000, "name": "h2c"}]}],
        }));
        assert_eq!((settings.concurrency, settings.timeout.as_secs(), settings.port), (3, 9, 9000));
        assert_eq!(settings.response_start_timeout, Some(Duration::from_secs(4)));
        assert_eq!((settings.idle_timeout, settings.protocol), (None, Protocol::H2c));
    }

    #[test]
    fn probes() {
        let rows = [
            (json!({"tcpSocket": {"port": 0}}), Probe::Tcp { port: 8080 }),
            (json!({"tcpSocket": {"port": "http1"}}), Probe::Tcp { port: 8080 }),
            (json!({"tcpSocket": {"port": 81}}), Probe::Tcp { port: 81 }),
            (json!({"exec": {"command": ["true"]}}), Probe::Node),
            (json!({"grpc": {"port": 1}}), Probe::Node),
            (json!({"httpGet": {"port": 7, "scheme": "HTTPS"}}), Probe::Tcp { port: 7 }),
            (
                json!({"httpGet": {"port": 0, "path": "/ok?x", "httpHeaders": [{"name": "Host", "value": "h"}]}}),
                Probe::Http { port: 8080, path: "/ok?x".into(), host: Some("h".into()), headers: vec![] },
            ),
        ];
        for (probe, want) in rows {
            let spec = json!({"containers": [{"name": "c", "readinessProbe": probe}]});
            assert_eq!(settings(spec.clone()).probe, want, "{spec}");
        }
    }
}
