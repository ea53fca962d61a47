//! Brings JSON into the form that a decoder into a built-in kind and an encoder out of it would give.
//!
//! [`check`] complains about wrong types, [`unknown`] names unknown fields, [`prune`] removes them, and [`normalise`]
//! does what a round trip through the reference's types does: zeros that are not written go, required ones come,
//! quantities and times take their canonical form.
//!
//! Source: the JSON that kube-apiserver answers (`encoding/json` with `omitempty`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Field, Shape, Type, find};
use crate::kinds::quantity;
use crate::place::Place;

/// Whether every field has its type.
///
/// # Errors
///
/// The decoder's complaint, in words close to the reference's.
pub fn check(root: &str, value: &Value) -> Result<(), String> {
    let Some(kind) = find(root) else { return Ok(()) };
    check_object(kind, short_name(root), &Place::Root, value)
}

fn short_name(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn check_object(kind: &Type, owner: &str, at: &Place<'_>, value: &Value) -> Result<(), String> {
    let Some(map) = value.as_object() else {
        return if value.is_null() { Ok(()) } else { Err(mismatch(value, owner, at, owner)) };
    };
    for (name, value) in map {
        if let Some(field) = kind.field(name) {
            check_shape(&field.shape, owner, &Place::Field(at, name), value)?;
        }
    }
    Ok(())
}

fn mismatch(value: &Value, owner: &str, at: &Place<'_>, wanted: &str) -> String {
    let given = match value {
        Value::String(_) => "string".to_string(),
        Value::Number(number) if wanted.starts_with("int") => format!("number {number}"),
        Value::Number(_) => "number".to_string(),
        Value::Bool(_) => "bool".to_string(),
        Value::Array(_) => "array".to_string(),
        Value::Object(_) => "object".to_string(),
        Value::Null => "null".to_string(),
    };
    format!("json: cannot unmarshal {given} into Go struct field {owner}.{at} of type {wanted}")
}

fn check_shape(shape: &Shape, owner: &str, at: &Place<'_>, value: &Value) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let fits = |fine: bool, wanted: &str| if fine { Ok(()) } else { Err(mismatch(value, owner, at, wanted)) };
    match shape {
        Shape::Text => fits(value.is_string(), "string"),
        Shape::Bool => fits(value.is_boolean(), "bool"),
        Shape::Int => fits(value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()), "int32"),
        Shape::Long => fits(value.as_i64().is_some(), "int64"),
        Shape::Double => fits(value.is_number(), "float64"),
        Shape::Bytes => check_bytes(owner, at, value),
        Shape::Quantity => check_quantity(value),
        Shape::Time => check_time(value, owner, at, "2006-01-02T15:04:05Z07:00"),
        Shape::MicroTime => check_time(value, owner, at, "2006-01-02T15:04:05.000000Z07:00"),
        Shape::IntOrString => {
            fits(value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()), "int32")
        }
        Shape::Any | Shape::SchemaOrBool | Shape::SchemaOrArray | Shape::SchemaOrTexts | Shape::Inlined => Ok(()),
        Shape::Object(name) => match find(name) {
            Some(kind) if value.is_object() => check_object(kind, short_name(name), at, value),
            _ => fits(false, &go_name(name)),
        },
        Shape::List(inner) => match value.as_array() {
            Some(items) => items.iter().try_for_each(|item| check_shape(inner, owner, at, item)),
            None => fits(false, &format!("[]{}", shape_name(inner))),
        },
        Shape::Map(inner) => match value.as_object() {
            Some(entries) => entries.values().try_for_each(|item| check_shape(inner, owner, at, item)),
            None => fits(false, &format!("map[string]{}", shape_name(inner))),
        },
    }
}

fn go_name(name: &str) -> String {
    let mut parts = name.rsplit('.');
    let kind = parts.next().unwrap_or_default();
    format!("{}.{kind}", parts.next().unwrap_or("v1"))
}

