//! Probes from the node: HTTP, TCP; gRPC by its connection alone.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Pause between tries while a container starts: at first, and after a second.
const EAGER: Duration = Duration::from_millis(5);
const PATIENT: Duration = Duration::from_millis(100);
/// What is read of an answer.
const HEAD_BYTES: usize = 64;

/// What is done to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A GET that answers 200 to 399.
    Http {
        /// Host to connect to.
        host: String,
        /// Port.
        port: u16,
        /// Path with query.
        path: String,
        /// More headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp {
        /// Host to connect to.
        host: String,
        /// Port.
        port: u16,
    },
    /// A command in the container; the node asks the supervisor.
    Exec(Vec<String>),
}

/// A probe with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// What is done.
    pub action: Action,
    /// Before the first try.
    pub initial: Duration,
    /// Between tries.
    pub period: Duration,
    /// For one try.
    pub timeout: Duration,
    /// Successes in a row that count.
    pub successes: u32,
    /// Failures in a row that count.
    pub failures: u32,
}

/// Reads a probe of `container` in a pod at `address`; `None` if it asks for nothing that can be done.
pub fn schedule(container: &Container, probe: &Probe, address: &str) -> Option<Schedule> {
    let seconds = |value: Option<i32>, least: u64, default: u64| {
        Duration::from_secs(
            value.and_then(|value| u64::try_from(value).ok()).filter(|value| *value >= least).unwrap_or(default),
        )
    };
    let count = |value: Option<i32>, default: u32| {
        value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
    };
    Some(Schedule {
        action: action(container, probe, address)?,
        initial: seconds(probe.initial_delay_seconds, 0, 0),
        period: seconds(probe.period_seconds, 1, 10),
        timeout: seconds(probe.timeout_seconds, 1, 1),
        successes: count(probe.success_threshold, 1),
        failures: count(probe.failure_threshold, 3),
    })
}

fn action(container: &Container, probe: &Probe, address: &str) -> Option<Action> {
    if let Some(exec) = &probe.exec {
        return exec.command.clone().map(Action::Exec);
    }
    if let Some(http) = &probe.http_get {
        let path = http.path.clone().unwrap_or_default();
        let headers = http.http_headers.iter().flatten().map(|header| (header.name.clone(), header.value.clone()));
        return Some(Action::Http {
            host: http.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| address.to_string()),
            port: port(container, &http.port)?,
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: headers.collect(),
        });
    }
    let tcp = probe.tcp_socket.as_ref().map(|tcp| &tcp.port);
    let number = match (tcp, &probe.grpc) {
        (Some(given), _) => port(container, given)?,
        (None, Some(grpc)) => u16::try_from(grpc.port).ok()?,
        (None, None) => return None,
    };
    Some(Action::Tcp { host: address.to_string(), port: number })
}

/// A port by number or name; 0 is the container's first.
fn port(container: &Container, given: &IntOrString) -> Option<u16> {
    let ports = || container.ports.iter().flatten();
    let number = match given {
        IntOrString::Int(0) => ports().next()?.container_port,
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => match ports().find(|port| port.name.as_ref() == Some(name)) {
            Some(port) => port.container_port,
            None => name.parse().ok()?,
        },
    };
    u16::try_from(number).ok().filter(|number| *number > 0)
}

impl Schedule {
    /// Pause before the next try, when the first success is awaited since `waiting`.
    pub fn pause(&self, succeeded: bool, waiting: Duration) -> Duration {
        match succeeded {
            true => self.period,
            false if waiting < Duration::from_secs(1) => EAGER.min(self.period),
            false if waiting < Duration::from_secs(10) => PATIENT.min(self.period),
            false => self.period,
        }
    }
}

/// Tries HTTP and TCP; `None` for what it cannot do, else what went wrong.
pub async fn attempt(action: &Action, limit: Duration) -> Option<Result<(), Failure>> {
    let tried = match action {
        Action::Exec(_) => return None,
        Action::Tcp { host, port } => {
            timeout(limit, TcpStream::connect((host.as_str(), *port))).await.map(|connected| connected.map(|_| Ok(())))
        }
        Action::Http { host, port, path, headers } => {
            timeout(limit, get(host, *port, path, headers)).await.map(|answered| answered.map(judge))
        }
    };
    Some(match tried {
        Ok(Ok(judged)) => judged,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Err(Failure::Refused),
        Ok(Err(error)) => Err(Failure::Broken(error.kind())),
        Err(_) => Err(Failure::Late),
    })
}

