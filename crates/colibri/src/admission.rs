//! Knative's and Function's defaulting and validation, as admission of the embedded API server.

use api::functions::Function;
use api::serving::admission::{self as serving, Kind, Settings};
use apiserver::{Admission, AdmissionError, AdmissionRequest, Operation};
use serde_json::Value;

/// Status of a request that Knative's webhook refuses.
const REFUSED: u16 = 400;

/// Runs the pure functions of crate `api` on each write.
pub struct BuiltIn;

impl Admission for BuiltIn {
    fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError> {
        if request.operation == Operation::Delete || !request.subresource.is_empty() {
            return Ok(Vec::new());
        }
        match request.group {
            "serving.knative.dev" => admit_serving(request, object),
            "functions.colibri.dev" => admit_function(object),
            _ => Ok(Vec::new()),
        }
    }
}

fn admit_serving(request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError> {
    let Some(kind) = Kind::parse(request.kind) else { return Ok(Vec::new()) };
    let settings = Settings::default();
    serving::default(kind, object, request.old, &request.user.name, &settings);
    serving::validate(kind, object, request.old, &settings).map_err(|text| AdmissionError {
        code: REFUSED,
        message: format!(
            "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: {text}"
        ),
    })?;
    Ok(Vec::new())
}

fn admit_function(object: &Value) -> Result<Vec<String>, AdmissionError> {
    let refuse = |message: String| AdmissionError { code: REFUSED, message };
    let function: Function = serde_json::from_value(object.clone()).map_err(|error| {
        refuse(format!("this is not a Function: {error}; see the fields with `kubectl explain function.spec`"))
    })?;
    let problems = api::functions::admission::validate(&function);
    if problems.is_empty() {
        return Ok(Vec::new());
    }
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(refuse(format!("the Function is not valid: {}", lines.join("; "))))
}
