//! Sends spans to a collector: OTLP over HTTP (protobuf) or over gRPC.
//!
//! Spans come together for a second and are sent in one message. What a collector does not take for the moment is sent
//! again, three times; meanwhile the others wait, up to a limit, beyond which they are dropped and counted. A request
//! never waits for any of it.
//!
//! Sources: OTLP 1.9, "OTLP/HTTP" and "OTLP/gRPC".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::config::observability::{TraceProtocol, Traces};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use client::https::{TlsError, client_tls};
use http::header::{self, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{debug, info, warn};

use crate::outbox::{Added, Batch, Outbox};
use crate::spans;
use crate::transport::Duplex;

/// Spans that wait to be sent, together; a collector takes 4 MiB at once over gRPC.
const LIMIT_BYTES: usize = 3 * 1024 * 1024;
const PAUSE: Duration = Duration::from_secs(1);
/// Time for one message.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// Pauses before a message is sent again.
const BACK_OFF: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// Longest answer of a collector that is looked at.
const ANSWER_LIMIT_BYTES: usize = 64 * 1024;
const HTTP_PATH: &str = "/v1/traces";
const GRPC_PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Sends the spans of one gateway.
pub struct Exporter {
    spans: Outbox,
    traces: ArcSwapOption<Traces>,
    more: Notify,
    exported: Counter,
    dropped: Counter,
    /// Whether the last message did not get through.
    failing: AtomicBool,
}

/// Why a collector did not get a message.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("the endpoint names no host")]
    Endpoint,
    #[error("connecting failed: {0}")]
    Connect(#[source] std::io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("the exchange broke: {0}")]
    Http(#[from] hyper::Error),
    #[error("the collector answered {0}")]
    Status(http::StatusCode),
    #[error("the collector answered with the gRPC status {0}")]
    Grpc(u32),
    #[error("the collector did not answer within {SEND_LIMIT:?}")]
    Timeout,
}

impl ExportError {
    /// Whether the same message may get through later.
    ///
    /// Source: OTLP, "Retryable Response Codes" and "Failures".
    fn is_retryable(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Http(_) | Self::Timeout => true,
            Self::Status(status) => [429, 502, 503, 504].contains(&status.as_u16()),
            Self::Grpc(status) => [1, 4, 8, 10, 11, 14, 15].contains(status),
            Self::Endpoint | Self::Tls(_) => false,
        }
    }
}

/// Spans that were taken and have not arrived; counts them as dropped.
struct Unsent<'e> {
    exporter: &'e Exporter,
    count: u64,
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        self.exporter.dropped.inc_by(self.count);
    }
}

impl Exporter {
    /// One that sends nothing yet.
    pub fn new(exported: Counter, dropped: Counter) -> Arc<Self> {
        Arc::new(Self {
            spans: Outbox::new(LIMIT_BYTES),
            traces: ArcSwapOption::empty(),
            more: Notify::new(),
            exported,
            dropped,
            failing: AtomicBool::new(false),
        })
    }

    /// From now on spans go there; to nobody for `None`.
    pub fn set(&self, traces: Option<Traces>) {
        self.traces.store(traces.map(Arc::new));
    }

    /// Adds spans.
    pub fn add(&self, bytes: &[u8], count: u64) {
        match self.spans.add(bytes, count) {
            Added::First => self.more.notify_one(),
            Added::More => {}
            Added::Full => {
                self.dropped.inc_by(count);
            }
        }
    }

    /// Sends what comes, for as long as it is polled.
    pub async fn run(&self) {
        loop {
            self.more.notified().await;
            sleep(PAUSE).await;
            self.send(&BACK_OFF).await;
        }
    }

    /// Sends what is there.
    pub async fn send(&self, back_off: &[Duration]) {
        let batch = self.spans.take(Batch::default());
        if batch.items == 0 {
            return;
        }
        let mut unsent = Unsent { exporter: self, count: batch.items };
        let message = Bytes::from(spans::envelope(&batch.bytes));
        let mut back_off = back_off.iter();
        // The endpoint may be another one by the next try.
        while let Some(traces) = self.traces.load_full() {
            let sent = timeout(SEND_LIMIT, post(&traces, message.clone())).await.unwrap_or(Err(ExportError::Timeout));
            let error = match sent {
                Ok(()) => {
                    self.exported.inc_by(std::mem::take(&mut unsent.count));
                    if self.failing.swap(false, Ordering::Relaxed) {
                        info!(endpoint = traces.endpoint, "traces get through again");
                    }
                    return;
                }
                Err(error) => error,
            };
            if self.failing.swap(true, Ordering::Relaxed) {
                debug!(endpoint = traces.endpoint, %error, "traces do not get through");
            } else {
                warn!(endpoint = traces.endpoint, %error, "traces do not get through; tracing-endpoint of \
                    config-observability names the collector");
            }
            match back_off.next().filter(|_| error.is_retryable()) {
                Some(pause) => sleep(*pause).await,
                None => return,
            }
        }
    }
}

