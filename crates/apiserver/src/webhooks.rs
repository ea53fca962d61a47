//! Admission webhooks: programs that change or refuse objects before they are stored, named by
//! MutatingWebhookConfigurations and ValidatingWebhookConfigurations.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/webhook`. They are called in the order of the configurations' names;
//! the mutating ones before defaults of built-in kinds are checked, the validating ones last, with the object as it
//! would be stored. `matchConditions` are not evaluated: a webhook with some is called as one without.
//!
//! Invariant: the configurations themselves pass no webhook, so that a broken one can always be removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::https;
use http::{Request, Uri, header};
use parking_lot::Mutex;
use rustls::ClientConfig;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::admission::Operation;
use crate::auth::user_info;
use crate::body;
use crate::error::{ApiError, ApiResult};
use crate::object::meta;
use crate::selector::LabelSelector;
use crate::verbs::Call;

const GROUP: &str = "admissionregistration.k8s.io";
/// Longest answer of a webhook.
const ANSWER_LIMIT_BYTES: usize = 3 << 20;
/// Clients for so many authorities are kept; when there are more, all are made anew.
const MOST_CLIENTS: usize = 64;
/// Seconds that a webhook has unless it says otherwise.
const DEFAULT_TIMEOUT_SECONDS: u64 = 10;

/// TLS by authority (PEM), made when first needed.
#[derive(Default)]
pub(crate) struct Clients(Mutex<HashMap<String, Arc<ClientConfig>>>);

impl Clients {
    fn of(&self, authority_pem: &str) -> Result<Arc<ClientConfig>, String> {
        let mut clients = self.0.lock();
        if let Some(client) = clients.get(authority_pem) {
            return Ok(client.clone());
        }
        let roots = https::roots(authority_pem.as_bytes(), "caBundle").map_err(|error| error.to_string())?;
        let client = https::client_tls(roots, None).map(Arc::new).map_err(|error| error.to_string())?;
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(authority_pem.to_owned(), client.clone());
        Ok(client)
    }
}

/// One write, as webhooks see it.
pub(crate) struct Write<'a> {
    pub call: &'a Call,
    pub operation: Operation,
    pub subresource: &'a str,
    pub old: Option<&'a Value>,
    pub dry_run: bool,
}

impl Write<'_> {
    fn operation(&self) -> &'static str {
        match self.operation {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
        }
    }

    /// The review that a webhook is sent.
    fn review(&self, uid: &str, object: Option<&Value>) -> Value {
        let def = &self.call.served.def;
        let named = object.or(self.old);
        let name = named.map(|object| meta(object, "name")).filter(|name| !name.is_empty());
        let kind = json!({"group": def.group, "version": def.version, "kind": def.kind});
        let resource = json!({"group": def.group, "version": def.version, "resource": def.plural});
        let options = match self.operation {
            Operation::Create => "CreateOptions",
            Operation::Update => "UpdateOptions",
            Operation::Delete => "DeleteOptions",
        };
        let mut request = json!({
            "uid": uid,
            "kind": kind, "requestKind": kind,
            "resource": resource, "requestResource": resource,
            "operation": self.operation(),
            "userInfo": user_info(&self.call.user),
            "object": object, "oldObject": self.old,
            "dryRun": self.dry_run,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": options},
        });
        if let Some(name) = name {
            request["name"] = name.into();
        }
        if !self.call.target.namespace.is_empty() {
            request["namespace"] = self.call.target.namespace.as_str().into();
        }
        if !self.subresource.is_empty() {
            request["subResource"] = self.subresource.into();
            request["requestSubResource"] = self.subresource.into();
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
    }
}

