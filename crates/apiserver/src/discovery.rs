//! Discovery: which groups, versions and resources there are, in the plain and in the aggregated form.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ApiServer;
use crate::body::{self, Response};
use crate::registry::Served;
use crate::resource::Subresource;

/// Groups in the order of the reference; others follow in the order of their names.
const GROUP_ORDER: [&str; 24] = [
    "",
    "apiregistration.k8s.io",
    "apps",
    "events.k8s.io",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "networking.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "storage.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "scheduling.k8s.io",
    "coordination.k8s.io",
    "node.k8s.io",
    "discovery.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "resource.k8s.io",
    "internal.apiserver.k8s.io",
    "storagemigration.k8s.io",
    "imagepolicy.k8s.io",
];

impl ApiServer {
    /// `/api`, `/api/v1`, `/apis`, `/apis/GROUP`, `/apis/GROUP/VERSION`; `None` for other paths.
    pub(crate) fn discovery(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let aggregated = aggregated_version(accept);
        match parts.as_slice() {
            ["api"] => Some(match aggregated {
                Some(version) => aggregated_response(&self.aggregated(true), version),
                None => ok(&json!({
                    "kind": "APIVersions", "versions": ["v1"],
                    "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": self.address()}],
                })),
            }),
            ["apis"] => Some(match aggregated {
                Some(version) => aggregated_response(&self.aggregated(false), version),
                None => {
                    let groups: Vec<Value> =
                        self.groups().iter().filter(|(g, _)| !g.is_empty()).map(|(g, v)| group(g, v)).collect();
                    ok(&json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
                }
            }),
            ["api", "v1"] => Some(ok(&self.resource_list("", "v1"))),
            ["api", _] => Some(crate::error::ApiError::no_such_resource().response()),
            ["apis", name] => {
                let groups = self.groups();
                let found = groups.iter().find(|(group, _)| group == name);
                Some(match found {
                    Some((name, versions)) => {
                        let mut group = group(name, versions);
                        group["kind"] = "APIGroup".into();
                        group["apiVersion"] = "v1".into();
                        ok(&group)
                    }
                    None => crate::error::ApiError::no_such_page().response(),
                })
            }
            ["apis", name, version] => Some(if self.registry.has_group(name, Some(version)) {
                ok(&self.resource_list(name, version))
            } else if self.registry.has_group(name, None) {
                crate::error::ApiError::no_such_resource().response()
            } else {
                crate::error::ApiError::no_such_page().response()
            }),
            _ => None,
        }
    }

    fn address(&self) -> String {
        self.config.advertised.clone()
    }

    /// Groups with their versions, the preferred one first.
    fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (group, version, _) in self.registry.all().keys() {
            let versions = groups.entry(group.clone()).or_default();
            if !versions.contains(version) {
                versions.push(version.clone());
            }
        }
        let mut groups: Vec<(String, Vec<String>)> = groups.into_iter().collect();
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        }
        groups.sort_by_key(|(group, _)| {
            let rank = GROUP_ORDER.iter().position(|g| g == group);
            (rank.unwrap_or(usize::MAX), group.clone())
        });
        groups
    }

    fn resource_list(&self, group: &str, version: &str) -> Value {
        let all = self.registry.all();
        let mut resources: Vec<Value> = Vec::new();
        for served in all.values().filter(|s| s.def.group == group && s.def.version == version) {
            resources.push(resource(served));
            resources.extend(served.def.subresources.iter().map(|sub| subresource(served, sub)));
        }
        let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
        let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
        if !group.is_empty() {
            list["apiVersion"] = "v1".into();
        }
        list
    }

    fn aggregated(&self, core: bool) -> Value {
        let all = self.registry.all();
        let items: Vec<Value> = self
            .groups()
            .into_iter()
            .filter(|(group, _)| group.is_empty() == core)
            .map(|(group, versions)| {
                let versions: Vec<Value> = versions
                    .iter()
                    .map(|version| {
                        let of_version = all.values().filter(|s| s.def.group == group && s.def.version == *version);
                        let resources: Vec<Value> = of_version.map(aggregated_resource).collect();
                        json!({"version": version, "resources": resources, "freshness": "Current"})
                    })
                    .collect();
                let metadata = if group.is_empty() {
                    json!({"creationTimestamp": null})
                } else {
                    json!({"name": group, "creationTimestamp": null})
                };
                json!({"metadata": metadata, "versions": versions})
            })
            .collect();
        json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
    }
}

