//! Updates: PUT and every kind of PATCH, of the object itself and of its status.

use std::sync::Arc;

use http::{StatusCode, header};
use serde_json::Value;
use store::{Entry, Expect, WriteError};

use super::Call;
use super::create::{delete, put};
use crate::ApiServer;
use crate::admission::Operation;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::meta::{keep_fields, keep_system_fields, validate_update};
use crate::object::{self, Object, meta, meta_mut};
use crate::patch::{self, PatchKind};
use crate::resource::{FieldError, ResourceDef};
use crate::webhooks::Write;

/// Attempts against concurrent writers when the client gave no resource version.
const TRIES: usize = 16;

/// Makes the new object out of the old one.
pub(crate) type Make<'a> = &'a (dyn Fn(&Value) -> ApiResult<Value> + Send + Sync);

/// How a write came about, for managed fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// PUT or a patch.
    Update,
    /// Server-side apply, with the configuration and whether conflicts are overridden.
    Apply { config: Value, force: bool },
}

impl ApiServer {
    /// PUT.
    pub(crate) async fn put(&self, call: &Call) -> ApiResult<Response> {
        call.check_options("UpdateOptions")?;
        let dry_run = call.dry_run("UpdateOptions")?;
        let new = self.decode(call)?;
        check_identity(call, &new)?;
        let def = &call.served.def;
        let main = call.target.subresource.is_empty();
        if main && def.create_on_update && self.existing(call).is_err() {
            let created = self.create_object(call, without_revision(new), dry_run).await?;
            return self.respond(call, StatusCode::CREATED, &created);
        }
        // Decoded anew only for another try.
        let first = parking_lot::Mutex::new(Some(new));
        let make = |_: &Value| first.lock().take().map_or_else(|| self.decode(call), Ok);
        let object = self.update_object(call, &make, Style::Update, dry_run).await?;
        self.respond(call, StatusCode::OK, &object)
    }

    /// PATCH.
    pub(crate) async fn patch(&self, call: &Call) -> ApiResult<Response> {
        let def = call.served.def.clone();
        let content_type = call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        let strategic = def.strategy.strategic() && !call.custom();
        let kind = PatchKind::of(content_type, strategic)?;
        call.check_options("PatchOptions")?;
        let dry_run = call.dry_run("PatchOptions")?;
        if kind == PatchKind::Apply {
            return self.apply(call, dry_run).await;
        }
        if call.query.has("force") {
            let fault = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(ApiError::invalid_kind("meta.k8s.io", "PatchOptions", "", &[fault]));
        }
        let parsed = patch::parse(kind, &call.body)?;
        let make = |old: &Value| {
            let mut new = parsed.apply(old, &*def.strategy)?;
            let shown = call.is_strict().then(|| parsed.shown(&new));
            self.accept_patched(call, &mut new, old, shown.as_deref())?;
            Ok(new)
        };
        let object = self.update_object(call, &make, Style::Update, dry_run).await?;
        self.respond(call, StatusCode::OK, &object)
    }

    /// Reads, changes, checks and writes one object; tries again where another writer was quicker.
    pub(crate) async fn update_object(
        &self,
        call: &Call,
        make: Make<'_>,
        style: Style,
        dry_run: bool,
    ) -> ApiResult<Arc<Object>> {
        for _ in 0..TRIES {
            let entry = self.existing(call)?;
            let old = self.shown(&call.served, &entry.record, entry.record.take_value());
            let new = make(&old)?;
            match self.update_once(call, &entry, old, new, &style, dry_run).await {
                // Only a lost race has no details. A client's own resource version fails at the next look.
                Err(error) if error.code == 409 && error.details.is_none() => {}
                other => return other,
            }
        }
        Err(ApiError::modified(&call.served.def, &call.target.name))
    }

