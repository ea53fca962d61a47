//! Roles and bindings: what they allow.

use serde_json::Value;

use super::{AUTHENTICATED, User};
use crate::ApiServer;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub verb: String,
    pub group: String,
    /// With the subresource: `pods/log`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// Path, for requests that are about no resource.
    pub path: Option<String>,
}

/// Paths that every identified user may read.
const DISCOVERY: [&str; 10] =
    ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version"];
/// Paths that everyone may read.
const PUBLIC: [&str; 4] = ["/healthz", "/livez", "/readyz", "/version"];
/// Reviews that every identified user may make of himself.
const SELF_REVIEWS: [(&str, &str); 3] = [
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authentication.k8s.io", "selfsubjectreviews"),
];

impl ApiServer {
    /// Whether `user` may do what is asked.
    pub(crate) fn allows(&self, user: &User, asked: &Attributes) -> bool {
        if user.is_master() {
            return true;
        }
        let known = user.groups.iter().any(|group| group == AUTHENTICATED);
        if let Some(path) = &asked.path {
            let reads = matches!(asked.verb.as_str(), "get" | "head");
            let fits = |pattern: &&'static str| path_matches(pattern, path);
            if reads && (PUBLIC.iter().any(fits) || (known && DISCOVERY.iter().any(fits))) {
                return true;
            }
        } else if known
            && asked.verb == "create"
            && SELF_REVIEWS.contains(&(asked.group.as_str(), asked.resource.as_str()))
        {
            return true;
        }
        self.rules_for(user, &asked.namespace).iter().any(|rule| rule_allows(rule, asked))
    }

    /// All rules that hold for a user in a namespace.
    pub(crate) fn rules_for(&self, user: &User, namespace: &str) -> Vec<Value> {
        let mut rules = Vec::new();
        let rbac = "rbac.authorization.k8s.io";
        for (_, entry) in
            self.store.table(&format!("{rbac}/clusterrolebindings")).list("", None, usize::MAX, |_| true).entries
        {
            let binding = entry.record.value();
            if names_user(&binding, user, "") {
                rules.extend(self.role_rules(&binding["roleRef"], "").unwrap_or_default());
            }
        }
        if !namespace.is_empty() {
            let prefix = format!("{namespace}/");
            for (_, entry) in
                self.store.table(&format!("{rbac}/rolebindings")).list(&prefix, None, usize::MAX, |_| true).entries
            {
                let binding = entry.record.value();
                if names_user(&binding, user, namespace) {
                    rules.extend(self.role_rules(&binding["roleRef"], namespace).unwrap_or_default());
                }
            }
        }
        rules
    }

    /// The rules of the role that a binding names; `None` if there is no such role.
    pub(crate) fn role_rules(&self, reference: &Value, namespace: &str) -> Option<Vec<Value>> {
        let name = reference["name"].as_str().unwrap_or_default();
        let rbac = "rbac.authorization.k8s.io";
        let entry = if reference["kind"] == "ClusterRole" {
            self.store.table(&format!("{rbac}/clusterroles")).get(name)
        } else {
            self.store.table(&format!("{rbac}/roles")).get(&format!("{namespace}/{name}"))
        };
        Some(entry?.record.value()["rules"].as_array().cloned().unwrap_or_default())
    }
}

fn names_user(binding: &Value, user: &User, namespace: &str) -> bool {
    binding["subjects"].as_array().into_iter().flatten().any(|subject| {
        let name = subject["name"].as_str().unwrap_or_default();
        match subject["kind"].as_str() {
            Some("User") => user.name == name,
            Some("Group") => user.groups.iter().any(|group| group == name),
            Some("ServiceAccount") => {
                let of = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(namespace);
                !of.is_empty() && user.name == format!("system:serviceaccount:{of}:{name}")
            }
            _ => false,
        }
    })
}

fn has(list: &Value, wanted: &str) -> bool {
    list.as_array().into_iter().flatten().any(|item| item == "*" || item == wanted)
}

/// Whether one rule allows what is asked.
pub(crate) fn rule_allows(rule: &Value, asked: &Attributes) -> bool {
    if !has(&rule["verbs"], &asked.verb) {
        return false;
    }
    if let Some(path) = &asked.path {
        let urls = rule["nonResourceURLs"].as_array().into_iter().flatten().filter_map(Value::as_str);
        return urls.into_iter().any(|pattern| path_matches(pattern, path));
    }
    let names = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    let resource = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str).any(|pattern| {
        pattern == "*"
            || pattern == asked.resource
            || pattern
                .strip_prefix("*/")
                .is_some_and(|sub| asked.resource.split_once('/').is_some_and(|(_, s)| s == sub))
    });
    has(&rule["apiGroups"], &asked.group)
        && resource
        && names.is_none_or(|names| names.iter().any(|name| *name == *asked.name))
}

fn path_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(verb: &str, resource: &str, name: &str) -> Attributes {
        Attributes { verb: verb.into(), resource: resource.into(), name: name.into(), ..Attributes::default() }
    }

    #[test]
    fn rules_allow_what_they_list() {
        let rule = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]});
        let rows = [
            ("get", "pods", true),
            ("get", "pods/log", true),
            ("get", "pods/exec", false),
            ("list", "pods", false),
            ("get", "x/scale", true),
            ("get", "secrets", false),
        ];
        for (verb, resource, allowed) in rows {
            assert_eq!(rule_allows(&rule, &asked(verb, resource, "")), allowed, "{verb} {resource}");
        }
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "resourceNames": ["one"]});
        assert!(rule_allows(&named, &asked("get", "pods", "one")));
        assert!(!rule_allows(&named, &asked("get", "pods", "two")));
        assert!(!rule_allows(&named, &asked("list", "pods", "")));
    }

    #[test]
    fn paths_match_with_a_star_at_the_end() {
        assert!(path_matches("/api/*", "/api/v1") && path_matches("*", "/x") && !path_matches("/api", "/api/v1"));
    }
}