impl ApiServer {
    /// Lets mutating webhooks change an object that is about to be written.
    pub(crate) async fn mutate(&self, write: &Write<'_>, object: &mut Value) -> ApiResult<()> {
        for webhook in self.webhooks("mutatingwebhookconfigurations", write, Some(object)) {
            let Some(response) = self.call_webhook(&webhook, write, Some(object)).await? else { continue };
            let Some(patch) = response["patch"].as_str() else { continue };
            let changed = patched(object, patch)
                .and_then(|mut changed| {
                    self.accept_fields(write.call, &mut changed, None).map_err(|error| error.message)?;
                    Ok(changed)
                })
                .map_err(|why| failed(&webhook, &format!("its patch cannot be used: {why}")));
            match changed {
                Ok(changed) => *object = changed,
                Err(error) => ignored(&webhook, error)?,
            }
        }
        Ok(())
    }

    /// Lets validating webhooks refuse an object; of a deletion there is none.
    pub(crate) async fn review(&self, write: &Write<'_>, object: Option<&Value>) -> ApiResult<()> {
        for webhook in self.webhooks("validatingwebhookconfigurations", write, object) {
            self.call_webhook(&webhook, write, object).await?;
        }
        Ok(())
    }

    /// Both kinds, for a deletion, which nobody can change.
    pub(crate) async fn review_deletion(&self, write: &Write<'_>) -> ApiResult<()> {
        for webhook in self.webhooks("mutatingwebhookconfigurations", write, None) {
            self.call_webhook(&webhook, write, None).await?;
        }
        self.review(write, None).await
    }

    /// The webhooks that want to see a write, in order.
    fn webhooks(&self, plural: &str, write: &Write<'_>, object: Option<&Value>) -> Vec<Value> {
        let def = &write.call.served.def;
        let table = self.store.table(&format!("{GROUP}/{plural}"));
        if table.is_empty() || (def.group == GROUP && def.plural.ends_with("webhookconfigurations")) {
            return Vec::new();
        }
        let configurations = table.list("", None, usize::MAX, |_| true).entries;
        let all = configurations.iter().flat_map(|(_, entry)| {
            let mut configuration = entry.record.value();
            configuration["webhooks"].as_array_mut().map(std::mem::take).unwrap_or_default()
        });
        all.filter(|webhook| self.wants(webhook, write, object)).collect()
    }

    fn wants(&self, webhook: &Value, write: &Write<'_>, object: Option<&Value>) -> bool {
        let rules = webhook["rules"].as_array().into_iter().flatten();
        if !rules.into_iter().any(|rule| rule_matches(rule, write)) {
            return false;
        }
        let either = [object, write.old];
        let selected = either.iter().flatten().any(|object| selects(&webhook["objectSelector"], object));
        selected && self.namespace_selected(&webhook["namespaceSelector"], write, object)
    }

    fn namespace_selected(&self, selector: &Value, write: &Write<'_>, object: Option<&Value>) -> bool {
        let def = &write.call.served.def;
        if def.group.is_empty() && def.plural == "namespaces" {
            return object.or(write.old).is_some_and(|namespace| selects(selector, namespace));
        }
        if !def.namespaced {
            return true;
        }
        let entry = self.store.table("namespaces").get(&write.call.target.namespace);
        entry.is_none_or(|entry| selects(selector, &entry.record.value()))
    }

    /// The webhook's answer if it allows the write; `None` if it does not answer and may be ignored.
    async fn call_webhook(
        &self,
        webhook: &Value,
        write: &Write<'_>,
        object: Option<&Value>,
    ) -> ApiResult<Option<Value>> {
        let name = webhook["name"].as_str().unwrap_or_default();
        let harmless = matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
        if write.dry_run && !harmless {
            return Err(ApiError::bad_request(format!("admission webhook \"{name}\" does not support dry run")));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let answer = self.ask_webhook(webhook, &write.review(&uid, object)).await;
        let response = answer.and_then(|answer| {
            let response = &answer["response"];
            match (response["uid"].as_str() == Some(&uid), response["allowed"].as_bool()) {
                (true, Some(_)) => Ok(response.clone()),
                (true, None) => Err("it answered without a decision".to_owned()),
                (false, _) => Err(format!("expected response.uid=\"{uid}\", got {}", response["uid"])),
            }
        });
        let response = match response {
            Ok(response) => response,
            Err(why) => return ignored(webhook, failed(webhook, &why)).map(|()| None),
        };
        for warning in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            write.call.warn(warning);
        }
        if response["allowed"] == true { Ok(Some(response)) } else { Err(denied(name, &response["status"])) }
    }

