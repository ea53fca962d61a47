//! Knative's and Function's defaulting and validation, and that of the platform's ConfigMaps: built into the embedded API
//! server, and for every other one served by the controller as admission webhooks ([`answer`]).

use std::sync::Arc;

use api::config::{Map, Settings};
use api::functions::Function;
use api::serving::RevisionTemplate;
use api::serving::admission::{self as serving, Kind};
use api::serving::annotations::SERVICE_LABEL;
use apiserver::{Admission, AdmissionError, AdmissionRequest, Operation, User};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::Live;
use serde_json::{Value, json};

/// Status of a request that Knative's webhook refuses.
const REFUSED: u16 = 400;
/// Names of the webhooks, as Knative names its own.
pub const DEFAULTING: &str = "webhook.serving.knative.dev";
/// See [`DEFAULTING`].
pub const VALIDATION: &str = "validation.webhook.serving.knative.dev";
/// See [`DEFAULTING`]; of ConfigMaps.
pub const CONFIGURATION: &str = "config.webhook.serving.knative.dev";
/// Path of the webhook that fills in defaults.
pub const DEFAULTING_PATH: &str = "/admission/defaulting";
/// Path of the webhooks that check.
pub const VALIDATION_PATH: &str = "/admission/validation";

/// Runs the pure functions of crate `api` on each write.
#[derive(Default)]
pub struct BuiltIn(pub Arc<Live>);

