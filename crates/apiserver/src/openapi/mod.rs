//! OpenAPI documents: `/openapi/v3` (an index and one document for each group and version) and `/openapi/v2`.
//!
//! kubectl needs them to explain kinds, to learn that the server validates fields, and for client-side merges.
//! Documents are built when they are asked for and not kept; the schemas of built-in kinds come from `k8s_openapi`,
//! list types and merge keys from [`crate::kinds::schema`], those of custom resources from their definitions.

mod paths;
mod schemas;

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

use crate::resource::ResourceDef;

pub use schemas::field_description;

/// One served resource as these documents see it.
#[derive(Clone, Copy, Debug)]
pub struct Resource<'a> {
    /// Its description.
    pub def: &'a ResourceDef,
    /// Schema of a custom resource (`openAPIV3Schema`); `None` for built-in kinds.
    pub schema: Option<&'a Value>,
}

/// Path of a group and version below `/openapi/v3/`: `api/v1` or `apis/apps/v1`.
pub fn group_path(def: &ResourceDef) -> String {
    if def.group.is_empty() { format!("api/{}", def.version) } else { format!("apis/{}/{}", def.group, def.version) }
}

/// The index of `/openapi/v3`; every entry's URL carries a hash that changes with what the document says.
pub fn index(resources: &[Resource<'_>]) -> Value {
    let mut paths = Map::new();
    for path in resources.iter().map(|resource| group_path(resource.def)).collect::<BTreeSet<_>>() {
        let hash = hash(resources.iter().filter(|resource| group_path(resource.def) == path));
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    for path in ["api", "apis", "version"] {
        let hash = hash(resources.iter().take(0));
        paths.insert(path.into(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": paths})
}

fn hash<'a>(resources: impl Iterator<Item = &'a Resource<'a>>) -> String {
    let mut hasher = Sha512::new();
    hasher.update(env!("CARGO_PKG_VERSION"));
    for Resource { def, schema } in resources {
        hasher.update(format!("{}/{}/{}/{:?}\n", def.plural, def.kind, def.namespaced, def.short_names));
        if let Some(schema) = schema {
            hasher.update(schema.to_string());
        }
    }
    hex::encode_upper(hasher.finalize())
}

/// The document below `/openapi/v3/` at `path` (`api/v1`, `apis/apps/v1`, `version`); `None` if there is none.
pub fn document(resources: &[Resource<'_>], path: &str) -> Option<Value> {
    let members: Vec<&Resource<'_>> = resources.iter().filter(|resource| group_path(resource.def) == path).collect();
    let known = matches!(path, "api" | "apis" | "version");
    if members.is_empty() && !known {
        return None;
    }
    let mut all_paths = Map::new();
    let mut components = Map::new();
    if known {
        all_paths.insert(format!("/{path}/"), json!({"get": {"responses": {"200": {"description": "OK"}}}}));
    } else {
        schemas::add_built_in(&members, schemas::V3, &mut components);
    }
    for resource in members {
        paths::add(resource.def, &mut all_paths, &schemas::reference(resource, schemas::V3));
        schemas::add_custom(resource, &mut components);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": format!("v{}", env!("CARGO_PKG_VERSION"))},
        "paths": all_paths,
        "components": {"schemas": components},
    }))
}

/// The document of `/openapi/v2`: the definitions of all kinds, and no paths.
pub fn document_v2(resources: &[Resource<'_>]) -> Value {
    let members: Vec<&Resource<'_>> = resources.iter().collect();
    let mut definitions = Map::new();
    schemas::add_built_in(&members, schemas::V2, &mut definitions);
    for resource in members {
        schemas::add_custom(resource, &mut definitions);
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": format!("v{}", env!("CARGO_PKG_VERSION"))},
        "paths": {},
        "definitions": definitions,
    })
}

/// `{group, version, kind}` as these documents name kinds.
fn kind_of(def: &ResourceDef) -> Value {
    json!({"group": def.group, "kind": def.kind, "version": def.version})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built_in() -> Vec<ResourceDef> {
        crate::kinds::builtin()
    }

    fn of(defs: &[ResourceDef]) -> Vec<Resource<'_>> {
        defs.iter().map(|def| Resource { def, schema: None }).collect()
    }

    #[test]
    fn apps_document_says_what_kubectl_reads() {
        let defs = built_in();
        let document = document(&of(&defs), "apis/apps/v1").expect("a document");
        let path = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(path["x-kubernetes-action"], "patch");
        assert_eq!(path["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        let named = path["parameters"].as_array().expect("parameters");
        assert!(named.iter().any(|p| p["name"] == "fieldValidation"));
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
            json!([{"group": "apps", "kind": "Deployment", "version": "v1"}])
        );
        let pod = &schemas["io.k8s.api.core.v1.PodSpec"];
        assert_eq!(pod["required"], json!(["containers"]));
        let containers = &pod["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        assert_eq!(containers["x-kubernetes-list-type"], "map");
        let text = document.to_string();
        assert!(!text.contains("$defs"), "references point to components");
    }

    #[test]
    fn every_reference_resolves() {
        fn references(value: &Value, found: &mut BTreeSet<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        found.insert(target.clone());
                    }
                    map.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let defs = built_in();
        let all = of(&defs);
        for path in all.iter().map(|resource| group_path(resource.def)).collect::<BTreeSet<_>>() {
            let document = document(&all, &path).expect("a document");
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            for target in found {
                let pointer = target.trim_start_matches('#');
                assert!(document.pointer(pointer).is_some(), "{path}: {target}");
            }
        }
    }

    #[test]
    fn the_old_document_has_all_definitions() {
        let defs = built_in();
        let document = document_v2(&of(&defs));
        let map = &document["definitions"]["io.k8s.api.core.v1.ConfigMap"];
        assert_eq!(map["type"], "object");
        assert_eq!(
            map["x-kubernetes-group-version-kind"],
            json!([{"group": "", "kind": "ConfigMap", "version": "v1"}])
        );
    }

    #[test]
    fn the_hash_follows_custom_schemas() {
        let mut def = built_in().remove(1);
        def.group = "example.com".into();
        let (one, two) = (json!({"type": "object"}), json!({"type": "string"}));
        let url =
            |schema| index(&[Resource { def: &def, schema: Some(schema) }])["paths"]["apis/example.com/v1"].clone();
        assert_ne!(url(&one), url(&two));
    }

    #[test]
    fn descriptions_of_fields_are_found() {
        assert!(field_description("meta.v1.ObjectMeta", "name").starts_with("Name must be unique"));
        assert!(field_description("meta.v1.ObjectMeta", "nope").is_empty());
    }
}
