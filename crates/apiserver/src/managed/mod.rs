//! Managed fields: who set what; and server-side apply, which is built on it.

mod fields;

use http::StatusCode;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::object::{meta, meta_mut, time_text};
use crate::resource::FieldError;
use crate::verbs::{Call, Style};
use fields::{FieldSet, Rules, shown};

/// Fields that belong to nobody.
const STRIPPED: [&[&str]; 12] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:managedFields"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:deletionTimestamp"],
    &["f:metadata", "f:deletionGracePeriodSeconds"],
];

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
    /// The entry as it was stored, while it is still right.
    stored: Option<Value>,
}

impl Entry {
    fn parse(value: &Value) -> Self {
        let text = |field: &str| value[field].as_str().unwrap_or_default().to_string();
        Self {
            manager: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(&value["fieldsV1"]),
            stored: None,
        }
    }

    /// Takes fields away.
    fn subtract(&mut self, fields: &FieldSet) {
        if self.fields.subtract(fields) {
            self.stored = None;
        }
    }

    fn into_json(self) -> Value {
        if let Some(stored) = self.stored {
            return stored;
        }
        let mut value = json!({
            "manager": self.manager, "operation": self.operation, "apiVersion": self.api_version,
            "fieldsType": "FieldsV1", "fieldsV1": self.fields.to_json(),
        });
        if !self.time.is_empty() {
            value["time"] = self.time.as_str().into();
        }
        if !self.subresource.is_empty() {
            value["subresource"] = self.subresource.as_str().into();
        }
        value
    }

    fn is(&self, other: &Self) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.api_version == other.api_version
            && self.subresource == other.subresource
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter().flatten().map(Entry::parse).collect()
}

/// The entries of a list that the server wrote.
fn stored_entries(list: Vec<Value>) -> Vec<Entry> {
    let entry = |value: Value| {
        let entry = Entry::parse(&value);
        Entry { stored: Some(value), ..entry }
    };
    list.into_iter().map(entry).collect()
}

fn set_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| (&a.operation, &a.time, &a.manager).cmp(&(&b.operation, &b.time, &b.manager)));
    let metadata = meta_mut(object);
    if entries.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), entries.into_iter().map(Entry::into_json).collect());
    }
}

impl ApiServer {
    fn own_entry(&self, call: &Call, operation: &str) -> Entry {
        Entry {
            manager: call.manager(),
            operation: operation.into(),
            api_version: call.served.def.api_version(),
            subresource: call.target.subresource.clone(),
            time: time_text(jiff::Timestamp::now()),
            fields: FieldSet::default(),
            stored: None,
        }
    }

    /// Fields that a write through this path cannot own.
    fn strip(&self, call: &Call, set: &mut FieldSet) {
        for path in STRIPPED {
            set.remove_tree(path);
        }
        if call.target.subresource == "status" {
            set.remove_tree(&["f:spec"]);
        } else if call.served.def.has_status() {
            set.remove_tree(&["f:status"]);
        }
    }

    /// The creator owns what it set.
    pub(crate) fn track_create(&self, call: &Call, object: &mut Value) {
        let def = call.served.def.clone();
        let rules = Rules { strategy: &*def.strategy, built_in: !call.custom() };
        meta_mut(object).remove("managedFields");
        let (mut set, _) = rules.compare(&json!({"metadata": {}}), object);
        self.strip(call, &mut set);
        let mut own = self.own_entry(call, "Update");
        if let Some(config) = call.applied.lock().take() {
            let mut applied = rules.fields_of(&config);
            self.strip(call, &mut applied);
            own.operation = "Apply".into();
            set = applied;
        }
        own.fields = set;
        set_entries(object, vec![own]);
    }