/// Source: Kubernetes, HTTP probes: 200 to 399 is success.
fn judge(status: Option<u16>) -> Result<(), Failure> {
    match status {
        Some(200..400) => Ok(()),
        Some(status) => Err(Failure::Status(status)),
        None => Err(Failure::NotHttp),
    }
}

/// Why a try did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens where the probe goes.
    Refused,
    /// The connection could not be used.
    Broken(std::io::ErrorKind),
    /// No answer in time.
    Late,
    /// An HTTP status that is no success.
    Status(u16),
    /// An answer that is not HTTP.
    NotHttp,
    /// The command did not end with 0.
    Command,
}

impl Action {
    /// Where it goes, for people.
    fn place(&self) -> String {
        match self {
            Self::Http { port, path, .. } => format!("GET {path} on port {port}"),
            Self::Tcp { port, .. } => format!("port {port}"),
            Self::Exec(args) => format!("the command {}", args.join(" ")),
        }
    }

    /// The port, where there is one.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Http { port, .. } | Self::Tcp { port, .. } => Some(*port),
            Self::Exec(_) => None,
        }
    }
}

/// What a person should read of a probe that fails, where the connection itself is not the problem.
pub fn explain(action: &Action, failure: Failure, limit: Duration) -> String {
    let place = action.place();
    match failure {
        Failure::Refused => format!("{place}: the connection is refused"),
        Failure::Broken(kind) => format!("{place}: the connection broke ({kind})"),
        Failure::Late => {
            format!("{place}: no answer within {limit:?}; answer faster, or raise the probe's timeoutSeconds")
        }
        Failure::Status(status) => {
            format!(
                "{place} was answered with {status}, a probe wants 200 to 399; correct the probe's path or the answer"
            )
        }
        Failure::NotHttp => format!("{place}: the answer is not HTTP; use a tcpSocket probe, or name another port"),
        Failure::Command => format!("{place} did not end with 0"),
    }
}

async fn get(host: &str, port: u16, path: &str, headers: &[(String, String)]) -> std::io::Result<Option<u16>> {
    let mut stream = TcpStream::connect((host, port)).await?;
    let has = |wanted: &str| headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in [
        ("Host", format!("{host}:{port}")),
        ("User-Agent", "kube-probe/colibri".into()),
        ("Connection", "close".into()),
    ] {
        if !has(name) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while head.len() < HEAD_BYTES && !head.contains(&b'\n') {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(status(&head))
}

/// The status of an answer's first line.
fn status(head: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(head.get(..12)?).ok()?;
    if text.starts_with("HTTP/1.") { text[9..].parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_are_found_by_number_name_and_place() {
        let container: Container = serde_json::from_value(json!({
            "name": "c", "ports": [{"containerPort": 8080, "name": "http1"}]
        }))
        .unwrap();
        let probe = |value| schedule(&container, &serde_json::from_value(value).unwrap(), "10.1.1.1").map(|s| s.action);
        let tcp = |port| Some(Action::Tcp { host: "10.1.1.1".into(), port });
        assert_eq!(probe(json!({"tcpSocket": {"port": 0}})), tcp(8080));
        assert_eq!(probe(json!({"tcpSocket": {"port": "http1"}})), tcp(8080));
        assert_eq!(probe(json!({"grpc": {"port": 9000}})), tcp(9000));
        assert_eq!(probe(json!({"tcpSocket": {"port": "no"}})), None);
        assert_eq!(probe(json!({})), None);
    }

    #[test]
    fn only_a_status_line_has_a_status() {
        assert_eq!(status(b"HTTP/1.1 204 No Content\r\n"), Some(204));
        assert_eq!(status(b"HTTP/1.1 2"), None);
        assert_eq!(status(b"SSH-2.0-OpenSSH"), None);
        assert_eq!(status("HTTP/1.1 ü00".as_bytes()), None);
    }
}
