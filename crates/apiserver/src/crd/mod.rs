//! CustomResourceDefinitions: what they serve, and their status.

mod columns;

pub use columns::find as find_path;
mod rules;
pub mod schema;

use std::sync::Arc;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::object::{meta, time_text};
use crate::registry::{Registry, Served};
use crate::resource::{Durability, NameRule, ResourceDef, ScalePaths, SelectableField, Subresource, Text};
use rules::CustomRules;
use schema::Schema;

/// Finalizer that holds a definition until its objects are gone.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";
/// API group of the definitions.
pub const GROUP: &str = "apiextensions.k8s.io";
/// Plural name of the definitions.
pub const PLURAL: &str = "customresourcedefinitions";

/// Fills in what a definition may leave out.
pub fn default(crd: &mut Value) {
    let kind = crd["spec"]["names"]["kind"].as_str().unwrap_or_default().to_string();
    let spec = &mut crd["spec"];
    if spec["names"].is_object() {
        if spec["names"]["singular"].as_str().unwrap_or_default().is_empty() {
            spec["names"]["singular"] = kind.to_lowercase().into();
        }
        if spec["names"]["listKind"].as_str().unwrap_or_default().is_empty() {
            spec["names"]["listKind"] = format!("{kind}List").into();
        }
    }
    if spec.is_object() && !spec["conversion"].is_object() {
        spec["conversion"] = json!({"strategy": "None"});
    }
}

