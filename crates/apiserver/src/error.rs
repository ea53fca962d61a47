//! Errors as the Kubernetes API answers them: a `Status` object.

use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::body::{self, Response};
use crate::resource::{FieldError, ResourceDef};

/// An answer other than success. Prints as its message.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status.
    pub code: u16,
    /// The machine's word, such as `NotFound`; empty for internal errors without one.
    pub reason: &'static str,
    /// Text for people; clients match on some.
    pub message: String,
    /// `Status.details`.
    pub details: Option<Value>,
    /// Seconds for the `Retry-After` header.
    pub retry_after: Option<u64>,
    /// A plain text answer instead of a Status (unknown paths).
    pub plain: bool,
}

/// Result of everything that answers a request.
pub type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, retry_after: None, plain: false }
    }

    fn with_details(mut self, details: Value) -> Self {
        self.details = Some(details);
        self
    }

    /// 400 BadRequest.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 500 without a reason, as the reference answers for errors it has no class for.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 500 InternalError.
    pub fn internal_error(message: impl Into<String>) -> Self {
        let message = message.into();
        let details = json!({"causes": [{"message": message}]});
        Self::new(500, "InternalError", format!("Internal error occurred: {message}")).with_details(details)
    }

    /// The store did not take a write: 507 for a full disk, else 500; with the cause.
    pub fn not_stored(error: &store::WriteError) -> Self {
        if !matches!(error, store::WriteError::Full(_)) {
            return Self::internal_error(error.to_string());
        }
        let cause = format!("{error}: free space where the platform's data directory lies");
        let details = json!({"causes": [{"message": cause}]});
        let message =
            format!("nothing was written, {cause}; reads go on, and writes are taken again once there is room");
        Self::new(507, "InsufficientStorage", message).with_details(details)
    }

    /// 404 for a path that no resource has.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource").with_details(json!({}))
    }

    /// 404 in plain text, for a path outside the API.
    pub fn no_such_page() -> Self {
        Self { plain: true, ..Self::new(404, "NotFound", "404 page not found\n") }
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message).with_details(json!({}))
    }

    /// 405 naming the resource and the verb.
    pub fn not_supported(def: &ResourceDef, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", def.qualified_resource());
        Self::new(405, "MethodNotAllowed", message).with_details(details(def, "", &def.plural))
    }

    /// 404 for an object.
    pub fn not_found(def: &ResourceDef, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", def.qualified_resource());
        Self::new(404, "NotFound", message).with_details(details(def, name, &def.plural))
    }

    /// 404 for an object of another resource, by group and plural name.
    pub fn not_found_in(group: &str, plural: &str, name: &str) -> Self {
        let resource = if group.is_empty() { plural.to_string() } else { format!("{plural}.{group}") };
        let mut details = json!({"name": name, "kind": plural});
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).with_details(details)
    }

    /// 409 AlreadyExists.
    pub fn already_exists(def: &ResourceDef, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", def.qualified_resource());
        Self::new(409, "AlreadyExists", message).with_details(details(def, name, &def.plural))
    }

    /// 409 Conflict with an explanation.
    pub fn conflict(def: &ResourceDef, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", def.qualified_resource());
        Self::new(409, "Conflict", message).with_details(details(def, name, &def.plural))
    }

    /// 409 for a failed precondition of a deletion, which names the kind instead of the resource.
    pub fn precondition(def: &ResourceDef, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", def.qualified_kind());
        Self::new(409, "Conflict", message).with_details(details(def, name, &def.kind))
    }

    /// 409 because the object was written since it was read.
    pub fn modified(def: &ResourceDef, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(def, name, why)
    }

    /// 403 Forbidden for an object.
    pub fn forbidden(def: &ResourceDef, name: &str, why: &str) -> Self {
        let resource = def.qualified_resource();
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} \"{name}\" is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).with_details(details(def, name, &def.plural))
    }

    /// 422 Invalid with its causes.
    pub fn invalid(def: &ResourceDef, name: &str, faults: &[FieldError]) -> Self {
        Self::invalid_kind(&def.group, &def.kind, name, faults)
    }

    /// 422 Invalid for a kind by name (options are kinds too).
    pub fn invalid_kind(group: &str, kind: &str, name: &str, faults: &[FieldError]) -> Self {
        let qualified = if group.is_empty() { kind.to_string() } else { format!("{kind}.{group}") };
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let listed = match texts.as_slice() {
            [one] => one.clone(),
            many => {
                let mut unique: Vec<&String> = Vec::new();
                for text in many {
                    if !unique.contains(&text) {
                        unique.push(text);
                    }
                }
                match unique.as_slice() {
                    [one] => (*one).clone(),
                    many => format!("[{}]", many.iter().map(|t| t.as_str()).collect::<Vec<_>>().join(", ")),
                }
            }
        };
        let cause = |fault: &FieldError| {
            let mut cause = json!({"reason": fault.kind.reason(), "message": fault.body()});
            if !fault.path.is_empty() {
                cause["field"] = fault.path.as_str().into();
            }
            cause
        };
        let mut details = Map::new();
        if !name.is_empty() {
            details.insert("name".into(), name.into());
        }
        if !group.is_empty() {
            details.insert("group".into(), group.into());
        }
        if !kind.is_empty() {
            details.insert("kind".into(), kind.into());
        }
        details.insert("causes".into(), faults.iter().map(cause).collect());
        Self::new(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {listed}")).with_details(details.into())
    }

    /// 410 Expired.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }

    /// The HTTP response.
    pub fn response(&self) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = if self.plain {
            let mut response = http::Response::new(body::full(self.message.clone()));
            let plain = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            response
        } else {
            body::json(code, &self.status())
        };
        *response.status_mut() = code;
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// `details` of an error about one object.
pub fn details(def: &ResourceDef, name: &str, kind: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !def.group.is_empty() {
        details.insert("group".into(), def.group.as_ref().into());
    }
    details.insert("kind".into(), kind.into());
    details.into()
}

impl ApiError {
    /// The same error with another text, about another kind.
    pub fn with_message(mut self, message: String, kind: &str) -> Self {
        self.message = message;
        if let Some(details) = &mut self.details {
            details["kind"] = kind.into();
        }
        self
    }
}
