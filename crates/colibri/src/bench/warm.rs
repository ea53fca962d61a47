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
    target.delete(NAME, Workload::Container).await?;
    let mut ratios: Vec<f64> = gateway.iter().zip(&peer).map(|(ours, theirs)| ours / theirs).collect();
    ratios.sort_by(f64::total_cmp);
    Ok(Warm {
        direct: Summary::of(&direct),
        gateway: Summary::of(&through),
        nginx: Summary::of(&beside),
        throughput_ratio: ratios.get(ratios.len() / 2).copied().unwrap_or_default(),
        gateway_per_second: gateway,
        nginx_per_second: peer,
    })
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
    /// A table for people.
    pub fn table(&self) -> String {
        let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
        let p50 = |summary: &Option<Summary>| summary.as_ref().map_or(0.0, |summary| summary.p50_ms);
        let added = |summary| (p50(summary) - p50(&self.direct)) * 1000.0;
        format!(
            "one request at a time, p50 / p99: direct {}, gateway {}, nginx {}\nadded p50: gateway {:.0} us, nginx {:.0} us\nrequests/s: gateway {:?}, nginx {:?}, ratio {:.2}",
            short(&self.direct),
            short(&self.gateway),
            short(&self.nginx),
            added(&self.gateway),
            added(&self.nginx),
            self.gateway_per_second,
            self.nginx_per_second,
            self.throughput_ratio
        )
    }
}
