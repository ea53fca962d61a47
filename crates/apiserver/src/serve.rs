//! Listening: TLS, HTTP/1.1 and HTTP/2, and who is calling.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ApiServer;
use crate::auth::User;
use crate::body::{BoxError, Response};

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS_LIMIT: usize = 4096;
/// Streams of one HTTP/2 connection: clients in Go send all their watches over one.
const STREAMS_LIMIT: u32 = 1000;
/// Time for a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for requests in flight once the server stops.
const GRACE: Duration = Duration::from_secs(5);

/// Which credentials a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Client certificates of our authority, and bearer tokens.
    Full,
    /// Bearer tokens only: for the pods' network.
    TokensOnly,
}

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The keys cannot be used.
    #[error("the API server's keys cannot be used")]
    Pki(#[from] crate::PkiError),
}

impl ApiServer {
    /// Serves until `stop`, then lets requests in flight end.
    ///
    /// # Errors
    ///
    /// [`ServeError`] if TLS cannot be set up.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        access: Access,
        stop: CancellationToken,
    ) -> Result<(), ServeError> {
        let acceptor = TlsAcceptor::from(self.pki.tls(access == Access::Full)?);
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(CONNECTIONS_LIMIT));
        client::accept::accept(listener, places, &connections, &stop, |stream, _| {
            let (server, acceptor, stop) = (self.clone(), acceptor.clone(), stop.clone());
            async move {
                if let Err(error) = server.connection(stream, acceptor, stop).await {
                    tracing::debug!(%error, "a connection ended with an error");
                }
            }
        })
        .await;
        connections.close();
        if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
            tracing::info!("requests that did not end in time were cut off");
        }
        Ok(())
    }

    async fn connection(
        self: Arc<Self>,
        stream: tokio::net::TcpStream,
        acceptor: TlsAcceptor,
        stop: CancellationToken,
    ) -> Result<(), BoxError> {
        let tls = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake"))??;
        let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
        let by_certificate = certificate.as_ref().and_then(crate::auth::user_of_certificate).map(Arc::new);
        let server = self.clone();
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            let (server, by_certificate) = (server.clone(), by_certificate.clone());
            async move { Ok::<Response, Infallible>(answer(&server, by_certificate.as_deref(), request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(300));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_LIMIT)
            .adaptive_window(true)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(tls), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => return result,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        connection.await
    }
}

fn answer(
    server: &Arc<ApiServer>,
    by_certificate: Option<&User>,
    request: http::Request<Incoming>,
) -> BoxFuture<'static, Response> {
    match server.authenticate(request.headers(), by_certificate) {
        Ok(user) => {
            let request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
            server.handle(user, request)
        }
        Err(error) => Box::pin(std::future::ready(error.response())),
    }
}
