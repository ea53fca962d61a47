//! What can be done with a resource, the same way for every kind.

mod create;
mod delete;
mod get;
mod list;
mod render;
mod update;
mod watch;

pub(crate) use delete::DeleteOptions;
pub(crate) use list::Filter;
pub(crate) use render::{include, partial, respond_value};
pub(crate) use update::Style;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use store::{Class, Entry, Table};

use crate::ApiServer;
use crate::admission::{AdmissionRequest, Operation};
use crate::auth::User;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::{Accepted, Sent};
use crate::object::{self, Object, meta};
use crate::registry::Served;
use crate::request::{Query, Target};
use crate::resource::{Durability, FieldError};

/// One request to a resource.
pub(crate) struct Call {
    pub user: User,
    pub target: Target,
    pub query: Query,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The body is the whole new object.
    pub is_put: bool,
    pub served: Served,
    pub accepted: Accepted,
    /// Texts for `Warning` headers, in order.
    pub warnings: parking_lot::Mutex<Vec<String>>,
    /// The configuration that server-side apply creates an object from.
    pub applied: parking_lot::Mutex<Option<Value>>,
}

impl Call {
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    /// Whether nothing is to be stored. The options' kind is named in errors.
    pub(crate) fn dry_run(&self, options: &str) -> ApiResult<bool> {
        let values: Vec<&str> = self.query.all("dryRun").filter(|v| !v.is_empty()).collect();
        check_dry_run(&values, options)
    }

    /// The field manager: as asked for, else the user agent up to the slash.
    pub(crate) fn manager(&self) -> String {
        let asked = self.query.get("fieldManager");
        if !asked.is_empty() {
            return asked.to_string();
        }
        let agent = self.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let manager = agent.split('/').next().unwrap_or_default();
        if manager.is_empty() { "unknown".to_string() } else { manager.chars().take(128).collect() }
    }

    pub(crate) fn check_options(&self, options: &str) -> ApiResult<()> {
        let manager = self.query.get("fieldManager");
        let mut faults = Vec::new();
        if manager.len() > 128 {
            faults.push(FieldError { path: "fieldManager".into(), ..FieldError::too_long("", 128) });
        }
        if let Some(bad) = manager.chars().find(|c| c.is_control()) {
            let index = manager.find(bad).unwrap_or(0);
            let why = format!("invalid character U+{:04X} (at position {index})", bad as u32);
            faults.push(FieldError::invalid("fieldManager", manager, why));
        }
        let validation = self.query.get("fieldValidation");
        if !matches!(validation, "" | "Ignore" | "Warn" | "Strict") {
            let supported = ["", "Ignore", "Strict", "Warn"];
            faults.push(FieldError::not_supported("fieldValidation", validation, &supported));
        }
        if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid_kind("meta.k8s.io", options, "", &faults)) }
    }

    pub(crate) fn custom(&self) -> bool {
        self.served.crd.is_some()
    }

    /// Whether unknown fields are refused.
    pub(crate) fn is_strict(&self) -> bool {
        self.query.get("fieldValidation") == "Strict"
    }
}

pub(crate) fn check_dry_run(values: &[&str], options: &str) -> ApiResult<bool> {
    if values.iter().any(|value| *value != "All") {
        let given: Value = values.iter().map(|v| Value::from(*v)).collect();
        let fault = FieldError::not_supported("dryRun", given, &["All"]);
        return Err(ApiError::invalid_kind("meta.k8s.io", options, "", &[fault]));
    }
    Ok(!values.is_empty())
}

impl ApiServer {
    /// The table of a resource.
    pub(crate) fn table(&self, served: &Served) -> Arc<Table<Object>> {
        let (group, plural) = &served.def.storage;
        self.store.table(&if group.is_empty() { plural.to_string() } else { format!("{group}/{plural}") })
    }

    /// A stored object in the version of the request.
    pub(crate) fn view(&self, served: &Served, object: &Object) -> Value {
        self.shown(served, object, object.value())
    }

    /// The same of an object that was parsed already.
    pub(crate) fn shown(&self, served: &Served, object: &Object, mut value: Value) -> Value {
        let api_version = served.def.api_version();
        if object.api_version() != api_version || served.crd.is_some() {
            served.def.strategy.from_storage(&mut value);
            value["apiVersion"] = api_version.into();
        }
        value
    }

