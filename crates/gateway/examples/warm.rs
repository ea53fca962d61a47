//! A gateway in front of one workload, for measuring what its hop costs: `bench/warm.sh` drives it beside nginx.
//!
//! `warm backend ADDRESS` serves a small answer; `warm gateway ADDRESS BACKEND` is a gateway with one Route, host
//! `hello.ns.localhost`, whose only instance is the backend.

mod world;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use client::cache::Caches;
use gateway::{Config, Gateway, Listener, ListenerKind};
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let caches = Caches::new(world::client(backend, Vec::new()), tasks.clone(), stop.clone());
    let listener = Listener { socket: TcpListener::bind(address).await?, kind: ListenerKind::Public };
    let gateway = Gateway::start(Config::default(), caches, Arc::new(world::Nobody), vec![listener], tasks, stop);
    std::future::pending::<()>().await;
    drop(gateway);
    Ok(())
}
