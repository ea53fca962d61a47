//! Connections to one instance.
//!
//! An HTTP/1 connection has no task of its own: whoever holds it polls it, so that a request, its connection and its
//! response run in the client connection's task without a change of thread. Idle ones lie in a stack, bounded in
//! number and age; each is looked at once more before it is used again. An HTTP/2 connection is shared and has a task.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use base::PodId;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, Interval, Sleep, interval, sleep_until, timeout};

use crate::affinity::Token;
use crate::body::RequestBody;
use crate::metrics::{UpstreamConnection, UpstreamConnections};
use crate::stage::Stage;
use crate::transport::{Dialer, Stream};

/// A connection that was idle for longer is used only for requests that can be sent again.
const FRESH: Duration = Duration::from_millis(500);

/// Most streams at once until an instance's settings come; no server says just that.
const STREAMS_AT_FIRST: usize = 99;
const SETTINGS_LOOKS: Duration = Duration::from_millis(5);

type Driver = http1::Connection<TokioIo<Stream>, RequestBody>;

/// One HTTP/1 connection, and what drives it.
pub struct Http1 {
    /// Takes requests.
    pub sender: http1::SendRequest<RequestBody>,
    driver: Driver,
    closed: bool,
    idle_since: Instant,
    open: UpstreamConnection,
    /// Set when it fires, not for each request.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Http1 {
    /// Ready at `deadline`.
    fn poll_deadline(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Drives the connection as far as it gets.
    pub fn drive(&mut self, context: &mut Context<'_>) {
        // The outcome reaches whoever waits for a response; here it only matters that there is no more.
        if !self.closed && Pin::new(&mut self.driver).poll(context).is_ready() {
            self.closed = true;
        }
    }

    /// Whether another request can be sent.
    fn is_usable(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.closed && self.sender.is_ready()
    }

    /// Whether bytes came that are no answer, or the beginning of one.
    pub fn has_unread(self) -> bool {
        !self.driver.into_parts().read_buf.is_empty()
    }

    /// Splits for an upgrade: the connection then runs in a task of its own.
    pub fn into_parts(self) -> (http1::SendRequest<RequestBody>, Driver, UpstreamConnection) {
        (self.sender, self.driver, self.open)
    }
}

/// Why there is no connection to an instance.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The instance has no address yet.
    #[error("the instance has no address")]
    NoAddress,
    /// Refused or unreachable.
    #[error("connecting to {address} failed")]
    Io {
        /// Where to.
        address: SocketAddr,
        /// The cause.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("connecting to {address} took longer than {limit:?}")]
    Timeout {
        /// Where to.
        address: SocketAddr,
        /// The limit.
        limit: Duration,
    },
    /// The HTTP handshake failed.
    #[error("the HTTP handshake with {address} failed")]
    Handshake {
        /// Where to.
        address: SocketAddr,
        /// The cause.
        source: hyper::Error,
    },
}

/// When an instance reached which stage; all as the gateway saw it.
#[derive(Clone, Copy, Debug)]
pub struct Stages {
    /// The pod was there.
    pub seen: Instant,
    /// It had an address.
    pub addressed: Option<Instant>,
    /// A probe succeeded, for the last time.
    pub ready: Option<Instant>,
}

/// One instance as the proxy uses it.
pub struct Upstream {
    /// Its pod.
    pub pod: PodId,
    /// UID of its pod.
    pub uid: String,
    /// What a client's cookie calls it.
    pub token: Token,
    dialer: Arc<dyn Dialer>,
    connections: UpstreamConnections,
    /// Whether its start has been counted as one that requests waited for.
    told_cold: AtomicBool,
    ip: OnceLock<std::net::IpAddr>,
    /// Whether its node calls the pod ready.
    pub node_ready: AtomicBool,
    /// Whether its pod is being deleted.
    pub deleting: AtomicBool,
    /// Whether a task probes it.
    pub probing: AtomicBool,
    stages: Mutex<Stages>,
    stage: Mutex<Stage>,
    #[expect(clippy::vec_box, reason = "a connection is large and moves on each request; its box moves with it")]
    idle: Mutex<Vec<Box<Http1>>>,
    shared: tokio::sync::Mutex<Option<http2::SendRequest<RequestBody>>>,
    /// Whether the HTTP/2 connection takes extended CONNECT, once its settings are there.
    extended_connect: Arc<watch::Sender<Option<bool>>>,
}

/// Limits of the connections to one instance.
#[derive(Clone, Copy, Debug)]
pub struct PoolLimits {
    /// Longest time to connect.
    pub connect_timeout: Duration,
    /// Most idle connections.
    pub idle: usize,
    /// Longest time that a connection is kept idle.
    pub idle_timeout: Duration,
}

impl Upstream {
    /// An instance without an address.
    pub fn new(
        pod: PodId,
        uid: String,
        dialer: Arc<dyn Dialer>,
        connections: UpstreamConnections,
        now: Instant,
    ) -> Arc<Self> {
        Arc::new(Self {
            token: Token::of(&pod, &uid),
            pod,
            uid,
            dialer,
            connections,
            told_cold: AtomicBool::new(false),
            ip: OnceLock::new(),
            node_ready: AtomicBool::new(false),
            deleting: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            stages: Mutex::new(Stages { seen: now, addressed: None, ready: None }),
            stage: Mutex::default(),
            idle: Mutex::default(),
            shared: tokio::sync::Mutex::default(),
            extended_connect: Arc::new(watch::Sender::new(None)),
        })
    }

