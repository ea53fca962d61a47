//! The load generators: `wrk` for HTTP/1.1, `h2load` for HTTP/2.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

/// What one run has brought.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    /// Requests that were answered with a success.
    pub requests: f64,
    /// Of those, in a second.
    pub per_second: f64,
}

/// Loads `url` over HTTP/1.1 for some seconds, each connection with a request at a time; `close` makes a connection of
/// its own for each request.
///
/// # Errors
///
/// When `wrk` is missing, or an answer was no success.
pub async fn wrk(url: &str, host: &str, seconds: u64, connections: usize, close: bool) -> Result<Run> {
    let mut command = Command::new("wrk");
    command.args(["-t", "1", "-c", &connections.to_string(), "-d", &format!("{seconds}s")]);
    command.args(["-H", &format!("Host: {host}")]);
    if close {
        command.args(["-H", "Connection: close"]);
    }
    let output = command.arg(url).output().await.context("wrk is needed: apt-get install wrk")?;
    wrk_run(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn wrk_run(text: &str) -> Result<Run> {
    ensure!(!text.contains("Non-2xx"), "some requests failed:\n{text}");
    let find = |find: &dyn Fn(&str) -> Option<f64>| text.lines().find_map(|line| find(line.trim()));
    let per_second = find(&|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok());
    let requests = find(&|line| line.split_once(" requests in ")?.0.parse().ok());
    let run = per_second.zip(requests).map(|(per_second, requests)| Run { requests, per_second });
    run.filter(|run| run.requests > 0.0).with_context(|| format!("wrk said:\n{text}"))
}

/// What `h2load` is to do.
#[derive(Clone, Copy, Debug)]
pub struct Http2Load<'l> {
    /// Where to.
    pub to: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host, and what is asked of it.
    pub host: &'l str,
    /// Path and query.
    pub path: &'l str,
    /// The body of a gRPC call, in a file.
    pub call: Option<&'l Path>,
    /// Connections.
    pub connections: usize,
    /// Requests at once on each.
    pub streams: usize,
    /// How long.
    pub seconds: u64,
}

/// Loads over HTTP/2.
///
/// # Errors
///
/// When `h2load` is missing, or an answer was no success.
pub async fn h2load(load: &Http2Load<'_>) -> Result<Run> {
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c", &load.connections.to_string(), "-m", &load.streams.to_string()]);
    command.args(["-D", &load.seconds.to_string(), &format!("--connect-to={}", load.to)]);
    if let Some(body) = load.call {
        command.arg("-d").arg(body).args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    }
    let url = format!("{}://{}{}", load.scheme, load.host, load.path);
    let output = command.arg(url).output().await.context("h2load is needed: apt-get install nghttp2-client")?;
    h2load_run(&String::from_utf8_lossy(&output.stdout))
}

fn h2load_run(text: &str) -> Result<Run> {
    let line = |prefix: &str| text.lines().find_map(|line| line.trim().strip_prefix(prefix));
    let count = |line: &str, of: &str| -> Option<f64> {
        line.split(", ").find_map(|part| part.trim().strip_suffix(of)?.trim().parse().ok())
    };
    let run = || {
        let per_second = count(line("finished in ")?, "req/s")?;
        let requests = line("requests: ")?;
        let bad = count(requests, "failed")? + count(line("status codes: ")?, "5xx")?;
        Some((Run { requests: count(requests, "succeeded")?, per_second }, bad))
    };
    let (run, bad) = run().with_context(|| format!("h2load said:\n{text}"))?;
    ensure!(bad == 0.0 && run.requests > 0.0, "some requests failed:\n{text}");
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says() {
        let text =
            "Running 1s test\n  25124 requests in 1.10s, 5.22MB read\nRequests/sec:  22847.08\nTransfer/sec: 4.74MB\n";
        assert_eq!(wrk_run(text).unwrap(), Run { requests: 25124.0, per_second: 22847.08 });
        assert!(wrk_run(&format!("{text}  Non-2xx or 3xx responses: 3\n")).is_err());
        assert!(wrk_run("unable to connect").is_err());
    }

    #[test]
    fn what_h2load_says() {
        let text = "finished in 1.00s, 31254.00 req/s, 1.21MB/s\nrequests: 31254 total, 31290 started, 31254 done, 31254 succeeded, 0 failed, 0 errored, 0 timeout\nstatus codes: 31254 2xx, 0 3xx, 0 4xx, 0 5xx\n";
        assert_eq!(h2load_run(text).unwrap(), Run { requests: 31254.0, per_second: 31254.0 });
        assert!(h2load_run(&text.replace(" 0 failed", " 2 failed")).is_err());
        assert!(h2load_run(&text.replace(" 0 5xx", " 2 5xx")).is_err());
    }
}
