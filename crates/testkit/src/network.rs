//! The pods' network: addresses, and an HTTP server in memory behind each that listens.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use gateway::Dialer;
use gateway::transport::Stream;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::duplex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::checks::Checks;

/// Header that says how many microseconds a request takes.
pub const WORK: &str = "x-work-us";
/// Header that says how many microseconds after the start of the run a request was sent.
pub const SENT: &str = "x-sent-us";
/// Header that asks for a tag.
pub const TAG: &str = "knative-serving-tag";
/// Bytes that a connection holds in each direction.
const BUFFER: usize = 8 * 1024;
/// Addresses there are; a small number, so that they are used again soon.
const ADDRESSES: u8 = 250;

/// All pods by address.
pub struct Network {
    checks: Arc<Checks>,
    state: Mutex<State>,
}

struct State {
    pods: BTreeMap<IpAddr, Arc<PodServer>>,
    free: VecDeque<IpAddr>,
}

/// A pod as the network sees it.
pub struct PodServer {
    /// Namespace and name.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Its Service's name.
    pub service: String,
    /// Its Revision's name.
    pub revision: String,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Cancelled when the present run of the container ends; `None` while nothing listens.
    run: Option<CancellationToken>,
    /// Whether its node cannot be reached.
    unreachable: bool,
    in_flight: u32,
}

impl PodServer {
    /// A pod where nothing listens yet.
    pub fn new(namespace: String, name: String, service: String, revision: String) -> Arc<Self> {
        Arc::new(Self { namespace, name, service, revision, inner: Mutex::default() })
    }

    /// The container listens.
    pub fn listen(&self) {
        self.inner.lock().run = Some(CancellationToken::new());
    }

    /// The container ends: all its connections break. Whether requests were in it.
    pub fn end(&self) -> bool {
        let mut inner = self.inner.lock();
        if let Some(run) = inner.run.take() {
            run.cancel();
        }
        std::mem::take(&mut inner.in_flight) > 0
    }

    /// Whether it listens.
    pub fn listens(&self) -> bool {
        self.inner.lock().run.is_some()
    }

    /// The pod's node gets lost, or is back.
    pub fn set_unreachable(&self, unreachable: bool) {
        self.inner.lock().unreachable = unreachable;
    }

    /// Requests in it.
    pub fn in_flight(&self) -> u32 {
        self.inner.lock().in_flight
    }
}

impl Network {
    /// A network without pods.
    pub fn new(checks: Arc<Checks>) -> Arc<Self> {
        let free = (1..=ADDRESSES).map(|last| IpAddr::V4(Ipv4Addr::new(10, 7, 0, last))).collect();
        Arc::new(Self { checks, state: Mutex::new(State { pods: BTreeMap::new(), free }) })
    }

    /// Gives a pod an address; `None` while all are taken.
    pub fn attach(&self, pod: Arc<PodServer>) -> Option<IpAddr> {
        let mut state = self.state.lock();
        let address = state.free.pop_front()?;
        state.pods.insert(address, pod);
        Some(address)
    }

    /// Takes an address back.
    pub fn detach(&self, address: IpAddr) {
        let mut state = self.state.lock();
        if state.pods.remove(&address).is_some() {
            state.free.push_back(address);
        }
    }

    /// The pod of that name.
    pub fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodServer>> {
        let state = self.state.lock();
        state.pods.values().find(|pod| pod.namespace == namespace && pod.name == name).cloned()
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<Stream> {
        let pod = self.state.lock().pods.get(&address.ip()).cloned();
        let Some(pod) = pod else { return Err(std::io::ErrorKind::HostUnreachable.into()) };
        let (unreachable, run) = {
            let inner = pod.inner.lock();
            (inner.unreachable, inner.run.clone())
        };
        if unreachable {
            return std::future::pending().await;
        }
        let Some(run) = run else { return Err(std::io::ErrorKind::ConnectionRefused.into()) };
        let (near, far) = duplex(BUFFER);
        let checks = self.checks.clone();
        tokio::spawn(async move {
            let served = pod.clone();
            let service = service_fn(move |request| answer(served.clone(), checks.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service);
            // What breaks is the gateway's to see.
            let _ = run.run_until_cancelled(connection).await;
        });
        Ok(Stream::Other(Box::new(near)))
    }
}

async fn answer(
    pod: Arc<PodServer>,
    checks: Arc<Checks>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let work = Duration::from_micros(header(WORK).parse().unwrap_or_default());
    let _busy = Busy::new(pod.clone());
    let sent = checks.start() + Duration::from_micros(header(SENT).parse().unwrap_or_default());
    checks.request_in(&pod, header("host"), header(TAG), sent);
    if !work.is_zero() {
        sleep(work).await;
    }
    while pod.inner.lock().unreachable {
        sleep(Duration::from_secs(1)).await;
    }
    Ok(Response::new(Full::from(pod.revision.clone())))
}

/// Counts a request while it is in a pod's present run.
struct Busy {
    pod: Arc<PodServer>,
    run: Option<CancellationToken>,
}

impl Busy {
    fn new(pod: Arc<PodServer>) -> Self {
        let run = {
            let mut inner = pod.inner.lock();
            inner.in_flight += 1;
            inner.run.clone()
        };
        Self { pod, run }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.run.as_ref().is_some_and(|run| !run.is_cancelled()) {
            let mut inner = self.pod.inner.lock();
            inner.in_flight = inner.in_flight.saturating_sub(1);
        }
    }
}

/// The gateway's way into the network.
pub struct Dial(pub Arc<Network>);

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

impl Dialer for Dial {
    fn dial(&self, address: SocketAddr) -> BoxFuture<'static, std::io::Result<Stream>> {
        let network = self.0.clone();
        Box::pin(async move { network.connect(address).await })
    }
}