    async fn ask_webhook(&self, webhook: &Value, review: &Value) -> Result<Value, String> {
        let config = &webhook["clientConfig"];
        let (address, name, path) = self.webhook_address(config)?;
        let bundle = config["caBundle"].as_str().unwrap_or_default();
        let pem = STANDARD.decode(bundle).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pem = pem.filter(|pem| !pem.is_empty()).ok_or("its clientConfig.caBundle holds no certificate")?;
        let tls = self.webhook_clients.of(&pem)?;
        let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_TIMEOUT_SECONDS).clamp(1, 30);
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(body::full(review.to_string())).map_err(|error| error.to_string())?;
        let limit = Duration::from_secs(seconds);
        let asked = async {
            let answer = https::send(&address, &name, tls, request, limit).await.map_err(|error| causes(&error))?;
            let status = answer.status();
            let bytes = body::read(answer.into_body(), ANSWER_LIMIT_BYTES).await.map_err(|error| error.message)?;
            if !status.is_success() {
                return Err(format!("it answered {status}: {}", String::from_utf8_lossy(&bytes).trim()));
            }
            serde_json::from_slice(&bytes).map_err(|error| format!("its answer is no AdmissionReview: {error}"))
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| Err(format!("no answer within {seconds} s")))
    }

    /// `host:port`, the name in the certificate, path and query.
    fn webhook_address(&self, config: &Value) -> Result<(String, String, String), String> {
        if let Some(url) = config["url"].as_str() {
            let uri: Uri = url.parse().map_err(|error| format!("its URL {url:?} is not valid: {error}"))?;
            let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
            let host = host.ok_or_else(|| format!("its URL {url:?} is not https://HOST/..."))?;
            let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            let address = format!("{host}:{}", uri.port_u16().unwrap_or(443));
            return Ok((address, host.trim_matches(['[', ']']).to_owned(), path));
        }
        let service = &config["service"];
        let text = |field: &str| service[field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let entry = self.store.table("services").get(&format!("{namespace}/{name}"));
        let entry = entry.ok_or_else(|| format!("its service {namespace}/{name} does not exist"))?;
        let spec = entry.record.value()["spec"].take();
        let address = match spec["type"].as_str() {
            Some("ExternalName") => spec["externalName"].as_str(),
            _ => spec["clusterIP"].as_str().filter(|address| !matches!(*address, "" | "None")),
        };
        let address = address.ok_or_else(|| format!("its service {namespace}/{name} has no address"))?;
        let port = service["port"].as_u64().unwrap_or(443);
        let path = if text("path").is_empty() { "/" } else { text("path") };
        Ok((format!("{address}:{port}"), format!("{name}.{namespace}.svc"), path.to_owned()))
    }
}

fn rule_matches(rule: &Value, write: &Write<'_>) -> bool {
    let def = &write.call.served.def;
    let lists = |field: &str, wanted: &str| {
        let listed = rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
        listed.into_iter().any(|one| one == "*" || one == wanted)
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => def.namespaced,
        Some("Cluster") => !def.namespaced,
        _ => true,
    };
    let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let named = resources.into_iter().any(|pattern| resource_matches(pattern, &def.plural, write.subresource));
    scope
        && named
        && lists("operations", write.operation())
        && lists("apiGroups", &def.group)
        && lists("apiVersions", &def.version)
}

/// `pods`, `pods/status`, `pods/*`, `*/status`, `*` (no subresource) and `*/*`.
fn resource_matches(pattern: &str, plural: &str, subresource: &str) -> bool {
    match pattern.split_once('/') {
        None => (pattern == "*" || pattern == plural) && subresource.is_empty(),
        Some((resource, sub)) => (resource == "*" || resource == plural) && (sub == "*" || sub == subresource),
    }
}

