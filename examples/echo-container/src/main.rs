//! A server that speaks every protocol that the gateway passes on, to test and measure with.
//!
//! | Request                              | Answer                                                       |
//! |--------------------------------------|--------------------------------------------------------------|
//! | `GET /?bytes=N&ms=M`                 | N times `x` after M milliseconds; as chunks with `&chunked`   |
//! | POST, PUT                            | the request's body, part by part                             |
//! | `content-type: application/grpc`     | the messages that were sent, and `grpc-status: 0`            |
//! | `upgrade: websocket`                 | each message sent back, until the client closes               |
//!
//! HTTP/1.1 and HTTP/2 by prior knowledge on `PORT` (default 8080). Each answer names its revision in `x-revision`. At
//! SIGTERM it takes no new connections and ends after those that are open, or after a while.

mod websocket;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest wait for what is open at the end.
const GRACE: Duration = Duration::from_secs(25);
/// Most bytes of an answer.
const MOST_BYTES: usize = 1 << 30;
/// Bytes of each part of a long answer.
const PART: Bytes = Bytes::from_static(&[b'x'; 16 * 1024]);
const MOST_STREAMS: u32 = 1000;

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

static REVISION: LazyLock<HeaderValue> = LazyLock::new(|| {
    let revision = std::env::var("K_REVISION").unwrap_or_default();
    HeaderValue::try_from(revision).unwrap_or(HeaderValue::from_static("unnamed"))
});

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    let mut end = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    println!("listening on port {port}");
    let (stop, open) = (CancellationToken::new(), TaskTracker::new());
    loop {
        tokio::select! {
            // One that failed says nothing of the next.
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                open.spawn(serve(stream, stop.clone(), open.clone()));
            },
            _ = end.recv() => break,
        }
    }
    drop(listener);
    stop.cancel();
    open.close();
    let _ = tokio::time::timeout(GRACE, open.wait()).await;
    println!("stopped");
    Ok(())
}

async fn serve(stream: TcpStream, stop: CancellationToken, open: TaskTracker) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(request, open.clone()));
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http2().enable_connect_protocol().max_concurrent_streams(MOST_STREAMS);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // A client that breaks off is no news.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

async fn answer(request: Request<Incoming>, open: TaskTracker) -> Result<Response<Body>, Infallible> {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
    let mut response = if request.headers().get(header::CONTENT_TYPE).is_some_and(grpc) {
        call(request)
    } else if request.headers().contains_key(header::UPGRADE) || request.method() == Method::CONNECT {
        websocket::accept(request, &open).map(|()| empty())
    } else if [Method::POST, Method::PUT].contains(request.method()) {
        Response::new(request.into_body().boxed_unsync())
    } else {
        let wait = Duration::from_millis(number(&request, "ms").unwrap_or(0));
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        let bytes = number(&request, "bytes").and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(12);
        let chunked = request.uri().query().is_some_and(|query| query.ends_with("chunked"));
        Response::new(letters(bytes.min(MOST_BYTES), chunked))
    };
    response.headers_mut().insert("x-revision", REVISION.clone());
    Ok(response)
}

/// So many letters; with a length where they fit into one part.
fn letters(bytes: usize, chunked: bool) -> Body {
    if bytes <= PART.len() && !chunked {
        return Full::new(PART.slice(..bytes)).map_err(|never| match never {}).boxed_unsync();
    }
    let parts = (0..bytes).step_by(PART.len()).map(move |at| Ok(Frame::data(PART.slice(..PART.len().min(bytes - at)))));
    StreamBody::new(stream::iter(parts)).boxed_unsync()
}

/// A gRPC call: its messages are the answer's.
fn call(request: Request<Incoming>) -> Response<Body> {
    let kind = request.headers()[header::CONTENT_TYPE].clone();
    let trailers =
        HeaderMap::from_iter([(header::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let messages = request.into_body().with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(messages.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

/// A number of the query.
fn number(request: &Request<Incoming>, name: &str) -> Option<u64> {
    let mut pairs = request.uri().query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(key, value)| (key == name).then(|| value.parse().ok()).flatten())
}
