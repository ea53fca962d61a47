//! The port for operators: health and metrics.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longest time that a client may take to send a request's head.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Connections at once; further ones are closed.
const MOST_CONNECTIONS: usize = 64;

/// What the port tells.
pub struct Admin {
    ready: AtomicBool,
    metrics: Box<dyn Fn() -> String + Send + Sync>,
}

impl Admin {
    /// Tells `metrics`, and that the platform is not ready.
    pub fn new(metrics: impl Fn() -> String + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { ready: AtomicBool::new(false), metrics: Box::new(metrics) })
    }

    /// Says whether the platform is ready.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is allowed here\n");
        }
        match request.uri().path() {
            "/healthz" | "/livez" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.ready.load(Ordering::Acquire) => text(StatusCode::OK, "ok\n"),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or stopping\n"),
            "/metrics" => {
                let mut response = text(StatusCode::OK, (self.metrics)());
                let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
                response
            }
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /livez, /readyz and /metrics\n"),
        }
    }

    /// Serves until `stop`.
    pub fn serve(self: &Arc<Self>, listener: TcpListener, tasks: &TaskTracker, stop: &CancellationToken) {
        let (admin, stop, tracker) = (self.clone(), stop.clone(), tasks.clone());
        let places = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
        tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = stop.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let (admin, stop) = (admin.clone(), stop.clone());
                tracker.spawn(async move {
                    let _place = place;
                    let service = service_fn(move |request| {
                        let response = admin.answer(&request);
                        async move { Ok::<_, Infallible>(response) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEAD_LIMIT)
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        () = stop.cancelled() => {}
                        // A broken connection of a scraper is the scraper's business.
                        _ = connection => {}
                    }
                });
            }
        });
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
