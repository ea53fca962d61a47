//! A gateway over a fake API server, with workloads on loopback addresses.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::RevisionId;
use bytes::Bytes;
use client::cache::Caches;
use client::link::{AutoscalerLink, Stat};
use futures::future::BoxFuture;
use gateway::{Config, Gateway, Listener, ListenerKind};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fake_api::FakeApi;

pub const PODS: &str = "/api/v1/pods";
pub const REVISIONS: &str = "/apis/serving.knative.dev/v1/revisions";
pub const ROUTES: &str = "/apis/serving.knative.dev/v1/routes";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/colibri-system/configmaps";

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

type OnPoke = Box<dyn Fn(&RevisionId) + Send + Sync>;

#[derive(Default)]
pub struct Autoscaler {
    pub pokes: AtomicUsize,
    pub stats: Mutex<Vec<Stat>>,
    pub on_poke: Mutex<Option<OnPoke>>,
}

impl AutoscalerLink for Autoscaler {
    fn report(&self, stats: &[Stat]) {
        self.stats.lock().extend_from_slice(stats);
    }

    fn poke(&self, revision: &RevisionId) {
        self.pokes.fetch_add(1, Ordering::SeqCst);
        if let Some(on_poke) = self.on_poke.lock().as_ref() {
            on_poke(revision);
        }
    }
}

pub struct World {
    pub api: Arc<FakeApi>,
    pub gateway: Arc<Gateway>,
    pub autoscaler: Arc<Autoscaler>,
    pub public: SocketAddr,
    pub inside: SocketAddr,
    /// The HTTPS listener, of a world that has one.
    pub tls: Option<SocketAddr>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

impl World {
    pub async fn start(config: Config) -> Self {
        Self::start_with(config, None).await
    }

    /// With an HTTPS listener if there is TLS for one.
    pub async fn start_with(config: Config, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let api = FakeApi::new();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let caches = Caches::new(api.client(), tasks.clone(), stop.clone());
        let public = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addresses = (public.local_addr().unwrap(), inside.local_addr().unwrap());
        let autoscaler = Arc::new(Autoscaler::default());
        let mut listeners = vec![
            Listener { socket: public, kind: ListenerKind::Public },
            Listener { socket: inside, kind: ListenerKind::PodNetwork },
        ];
        let mut secure = None;
        if let Some(tls) = tls {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            secure = Some(socket.local_addr().unwrap());
            listeners.push(Listener { socket, kind: ListenerKind::Tls(tls) });
        }
        let gateway = Gateway::start(config, caches, autoscaler.clone(), listeners, tasks.clone(), stop.clone());
        Self { api, gateway, autoscaler, public: addresses.0, inside: addresses.1, tls: secure, stop, tasks }
    }

    /// A Revision `name-1`, a Route `name` to it, and its programming awaited.
    pub async fn service(&self, name: &str, port: u16, spec: Value) {
        self.api.put(REVISIONS, revision(&format!("{name}-1"), port, spec));
        let traffic = json!([{"revisionName": format!("{name}-1"), "percent": 100}]);
        self.route(name, 1, traffic, json!({})).await;
    }

    pub async fn route(&self, name: &str, generation: i64, traffic: Value, labels: Value) {
        use client::link::GatewayLink;
        let status = json!({"observedGeneration": generation, "url": format!("http://{name}.ns.localhost"),
            "traffic": traffic});
        let metadata = json!({"name": name, "namespace": "ns", "labels": labels});
        let route = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": metadata,
            "spec": {}, "status": status});
        self.api.put(ROUTES, route);
        self.gateway.programmed(base::RouteId::new("ns", name), generation).await;
    }

    pub fn load(&self, revision: &str) -> usize {
        use client::link::GatewayLink;
        self.gateway.load(&RevisionId::new("ns", revision))
    }

    /// Waits until `revision` has that many requests in flight and waiting.
    pub async fn loaded(&self, revision: &str, load: usize) {
        until(|| self.load(revision) == load).await;
    }

    pub async fn get(&self, host: &str) -> (u16, String) {
        let response = send(self.public, request("GET", host, "/", "")).await;
        (response.status().as_u16(), text(response).await)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gateway.stop_now();
    }
}