    async fn update_once(
        &self,
        call: &Call,
        entry: &Entry<Object>,
        old: Value,
        mut new: Value,
        style: &Style,
        dry_run: bool,
    ) -> ApiResult<Arc<Object>> {
        let def = call.served.def.clone();
        let name = &call.target.name;
        check_names(call, &new)?;
        check_preconditions(call, &new, &old)?;
        keep_system_fields(&mut new, &old);
        let metadata = meta_mut(&mut new);
        metadata.insert("name".into(), name.as_str().into());
        metadata.insert("resourceVersion".into(), entry.revision.to_string().into());
        let subresource = call.target.subresource.as_str();
        self.admit(call, Operation::Update, subresource, &mut new, Some(&old), dry_run)?;
        let write = Write { call, operation: Operation::Update, subresource, old: Some(&old), dry_run };
        self.mutate(&write, &mut new).await?;
        let faults = self.prepare(call, &mut new, &old);
        self.special_update(call, &mut new, &old)?;
        if !matches!(subresource, "status" | "binding") {
            bump_generation(&def, &mut new, &old);
        }
        self.track_update(call, &mut new, &old, style)?;
        if !faults.is_empty() {
            return Err(ApiError::invalid(&def, name, &faults));
        }
        self.review(&write, Some(&new)).await?;
        if subresource.is_empty() {
            def.strategy.warnings(&new, Some(&old)).into_iter().for_each(|warning| call.warn(warning));
        }
        if same_but_times(&new, &old) {
            return Ok(entry.record.clone());
        }
        let finished = object::is_deleting(&new)
            && object::finalizers(&new).is_empty()
            && grace_is_over(&new)
            && self.may_go(&def, &new);
        let stored = self.to_storage(&call.served, new);
        if dry_run {
            return Ok(Arc::new(Object::encode(&stored)));
        }
        if finished {
            return self.finish_deletion(call, entry, old, &stored).await;
        }
        let key = object::key(def.namespaced, &call.target.namespace, name);
        let table = self.table(&call.served);
        let class = self.class(&call.served, subresource);
        match self.store.write(&table, &key, Expect::Revision(entry.revision), put(stored), class).await {
            Ok(written) => {
                self.after_write(&call.served, &written.record);
                Ok(written.record)
            }
            Err(WriteError::Conflict { .. }) => Err(ApiError::new(409, "Conflict", "the object was written meanwhile")),
            Err(WriteError::Missing) => Err(ApiError::not_found(&def, name)),
            Err(error) => Err(ApiError::not_stored(&error)),
        }
    }

    /// The last finalizer went: so does the object. Watchers see it as it was stored, the client as it wrote it.
    async fn finish_deletion(
        &self,
        call: &Call,
        entry: &Entry<Object>,
        old: Value,
        new: &Value,
    ) -> ApiResult<Arc<Object>> {
        let def = &call.served.def;
        let key = object::key(def.namespaced, &call.target.namespace, &call.target.name);
        let last = delete(self.to_storage(&call.served, old));
        let table = self.table(&call.served);
        match self.store.write(&table, &key, Expect::Revision(entry.revision), last, self.class(&call.served, "")).await
        {
            Ok(written) => {
                self.after_delete(&call.served, &written.record);
                let mut shown = new.clone();
                meta_mut(&mut shown).insert("resourceVersion".into(), written.revision.to_string().into());
                Ok(Arc::new(Object::encode(&shown)))
            }
            Err(WriteError::Conflict { .. }) => Err(ApiError::new(409, "Conflict", "the object was written meanwhile")),
            Err(WriteError::Missing) => Err(ApiError::not_found(def, &call.target.name)),
            Err(error) => Err(ApiError::not_stored(&error)),
        }
    }

    /// Applies the kind's rules for this path and returns the faults.
    fn prepare(&self, call: &Call, new: &mut Value, old: &Value) -> Vec<FieldError> {
        let (def, custom) = (&*call.served.def, call.custom());
        match call.target.subresource.as_str() {
            "status" => {
                def.strategy.prepare_status_update(new, old);
                // Of custom resources metadata is not the status writer's business; finalizers and owners never are.
                let metadata = meta_mut(new);
                let kept: &[&str] = if custom {
                    &["labels", "annotations", "finalizers", "ownerReferences"]
                } else {
                    &["finalizers", "ownerReferences"]
                };
                keep_fields(metadata, old, kept);
                def.strategy.validate_status_update(new, old)
            }
            "" => {
                def.strategy.prepare_update(new, old);
                let mut faults = crate::meta::validate(def, new);
                faults.extend(twice(call, validate_update(new, old)));
                faults.extend(def.strategy.validate_update(new, old));
                faults
            }
            _ => crate::meta::validate(def, new),
        }
    }
}

