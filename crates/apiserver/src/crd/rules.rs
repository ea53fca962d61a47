//! The rules of a custom resource: what its schema says.

use std::sync::Arc;

use serde_json::Value;

use super::schema::Schema;
use crate::resource::{FieldError, ListType, Strategy};

/// Rules of one version of a custom resource.
#[derive(Debug)]
pub(super) struct CustomRules {
    pub schema: Option<Arc<Schema>>,
    /// Nothing is pruned (`preserveUnknownFields: true` of old definitions).
    pub preserve_all: bool,
    /// Whether `status` has a path of its own.
    pub status: bool,
}

impl CustomRules {
    fn faults(&self, object: &Value) -> Vec<FieldError> {
        self.schema.as_ref().map(|schema| schema.validate_root(object)).unwrap_or_default()
    }
}

impl Strategy for CustomRules {
    fn unknown_fields(&self, object: &Value) -> Vec<String> {
        match &self.schema {
            Some(schema) if !self.preserve_all => schema.unknown_root(object),
            _ => Vec::new(),
        }
    }

    fn prune(&self, object: &mut Value) {
        if let Some(schema) = self.schema.as_ref().filter(|_| !self.preserve_all) {
            schema.prune_root(object);
        }
    }

    fn default(&self, object: &mut Value) {
        if let Some(schema) = &self.schema {
            schema.default(object);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.status
            && let Some(map) = object.as_object_mut()
        {
            map.remove("status");
        }
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if !self.status {
            return;
        }
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => {
                new.as_object_mut().map(|map| map.remove("status"));
            }
        }
    }

    fn spec_changed(&self, new: &Value, old: &Value) -> bool {
        let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return true };
        let counts = |key: &str| key != "metadata" && !(self.status && key == "status");
        new.keys().chain(old.keys()).any(|key| counts(key) && new.get(key) != old.get(key))
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        self.faults(object)
    }

    fn validate_update(&self, new: &Value, _: &Value) -> Vec<FieldError> {
        self.faults(new)
    }

    fn validate_status_update(&self, new: &Value, _: &Value) -> Vec<FieldError> {
        self.faults(new)
    }

    fn strategic(&self) -> bool {
        false
    }

    fn list_type(&self, path: &[&str]) -> ListType<'_> {
        let schema = self.schema.as_ref().and_then(|schema| schema.at(path));
        schema.map_or(ListType::Atomic, Schema::list_type)
    }

    fn atomic_map(&self, path: &[&str]) -> bool {
        self.schema.as_ref().and_then(|schema| schema.at(path)).is_some_and(|schema| schema.atomic_map)
    }
}
