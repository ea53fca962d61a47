//! The gateway's own answers: what went wrong, and on whose side.
//!
//! Text, or JSON for a client that accepts it; a gRPC client gets a status without a message. No internals: the cause
//! goes to the log under the request's id.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use crate::body::ResponseBody;
use crate::stage::Stage;

/// Why the gateway answers in place of the workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No Host header, or one that cannot be a host.
    #[error("the request names no valid host")]
    NoHost,
    /// Bytes that are no request, or could be read as more than one.
    #[error("the request is malformed: {cause}")]
    Malformed {
        /// What is wrong with it.
        cause: &'static str,
    },
    /// A version other than HTTP/1.0, HTTP/1.1 and HTTP/2.
    #[error("this HTTP version is not served here")]
    Version,
    /// A transfer coding that a gateway would have to undo.
    #[error("the request has a Transfer-Encoding other than chunked")]
    Coding,
    /// The head is too long.
    #[error("the request's head is longer than {limit_bytes} bytes")]
    HeadTooLarge {
        /// The limit.
        limit_bytes: usize,
    },
    /// The head has too many lines.
    #[error("the request has more than {limit} header fields")]
    TooManyFields {
        /// The limit.
        limit: usize,
    },
    /// The target is too long.
    #[error("the request's target is longer than {limit_bytes} bytes")]
    TargetTooLong {
        /// The limit.
        limit_bytes: usize,
    },
    /// The head did not come in time.
    #[error("the request's head was not complete within {limit:?}")]
    HeadTimeout {
        /// The limit.
        limit: Duration,
    },
    /// The body did not come on.
    #[error("fewer than {bytes} bytes of the request's body came within {limit:?}")]
    BodyTimeout {
        /// So many would have been enough.
        bytes: u64,
        /// The limit.
        limit: Duration,
    },
    /// No Route claims the host.
    #[error("no service is reachable at this host")]
    NoRoute,
    /// The body is longer than the gateway takes.
    #[error("the request's body is longer than {limit_bytes} bytes")]
    BodyTooLong {
        /// The limit.
        limit_bytes: u64,
    },
    /// A method that a reverse proxy does not serve.
    #[error("the method CONNECT is served for WebSockets over HTTP/2 only")]
    Connect,
    /// The host is not served without TLS.
    #[error("this host is served over HTTPS only")]
    Insecure,
    /// The Route has no target, or its target does not exist (any more).
    #[error("the service has no revision that takes requests")]
    NoRevision,
    /// Too many requests wait.
    #[error("pending request queue full")]
    QueueFull,
    /// No instance took the request in time.
    #[error("request timeout: no instance was ready within {limit:?}: {stage}")]
    QueueTimeout {
        /// The limit.
        limit: Duration,
        /// How far the instances had come.
        stage: Stage,
    },
    /// No instance could be reached, however often it was tried.
    #[error("no instance of the service could be reached")]
    Unreachable,
    /// The instance took the request and broke the connection before it answered.
    #[error("the service broke the connection before it answered")]
    Broken,
    /// The instance answered a WebSocket's handshake with a success that is none.
    #[error("the service did not switch to a WebSocket")]
    NotSwitched,
    /// The instance did not answer in time.
    #[error("request timeout: the service gave no answer within {limit:?}")]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Whoever sent the request.
    Client,
    /// Whoever runs the platform.
    Platform,
    /// Whoever wrote the service.
    Workload,
}

impl Side {
    /// The side's name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Platform => "platform",
            Self::Workload => "workload",
        }
    }
}