fn without_revision(mut value: Value) -> Value {
    meta_mut(&mut value).remove("resourceVersion");
    value
}

/// PUT: the body must be about the object of the path.
fn check_identity(call: &Call, new: &Value) -> ApiResult<()> {
    let name = meta(new, "name");
    if name.is_empty() {
        return Err(ApiError::bad_request("name must be provided"));
    }
    check_names(call, new)
}

fn check_names(call: &Call, new: &Value) -> ApiResult<()> {
    let name = meta(new, "name");
    if !name.is_empty() && name != call.target.name {
        let message =
            format!("the name of the object ({name}) does not match the name on the URL ({})", call.target.name);
        return Err(ApiError::bad_request(message));
    }
    let namespace = meta(new, "namespace");
    if call.served.def.namespaced && !namespace.is_empty() && namespace != call.target.namespace {
        let message = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(ApiError::bad_request(message));
    }
    Ok(())
}

fn check_preconditions(call: &Call, new: &Value, old: &Value) -> ApiResult<()> {
    let def = &call.served.def;
    let name = &call.target.name;
    let (asked, current) = (meta(new, "uid"), meta(old, "uid"));
    if !asked.is_empty() && asked != current && !call.is_put && call.target.subresource.is_empty() {
        let fault = FieldError::invalid("metadata.uid", asked, "field is immutable");
        return Err(ApiError::invalid(def, name, &twice(call, vec![fault])));
    }
    if !asked.is_empty() && asked != current {
        let mut place = String::from("/registry/");
        if !def.group.is_empty() && def.group.contains('.') && call.custom() {
            place.push_str(&def.group);
            place.push('/');
        }
        let key = object::key(def.namespaced, &call.target.namespace, name);
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: {place}{}/{key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {asked}, UID in object meta: {current}",
            def.plural
        );
        return Err(ApiError::conflict(def, name, &why));
    }
    let (asked, current) = (meta(new, "resourceVersion"), meta(old, "resourceVersion"));
    if asked.is_empty() {
        if !def.unconditional_update {
            let fault = FieldError::invalid("metadata.resourceVersion", 0, "must be specified for an update");
            return Err(ApiError::invalid(def, name, &[fault]));
        }
    } else if asked != current {
        return Err(ApiError::modified(def, name));
    }
    let (asked, current) = (meta(new, "deletionTimestamp"), meta(old, "deletionTimestamp"));
    if !asked.is_empty() && current.is_empty() && !call.is_put {
        let fault = FieldError::invalid("metadata.deletionTimestamp", asked, "field is immutable");
        return Err(ApiError::invalid(def, name, &twice(call, vec![fault])));
    }
    Ok(())
}

/// The reference checks changed metadata of built-in kinds in two places, and clients see both.
fn twice(call: &Call, mut faults: Vec<FieldError>) -> Vec<FieldError> {
    if !call.custom() {
        faults.extend(faults.clone());
    }
    faults
}

fn bump_generation(def: &ResourceDef, new: &mut Value, old: &Value) {
    if !def.generation {
        return;
    }
    let generation = old.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
    if def.strategy.spec_changed(new, old) {
        meta_mut(new).insert("generation".into(), (generation + 1).into());
    }
}

pub(crate) fn grace_is_over(object: &Value) -> bool {
    object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0) <= 0
}

/// Whether an update changes nothing; times in managed fields do not count.
fn same_but_times(new: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return false };
    // The rest differs more often, and is compared with less effort.
    let mut rest = new.iter().filter(|(key, _)| *key != "metadata");
    if new.len() != old.len() || !rest.all(|(key, value)| old.get(key) == Some(value)) {
        return false;
    }
    let metadata = [new, old].map(|object| object.get("metadata").and_then(Value::as_object));
    let [Some(new), Some(old)] = metadata else { return false };
    new.len() == old.len()
        && new.iter().all(|(field, value)| match old.get(field) {
            Some(other) if field == "managedFields" && value != other => without_times(value) == without_times(other),
            other => other == Some(value),
        })
}

fn without_times(entries: &Value) -> Value {
    let mut entries = entries.clone();
    for entry in entries.as_array_mut().into_iter().flatten() {
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("time");
        }
    }
    entries
}