/// Sends one message over a connection of its own.
async fn post(traces: &Traces, message: Bytes) -> Result<(), ExportError> {
    let uri: Uri = traces.endpoint.parse().map_err(|_| ExportError::Endpoint)?;
    let host = uri.host().ok_or(ExportError::Endpoint)?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(match (traces.protocol, secure) {
        (TraceProtocol::Grpc, _) => 4317,
        (TraceProtocol::Http, true) => 443,
        (TraceProtocol::Http, false) => 80,
    });
    let stream = TcpStream::connect((host.as_str(), port)).await.map_err(ExportError::Connect)?;
    if !secure {
        return exchange(traces.protocol, &uri, stream, message).await;
    }
    let connector = TlsConnector::from(Arc::new(tls(traces.protocol).await?));
    let name = ServerName::try_from(host).map_err(|_| ExportError::Endpoint)?;
    let stream = connector.connect(name, stream).await.map_err(ExportError::Connect)?;
    exchange(traces.protocol, &uri, stream, message).await
}

/// TLS towards whoever the machine's authorities vouch for.
async fn tls(protocol: TraceProtocol) -> Result<ClientConfig, ExportError> {
    let mut roots = RootCertStore::empty();
    if let Ok(found) = tokio::task::spawn_blocking(rustls_native_certs::load_native_certs).await {
        roots.add_parsable_certificates(found.certs);
    }
    let mut config = client_tls(roots, None)?;
    let alpn: &[u8] = if protocol == TraceProtocol::Grpc { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![alpn.to_vec()];
    Ok(config)
}

async fn exchange(protocol: TraceProtocol, uri: &Uri, stream: impl Duplex, message: Bytes) -> Result<(), ExportError> {
    let stream = TokioIo::new(stream);
    let user_agent = concat!("colibri/", env!("CARGO_PKG_VERSION"));
    let request = Request::post(uri.clone()).header(header::USER_AGENT, user_agent);
    match protocol {
        TraceProtocol::Http => {
            let (mut sender, connection) = http1::handshake(stream).await?;
            let path = uri.path_and_query().map_or("/", PathAndQuery::as_str);
            let path = if path == "/" { HTTP_PATH } else { path };
            let request = request
                .uri(path)
                .header(header::HOST, uri.authority().map_or("", |authority| authority.as_str()))
                .header(header::CONTENT_TYPE, "application/x-protobuf");
            let request = request.body(Full::new(message)).map_err(|_| ExportError::Endpoint)?;
            let response = driven(connection, async {
                let response = sender.send_request(request).await?;
                read(response).await
            });
            let (status, _) = response.await?;
            if status.is_success() { Ok(()) } else { Err(ExportError::Status(status)) }
        }
        TraceProtocol::Grpc => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
            let mut parts = uri.clone().into_parts();
            parts.path_and_query = Some(PathAndQuery::from_static(GRPC_PATH));
            let uri = Uri::from_parts(parts).map_err(|_| ExportError::Endpoint)?;
            let request =
                request.uri(uri).header(header::TE, "trailers").header(header::CONTENT_TYPE, "application/grpc");
            let request = request.body(Full::new(grpc_message(&message))).map_err(|_| ExportError::Endpoint)?;
            let response = driven(connection, async {
                let response = sender.send_request(request).await?;
                read(response).await
            });
            let (status, grpc) = response.await?;
            match grpc {
                _ if !status.is_success() => Err(ExportError::Status(status)),
                Some(0) => Ok(()),
                other => Err(ExportError::Grpc(other.unwrap_or(2))),
            }
        }
    }
}

/// Source: gRPC over HTTP/2, "Length-Prefixed-Message".
fn grpc_message(message: &[u8]) -> Bytes {
    let mut framed = Vec::with_capacity(message.len() + 5);
    framed.push(0);
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    Bytes::from(framed)
}

/// What comes of `exchange`, while its connection is driven.
async fn driven<T>(
    connection: impl Future<Output = Result<(), hyper::Error>>,
    exchange: impl Future<Output = Result<T, ExportError>>,
) -> Result<T, ExportError> {
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        done = exchange.as_mut() => done,
        // The exchange learns of its end by itself.
        _ = connection => exchange.await,
    }
}

/// The status, and gRPC's, which may be a header where there is no message.
async fn read(response: Response<Incoming>) -> Result<(http::StatusCode, Option<u32>), ExportError> {
    let of = |value: &HeaderValue| value.to_str().ok()?.parse().ok();
    let (head, body) = response.into_parts();
    let trailers =
        Limited::new(body, ANSWER_LIMIT_BYTES).collect().await.ok().and_then(|body| body.trailers().cloned());
    let grpc = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")).or(head.headers.get("grpc-status"));
    Ok((head.status, grpc.and_then(of)))
}