    /// Sets the pod's address; the first one counts.
    pub fn set_address(&self, ip: std::net::IpAddr, now: Instant) {
        if self.ip.set(ip).is_ok() {
            self.stages.lock().addressed = Some(now);
        }
    }

    /// The pod's address.
    pub fn ip(&self) -> Option<std::net::IpAddr> {
        self.ip.get().copied()
    }

    /// A probe succeeded.
    pub fn note_ready(&self, now: Instant) {
        self.stages.lock().ready = Some(now);
    }

    /// Whether its start is to be counted as one that requests waited for; true once.
    pub fn tell_cold(&self) -> bool {
        !self.told_cold.swap(true, Ordering::Relaxed)
    }

    /// When it reached which stage.
    pub fn stages(&self) -> Stages {
        *self.stages.lock()
    }

    /// How far the pod has come, as its node says.
    pub fn stage(&self) -> Stage {
        self.stage.lock().clone()
    }

    /// Takes over how far the pod has come.
    pub fn set_stage(&self, stage: Stage) {
        *self.stage.lock() = stage;
    }

    /// Whether the node calls the pod ready.
    pub fn is_node_ready(&self) -> bool {
        self.node_ready.load(Ordering::Relaxed)
    }

    /// A connection to one of its ports.
    pub async fn dial(&self, port: u16, limit: Duration) -> Result<Stream, ConnectError> {
        let address = SocketAddr::new(self.ip().ok_or(ConnectError::NoAddress)?, port);
        match timeout(limit, self.dialer.dial(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(ConnectError::Io { address, source }),
            Err(_) => Err(ConnectError::Timeout { address, limit }),
        }
    }

    /// An HTTP/1 connection over a connection.
    pub async fn http1_over(&self, port: u16, stream: Stream) -> Result<Box<Http1>, ConnectError> {
        let address = SocketAddr::new(self.ip().ok_or(ConnectError::NoAddress)?, port);
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectError::Handshake { address, source })?;
        let open = self.connections.count();
        Ok(Box::new(Http1 { sender, driver, closed: false, idle_since: Instant::now(), open, timer: None }))
    }

    /// A new HTTP/1 connection.
    pub async fn http1(&self, port: u16, limit: Duration) -> Result<Box<Http1>, ConnectError> {
        let stream = self.dial(port, limit).await?;
        self.http1_over(port, stream).await
    }

