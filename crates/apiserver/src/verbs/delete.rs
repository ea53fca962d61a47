//! Deletion of one object and of collections.

use http::StatusCode;
use serde_json::{Map, Value, json};
use store::{Entry, Expect, WriteError};

use super::create::{delete, put};
use super::render::respond_value;
use super::{Call, check_dry_run};
use crate::ApiServer;
use crate::admission::Operation;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::negotiate::Sent;
use crate::object::{self, Object, meta, meta_mut, time_text};
use crate::resource::FieldError;
use crate::webhooks::Write;

/// Attempts against concurrent writers.
const TRIES: usize = 16;

/// How an object is to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    pub grace: Option<i64>,
    pub propagation: Option<String>,
    pub orphan: Option<bool>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body if there is one, else from the query.
    pub(crate) fn of(call: &Call) -> ApiResult<Self> {
        let mut options = if call.body.is_empty() { Self::from_query(call)? } else { Self::from_body(call)? };
        let in_query: Vec<&str> = call.query.all("dryRun").filter(|v| !v.is_empty()).collect();
        options.dry_run |= check_dry_run(&in_query, "DeleteOptions")?;
        let mut faults = Vec::new();
        if let Some(policy) = &options.propagation {
            if options.orphan.is_some() {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                faults.push(FieldError::invalid("propagationPolicy", policy.as_str(), why));
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                let supported = ["Foreground", "Background", "Orphan", "nil"];
                faults.push(FieldError::not_supported("propagationPolicy", policy.as_str(), &supported));
            }
        }
        if faults.is_empty() {
            Ok(options)
        } else {
            Err(ApiError::invalid_kind("meta.k8s.io", "DeleteOptions", "", &faults))
        }
    }

    fn from_query(call: &Call) -> ApiResult<Self> {
        let policy = call.query.get("propagationPolicy");
        Ok(Self {
            grace: call.query.number("gracePeriodSeconds")?,
            propagation: (!policy.is_empty()).then(|| policy.to_string()),
            orphan: call.query.has("orphanDependents").then(|| call.query.flag("orphanDependents")),
            ..Self::default()
        })
    }

    fn from_body(call: &Call) -> ApiResult<Self> {
        let value = match crate::negotiate::sent(&call.headers)? {
            Sent::Protobuf => crate::wire::decode(&call.body).map_err(ApiError::bad_request)?,
            sent => crate::negotiate::parse_text(&call.body, sent == Sent::Yaml).map_err(ApiError::bad_request)?,
        };
        Self::from_value(&value)
    }

    /// From an object.
    pub(crate) fn from_value(value: &Value) -> ApiResult<Self> {
        let kind = value["kind"].as_str().unwrap_or("DeleteOptions");
        if kind != "DeleteOptions" {
            let version = value["apiVersion"].as_str().unwrap_or_default();
            let message = format!(
                "no kind {} is registered for version {} in scheme",
                crate::quote::quoted(kind),
                crate::quote::quoted(version)
            );
            return Err(ApiError::bad_request(message));
        }
        let dry_run: Vec<&str> = value["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_string);
        Ok(Self {
            grace: value["gracePeriodSeconds"].as_i64(),
            propagation: text("/propagationPolicy"),
            orphan: value["orphanDependents"].as_bool(),
            uid: text("/preconditions/uid"),
            resource_version: text("/preconditions/resourceVersion"),
            dry_run: check_dry_run(&dry_run, "DeleteOptions")?,
        })
    }
}

/// What a deletion came to.
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Gone(std::sync::Arc<Object>),
    /// The object waits for finalizers or for the end of its grace period.
    Waiting(std::sync::Arc<Object>),
}

