//! Defaulting and validation of Service, Configuration, Route and Revision, as Knative's webhook does them. Pure.
//!
//! Both work on the JSON itself, so that fields that nobody here knows stay as they came.
//!
//! Source: `knative/serving/pkg/apis/serving/v1/*_defaults.go`, `*_validation.go`, `pkg/apis/serving/k8s_validation.go`.

mod defaults;
mod errors;
mod pods;
mod scaling;
mod traffic;
#[cfg(test)]
mod vectors;

use base::names::is_dns1035_label;
use serde_json::Value;

pub use defaults::default;
use errors::Errors;

use super::annotations::{AUTOSCALING_PREFIX, CREATOR_ANNOTATION};

/// The kinds that admission speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `serving.knative.dev/v1` Service.
    Service,
    /// `serving.knative.dev/v1` Configuration.
    Configuration,
    /// `serving.knative.dev/v1` Route.
    Route,
    /// `serving.knative.dev/v1` Revision.
    Revision,
}

impl Kind {
    /// The kind of that name in `serving.knative.dev`, if admission speaks of it.
    pub fn parse(kind: &str) -> Option<Self> {
        match kind {
            "Service" => Some(Self::Service),
            "Configuration" => Some(Self::Configuration),
            "Route" => Some(Self::Route),
            "Revision" => Some(Self::Revision),
            _ => None,
        }
    }

    /// Path of the Revision's spec in an object of this kind.
    fn revision_spec(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Service | Self::Configuration => Some(("/spec/template/spec", "spec.template.spec")),
            Self::Revision => Some(("/spec", "spec")),
            Self::Route => None,
        }
    }

    /// Path of the annotations that a Revision gets.
    fn revision_metadata(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Service | Self::Configuration => Some(("/spec/template/metadata", "spec.template.metadata")),
            Self::Revision => Some(("/metadata", "metadata")),
            Self::Route => None,
        }
    }
}

/// Cluster-wide values from `config-defaults` and `config-autoscaler`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `revision-timeout-seconds`. Default 300.
    pub timeout_seconds: i64,
    /// `max-revision-timeout-seconds`. Default 600.
    pub max_timeout_seconds: i64,
    /// `container-concurrency`. Default 0.
    pub container_concurrency: i64,
    /// `container-concurrency-max-limit`. Default 1000.
    pub container_concurrency_max: i64,
    /// `allow-zero-initial-scale`. Default false.
    pub allow_zero_initial_scale: bool,
    /// `max-scale-limit`; 0 is none. Default 0.
    pub max_scale_limit: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout_seconds: 300,
            max_timeout_seconds: 600,
            container_concurrency: 0,
            container_concurrency_max: 1_000,
            allow_zero_initial_scale: false,
            max_scale_limit: 0,
        }
    }
}

/// The error of an object that is not admitted, in Knative's words.
///
/// `old` is the stored object on an update.
///
/// # Errors
///
/// One line for each thing that is wrong.
pub fn validate(kind: Kind, object: &Value, old: Option<&Value>, settings: &Settings) -> Result<(), String> {
    let mut errors = Errors::default();
    metadata(kind, object, old, &mut errors);
    if let Some((pointer, path)) = kind.revision_spec() {
        let absent = Value::Null;
        let spec = object.pointer(pointer).unwrap_or(&absent);
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
        pods::validate(spec, path, namespace, settings, &mut errors);
    }
    if let Some((pointer, path)) = kind.revision_metadata() {
        template_metadata(kind, object, object.pointer(pointer), path, settings, &mut errors);
    }
    if matches!(kind, Kind::Service | Kind::Route) {
        traffic::validate(kind, object.pointer("/spec/traffic"), &mut errors);
    }
    if let Some(old) = old {
        immutable(kind, object, old, &mut errors);
    }
    errors.text().map_or(Ok(()), Err)
}