    /// The writer owns what it changed; others lose it.
    pub(crate) fn track_update(&self, call: &Call, new: &mut Value, old: &Value, style: &Style) -> ApiResult<()> {
        let def = call.served.def.clone();
        let rules = Rules { strategy: &*def.strategy, built_in: !call.custom() };
        // A client may take entries away (by an empty list) but not invent them here.
        let before = old.pointer("/metadata/managedFields").and_then(Value::as_array);
        let mut all = match meta_mut(new).remove("managedFields") {
            Some(Value::Array(list))
                if list.len() == 1 && list[0].as_object().is_some_and(|entry| entry.is_empty()) =>
            {
                Vec::new()
            }
            Some(Value::Array(list)) if Some(&list) == before => stored_entries(list),
            Some(Value::Array(list)) => list.iter().map(Entry::parse).collect(),
            _ => stored_entries(before.cloned().unwrap_or_default()),
        };
        let (mut set, removed) = rules.compare(old, new);
        self.strip(call, &mut set);
        let operation = if matches!(style, Style::Apply { .. }) { "Apply" } else { "Update" };
        let mut own = self.own_entry(call, operation);
        if let Style::Apply { config, force } = style {
            self.check_conflicts(&all, &own, &set, *force)?;
            own.fields = rules.fields_of(config);
            self.strip(call, &mut own.fields);
        }
        for entry in all.iter_mut().filter(|entry| !entry.is(&own)) {
            entry.subtract(&set);
            entry.subtract(&removed);
        }
        match all.iter_mut().find(|entry| entry.is(&own)) {
            Some(entry) => {
                let changed = if operation == "Update" {
                    entry.fields.union(&set) | entry.fields.subtract(&removed)
                } else {
                    entry.fields != own.fields
                };
                if changed {
                    let fields = if operation == "Update" { std::mem::take(&mut entry.fields) } else { own.fields };
                    *entry = Entry { fields, ..own };
                }
            }
            None => {
                if operation == "Update" {
                    own.fields = set;
                }
                all.push(own);
            }
        }
        set_entries(new, all);
        Ok(())
    }

