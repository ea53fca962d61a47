//! The CustomResourceDefinitions of every kind here.
//!
//! Names, short names, categories and printed columns are Knative's own. Pod specs have every field that a pod has, so
//! that an API server tells of misspelt ones as it does for pods; what Knative does not let a service set is left to
//! admission, which says so with Knative's texts.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

const NAMESPACED: &str = "Namespaced";

/// One kind, as far as CRDs differ.
struct Definition {
    group: &'static str,
    version: &'static str,
    scope: &'static str,
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    columns: Vec<Value>,
    spec: Value,
    status: Value,
}

/// All definitions: Service, Configuration, Revision, Route, PodAutoscaler, DomainMapping, ClusterDomainClaim, Function.
pub fn all() -> Vec<CustomResourceDefinition> {
    let definitions = [
        service(),
        configuration(),
        revision(),
        route(),
        pod_autoscaler(),
        domain_mapping(),
        cluster_domain_claim(),
        function(),
    ];
    definitions.into_iter().map(Definition::build).collect()
}

fn service() -> Definition {
    let mut columns = vec![text("URL", ".status.url")];
    columns.extend(latest_columns());
    columns.extend(ready_columns());
    Definition {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["kservice", "ksvc"],
        columns,
        spec: object(json!({ "template": template(), "traffic": traffic() })),
        status: status(json!({
            "latestCreatedRevisionName": string(),
            "latestReadyRevisionName": string(),
            "url": string(),
            "address": address(),
            "traffic": traffic(),
        })),
        ..serving()
    }
}

fn configuration() -> Definition {
    let mut columns = latest_columns();
    columns.extend(ready_columns());
    Definition {
        kind: "Configuration",
        plural: "configurations",
        singular: "configuration",
        short_names: &["config", "cfg"],
        columns,
        spec: object(json!({ "template": template() })),
        status: status(json!({ "latestCreatedRevisionName": string(), "latestReadyRevisionName": string() })),
        ..serving()
    }
}

fn revision() -> Definition {
    let mut columns = vec![
        text("Config Name", r".metadata.labels['serving\.knative\.dev/configuration']"),
        text("Generation", r".metadata.labels['serving\.knative\.dev/configurationGeneration']"),
    ];
    columns.extend(ready_columns());
    columns.push(column("Actual Replicas", "integer", ".status.actualReplicas"));
    columns.push(column("Desired Replicas", "integer", ".status.desiredReplicas"));
    let images = json!({
        "type": "array",
        "items": { "type": "object", "properties": { "name": string(), "imageDigest": string() } },
    });
    Definition {
        kind: "Revision",
        plural: "revisions",
        singular: "revision",
        short_names: &["rev"],
        columns,
        spec: revision_spec(),
        status: status(json!({
            "logUrl": string(),
            "containerStatuses": images,
            "initContainerStatuses": images,
            "actualReplicas": integer(),
            "desiredReplicas": integer(),
        })),
        ..serving()
    }
}

fn route() -> Definition {
    let mut columns = vec![text("URL", ".status.url")];
    columns.extend(ready_columns());
    Definition {
        kind: "Route",
        plural: "routes",
        singular: "route",
        short_names: &["rt"],
        columns,
        spec: object(json!({ "traffic": traffic() })),
        status: status(json!({ "url": string(), "address": address(), "traffic": traffic() })),
        ..serving()
    }
}

fn pod_autoscaler() -> Definition {
    let mut columns = vec![
        column("DesiredScale", "integer", ".status.desiredScale"),
        column("ActualScale", "integer", ".status.actualScale"),
    ];
    columns.extend(ready_columns());
    Definition {
        group: "autoscaling.internal.knative.dev",
        version: "v1alpha1",
        scope: NAMESPACED,
        kind: "PodAutoscaler",
        plural: "podautoscalers",
        singular: "podautoscaler",
        short_names: &["kpa", "pa"],
        categories: &["knative-internal", "autoscaling"],
        columns,
        spec: object(json!({
            "containerConcurrency": integer(),
            "protocolType": string(),
            "reachability": string(),
            "scaleTargetRef": open(),
        })),
        status: status(json!({
            "desiredScale": integer(),
            "actualScale": integer(),
            "serviceName": string(),
            "metricsServiceName": string(),
        })),
    }
}

