//! What telemetry costs: processor time of the gateway per request with the access log and traces on, against off.
//!
//! One gateway for each mode, each on a thread of its own; they take turns, round by round, with the same requests to the
//! same backend over kept connections. What counts is the time that the gateway's threads were running, the log's writer
//! included, by `/proc/self/task/*/schedstat`: others on the machine do not disturb that much, and the medians of many
//! rounds even less. The numbers behind metrics, which are always on, are measured by themselves.
//!
//! `cargo run --release -p gateway --example telemetry [ROUNDS [REQUESTS]]`

mod world;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base::{RevisionId, RouteId};
use bytes::Bytes;
use client::cache::Caches;
use gateway::access_log::Sink;
use gateway::metrics::{Metrics, Via};
use gateway::settings::Settings;
use gateway::{Config, Gateway, Listener, ListenerKind};
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Error = Box<dyn std::error::Error + Send + Sync>;

const CONNECTIONS: usize = 32;
/// Name, whether all requests are logged, and the share that is traced.
const MODES: [(&str, bool, &str); 5] = [
    ("off", false, ""),
    ("log of all requests", true, ""),
    ("1 % of requests traced", false, "0.01"),
    ("log, 1 % traced", true, "0.01"),
    ("log, all traced", true, "1"),
];

/// A file that takes everything.
#[derive(Debug)]
struct Null(std::fs::File);

impl Sink for Null {
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        io::Write::write_all(&mut &self.0, lines)
    }
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let rounds = arguments.next().transpose()?.unwrap_or(31);
    let requests = arguments.next().transpose()?.unwrap_or(16_000);
    let backend = on_thread("backend", backend)?;
    let collector = on_thread("collector", collector)?;
    let mut gateways = Vec::new();
    for (place, (_, log, share)) in MODES.into_iter().enumerate() {
        let settings = settings(log, share, collector);
        gateways.push(on_thread(&format!("gateway-{place}"), move |ready| run_gateway(backend, settings, ready))?);
    }
    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut costs = vec![Vec::new(); MODES.len()];
    for round in 0..=rounds {
        for (place, gateway) in gateways.iter().enumerate() {
            let before = running(place)?;
            client.block_on(load(*gateway, requests))?;
            // What is written and sent a little later belongs to it.
            thread::sleep(Duration::from_millis(if MODES[place].2.is_empty() { 250 } else { 1_500 }));
            let took = running(place)? - before;
            // The first round warms up.
            if round > 0 {
                costs[place].push(took as f64 / requests as f64);
            }
        }
    }
    println!("{rounds} rounds of {requests} requests for each mode; medians, microseconds of CPU per request\n");
    println!("| mode | CPU | more than off |\n|---|---|---|");
    let off = median(&costs[0]);
    for ((name, ..), costs) in MODES.iter().zip(&costs) {
        // Pairs of one round have had the same neighbours.
        println!("| {name} | {:.2} | {:+.1} % |", median(costs) / 1000.0, (median(costs) / off - 1.0) * 100.0);
    }
    println!("\nmetrics: {:.0} ns per request, {:.2} %", metrics(), metrics() / off * 100.0);
    Ok(())
}

fn median(of: &[f64]) -> f64 {
    let mut sorted = of.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Runs `serve` on a thread and a runtime of its own; the address that it tells of.
fn on_thread<F>(
    name: &str,
    serve: impl FnOnce(std::sync::mpsc::Sender<SocketAddr>) -> F + Send + 'static,
) -> Result<SocketAddr, Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(sender))
    })?;
    Ok(receiver.recv()?)
}

