//! One hop through ours, nginx and haproxy, in front of the same instances, in turn.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::json;

use super::crowd::{self, Memory, Overload};
use super::load::{self, Http2Load, Run};
use super::memory;
use super::pace::{Asked, paced};
use super::peers::{Peer, Ports, Upstreams, cpu_seconds, most_connections};
use super::stats::{Summary, median};
use super::target::Target;

/// The services, all of the echo server.
const HTTP1: &str = "bench-gateway-http1";
const HTTP2: &str = "bench-gateway-http2";
const WAITING: &str = "bench-gateway-waiting";
const OVERLOAD: &str = "bench-gateway-overload";
/// The port of their containers.
const PORT: u16 = 8080;
/// Slots of the instance that gets too much, and how long each of its requests takes.
const SLOTS: usize = 10;
const SLOT_MS: u64 = 20;
const OVERLOAD_TIMES: u32 = 10;
/// Bytes of the message of a gRPC call.
const MESSAGE_BYTES: u32 = 100;
/// Connections of HTTP/2, each with several requests at once.
const HTTP2_CONNECTIONS: usize = 8;
/// Connections that a proxy with idle WebSockets needs for something else.
const SPARE_CONNECTIONS: usize = 500;
/// Of the load at half of what the slowest can do.
const CLIENTS: usize = 32;

/// How long, how often, how many.
#[derive(Args, Clone, Debug)]
pub struct GatewayArgs {
    /// Rounds for each proxy
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each round
    #[arg(long, default_value_t = 2)]
    pub seconds: u64,
    /// Loads; all by default
    #[arg(long)]
    pub load: Vec<Load>,
    /// WebSockets that are open and say nothing
    #[arg(long, default_value_t = 10_000)]
    pub sockets: usize,
    /// Requests that wait for an instance
    #[arg(long, default_value_t = 10_000)]
    pub waiting: usize,
    /// Seconds of ten times the load that an instance can take
    #[arg(long, default_value_t = 60)]
    pub overload_seconds: u64,
}

impl Default for GatewayArgs {
    fn default() -> Self {
        Self { rounds: 5, seconds: 2, load: Vec::new(), sockets: 10_000, waiting: 10_000, overload_seconds: 60 }
    }
}

/// What the proxies are given to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// Answers of 1 KiB over HTTP/1.1.
    Http1,
    /// The same over HTTP/2 without TLS.
    Http2,
    /// The same over HTTP/2 under TLS.
    Tls,
    /// Unary gRPC calls.
    Grpc,
    /// Answers of 1 MiB over HTTP/1.1.
    Large,
    /// A TLS connection for each request.
    Handshakes,
}

impl Load {
    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Http1 => "HTTP/1.1, 1 KiB",
            Self::Http2 => "HTTP/2, 1 KiB",
            Self::Tls => "HTTP/2 under TLS, 1 KiB",
            Self::Grpc => "gRPC, unary",
            Self::Large => "HTTP/1.1, 1 MiB",
            Self::Handshakes => "new TLS connections",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Grpc => "/echo.Echo/Unary",
            Self::Large => "/?bytes=1048576",
            Self::Http1 | Self::Http2 | Self::Tls | Self::Handshakes => "/?bytes=1024",
        }
    }

    /// Requests at once under full load.
    fn connections(self) -> usize {
        match self {
            Self::Large => 8,
            _ => CLIENTS,
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Gateway {
    /// Rounds for each proxy.
    pub rounds: usize,
    /// Seconds of each.
    pub seconds: u64,
    /// By load.
    pub loads: Vec<Measured>,
    /// Memory of each proxy with idle WebSockets.
    pub sockets: Vec<Memory>,
    /// Memory of ours with requests that wait.
    pub waiting: Memory,
    /// Ten times the load.
    pub overload: Overload,
}

/// One load.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Which.
    pub load: Load,
    /// Of each proxy.
    pub proxies: Vec<Figures>,
    /// Requests a second of the half load; `None` where it was not measured.
    pub half_per_second: Option<f64>,
    /// At half load, straight to the instance.
    pub direct: Option<Summary>,
}

/// What one proxy did.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// The proxy.
    pub proxy: String,
    /// Requests a second, each round's.
    pub per_second: Vec<f64>,
    /// Median of the rounds' ratios to nginx.
    pub ratio: f64,
    /// CPU time of its processes for one request, in microseconds: the rounds' median.
    pub cpu_us: f64,
    /// Time of a request at half load.
    pub half: Option<Summary>,
}

