//! The warm path beside nginx: `wrk` against both, in turn, in front of the same instance.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::http::Connection;
use super::stats::Summary;
use super::target::{Target, Workload};

const NAME: &str = "bench-warm";
/// Requests one at a time, for the added latency.
const SINGLE: usize = 2000;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Warm {
    /// One connection, one request at a time, straight to the instance.
    pub direct: Option<Summary>,
    /// The same through the gateway.
    pub gateway: Option<Summary>,
    /// The same through nginx.
    pub nginx: Option<Summary>,
    /// Requests a second through the gateway, each round's.
    pub gateway_per_second: Vec<f64>,
    /// Requests a second through nginx, each round's.
    pub nginx_per_second: Vec<f64>,
    /// Median of the rounds' ratios, gateway to nginx.
    pub throughput_ratio: f64,
    /// Requests a second of the half load: half of the slower one's median.
    pub half_load_per_second: f64,
    /// At half load, straight to the instance; from the moment at which each request was due.
    pub half_load_direct: Option<Summary>,
    /// At half load, through the gateway.
    pub half_load_gateway: Option<Summary>,
    /// At half load, through nginx.
    pub half_load_nginx: Option<Summary>,
}

/// Measures `rounds` rounds of `seconds` each for both.
///
/// # Errors
///
/// When `wrk` or `nginx` is missing, or a request fails.
pub async fn run(target: &Target, rounds: usize, seconds: u64, connections: usize) -> Result<Warm> {
    target.deploy(NAME, Workload::Container).await?;
    target.ready(NAME).await?;
    let host = target.host(NAME);
    Connection::open(target.gateway, &host).await?.get("/").await?;
    let pod = format!("{}:8080", target.pod_address(NAME).await?);
    let nginx = Nginx::start(&pod).await?;
    let address = nginx.address.parse()?;

    let (mut direct, mut through, mut beside) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        single(&mut direct, pod.parse()?, &host, SINGLE / rounds).await?;
        single(&mut through, target.gateway, &host, SINGLE / rounds).await?;
        single(&mut beside, address, &host, SINGLE / rounds).await?;
    }
    let (mut gateway, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        gateway.push(wrk(&target.gateway.to_string(), &host, seconds, connections).await?);
        peer.push(wrk(&nginx.address, &host, seconds, connections).await?);
    }
    let half = median(&gateway).min(median(&peer)) / 2.0;
    let (mut at_half_direct, mut at_half, mut peer_at_half) = (Vec::new(), Vec::new(), Vec::new());
    let each = Duration::from_secs(seconds);
    for _ in 0..rounds {
        at_half_direct.extend(paced(pod.parse()?, &host, half, each, connections).await?);
        at_half.extend(paced(target.gateway, &host, half, each, connections).await?);
        peer_at_half.extend(paced(address, &host, half, each, connections).await?);
    }
    target.delete(NAME, Workload::Container).await?;
    let ratios: Vec<f64> = gateway.iter().zip(&peer).map(|(ours, theirs)| ours / theirs).collect();
    Ok(Warm {
        direct: Summary::of(&direct),
        gateway: Summary::of(&through),
        nginx: Summary::of(&beside),
        throughput_ratio: median(&ratios),
        gateway_per_second: gateway,
        nginx_per_second: peer,
        half_load_per_second: half,
        half_load_direct: Summary::of(&at_half_direct),
        half_load_gateway: Summary::of(&at_half),
        half_load_nginx: Summary::of(&peer_at_half),
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// `rate` requests a second, spread over the connections, each timed from the moment at which it was due where the
/// one before it was late: a server that stalls is charged for those that had to wait.
async fn paced(
    address: std::net::SocketAddr,
    host: &str,
    rate: f64,
    length: Duration,
    connections: usize,
) -> Result<Vec<Duration>> {
    ensure!(rate > 0.0, "nothing was answered under full load");
    #[expect(clippy::cast_precision_loss, reason = "a number of connections")]
    let interval = Duration::from_secs_f64(connections as f64 / rate);
    let begin = tokio::time::Instant::now() + Duration::from_millis(50);
    let clients = (0..connections).map(|number| {
        let host = host.to_owned();
        #[expect(clippy::cast_precision_loss, reason = "a number of connections")]
        let offset = interval.mul_f64(number as f64 / connections as f64);
        tokio::spawn(async move {
            let mut connection = Connection::open(address, &host).await?;
            let mut times = Vec::new();
            let mut due = begin + offset;
            while due < begin + length {
                let late = tokio::time::Instant::now() >= due;
                tokio::time::sleep_until(due).await;
                // What the timer oversleeps is not the server's.
                let start = if late { due } else { tokio::time::Instant::now() };
                connection.get("/").await?;
                times.push(start.elapsed());
                due += interval;
            }
            Ok::<_, anyhow::Error>(times)
        })
    });
    let mut times = Vec::new();
    for client in futures::future::join_all(clients.collect::<Vec<_>>()).await {
        times.extend(client??);
    }
    Ok(times)
}

async fn single(times: &mut Vec<Duration>, address: std::net::SocketAddr, host: &str, count: usize) -> Result<()> {
    let mut connection = Connection::open(address, host).await?;
    for _ in 0..count {
        times.push(connection.get("/").await?.first_byte);
    }
    Ok(())
}

/// Requests a second, as `wrk` counts them.
async fn wrk(address: &str, host: &str, seconds: u64, connections: usize) -> Result<f64> {
    let mut command = tokio::process::Command::new("wrk");
    command.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
    command.args(["-H", &format!("Host: {host}"), &format!("http://{address}/")]);
    let output = command.output().await.context("wrk is needed: apt-get install wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("Non-2xx"), "some requests failed:\n{text}");
    let figure = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    figure.with_context(|| format!("wrk said:\n{text}"))?.trim().parse().context("wrk's figure")
}

/// nginx as a reverse proxy with kept connections, on a free port of loopback.
struct Nginx {
    child: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Nginx {
    async fn start(upstream: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.path().join("nginx.conf");
        std::fs::write(&config, configuration(dir.path(), &address, upstream))?;
        let child = Command::new("nginx")
            .args(["-c", &config.to_string_lossy(), "-p", &dir.path().to_string_lossy(), "-e", "stderr"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx is needed: apt-get install nginx-light")?;
        let nginx = Self { child, address, _dir: dir };
        for _ in 0..200 {
            if tokio::net::TcpStream::connect(&nginx.address).await.is_ok() {
                return Ok(nginx);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::bail!("nginx did not start")
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked to end, not killed: its workers end with it.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, address: &str, upstream: &str) -> String {
    let dir = dir.display();
    format!(
        "daemon off; worker_processes 2; pid {dir}/pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
  upstream instance {{ server {upstream}; keepalive 256; }}
  server {{
    listen {address} reuseport;
    keepalive_requests 1000000;
    location / {{ proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; }}
  }}
}}
"
    )
}

impl Warm {
    /// Lines for people.
    pub fn table(&self) -> String {
        let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
        let rates = |values: &[f64]| values.iter().map(|value| format!("{value:.0}")).collect::<Vec<_>>().join(" ");
        let [added, added_nginx] = self.added(|summary| summary.p50_ms);
        let lines = [
            format!(
                "one at a time, p50 / p99: direct {}, gateway {}, nginx {}",
                short(&self.direct),
                short(&self.gateway),
                short(&self.nginx)
            ),
            format!("added p50: gateway {added:.0} us, nginx {added_nginx:.0} us"),
            format!(
                "at {:.0} requests/s, p50 / p99: direct {}, gateway {}, nginx {}",
                self.half_load_per_second,
                short(&self.half_load_direct),
                short(&self.half_load_gateway),
                short(&self.half_load_nginx)
            ),
            format!("most requests/s, gateway: {}", rates(&self.gateway_per_second)),
            format!("most requests/s, nginx: {}", rates(&self.nginx_per_second)),
            format!("median of the ratios: {:.2}", self.throughput_ratio),
        ];
        lines.join("\n")
    }

    /// Microseconds that gateway and nginx add to one request at a time.
    pub fn added(&self, figure: impl Fn(&Summary) -> f64) -> [f64; 2] {
        let of = |summary: &Option<Summary>| summary.as_ref().map_or(0.0, &figure);
        [&self.gateway, &self.nginx].map(|through| (of(through) - of(&self.direct)) * 1000.0)
    }

    /// Microseconds that gateway and nginx add at half load.
    pub fn added_at_half_load(&self, figure: impl Fn(&Summary) -> f64) -> [f64; 2] {
        let of = |summary: &Option<Summary>| summary.as_ref().map_or(0.0, &figure);
        [&self.half_load_gateway, &self.half_load_nginx]
            .map(|through| (of(through) - of(&self.half_load_direct)) * 1000.0)
    }
}
