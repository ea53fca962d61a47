//! Listeners and client connections.
//!
//! HTTP/1.1 and HTTP/2 (by prior knowledge, or ALPN under TLS) on every listener. After `stop` nothing new is accepted
//! and each connection ends with its requests in flight; after `abort` it ends at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::config::Config;
use crate::headers::Peer;
use crate::proxy::{Audience, Proxy};
use crate::transport::Duplex;

const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HTTP2_STREAMS: u32 = 256;

/// A socket and whom it serves.
pub struct Listener {
    /// The socket.
    pub socket: TcpListener,
    /// Whom it serves.
    pub kind: ListenerKind,
}

/// Whom a listener serves.
#[derive(Clone)]
pub enum ListenerKind {
    /// Anyone; public hosts only.
    Public,
    /// Pods; every host, `NAME.NS.svc.cluster.local` and its short forms included.
    PodNetwork,
    /// Anyone, under TLS; public hosts only. Its ALPN protocols should be `h2` and `http/1.1`.
    Tls(Arc<rustls::ServerConfig>),
}

/// Accepts until the gateway stops.
pub async fn accept(listener: Listener, proxy: Arc<Proxy>, connections: Arc<Semaphore>) {
    let Listener { socket, kind } = listener;
    let builder = Arc::new(builder(&proxy.shared.config));
    let stop = proxy.shared.stop.clone();
    client::accept::accept(socket, connections, &proxy.shared.tasks, &stop, |stream, peer| {
        connection(stream, peer, kind.clone(), proxy.clone(), builder.clone())
    })
    .await;
}

/// Serves one connection without TLS until it ends; public hosts only.
pub async fn serve_public(stream: impl Duplex, peer: SocketAddr, proxy: Arc<Proxy>) {
    let open = Open::new(proxy.clone());
    let builder = builder(&proxy.shared.config);
    serve(stream, peer, false, Audience::Public, proxy, &builder).await;
    drop(open);
}

fn builder(config: &Config) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.header_limit_bytes.max(8 * 1024))
        .max_headers(config.header_count_limit);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(HTTP2_STREAMS)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .max_header_list_size(u32::try_from(config.header_limit_bytes).unwrap_or(u32::MAX));
    builder
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    kind: ListenerKind,
    proxy: Arc<Proxy>,
    builder: Arc<auto::Builder<TokioExecutor>>,
) {
    let open = Open::new(proxy.clone());
    match kind {
        ListenerKind::Public => serve(stream, peer, false, Audience::Public, proxy, &builder).await,
        ListenerKind::PodNetwork => serve(stream, peer, false, Audience::PodNetwork, proxy, &builder).await,
        ListenerKind::Tls(config) => {
            match timeout(TLS_HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, peer, true, Audience::Public, proxy, &builder).await,
                Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
        }
    }
    drop(open);
}

async fn serve(
    stream: impl Duplex,
    peer: SocketAddr,
    tls: bool,
    audience: Audience,
    proxy: Arc<Proxy>,
    builder: &auto::Builder<TokioExecutor>,
) {
    let (stop, abort) = (proxy.shared.stop.clone(), proxy.shared.abort.clone());
    let of_peer = Arc::new((Peer::new(peer.ip(), tls), proxy));
    let service = service_fn(move |request| {
        let of_peer = of_peer.clone();
        async move {
            let (peer, proxy) = of_peer.as_ref();
            Ok::<_, Infallible>(proxy.serve(peer, audience, request).await)
        }
    });
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = abort.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "client connection broke");
    }
}

/// Counts an open connection.
struct Open(Arc<Proxy>);

impl Open {
    fn new(proxy: Arc<Proxy>) -> Self {
        proxy.shared.metrics.connections.inc();
        Self(proxy)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.shared.metrics.connections.dec();
    }
}