impl Failure {
    /// Status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoHost | Self::Malformed { .. } => StatusCode::BAD_REQUEST,
            Self::Insecure => StatusCode::FORBIDDEN,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            Self::HeadTooLarge { .. } | Self::TooManyFields { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::TargetTooLong { .. } => StatusCode::URI_TOO_LONG,
            Self::HeadTimeout { .. } | Self::BodyTimeout { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BodyTooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRevision | Self::QueueFull | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unreachable | Self::Broken | Self::NotSwitched => StatusCode::BAD_GATEWAY,
            Self::QueueTimeout { .. } | Self::Timeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// Whose side failed.
    pub fn side(&self) -> Side {
        match self {
            Self::NoRevision | Self::QueueFull | Self::QueueTimeout { .. } | Self::Stopping => Side::Platform,
            Self::Unreachable | Self::Broken | Self::NotSwitched | Self::Timeout { .. } => Side::Workload,
            _ => Side::Client,
        }
    }

    /// The gRPC status of the answer.
    ///
    /// Source: gRPC, `doc/http-grpc-status-mapping.md` and `doc/statuscodes.md`.
    fn grpc_status(&self) -> &'static str {
        match self {
            Self::QueueTimeout { .. } | Self::Timeout { .. } => DEADLINE_EXCEEDED,
            Self::BodyTooLong { .. } => "8",
            Self::NoRoute | Self::Connect => "12",
            Self::NoRevision
            | Self::QueueFull
            | Self::Stopping
            | Self::Unreachable
            | Self::Broken
            | Self::NotSwitched => "14",
            _ => "13",
        }
    }

    /// The answer, in the form that the request's `Accept` prefers.
    pub fn answer(&self, request: Option<&HeaderMap>, request_id: &str) -> Response<ResponseBody> {
        let (status, side) = (self.status(), self.side().name());
        if request.is_some_and(is_grpc) {
            return grpc(self.grpc_status(), &format!("{self} ({side} error, request {request_id})"));
        }
        let json = request.is_some_and(accepts_json);
        let text = if json {
            let body = serde_json::json!({"error": self.to_string(), "side": side, "status": status.as_u16(),
                "requestId": request_id});
            format!("{body}\n")
        } else {
            format!("{self} ({side} error, request {request_id})\n")
        };
        let mut response = Response::new(ResponseBody::text(Bytes::from(text)));
        *response.status_mut() = status;
        let kind = if json { "application/json" } else { "text/plain; charset=utf-8" };
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        if matches!(self, Self::QueueFull | Self::Stopping) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Whether the headers are those of a gRPC message; gRPC-Web, which frames its trailers itself, is none.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let rest = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// gRPC's status for a deadline that has passed.
pub const DEADLINE_EXCEEDED: &str = "4";

/// The trailers that end a gRPC response.
pub fn grpc_trailers(status: &'static str, message: &str) -> HeaderMap {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'%';
    let message: String = message
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let mut trailers = HeaderMap::with_capacity(3);
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    if let Ok(message) = HeaderValue::try_from(message) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

/// A response without a message: its trailers are its header.
fn grpc(status: &'static str, message: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.headers_mut() = grpc_trailers(status, message);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn accepts_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|range| range.split(';').next().unwrap_or_default().trim() == "application/json")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn check(failure: Failure, accept: &'static str, want: &str) {
        let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(accept))]);
        let answer = failure.answer(Some(&headers), "f00");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(std::str::from_utf8(&body).unwrap(), want);
    }

    #[tokio::test]
    async fn answers_name_the_side_in_the_form_that_is_asked_for() {
        let limit = Duration::from_secs(3);
        let text = "request timeout: the service gave no answer within 3s (workload error, request f00)\n";
        check(Failure::Timeout { limit }, "*/*", text).await;
        let json =
            "{\"error\":\"pending request queue full\",\"requestId\":\"f00\",\"side\":\"platform\",\"status\":503}\n";
        check(Failure::QueueFull, "text/html, application/json;q=0.9", json).await;
    }

    #[test]
    fn a_grpc_client_gets_a_status_in_the_header() {
        let kind = |kind: &'static str| HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(kind))]);
        let rows = [
            (Failure::QueueTimeout { limit: Duration::from_secs(1), stage: Stage::Missing }, "4"),
            (Failure::Timeout { limit: Duration::from_secs(1) }, "4"),
            (Failure::QueueFull, "14"),
            (Failure::NoRoute, "12"),
        ];
        for (failure, status) in rows {
            let answer = failure.answer(Some(&kind("application/grpc+proto")), "f00");
            let of = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
            assert_eq!((answer.status(), of("content-type").as_str()), (StatusCode::OK, "application/grpc"));
            let message = format!("{failure} ({} error, request f00)", failure.side().name());
            assert_eq!((of("grpc-status"), of("grpc-message")), (status.to_owned(), message));
        }
        assert!(!is_grpc(&kind("application/grpc-web")) && is_grpc(&kind("application/grpc;x")));
        assert_eq!(grpc_trailers("2", "50 %\n")["grpc-message"], "50 %25%0A");
    }

    #[test]
    fn the_troubleshooting_page_has_these_texts() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md")).unwrap();
        let second = Duration::from_secs(1);
        let failures = [
            Failure::NoRoute,
            Failure::Broken,
            Failure::Unreachable,
            Failure::QueueFull,
            Failure::NoRevision,
            Failure::Timeout { limit: second },
            Failure::QueueTimeout { limit: second, stage: Stage::Missing },
        ];
        for failure in failures {
            let text = failure.to_string();
            let text = text.split(':').next().unwrap_or_default();
            let row = format!("| {} | {text} |", failure.status().as_u16());
            assert!(page.contains(&row), "{row}");
        }
    }
}
