//! The built-in kinds, as data.
//!
//! [`builtin`] lists them; [`schema`] knows their fields. What is particular to a kind (defaults, checks, columns)
//! are pure functions on JSON, gathered in a [`Rules`] and driven by one [`Strategy`] for all.

mod batch;
mod columns;
mod core;
mod json;
mod limits;
mod list;
mod names;
mod others;
mod pod;
pub mod quantity;
pub mod schema;
mod service;
mod workloads;

use std::sync::{Arc, LazyLock};

use serde_json::Value;

use crate::error::{ApiError, ApiResult};
use crate::resource::{FieldError, ListType, PatchMerge, ResourceDef, Strategy};
use schema::conform;

pub use pod::admission::{Lookup, admit as admit_pod};

/// Every built-in resource.
pub fn builtin() -> Vec<ResourceDef> {
    list::all()
}

/// Name in [`schema`] of the type of a built-in kind, if it is one: (`apps/v1`, `Deployment`) is `apps.v1.Deployment`.
pub fn schema_name(api_version: &str, kind: &str) -> Option<String> {
    let (group, version) = api_version.split_once('/').unwrap_or(("core", api_version));
    let group = match group {
        "rbac.authorization.k8s.io" => "rbac",
        "apiextensions.k8s.io" => "apiextensions",
        "" => "core",
        other => other.split('.').next().unwrap_or(other),
    };
    let name = format!("{group}.{version}.{kind}");
    schema::find(&name).map(|_| name)
}

/// What a server says of a new pod by its types and rules alone: no account, quota or other object is looked at.
///
/// # Errors
///
/// The refusal, in Kubernetes' words.
pub fn check_new_pod(mut pod: Value) -> ApiResult<()> {
    static PODS: LazyLock<ResourceDef> = LazyLock::new(|| {
        let kinds = builtin().into_iter();
        kinds.into_iter().find(|def| def.group.is_empty() && def.kind == "Pod").expect("pods are a kind")
    });
    let strategy = &PODS.strategy;
    crate::verbs::drop_nulls(&mut pod);
    strategy
        .check_types(&pod)
        .map_err(|why| ApiError::bad_request(format!("Pod in version \"v1\" cannot be handled as a Pod: {why}")))?;
    strategy.default(&mut pod);
    strategy.prepare_create(&mut pod);
    let faults = strategy.validate_create(&pod);
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(&PODS, name, &faults)) }
}

type Faults = Vec<FieldError>;

/// From a version to the stored one, and back.
type Conversion = (fn(&mut Value), fn(&mut Value));

/// What is particular to one kind. Every function sees values whose field types were checked.
#[derive(Clone, Copy)]
struct Rules {
    /// Fills defaults in.
    default: fn(&mut Value),
    /// Before creation; the status is already gone unless `keeps_status`.
    prepare_create: fn(&mut Value),
    /// Before an update through the main path; the status is already the old one.
    prepare_update: fn(&mut Value, &Value),
    /// Before an update through `/status`; everything but metadata and status is already old.
    prepare_status: fn(&mut Value, &Value),
    /// Faults of an object.
    validate: fn(&Value, &mut Faults),
    /// Faults of an update, those of [`Rules::validate`] aside.
    validate_update: fn(&Value, &Value, &mut Faults),
    /// Faults of a status update.
    validate_status: fn(&Value, &Value, &mut Faults),
    /// Texts for warnings.
    warnings: fn(&Value) -> Vec<String>,
    /// See [`Strategy::spec_changed`]; `None` for the usual rule.
    spec_changed: Option<fn(&Value, &Value) -> bool>,
    /// See [`Strategy::grace_period`].
    grace: fn(&Value, Option<i64>) -> Option<i64>,
    /// Whether a new object may carry a status (Node).
    keeps_status: bool,
    /// Whether updates repeat the checks of [`Rules::validate`].
    validates_updates: bool,
    /// From this version to the stored one, and back.
    convert: Option<Conversion>,
}

