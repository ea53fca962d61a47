//! Bodies of requests and responses: bytes at once, or streams.

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::Value;

use crate::error::ApiError;

/// Error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;
/// A request with any body.
pub type Request = http::Request<Body>;
/// A response with any body.
pub type Response = http::Response<Body>;

/// Largest body of an API request, as in the reference.
pub const BODY_LIMIT_BYTES: usize = 3 << 20;

/// A body that is there as a whole.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An empty body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body made of the chunks of a stream.
pub fn stream<S>(chunks: S) -> Body
where
    S: Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
{
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// A JSON response.
pub fn json(code: StatusCode, value: &Value) -> Response {
    raw_json(code, value.to_string())
}

/// A response whose body is JSON text.
pub fn raw_json(code: StatusCode, text: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
///
/// 413 if it is larger, 400 if the client broke off.
pub async fn read(mut body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|error| ApiError::bad_request(format!("the request's body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > limit {
            let message = format!("Request entity too large: limit is {limit}");
            return Err(ApiError::new(413, "RequestEntityTooLarge", message));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}