/// Nanoseconds that the threads of one gateway have run; only one gateway's log has a writer with work at a time.
fn running(place: usize) -> io::Result<u64> {
    let name = format!("gateway-{place}");
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        let comm = std::fs::read_to_string(task.join("comm"))?;
        if comm.trim() == name || comm.trim() == "access-log" {
            let times = std::fs::read_to_string(task.join("schedstat"))?;
            sum += times.split(' ').next().and_then(|time| time.parse::<u64>().ok()).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// What metrics cost of a request that ends: its Revision's numbers and its Route's.
fn metrics() -> f64 {
    const TIMES: u32 = 1_000_000;
    let metrics = Metrics::new();
    let parsed: api::serving::Revision = serde_json::from_value(world::revision(80)).expect("it is a Revision");
    let revision = metrics.of(&RevisionId::new("ns", "hello-00001"), &Settings::of(&parsed));
    let route = metrics.of_route(&RouteId::new("ns", "hello"));
    let start = Instant::now();
    for n in 0..TIMES {
        let took = std::hint::black_box(Duration::from_micros(u64::from(n % 2000)));
        revision.ended(Via::Http1, 200, took);
        route.ended(200, took);
    }
    start.elapsed().as_nanos() as f64 / f64::from(TIMES)
}

async fn load(gateway: SocketAddr, requests: usize) -> Result<(), Error> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(gateway).await?;
            stream.set_nodelay(true)?;
            let mut buffer = [0; 4096];
            for _ in 0..requests / CONNECTIONS {
                stream
                    .write_all(
                        b"GET /api/items?page=2 HTTP/1.1\r\nhost: hello.ns.localhost\r\nuser-agent: load\r\n\r\n",
                    )
                    .await?;
                let mut answer = 0;
                while !buffer[..answer].ends_with(b"workload\n") {
                    let count = stream.read(&mut buffer[answer..]).await?;
                    if count == 0 {
                        return Err(Error::from("the gateway ended the connection"));
                    }
                    answer += count;
                }
                if !buffer.starts_with(b"HTTP/1.1 200") {
                    return Err(String::from_utf8_lossy(&buffer[..answer]).into());
                }
            }
            Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn serve(ready: std::sync::mpsc::Sender<SocketAddr>, answer: &'static str) -> Result<(), Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    ready.send(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
            drop(request.into_body().collect().await);
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(answer.as_bytes()))))
        });
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move { drop(connection.await) });
    }
}

async fn backend(ready: std::sync::mpsc::Sender<SocketAddr>) -> Result<(), Error> {
    serve(ready, "hello from the workload\n").await
}

async fn collector(ready: std::sync::mpsc::Sender<SocketAddr>) -> Result<(), Error> {
    serve(ready, "").await
}

fn settings(log: bool, share: &str, collector: SocketAddr) -> Value {
    let mut data = json!({"logging.enable-request-log": log.to_string()});
    if !share.is_empty() {
        data["tracing-protocol"] = json!("http/protobuf");
        data["tracing-endpoint"] = json!(format!("http://{collector}"));
        data["tracing-sampling-rate"] = json!(share);
    }
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "config-observability", "namespace": "colibri-system"}, "data": data})
}

async fn run_gateway(
    backend: SocketAddr,
    settings: Value,
    ready: std::sync::mpsc::Sender<SocketAddr>,
) -> Result<(), Error> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let caches = Caches::new(
        world::client(backend, vec![("/api/v1/namespaces/colibri-system/configmaps", settings)]),
        tasks.clone(),
        stop.clone(),
    );
    let socket = TcpListener::bind("127.0.0.1:0").await?;
    let address = socket.local_addr()?;
    let listener = Listener { socket, kind: ListenerKind::Public };
    let null = std::fs::File::options().write(true).open("/dev/null")?;
    let config = Config { access_log: Arc::new(Null(null)), ..Config::default() };
    let gateway = Gateway::start(config, caches, Arc::new(world::Nobody), vec![listener], tasks, stop);
    while gateway.ready_and_waiting(&RevisionId::new("ns", "hello-00001")).0 == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ready.send(address)?;
    std::future::pending::<()>().await;
    drop(gateway);
    Ok(())
}
