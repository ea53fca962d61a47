//! What an operator sees of requests: metrics, the access log, traces.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, cannot_run};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::{NO_GRACE, SHORT_WINDOW, SOON, configure, hello_service, host, service_selector, until};

/// Takes messages over HTTP, and keeps their heads and bodies.
struct Collector {
    endpoint: String,
    messages: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Collector {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}/v1/traces", listener.local_addr()?);
        let messages: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let taken = messages.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taken = taken.clone();
                tokio::spawn(async move {
                    if let Ok(message) = take(stream).await {
                        taken.lock().push(message);
                    }
                });
            }
        });
        Ok(Self { endpoint, messages })
    }

    /// Whether one message has all of these.
    fn has(&self, parts: &[&[u8]]) -> bool {
        let contains = |message: &Vec<u8>, part: &[u8]| message.windows(part.len()).any(|window| window == part);
        self.messages.lock().iter().any(|message| parts.iter().all(|part| contains(message, part)))
    }
}

async fn take(mut stream: TcpStream) -> Result<Vec<u8>> {
    let mut message = Vec::new();
    let head = loop {
        message.push(stream.read_u8().await?);
        if message.ends_with(b"\r\n\r\n") {
            break String::from_utf8(message.clone())?.to_ascii_lowercase();
        }
    };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).context("a length")?;
    let mut body = vec![0; length.parse()?];
    stream.read_exact(&mut body).await?;
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await?;
    message.extend_from_slice(&body);
    Ok(message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_is_seen_in_metrics_the_access_log_and_a_trace() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    platform.apply(NO_GRACE).await?;
    platform.apply(&hello_service("told", &[SHORT_WINDOW], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/told", "--timeout=60s"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("told"), 0, SOON).await?;
    ensure!(!platform.log().contains("\"trace_id\""), "no line before it is wanted");

    // All live: what cannot be used is refused, the rest counts at once.
    let wrong = configure(&platform, "config-observability", json!({"tracing-protocol": "grpc"})).await?;
    let text = "tracing-endpoint = \"\" is not the URL of a collector";
    ensure!(wrong.code != 0 && wrong.stderr.contains(text), "{}", wrong.text());
    let collector = Collector::start().await?;
    let data = json!({"logging.enable-request-log": "true", "tracing-protocol": "http/protobuf",
        "tracing-endpoint": collector.endpoint, "tracing-sampling-rate": "1"});
    configure(&platform, "config-observability", data).await?.ok()?;
    let line_of = |path: &str| {
        let log = platform.log();
        let lines = log.lines().filter(|line| line.starts_with("{\"time\""));
        lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()).find(|line| line["path"] == path)
    };
    let settled = async || {
        platform.get("nowhere.default.localhost", "/settled").await?;
        Ok(line_of("/settled").is_some())
    };
    until(SOON, settled, |settled| *settled).await?;

    let answer = platform.get(&host("told"), "/sleep?ms=1").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let line = until(SOON, async || Ok(line_of("/sleep?ms=1")), Option::is_some).await?.context("a line")?;
    let want = json!({"method": "GET", "status": 200, "namespace": "default", "service": "told", "route": "told",
        "cold": true, "bytes_in": 0, "bytes_out": answer.body.len()});
    for (field, value) in want.as_object().context("an object")? {
        ensure!(line[field] == *value, "{field} of {line}");
    }
    ensure!(line["queue_ms"].as_f64().is_some_and(|queue| queue > 0.0), "{line}");

    // The trace of that line, with the stages of the start; names are the field 5 of a span.
    let trace = line["trace_id"].as_str().context("an id")?;
    let id: Vec<u8> =
        (0..32).step_by(2).map(|at| u8::from_str_radix(&trace[at..at + 2], 16)).collect::<Result<_, _>>()?;
    let names = ["GET", "route", "queue", "start", "start: schedule", "start: container", "start: probe", "first byte"];
    let name = |name: &str| [&[0x2a, name.len() as u8], name.as_bytes()].concat();
    let parts: Vec<Vec<u8>> = names.map(name).into_iter().chain([id, b"application/x-protobuf".to_vec()]).collect();
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    until(SOON, async || Ok(collector.has(&parts)), |sent| *sent).await?;

    let metrics = platform.get_url(&format!("{}/metrics", platform.endpoint("metrics"))).await?;
    ensure!(metrics.body.ends_with("# EOF\n"), "{}", metrics.body);
    let revision = line["revision"].as_str().context("a revision")?;
    let count = |name: &str, more: &str| {
        let of =
            |line: &&str| line.starts_with(name) && line.contains(&format!("\"{revision}\"")) && line.contains(more);
        metrics.body.lines().find(of).and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).unwrap_or_default()
    };
    for (name, more) in [
        ("gateway_requests_total{", "response_code_class=\"2xx\",protocol=\"http1\""),
        ("gateway_cold_starts_total{", ""),
        ("gateway_cold_start_stage_duration_seconds_count{", "stage=\"start\""),
        ("kn_serving_invocation_duration_seconds_count{", ""),
    ] {
        ensure!(count(name, more) >= 1.0, "{name} {more}\n{}", metrics.body);
    }
    let route = "gateway_route_requests_total{k8s_namespace_name=\"default\",kn_route_name=\"told\"";
    ensure!(metrics.body.contains(route), "{}", metrics.body);
    platform.stop().await
}