    /// An idle HTTP/1 connection; one that may have gone stale only for a request that can be sent again.
    pub fn reuse(&self, repeatable: bool, limits: &PoolLimits) -> Option<Box<Http1>> {
        let now = Instant::now();
        let mut idle = self.idle.lock();
        while let Some(mut connection) = idle.pop() {
            let age = now.duration_since(connection.idle_since);
            if age > limits.idle_timeout || (!repeatable && age > FRESH) {
                // Those below were put back earlier still.
                if age > limits.idle_timeout {
                    idle.clear();
                } else {
                    idle.push(connection);
                }
                return None;
            }
            if connection.is_usable() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose response is complete; closes it if it takes no further request.
    pub fn keep(&self, mut connection: Box<Http1>, limits: &PoolLimits) {
        if !connection.is_usable() {
            return;
        }
        connection.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        if idle.len() < limits.idle {
            idle.push(connection);
        }
    }

    /// Closes the connections that were idle for too long, or all.
    pub fn close_idle(&self, older_than: Duration) {
        let now = Instant::now();
        let old: Vec<Box<Http1>> = {
            let mut idle = self.idle.lock();
            let count = idle.iter().take_while(|c| now.duration_since(c.idle_since) >= older_than).count();
            idle.drain(..count).collect()
        };
        // Closed here, with the lock given back.
        drop(old);
    }

    /// The shared HTTP/2 connection, made on first use, and whether it was made now; `spawn` runs its task.
    pub async fn http2(
        &self,
        port: u16,
        limit: Duration,
        spawn: impl FnOnce(futures::future::BoxFuture<'static, ()>),
    ) -> Result<(http2::SendRequest<RequestBody>, bool), ConnectError> {
        let mut shared = self.shared.lock().await;
        if let Some(sender) = shared.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok((sender.clone(), false));
        }
        let stream = self.dial(port, limit).await?;
        let address = SocketAddr::new(self.ip().ok_or(ConnectError::NoAddress)?, port);
        let (sender, mut driver) = http2::Builder::new(TokioExecutor::new())
            .initial_max_send_streams(STREAMS_AT_FIRST)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectError::Handshake { address, source })?;
        let extended = self.extended_connect.clone();
        extended.send_replace(None);
        let open = self.connections.count();
        spawn(Box::pin(async move {
            let _open = open;
            let mut looks = interval(SETTINGS_LOOKS);
            // Its requests learn of an error themselves.
            while timeout_with(&mut looks, &mut driver).await.is_none() {
                // Nobody says when the settings come.
                if driver.current_max_send_streams() != STREAMS_AT_FIRST {
                    extended.send_replace(Some(driver.is_extended_connect_protocol_enabled()));
                    let _ = driver.await;
                    return;
                }
            }
        }));
        *shared = Some(sender.clone());
        Ok((sender, true))
    }

    /// Whether the shared HTTP/2 connection takes extended CONNECT (RFC 8441); waits for its settings.
    pub async fn takes_extended_connect(&self, limit: Duration) -> bool {
        let mut known = self.extended_connect.subscribe();
        let settled = timeout(limit, known.wait_for(Option::is_some)).await;
        matches!(settled, Ok(Ok(enabled)) if *enabled == Some(true))
    }
}

/// The outcome, unless the interval's next tick comes first.
async fn timeout_with<F: Future + Unpin>(ticks: &mut Interval, future: &mut F) -> Option<F::Output> {
    tokio::select! {
        output = future => Some(output),
        _ = ticks.tick() => None,
    }
}

/// Waits for `response` while driving `connection`, which carries it.
pub async fn drive_until<F: Future>(connection: &mut Http1, response: F) -> F::Output {
    let mut response = std::pin::pin!(response);
    std::future::poll_fn(|context| {
        connection.drive(context);
        match response.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(output),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// The same, up to `deadline`.
pub async fn drive_until_deadline<F: Future>(
    connection: &mut Http1,
    response: F,
    deadline: Instant,
) -> Option<F::Output> {
    let mut response = std::pin::pin!(response);
    std::future::poll_fn(|context| {
        connection.drive(context);
        if let Poll::Ready(output) = response.as_mut().poll(context) {
            return Poll::Ready(Some(output));
        }
        connection.poll_deadline(deadline, context).map(|()| None)
    })
    .await
}