fn selects(selector: &Value, object: &Value) -> bool {
    if selector.is_null() {
        return true;
    }
    let labels = &object["metadata"]["labels"];
    LabelSelector::from_json(selector).matches(|key| labels.get(key).and_then(Value::as_str))
}

fn patched(object: &Value, patch: &str) -> Result<Value, String> {
    let bytes = STANDARD.decode(patch).map_err(|error| error.to_string())?;
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
    let mut changed = object.clone();
    json_patch::patch(&mut changed, &patch).map_err(|error| error.to_string())?;
    if changed.is_object() { Ok(changed) } else { Err("it leaves no object".to_owned()) }
}

/// The error, unless the webhook may be left out.
fn ignored(webhook: &Value, error: ApiError) -> ApiResult<()> {
    if webhook["failurePolicy"] == "Ignore" {
        tracing::warn!(error = error.message, "an admission webhook is left out");
        return Ok(());
    }
    Err(error)
}

fn failed(webhook: &Value, why: &str) -> ApiError {
    let name = webhook["name"].as_str().unwrap_or_default();
    ApiError::internal_error(format!("failed calling webhook \"{name}\": failed to call webhook: {why}"))
}

fn denied(name: &str, status: &Value) -> ApiError {
    let text = |field: &str| status[field].as_str().filter(|text| !text.is_empty());
    let by = format!("admission webhook \"{name}\" denied the request");
    let message = match (text("message"), text("reason")) {
        (Some(message), _) => format!("{by}: {message}"),
        (None, Some(reason)) => format!("{by}: {reason}"),
        (None, None) => format!("{by} without explanation"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let code = code.unwrap_or(400);
    let reason = match text("reason") {
        Some("Forbidden") => "Forbidden",
        Some("Invalid") => "Invalid",
        Some("Conflict") => "Conflict",
        Some("BadRequest") => "BadRequest",
        Some("NotFound") => "NotFound",
        _ => "",
    };
    ApiError::new(code, reason, message)
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text = format!("{text}: {next}");
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_names_resources_and_subresources() {
        for (pattern, subresource, expected) in [
            ("pods", "", true),
            ("pods", "status", false),
            ("pods/status", "status", true),
            ("pods/status", "", false),
            ("pods/*", "status", true),
            ("pods/*", "", true),
            ("*", "", true),
            ("*", "status", false),
            ("*/*", "", true),
            ("*/*", "status", true),
            ("*/scale", "scale", true),
            ("services", "", false),
        ] {
            assert_eq!(resource_matches(pattern, "pods", subresource), expected, "{pattern} {subresource:?}");
        }
    }

    #[test]
    fn a_refusal_reads_as_the_references() {
        let text = |status: Value| {
            let error = denied("w.example", &status);
            format!("{} {}", error.code, error.message)
        };
        assert_eq!(
            text(json!({"code": 422, "message": "bad"})),
            "422 admission webhook \"w.example\" denied the request: bad"
        );
        assert_eq!(
            text(json!({"code": 200, "reason": "Nope"})),
            "400 admission webhook \"w.example\" denied the request: Nope"
        );
        assert_eq!(text(Value::Null), "400 admission webhook \"w.example\" denied the request without explanation");
    }

    #[test]
    fn a_patch_changes_the_object_or_says_why_not() {
        let object = json!({"spec": {"a": 1}});
        let encode = |patch: Value| STANDARD.encode(patch.to_string());
        let add = encode(json!([{"op": "add", "path": "/spec/b", "value": 2}]));
        assert_eq!(patched(&object, &add), Ok(json!({"spec": {"a": 1, "b": 2}})));
        assert!(patched(&object, &encode(json!([{"op": "remove", "path": "/nope"}]))).is_err());
        assert!(patched(&object, &encode(json!([{"op": "replace", "path": "", "value": 3}]))).is_err());
        assert!(patched(&object, "not base64!").is_err());
    }
}