fn shape_name(shape: &Shape) -> String {
    match shape {
        Shape::Text => "string".into(),
        Shape::Bool => "bool".into(),
        Shape::Int => "int32".into(),
        Shape::Long => "int64".into(),
        Shape::Object(name) => go_name(name),
        Shape::Bytes => "[]uint8".into(),
        Shape::Quantity => "resource.Quantity".into(),
        _ => "interface {}".into(),
    }
}

fn check_bytes(owner: &str, at: &Place<'_>, value: &Value) -> Result<(), String> {
    let Some(text) = value.as_str() else { return Err(mismatch(value, owner, at, "[]uint8")) };
    let clean: String = text.chars().filter(|c| !matches!(c, '\n' | '\r')).collect();
    match STANDARD.decode(clean.as_bytes()) {
        Ok(_) => Ok(()),
        Err(base64::DecodeError::InvalidByte(at, _)) => Err(format!("illegal base64 data at input byte {at}")),
        Err(_) => Err(format!("illegal base64 data at input byte {}", clean.len().saturating_sub(1))),
    }
}

fn check_quantity(value: &Value) -> Result<(), String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        other => other.to_string(),
    };
    quantity::canonical(&text).map(|_| ()).map_err(|error| error.to_string())
}

fn check_time(value: &Value, owner: &str, at: &Place<'_>, layout: &str) -> Result<(), String> {
    match value.as_str() {
        None => Err(mismatch(value, owner, at, "string")),
        Some("") => Ok(()),
        Some(text) if text.parse::<Timestamp>().is_ok() => Ok(()),
        Some(text) => Err(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")),
    }
}

/// Paths of the fields that the type does not know; an object's own come after those of its fields.
pub fn unknown(root: &str, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if let (Some(kind), Some(map)) = (find(root), value.as_object()) {
        unknown_in(kind, map, &Place::Root, &mut found);
    }
    found
}

fn unknown_in(kind: &Type, map: &Map<String, Value>, at: &Place<'_>, found: &mut Vec<String>) {
    for (name, value) in map {
        if let Some(field) = kind.field(name) {
            unknown_in_shape(&field.shape, value, &Place::Field(at, name), found);
        }
    }
    let unknown = map.keys().filter(|name| kind.field(name).is_none());
    found.extend(unknown.map(|name| Place::Field(at, name).to_string()));
}

fn unknown_in_shape(shape: &Shape, value: &Value, at: &Place<'_>, found: &mut Vec<String>) {
    match (shape, value) {
        (Shape::Object(name), Value::Object(map)) => {
            if let Some(kind) = find(name) {
                unknown_in(kind, map, at, found);
            }
        }
        (Shape::List(inner), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                unknown_in_shape(inner, item, &Place::Item(at, index), found);
            }
        }
        (Shape::Map(inner), Value::Object(map)) => {
            for (key, item) in map {
                unknown_in_shape(inner, item, &Place::Field(at, key), found);
            }
        }
        _ => {}
    }
}

/// Removes the fields that the type does not know.
pub fn prune(root: &str, value: &mut Value) {
    if let Some(kind) = find(root) {
        prune_object(kind, value);
    }
}

fn prune_object(kind: &Type, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    map.retain(|name, _| kind.field(name).is_some());
    for (name, value) in map.iter_mut() {
        if let Some(field) = kind.field(name) {
            prune_shape(&field.shape, value);
        }
    }
}

fn prune_shape(shape: &Shape, value: &mut Value) {
    match (shape, value) {
        (Shape::Object(name), value @ Value::Object(_)) => {
            if let Some(kind) = find(name) {
                prune_object(kind, value);
            }
        }
        (Shape::List(inner), Value::Array(items)) => items.iter_mut().for_each(|item| prune_shape(inner, item)),
        (Shape::Map(inner), Value::Object(map)) => map.values_mut().for_each(|item| prune_shape(inner, item)),
        _ => {}
    }
}