const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// What is wrong with `name` as a DNS-1035 label.
fn label_error(name: &str) -> Option<String> {
    if is_dns1035_label(name) {
        return None;
    }
    let mut problems = Vec::new();
    if !is_dns1035_label(&name.chars().take(1).chain("a".chars()).collect::<String>())
        || !is_dns1035_label(&format!("a{name}").chars().take(63).collect::<String>()) && name.len() <= 63
    {
        problems.push(DNS1035);
    }
    if name.len() > 63 {
        problems.push("must be no more than 63 characters");
    }
    Some(format!("not a DNS 1035 label: [{}]", problems.join(" ")))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn metadata(kind: Kind, object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let metadata = &object["metadata"];
    let name = text(metadata, "name");
    let generated = text(metadata, "generateName");
    if name.is_empty() && generated.is_empty() {
        errors.add("name or generateName is required", "metadata.name");
    } else if let Some(problem) = (!name.is_empty()).then(|| label_error(name)).flatten() {
        errors.add(problem, "metadata.name");
    }
    let annotations = metadata["annotations"].as_object();
    if kind != Kind::Revision {
        for key in annotations.into_iter().flat_map(|map| map.keys()).filter(|key| key.starts_with(AUTOSCALING_PREFIX))
        {
            errors.add_detailed(
                format!("invalid key name {key:?}"),
                "metadata.annotations",
                "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work",
            );
        }
    }
    seconds(&metadata["annotations"], "serving.knative.dev/rollout-duration", "metadata.annotations", errors);
    let creator = |object: &Value| object["metadata"]["annotations"][CREATOR_ANNOTATION].clone();
    if old.is_some_and(|old| !creator(old).is_null() && creator(old) != creator(object)) {
        errors.add("annotation value is immutable", format!("metadata.annotations.{CREATOR_ANNOTATION}"));
    }
}

/// A duration in whole seconds that is not negative.
fn seconds(annotations: &Value, key: &str, path: &str, errors: &mut Errors) {
    let Some(value) = annotations[key].as_str() else { return };
    let name = key.rsplit('/').next().unwrap_or(key);
    let path = format!("{path}.{key}");
    match base::duration::parse_nanoseconds(value) {
        None => errors.invalid(value, path),
        Some(ns) if ns % 1_000_000_000 != 0 => errors.add(format!("{name}={value} is not at second precision"), path),
        Some(ns) if ns < 0 => errors.add(format!("{name}={value} must be positive"), path),
        Some(_) => {}
    }
}

fn template_metadata(
    kind: Kind,
    object: &Value,
    metadata: Option<&Value>,
    path: &str,
    settings: &Settings,
    errors: &mut Errors,
) {
    let Some(metadata) = metadata else { return };
    let name = text(metadata, "name");
    if kind != Kind::Revision && !name.is_empty() {
        own_revision_name(object, name, &format!("{path}.name"), errors);
    }
    let annotations = &metadata["annotations"];
    scaling::validate(annotations, &format!("{path}.annotations"), settings, errors);
    seconds(annotations, super::annotations::PROGRESS_DEADLINE_ANNOTATION, &format!("{path}.annotations"), errors);
}

/// A Revision's name that the user chose.
fn own_revision_name(object: &Value, name: &str, path: &str, errors: &mut Errors) {
    let parent = text(&object["metadata"], "name");
    if parent.is_empty() {
        return errors.disallowed(path);
    }
    if let Some(problem) = label_error(name) {
        errors.invalid(problem, path);
    } else if !name.starts_with(&format!("{parent}-")) {
        errors.invalid(format!("{name:?} must have prefix \"{parent}-\""), path);
    }
}

/// A Revision never changes, and neither does what bears a Revision's name that the user chose.
fn immutable(kind: Kind, object: &Value, old: &Value, errors: &mut Errors) {
    let (pointer, message, path) = match kind {
        Kind::Revision => ("/spec", "Immutable fields changed (-old +new)", "spec"),
        Kind::Service | Kind::Configuration => (
            "/spec/template",
            "Saw the following changes without a name change (-old +new)",
            "spec.template.metadata.name",
        ),
        Kind::Route => return,
    };
    let absent = Value::Null;
    let part = |object: &'_ Value| object.pointer(pointer).unwrap_or(&absent).clone();
    let (before, after) = (part(old), part(object));
    let name = text(&after["metadata"], "name");
    if kind != Kind::Revision && (name.is_empty() || name != text(&before["metadata"], "name")) {
        return;
    }
    let mut changes = Vec::new();
    changed_fields(&before, &after, pointer.trim_start_matches('/').replace('/', "."), &mut changes);
    if !changes.is_empty() {
        errors.add_detailed(message, path, changes.join("\n"));
    }
}

/// Each field that differs, with both values.
fn changed_fields(old: &Value, new: &Value, path: String, changes: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys {
                changed_fields(&old[key.as_str()], &new[key.as_str()], format!("{path}.{key}"), changes);
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (before, after)) in before.iter().zip(after).enumerate() {
                changed_fields(before, after, format!("{path}[{index}]"), changes);
            }
        }
        _ if old != new => changes.push(format!("{path}:\n\t-: {old}\n\t+: {new}")),
        _ => {}
    }
}