    fn check_conflicts(&self, all: &[Entry], own: &Entry, set: &FieldSet, force: bool) -> ApiResult<()> {
        if force {
            return Ok(());
        }
        let mut causes = Vec::new();
        let mut by_manager: Vec<(String, Vec<String>)> = Vec::new();
        for entry in
            all.iter().filter(|entry| !(entry.manager == own.manager && entry.operation == "Apply" && entry.is(own)))
        {
            let both = entry.fields.intersection(set);
            let mut paths: Vec<String> = both.paths().iter().map(|path| shown(path)).collect();
            paths.sort();
            if paths.is_empty() {
                continue;
            }
            let subresource = if entry.subresource.is_empty() {
                String::new()
            } else {
                format!(" with subresource \"{}\"", entry.subresource)
            };
            let at = if entry.operation == "Update" && !entry.time.is_empty() {
                format!(" at {}", entry.time)
            } else {
                String::new()
            };
            let manager =
                format!("{}{subresource} using {}{at}", crate::quote::quoted(&entry.manager), entry.api_version);
            for path in &paths {
                causes.push(json!({"reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path}));
            }
            by_manager.push((manager, paths));
        }
        if causes.is_empty() {
            return Ok(());
        }
        let count = causes.len();
        let listed = match by_manager.as_slice() {
            [(manager, paths)] if paths.len() == 1 => format!("conflict with {manager}: {}", paths[0]),
            many => many
                .iter()
                .map(|(manager, paths)| {
                    let paths: Vec<String> = paths.iter().map(|path| format!("- {path}")).collect();
                    format!("conflicts with {manager}:\n{}", paths.join("\n"))
                })
                .collect::<Vec<_>>()
                .join("\n"),
        };
        let plural = if count == 1 { "" } else { "s" };
        let mut error = ApiError::new(409, "Conflict", format!("Apply failed with {count} conflict{plural}: {listed}"));
        error.details = Some(json!({"causes": causes}));
        Err(error)
    }

    /// Server-side apply.
    pub(crate) async fn apply(&self, call: &Call, dry_run: bool) -> ApiResult<Response> {
        let def = call.served.def.clone();
        if call.query.get("fieldManager").is_empty() {
            let fault = FieldError::required("fieldManager", "is required for apply patch");
            return Err(ApiError::invalid_kind("meta.k8s.io", "PatchOptions", "", &[fault]));
        }
        let mut config = crate::negotiate::parse_text(&call.body, true)
            .map_err(|why| ApiError::bad_request(format!("error decoding YAML: {why}")))?;
        if !config.is_object() {
            return Err(ApiError::bad_request("error decoding YAML: the patch is no object"));
        }
        check_config(call, &config)?;
        let force = call.query.flag("force");
        self.check_declared(call, &config)?;
        drop_null_metadata(&mut config);
        let existing = self.existing(call);
        if existing.is_err() {
            if !call.target.subresource.is_empty() {
                return Err(ApiError::not_found(&def, &call.target.name));
            }
            if !meta(&config, "resourceVersion").is_empty() || !meta(&config, "uid").is_empty() {
                return Err(ApiError::not_found(&def, &call.target.name));
            }
            *call.applied.lock() = Some(config.clone());
            self.accept_fields(call, &mut config, None)?;
            meta_mut(&mut config).insert("name".into(), call.target.name.as_str().into());
            config["apiVersion"] = def.api_version().into();
            config["kind"] = def.kind.as_ref().into();
            let created = self.create_object(call, config, dry_run).await?;
            return self.respond(call, StatusCode::CREATED, &created);
        }
        let rules = Rules { strategy: &*def.strategy, built_in: !call.custom() };
        let own = self.own_entry(call, "Apply");
        let mut config_fields = rules.fields_of(&config);
        self.strip(call, &mut config_fields);
        let make = |old: &Value| {
            let mut new = old.clone();
            rules.merge(&mut new, &config);
            let all = entries(old);
            let last = all.iter().find(|entry| entry.is(&own)).map(|entry| entry.fields.clone()).unwrap_or_default();
            let others: Vec<&Entry> = all.iter().filter(|entry| !entry.is(&own)).collect();
            for path in last.paths() {
                let kept = config_fields.touches(&path) || others.iter().any(|entry| entry.fields.touches(&path));
                if !kept {
                    rules.remove(&mut new, &path);
                }
            }
            if meta(&config, "resourceVersion").is_empty() {
                let current = meta(old, "resourceVersion").to_string();
                meta_mut(&mut new).insert("resourceVersion".into(), current.into());
            }
            self.accept_fields(call, &mut new, None)?;
            Ok(new)
        };
        let style = Style::Apply { config: config.clone(), force };
        let object = self.update_object(call, &make, style, dry_run).await?;
        self.respond(call, StatusCode::OK, &object)
    }
}

impl ApiServer {
    /// An applied configuration names only fields that the kind knows.
    fn check_declared(&self, call: &Call, config: &Value) -> ApiResult<()> {
        let def = &call.served.def;
        let unknown: Vec<String> = def
            .strategy
            .unknown_fields(config)
            .iter()
            .map(|path| format!(".{path}: field not declared in schema"))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let listed =
            if unknown.len() == 1 { unknown[0].clone() } else { format!("errors:\n  {}", unknown.join("\n  ")) };
        let place = format!(
            "{}/{}; {}/{}, Kind={}",
            meta(config, "namespace"),
            meta(config, "name"),
            def.group,
            def.version,
            def.kind
        );
        Err(ApiError::internal(format!("failed to create typed patch object ({place}): {listed}")))
    }
}

fn check_config(call: &Call, config: &Value) -> ApiResult<()> {
    let def = &call.served.def;
    let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
    if text("kind").is_empty() || text("apiVersion").is_empty() {
        let (word, _) = if text("kind").is_empty() { ("Kind", "kind") } else { ("apiVersion", "apiVersion") };
        return Err(ApiError::bad_request(format!("Object '{word}' is missing in '{config}'")));
    }
    if text("kind") != def.kind || text("apiVersion") != def.api_version() {
        let (group, version) = text("apiVersion").split_once('/').unwrap_or(("", text("apiVersion")));
        let shown = |group: &str, version: &str, kind: &str| format!("{group}/{version}, Kind={kind}");
        let message = format!(
            "invalid object type: {} does not match expected {}",
            shown(group, version, text("kind")),
            shown(&def.group, &def.version, &def.kind)
        );
        return Err(ApiError::bad_request(message));
    }
    if config
        .pointer("/metadata/managedFields")
        .is_some_and(|m| !m.is_null() && m.as_array().is_none_or(|l| !l.is_empty()))
    {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    let name = meta(config, "name");
    if !name.is_empty() && name != call.target.name {
        let message =
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.target.name);
        return Err(ApiError::bad_request(message));
    }
    let namespace = meta(config, "namespace");
    if !namespace.is_empty() && namespace != call.target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

fn drop_null_metadata(config: &mut Value) {
    let metadata = meta_mut(config);
    metadata.retain(|_, value| !value.is_null());
    metadata.remove("managedFields");
}