fn domain_mapping() -> Definition {
    let mut columns = vec![text("URL", ".status.url")];
    columns.extend(ready_columns());
    let reference = json!({
        "address": string(),
        "apiVersion": string(),
        "group": string(),
        "kind": string(),
        "name": string(),
        "namespace": string(),
    });
    Definition {
        version: "v1beta1",
        kind: "DomainMapping",
        plural: "domainmappings",
        singular: "domainmapping",
        short_names: &["dm"],
        columns,
        spec: requiring(
            &["ref"],
            json!({
                "ref": requiring(&["kind", "name"], reference),
                "tls": requiring(&["secretName"], json!({ "secretName": string() })),
            }),
        ),
        status: status(json!({ "url": string(), "address": address() })),
        ..serving()
    }
}

fn cluster_domain_claim() -> Definition {
    Definition {
        group: "networking.internal.knative.dev",
        version: "v1alpha1",
        scope: "Cluster",
        kind: "ClusterDomainClaim",
        plural: "clusterdomainclaims",
        singular: "clusterdomainclaim",
        short_names: &["cdc"],
        categories: &["knative-internal", "networking"],
        columns: Vec::new(),
        spec: requiring(&["namespace"], json!({ "namespace": string() })),
        status: object(json!({})),
    }
}

fn function() -> Definition {
    let mut columns =
        vec![text("Runtime", ".spec.runtime"), text("URL", ".status.url"), text("Version", ".status.version")];
    columns.extend(ready_columns());
    columns.push(column("Age", "date", ".metadata.creationTimestamp"));
    let any_list = json!({ "type": "array", "items": open() });
    Definition {
        group: "functions.colibri.dev",
        version: "v1",
        scope: NAMESPACED,
        kind: "Function",
        plural: "functions",
        singular: "function",
        short_names: &["fn"],
        categories: &["all", "colibri"],
        columns,
        spec: object(json!({
            "runtime": string(),
            "handler": string(),
            "signature": string(),
            "source": open(),
            "build": open(),
            "env": any_list,
            "envFrom": any_list,
            "volumes": any_list,
            "resources": open(),
            "timeout": string(),
            "scaling": open(),
            "triggers": any_list,
            "delivery": open(),
            "traffic": traffic(),
        })),
        status: status(json!({ "url": string(), "version": string(), "build": open() })),
    }
}

/// What the kinds of `serving.knative.dev/v1` have in common.
fn serving() -> Definition {
    Definition {
        group: "serving.knative.dev",
        version: "v1",
        scope: NAMESPACED,
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &["all", "knative", "serving"],
        columns: Vec::new(),
        spec: Value::Null,
        status: Value::Null,
    }
}

impl Definition {
    fn build(self) -> CustomResourceDefinition {
        let schema = json!({
            "type": "object",
            "properties": {
                "apiVersion": string(),
                "kind": string(),
                "metadata": { "type": "object" },
                "spec": self.spec,
                "status": self.status,
            },
        });
        let manifest = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{}.{}", self.plural, self.group) },
            "spec": {
                "group": self.group,
                "scope": self.scope,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.singular,
                    "shortNames": self.short_names,
                    "categories": self.categories,
                },
                "versions": [{
                    "name": self.version,
                    "served": true,
                    "storage": true,
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": self.columns,
                    "schema": { "openAPIV3Schema": schema },
                }],
            },
        });
        serde_json::from_value(manifest).expect("a definition is a CustomResourceDefinition")
    }
}

fn column(name: &str, kind: &str, path: &str) -> Value {
    json!({ "name": name, "type": kind, "jsonPath": path })
}

fn text(name: &str, path: &str) -> Value {
    column(name, "string", path)
}

fn latest_columns() -> Vec<Value> {
    vec![
        text("LatestCreated", ".status.latestCreatedRevisionName"),
        text("LatestReady", ".status.latestReadyRevisionName"),
    ]
}

