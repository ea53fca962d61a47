//! Patches: JSON patch, merge patch, strategic merge patch.

mod strategic;

use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::resource::Strategy;

/// Kind of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own, for built-in kinds.
    Strategic,
    /// Server-side apply.
    Apply,
}

impl PatchKind {
    /// The kind that a content type names.
    ///
    /// # Errors
    ///
    /// 415 that lists those that are accepted.
    pub fn of(content_type: &str, strategic: bool) -> ApiResult<Self> {
        match content_type {
            "application/json-patch+json" => return Ok(Self::Json),
            "application/merge-patch+json" => return Ok(Self::Merge),
            "application/strategic-merge-patch+json" if strategic => return Ok(Self::Strategic),
            "application/apply-patch+yaml" => return Ok(Self::Apply),
            _ => {}
        }
        let mut types = vec!["application/json-patch+json", "application/merge-patch+json"];
        if strategic {
            types.push("application/strategic-merge-patch+json");
        }
        types.push("application/apply-patch+yaml");
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            types.join(", ")
        );
        Err(ApiError::new(415, "UnsupportedMediaType", message))
    }
}

/// Operations in one JSON patch.
const OPERATIONS_LIMIT: usize = 10_000;

/// A patch that was parsed.
#[derive(Debug)]
pub enum Patch {
    /// JSON patch.
    Json(json_patch::Patch),
    /// Merge patch.
    Merge(Value),
    /// Strategic merge patch.
    Strategic(Value),
}

/// Parses a patch.
///
/// # Errors
///
/// 400 for bad JSON, 413 for too many operations.
pub fn parse(kind: PatchKind, body: &[u8]) -> ApiResult<Patch> {
    match kind {
        PatchKind::Json => {
            let value: Value = serde_json::from_slice(body)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            if let Some(count) = value.as_array().map(Vec::len).filter(|count| *count > OPERATIONS_LIMIT) {
                let message = format!(
                    "Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_LIMIT}, got {count}"
                );
                return Err(ApiError::new(413, "RequestEntityTooLarge", message));
            }
            let patch = serde_json::from_value(value)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            Ok(Patch::Json(patch))
        }
        PatchKind::Merge | PatchKind::Strategic | PatchKind::Apply => {
            let value: Value = serde_json::from_slice(body)
                .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
            if !value.is_object() {
                let found = crate::meta::go_type(&value);
                let message = format!(
                    "error decoding patch: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
                );
                return Err(ApiError::bad_request(message));
            }
            Ok(if kind == PatchKind::Strategic { Patch::Strategic(value) } else { Patch::Merge(value) })
        }
    }
}

impl Patch {
    /// The patched object.
    ///
    /// # Errors
    ///
    /// 422 if the patch does not fit the object.
    pub fn apply(&self, old: &Value, strategy: &dyn Strategy) -> ApiResult<Value> {
        let mut new = old.clone();
        match self {
            Self::Json(patch) => {
                json_patch::patch(&mut new, patch).map_err(|error| unprocessable(&error.to_string()))?
            }
            Self::Merge(patch) => merge(&mut new, patch),
            Self::Strategic(patch) => strategic::apply(&mut new, patch, strategy, &mut Vec::new())?,
        }
        if !new.is_object() {
            return Err(unprocessable("the patched document is no object"));
        }
        Ok(new)
    }

    /// The text by which a fault names the patch.
    pub fn shown(&self, patched: &Value) -> String {
        match self {
            Self::Strategic(patch) => patch.to_string(),
            _ => patched.to_string(),
        }
    }
}

fn unprocessable(why: &str) -> ApiError {
    ApiError::new(422, "Invalid", format!("the server rejected our request due to an error in our request: {why}"))
}

/// RFC 7386, without leaving nulls behind.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in fields {
        if value.is_null() {
            map.remove(key);
        } else if value.is_object() {
            merge(map.entry(key.clone()).or_insert(Value::Null), value);
        } else {
            map.insert(key.clone(), value.clone());
        }
    }
}
