//! Strategic merge patch: a merge patch that knows by which key the items of a list are found.
//!
//! Directives: `$patch: replace|delete|merge` in a map or an item, `$retainKeys`, `$setElementOrder/<list>`,
//! `$deleteFromPrimitiveList/<list>`.
//!
//! Source: `k8s.io/apimachinery/pkg/util/strategicpatch` and the Kubernetes community's notes on it.

use serde_json::{Map, Value};

use crate::error::{ApiError, ApiResult};
use crate::resource::Strategy;

const ORDER: &str = "$setElementOrder/";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";

/// Applies `patch` to `target`, which is the value at `path`.
pub(super) fn apply(
    target: &mut Value,
    patch: &Value,
    strategy: &dyn Strategy,
    path: &mut Vec<String>,
) -> ApiResult<()> {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    match fields.get("$patch").map(|directive| directive.as_str().unwrap_or_default()) {
        Some("replace") => {
            let kept = fields.iter().filter(|(key, _)| *key != "$patch");
            *target = Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect());
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => {
            return Err(ApiError::bad_request(format!("unknown patch type: {other}")));
        }
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    if let Some(retain) = fields.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|key, _| retain.iter().any(|wanted| wanted == key));
    }
    for (key, value) in fields.iter().filter(|(key, _)| !key.starts_with('$')) {
        if value.is_null() {
            map.remove(key);
            continue;
        }
        path.push(key.clone());
        let result = match value {
            Value::Object(_) => apply(map.entry(key.clone()).or_insert(Value::Null), value, strategy, path),
            Value::Array(items) => apply_list(map, key, items, fields, strategy, path),
            _ => {
                map.insert(key.clone(), value.clone());
                Ok(())
            }
        };
        path.pop();
        result?;
    }
    apply_list_directives(map, fields, strategy, path)
}

/// Directives about lists that the patch does not otherwise name.
fn apply_list_directives(
    map: &mut Map<String, Value>,
    fields: &Map<String, Value>,
    strategy: &dyn Strategy,
    path: &mut Vec<String>,
) -> ApiResult<()> {
    for (directive, value) in fields {
        if let Some(key) = directive.strip_prefix(DELETE_PRIMITIVES) {
            let gone = value.as_array().cloned().unwrap_or_default();
            if let Some(list) = map.get_mut(key).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
        }
    }
    for (directive, value) in fields {
        if let Some(key) = directive.strip_prefix(ORDER) {
            path.push(key.to_string());
            let merge_key = rule(strategy, path).and_then(|rule| rule.key);
            path.pop();
            if let (Some(list), Some(order)) = (map.get_mut(key).and_then(Value::as_array_mut), value.as_array()) {
                let server = list.clone();
                reorder(list, order, merge_key.as_deref(), &server);
            }
        }
    }
    Ok(())
}

fn rule(strategy: &dyn Strategy, path: &[String]) -> Option<crate::resource::PatchMerge> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    // Metadata is the same for all kinds.
    match names.as_slice() {
        ["metadata", "ownerReferences"] => {
            return Some(crate::resource::PatchMerge { key: Some("uid".into()), merge: true, retain_keys: false });
        }
        ["metadata", "finalizers"] => {
            return Some(crate::resource::PatchMerge { key: None, merge: true, retain_keys: false });
        }
        _ => {}
    }
    strategy.patch_merge(&names)
}

fn apply_list(
    map: &mut Map<String, Value>,
    key: &str,
    items: &[Value],
    fields: &Map<String, Value>,
    strategy: &dyn Strategy,
    path: &mut Vec<String>,
) -> ApiResult<()> {
    let rule = rule(strategy, path).filter(|rule| rule.merge);
    let replace = items.iter().any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace"));
    let Some(rule) = rule.filter(|_| !replace) else {
        let kept = items.iter().filter(|item| item.get("$patch").is_none_or(|p| p != "replace")).cloned().collect();
        map.insert(key.to_string(), Value::Array(kept));
        return Ok(());
    };
    let present = map.entry(key.to_string()).or_insert_with(|| Value::Array(Vec::new()));
    if !present.is_array() {
        *present = Value::Array(Vec::new());
    }
    let Some(list) = present.as_array_mut() else { return Ok(()) };
    let server = list.clone();
    let Some(merge_key) = rule.key else {
        for item in items {
            if !list.contains(item) {
                list.push(item.clone());
            }
        }
        reorder(list, items, None, &server);
        return Ok(());
    };
    let _ = fields;
    for item in items {
        let Some(id) = item.get(&*merge_key) else {
            let shown = serde_json::to_string(item).unwrap_or_default();
            let message = format!("map: {shown} does not contain declared merge key: {merge_key}");
            return Err(ApiError::bad_request(message));
        };
        let at = list.iter().position(|present| present.get(&*merge_key) == Some(id));
        match (item.get("$patch").and_then(Value::as_str), at) {
            (Some("delete"), Some(at)) => {
                list.remove(at);
            }
            (Some("delete"), None) => {}
            (_, Some(at)) => apply(&mut list[at], item, strategy, path)?,
            (_, None) => {
                let mut new = Value::Object(Map::new());
                apply(&mut new, item, strategy, path)?;
                list.push(new);
            }
        }
    }
    reorder(list, items, Some(&merge_key), &server);
    Ok(())
}