fn ready_columns() -> Vec<Value> {
    vec![
        text("Ready", ".status.conditions[?(@.type=='Ready')].status"),
        text("Reason", ".status.conditions[?(@.type=='Ready')].reason"),
    ]
}

fn string() -> Value {
    json!({ "type": "string" })
}

fn integer() -> Value {
    json!({ "type": "integer", "format": "int64" })
}

fn object(properties: Value) -> Value {
    json!({ "type": "object", "properties": properties })
}

/// An object with fields that must be there.
fn requiring(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

/// An object that is kept as it comes.
fn open() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn address() -> Value {
    object(json!({ "url": string() }))
}

fn template() -> Value {
    object(json!({ "metadata": open(), "spec": revision_spec() }))
}

fn revision_spec() -> Value {
    static SPEC: LazyLock<Value> = LazyLock::new(|| {
        let mut spec = pod_spec();
        if let Some(properties) = spec["properties"].as_object_mut() {
            for name in ["containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"]
            {
                properties.insert(name.to_owned(), integer());
            }
        }
        spec
    });
    SPEC.clone()
}

/// Fields of a pod whose own fields are told apart; those of the others are kept as they come.
const DEEP: [&str; 8] = [
    "containers",
    "initContainers",
    "volumes",
    "imagePullSecrets",
    "securityContext",
    "tolerations",
    "dnsConfig",
    "hostAliases",
];
/// The kinds of volumes that a service may have; those of the others are kept as they come.
const DEEP_VOLUMES: [&str; 7] =
    ["name", "configMap", "secret", "emptyDir", "projected", "persistentVolumeClaim", "image"];

/// A structural schema of a pod's spec. Nothing in it is required: admission fills names in, and tells what is missing.
fn pod_spec() -> Value {
    let mut settings = SchemaSettings::draft2019_09();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let spec = PodSpec::json_schema(&mut generator).to_value();
    let definitions = Value::Object(generator.take_definitions(true));
    let mut spec = structural(&spec, &definitions);
    open_all_but(&mut spec["properties"], &DEEP);
    open_all_but(&mut spec["properties"]["volumes"]["items"]["properties"], &DEEP_VOLUMES);
    spec
}

fn open_all_but(properties: &mut Value, deep: &[&str]) {
    let shallow = properties.as_object_mut().into_iter().flatten();
    for (_, schema) in shallow.filter(|(name, _)| !deep.contains(&name.as_str())) {
        match schema["type"].as_str() {
            Some("object") => *schema = open(),
            Some("array") if schema["items"]["type"] == "object" => {
                *schema = json!({ "type": "array", "items": open() });
            }
            _ => {}
        }
    }
}

/// Types and fields alone, without references.
fn structural(schema: &Value, definitions: &Value) -> Value {
    let options = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array());
    if let Some(option) = options.into_iter().flatten().find(|option| option["type"] != "null") {
        return structural(option, definitions);
    }
    if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.strip_prefix("#/$defs/")) {
        // A quantity may be written as a number.
        if name.ends_with(".Quantity") {
            return json!({ "x-kubernetes-int-or-string": true });
        }
        return structural(&definitions[name], definitions);
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return json!({ "x-kubernetes-int-or-string": true });
    }
    let below = |schema: &Value| structural(schema, definitions);
    match (schema["type"].as_str(), schema["properties"].as_object()) {
        (Some("object"), Some(properties)) => {
            object(properties.iter().map(|(name, schema)| (name.clone(), below(schema))).collect())
        }
        (Some("object"), None) if schema["additionalProperties"].is_object() => {
            json!({ "type": "object", "additionalProperties": below(&schema["additionalProperties"]) })
        }
        (Some("array"), _) => json!({ "type": "array", "items": below(&schema["items"]) }),
        (Some(kind @ ("string" | "boolean")), _) => json!({ "type": kind }),
        (Some("integer"), _) => json!({ "type": "integer", "format": schema["format"] }),
        (Some("object"), None) => open(),
        _ => json!({ "x-kubernetes-preserve-unknown-fields": true }),
    }
}