/// Waits for a state that comes by itself; the test's own time limit is the runner's.
pub async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub fn revision(name: &str, port: u16, spec: Value) -> Value {
    let mut spec = spec;
    let protocol = spec.as_object_mut().and_then(|s| s.remove("portName")).unwrap_or(json!("http1"));
    spec["containers"] = json!([{"name": "c", "ports": [{"containerPort": port, "name": protocol}]}]);
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": name, "namespace": "ns"}, "spec": spec})
}

pub fn pod(revision: &str, name: &str, ip: Option<Ipv4Addr>) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"serving.knative.dev/revision": revision}},
        "spec": {"containers": []}, "status": {"podIP": ip}})
}

pub fn request(method: &str, host: &str, path: &str, body: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", host);
    request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

/// A client's HTTP/2 connection, by prior knowledge.
pub async fn http2<B>(to: SocketAddr) -> hyper::client::conn::http2::SendRequest<B>
where
    B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + Unpin + 'static,
{
    let stream = TokioIo::new(TcpStream::connect(to).await.unwrap());
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends these bytes; all that comes back until the connection ends.
pub async fn bytes(to: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    rest(&mut stream).await
}

/// All that comes until the connection ends.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// All that comes up to and with `end`.
pub async fn up_to(stream: &mut TcpStream, end: &str) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&answer)),
        }
    }
    String::from_utf8(answer).unwrap()
}

/// A body of one part that does not end.
pub fn endless(first: &'static str) -> Body {
    use futures::stream::{iter, pending};
    let first = iter([Ok(http_body::Frame::data(Bytes::from_static(first.as_bytes())))]);
    http_body_util::StreamBody::new(futures::StreamExt::chain(first, pending())).boxed_unsync()
}

/// A workload that speaks bytes: `serve` gets each connection, those of probes as well.
pub async fn raw_workload<F>(ip: u8, serve: impl Fn(TcpStream) -> F + Send + 'static) -> (Ipv4Addr, u16)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let ip = Ipv4Addr::new(127, 0, 0, ip);
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(stream));
        }
    });
    (ip, port)
}

/// Sends one request over a connection of its own, which goes with the response's body.
pub async fn send<B>(to: SocketAddr, request: Request<B>) -> Response<Incoming>
where
    B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
{
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.unwrap()
}

pub async fn text(response: Response<Incoming>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub fn full(text: impl Into<String>) -> Response<Body> {
    Response::new(Full::new(Bytes::from(text.into())).boxed_unsync())
}

/// Takes an upgrade to `protocol`, and sends back what comes, four bytes at a time.
pub fn echo(request: Request<Incoming>, protocol: &'static str) -> Response<Body> {
    tokio::spawn(async {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        let mut buffer = [0; 4];
        while stream.read_exact(&mut buffer).await.is_ok() {
            stream.write_all(&buffer).await.unwrap();
        }
    });
    let mut response = full("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
    response.headers_mut().insert("upgrade", HeaderValue::from_static(protocol));
    response
}

type Handler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A workload on one loopback address.
pub struct Workload {
    pub ip: Ipv4Addr,
    pub port: u16,
    pub now: Arc<AtomicUsize>,
    pub most: Arc<AtomicUsize>,
    pub served: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Workload {
    /// Listens on `127.0.0.ip:port`; port 0 picks one.
    pub async fn start<F>(ip: u8, port: u16, handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::listen(ip, port, false, handler).await
    }

    /// The same, and it takes HTTP/2's extended CONNECT.
    pub async fn with_extended_connect<F>(
        ip: u8,
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::listen(ip, 0, true, handler).await
    }

    async fn listen<F>(
        ip: u8,
        port: u16,
        extended_connect: bool,
        handler: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let ip = Ipv4Addr::new(127, 0, 0, ip);
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let counts: [Arc<AtomicUsize>; 3] = Default::default();
        let [now, most, served] = counts.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, handler.clone(), counts.clone(), extended_connect));
            }
        });
        Self { ip, port, now, most, served, accepting }
    }

    /// Closes the listener: new connections are refused.
    pub async fn refuse(&mut self) {
        self.accepting.abort();
        let _ = (&mut self.accepting).await;
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn serve(stream: TcpStream, handler: Handler, counts: [Arc<AtomicUsize>; 3], extended_connect: bool) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, [now, most, served]) = (handler.clone(), counts.clone());
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _inside = Inside(now);
            let response = handler(request).await;
            served.fetch_add(1, Ordering::SeqCst);
            Ok::<_, Infallible>(response)
        }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    if extended_connect {
        builder.http2().enable_connect_protocol();
    }
    let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}
