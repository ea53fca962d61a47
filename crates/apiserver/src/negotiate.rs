//! Media types: what a client accepts, and what it sent.

use http::{HeaderMap, header};
use serde_json::Value;

use crate::error::{ApiError, ApiResult};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// The objects themselves.
    Object,
    /// Only their metadata.
    Partial,
    /// A Table for printing.
    Table,
}

/// The notation of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The form.
    pub shape: Shape,
    /// The notation.
    pub notation: Notation,
    /// Whether `metadata.managedFields` is left out ([`client::WITHOUT_MANAGED_FIELDS`]).
    pub bare: bool,
}

impl Accepted {
    /// The plain answer.
    pub const JSON: Self = Self { shape: Shape::Object, notation: Notation::Json, bare: false };
}

/// The first entry of `Accept` that can be served.
///
/// # Errors
///
/// 406 that lists what can be served.
pub fn accepted(headers: &HeaderMap, custom: bool) -> ApiResult<Accepted> {
    let bare = headers.contains_key(client::WITHOUT_MANAGED_FIELDS);
    let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Ok(Accepted { bare, ..Accepted::JSON });
    };
    if accept.trim().is_empty() {
        return Ok(Accepted { bare, ..Accepted::JSON });
    }
    for entry in accept.split(',') {
        let mut parts = entry.split(';').map(str::trim);
        let notation = match parts.next().unwrap_or_default() {
            "application/json" | "*/*" | "application/*" => Notation::Json,
            "application/yaml" => Notation::Yaml,
            _ => continue,
        };
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let parameter = |name: &str| parameters.iter().find(|(k, _)| *k == name).map(|(_, v)| *v);
        let meta = parameter("g") == Some("meta.k8s.io") && matches!(parameter("v"), Some("v1" | "v1beta1"));
        let shape = match parameter("as") {
            None => Shape::Object,
            Some("Table") if meta => Shape::Table,
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") if meta => Shape::Partial,
            Some(_) => continue,
        };
        return Ok(Accepted { shape, notation, bare });
    }
    let mut types = vec!["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
    if custom {
        types.pop();
    }
    types.push("application/cbor");
    types.pop();
    let message = format!("only the following media types are accepted: {}", types.join(", "));
    Err(ApiError::new(406, "NotAcceptable", message))
}

/// The media type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes' protobuf.
    Protobuf,
}

/// The media type of a request's body; JSON if it does not say.
///
/// # Errors
///
/// 415 that lists what is understood.
pub fn sent(headers: &HeaderMap) -> ApiResult<Sent> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match content_type.split(';').next().unwrap_or_default().trim() {
        "" | "application/json" => Ok(Sent::Json),
        "application/yaml" => Ok(Sent::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Sent::Protobuf),
        other => {
            let message = format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                "application/json, application/yaml, application/vnd.kubernetes.protobuf"
            );
            let _ = other;
            Err(ApiError::new(415, "UnsupportedMediaType", message))
        }
    }
}

/// A body in JSON or YAML as a value; the error is the text of the fault.
///
/// # Errors
///
/// What is wrong, for a message.
pub fn parse_text(bytes: &[u8], yaml: bool) -> Result<Value, String> {
    if bytes.is_empty() {
        return Err("couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)".into());
    }
    if yaml {
        let value: Value = serde_yaml_ng::from_slice(bytes).map_err(|error| format!("yaml: {error}"))?;
        return Ok(value);
    }
    serde_json::from_slice(bytes).map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
}
