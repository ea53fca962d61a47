//! Plain HTTP: uploads to the API server with the kubeconfig's credentials, and calls through the gateway.

use std::time::Duration;

use ::http::{HeaderMap, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::net::TcpStream;

use super::error::{CliError, causes};

/// Longest answer that the API server's own endpoints may give.
const ANSWER_LIMIT_BYTES: usize = crate::extensions::CONTENT_LIMIT_BYTES as usize;
/// Time until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// POSTs to the API server and returns the answer's JSON.
///
/// # Errors
///
/// When the server does not answer, or refuses: the text is its own.
pub async fn post(client: &Client, path: &str, content_type: &str, body: Body) -> Result<Value, CliError> {
    let request = Request::post(path).header("content-type", content_type).body(body);
    send(client, path, request).await
}

/// GETs from the API server and returns the answer's JSON.
///
/// # Errors
///
/// As [`post`].
pub async fn get(client: &Client, path: &str) -> Result<Value, CliError> {
    send(client, path, Request::get(path).body(Body::empty())).await
}

/// GETs from the API server and returns the answer as it is.
///
/// # Errors
///
/// As [`post`].
pub async fn get_bytes(client: &Client, path: &str) -> Result<Bytes, CliError> {
    send_for_bytes(client, path, Request::get(path).body(Body::empty())).await
}

async fn send(client: &Client, path: &str, request: Result<Request<Body>, ::http::Error>) -> Result<Value, CliError> {
    let body = send_for_bytes(client, path, request).await?;
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

async fn send_for_bytes(
    client: &Client,
    path: &str,
    request: Result<Request<Body>, ::http::Error>,
) -> Result<Bytes, CliError> {
    let request = request.map_err(|error| CliError::new(format!("the request {path} cannot be made: {error}")))?;
    let response = client.send(request).await.map_err(|error| CliError::api(&format!("use {path}"), &error))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT_BYTES).collect().await;
    let body =
        body.map_err(|error| CliError::unreachable(format!("the answer of {path} broke off: {error}")))?.to_bytes();
    if status.is_success() {
        return Ok(body);
    }
    let json: Option<Value> = serde_json::from_slice(&body).ok();
    let said = json.as_ref().and_then(|json| json.get("message")?.as_str().map(str::to_owned));
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    let cure = match status {
        StatusCode::NOT_FOUND => {
            "this API server is not Colibri's, or an older one: --context and --kubeconfig choose another"
        }
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
            "use the administrator's kubeconfig: colibri kubeconfig prints it"
        }
        _ => "",
    };
    Err(CliError::new(format!("the platform refused {path} with {status}: {said}")).cured_by(cure))
}

/// A request to a service.
pub struct Call {
    /// Method.
    pub method: Method,
    /// Host that the service answers to.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Headers beside Host.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// An answer whose head is there.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body to come.
    pub body: hyper::body::Incoming,
}

/// Sends a request to `address` (`host:port`) over HTTP/1.1.
///
/// # Errors
///
/// When nothing answers there.
pub async fn call(address: &str, call: Call) -> Result<Answer, CliError> {
    let silent = |why: String| {
        CliError::unreachable(format!("the gateway at {address} does not answer ({why}). Is the platform running?"))
    };
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| silent(format!("no connection in {CONNECT_TIMEOUT:?}")))?;
    let stream = stream.map_err(|error| silent(error.to_string()))?;
    // Latency is what is measured here; where it cannot be set, it is only a little worse.
    let _ = stream.set_nodelay(true);
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| silent(causes(&error)))?;
    tokio::spawn(connection);
    let mut request = Request::builder().method(call.method).uri(call.path.as_str()).header("host", call.host);
    if let Some(headers) = request.headers_mut() {
        headers.extend(call.headers);
    }
    let request = request.body(Full::new(call.body));
    let request = request.map_err(|error| CliError::new(format!("the request cannot be made: {error}")))?;
    let response = sender.send_request(request).await.map_err(|error| silent(causes(&error)))?;
    let (head, body) = response.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, body })
}
