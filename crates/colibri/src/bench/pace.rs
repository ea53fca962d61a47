//! Requests at a fixed rate, each timed from the moment at which it was due where the one before it was late: a server
//! that stalls is charged for those that had to wait.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Requests at once on one connection of HTTP/2.
const STREAMS: usize = 4;

/// A request, and where it goes.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Where to.
    pub address: SocketAddr,
    /// Whether by HTTP/2.
    pub http2: bool,
    /// The host.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// The body of a gRPC call.
    pub call: Option<Bytes>,
}

/// A connection that takes such requests.
#[derive(Debug)]
pub enum Sender {
    /// One at a time.
    One(http1::SendRequest<Full<Bytes>>),
    /// Several.
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Asked {
    /// Opens a connection for it.
    ///
    /// # Errors
    ///
    /// When nothing listens there.
    pub async fn open(&self) -> Result<Sender> {
        let stream =
            TcpStream::connect(self.address).await.with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let stream = TokioIo::new(stream);
        Ok(if self.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            Sender::Two(sender)
        } else {
            let (sender, connection) = http1::handshake(stream).await?;
            tokio::spawn(connection);
            Sender::One(sender)
        })
    }

    /// Sends it and reads the answer; its status.
    ///
    /// # Errors
    ///
    /// When there is no complete answer.
    pub async fn send(&self, sender: &mut Sender) -> Result<u16> {
        let mut request = Request::builder().uri(&self.path).header("host", &self.host);
        if self.http2 {
            request = Request::builder().uri(format!("http://{}{}", self.host, self.path));
        }
        if self.call.is_some() {
            request = request.method(Method::POST).header("content-type", "application/grpc").header("te", "trailers");
        }
        let request = request.body(Full::new(self.call.clone().unwrap_or_default()))?;
        let response = match sender {
            Sender::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Sender::Two(sender) => sender.send_request(request).await?,
        };
        let (head, mut body) = response.into_parts();
        let mut trailers = None;
        while let Some(frame) = body.frame().await {
            trailers = frame?.into_trailers().ok();
        }
        if self.call.is_some() && head.status == 200 {
            let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
            ensure!(status.is_some_and(|status| status == "0"), "a gRPC call ended with {status:?}");
        }
        Ok(head.status.as_u16())
    }
}

/// Sends `rate` requests a second for `length`, spread over so many clients.
///
/// # Errors
///
/// When one is not answered with 200.
pub async fn paced(asked: &Asked, rate: f64, length: Duration, clients: usize) -> Result<Vec<Duration>> {
    ensure!(rate > 0.0, "nothing was answered under full load");
    #[expect(clippy::cast_precision_loss, reason = "a number of clients")]
    let interval = Duration::from_secs_f64(clients as f64 / rate);
    let mut senders = Vec::with_capacity(clients);
    for number in 0..clients {
        let sender = match senders.last() {
            Some(Sender::Two(shared)) if number % STREAMS > 0 => Sender::Two(shared.clone()),
            _ => asked.open().await?,
        };
        senders.push(sender);
    }
    let begin = Instant::now() + Duration::from_millis(20);
    let clients = senders.into_iter().enumerate().map(|(number, mut sender)| {
        let asked = asked.clone();
        #[expect(clippy::cast_precision_loss, reason = "a number of clients")]
        let offset = interval.mul_f64(number as f64 / clients as f64);
        tokio::spawn(async move {
            let mut times = Vec::new();
            let mut due = begin + offset;
            while due < begin + length {
                let late = Instant::now() >= due;
                tokio::time::sleep_until(due).await;
                // What the timer oversleeps is not the server's.
                let start = if late { due } else { Instant::now() };
                let status = asked.send(&mut sender).await?;
                ensure!(status == 200, "{} answered {status}", asked.host);
                times.push(start.elapsed());
                due += interval;
            }
            Ok(times)
        })
    });
    let mut times = Vec::new();
    for client in futures::future::join_all(clients.collect::<Vec<_>>()).await {
        times.extend(client??);
    }
    Ok(times)
}
