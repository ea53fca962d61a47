//! One HTTP/1.1 request at a time, timed to its first byte and to its end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Longest time of one request.
const LIMIT: Duration = Duration::from_secs(60);

/// A measured response.
#[derive(Clone, Debug)]
pub struct Timed {
    /// From before the connection, or before the request on a connection that is open, to the response's head.
    pub first_byte: Duration,
    /// Stages of the `Server-Timing` header with their times.
    pub stages: Vec<(String, Duration)>,
}

/// A connection for several requests.
pub struct Connection {
    sender: http1::SendRequest<Empty<Bytes>>,
    host: String,
}

impl Connection {
    /// Connects to `address`; requests carry `host`.
    ///
    /// # Errors
    ///
    /// When nothing listens there.
    pub async fn open(address: SocketAddr, host: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: host.to_owned() })
    }

    /// A GET that must be answered with 200.
    ///
    /// # Errors
    ///
    /// On any other status, or no answer in time.
    pub async fn get(&mut self, path: &str) -> Result<Timed> {
        let start = Instant::now();
        self.get_since(path, start).await
    }

    async fn get_since(&mut self, path: &str, start: Instant) -> Result<Timed> {
        let request = Request::get(path).header("host", &self.host).body(Empty::new())?;
        self.sender.ready().await?;
        let response = tokio::time::timeout(LIMIT, self.sender.send_request(request)).await??;
        let first_byte = start.elapsed();
        let status = response.status();
        let stages = response.headers().get("server-timing").and_then(|value| value.to_str().ok());
        let stages = stages.map(parse_stages).unwrap_or_default();
        let body = tokio::time::timeout(LIMIT, response.into_body().collect()).await??.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        ensure!(status.is_success(), "{} answered {status}: {body}", self.host);
        Ok(Timed { first_byte, stages })
    }
}

/// A GET on a connection of its own, timed from before the connection.
///
/// # Errors
///
/// When there is no answer, or not 200.
pub async fn get(address: SocketAddr, host: &str, path: &str) -> Result<Timed> {
    let start = Instant::now();
    Connection::open(address, host).await?.get_since(path, start).await
}

/// `name;dur=1.5, other;dur=2` as pairs; entries without a duration are left out.
fn parse_stages(header: &str) -> Vec<(String, Duration)> {
    let entries = header.split(',').filter_map(|entry| {
        let mut parts = entry.trim().split(';');
        let name = parts.next()?.trim();
        let milliseconds: f64 = parts.find_map(|part| part.trim().strip_prefix("dur="))?.parse().ok()?;
        Some((name.to_owned(), Duration::try_from_secs_f64(milliseconds / 1000.0).ok()?))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_a_header() {
        let stages = parse_stages("cold, queue;dur=1.5, app;desc=\"x\";dur=20, bad;dur=-1, worse;dur=x");
        let shown: Vec<(&str, u128)> = stages.iter().map(|(name, time)| (name.as_str(), time.as_micros())).collect();
        assert_eq!(shown, [("queue", 1500), ("app", 20_000)]);
    }
}