/// Gives `value` the form that it has after a round trip through the reference's types. Idempotent; unknown fields
/// stay.
pub fn normalise(root: &str, value: &mut Value) {
    if let (Some(kind), Some(map)) = (find(root), value.as_object_mut()) {
        normalise_object(kind, map);
    }
}

/// [`normalise`], of one field of an object whose others have that form.
pub fn normalise_field(root: &str, name: &str, value: &mut Value) {
    let Some(field) = find(root).and_then(|kind| kind.field(name)) else { return };
    let Some(map) = value.as_object_mut() else { return };
    if let Some(value) = map.get_mut(name) {
        normalise_shape(&field.shape, value);
        if dropped(field, value) {
            map.remove(name);
        }
    }
    if field.always && !map.contains_key(name) {
        map.insert(name.to_string(), absent(field));
    }
}

fn normalise_object(kind: &Type, map: &mut Map<String, Value>) {
    map.retain(|name, value| match kind.field(name) {
        Some(field) => {
            normalise_shape(&field.shape, value);
            !dropped(field, value)
        }
        None => true,
    });
    for field in kind.fields.iter().filter(|field| field.always) {
        if !map.contains_key(field.name) {
            map.insert(field.name.to_string(), absent(field));
        }
    }
}

/// Whether the encoder leaves that value out.
fn dropped(field: &Field, value: &Value) -> bool {
    if field.always {
        return value.is_null() && !absent(field).is_null();
    }
    match (&field.shape, value) {
        (_, Value::Null) => true,
        (Shape::Any | Shape::Object(_), _) => false,
        (Shape::List(_), Value::Array(items)) => items.is_empty(),
        (Shape::Map(_), Value::Object(map)) => map.is_empty(),
        _ if field.pointer => false,
        (Shape::Text, Value::String(text)) => text.is_empty(),
        (Shape::Bytes, Value::String(text)) => text.is_empty(),
        (Shape::Bool, Value::Bool(set)) => !set,
        (Shape::Int | Shape::Long | Shape::Double, Value::Number(number)) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn absent(field: &Field) -> Value {
    if field.nullable { Value::Null } else { zero(&field.shape) }
}

fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::Text => json!(""),
        Shape::Bool => json!(false),
        Shape::Int | Shape::Long | Shape::Double | Shape::IntOrString => json!(0),
        Shape::Quantity => json!("0"),
        Shape::Object(name) => {
            let mut map = Map::new();
            if let Some(kind) = find(name) {
                normalise_object(kind, &mut map);
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

fn normalise_shape(shape: &Shape, value: &mut Value) {
    match shape {
        Shape::Object(name) => {
            if let (Some(kind), Some(map)) = (find(name), value.as_object_mut()) {
                normalise_object(kind, map);
            }
        }
        Shape::List(inner) => {
            if let Some(items) = value.as_array_mut() {
                for item in items {
                    if item.is_null() {
                        *item = zero(inner);
                    }
                    normalise_shape(inner, item);
                }
            }
        }
        Shape::Map(inner) => {
            if let Some(map) = value.as_object_mut() {
                for item in map.values_mut() {
                    if item.is_null() {
                        *item = match **inner {
                            Shape::Bytes => json!(""),
                            _ => zero(inner),
                        };
                    }
                    normalise_shape(inner, item);
                }
            }
        }
        Shape::Quantity => {
            let text = match &*value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return,
            };
            if let Ok(text) = quantity::canonical(&text) {
                *value = Value::String(text);
            }
        }
        Shape::Time => normalise_time(value, false),
        Shape::MicroTime => normalise_time(value, true),
        Shape::Bytes => {
            if let Some(text) = value.as_str()
                && text.contains(['\n', '\r'])
            {
                *value = Value::String(text.replace(['\n', '\r'], ""));
            }
        }
        _ => {}
    }
}

fn normalise_time(value: &mut Value, micros: bool) {
    let Some(text) = value.as_str() else { return };
    // The canonical forms are by far the most common; they need no new text.
    let canonical = if micros { text.len() == 27 } else { text.len() == 20 };
    if canonical && text.ends_with('Z') {
        return;
    }
    if text.is_empty() {
        *value = Value::Null;
    } else if let Ok(time) = text.parse::<Timestamp>() {
        let format = if micros { "%Y-%m-%dT%H:%M:%S%.6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
        *value = Value::String(time.strftime(format).to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normalised(root: &str, mut value: Value) -> Value {
        normalise(root, &mut value);
        let once = value.clone();
        normalise(root, &mut value);
        assert_eq!(once, value, "normalising twice changes nothing more");
        value
    }

    #[test]
    fn zeros_go_and_required_fields_come() {
        let rows = [
            (
                "core.v1.Container",
                json!({"name": "c", "image": "", "tty": false, "ports": [{"containerPort": 80, "hostPort": 0}]}),
                json!({"name": "c", "resources": {}, "ports": [{"containerPort": 80}]}),
            ),
            (
                "core.v1.SecurityContext",
                json!({"runAsUser": 0, "privileged": false}),
                json!({"runAsUser": 0, "privileged": false}),
            ),
            (
                "core.v1.ResourceRequirements",
                json!({"limits": {"cpu": "0.5", "memory": "1024Mi"}, "claims": []}),
                json!({"limits": {"cpu": "500m", "memory": "1Gi"}}),
            ),
            (
                "apps.v1.DeploymentSpec",
                json!({"replicas": 0, "minReadySeconds": 0, "template": null, "selector": {}}),
                {
                    json!({"replicas": 0, "selector": {}, "strategy": {}, "template": {"metadata": {}, "spec": {"containers": null}}})
                },
            ),
            (
                "core.v1.NodeCondition",
                json!({"type": "Ready", "status": "True"}),
                json!({"type": "Ready", "status": "True", "lastHeartbeatTime": null, "lastTransitionTime": null}),
            ),
            (
                "coordination.v1.LeaseSpec",
                json!({"renewTime": "2020-01-01T00:00:05.5Z", "leaseTransitions": 0}),
                json!({"renewTime": "2020-01-01T00:00:05.500000Z", "leaseTransitions": 0}),
            ),
        ];
        for (root, given, wanted) in rows {
            assert_eq!(normalised(root, given), wanted, "{root}");
        }
    }

    #[test]
    fn types_are_checked_as_a_decoder_would() {
        let rows = [
            (
                "core.v1.ConfigMap",
                json!({"metadata": "x"}),
                "json: cannot unmarshal string into Go struct field ConfigMap.metadata of type v1.ObjectMeta",
            ),
            (
                "core.v1.ConfigMap",
                json!({"metadata": {"name": 5}}),
                "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string",
            ),
            ("core.v1.Secret", json!({"data": {"a": "not base64!"}}), "illegal base64 data at input byte 3"),
            (
                "coordination.v1.Lease",
                json!({"spec": {"renewTime": "yesterday"}}),
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"yesterday\" as \"2006\"",
            ),
        ];
        for (root, given, wanted) in rows {
            assert_eq!(check(root, &given), Err(wanted.to_string()));
        }
        let fine = json!({"metadata": {"name": "a", "labels": null}, "data": {"k": "v"}, "immutable": null});
        assert_eq!(check("core.v1.ConfigMap", &fine), Ok(()));
    }

    #[test]
    fn unknown_fields_are_named_and_pruned() {
        let mut given =
            json!({"metadata": {"unknownMeta": 1}, "extra": {"deep": 1}, "spec": {"containers": [{"bogus": 1}]}});
        assert_eq!(unknown("core.v1.Pod", &given), ["metadata.unknownMeta", "spec.containers[0].bogus", "extra"]);
        prune("core.v1.Pod", &mut given);
        assert_eq!(given, json!({"metadata": {}, "spec": {"containers": [{}]}}));
    }
}