fn traffic() -> Value {
    json!({
        "type": "array",
        "items": object(json!({
            "tag": string(),
            "revisionName": string(),
            "configurationName": string(),
            "latestRevision": { "type": "boolean" },
            "percent": integer(),
            "url": string(),
        })),
    })
}

/// A status with the fields that all have, and `own`.
fn status(own: Value) -> Value {
    let conditions = json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["status", "type"],
            "properties": {
                "type": string(),
                "status": string(),
                "severity": string(),
                "lastTransitionTime": string(),
                "reason": string(),
                "message": string(),
            },
        },
    });
    let annotations = json!({ "type": "object", "additionalProperties": string() });
    let mut properties =
        json!({ "observedGeneration": integer(), "conditions": conditions, "annotations": annotations });
    if let (Some(all), Value::Object(own)) = (properties.as_object_mut(), own) {
        all.extend(own);
    }
    object(properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::Resource;

    fn names<K: Resource<DynamicType = ()>>() -> (String, String) {
        (format!("{}.{}", K::plural(&()), K::group(&())), K::version(&()).into_owned())
    }

    #[test]
    fn every_definition_belongs_to_a_type() {
        use crate::serving::domain::{ClusterDomainClaim, DomainMapping};
        use crate::serving::{Configuration, Revision, Route, Service};
        let types = [
            names::<Service>(),
            names::<Configuration>(),
            names::<Revision>(),
            names::<Route>(),
            names::<crate::autoscaling::PodAutoscaler>(),
            names::<DomainMapping>(),
            names::<ClusterDomainClaim>(),
            names::<crate::functions::Function>(),
        ];
        let definitions: Vec<(String, String)> =
            all().into_iter().map(|crd| (crd.metadata.name.unwrap(), crd.spec.versions[0].name.clone())).collect();
        assert_eq!(definitions, types);
    }

    #[test]
    fn a_pods_fields_are_known_and_quantities_may_be_numbers() {
        let spec = revision_spec();
        let at = |pointer: &str| spec.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is missing")).clone();
        let container = "/properties/containers/items/properties";
        let int_or_string = json!({ "x-kubernetes-int-or-string": true });
        assert_eq!(at("/properties/hostNetwork"), json!({ "type": "boolean" }));
        assert_eq!(at("/properties/containerConcurrency"), integer());
        assert_eq!(at("/properties/affinity"), open());
        let ports = "ports/items/properties/containerPort";
        assert_eq!(at(&format!("{container}/{ports}")), json!({ "type": "integer", "format": "int32" }));
        let limits = at(&format!("{container}/resources/properties/limits"));
        assert_eq!(limits, json!({ "type": "object", "additionalProperties": int_or_string }));
        assert_eq!(at(&format!("{container}/readinessProbe/properties/httpGet/properties/port")), int_or_string);
        assert_eq!(at("/properties/volumes/items/properties/hostPath"), open());
        at("/properties/volumes/items/properties/configMap/properties/items/items/properties/path");
        let text = spec.to_string();
        assert!(!text.contains("$ref") && !text.contains("null") && !text.contains("required"), "{text}");
        // `kubectl apply` keeps a copy in an annotation, which has room for 256 KiB.
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
    }

    #[test]
    fn columns_are_knatives() {
        let columns = |kind: &str| -> Vec<String> {
            let crd = all().into_iter().find(|crd| crd.spec.names.kind == kind).unwrap();
            let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap();
            columns.into_iter().map(|column| column.name).collect()
        };
        assert_eq!(columns("Service"), ["URL", "LatestCreated", "LatestReady", "Ready", "Reason"]);
        assert_eq!(
            columns("Revision"),
            ["Config Name", "Generation", "Ready", "Reason", "Actual Replicas", "Desired Replicas"]
        );
        assert_eq!(columns("DomainMapping"), ["URL", "Ready", "Reason"]);
        assert_eq!(columns("Function"), ["Runtime", "URL", "Version", "Ready", "Reason", "Age"]);
    }
}