/// Items that `order` names take its order. The others keep the order of `server`, the list before the patch, and go
/// before the next named item only where they stood before it there.
///
/// Source: `k8s.io/apimachinery/pkg/util/strategicpatch`, `normalizeElementOrder`.
fn reorder(list: &mut Vec<Value>, order: &[Value], merge_key: Option<&str>, server: &[Value]) {
    let id = |item: &Value| -> Value {
        match merge_key {
            Some(key) => item.get(key).cloned().unwrap_or(Value::Null),
            None => item.clone(),
        }
    };
    let wanted: Vec<Value> = order.iter().map(id).collect();
    let known: Vec<Value> = server.iter().map(id).collect();
    let rank = |item: &Value| wanted.iter().position(|w| *w == id(item));
    let place = |item: &Value| known.iter().position(|k| *k == id(item));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| rank(item).is_some());
    named.sort_by_key(rank);
    others.sort_by_key(|item| place(item).unwrap_or(usize::MAX));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    while named.peek().is_some() || others.peek().is_some() {
        let other_first = match (named.peek(), others.peek()) {
            (Some(named), Some(other)) => matches!((place(other), place(named)), (Some(a), Some(b)) if a < b),
            (named, _) => named.is_none(),
        };
        list.extend(if other_first { others.next() } else { named.next() });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::PatchMerge;

    struct Rules;

    impl Strategy for Rules {
        fn patch_merge(&self, path: &[&str]) -> Option<PatchMerge> {
            match path {
                ["items"] => Some(PatchMerge { key: Some("name".into()), merge: true, retain_keys: false }),
                ["set"] => Some(PatchMerge { key: None, merge: true, retain_keys: false }),
                _ => None,
            }
        }
    }

    #[track_caller]
    fn check(old: Value, patch: Value, expected: Value) {
        let mut new = old;
        apply(&mut new, &patch, &Rules, &mut Vec::new()).unwrap();
        assert_eq!(new, expected);
    }

    #[test]
    fn lists_merge_by_key_or_are_replaced() {
        let old = json!({"items": [{"name": "a", "x": 1}, {"name": "b"}], "other": [1], "set": ["p"]});
        check(
            old.clone(),
            json!({"items": [{"name": "a", "y": 2}, {"name": "c"}]}),
            json!({"items": [{"name": "a", "x": 1, "y": 2}, {"name": "c"}, {"name": "b"}], "other": [1], "set": ["p"]}),
        );
        check(
            old.clone(),
            json!({"items": [{"name": "a", "$patch": "delete"}], "other": [2]}),
            json!({"items": [{"name": "b"}], "other": [2], "set": ["p"]}),
        );
        check(
            old.clone(),
            json!({"items": [{"$patch": "replace"}, {"name": "z"}], "set": ["q"]}),
            json!({"items": [{"name": "z"}], "other": [1], "set": ["q", "p"]}),
        );
        check(
            old,
            json!({"$deleteFromPrimitiveList/set": ["p"]}),
            json!({"items": [{"name": "a", "x": 1}, {"name": "b"}], "other": [1], "set": []}),
        );
    }

    #[test]
    fn directives_of_maps() {
        let old = json!({"m": {"a": 1, "b": 2}});
        check(old.clone(), json!({"m": {"$patch": "replace", "c": 3}}), json!({"m": {"c": 3}}));
        check(old.clone(), json!({"m": {"$retainKeys": ["a", "c"], "c": 3}}), json!({"m": {"a": 1, "c": 3}}));
        check(old, json!({"m": {"a": null}}), json!({"m": {"b": 2}}));
    }

    #[test]
    fn element_order_sorts_what_it_names() {
        let old = json!({"items": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        let patch = json!({"$setElementOrder/items": [{"name": "c"}, {"name": "a"}], "items": [{"name": "a", "x": 1}]});
        let mut new = old;
        apply(&mut new, &patch, &Rules, &mut Vec::new()).unwrap();
        let names: Vec<&str> = new["items"].as_array().unwrap().iter().map(|i| i["name"].as_str().unwrap()).collect();
        assert!(names.iter().position(|n| *n == "c") < names.iter().position(|n| *n == "a"));
    }
}
