//! Listeners and client connections.
//!
//! HTTP/1.1 and HTTP/2 (by prior knowledge, or ALPN under TLS) on every listener. After `stop` nothing new is accepted
//! and each connection ends with its requests in flight; after `abort` it ends at once.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use api::config::Gateway;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::guard::{Dialogue, Guarded, Held, Opening};
use crate::headers::Peer;
use crate::proxy::{Audience, Client, Proxy};
use crate::revision::Shared;
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
    serve(stream, |_| None, peer, false, Audience::Public, proxy).await;
    drop(open);
}

fn http1(limits: &Gateway) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // Times, and the limits of a head, are the guard's; here they only have to be no less.
    builder.header_read_timeout(None).max_buf_size(2 * limits.head_bytes);
    if limits.header_fields > Gateway::default().header_fields {
        builder.max_headers(limits.header_fields);
    }
    builder
}

fn http2(limits: &Gateway) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
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
        ListenerKind::Public => serve(stream, |s| Some(s), peer, false, Audience::Public, proxy).await,
        ListenerKind::PodNetwork => serve(stream, |s| Some(s), peer, false, Audience::PodNetwork, proxy).await,
        ListenerKind::Tls(config) => {
            match timeout(TLS_HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => serve(stream, |s| Some(s.get_ref().0), peer, true, Audience::Public, proxy).await,
                Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => debug!(%peer, "TLS handshake took too long"),
            }
        }
    }
    drop((open, counted));
}

async fn serve<S: Duplex>(
    stream: S,
    socket: fn(&S) -> Option<&TcpStream>,
    peer: SocketAddr,
    tls: bool,
    audience: Audience,
    proxy: Arc<Proxy>,
) {
    let shared = proxy.shared.clone();
    let (limits, dialogue) = (shared.clients.limits(), Arc::new(Dialogue::default()));
    let client = Client { peer: Peer::new(peer.ip(), tls, limits.trusts(peer.ip())), audience, dialogue };
    let mut stream = Guarded::new(stream, socket, limits.clone(), client.dialogue.clone());
    // Before there is a request, and while it waits, there are none of the codec's buffers.
    let opening = tokio::select! {
        opening = poll_fn(|cx| stream.poll_open(cx)) => opening,
        () = shared.stop.cancelled() => return,
    };
    let early = match opening {
        Ok(Opening::Http1) => tokio::select! {
            // First: who does not have to wait may have ended its side already.
            biased;
            early = proxy.prepare(&client, stream.opening()) => early,
            () = stream.hung_up() => return,
            () = shared.abort.cancelled() => return,
        },
        Ok(Opening::Http2) => None,
        Ok(Opening::End) => return,
        Err(error) => return debug!(%peer, %error, "client connection broke"),
    };
    let of_client = Arc::new((client, proxy, Mutex::new(early)));
    let service = service_fn(move |request: Request<Incoming>| {
        let of_client = of_client.clone();
        async move {
            let (client, proxy, early) = of_client.as_ref();
            let (open, refused) = client.dialogue.begin();
            let early = early.lock().take();
            let response = match refused {
                None => proxy.serve(client, early, request).await,
                Some(failure) => proxy.refuse(&client.peer, early, &failure),
            };
            client.dialogue.answered(response.status() == StatusCode::SWITCHING_PROTOCOLS);
            Ok::<_, Infallible>(response.map(|body| Held::new(body, open)))
        }
    });
    let (stream, is_http2) = (TokioIo::new(stream), matches!(opening, Ok(Opening::Http2)));
    let ended = if is_http2 {
        let connection = Box::pin(http2(&limits).serve_connection(stream, service));
        until_stopped(connection, |connection| connection.graceful_shutdown(), &shared).await
    } else {
        let connection = Box::pin(http1(&limits).serve_connection(stream, service).with_upgrades());
        until_stopped(connection, |connection| connection.graceful_shutdown(), &shared).await
    };
    if let Some(Err(error)) = ended {
        debug!(%peer, %error, "client connection broke");
    }
}

/// Drives a connection until it ends; once the gateway stops it takes no further request.
async fn until_stopped<C: Future>(
    mut connection: Pin<Box<C>>,
    shut_down: impl FnOnce(Pin<&mut C>),
    shared: &Shared,
) -> Option<C::Output> {
    if let Some(ended) = unless(connection.as_mut(), shared.stop.cancelled()).await {
        return Some(ended);
    }
    shut_down(connection.as_mut());
    unless(connection.as_mut(), shared.abort.cancelled()).await
}

/// What `work` comes to, unless `end` comes first. `end` is polled only when it has something to say: work that is woken
/// for each request would take the locks of what all connections share each time.
async fn unless<W: Future>(mut work: Pin<&mut W>, end: impl Future) -> Option<W::Output> {
    let mut end = std::pin::pin!(end);
    let mut bell: Option<(Arc<Bell>, Waker)> = None;
    poll_fn(|context| {
        if let Poll::Ready(output) = work.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        let is_heard = |(bell, _): &(Arc<Bell>, Waker)| bell.task.will_wake(context.waker());
        let quiet =
            bell.as_ref().filter(|bell| is_heard(bell)).is_some_and(|(bell, _)| !bell.rang.swap(false, Relaxed));
        if quiet {
            return Poll::Pending;
        }
        if !bell.as_ref().is_some_and(is_heard) {
            let new = Arc::new(Bell { rang: AtomicBool::new(false), task: context.waker().clone() });
            bell = Some((new.clone(), new.into()));
        }
        match &bell {
            Some((_, waker)) => end.as_mut().poll(&mut Context::from_waker(waker)).map(|_| None),
            None => Poll::Pending,
        }
    })
    .await
}

/// Wakes a task and says so.
struct Bell {
    rang: AtomicBool,
    task: Waker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Relaxed);
        self.task.wake_by_ref();
    }
}

/// Counts an open connection.
struct Open(Arc<Proxy>);

impl Open {
    fn new(proxy: Arc<Proxy>) -> Self {
        proxy.shared.metrics.connections.inc();
        proxy.shared.metrics.connections_opened.inc();
        Self(proxy)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.shared.metrics.connections.dec();
    }
}
