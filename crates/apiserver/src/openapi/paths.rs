//! Paths of OpenAPI documents.

use serde_json::{Map, Value, json};

use super::kind_of;
use crate::resource::ResourceDef;

const PATCH_TYPES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Adds the paths of one resource; `reference` is a schema that refers to that of its kind.
pub fn add(def: &ResourceDef, paths: &mut Map<String, Value>, reference: &Value) {
    let root = format!("/{}", super::group_path(def));
    let scope = if def.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", def.plural);
    let item = format!("{collection}/{{name}}");
    let mut on_collection = Map::new();
    let mut on_item = Map::new();
    let operation = |verb: &str, method: &str, action: &str, target: &mut Map<String, Value>| {
        if def.has_verb(verb) {
            target.insert(method.into(), self::operation(def, method, action, reference));
        }
    };
    operation("list", "get", "list", &mut on_collection);
    operation("create", "post", "post", &mut on_collection);
    operation("deletecollection", "delete", "deletecollection", &mut on_collection);
    operation("get", "get", "get", &mut on_item);
    operation("update", "put", "put", &mut on_item);
    operation("patch", "patch", "patch", &mut on_item);
    operation("delete", "delete", "delete", &mut on_item);
    for (path, mut operations, names) in [
        (collection, on_collection, if def.namespaced { &["namespace"][..] } else { &[] }),
        (item.clone(), on_item, if def.namespaced { &["name", "namespace"] } else { &["name"] }),
    ] {
        if operations.is_empty() {
            continue;
        }
        operations.insert("parameters".into(), names.iter().map(|name| path_parameter(name)).collect());
        paths.insert(path, Value::Object(operations));
    }
    for name in ["status", "scale"] {
        let Some(sub) = def.subresource(name) else { continue };
        let mut operations = Map::new();
        for (verb, method) in [("get", "get"), ("update", "put"), ("patch", "patch")] {
            if sub.verbs.iter().any(|v| v == verb) {
                let mut operation = self::operation(def, method, method, reference);
                if let Some((group, version)) = &sub.group_version {
                    operation["x-kubernetes-group-version-kind"] =
                        json!({"group": group, "kind": sub.kind, "version": version});
                }
                operations.insert(method.into(), operation);
            }
        }
        paths.insert(format!("{item}/{name}"), Value::Object(operations));
    }
    if def.namespaced && def.has_verb("list") {
        let list = operation_list_all(def, reference);
        paths.insert(format!("{root}/{}", def.plural), json!({"get": list}));
    }
}

fn operation_list_all(def: &ResourceDef, reference: &Value) -> Value {
    operation(def, "get", "list", reference)
}

fn operation(def: &ResourceDef, method: &str, action: &str, reference: &Value) -> Value {
    let mut operation = json!({
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind_of(def),
    });
    let queries: &[&str] = match (method, action) {
        ("post" | "put", _) => &["dryRun", "fieldManager", "fieldValidation"],
        ("patch", _) => &["dryRun", "fieldManager", "fieldValidation", "force"],
        ("delete", _) => &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"],
        (_, "list") => &[
            "allowWatchBookmarks",
            "continue",
            "fieldSelector",
            "labelSelector",
            "limit",
            "resourceVersion",
            "resourceVersionMatch",
            "sendInitialEvents",
            "timeoutSeconds",
            "watch",
        ],
        _ => &[],
    };
    operation["parameters"] = queries.iter().map(|name| query_parameter(name)).collect();
    let body = |types: &[&str]| -> Value {
        let content: Map<String, Value> =
            types.iter().map(|media| (media.to_string(), json!({"schema": reference}))).collect();
        json!({"content": content, "required": true})
    };
    match method {
        "post" | "put" => operation["requestBody"] = body(&["application/json"]),
        "patch" => operation["requestBody"] = body(&PATCH_TYPES),
        _ => {}
    }
    operation
}

fn query_parameter(name: &str) -> Value {
    let kind = match name {
        "allowWatchBookmarks" | "force" | "orphanDependents" | "sendInitialEvents" | "watch" => "boolean",
        "gracePeriodSeconds" | "limit" | "timeoutSeconds" => "integer",
        _ => "string",
    };
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn path_parameter(name: &str) -> Value {
    json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}})
}
