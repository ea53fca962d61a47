//! Bodies in Kubernetes' protobuf.

use serde_json::Value;

/// Decodes a body.
///
/// # Errors
///
/// What is wrong, for a message.
pub fn decode(bytes: &[u8]) -> Result<Value, String> {
    crate::proto::decode(bytes).map_err(|error| error.to_string())
}
