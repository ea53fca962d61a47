//! Subresources: status, scale, binding, finalize, log and the like.

use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};

use crate::ApiServer;
use crate::body::{self, Response};
use crate::dispatch::finish;
use crate::error::{ApiError, ApiResult};
use crate::object::{Object, meta};
use crate::resource::FieldError;
use crate::verbs::{Call, Style, respond_value};

impl ApiServer {
    pub(crate) async fn subresource(self: &std::sync::Arc<Self>, call: Call, method: &Method) -> ApiResult<Response> {
        let name = call.target.subresource.clone();
        let def = call.served.def.clone();
        let Some(sub) = def.subresource(&name) else { return Err(ApiError::no_such_resource()) };
        let verb = match *method {
            Method::GET => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        if !sub.verbs.iter().any(|v| v == verb) {
            return Err(ApiError::method_not_allowed());
        }
        let result = match (name.as_str(), verb) {
            ("scale", _) => self.scale(&call, verb).await,
            ("log", "get") => self.log(&call).await,
            ("binding", "create") => self.bind(&call).await,
            ("finalize", "update") => self.put(&call).await,
            ("eviction", "create") => self.evict(&call).await,
            ("token", "create") => {
                let request = body_value(&call)?;
                let token = self.create_token(&call, &request)?;
                Ok(respond_value(&call, StatusCode::CREATED, &token))
            }
            (_, "get") => self.get(&call),
            (_, "update") => self.put(&call).await,
            (_, "patch") => self.patch(&call).await,
            _ => Err(ApiError::new(501, "NotImplemented", format!("the subresource {name} is not served yet"))),
        };
        finish(&call, result)
    }

    async fn log(&self, call: &Call) -> ApiResult<Response> {
        use futures::StreamExt;
        let pod = self.existing(call)?.record.value();
        let number =
            |name: &str| -> ApiResult<Option<u64>> { Ok(call.query.number(name)?.and_then(|n| u64::try_from(n).ok())) };
        let asked = call.query.get("container");
        let containers: Vec<&str> = ["initContainers", "containers"]
            .iter()
            .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
            .filter_map(|c| c["name"].as_str())
            .collect();
        let name = &call.target.name;
        let container = match (asked, containers.as_slice()) {
            ("", [only]) => (*only).to_string(),
            ("", many) => {
                let message =
                    format!("a container name must be specified for pod {name}, choose one of: [{}]", many.join(" "));
                return Err(ApiError::bad_request(message));
            }
            (asked, all) if all.contains(&asked) => asked.to_string(),
            (asked, _) => return Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
        let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Ok(text_response(body::empty()));
        }
        if let Some(endpoint) = self.node_endpoint(node).ok().flatten() {
            return self.log_of_node(call, endpoint, &container).await;
        }
        let kubelet = self.kubelet.read().clone();
        let Some(kubelet) = kubelet else {
            return Err(ApiError::internal_error(format!("node {node}, which runs the pod, is not there")));
        };
        let options = client::kubelet::LogOptions {
            container: Some(container),
            follow: call.query.flag("follow"),
            previous: call.query.flag("previous"),
            timestamps: call.query.flag("timestamps"),
            tail_lines: number("tailLines")?,
            since_seconds: number("sinceSeconds")?,
            since_time: since_time(call.query.get("sinceTime"))?,
            limit_bytes: number("limitBytes")?,
        };
        if options.since_seconds.is_some() && options.since_time.is_some() {
            return Err(ApiError::bad_request("at most one of `sinceTime` or `sinceSeconds` may be specified"));
        }
        let stream = kubelet.logs(&call.target.namespace, name, options).await.map_err(|error| match error {
            client::kubelet::KubeletError::BadRequest(why) => ApiError::bad_request(why),
            other => ApiError::internal_error(other.to_string()),
        })?;
        Ok(text_response(body::stream(stream.map(|chunk| chunk.map_err(Into::into)))))
    }

    /// The log from the node's own server, by the kubelet's path.
    async fn log_of_node(&self, call: &Call, endpoint: (String, u16), container: &str) -> ApiResult<Response> {
        let path = log_path(call, container);
        let request = http::Request::get(path).body(body::empty());
        let request = request.map_err(|error| ApiError::bad_request(error.to_string()))?;
        let response = self.ask_node(endpoint, request).await?;
        if !response.status().is_success() {
            return Err(crate::nodes::refusal(response).await);
        }
        Ok(text_response(response.into_body()))
    }

    /// Puts a pod on a node.
    async fn bind(&self, call: &Call) -> ApiResult<Response> {
        let binding = body_value(call)?;
        self.bind_pod(call, &binding).await
    }

    /// `bindings`: as `pods/NAME/binding`.
    pub(crate) async fn bind_by_name(&self, call: &Call, name: &str, binding: &Value) -> ApiResult<Response> {
        let served = self.registry.get("", "v1", "pods").ok_or_else(ApiError::no_such_resource)?;
        let mut target = call.target.clone();
        target.resource = "pods".into();
        target.name = name.into();
        target.subresource = "binding".into();
        let call = Call {
            user: call.user.clone(),
            target,
            query: call.query.clone(),
            headers: call.headers.clone(),
            body: call.body.clone(),
            is_put: false,
            served,
            accepted: call.accepted,
            warnings: parking_lot::Mutex::default(),
            applied: parking_lot::Mutex::default(),
        };
        self.bind_pod(&call, binding).await
    }

    /// Deletes a pod if the disruption budgets allow it.
    async fn evict(&self, call: &Call) -> ApiResult<Response> {
        let eviction = body_value(call)?;
        let pod = self.existing(call)?.record.value();
        if meta(&eviction, "name") != call.target.name {
            return Err(ApiError::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = crate::verbs::DeleteOptions::from_value(&eviction["deleteOptions"])?;
        let dry_run = call.dry_run("CreateOptions")? || options.dry_run;
        let phase = pod["status"]["phase"].as_str().unwrap_or("Pending");
        if matches!(phase, "Running" | "Unknown") && !crate::object::is_deleting(&pod) {
            self.spend_budget(call, &pod, dry_run).await?;
        }
        let options = crate::verbs::DeleteOptions { dry_run, ..options };
        self.delete_object(call, &call.target.name, &options).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond_value(call, StatusCode::CREATED, &status))
    }

    /// Takes one disruption from the budget that covers the pod.
    async fn spend_budget(&self, call: &Call, pod: &Value, dry_run: bool) -> ApiResult<()> {
        let table = self.store.table("policy/poddisruptionbudgets");
        let labels = pod["metadata"]["labels"].clone();
        let covers = |budget: &Value| {
            let selector = &budget["spec"]["selector"];
            selector.is_object()
                && crate::selector::LabelSelector::from_json(selector).matches(|key| labels[key].as_str())
        };
        let prefix = format!("{}/", call.target.namespace);
        let budgets: Vec<Value> = table
            .list(&prefix, None, usize::MAX, |_| true)
            .entries
            .iter()
            .map(|(_, entry)| entry.record.value())
            .filter(covers)
            .collect();
        let budget = match budgets.as_slice() {
            [] => return Ok(()),
            [one] => one,
            _ => {
                return Err(ApiError::internal(
                    "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
                ));
            }
        };
        let name = meta(budget, "name").to_string();
        let refuse = |why: String, retry: Option<u64>| {
            let mut error = ApiError::new(
                429,
                "TooManyRequests",
                "Cannot evict pod as it would violate the pod's disruption budget.",
            );
            error.details = Some(json!({"causes": [{"reason": "DisruptionBudget", "message": why}]}));
            if let (Some(seconds), Some(details)) = (retry, &mut error.details) {
                details["retryAfterSeconds"] = seconds.into();
            }
            error.retry_after = retry;
            Err(error)
        };
        let observed = budget["status"]["observedGeneration"].as_i64().unwrap_or(0);
        if observed < budget["metadata"]["generation"].as_i64().unwrap_or(0) {
            return refuse(format!("The disruption budget {name} is still being processed by the server."), Some(10));
        }
        let allowed = budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
        if allowed <= 0 {
            return refuse(format!("The disruption budget {name} does not allow evicting pods currently"), None);
        }
        if dry_run {
            return Ok(());
        }
        let now = crate::object::time_text(jiff::Timestamp::now());
        let mut status = budget["status"].clone();
        status["disruptionsAllowed"] = (allowed - 1).into();
        status["disruptedPods"][&call.target.name] = now.into();
        let patch = json!({"metadata": {"resourceVersion": meta(budget, "resourceVersion")}, "status": status});
        let path = format!("/apis/policy/v1/namespaces/{}/poddisruptionbudgets/{name}/status", call.target.namespace);
        self.send(Method::PATCH, &path, &patch.to_string()).await;
        Ok(())
    }

    pub(crate) async fn bind_pod(&self, call: &Call, binding: &Value) -> ApiResult<Response> {
        let dry_run = call.dry_run("CreateOptions")?;
        let named = meta(binding, "name");
        if !named.is_empty() && named != call.target.name {
            return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
        }
        let kind = binding.pointer("/target/kind").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, "" | "Node") {
            let fault = FieldError::not_supported("target.kind", kind, &["Node", "<empty>"]);
            return Err(ApiError::internal(fault.to_string()));
        }
        let uid = meta(binding, "uid").to_string();
        let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default().to_string();
        if node.is_empty() {
            return Err(ApiError::internal(FieldError::required("target.name", "").to_string()));
        }
        let annotations = binding.pointer("/metadata/annotations").cloned();
        let name = call.target.name.clone();
        let def = call.served.def.clone();
        let make = |old: &Value| {
            let mut pod = old.clone();
            let current = old.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
            let fail = |why: String| {
                Err(ApiError::conflict(&def, &name, "").with_message(
                    format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}"),
                    "pods/binding",
                ))
            };
            if crate::object::is_deleting(old) {
                return fail(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if old.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|gates| !gates.is_empty()) {
                return fail(format!("pod {name} has non-empty .spec.schedulingGates"));
            }
            if !uid.is_empty() {
                crate::object::meta_mut(&mut pod).insert("uid".into(), uid.as_str().into());
            }
            if !current.is_empty() {
                return fail(format!("pod {name} is already assigned to node \"{current}\""));
            }
            pod["spec"]["nodeName"] = node.as_str().into();
            for (key, value) in annotations.as_ref().and_then(Value::as_object).into_iter().flatten() {
                pod["metadata"]["annotations"][key] = value.clone();
            }
            set_condition(&mut pod, "PodScheduled", "True");
            Ok(pod)
        };
        self.update_object(call, &make, Style::Update, dry_run).await?;
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
        Ok(respond_value(call, StatusCode::CREATED, &status))
    }

    async fn scale(&self, call: &Call, verb: &str) -> ApiResult<Response> {
        let def = call.served.def.clone();
        let Some(paths) = def.scale.clone() else { return Err(ApiError::no_such_resource()) };
        if verb == "get" {
            let entry = self.existing(call)?;
            let scale = scale_of(&self.view(&call.served, &entry.record), &paths);
            return Ok(respond_value(call, StatusCode::OK, &scale));
        }
        let dry_run = call.dry_run("UpdateOptions")?;
        let make = |old: &Value| {
            let before = scale_of(old, &paths);
            let after = if verb == "update" {
                crate::negotiate::parse_text(&call.body, false).map_err(ApiError::bad_request)?
            } else {
                let content_type =
                    call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let kind = crate::patch::PatchKind::of(content_type, true)?;
                crate::patch::parse(kind, &call.body)?.apply(&before, &crate::resource::NoRules)?
            };
            let replicas = after.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
            if replicas < 0 {
                let fault = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                return Err(ApiError::invalid_kind("autoscaling", "Scale", &call.target.name, &[fault]));
            }
            let mut new = old.clone();
            set_path(&mut new, &paths.spec_replicas, replicas.into());
            let revision = meta(&after, "resourceVersion");
            let metadata = crate::object::meta_mut(&mut new);
            if revision.is_empty() {
                let current = meta(old, "resourceVersion").to_string();
                metadata.insert("resourceVersion".into(), current.into());
            } else {
                metadata.insert("resourceVersion".into(), revision.into());
            }
            Ok(new)
        };
        let object: std::sync::Arc<Object> = self.update_object(call, &make, Style::Update, dry_run).await?;
        let scale = scale_of(&self.view(&call.served, &object), &paths);
        Ok(respond_value(call, StatusCode::OK, &scale))
    }
}

/// The object in a body, whatever its kind.
fn body_value(call: &Call) -> ApiResult<Value> {
    if call.body.is_empty() {
        return Ok(json!({}));
    }
    match crate::negotiate::sent(&call.headers)? {
        crate::negotiate::Sent::Protobuf => crate::wire::decode(&call.body).map_err(ApiError::bad_request),
        sent => crate::negotiate::parse_text(&call.body, sent == crate::negotiate::Sent::Yaml)
            .map_err(ApiError::bad_request),
    }
}

/// The kubelet's path of a container's log, with what was asked of it.
fn log_path(call: &Call, container: &str) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for option in client::kubelet::LOG_OPTIONS {
        if call.query.has(option) {
            query.append_pair(option, call.query.get(option));
        }
    }
    format!("/containerLogs/{}/{}/{container}?{}", call.target.namespace, call.target.name, query.finish())
}

