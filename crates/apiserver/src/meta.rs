//! `metadata`: filled, kept and checked by the engine for every kind alike.

use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::names;
use crate::object::meta_mut;
use crate::resource::{FieldError, NameRule, ResourceDef};

/// Fields of ObjectMeta.
const FIELDS: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Brings metadata into the form in which it is kept: known fields only, nothing null or empty. Returns the names of
/// fields that were unknown.
///
/// # Errors
///
/// 400 for a field of the wrong type.
pub fn normalise(object: &mut Value, kind: &str, version: &str) -> ApiResult<Vec<String>> {
    let wrong = |field: &str, found: &Value, wanted: &str| {
        let message = format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: json: cannot unmarshal {} into Go struct field ObjectMeta.metadata.{field} of type {wanted}",
            go_type(found)
        );
        ApiError::bad_request(message)
    };
    if let Some(metadata) = object.get("metadata")
        && !metadata.is_object()
        && !metadata.is_null()
    {
        let message = format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: json: cannot unmarshal {} into Go struct field {kind}.metadata of type v1.ObjectMeta",
            go_type(metadata)
        );
        return Err(ApiError::bad_request(message));
    }
    let metadata = meta_mut(object);
    let unknown: Vec<String> = metadata.keys().filter(|key| !FIELDS.contains(&key.as_str())).cloned().collect();
    metadata.retain(|key, value| FIELDS.contains(&key.as_str()) && key != "selfLink" && !value.is_null());
    for field in
        ["name", "generateName", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"]
    {
        match metadata.get(field) {
            Some(Value::String(text)) if text.is_empty() => {
                metadata.remove(field);
            }
            None | Some(Value::String(_)) => {}
            Some(other) => return Err(wrong(field, other, "string")),
        }
    }
    for field in ["labels", "annotations"] {
        match metadata.get(field) {
            None => {}
            Some(Value::Object(map)) => {
                if let Some((_, bad)) = map.iter().find(|(_, value)| !value.is_string() && !value.is_null()) {
                    return Err(wrong(field, bad, "string"));
                }
                if map.is_empty() {
                    metadata.remove(field);
                } else if let Some(Value::Object(map)) = metadata.get_mut(field) {
                    for value in map.values_mut().filter(|value| value.is_null()) {
                        *value = "".into();
                    }
                }
            }
            Some(other) => return Err(wrong(field, other, "map[string]string")),
        }
    }
    for (field, wanted) in [
        ("ownerReferences", "[]v1.OwnerReference"),
        ("finalizers", "[]string"),
        ("managedFields", "[]v1.ManagedFieldsEntry"),
    ] {
        match metadata.get(field) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {
                metadata.remove(field);
            }
            Some(Value::Array(list)) => {
                let strings = field == "finalizers";
                if let Some(bad) = list.iter().find(|item| if strings { !item.is_string() } else { !item.is_object() })
                {
                    return Err(wrong(field, bad, wanted));
                }
            }
            Some(other) => return Err(wrong(field, other, wanted)),
        }
    }
    for field in ["generation", "deletionGracePeriodSeconds"] {
        if let Some(other) = metadata.get(field).filter(|value| value.as_i64().is_none()) {
            return Err(wrong(field, other, "int64"));
        }
    }
    if metadata.get("generation").and_then(Value::as_i64) == Some(0) {
        metadata.remove("generation");
    }
    Ok(unknown.into_iter().map(|field| format!("metadata.{field}")).collect())
}

