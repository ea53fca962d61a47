//! HTTPS between processes of the platform: certificates from PEM files, one server loop, one way to connect.
//!
//! Who a peer is, is told by a DNS name in its certificate ([`names`]), not by the address it calls from: processes
//! move, their names stay.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::crypto::ring;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::accept::accept;

/// Connections of one server at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Time for a TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Silence after which the other side of an HTTP/2 connection is asked whether it is there, and time for its answer.
pub const PING_INTERVAL: Duration = Duration::from_secs(3);
/// See [`PING_INTERVAL`].
pub const PING_LIMIT: Duration = Duration::from_secs(5);

/// DNS names of the roles, as their certificates carry them.
pub mod names {
    /// The controller: the link's server, and the admission webhooks.
    pub const CONTROLLER: &str = "controller.colibri-system.svc";
    /// The gateway: the link's client.
    pub const GATEWAY: &str = "gateway.colibri-system.svc";
    /// The node: what the API server asks it.
    pub const NODE: &str = "node.colibri-system.svc";
}

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Why keys and certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("the file {path} cannot be read")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no certificate or key in a text.
    #[error("{what} holds no usable {wanted} in PEM form")]
    Pem {
        /// Which text.
        what: String,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Certificate and key do not fit, or cannot be used.
    #[error("the certificate or key cannot be used")]
    Tls(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("the certificates of the authority cannot be used")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate with its chain, and the key to it.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, then those that signed it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key.
    pub key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Identity {
    /// Reads both from files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] names the file.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&file(certificate)?).filter_map(Result::ok).collect();
        if chain.is_empty() {
            return Err(TlsError::Pem { what: certificate.display().to_string(), wanted: "certificate" });
        }
        let key = PrivateKeyDer::from_pem_slice(&file(key)?)
            .map_err(|_| TlsError::Pem { what: key.display().to_string(), wanted: "private key" })?;
        Ok(Self { chain, key })
    }
}

fn file(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File { path: path.to_path_buf(), source })
}

/// The authorities in a file.
///
/// # Errors
///
/// [`TlsError`] names the file.
pub fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    roots(&file(path)?, &path.display().to_string())
}

/// The authorities in a PEM text; `what` names the text in errors.
///
/// # Errors
///
/// [`TlsError::Pem`].
pub fn roots(pem: &[u8], what: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem).filter_map(Result::ok) {
        roots.add(certificate)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Pem { what: what.to_owned(), wanted: "certificate" });
    }
    Ok(roots)
}

/// TLS of a client that trusts `roots` and shows `identity`.
///
/// # Errors
///
/// [`TlsError::Tls`].
pub fn client_tls(roots: RootCertStore, identity: Option<Identity>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    Ok(match identity {
        Some(Identity { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    })
}

/// TLS of a server; with `clients` a client must show a certificate of these authorities.
///
/// # Errors
///
/// [`TlsError`].
pub fn server_tls(identity: Identity, clients: Option<RootCertStore>) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match clients {
        Some(roots) => builder
            .with_client_cert_verifier(WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build()?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain, identity.key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether a certificate, which was verified already, carries a DNS name.
pub fn carries(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok(name) = ServerName::try_from(name) else { return false };
    ParsedCertificate::try_from(certificate)
        .is_ok_and(|certificate| rustls::client::verify_server_name(&certificate, &name).is_ok())
}

/// Why nothing came of a request to another process.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No connection in time.
    #[error("{address} does not answer within {limit:?}")]
    Timeout {
        /// Address that was called.
        address: String,
        /// Time that it had.
        limit: Duration,
    },
    /// No connection, or no TLS.
    #[error("no connection to {address}")]
    Connect {
        /// Address that was called.
        address: String,
        /// The cause.
        source: io::Error,
    },
    /// The name that the peer must have is no name.
    #[error("{0:?} is not a name that a certificate can carry")]
    Name(String),
    /// The conversation broke.
    #[error("the conversation with {address} broke off")]
    Http {
        /// Address that was called.
        address: String,
        /// The cause.
        source: hyper::Error,
    },
}

/// Opens a TLS connection to `address`, whose certificate must carry `name`.
///
/// # Errors
///
/// [`CallError`].
pub async fn connect(
    address: &str,
    name: &str,
    tls: Arc<ClientConfig>,
    limit: Duration,
) -> Result<TlsStream<TcpStream>, CallError> {
    let name = ServerName::try_from(name.to_owned()).map_err(|_| CallError::Name(name.to_owned()))?;
    let opening = async {
        let stream = TcpStream::connect(address).await?;
        // Only latency is at stake.
        let _ = stream.set_nodelay(true);
        TlsConnector::from(tls).connect(name, stream).await
    };
    let opened = tokio::time::timeout(limit, opening).await;
    let opened = opened.map_err(|_| CallError::Timeout { address: address.to_owned(), limit })?;
    opened.map_err(|source| CallError::Connect { address: address.to_owned(), source })
}

/// Sends one request over a connection of its own, by HTTP/1.1. The answer's head must come within `limit`; its body
/// may take its time.
///
/// # Errors
///
/// [`CallError`].
pub async fn send(
    address: &str,
    name: &str,
    tls: Arc<ClientConfig>,
    mut request: Request<Body>,
    limit: Duration,
) -> Result<Response<Body>, CallError> {
    let stream = connect(address, name, tls, limit).await?;
    let broken = |source| CallError::Http { address: address.to_owned(), source };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    if let Ok(host) = http::HeaderValue::from_str(address) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    let answer = tokio::time::timeout(limit, sender.send_request(request)).await;
    let answer = answer.map_err(|_| CallError::Timeout { address: address.to_owned(), limit })?.map_err(broken)?;
    Ok(answer.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync()))
}

/// The other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it calls from.
    pub address: SocketAddr,
    /// Its certificate, verified.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Serves HTTPS until `stop`; connections end with their requests. All tasks are on `tasks`.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: ServerConfig,
    tasks: TaskTracker,
    stop: CancellationToken,
    handler: H,
) where
    H: Fn(Arc<Peer>, Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    accept(listener, Arc::new(Semaphore::new(CONNECTIONS)), &tasks, &stop, |stream, address| {
        let (acceptor, handler, stop) = (acceptor.clone(), handler.clone(), stop.clone());
        async move {
            if let Err(error) = connection(stream, address, acceptor, handler, stop).await {
                debug!(%address, error, "a connection broke");
            }
        }
    })
    .await;
}

async fn connection<H, F>(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    handler: H,
    stop: CancellationToken,
) -> Result<(), BoxError>
where
    H: Fn(Arc<Peer>, Request<Body>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let tls = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await??;
    let certificate = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
    let peer = Arc::new(Peer { address, certificate: certificate.map(CertificateDer::into_owned) });
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
        let answer = handler(peer.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(PING_LIMIT)
        .max_concurrent_streams(256);
    let connection = builder.serve_connection(TokioIo::new(tls), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}
