//! nginx and haproxy as reverse proxies beside ours: in front of the same instances, with two workers and kept
//! connections, on free ports of loopback.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use rustix::process::{Resource, getrlimit};

use super::memory::{Usage, resident_mib};

/// How long one may take to listen.
const START_LIMIT: Duration = Duration::from_secs(10);

/// More connections than that are never wanted; files that a proxy needs for something else.
const MOST_CONNECTIONS: usize = 30_000;
const SPARE: usize = 200;

/// Where a proxy takes which protocol.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// HTTP/1.1, to the instance of HTTP/1.1.
    pub http1: SocketAddr,
    /// HTTP/2 without TLS, to the same.
    pub http2: SocketAddr,
    /// HTTP/2 without TLS, to the instance of HTTP/2.
    pub grpc: SocketAddr,
    /// Both under TLS, to the instance of HTTP/1.1.
    pub tls: SocketAddr,
}

impl Ports {
    fn free() -> Result<Self> {
        // Held until all are chosen, so that none is chosen twice.
        let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let all = [listen()?, listen()?, listen()?, listen()?];
        let port = |number: usize| all[number].local_addr();
        Ok(Self { http1: port(0)?, http2: port(1)?, grpc: port(2)?, tls: port(3)? })
    }
}

/// The instances behind, as `ADDRESS:PORT`.
#[derive(Clone, Copy, Debug)]
pub struct Upstreams<'u> {
    /// Speaks HTTP/1.1.
    pub http1: &'u str,
    /// Speaks HTTP/2.
    pub http2: &'u str,
}

/// One that runs; ended when dropped.
#[derive(Debug)]
pub struct Peer {
    /// `nginx` or `haproxy`.
    pub name: &'static str,
    /// Where it listens.
    pub ports: Ports,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Peer {
    /// Starts nginx; `pem` are certificate and key.
    ///
    /// # Errors
    ///
    /// When it is not installed or does not listen.
    pub async fn nginx(upstreams: &Upstreams<'_>, pem: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports::free()?;
        std::fs::write(dir.path().join("pem"), pem)?;
        std::fs::write(dir.path().join("configuration"), nginx(dir.path(), &ports, upstreams))?;
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-c"]).arg(dir.path().join("configuration")).arg("-p").arg(dir.path());
        Self::start("nginx", "nginx-light", command, ports, dir).await
    }

    /// Starts haproxy; `pem` are certificate and key.
    ///
    /// # Errors
    ///
    /// When it is not installed or does not listen.
    pub async fn haproxy(upstreams: &Upstreams<'_>, pem: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let ports = Ports::free()?;
        std::fs::write(dir.path().join("pem"), pem)?;
        std::fs::write(dir.path().join("configuration"), haproxy(dir.path(), &ports, upstreams))?;
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(dir.path().join("configuration"));
        Self::start("haproxy", "haproxy", command, ports, dir).await
    }

    async fn start(
        name: &'static str,
        package: &str,
        mut command: Command,
        ports: Ports,
        dir: tempfile::TempDir,
    ) -> Result<Self> {
        let log = std::fs::File::create(dir.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("{name} is needed: apt-get install {package}"))?;
        let peer = Self { name, ports, child, _dir: dir };
        let start = tokio::time::Instant::now();
        while tokio::net::TcpStream::connect(ports.tls).await.is_err() {
            if start.elapsed() > START_LIMIT {
                bail!("{name} does not listen: {}", std::fs::read_to_string(peer._dir.path().join("log"))?);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(peer)
    }

    /// Its processes: itself and its workers.
    pub fn pids(&self) -> Vec<u32> {
        let own = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        std::iter::once(own).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

/// Connections that a proxy can have open, each with one to an instance: as many files as the system allows, less some.
pub fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).maximum.and_then(|files| usize::try_from(files).ok());
    files.map_or(MOST_CONNECTIONS, |files| (files / 2).saturating_sub(SPARE).min(MOST_CONNECTIONS))
}

/// CPU seconds that processes have used.
///
/// # Errors
///
/// When one is not there.
pub fn cpu_seconds(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| Ok(Usage::of(*pid)?.cpu_seconds)).sum()
}

/// Resident memory of processes, in MiB.
///
/// # Errors
///
/// When one is not there.
pub fn memory_mib(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| resident_mib(*pid)).sum()
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked to end, not killed: its workers end with it.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn nginx(dir: &Path, ports: &Ports, upstreams: &Upstreams<'_>) -> String {
    let shown = dir.display();
    let Ports { http1, http2, grpc, tls } = ports;
    let mut text = format!(
        "daemon off; worker_processes 2; worker_rlimit_nofile {}; pid {shown}/pid; error_log stderr crit;
events {{ worker_connections 32768; }}
http {{
  access_log off; client_body_temp_path {shown}/body; proxy_temp_path {shown}/proxy; fastcgi_temp_path {shown}/fastcgi;
  uwsgi_temp_path {shown}/uwsgi; scgi_temp_path {shown}/scgi; proxy_max_temp_file_size 0; client_max_body_size 0;
  keepalive_requests 1000000000; http2_max_concurrent_streams 256;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream one {{ server {}; keepalive 256; keepalive_requests 1000000000; }}
  upstream two {{ server {}; keepalive 256; keepalive_requests 1000000000; }}
  proxy_http_version 1.1; proxy_read_timeout 600s; proxy_set_header Host $host;
  proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
  proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
  ssl_certificate {shown}/pem; ssl_certificate_key {shown}/pem;
",
        2 * most_connections(),
        upstreams.http1,
        upstreams.http2
    );
    let options = " backlog=4096";
    for (listen, location) in [
        (format!("{http1} reuseport{options}"), "proxy_pass http://one;"),
        (format!("{http2} http2 reuseport{options}"), "proxy_pass http://one;"),
        (format!("{grpc} http2 reuseport{options}"), "grpc_pass grpc://two; grpc_set_header Host $host;"),
        (format!("{tls} ssl http2 reuseport{options}"), "proxy_pass http://one;"),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  server {{ listen {listen}; location / {{ {location} }} }}");
    }
    text.push_str("}\n");
    text
}

fn haproxy(dir: &Path, ports: &Ports, upstreams: &Upstreams<'_>) -> String {
    let (shown, most) = (dir.display(), most_connections());
    let Ports { http1, http2, grpc, tls } = ports;
    format!(
        "global
  nbthread 2
  maxconn {most}
  tune.h2.max-concurrent-streams 256
defaults
  mode http
  maxconn {most}
  option http-keep-alive
  option forwardfor
  http-reuse always
  timeout connect 10s
  timeout client 600s
  timeout server 600s
  timeout tunnel 600s
frontend one
  bind {http1} backlog 4096
  bind {http2} proto h2 backlog 4096
  bind {tls} ssl crt {shown}/pem alpn h2,http/1.1 backlog 4096
  default_backend one
frontend two
  bind {grpc} proto h2 backlog 4096
  default_backend two
backend one
  server one {} pool-max-conn 256
backend two
  server two {} proto h2 pool-max-conn 256
",
        upstreams.http1, upstreams.http2
    )
}