/// Go's word for the type of a JSON value, as its decoder prints it.
pub fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Faults of metadata, whether the object is new or not.
pub fn validate(def: &ResourceDef, object: &Value) -> Vec<FieldError> {
    let empty = Value::Object(Map::new());
    let metadata = object.get("metadata").unwrap_or(&empty);
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let mut faults = Vec::new();
    let generate = text("generateName");
    if !generate.is_empty() {
        let found = names::name_faults(def.name_rule, generate, true);
        faults.extend(found.into_iter().map(|why| FieldError::invalid("metadata.generateName", generate, why)));
    }
    let name = text("name");
    if name.is_empty() {
        faults.push(FieldError::required("metadata.name", "name or generateName is required"));
    } else {
        let found = names::name_faults(def.name_rule, name, false);
        faults.extend(found.into_iter().map(|why| FieldError::invalid("metadata.name", name, why)));
    }
    let namespace = text("namespace");
    if def.namespaced {
        if namespace.is_empty() {
            faults.push(FieldError::required("metadata.namespace", ""));
        } else {
            let found = names::name_faults(NameRule::Label, namespace, false);
            faults.extend(found.into_iter().map(|why| FieldError::invalid("metadata.namespace", namespace, why)));
        }
    } else if !namespace.is_empty() {
        faults.push(FieldError::forbidden("metadata.namespace", "not allowed on this type"));
    }
    if metadata.get("generation").and_then(Value::as_i64).is_some_and(|g| g < 0) {
        let why = "must be greater than or equal to 0";
        faults.push(FieldError::invalid("metadata.generation", metadata["generation"].clone(), why));
    }
    faults.extend(names::labels_faults(metadata.get("labels"), "metadata.labels"));
    faults.extend(names::annotations_faults(metadata.get("annotations"), "metadata.annotations"));
    faults.extend(owners_faults(metadata.get("ownerReferences")));
    // Only the built-in kinds insist on qualified names.
    let strict = def.strategy.strategic() && def.group != crate::crd::GROUP;
    faults.extend(finalizers_faults(metadata.get("finalizers"), strict));
    faults
}

fn owners_faults(owners: Option<&Value>) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let mut controller: Option<String> = None;
    for (index, owner) in owners.and_then(Value::as_array).into_iter().flatten().enumerate() {
        let path = |field: &str| format!("metadata.ownerReferences.{field}");
        let text = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default();
        let api_version = text("apiVersion");
        if api_version.is_empty()
            || (!api_version.contains('/') && api_version != "v1" && !api_version.starts_with('v'))
        {
            faults.push(FieldError::invalid(path("apiVersion"), api_version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(field).is_empty() {
                faults.push(FieldError::invalid(path(field), "", "must not be empty"));
            }
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            if let Some(other) = &controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {other} and {}/{}",
                    text("kind"),
                    text("name")
                );
                faults.push(FieldError::invalid("metadata.ownerReferences", owners.cloned().unwrap_or_default(), why));
            }
            controller = Some(format!("{}/{}", text("kind"), text("name")));
        }
        let _ = index;
    }
    faults
}

fn finalizers_faults(finalizers: Option<&Value>, strict: bool) -> Vec<FieldError> {
    let list: Vec<&str> =
        finalizers.and_then(Value::as_array).map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default();
    let mut faults: Vec<FieldError> =
        list.iter().flat_map(|name| names::finalizer_faults(name, "metadata.finalizers", strict)).collect();
    if list.contains(&"orphan") && list.contains(&"foregroundDeletion") {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        faults.push(FieldError::invalid("metadata.finalizers", finalizers.cloned().unwrap_or_default(), why));
    }
    faults
}

/// What only the server may set, taken over from the old object.
pub fn keep_system_fields(new: &mut Value, old: &Value) {
    let fields = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "namespace",
        "generateName",
    ];
    keep_fields(meta_mut(new), old, &fields);
}

/// Fields of metadata, taken over from the old object.
pub fn keep_fields(metadata: &mut Map<String, Value>, old: &Value, fields: &[&str]) {
    let before = old.get("metadata");
    for field in fields {
        match before.and_then(|before| before.get(*field)) {
            Some(value) if metadata.get(*field) == Some(value) => {}
            Some(value) => {
                metadata.insert((*field).to_string(), value.clone());
            }
            None => {
                metadata.remove(*field);
            }
        }
    }
}

/// Faults of changed metadata.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut faults = Vec::new();
    if crate::object::is_deleting(old) {
        let before = crate::object::finalizers(old);
        let added: Vec<&str> = crate::object::finalizers(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let listed: Vec<String> = added.iter().map(|f| format!("\"{f}\"")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                listed.join(", ")
            );
            faults.push(FieldError::forbidden("metadata.finalizers", why));
        }
    }
    faults
}