/// A refusal: the webhook that speaks, if it is one of Knative's, and why.
type Refusal = (Option<&'static str>, String);

impl Admission for BuiltIn {
    fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError> {
        let settings = self.0.get();
        default(request, object, &settings).and_then(|()| validate(request, object, &settings)).map_err(
            |(webhook, text)| AdmissionError {
                code: REFUSED,
                // The text of a server that has asked the webhook.
                message: match webhook {
                    Some(webhook) => format!("admission webhook \"{webhook}\" denied the request: {text}"),
                    None => text,
                },
            },
        )
    }
}

/// Whether there is anything to say about a request at all.
fn concerns(request: &AdmissionRequest<'_>) -> bool {
    request.operation != Operation::Delete && request.subresource.is_empty()
}

fn default(request: &AdmissionRequest<'_>, object: &mut Value, settings: &Settings) -> Result<(), Refusal> {
    match Kind::parse(request.kind) {
        Some(kind) if concerns(request) && request.group == "serving.knative.dev" => {
            serving::default(kind, object, request.old, &request.user.name, settings)
                .map_err(|why| (Some(DEFAULTING), format!("mutation failed: cannot decode incoming new object: {why}")))
        }
        _ => Ok(()),
    }
}

/// What the user should know, or why the object is refused.
fn validate(request: &AdmissionRequest<'_>, object: &Value, settings: &Settings) -> Result<Vec<String>, Refusal> {
    if !concerns(request) {
        return Ok(Vec::new());
    }
    match request.group {
        "serving.knative.dev" => {
            let Some(kind) = Kind::parse(request.kind) else { return Ok(Vec::new()) };
            let verdict = serving::validate(kind, object, request.old, settings);
            match verdict.error {
                Some(text) => Err((Some(VALIDATION), format!("validation failed: {text}"))),
                None => dry_run(request, kind, object)
                    .map(|()| verdict.warnings)
                    .map_err(|text| (Some(VALIDATION), format!("validation callback failed: {text}"))),
            }
        }
        "networking.internal.knative.dev" if request.kind == "ClusterDomainClaim" => {
            match serving::validate_claim(object, request.old) {
                Some(text) => Err((Some(VALIDATION), format!("validation failed: {text}"))),
                None => Ok(Vec::new()),
            }
        }
        "functions.colibri.dev" => validate_function(object).map(|()| Vec::new()).map_err(|text| (None, text)),
        "" if request.kind == "ConfigMap" && request.namespace == api::SYSTEM_NAMESPACE => {
            let name = object["metadata"]["name"].as_str().unwrap_or(request.name);
            let Some(map) = Map::of(name) else { return Ok(Vec::new()) };
            // What is not a text the API server refuses itself.
            let data = serde_json::from_value(object["data"].clone()).unwrap_or_default();
            map.check(&data).map_err(|error| (Some(CONFIGURATION), format!("validation failed: {error}")))
        }
        _ => Ok(Vec::new()),
    }
}

/// In a dry run of a template also what would be said of its pod.
///
/// Source: `knative/serving/pkg/webhook/podspec_dryrun.go`.
fn dry_run(request: &AdmissionRequest<'_>, kind: Kind, object: &Value) -> Result<(), String> {
    let is_part_of_service = object["metadata"]["labels"].get(SERVICE_LABEL).is_some();
    let looked_at = kind == Kind::Service || kind == Kind::Configuration && !is_part_of_service;
    if !request.dry_run || !looked_at {
        return Ok(());
    }
    let template: RevisionTemplate = serde_json::from_value(object["spec"]["template"].clone())
        .map_err(|error| format!("could not decode RevisionTemplateSpec from resource: {error}"))?;
    let pod = ::serving::sample_pod(&template, request.namespace, "dry-run-validation");
    let pod = serde_json::to_value(pod).map_err(|error| error.to_string())?;
    apiserver::kinds::check_new_pod(pod)
        .map_err(|refusal| format!("dry run failed with {}: spec.template", refusal.message))
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
pub fn answer(path: &str, review: &Value, settings: &Settings) -> Result<Value, String> {
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
    let mut refuse = |(_, message): Refusal| {
        response["allowed"] = false.into();
        response["status"] = json!({"code": REFUSED, "reason": "BadRequest", "message": message});
    };
    if path == DEFAULTING_PATH {
        let mut defaulted = object.clone();
        match default(&seen, &mut defaulted, settings) {
            Err(refusal) => refuse(refusal),
            Ok(()) => {
                let patch = json_patch::diff(object, &defaulted);
                if !patch.is_empty() {
                    response["patchType"] = "JSONPatch".into();
                    response["patch"] = STANDARD.encode(json!(patch).to_string()).into();
                }
            }
        }
    } else {
        match validate(&seen, object, settings) {
            Err(refusal) => refuse(refusal),
            Ok(warnings) if !warnings.is_empty() => response["warnings"] = warnings.into(),
            Ok(_) => {}
        }
    }
    Ok(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, review: &Value) -> Result<Value, String> {
        answer(path, review, &Settings::default())
    }

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
        let object = service(json!({"template": {"spec": {"containers": [{"image": "hello"}]}}}));
        let answered = ask(DEFAULTING_PATH, &review(object.clone())).unwrap();
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
        BuiltIn::default().admit(&request, &mut built_in).unwrap();
        assert_eq!(by_webhook, built_in);
        assert_eq!(by_webhook["spec"]["template"]["spec"]["timeoutSeconds"], 300);
        assert_eq!(by_webhook["metadata"]["annotations"]["serving.knative.dev/creator"], "jane");

        // What is defaulted already needs no patch, and passes.
        let answered = ask(DEFAULTING_PATH, &review(built_in.clone())).unwrap();
        assert!(answered["response"].get("patch").is_none(), "{answered}");
        assert_eq!(ask(VALIDATION_PATH, &review(built_in)).unwrap()["response"]["allowed"], true);

        let mut wrong = service(json!({"template": {"spec": {"containers": []}}}));
        let built_in = BuiltIn::default().admit(&request, &mut wrong.clone()).unwrap_err();
        default(&request, &mut wrong, &Settings::default()).unwrap();
        let status = &ask(VALIDATION_PATH, &review(wrong)).unwrap()["response"]["status"];
        // The API server puts the webhook's name before it.
        let text = status["message"].as_str().unwrap();
        assert_eq!(built_in.message, format!("admission webhook \"{VALIDATION}\" denied the request: {text}"));
        assert_eq!(status["code"], built_in.code);
    }

    #[test]
    fn a_dry_run_looks_at_the_pod_too() {
        let spec = |cpu: &str| {
            let resources = json!({"requests": {"cpu": cpu}, "limits": {"cpu": "1"}});
            json!({"template": {"spec": {"containers": [{"image": "hello", "resources": resources}]}}})
        };
        let ask = |cpu: &str, kind: &str, dry_run: bool, labels: Value| {
            let mut object = service(spec(cpu));
            object["kind"] = kind.into();
            object["metadata"]["labels"] = labels;
            object["metadata"]["ownerReferences"] = json!([{"apiVersion": "serving.knative.dev/v1", "kind": "Service",
                "name": "a", "uid": "1", "controller": true}]);
            let mut review = review(object);
            review["request"]["kind"]["kind"] = kind.into();
            review["request"]["dryRun"] = dry_run.into();
            let defaulted = ask(DEFAULTING_PATH, &review).unwrap();
            let patch = STANDARD.decode(defaulted["response"]["patch"].as_str().unwrap()).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
            json_patch::patch(&mut review["request"]["object"], &patch).unwrap();
            let answered = ask(VALIDATION_PATH, &review).unwrap();
            answered["response"]["status"]["message"].as_str().map(str::to_owned)
        };
        let told = "validation callback failed: dry run failed with Pod \"dry-run-validation\" is invalid: \
                    spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu \
                    limit of 1: spec.template";
        let rows = [
            ("2", "Service", true, json!({}), Some(told)),
            ("2", "Configuration", true, json!({}), Some(told)),
            ("2", "Configuration", true, json!({SERVICE_LABEL: "a"}), None),
            ("2", "Service", false, json!({}), None),
            ("500m", "Service", true, json!({}), None),
        ];
        for (cpu, kind, dry_run, labels, wanted) in rows {
            assert_eq!(ask(cpu, kind, dry_run, labels).as_deref(), wanted, "{kind} {cpu} {dry_run}");
        }
    }

    #[test]
    fn what_is_no_review_is_refused() {
        assert!(ask(VALIDATION_PATH, &json!({"kind": "Pod"})).is_err());
    }

    #[test]
    fn a_bad_value_of_a_config_map_is_refused_by_both() {
        let user = User { name: "jane".into(), ..User::default() };
        let rows = [
            ("colibri-system", "revision-timeout-seconds", "abc", false, 0),
            ("colibri-system", "revision-timeout-secnds", "20", true, 1),
            ("default", "revision-timeout-seconds", "abc", true, 0),
        ];
        for (namespace, key, value, allowed, warnings) in rows {
            let mut object =
                json!({"metadata": {"name": "config-defaults", "namespace": namespace}, "data": {key: value}});
            let mut review = review(object.clone());
            review["request"]["namespace"] = namespace.into();
            review["request"]["kind"] = json!({"group": "", "version": "v1", "kind": "ConfigMap"});
            let response = ask(VALIDATION_PATH, &review).unwrap()["response"].clone();
            assert_eq!(response["allowed"], allowed, "{response}");
            assert_eq!(response["warnings"].as_array().map_or(0, Vec::len), warnings, "{response}");
            let request = AdmissionRequest {
                operation: Operation::Update,
                group: "",
                version: "v1",
                resource: "configmaps",
                kind: "ConfigMap",
                subresource: "",
                namespace,
                name: "config-defaults",
                user: &user,
                dry_run: false,
                old: None,
            };
            match BuiltIn::default().admit(&request, &mut object) {
                Ok(told) => assert!(allowed && told.len() == warnings, "{told:?}"),
                Err(error) => {
                    let text = response["status"]["message"].as_str().unwrap();
                    assert!(!allowed && error.message.ends_with(text), "{error:?}");
                    assert!(text.contains("revision-timeout-seconds = \"abc\" is not a whole number"), "{text}");
                }
            }
        }
    }
}