impl Figures {
    /// Requests a second: the rounds' median.
    pub fn median_per_second(&self) -> f64 {
        median(&self.per_second)
    }

    /// Microseconds that it adds at half load to a request straight to the instance.
    pub fn added(&self, direct: &Option<Summary>, figure: impl Fn(&Summary) -> f64) -> Option<f64> {
        Some((figure(self.half.as_ref()?) - figure(direct.as_ref()?)) * 1000.0)
    }
}

/// A proxy that is measured.
struct Proxy {
    name: &'static str,
    pids: Vec<u32>,
    ports: Ports,
}

struct Bench<'b> {
    target: &'b Target,
    args: &'b GatewayArgs,
    proxies: Vec<Proxy>,
    http1: SocketAddr,
    http2: SocketAddr,
    /// A gRPC message.
    call: Bytes,
    call_file: PathBuf,
}

/// Measures all of it. `echo:latest` must be loaded.
///
/// # Errors
///
/// When nginx, haproxy, `wrk` or `h2load` is missing, or a request fails.
pub async fn run(target: &Target, data_dir: &Path, args: &GatewayArgs) -> Result<Gateway> {
    crowd::allow_files();
    for (name, port, template, spec) in [
        (HTTP1, "http1", json!({"autoscaling.knative.dev/min-scale": "1"}), json!({})),
        (HTTP2, "h2c", json!({"autoscaling.knative.dev/min-scale": "1"}), json!({})),
        (WAITING, "http1", json!({"autoscaling.knative.dev/max-scale": "1"}), json!({"containerConcurrency": 1})),
        (OVERLOAD, "http1", json!({"autoscaling.knative.dev/max-scale": "1"}), json!({"containerConcurrency": SLOTS})),
    ] {
        let container = json!({"image": "echo:latest", "ports": [{"containerPort": PORT, "name": port}]});
        target.deploy_container(name, container, template, spec).await?;
    }
    for name in [HTTP1, HTTP2, WAITING, OVERLOAD] {
        target.ready(name).await.context("it needs the image echo:latest, which `make bench` makes")?;
    }
    let address = async |name: &str| anyhow::Ok(format!("{}:{PORT}", target.pod_address(name).await?));
    let (http1, http2) = (address(HTTP1).await?, address(HTTP2).await?);
    let (upstreams, pem) = (Upstreams { http1: &http1, http2: &http2 }, certificate(data_dir, &target.host(HTTP1))?);
    let (nginx, haproxy) = (Peer::nginx(&upstreams, &pem).await?, Peer::haproxy(&upstreams, &pem).await?);
    let ours = Ports { http1: target.gateway, http2: target.gateway, grpc: target.gateway, tls: target.gateway_tls };
    let mut proxies = vec![Proxy { name: "gateway", pids: vec![memory::platform_pid(data_dir)?], ports: ours }];
    proxies.extend([&nginx, &haproxy].map(|peer| Proxy { name: peer.name, pids: peer.pids(), ports: peer.ports }));
    let call = Bytes::from([&[0], &MESSAGE_BYTES.to_be_bytes()[..], &vec![7; MESSAGE_BYTES as usize]].concat());
    let dir = tempfile::tempdir()?;
    let call_file = dir.path().join("call");
    std::fs::write(&call_file, &call)?;
    let bench = Bench { target, args, proxies, http1: http1.parse()?, http2: http2.parse()?, call, call_file };
    let measured = bench.all().await;
    for name in [HTTP1, HTTP2, WAITING, OVERLOAD] {
        target.delete(name, super::target::Workload::Container).await?;
    }
    measured
}

