//! Listeners and client connections.
//!
//! HTTP/1.1 and HTTP/2 (by prior knowledge, or ALPN under TLS) on every listener. After `stop` nothing new is accepted
//! and each connection ends with its requests in flight; after `abort` it ends at once.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::config::Gateway;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::guard::{Dialogue, Guarded, Held};
use crate::headers::Peer;
use crate::proxy::{Audience, Proxy};
use crate::transport::Duplex;

const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
    let stop = proxy.shared.stop.clone();
    client::accept::accept(socket, connections, &proxy.shared.tasks, &stop, |stream, peer| {
        connection(stream, peer, kind.clone(), proxy.clone())
    })
    .await;
}

/// Serves one connection without TLS until it ends; public hosts only.
pub async fn serve_public(stream: impl Duplex, peer: SocketAddr, proxy: Arc<Proxy>) {
    let open = Open::new(proxy.clone());
    serve(stream, peer, false, Audience::Public, proxy).await;
    drop(open);
}

fn builder(limits: &Gateway) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Times, and the limits of a head, are the guard's; here they only have to be no less.
    builder.http1().header_read_timeout(None).max_buf_size(2 * limits.head_bytes);
    if limits.header_fields > Gateway::default().header_fields {
        builder.http1().max_headers(limits.header_fields);
    }
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams)
        .max_local_error_reset_streams(limits.http2_resets as usize)
        .enable_connect_protocol()
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1024 * 1024)
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX));
    builder
}

async fn connection(stream: TcpStream, peer: SocketAddr, kind: ListenerKind, proxy: Arc<Proxy>) {
    let shared = proxy.shared.clone();
    let Some(counted) = shared.clients.count(peer.ip()) else {
        return debug!(%peer, "too many connections of one client");
    };
    let open = Open::new(proxy.clone());
    match kind {
        ListenerKind::Public => serve(stream, peer, false, Audience::Public, proxy).await,
        ListenerKind::PodNetwork => serve(stream, peer, false, Audience::PodNetwork, proxy).await,
        ListenerKind::Tls(config) => {
            match timeout(TLS_HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, peer, true, Audience::Public, proxy).await,
                Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
        }
    }
    drop((open, counted));
}

async fn serve(stream: impl Duplex, peer: SocketAddr, tls: bool, audience: Audience, proxy: Arc<Proxy>) {
    let (stop, abort) = (proxy.shared.stop.clone(), proxy.shared.abort.clone());
    let (limits, dialogue) = (proxy.shared.clients.limits(), Arc::new(Dialogue::default()));
    let (builder, trusted) = (builder(&limits), limits.trusts(peer.ip()));
    let stream = Guarded::new(stream, limits, dialogue.clone());
    let of_peer = Arc::new((Peer::new(peer.ip(), tls, trusted), proxy));
    let service = service_fn(move |request: Request<Incoming>| {
        let (of_peer, dialogue) = (of_peer.clone(), dialogue.clone());
        async move {
            let (peer, proxy) = of_peer.as_ref();
            let (open, refused) = dialogue.begin();
            let response = match refused {
                None => proxy.serve(peer, audience, request).await,
                Some(failure) => proxy.refuse(&failure),
            };
            dialogue.answered(response.status() == StatusCode::SWITCHING_PROTOCOLS);
            Ok::<_, Infallible>(response.map(|body| Held::new(body, open)))
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
