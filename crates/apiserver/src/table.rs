//! Tables: what `kubectl get` prints.

use serde_json::{Value, json};

use crate::resource::{Column, ResourceDef};

/// Which part of the object a row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata.
    Metadata,
    /// All of it.
    Object,
}

/// A Table without rows.
pub fn head(def: &ResourceDef, metadata: &Value) -> Value {
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions(def), "rows": [],
    })
}

/// The heads of the columns.
pub fn definitions(def: &ResourceDef) -> Value {
    let fallback = fallback_columns();
    let columns = if def.columns.definitions.is_empty() { &fallback } else { &def.columns.definitions };
    columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name, "type": column.type_, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        })
        .collect()
}

/// The row of one object.
pub fn row(def: &ResourceDef, object: &Value, include: Include) -> Value {
    let cells: Vec<Value> = if def.columns.definitions.is_empty() {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    } else {
        (def.columns.cells)(object, jiff::Timestamp::now())
    };
    let mut row = json!({"cells": cells});
    if let Some(condition) = completed(def, object) {
        row["conditions"] = json!([condition]);
    }
    match include {
        Include::None => row["object"] = Value::Null,
        Include::Metadata => row["object"] = crate::verbs::partial(object),
        Include::Object => row["object"] = object.clone(),
    }
    row
}

/// Marks the rows of pods that are finished; printers may grey them.
fn completed(def: &ResourceDef, object: &Value) -> Option<Value> {
    if !def.group.is_empty() || def.plural != "pods" {
        return None;
    }
    let (reason, message) = match object.pointer("/status/phase")?.as_str()? {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!({"type": "Completed", "status": "True", "reason": reason, "message": message}))
}

fn fallback_columns() -> Vec<Column> {
    let column = |name: &'static str, type_: &'static str, format: &'static str, description: &'static str| Column {
        name: name.into(),
        type_: type_.into(),
        format: format.into(),
        description: description.into(),
        priority: 0,
    };
    vec![column("Name", "string", "name", NAME), column("Created At", "date", "", CREATED)]
}

/// Description of the column of the name.
///
/// Source: the documentation of ObjectMeta in the Kubernetes API reference.
pub const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
/// Description of the column of the age.
pub const CREATED: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata";
