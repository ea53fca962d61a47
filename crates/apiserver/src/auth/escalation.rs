//! Nobody grants rights that he does not hold.
//!
//! Source: the Kubernetes documentation on RBAC, privilege escalation prevention.

use serde_json::{Value, json};

use super::rbac::{Attributes, rule_allows};
use crate::ApiServer;
use crate::error::{ApiError, ApiResult};
use crate::object::meta;
use crate::verbs::Call;

const RBAC: &str = "rbac.authorization.k8s.io";

impl ApiServer {
    /// Checks a new or changed role or binding.
    pub(crate) fn refuse_escalation(&self, call: &Call, object: &Value, old: Option<&Value>) -> ApiResult<()> {
        let def = &call.served.def;
        if def.group != RBAC || call.user.is_master() {
            return Ok(());
        }
        let namespace = &call.target.namespace;
        let name = meta(object, "name");
        let allowed = |verb: &str, resource: &str, name: &str| {
            let asked = Attributes {
                verb: verb.into(),
                group: RBAC.into(),
                resource: resource.into(),
                namespace: namespace.clone(),
                name: name.into(),
                path: None,
            };
            self.allows(&call.user, &asked)
        };
        let granted = match &*def.plural {
            "roles" | "clusterroles" => {
                if old.is_some_and(|old| old["rules"] == object["rules"]) || allowed("escalate", &def.plural, name) {
                    return Ok(());
                }
                object["rules"].as_array().cloned().unwrap_or_default()
            }
            "rolebindings" | "clusterrolebindings" => {
                let unchanged =
                    |old: &Value| old["roleRef"] == object["roleRef"] && old["subjects"] == object["subjects"];
                let reference = &object["roleRef"];
                let role = reference["name"].as_str().unwrap_or_default();
                let resource = if reference["kind"] == "ClusterRole" { "clusterroles" } else { "roles" };
                if old.is_some_and(unchanged) || allowed("bind", resource, role) {
                    return Ok(());
                }
                match self.role_rules(reference, namespace) {
                    Some(rules) => rules,
                    None => return Err(ApiError::not_found(def, role)),
                }
            }
            _ => return Ok(()),
        };
        let held = self.rules_for(&call.user, namespace);
        let missing: Vec<Value> = granted.iter().flat_map(split).filter(|rule| !covered(&held, rule)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut shown: Vec<String> = join(missing).iter().map(show).collect();
        shown.sort();
        let groups: Vec<String> = call.user.groups.iter().map(|g| format!("\"{g}\"")).collect();
        let why = format!(
            "user \"{}\" (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
            call.user.name,
            groups.join(" "),
            shown.join("\n")
        );
        Err(ApiError::forbidden(def, name, &why))
    }
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A rule as rules for one verb of one resource each.
fn split(rule: &Value) -> Vec<Value> {
    let mut rules = Vec::new();
    for verb in texts(rule, "verbs") {
        for path in texts(rule, "nonResourceURLs") {
            rules.push(json!({"verbs": [verb], "nonResourceURLs": [path]}));
        }
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                let mut one = json!({"verbs": [verb], "apiGroups": [group], "resources": [resource]});
                let names = texts(rule, "resourceNames");
                if names.is_empty() {
                    rules.push(one);
                } else {
                    for name in names {
                        one["resourceNames"] = json!([name]);
                        rules.push(one.clone());
                    }
                }
            }
        }
    }
    rules
}

fn covered(held: &[Value], rule: &Value) -> bool {
    let first = |field: &str| texts(rule, field).first().copied().unwrap_or_default().to_string();
    let asked = Attributes {
        verb: first("verbs"),
        group: first("apiGroups"),
        resource: first("resources"),
        name: first("resourceNames"),
        path: texts(rule, "nonResourceURLs").first().map(ToString::to_string),
        ..Attributes::default()
    };
    held.iter().any(|own| rule_allows(own, &asked))
}

/// Puts verbs for the same resource together again.
fn join(rules: Vec<Value>) -> Vec<Value> {
    let mut joined: Vec<Value> = Vec::new();
    for rule in rules {
        let same = |other: &&mut Value| {
            ["apiGroups", "resources", "resourceNames", "nonResourceURLs"].iter().all(|f| other[*f] == rule[*f])
        };
        match joined.iter_mut().find(same) {
            Some(other) => {
                let verb = rule["verbs"][0].clone();
                if let Some(verbs) = other["verbs"].as_array_mut().filter(|verbs| !verbs.contains(&verb)) {
                    verbs.push(verb);
                }
            }
            None => joined.push(rule),
        }
    }
    joined
}

fn show(rule: &Value) -> String {
    let list = |field: &str| texts(rule, field).iter().map(|t| format!("\"{t}\"")).collect::<Vec<_>>().join(" ");
    let mut parts = Vec::new();
    for (field, title) in [
        ("nonResourceURLs", "NonResourceURLs"),
        ("apiGroups", "APIGroups"),
        ("resources", "Resources"),
        ("resourceNames", "ResourceNames"),
        ("verbs", "Verbs"),
    ] {
        if rule[field].is_array() {
            parts.push(format!("{title}:[{}]", list(field)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_held_is_named_resource_by_resource() {
        let held = [json!({"verbs": ["get"], "apiGroups": [""], "resources": ["configmaps"]})];
        let rule = json!({"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["secrets", "configmaps"]});
        let missing: Vec<Value> = split(&rule).into_iter().filter(|one| !covered(&held, one)).collect();
        let mut shown: Vec<String> = join(missing).iter().map(show).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "{APIGroups:[\"\"], Resources:[\"configmaps\"], Verbs:[\"delete\"]}",
                "{APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"delete\"]}",
            ]
        );
    }
}