impl Rules {
    const NONE: Self = Self {
        default: |_| {},
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _| {},
        validate: |_, _| {},
        validate_update: |_, _, _| {},
        validate_status: |_, _, _| {},
        warnings: |_| Vec::new(),
        spec_changed: None,
        grace: |_, _| None,
        keeps_status: false,
        validates_updates: true,
        convert: None,
    };
}

/// The strategy of all built-in kinds.
struct Builtin {
    root: String,
    has_status: bool,
    rules: Rules,
}

impl Builtin {
    fn strategy(root: String, has_status: bool, rules: Rules) -> Arc<dyn Strategy> {
        Arc::new(Self { root, has_status, rules })
    }
}

fn remove(object: &mut Value, name: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(name);
    }
}

fn carry(new: &mut Value, old: &Value, name: &str) {
    if let Some(map) = new.as_object_mut() {
        match old.get(name) {
            Some(value) => map.insert(name.to_string(), value.clone()),
            None => map.remove(name),
        };
    }
}

impl Strategy for Builtin {
    fn check_types(&self, object: &Value) -> Result<(), String> {
        conform::check(&self.root, object)
    }

    fn unknown_fields(&self, object: &Value) -> Vec<String> {
        conform::unknown(&self.root, object)
    }

    fn prune(&self, object: &mut Value) {
        conform::prune(&self.root, object);
    }

    fn default(&self, object: &mut Value) {
        conform::normalise(&self.root, object);
        (self.rules.default)(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        if self.has_status && !self.rules.keeps_status {
            remove(object, "status");
            conform::normalise(&self.root, object);
        }
        (self.rules.prepare_create)(object);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        if self.has_status {
            carry(new, old, "status");
        }
        (self.rules.prepare_update)(new, old);
    }

    fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        crate::resource::keep_but_status(new, old);
        conform::normalise_field(&self.root, "status", new);
        (self.rules.prepare_status)(new, old);
    }

    fn spec_changed(&self, new: &Value, old: &Value) -> bool {
        match self.rules.spec_changed {
            Some(changed) => changed(new, old),
            None => {
                let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return true };
                let desired = |key: &&String| !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind");
                new.keys().chain(old.keys()).filter(desired).any(|key| new.get(key) != old.get(key))
            }
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = Vec::new();
        (self.rules.validate)(object, &mut faults);
        faults
    }

    fn validate_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = Vec::new();
        if self.rules.validates_updates {
            (self.rules.validate)(new, &mut faults);
        }
        (self.rules.validate_update)(new, old, &mut faults);
        faults
    }

    fn validate_status_update(&self, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut faults = Vec::new();
        (self.rules.validate_status)(new, old, &mut faults);
        faults
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>) -> Vec<String> {
        (self.rules.warnings)(new)
    }

    fn patch_merge(&self, path: &[&str]) -> Option<PatchMerge> {
        schema::field_at(&self.root, path)?.patch.clone()
    }

    fn list_type(&self, path: &[&str]) -> ListType<'_> {
        match schema::field_at(&self.root, path) {
            Some(field) if !field.keys.is_empty() => ListType::Map(&field.keys),
            Some(field) if field.set => ListType::Set,
            _ => ListType::Atomic,
        }
    }

    fn atomic_map(&self, path: &[&str]) -> bool {
        let Some(field) = schema::field_at(&self.root, path) else { return false };
        let whole = |name: &str| schema::find(name).is_some_and(|kind| kind.atomic);
        field.atomic || matches!(&field.shape, schema::Shape::Object(name) if whole(name))
    }

    fn grace_period(&self, object: &Value, asked: Option<i64>) -> Option<i64> {
        (self.rules.grace)(object, asked)
    }

    fn to_storage(&self, object: &mut Value) {
        if let Some((to, _)) = self.rules.convert {
            to(object);
        }
    }

    fn from_storage(&self, object: &mut Value) {
        if let Some((_, from)) = self.rules.convert {
            from(object);
        }
    }
}
