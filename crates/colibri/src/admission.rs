//! Knative's and Function's defaulting and validation: built into the embedded API server, and for every other one
//! served by the controller as admission webhooks ([`answer`]).

use api::functions::Function;
use api::serving::admission::{self as serving, Kind, Settings};
use apiserver::{Admission, AdmissionError, AdmissionRequest, Operation, User};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Status of a request that Knative's webhook refuses.
const REFUSED: u16 = 400;
/// Names of the two webhooks, as Knative names its own.
pub const DEFAULTING: &str = "webhook.serving.knative.dev";
/// See [`DEFAULTING`].
pub const VALIDATION: &str = "validation.webhook.serving.knative.dev";
/// Path of the webhook that fills in defaults.
pub const DEFAULTING_PATH: &str = "/admission/defaulting";
/// Path of the webhook that checks.
pub const VALIDATION_PATH: &str = "/admission/validation";

/// Runs the pure functions of crate `api` on each write.
pub struct BuiltIn;

impl Admission for BuiltIn {
    fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError> {
        default(request, object);
        match validate(request, object) {
            Ok(()) => Ok(Vec::new()),
            // The text of a server that has asked the webhook.
            Err(text) if request.group == "serving.knative.dev" => Err(AdmissionError {
                code: REFUSED,
                message: format!("admission webhook \"{VALIDATION}\" denied the request: {text}"),
            }),
            Err(message) => Err(AdmissionError { code: REFUSED, message }),
        }
    }
}

/// Whether there is anything to say about a request at all.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    request.operation != Operation::Delete && request.subresource.is_empty()
}

fn default(request: &AdmissionRequest<'_>, object: &mut Value) {
    if concerns(request)
        && request.group == "serving.knative.dev"
        && let Some(kind) = Kind::parse(request.kind)
    {
        serving::default(kind, object, request.old, &request.user.name, &Settings::default());
    }
}

fn validate(request: &AdmissionRequest<'_>, object: &Value) -> Result<(), String> {
    if !concerns(request) {
        return Ok(());
    }
    match request.group {
        "serving.knative.dev" => {
            let Some(kind) = Kind::parse(request.kind) else { return Ok(()) };
            serving::validate(kind, object, request.old, &Settings::default())
                .map_err(|text| format!("validation failed: {text}"))
        }
        "functions.colibri.dev" => validate_function(object),
        _ => Ok(()),
    }
}

fn validate_function(object: &Value) -> Result<(), String> {
    // The definition keeps what it does not know: a misspelt field would have no effect, and nobody would say so.
    let fields = api::fields::of_function(object);
    if !fields.is_empty() {
        let lines: Vec<String> = fields.iter().map(ToString::to_string).collect();
        return Err(format!("the Function is not valid: {}", lines.join("; ")));
    }
    let function: Function = serde_json::from_value(object.clone()).map_err(|error| {
        format!("this is not a Function: {error}; see the fields with `kubectl explain function.spec`")
    })?;
    let problems = api::functions::admission::validate(&function);
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    Err(format!("the Function is not valid: {}", lines.join("; ")))
}

/// Answers the AdmissionReview that an API server sends to one of the two paths.
///
/// # Errors
///
/// When it is no AdmissionReview.
pub fn answer(path: &str, review: &Value) -> Result<Value, String> {
    let request = &review["request"];
    let uid = request["uid"].as_str().ok_or("the body is no AdmissionReview: request.uid is missing")?;
    let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let operation = match text("/operation") {
        "CREATE" => Operation::Create,
        "UPDATE" => Operation::Update,
        _ => Operation::Delete,
    };
    let user = User { name: text("/userInfo/username").to_owned(), ..User::default() };
    let seen = AdmissionRequest {
        operation,
        group: text("/kind/group"),
        version: text("/kind/version"),
        resource: text("/resource/resource"),
        kind: text("/kind/kind"),
        subresource: text("/subResource"),
        namespace: text("/namespace"),
        name: text("/name"),
        user: &user,
        dry_run: request["dryRun"] == true,
        old: Some(&request["oldObject"]).filter(|old| !old.is_null()),
    };
    let object = &request["object"];
    let mut response = json!({"uid": uid, "allowed": true});
    if path == DEFAULTING_PATH {
        let mut defaulted = object.clone();
        default(&seen, &mut defaulted);
        let patch = json_patch::diff(object, &defaulted);
        if !patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(json!(patch).to_string()).into();
        }
    } else if let Err(message) = validate(&seen, object) {
        response["allowed"] = false.into();
        response["status"] = json!({"code": REFUSED, "reason": "BadRequest", "message": message});
    }
    Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(object: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
            "uid": "1", "operation": "CREATE", "name": "a", "namespace": "default", "object": object,
            "kind": {"group": "serving.knative.dev", "version": "v1", "kind": "Service"},
            "resource": {"group": "serving.knative.dev", "version": "v1", "resource": "services"},
            "userInfo": {"username": "jane"},
        }})
    }

    fn service(spec: Value) -> Value {
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec})
    }

    #[test]
    fn the_webhook_does_what_the_built_in_admission_does() {
        let object = service(json!({"template": {"spec": {"containers": [{"image": "x"}]}}}));
        let answered = answer(DEFAULTING_PATH, &review(object.clone())).unwrap();
        let patch = STANDARD.decode(answered["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        let mut by_webhook = object.clone();
        json_patch::patch(&mut by_webhook, &patch).unwrap();

        let user = User { name: "jane".into(), ..User::default() };
        let request = AdmissionRequest {
            operation: Operation::Create,
            group: "serving.knative.dev",
            version: "v1",
            resource: "services",
            kind: "Service",
            subresource: "",
            namespace: "default",
            name: "a",
            user: &user,
            dry_run: false,
            old: None,
        };
        let mut built_in = object;
        BuiltIn.admit(&request, &mut built_in).unwrap();
        assert_eq!(by_webhook, built_in);
        assert_eq!(by_webhook["spec"]["template"]["spec"]["timeoutSeconds"], 300);
        assert_eq!(by_webhook["metadata"]["annotations"]["serving.knative.dev/creator"], "jane");

        // What is defaulted already needs no patch, and passes.
        let answered = answer(DEFAULTING_PATH, &review(built_in.clone())).unwrap();
        assert!(answered["response"].get("patch").is_none(), "{answered}");
        assert_eq!(answer(VALIDATION_PATH, &review(built_in)).unwrap()["response"]["allowed"], true);

        let mut wrong = service(json!({"template": {"spec": {"containers": []}}}));
        let built_in = BuiltIn.admit(&request, &mut wrong.clone()).unwrap_err();
        default(&request, &mut wrong);
        let status = &answer(VALIDATION_PATH, &review(wrong)).unwrap()["response"]["status"];
        // The API server puts the webhook's name before it.
        let text = status["message"].as_str().unwrap();
        assert_eq!(built_in.message, format!("admission webhook \"{VALIDATION}\" denied the request: {text}"));
        assert_eq!(status["code"], built_in.code);
    }

    #[test]
    fn what_is_no_review_is_refused() {
        assert!(answer(VALIDATION_PATH, &json!({"kind": "Pod"})).is_err());
    }
}
