//! Reading and filling JSON without panics: a value of another type reads as absent.

use serde_json::{Map, Value, json};

/// The value at a dotted path, or null.
pub fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(value, |value, name| value.get(name).unwrap_or(&Value::Null))
}

/// The text at a dotted path, or the empty text.
pub fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The number at a dotted path.
pub fn number(value: &Value, path: &str) -> Option<i64> {
    at(value, path).as_i64()
}

/// Whether the value at a dotted path is true.
pub fn is_true(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or(false)
}

/// The items of the list at a dotted path; none if there is no list.
pub fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of the map at a dotted path; none if there is no map.
pub fn entries<'a>(value: &'a Value, path: &str) -> impl Iterator<Item = (&'a String, &'a Value)> {
    at(value, path).as_object().into_iter().flatten()
}

/// The object at a dotted path, if it is there.
pub fn object_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    value_mut(value, path)?.as_object_mut()
}

/// The value at a dotted path, if it is there.
pub fn value_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.').try_fold(value, |value, name| value.as_object_mut()?.get_mut(name))
}

/// The items of the list at a dotted path.
pub fn items_mut<'a>(value: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> {
    value_mut(value, path).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets `name` in an object if it is absent or null; nothing happens to what is no object.
pub fn fill(object: &mut Value, name: &str, default: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        let slot = map.entry(name).or_insert(Value::Null);
        if slot.is_null() {
            *slot = default.into();
        }
    }
}

/// Sets `name` in an object; nothing happens to what is no object.
pub fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(name.to_string(), value.into());
    }
}

/// The object under `name`, made if it is absent; `None` if `value` is no object.
pub fn child<'a>(value: &'a mut Value, name: &str) -> Option<&'a mut Value> {
    let slot = value.as_object_mut()?.entry(name).or_insert(Value::Null);
    if slot.is_null() {
        *slot = json!({});
    }
    Some(slot)
}