fn since_time(text: &str) -> ApiResult<Option<jiff::Timestamp>> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| {
        ApiError::bad_request(format!("sinceTime {text:?} is not a time such as 2026-01-31T12:00:00Z: {error}"))
    };
    text.parse().map(Some).map_err(wrong)
}

fn text_response(body: body::Body) -> Response {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// The Scale of an object.
fn scale_of(object: &Value, paths: &crate::resource::ScalePaths) -> Value {
    let at = |path: &str| path.trim_start_matches('.').split('.').try_fold(object, |at, part| at.get(part));
    let number = |path: &str| at(path).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object.pointer(&format!("/metadata/{field}")) {
            metadata[field] = value.clone();
        }
    }
    let mut spec = json!({});
    if number(&paths.spec_replicas) != 0 {
        spec["replicas"] = number(&paths.spec_replicas).into();
    }
    let mut status = json!({"replicas": number(&paths.status_replicas)});
    match paths.selector.as_deref().and_then(at) {
        Some(Value::String(text)) => status["selector"] = text.as_str().into(),
        Some(selector @ Value::Object(_)) => status["selector"] = selector_text(selector).into(),
        _ => {}
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// A LabelSelector as text: `a=b,c in (d,e)`.
pub(crate) fn selector_text(selector: &Value) -> String {
    let mut terms: Vec<String> = Vec::new();
    let mut labels: Vec<(&String, &Value)> = selector["matchLabels"].as_object().into_iter().flatten().collect();
    labels.sort_by_key(|(key, _)| *key);
    terms.extend(labels.into_iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())));
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let mut values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        terms.push(match expression["operator"].as_str() {
            Some("NotIn") => format!("{key} notin ({values})"),
            Some("Exists") => key.to_string(),
            Some("DoesNotExist") => format!("!{key}"),
            _ => format!("{key} in ({values})"),
        });
    }
    terms.join(",")
}

fn set_path(object: &mut Value, path: &str, value: Value) {
    let mut at = object;
    for part in path.trim_start_matches('.').split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

fn set_condition(pod: &mut Value, kind: &str, status: &str) {
    let now = crate::object::time_text(jiff::Timestamp::now());
    let condition = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": now});
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else { return };
    conditions.retain(|c| c["type"] != kind);
    conditions.push(condition);
}