/// Certificate and key for the peers' HTTPS, of the kind that the platform makes.
fn certificate(data_dir: &Path, host: &str) -> Result<String> {
    let authority = apiserver::Authority::read(&data_dir.join("pki")).context("the platform's authority")?;
    let (chain, key) = authority.issue(&[host.to_owned()])?;
    let block = |tag: &str, der: &[u8]| {
        let lines: Vec<String> =
            STANDARD.encode(der).as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
        format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", lines.join("\n"))
    };
    let chain: String = chain.iter().map(|certificate| block("CERTIFICATE", certificate)).collect();
    Ok(chain + &block("PRIVATE KEY", key.secret_der()))
}

impl Bench<'_> {
    async fn all(&self) -> Result<Gateway> {
        let all = Load::value_variants();
        let chosen = all.iter().filter(|load| self.args.load.is_empty() || self.args.load.contains(load));
        let mut loads = Vec::new();
        for load in chosen {
            loads.push(self.measure(*load).await.with_context(|| load.title())?);
        }
        let mut sockets = Vec::new();
        for proxy in &self.proxies {
            let (to, host) = (proxy.ports.http1, self.target.host(HTTP1));
            // The system may not allow as many.
            let count = self.args.sockets.min(most_connections().saturating_sub(SPARE_CONNECTIONS));
            sockets.push(crowd::idle_websockets(proxy.name, &proxy.pids, to, &host, count).await?);
        }
        Ok(Gateway {
            rounds: self.args.rounds,
            seconds: self.args.seconds,
            loads,
            sockets,
            waiting: self.waiting().await?,
            overload: self.overload().await?,
        })
    }

    async fn measure(&self, load: Load) -> Result<Measured> {
        let mut runs: Vec<Vec<(Run, f64)>> = self.proxies.iter().map(|_| Vec::new()).collect();
        for round in 0..self.args.rounds {
            for turn in 0..self.proxies.len() {
                // Another one begins each round.
                let number = (round + turn) % self.proxies.len();
                let proxy = &self.proxies[number];
                let before = cpu_seconds(&proxy.pids)?;
                let run = self.full(load, proxy).await.with_context(|| proxy.name)?;
                let used = cpu_seconds(&proxy.pids)? - before;
                runs[number].push((run, used * 1e6 / run.requests));
            }
        }
        let per_second: Vec<Vec<f64>> =
            runs.iter().map(|runs| runs.iter().map(|(run, _)| run.per_second).collect()).collect();
        let slowest = per_second.iter().map(|rates| median(rates)).fold(f64::INFINITY, f64::min);
        let (half, mut halves, direct) = match load {
            // The client here would cost more than the proxy.
            Load::Handshakes | Load::Tls => (None, Vec::new(), None),
            _ => {
                let (halves, direct) = self.half(load, slowest / 2.0).await?;
                (Some(slowest / 2.0), halves, direct)
            }
        };
        halves.resize(self.proxies.len(), None);
        // The second of them.
        let nginx = &per_second[1];
        let proxies = self.proxies.iter().zip(&runs).zip(&per_second).zip(halves);
        let proxies = proxies.map(|(((proxy, runs), rates), half)| Figures {
            proxy: proxy.name.to_owned(),
            per_second: rates.clone(),
            ratio: median(&rates.iter().zip(nginx).map(|(rate, nginx)| rate / nginx).collect::<Vec<_>>()),
            cpu_us: median(&runs.iter().map(|(_, cpu)| *cpu).collect::<Vec<_>>()),
            half,
        });
        Ok(Measured { load, proxies: proxies.collect(), half_per_second: half, direct })
    }

    /// As much as it can do.
    async fn full(&self, load: Load, proxy: &Proxy) -> Result<Run> {
        let (path, seconds, connections) = (load.path(), self.args.seconds, load.connections());
        let host = self.target.host(if load == Load::Grpc { HTTP2 } else { HTTP1 });
        let http2 = |to, scheme| Http2Load {
            to,
            scheme,
            host: &host,
            path,
            call: (load == Load::Grpc).then_some(self.call_file.as_path()),
            connections: HTTP2_CONNECTIONS,
            streams: connections / HTTP2_CONNECTIONS,
            seconds,
        };
        match load {
            Load::Http1 | Load::Large => {
                load::wrk(&format!("http://{}{path}", proxy.ports.http1), &host, seconds, connections, false).await
            }
            Load::Handshakes => {
                load::wrk(&format!("https://{}{path}", proxy.ports.tls), &host, seconds, connections, true).await
            }
            Load::Http2 => load::h2load(&http2(proxy.ports.http2, "http")).await,
            Load::Grpc => load::h2load(&http2(proxy.ports.grpc, "http")).await,
            Load::Tls => load::h2load(&http2(proxy.ports.tls, "https")).await,
        }
    }

    /// Each proxy, and straight to the instance, at that rate.
    async fn half(&self, load: Load, rate: f64) -> Result<(Vec<Option<Summary>>, Option<Summary>)> {
        let grpc = load == Load::Grpc;
        let asked = |address| Asked {
            address,
            http2: matches!(load, Load::Http2 | Load::Grpc),
            host: self.target.host(if grpc { HTTP2 } else { HTTP1 }),
            path: load.path().to_owned(),
            call: grpc.then(|| self.call.clone()),
        };
        let mut targets = vec![asked(if grpc { self.http2 } else { self.http1 })];
        targets.extend(self.proxies.iter().map(|proxy| {
            asked(match load {
                Load::Grpc => proxy.ports.grpc,
                Load::Http2 => proxy.ports.http2,
                _ => proxy.ports.http1,
            })
        }));
        let length = Duration::from_secs(self.args.seconds) / 2;
        let mut times: Vec<Vec<Duration>> = targets.iter().map(|_| Vec::new()).collect();
        for round in 0..self.args.rounds {
            for turn in 0..targets.len() {
                let number = (round + turn) % targets.len();
                times[number].extend(paced(&targets[number], rate, length, load.connections()).await?);
            }
        }
        let mut summaries = times.iter().map(|times| Summary::of(times));
        let direct = summaries.next().flatten();
        Ok((summaries.collect(), direct))
    }

    /// One request has the only slot of the only instance; so many wait behind it.
    async fn waiting(&self) -> Result<Memory> {
        let (ours, host) = (&self.proxies[0], self.target.host(WAITING));
        let first = Asked {
            address: ours.ports.http1,
            http2: false,
            host: host.clone(),
            path: "/?ms=120000".to_owned(),
            call: None,
        };
        let mut sender = first.open().await?;
        let first = tokio::spawn(async move { first.send(&mut sender).await });
        // It is there before the others.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let memory = crowd::waiting(ours.name, &ours.pids, ours.ports.http1, &host, self.args.waiting).await;
        first.abort();
        memory
    }

    async fn overload(&self) -> Result<Overload> {
        let asked = Asked {
            address: self.target.gateway,
            http2: true,
            host: self.target.host(OVERLOAD),
            path: format!("/?ms={SLOT_MS}"),
            call: None,
        };
        crowd::overload(&asked, SLOTS, OVERLOAD_TIMES, self.args.overload_seconds).await
    }
}

impl Gateway {
    /// Lines for people.
    pub fn table(&self) -> String {
        let mut lines = Vec::new();
        for measured in &self.loads {
            for one in &measured.proxies {
                let half = one.half.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
                lines.push(format!(
                    "{:<24} {:<8} {:>8.0}/s, {:.2} of nginx, {:.1} us CPU each; at half load p50 / p99 {half}",
                    measured.load.title(),
                    one.proxy,
                    one.median_per_second(),
                    one.ratio,
                    one.cpu_us
                ));
            }
        }
        for memory in self.sockets.iter().chain([&self.waiting]) {
            lines.push(format!(
                "{} connections to {}: {:.0} MiB more, {:.1} KiB each",
                memory.connections,
                memory.proxy,
                memory.with_mib - memory.before_mib,
                memory.each_kib()
            ));
        }
        let overload = &self.overload;
        lines.push(format!(
            "{:.0} requests/s where {:.0} can be answered: {:.0} were, {:.0} %; by status {:?}",
            overload.offered_per_second,
            overload.peak_per_second,
            overload.goodput_per_second,
            overload.share() * 100.0,
            overload.statuses
        ));
        lines.join("\n")
    }
}