    /// An object of the request's version, ready to be stored.
    pub(crate) fn to_storage(&self, served: &Served, mut value: Value) -> Value {
        served.def.strategy.to_storage(&mut value);
        value["apiVersion"] = (&*served.storage_version).into();
        value["kind"] = served.def.kind.as_ref().into();
        value
    }

    /// The object that a body holds, checked to be of the request's kind; reports unknown fields.
    pub(crate) fn decode(&self, call: &Call) -> ApiResult<Value> {
        let def = &call.served.def;
        let unrecognised = |why: String| {
            ApiError::bad_request(format!("the object provided is unrecognized (must be of type {}): {why}", def.kind))
        };
        let mut value = match crate::negotiate::sent(&call.headers)? {
            Sent::Json => crate::negotiate::parse_text(&call.body, false).map_err(unrecognised)?,
            Sent::Yaml => crate::negotiate::parse_text(&call.body, true).map_err(unrecognised)?,
            Sent::Protobuf if call.custom() => {
                let message = "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml";
                return Err(ApiError::new(415, "UnsupportedMediaType", message));
            }
            Sent::Protobuf => crate::wire::decode(&call.body).map_err(unrecognised)?,
        };
        if value.is_null() {
            value = Value::Object(serde_json::Map::new());
        }
        if !value.is_object() {
            let why = format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {}",
                crate::meta::go_type(&value)
            );
            return Err(unrecognised(why));
        }
        self.check_kind(call, &mut value)?;
        self.accept_fields(call, &mut value, None)?;
        Ok(value)
    }

    fn check_kind(&self, call: &Call, value: &mut Value) -> ApiResult<()> {
        let def = &call.served.def;
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_string();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let expected = def.api_version();
        if call.custom() {
            if kind.is_empty() || api_version.is_empty() {
                let field = if kind.is_empty() { "kind" } else { "apiVersion" };
                let message = format!(
                    "the object provided is unrecognized (must be of type {}): Object '{}' is missing in '{}'",
                    def.kind,
                    if field == "kind" { "Kind" } else { "apiVersion" },
                    String::from_utf8_lossy(&call.body)
                );
                return Err(ApiError::bad_request(message));
            }
            if kind != def.kind || api_version != expected {
                let message = if kind == def.kind && api_version.split('/').next() == Some(&*def.group) {
                    format!(
                        "the API version in the data ({api_version}) does not match the expected API version ({expected})"
                    )
                } else {
                    format!(
                        "{kind} in version \"{}\" cannot be handled as a {}: the API version in the data ({api_version}) does not match the expected API version ({expected})",
                        api_version.rsplit('/').next().unwrap_or_default(),
                        def.kind
                    )
                };
                return Err(ApiError::bad_request(message));
            }
            return Ok(());
        }
        if api_version.matches('/').count() > 1 {
            let message = format!(
                "the object provided is unrecognized (must be of type {}): unexpected GroupVersion string: {api_version}",
                def.kind
            );
            return Err(ApiError::bad_request(message));
        }
        let sent_version = if api_version.is_empty() { expected.clone() } else { api_version };
        let sent_kind = if kind.is_empty() { def.kind.to_string() } else { kind };
        if sent_version != expected || sent_kind != def.kind {
            let (group, version) = sent_version.split_once('/').unwrap_or(("", &sent_version));
            let known = self.registry.by_kind(group, version, &sent_kind).is_some_and(|s| s.crd.is_none());
            let why = if known {
                let internal = |group: &str| {
                    if group.is_empty() {
                        "core".to_string()
                    } else {
                        group.split('.').next().unwrap_or_default().to_string()
                    }
                };
                format!(
                    "converting ({version}.{sent_kind}) to ({}.{}): unknown conversion",
                    internal(&def.group),
                    def.kind
                )
            } else {
                format!(
                    "no kind \"{sent_kind}\" is registered for version \"{sent_version}\" in scheme \"pkg/api/legacyscheme/scheme.go:30\""
                )
            };
            let message = format!("{sent_kind} in version \"{version}\" cannot be handled as a {}: {why}", def.kind);
            return Err(ApiError::bad_request(message));
        }
        value["apiVersion"] = expected.into();
        value["kind"] = sent_kind.into();
        Ok(())
    }

    /// [`ApiServer::accept_fields`], of a stored object that was patched. Through `/status` nothing else changes, so what
    /// the patch left as it was needs no second look.
    pub(crate) fn accept_patched(
        &self,
        call: &Call,
        value: &mut Value,
        old: &Value,
        patch: Option<&str>,
    ) -> ApiResult<()> {
        let mut same = Vec::new();
        if call.target.subresource == "status"
            && let (Some(map), Some(before)) = (value.as_object_mut(), old.as_object())
        {
            let rest = before.iter().filter(|(name, _)| !matches!(name.as_str(), "apiVersion" | "kind" | "metadata"));
            for (name, _) in rest.filter(|(name, before)| map.get(*name) == Some(before)).collect::<Vec<_>>() {
                same.extend(map.remove_entry(name));
            }
        }
        self.accept_fields(call, value, patch)?;
        if let Some(map) = value.as_object_mut() {
            map.extend(same);
        }
        Ok(())
    }

    /// Checks types, reports and drops unknown fields, fills defaults in. For a patch the fault names the patch.
    pub(crate) fn accept_fields(&self, call: &Call, value: &mut Value, patch: Option<&str>) -> ApiResult<()> {
        let def = &call.served.def;
        if !call.custom() {
            drop_nulls(value);
        }
        let handled = |why: String| {
            ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: {why}",
                def.kind, def.version, def.kind
            ))
        };
        def.strategy.check_types(value).map_err(handled)?;
        let mut unknown = crate::meta::normalise(value, &def.kind, &def.version)?;
        let of_kind = def.strategy.unknown_fields(value);
        let prune = !of_kind.is_empty();
        for path in of_kind {
            if !unknown.contains(&path) {
                unknown.push(path);
            }
        }
        if !unknown.is_empty() {
            match call.query.get("fieldValidation") {
                "Ignore" => {}
                _ if call.is_strict() => {
                    let listed: Vec<String> = unknown.iter().map(|path| format!("unknown field \"{path}\"")).collect();
                    let why = format!("strict decoding error: {}", listed.join(", "));
                    return Err(match patch {
                        Some(patch) => {
                            let fault = FieldError::invalid("patch", patch, why);
                            ApiError::invalid_kind("", "", "", &[fault])
                        }
                        None => handled(why),
                    });
                }
                _ => unknown.iter().for_each(|path| call.warn(format!("unknown field \"{path}\""))),
            }
        }
        if prune {
            def.strategy.prune(value);
        }
        def.strategy.default(value);
        Ok(())
    }

    /// Runs what other parts added.
    pub(crate) fn admit(
        &self,
        call: &Call,
        operation: Operation,
        subresource: &str,
        object: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> ApiResult<()> {
        let def = &call.served.def;
        let (namespace, name) = (meta(object, "namespace").to_string(), meta(object, "name").to_string());
        for admission in self.admissions.read().iter() {
            let request = AdmissionRequest {
                operation,
                group: &def.group,
                version: &def.version,
                resource: &def.plural,
                kind: &def.kind,
                subresource,
                namespace: &namespace,
                name: &name,
                user: &call.user,
                dry_run,
                old,
            };
            match admission.admit(&request, object) {
                Ok(warnings) => warnings.into_iter().for_each(|warning| call.warn(warning)),
                Err(error) => {
                    let reason = match error.code {
                        400 => "BadRequest",
                        403 => "Forbidden",
                        409 => "Conflict",
                        422 => "Invalid",
                        _ => "",
                    };
                    return Err(ApiError::new(error.code, reason, error.message));
                }
            }
        }
        Ok(())
    }

    pub(crate) fn class(&self, served: &Served, subresource: &str) -> Class {
        let pod_status = subresource == "status" && served.def.group.is_empty() && served.def.plural == "pods";
        if pod_status || served.def.durability == Durability::Lazy { Class::Lazy } else { Class::Sync }
    }

    /// The entry of the object that the request names.
    pub(crate) fn existing(&self, call: &Call) -> ApiResult<Entry<Object>> {
        let def = &call.served.def;
        let key = object::key(def.namespaced, &call.target.namespace, &call.target.name);
        self.table(&call.served).get(&key).ok_or_else(|| ApiError::not_found(def, &call.target.name))
    }
}

/// Removes nulls: to a typed decoder they are absent.
pub(crate) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}