impl ApiServer {
    pub(crate) async fn delete(&self, call: &Call) -> ApiResult<Response> {
        let options = DeleteOptions::of(call)?;
        let deleted = self.delete_object(call, &call.target.name, &options).await?;
        match deleted {
            Deleted::Waiting(object) => self.respond(call, StatusCode::OK, &object),
            Deleted::Gone(object) if self.shows_deleted(&call.served.def) => {
                self.respond(call, StatusCode::OK, &object)
            }
            Deleted::Gone(object) => {
                let value = object.value();
                Ok(respond_value(call, StatusCode::OK, &success(call, &call.target.name, meta(&value, "uid"))))
            }
        }
    }

    pub(crate) async fn delete_collection(&self, call: &Call) -> ApiResult<Response> {
        let options = DeleteOptions::of(call)?;
        let page = self.page(call)?;
        for (key, _) in &page.snapshot.entries {
            let name = key.rsplit('/').next().unwrap_or(key);
            let namespace = if call.served.def.namespaced { key.split('/').next().unwrap_or_default() } else { "" };
            match self.delete_in(call, namespace, name, &options).await {
                Ok(_) => {}
                Err(error) if error.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        self.respond_list(call, StatusCode::OK, &page)
    }

    pub(crate) async fn delete_object(&self, call: &Call, name: &str, options: &DeleteOptions) -> ApiResult<Deleted> {
        self.delete_in(call, &call.target.namespace, name, options).await
    }

    async fn delete_in(&self, call: &Call, namespace: &str, name: &str, options: &DeleteOptions) -> ApiResult<Deleted> {
        let def = &call.served.def;
        let table = self.table(&call.served);
        let key = object::key(def.namespaced, namespace, name);
        for _ in 0..TRIES {
            let entry = table.get(&key).ok_or_else(|| ApiError::not_found(def, name))?;
            match self.delete_once(call, &entry, &key, name, options).await {
                Err(error) if error.code == 409 && error.details.is_none() => {}
                other => return other,
            }
        }
        Err(ApiError::modified(def, name))
    }

    async fn delete_once(
        &self,
        call: &Call,
        entry: &Entry<Object>,
        key: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> ApiResult<Deleted> {
        let def = call.served.def.clone();
        let old = self.shown(&call.served, &entry.record, entry.record.take_value());
        check_preconditions(call, &old, name, options)?;
        self.special_delete(call, &old)?;
        let mut seen = old.clone();
        self.admit(call, Operation::Delete, "", &mut seen, Some(&old), options.dry_run)?;
        let dry_run = options.dry_run;
        let write = Write { call, operation: Operation::Delete, subresource: "", old: Some(&old), dry_run };
        self.review_deletion(&write).await?;
        let mut new = old.clone();
        let (waits, changed) = self.mark(call, &mut new, &old, options);
        if waits && !changed {
            return Ok(Deleted::Waiting(entry.record.clone()));
        }
        let stored = self.to_storage(&call.served, new);
        if options.dry_run {
            let object = std::sync::Arc::new(Object::encode(&stored));
            return Ok(if waits { Deleted::Waiting(object) } else { Deleted::Gone(object) });
        }
        let action = if waits { put(stored) } else { delete(stored) };
        let table = self.table(&call.served);
        match self
            .store
            .write(&table, key, Expect::Revision(entry.revision), action, self.class(&call.served, ""))
            .await
        {
            Ok(written) if waits => {
                self.after_write(&call.served, &written.record);
                Ok(Deleted::Waiting(written.record))
            }
            Ok(written) => {
                self.after_delete(&call.served, &written.record);
                Ok(Deleted::Gone(written.record))
            }
            Err(WriteError::Missing) => Err(ApiError::not_found(&def, name)),
            Err(WriteError::Conflict { .. }) => Err(ApiError::new(409, "Conflict", "the object was written meanwhile")),
            Err(error) => Err(ApiError::not_stored(&error)),
        }
    }

    /// Marks the object as being deleted. Returns whether it has to wait, and whether marking changed it.
    fn mark(&self, call: &Call, new: &mut Value, old: &Value, options: &DeleteOptions) -> (bool, bool) {
        let def = &call.served.def;
        set_propagation(new, options);
        let grace = def.strategy.grace_period(old, options.grace);
        let asked = grace.unwrap_or(0).max(0);
        let was_deleting = object::is_deleting(old);
        let old_grace = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
        let blocked = !object::finalizers(new).is_empty() || !self.may_go(def, new);
        if was_deleting {
            // A grace period can only become shorter.
            let shorter = grace.is_some() && old_grace.is_some_and(|before| asked < before);
            if shorter && asked == 0 && !blocked {
                meta_mut(new).insert("deletionGracePeriodSeconds".into(), 0.into());
                return (false, true);
            }
            if shorter {
                set_deadline(new, asked, Some(old));
                return (true, true);
            }
            let waits = blocked || (grace.is_some() && old_grace.unwrap_or(0) > 0);
            return (waits, new != old);
        }
        if asked == 0 && !blocked {
            if grace.is_some() {
                set_deadline(new, 0, None);
            }
            return (false, true);
        }
        set_deadline(new, if grace.is_some() { asked } else { 0 }, None);
        if let Some(generation) = old.pointer("/metadata/generation").and_then(Value::as_i64).filter(|g| *g > 0) {
            meta_mut(new).insert("generation".into(), (generation + 1).into());
        }
        self.special_mark(def, new);
        (true, true)
    }
}

fn set_deadline(object: &mut Value, grace: i64, old: Option<&Value>) {
    let now = jiff::Timestamp::now();
    // With a shorter grace the time at which the deletion began stays the base.
    let begun = old.and_then(|old| {
        let at: jiff::Timestamp = meta(old, "deletionTimestamp").parse().ok()?;
        let before = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64)?;
        at.checked_sub(jiff::SignedDuration::from_secs(before)).ok()
    });
    let deadline = begun.unwrap_or(now).checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    let metadata = meta_mut(object);
    metadata.insert("deletionTimestamp".into(), time_text(deadline).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn set_propagation(object: &mut Value, options: &DeleteOptions) {
    let wanted = match (options.propagation.as_deref(), options.orphan) {
        (Some("Foreground"), _) => Some("foregroundDeletion"),
        (Some("Orphan"), _) | (None, Some(true)) => Some("orphan"),
        (Some(_), _) | (None, Some(false)) => None,
        (None, None) => return,
    };
    let mut finalizers: Vec<Value> = object::finalizers(object)
        .into_iter()
        .filter(|f| !matches!(*f, "foregroundDeletion" | "orphan"))
        .map(Value::from)
        .collect();
    finalizers.extend(wanted.map(Value::from));
    if finalizers.is_empty() {
        meta_mut(object).remove("finalizers");
    } else {
        meta_mut(object).insert("finalizers".into(), finalizers.into());
    }
}

fn check_preconditions(call: &Call, old: &Value, name: &str, options: &DeleteOptions) -> ApiResult<()> {
    let def = &call.served.def;
    let current = meta(old, "uid");
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != current) {
        let why = format!(
            "the UID in the precondition ({uid}) does not match the UID in record ({current}). The object might have been deleted and then recreated"
        );
        return Err(ApiError::precondition(def, name, &why));
    }
    let current = meta(old, "resourceVersion");
    if let Some(version) = options.resource_version.as_deref().filter(|version| *version != current) {
        let why = format!(
            "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({current}). The object might have been modified"
        );
        return Err(ApiError::precondition(def, name, &why));
    }
    Ok(())
}

/// The Status that answers a deletion.
fn success(call: &Call, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    details.insert("name".into(), name.into());
    if !call.served.def.group.is_empty() {
        details.insert("group".into(), call.served.def.group.as_ref().into());
    }
    details.insert("kind".into(), call.served.def.plural.as_ref().into());
    details.insert("uid".into(), uid.into());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
