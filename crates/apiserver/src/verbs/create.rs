//! Creation.

use http::StatusCode;
use serde_json::Value;
use store::{Action, Expect, WriteError};

use super::Call;
use crate::ApiServer;
use crate::admission::Operation;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::object::{self, Object, meta, meta_mut, time_text};
use crate::webhooks::Write;

/// Longest part of a generated name before the suffix.
const GENERATE_PREFIX: usize = 63 - 5;
/// Attempts to find a free generated name.
const GENERATE_TRIES: usize = 8;

impl ApiServer {
    pub(crate) async fn create(&self, call: &Call) -> ApiResult<Response> {
        call.check_options("CreateOptions")?;
        let dry_run = call.dry_run("CreateOptions")?;
        let value = self.decode(call)?;
        let created = self.create_object(call, value, dry_run).await?;
        self.respond(call, StatusCode::CREATED, &created)
    }

    /// Creates an object that was decoded.
    pub(crate) async fn create_object(
        &self,
        call: &Call,
        mut value: Value,
        dry_run: bool,
    ) -> ApiResult<std::sync::Arc<Object>> {
        let def = &call.served.def;
        place(call, &mut value)?;
        let generated = meta(&value, "name").is_empty() && !meta(&value, "generateName").is_empty();
        for attempt in 0..GENERATE_TRIES {
            let mut value = value.clone();
            if generated {
                let name = generate(meta(&value, "generateName"));
                meta_mut(&mut value).insert("name".into(), name.into());
            }
            match self.try_create(call, value, dry_run).await {
                Err(error) if generated && error.reason == "AlreadyExists" && attempt + 1 < GENERATE_TRIES => {}
                other => return other,
            }
        }
        Err(ApiError::internal(format!("no free name was found for {}", def.kind)))
    }

    async fn try_create(&self, call: &Call, mut value: Value, dry_run: bool) -> ApiResult<std::sync::Arc<Object>> {
        let def = call.served.def.clone();
        self.admit_namespace(call, &value)?;
        self.admit(call, Operation::Create, "", &mut value, None, dry_run)?;
        let write = Write { call, operation: Operation::Create, subresource: "", old: None, dry_run };
        self.mutate(&write, &mut value).await?;
        fill_new(&mut value);
        def.strategy.prepare_create(&mut value);
        if def.generation {
            meta_mut(&mut value).insert("generation".into(), 1.into());
        } else {
            meta_mut(&mut value).remove("generation");
        }
        self.special_create(call, &mut value)?;
        let mut faults = crate::meta::validate(&def, &value);
        faults.extend(def.strategy.validate_create(&value));
        let name = meta(&value, "name").to_string();
        if !faults.is_empty() {
            return Err(ApiError::invalid(&def, &name, &faults));
        }
        self.review(&write, Some(&value)).await?;
        def.strategy.warnings(&value, None).into_iter().for_each(|warning| call.warn(warning));
        self.track_create(call, &mut value);
        let key = object::key(def.namespaced, meta(&value, "namespace"), &name);
        let table = self.table(&call.served);
        let stored = self.to_storage(&call.served, value);
        if dry_run {
            if table.get(&key).is_some() {
                return Err(ApiError::already_exists(&def, &name));
            }
            return Ok(std::sync::Arc::new(Object::encode(&stored)));
        }
        match self.store.write(&table, &key, Expect::Absent, put(stored), self.class(&call.served, "")).await {
            Ok(entry) => {
                self.after_write(&call.served, &entry.record);
                Ok(entry.record)
            }
            Err(WriteError::Exists) => {
                let mut error = ApiError::already_exists(&def, &name);
                if table.get(&key).is_some_and(|entry| object::is_deleting(&entry.record.value())) {
                    error.message = format!("object is being deleted: {}", error.message);
                }
                Err(error)
            }
            Err(error) => Err(ApiError::not_stored(&error)),
        }
    }
}

/// Writes an object, encoded once its revision is known.
pub(crate) fn put(mut stored: Value) -> Action<Object> {
    Action::Put(Box::new(move |revision| {
        set_revision(&mut stored, revision);
        Object::encode_and_keep(stored)
    }))
}

/// Deletes an object; watchers see it as it is given here.
pub(crate) fn delete(mut stored: Value) -> Action<Object> {
    Action::Delete(Box::new(move |revision| {
        set_revision(&mut stored, revision);
        Object::encode(&stored)
    }))
}

fn set_revision(stored: &mut Value, revision: u64) {
    meta_mut(stored).insert("resourceVersion".into(), revision.to_string().into());
}

/// Namespace from the path; faults where the body says otherwise.
pub(crate) fn place(call: &Call, value: &mut Value) -> ApiResult<()> {
    let def = &call.served.def;
    if !meta(value, "resourceVersion").is_empty() {
        return Err(ApiError::internal("resourceVersion should not be set on objects to be created"));
    }
    if def.namespaced {
        let namespace = meta(value, "namespace");
        if !namespace.is_empty() && namespace != call.target.namespace {
            let message = "the namespace of the provided object does not match the namespace sent on the request";
            return Err(ApiError::bad_request(message));
        }
        let namespace = call.target.namespace.clone();
        meta_mut(value).insert("namespace".into(), namespace.into());
    }
    Ok(())
}

fn fill_new(value: &mut Value) {
    let metadata = meta_mut(value);
    for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".into(), time_text(jiff::Timestamp::now()).into());
}

fn generate(prefix: &str) -> String {
    let prefix: String = prefix.chars().take(GENERATE_PREFIX).collect();
    let suffix = base::names::suffix(5, || {
        let mut byte = [0_u8];
        // Without randomness names repeat, and the creation is tried again.
        let _ = getrandom::fill(&mut byte);
        byte[0]
    });
    format!("{prefix}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names;

    #[test]
    fn generated_names_fit_a_label() {
        assert_eq!(generate("gen-").len(), 9);
        let long = generate(&"x".repeat(100));
        assert_eq!(long.len(), 63);
        assert!(names::label_faults(&long).is_empty());
    }
}