fn ok(value: &Value) -> Response {
    body::json(StatusCode::OK, value)
}

/// The first aggregated form that the client lists before the plain one.
fn aggregated_version(accept: &str) -> Option<&'static str> {
    for entry in accept.split(',') {
        let parts: Vec<&str> = entry.split(';').map(str::trim).collect();
        if parts.first() != Some(&"application/json") {
            continue;
        }
        let has = |parameter: &str| parts.contains(&parameter);
        if !has("as=APIGroupDiscoveryList") {
            return None;
        }
        if has("g=apidiscovery.k8s.io") {
            if has("v=v2") {
                return Some("v2");
            }
            if has("v=v2beta1") {
                return Some("v2beta1");
            }
        }
    }
    None
}

fn aggregated_response(list: &Value, version: &str) -> Response {
    let mut list = list.clone();
    list["apiVersion"] = format!("apidiscovery.k8s.io/{version}").into();
    let text = list.to_string();
    let etag = hex::encode_upper(Sha256::digest(&text)).chars().collect::<String>();
    let mut response = body::raw_json(StatusCode::OK, text);
    let content_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(&content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        headers.insert(header::ETAG, value);
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

fn group(name: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let listed: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": name, "versions": listed, "preferredVersion": listed.first()})
}

fn resource(served: &Served) -> Value {
    let def = &served.def;
    let mut value = json!({
        "name": def.plural, "singularName": def.singular, "namespaced": def.namespaced, "kind": def.kind, "verbs": def.verbs,
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    if def.has_verb("list") {
        value["storageVersionHash"] = storage_hash(served).into();
    }
    value
}

fn subresource(served: &Served, sub: &Subresource) -> Value {
    let def = &served.def;
    let mut value = json!({
        "name": format!("{}/{}", def.plural, sub.name), "singularName": "", "namespaced": def.namespaced,
        "kind": sub.kind, "verbs": sub.verbs,
    });
    if let Some((group, version)) = &sub.group_version {
        value["group"] = json!(group);
        value["version"] = json!(version);
    }
    value
}

fn aggregated_resource(served: &Served) -> Value {
    let def = &served.def;
    let mut value = json!({
        "resource": def.plural, "responseKind": {"group": def.group, "version": def.version, "kind": def.kind},
        "scope": if def.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": def.singular, "verbs": def.verbs,
    });
    if !def.short_names.is_empty() {
        value["shortNames"] = json!(def.short_names);
    }
    if !def.categories.is_empty() {
        value["categories"] = json!(def.categories);
    }
    let subs: Vec<Value> = def
        .subresources
        .iter()
        .map(|sub| {
            let (group, version) = sub.group_version.clone().unwrap_or((def.group.clone(), def.version.clone()));
            json!({"subresource": sub.name, "responseKind": {"group": group, "version": version, "kind": sub.kind}, "verbs": sub.verbs})
        })
        .collect();
    if !subs.is_empty() {
        value["subresources"] = subs.into();
    }
    value
}

fn storage_hash(served: &Served) -> String {
    use base64::Engine;
    let text = format!("{}/{}", served.storage_version, served.def.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

/// Order of versions: stable before beta before alpha, higher numbers first, anything else last.
///
/// Source: `k8s.io/apimachinery/pkg/version`.
fn version_rank(version: &str) -> (u8, u64, u64, std::cmp::Reverse<String>) {
    let parse = || -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        for (word, class) in [("alpha", 1), ("beta", 2)] {
            if let Some((major, minor)) = rest.split_once(word) {
                return Some((class, major.parse().ok()?, minor.parse().ok()?));
            }
        }
        Some((3, rest.parse().ok()?, 0))
    };
    let (class, major, minor) = parse().unwrap_or((0, 0, 0));
    (class, major, minor, std::cmp::Reverse(version.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_stability() {
        let mut versions = vec!["v1beta1", "v2", "foo", "v1alpha1", "v10", "v1", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }

    #[test]
    fn the_first_acceptable_form_counts() {
        let all = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert_eq!(aggregated_version(all), Some("v2"));
        assert_eq!(aggregated_version("application/json"), None);
        assert_eq!(
            aggregated_version("application/json;g=apidiscovery.k8s.io;v=v3;as=APIGroupDiscoveryList,application/json"),
            None
        );
    }
}