/// Brings the status of a definition up to date: names, conditions, stored versions.
pub fn refresh_status(crd: &mut Value, registry: &Registry) {
    let now = time_text(jiff::Timestamp::now());
    let conflict = names_conflict(crd, registry);
    let old = crd["status"].clone();
    let accepted = match &conflict {
        None => crd["spec"]["names"].clone(),
        Some(_) => {
            let before = old["acceptedNames"].clone();
            if before.is_object() { before } else { json!({"kind": "", "plural": ""}) }
        }
    };
    let (names_status, names_reason, names_message) = match &conflict {
        None => ("True", "NoConflicts", "no conflicts found".to_string()),
        Some((reason, message)) => ("False", *reason, message.clone()),
    };
    let was_established = condition(&old, "Established").is_some_and(|c| c["status"] == "True");
    let (established, reason, message) = if conflict.is_none() || was_established {
        ("True", "InitialNamesAccepted", "the initial names have been accepted")
    } else {
        ("False", "NotAccepted", "not all names are accepted")
    };
    let make = |kind: &str, status: &str, reason: &str, message: &str| {
        let same = condition(&old, kind).filter(|c| c["status"] == status);
        let since = same.map_or_else(|| json!(now), |c| c["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
    };
    let mut conditions: Vec<Value> = old["conditions"].as_array().cloned().unwrap_or_default();
    conditions.retain(|c| !matches!(c["type"].as_str(), Some("NamesAccepted" | "Established")));
    conditions.insert(0, make("NamesAccepted", names_status, names_reason, &names_message));
    conditions.insert(1, make("Established", established, reason, message));
    let mut stored = old["storedVersions"].as_array().cloned().unwrap_or_default();
    let storage = versions(crd).find(|v| v["storage"] == true).map(|v| v["name"].clone());
    if let Some(storage) = storage.filter(|storage| !stored.contains(storage)) {
        stored.push(storage);
    }
    crd["status"] = json!({"conditions": conditions, "acceptedNames": accepted, "storedVersions": stored});
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn versions(crd: &Value) -> impl Iterator<Item = &Value> {
    crd["spec"]["versions"].as_array().into_iter().flatten()
}

fn names_conflict(crd: &Value, registry: &Registry) -> Option<(&'static str, String)> {
    let own = meta(crd, "name");
    let group = crd["spec"]["group"].as_str().unwrap_or_default();
    let names = &crd["spec"]["names"];
    let all = registry.all();
    let others: Vec<&Served> = all.values().filter(|s| s.def.group == group && s.crd.as_deref() != Some(own)).collect();
    let taken = |name: &str| {
        others
            .iter()
            .any(|s| s.def.plural == name || s.def.singular == name || s.def.short_names.iter().any(|n| n == name))
    };
    let text = |field: &str| names[field].as_str().unwrap_or_default().to_string();
    let in_use = |name: &str| format!("{} is already in use", crate::quote::quoted(name));
    if taken(&text("plural")) {
        return Some(("PluralConflict", in_use(&text("plural"))));
    }
    if taken(&text("singular")) {
        return Some(("SingularConflict", in_use(&text("singular"))));
    }
    for short in names["shortNames"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if taken(short) {
            return Some(("ShortNamesConflict", in_use(short)));
        }
    }
    let kinds = |name: &str| others.iter().any(|s| s.def.kind == name || s.def.list_kind == name);
    if kinds(&text("kind")) {
        return Some(("KindConflict", in_use(&text("kind"))));
    }
    if kinds(&text("listKind")) {
        return Some(("ListKindConflict", in_use(&text("listKind"))));
    }
    None
}

/// The resources that a definition serves: one for each served version; none before it is established.
pub fn served(crd: &Value) -> Vec<Served> {
    if condition(&crd["status"], "Established").is_none_or(|c| c["status"] != "True") {
        return Vec::new();
    }
    let group = text(&crd["spec"]["group"]);
    let storage = versions(crd).find(|v| v["storage"] == true).map(|v| text(&v["name"])).unwrap_or_default();
    let storage_version: Arc<str> = format!("{group}/{storage}").into();
    let name: Arc<str> = meta(crd, "name").into();
    versions(crd)
        .filter(|version| version["served"] == true)
        .map(|version| Served {
            def: Arc::new(definition(crd, version)),
            storage_version: storage_version.clone(),
            crd: Some(name.clone()),
            gone: CancellationToken::new(),
        })
        .collect()
}

fn text(value: &Value) -> Text {
    value.as_str().unwrap_or_default().to_string().into()
}

fn texts(value: &Value) -> Vec<Text> {
    value.as_array().into_iter().flatten().map(text).collect()
}

fn definition(crd: &Value, version: &Value) -> ResourceDef {
    let spec = &crd["spec"];
    let accepted = &crd["status"]["acceptedNames"];
    let names = if accepted["plural"].as_str().is_some_and(|p| !p.is_empty()) { accepted } else { &spec["names"] };
    let schema = version.pointer("/schema/openAPIV3Schema").map(|schema| Arc::new(Schema::compile(schema)));
    let preserve_all = spec["preserveUnknownFields"] == true;
    let status = version.pointer("/subresources/status").is_some();
    let scale = version.pointer("/subresources/scale").map(|scale| ScalePaths {
        spec_replicas: text(&scale["specReplicasPath"]),
        status_replicas: text(&scale["statusReplicasPath"]),
        selector: scale["labelSelectorPath"].as_str().map(|s| s.to_string().into()),
    });
    let mut subresources = Vec::new();
    let verbs = || vec!["get".into(), "patch".into(), "update".into()];
    if status {
        let kind = text(&names["kind"]);
        subresources.push(Subresource { name: "status".into(), kind, group_version: None, verbs: verbs() });
    }
    if scale.is_some() {
        let group_version = Some(("autoscaling".into(), "v1".into()));
        subresources.push(Subresource { name: "scale".into(), kind: "Scale".into(), group_version, verbs: verbs() });
    }
    let group = text(&spec["group"]);
    let plural = text(&names["plural"]);
    let rules = CustomRules { schema, preserve_all, status };
    ResourceDef {
        storage: (group.clone(), plural.clone()),
        group,
        version: text(&version["name"]),
        singular: text(&names["singular"]),
        kind: text(&names["kind"]),
        list_kind: text(&names["listKind"]),
        plural,
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            .map(Text::from)
            .to_vec(),
        subresources,
        scale,
        generation: true,
        durability: Durability::Sync,
        name_rule: NameRule::Subdomain,
        unconditional_update: false,
        create_on_update: false,
        columns: columns::columns(version),
        selectable_fields: selectable(version),
        strategy: Arc::new(rules),
    }
}

fn selectable(version: &Value) -> Vec<SelectableField> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields
        .filter_map(|field| field["jsonPath"].as_str())
        .map(|path| {
            let path = path.trim_start_matches('.').to_string();
            let parts: Vec<String> = path.split('.').map(str::to_string).collect();
            let value = move |object: &Value| {
                let found = parts.iter().try_fold(object, |at, part| at.get(part));
                match found {
                    Some(Value::String(text)) => text.clone(),
                    None | Some(Value::Null) => String::new(),
                    Some(other) => other.to_string(),
                }
            };
            SelectableField { label: path.into(), value: Arc::new(value) }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widget() -> Value {
        json!({
            "metadata": {"name": "widgets.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        })
    }

    #[test]
    fn a_definition_is_established_and_serves_its_versions() {
        let mut crd = widget();
        default(&mut crd);
        assert_eq!(crd["spec"]["names"]["listKind"], "WidgetList");
        assert!(served(&crd).is_empty());
        refresh_status(&mut crd, &Registry::default());
        assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
        let served = served(&crd);
        assert_eq!(served.len(), 1);
        assert_eq!(served[0].def.qualified_resource(), "widgets.example.com");
        assert!(served[0].def.has_status());
    }

    #[test]
    fn a_taken_name_is_a_conflict() {
        let registry = Registry::default();
        let mut first = widget();
        default(&mut first);
        refresh_status(&mut first, &registry);
        registry.set_custom("widgets.example.com", served(&first));
        let mut second = widget();
        second["metadata"]["name"] = "gadgets.example.com".into();
        second["spec"]["names"] = json!({"plural": "gadgets", "singular": "gadget", "kind": "Widget"});
        default(&mut second);
        refresh_status(&mut second, &registry);
        assert_eq!(second["status"]["conditions"][0]["reason"], "KindConflict");
        assert!(served(&second).is_empty());
    }
}
