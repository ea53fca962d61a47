//! A gateway in front of one workload, for measuring what its hop costs: `bench/warm.sh` drives it beside nginx.
//!
//! `warm backend ADDRESS` serves a small answer; `warm gateway ADDRESS BACKEND` is a gateway with one Route, host
//! `hello.ns.localhost`, whose only instance is the backend.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use base::RevisionId;
use bytes::Bytes;
use client::cache::Caches;
use client::link::{AutoscalerLink, Stat};
use gateway::{Config, Gateway, Listener, ListenerKind};
use http::{Request, Response};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Nobody;

impl AutoscalerLink for Nobody {
    fn report(&self, _: &[Stat]) {}
    fn poke(&self, _: &RevisionId) {}
}

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["backend", address] => backend(address.parse()?).await,
        ["gateway", address, backend] => run_gateway(address.parse()?, backend.parse()?).await,
        _ => Err("usage: warm backend ADDRESS | warm gateway ADDRESS BACKEND".into()),
    }
}

async fn backend(address: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(|_| async {
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"hello from the workload\n"))))
        });
        tokio::spawn(async move {
            let mut builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn run_gateway(address: SocketAddr, backend: SocketAddr) -> Result<(), Error> {
    let objects = Arc::new([
        ("/apis/serving.knative.dev/v1/revisions", revision(backend.port())),
        ("/apis/serving.knative.dev/v1/routes", route()),
        ("/api/v1/pods", pod(backend)),
    ]);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let objects = objects.clone();
        async move {
            if request.uri().query().unwrap_or_default().contains("watch=true") {
                return std::future::pending().await;
            }
            let items: Vec<&Value> =
                objects.iter().filter(|(path, _)| *path == request.uri().path()).map(|(_, object)| object).collect();
            let list =
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(list.to_string()))))
        }
    });
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let caches = Caches::new(kube::Client::new(service, "default"), tasks.clone(), stop.clone());
    let listener = Listener { socket: TcpListener::bind(address).await?, kind: ListenerKind::Public };
    let gateway = Gateway::start(Config::default(), caches, Arc::new(Nobody), vec![listener], tasks, stop);
    std::future::pending::<()>().await;
    drop(gateway);
    Ok(())
}

fn revision(port: u16) -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "hello-00001", "namespace": "ns"},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": port}]}]}})
}

fn route() -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"name": "hello", "namespace": "ns"}, "spec": {},
        "status": {"observedGeneration": 1, "url": "http://hello.ns.localhost",
            "traffic": [{"revisionName": "hello-00001", "percent": 100}]}})
}

fn pod(address: SocketAddr) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "hello", "namespace": "ns", "uid": "u",
            "labels": {"serving.knative.dev/revision": "hello-00001"}},
        "spec": {"containers": []}, "status": {"podIP": address.ip().to_string()}})
}
