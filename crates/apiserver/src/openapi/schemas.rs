//! Schemas of OpenAPI documents.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use serde_json::{Map, Value, json};

use super::{Resource, kind_of};
use crate::kinds::schema::{self, Field, Shape, Type};

/// Where definitions lie in a document of version 3.
pub const V3: &str = "/components/schemas";
/// Where definitions lie in a document of version 2.
pub const V2: &str = "/definitions";

/// `io.k8s.api.apps.v1.Deployment` -> `apps.v1.Deployment`, the name in [`schema`].
fn table_name(full: &str) -> String {
    let mut parts: Vec<&str> = full.rsplit('.').take(3).collect();
    parts.reverse();
    parts.join(".")
}

fn generator(place: &str) -> SchemaGenerator {
    let mut settings = SchemaSettings::draft2019_09();
    settings.definitions_path = place.to_string().into();
    settings.meta_schema = None;
    settings.into_generator()
}

fn add<T: JsonSchema>(generator: &mut SchemaGenerator) -> bool {
    generator.subschema_for::<T>();
    true
}

/// Adds the type with that name in [`schema`] and all that it refers to.
fn add_type(name: &str, generator: &mut SchemaGenerator) -> bool {
    match name {
        "core.v1.Namespace" => add::<k8s_openapi::api::core::v1::Namespace>(generator),
        "core.v1.Pod" => add::<k8s_openapi::api::core::v1::Pod>(generator),
        "core.v1.PodTemplate" => add::<k8s_openapi::api::core::v1::PodTemplate>(generator),
        "core.v1.Service" => add::<k8s_openapi::api::core::v1::Service>(generator),
        "core.v1.Endpoints" => add::<k8s_openapi::api::core::v1::Endpoints>(generator),
        "core.v1.ConfigMap" => add::<k8s_openapi::api::core::v1::ConfigMap>(generator),
        "core.v1.Secret" => add::<k8s_openapi::api::core::v1::Secret>(generator),
        "core.v1.ServiceAccount" => add::<k8s_openapi::api::core::v1::ServiceAccount>(generator),
        "core.v1.Event" => add::<k8s_openapi::api::core::v1::Event>(generator),
        "core.v1.Node" => add::<k8s_openapi::api::core::v1::Node>(generator),
        "core.v1.Binding" => add::<k8s_openapi::api::core::v1::Binding>(generator),
        "core.v1.PersistentVolume" => add::<k8s_openapi::api::core::v1::PersistentVolume>(generator),
        "core.v1.PersistentVolumeClaim" => add::<k8s_openapi::api::core::v1::PersistentVolumeClaim>(generator),
        "core.v1.ReplicationController" => add::<k8s_openapi::api::core::v1::ReplicationController>(generator),
        "core.v1.LimitRange" => add::<k8s_openapi::api::core::v1::LimitRange>(generator),
        "core.v1.ResourceQuota" => add::<k8s_openapi::api::core::v1::ResourceQuota>(generator),
        "apps.v1.Deployment" => add::<k8s_openapi::api::apps::v1::Deployment>(generator),
        "apps.v1.ReplicaSet" => add::<k8s_openapi::api::apps::v1::ReplicaSet>(generator),
        "apps.v1.StatefulSet" => add::<k8s_openapi::api::apps::v1::StatefulSet>(generator),
        "apps.v1.DaemonSet" => add::<k8s_openapi::api::apps::v1::DaemonSet>(generator),
        "apps.v1.ControllerRevision" => add::<k8s_openapi::api::apps::v1::ControllerRevision>(generator),
        "batch.v1.Job" => add::<k8s_openapi::api::batch::v1::Job>(generator),
        "batch.v1.CronJob" => add::<k8s_openapi::api::batch::v1::CronJob>(generator),
        "discovery.v1.EndpointSlice" => add::<k8s_openapi::api::discovery::v1::EndpointSlice>(generator),
        "coordination.v1.Lease" => add::<k8s_openapi::api::coordination::v1::Lease>(generator),
        "autoscaling.v1.HorizontalPodAutoscaler" => {
            add::<k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler>(generator)
        }
        "autoscaling.v1.Scale" => add::<k8s_openapi::api::autoscaling::v1::Scale>(generator),
        "autoscaling.v2.HorizontalPodAutoscaler" => {
            add::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>(generator)
        }
        "networking.v1.Ingress" => add::<k8s_openapi::api::networking::v1::Ingress>(generator),
        "networking.v1.IngressClass" => add::<k8s_openapi::api::networking::v1::IngressClass>(generator),
        "networking.v1.NetworkPolicy" => add::<k8s_openapi::api::networking::v1::NetworkPolicy>(generator),
        "policy.v1.PodDisruptionBudget" => add::<k8s_openapi::api::policy::v1::PodDisruptionBudget>(generator),
        "policy.v1.Eviction" => add::<k8s_openapi::api::policy::v1::Eviction>(generator),
        "rbac.v1.Role" => add::<k8s_openapi::api::rbac::v1::Role>(generator),
        "rbac.v1.RoleBinding" => add::<k8s_openapi::api::rbac::v1::RoleBinding>(generator),
        "rbac.v1.ClusterRole" => add::<k8s_openapi::api::rbac::v1::ClusterRole>(generator),
        "rbac.v1.ClusterRoleBinding" => add::<k8s_openapi::api::rbac::v1::ClusterRoleBinding>(generator),
        "storage.v1.StorageClass" => add::<k8s_openapi::api::storage::v1::StorageClass>(generator),
        "storage.v1.CSIDriver" => add::<k8s_openapi::api::storage::v1::CSIDriver>(generator),
        "storage.v1.CSINode" => add::<k8s_openapi::api::storage::v1::CSINode>(generator),
        "storage.v1.VolumeAttachment" => add::<k8s_openapi::api::storage::v1::VolumeAttachment>(generator),
        "scheduling.v1.PriorityClass" => add::<k8s_openapi::api::scheduling::v1::PriorityClass>(generator),
        "node.v1.RuntimeClass" => add::<k8s_openapi::api::node::v1::RuntimeClass>(generator),
        "admissionregistration.v1.MutatingWebhookConfiguration" => {
            add::<k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration>(generator)
        }
        "admissionregistration.v1.ValidatingWebhookConfiguration" => {
            add::<k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration>(generator)
        }
        "events.v1.Event" => add::<k8s_openapi::api::events::v1::Event>(generator),
        "authentication.v1.TokenReview" => add::<k8s_openapi::api::authentication::v1::TokenReview>(generator),
        "authentication.v1.TokenRequest" => add::<k8s_openapi::api::authentication::v1::TokenRequest>(generator),
        "authentication.v1.SelfSubjectReview" => {
            add::<k8s_openapi::api::authentication::v1::SelfSubjectReview>(generator)
        }
        "authorization.v1.SubjectAccessReview" => {
            add::<k8s_openapi::api::authorization::v1::SubjectAccessReview>(generator)
        }
        "authorization.v1.SelfSubjectAccessReview" => {
            add::<k8s_openapi::api::authorization::v1::SelfSubjectAccessReview>(generator)
        }
        "authorization.v1.LocalSubjectAccessReview" => {
            add::<k8s_openapi::api::authorization::v1::LocalSubjectAccessReview>(generator)
        }
        "authorization.v1.SelfSubjectRulesReview" => {
            add::<k8s_openapi::api::authorization::v1::SelfSubjectRulesReview>(generator)
        }
        "apiextensions.v1.CustomResourceDefinition" => add::<
            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
        >(generator),
        "meta.v1.DeleteOptions" => add::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(generator),
        _ => false,
    }
}

/// Full name of a type: `apps.v1.Deployment` -> `io.k8s.api.apps.v1.Deployment`.
fn full_name(name: &str) -> String {
    match name.split('.').next() {
        Some("meta") => format!("io.k8s.apimachinery.pkg.apis.{name}"),
        Some("apiextensions") => format!("io.k8s.apiextensions-apiserver.pkg.apis.{name}"),
        _ => format!("io.k8s.api.{name}"),
    }
}

fn custom_name(resource: &Resource<'_>) -> String {
    let mut group: Vec<&str> = resource.def.group.split('.').collect();
    group.reverse();
    format!("{}.{}.{}", group.join("."), resource.def.version, resource.def.kind)
}

/// A schema that refers to that of a resource's kind.
pub fn reference(resource: &Resource<'_>, place: &str) -> Value {
    let name = match resource.schema {
        Some(_) => custom_name(resource),
        None => match crate::kinds::schema_name(&resource.def.api_version(), &resource.def.kind) {
            Some(name) => full_name(&name),
            None => return json!({"type": "object"}),
        },
    };
    json!({"$ref": format!("#{place}/{name}")})
}

/// Adds the schemas of built-in kinds, and of what they refer to.
pub fn add_built_in(members: &[&Resource<'_>], place: &str, definitions: &mut Map<String, Value>) {
    let mut generator = generator(place);
    let mut kinds = BTreeMap::new();
    for resource in members.iter().filter(|resource| resource.schema.is_none()) {
        if let Some(name) = crate::kinds::schema_name(&resource.def.api_version(), &resource.def.kind) {
            add_type(&name, &mut generator);
            kinds.insert(full_name(&name), kind_of(resource.def));
        }
    }
    if members.iter().any(|resource| resource.schema.is_some()) {
        add_type("meta.v1.DeleteOptions", &mut generator);
    }
    for (name, mut definition) in generator.take_definitions(false) {
        if let Some(kind) = schema::find(&table_name(&name)) {
            annotate(&mut definition, kind);
        }
        if let Some(kind) = kinds.get(&name) {
            definition["x-kubernetes-group-version-kind"] = json!([kind]);
        }
        definitions.insert(name, definition);
    }
}

/// Adds list types and merge keys to a definition.
fn annotate(definition: &mut Value, kind: &Type) {
    if kind.atomic {
        definition["x-kubernetes-map-type"] = json!("atomic");
    }
    let Some(properties) = definition.get_mut("properties").and_then(Value::as_object_mut) else { return };
    for (name, property) in properties {
        if let Some(field) = kind.field(name) {
            annotate_field(property, field);
        }
    }
}

fn annotate_field(property: &mut Value, field: &Field) {
    match &field.shape {
        Shape::List(_) if !field.keys.is_empty() => {
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!(field.keys);
        }
        Shape::List(_) if field.set => property["x-kubernetes-list-type"] = json!("set"),
        Shape::Map(_) if field.atomic => property["x-kubernetes-map-type"] = json!("atomic"),
        _ => {}
    }
    let Some(patch) = &field.patch else { return };
    if let Some(key) = &patch.key {
        property["x-kubernetes-patch-merge-key"] = json!(key);
    }
    property["x-kubernetes-patch-strategy"] = json!(match (patch.merge, patch.retain_keys) {
        (true, true) => "merge,retainKeys",
        (true, false) => "merge",
        (false, _) => "retainKeys",
    });
}

/// Adds the schema of a custom resource.
pub fn add_custom(resource: &Resource<'_>, definitions: &mut Map<String, Value>) {
    let Some(schema) = resource.schema else { return };
    let mut definition = if schema.is_object() { schema.clone() } else { json!({"type": "object"}) };
    let text = |description: &str| json!({"type": "string", "description": description});
    if definition.get("properties").is_some_and(Value::is_object)
        || definition.get("x-kubernetes-preserve-unknown-fields").is_none()
    {
        let properties = &mut definition["properties"];
        if !properties.is_object() {
            *properties = json!({});
        }
        properties["apiVersion"] = text("Version of the schema that this object has.");
        properties["kind"] = text("Kind of this object.");
        properties["metadata"] = json!({"type": "object", "description": "Metadata of this object."});
    }
    definition["x-kubernetes-group-version-kind"] = json!([kind_of(resource.def)]);
    definitions.insert(custom_name(resource), definition);
}

/// Texts for columns of Tables.
static DESCRIPTIONS: LazyLock<HashMap<(String, String), String>> = LazyLock::new(|| {
    let mut found = HashMap::new();
    let mut generator = generator(V3);
    for name in DESCRIBED {
        add_type(name, &mut generator);
    }
    for (name, definition) in generator.take_definitions(false) {
        let name = table_name(&name);
        for (field, property) in definition["properties"].as_object().into_iter().flatten() {
            if let Some(Value::String(text)) = property.get("description")
                && heads_column(&name, field)
            {
                found.insert((name.clone(), field.clone()), text.clone());
            }
        }
    }
    found
});

fn heads_column(kind: &str, field: &str) -> bool {
    const FIELDS: [(&str, &[&str]); 24] = [
        ("meta.v1.ObjectMeta", &["name", "creationTimestamp"]),
        ("core.v1.PodSpec", &["nodeName", "readinessGates"]),
        ("core.v1.PodStatus", &["podIP", "nominatedNodeName"]),
        ("core.v1.ServiceSpec", &["type", "clusterIP", "externalIPs", "ports", "selector"]),
        ("core.v1.ConfigMap", &["data"]),
        ("core.v1.Secret", &["type", "data"]),
        (
            "core.v1.Event",
            &["type", "reason", "involvedObject", "source", "message", "firstTimestamp", "lastTimestamp", "count"],
        ),
        ("core.v1.ObjectReference", &["fieldPath"]),
        ("core.v1.NodeSystemInfo", &["kubeletVersion", "osImage", "kernelVersion", "containerRuntimeVersion"]),
        ("core.v1.NodeStatus", &["addresses"]),
        ("core.v1.PersistentVolumeClaimStatus", &["phase", "capacity", "accessModes"]),
        (
            "core.v1.PersistentVolumeClaimSpec",
            &["volumeName", "storageClassName", "volumeMode", "volumeAttributesClassName"],
        ),
        ("apps.v1.ReplicaSetSpec", &["replicas", "selector"]),
        ("apps.v1.ReplicaSetStatus", &["replicas", "readyReplicas"]),
        ("apps.v1.DeploymentSpec", &["selector"]),
        ("apps.v1.DeploymentStatus", &["updatedReplicas", "availableReplicas"]),
        ("batch.v1.JobSpec", &["selector"]),
        ("batch.v1.JobStatus", &["succeeded"]),
        ("coordination.v1.LeaseSpec", &["holderIdentity"]),
        ("discovery.v1.EndpointSlice", &["addressType", "ports", "endpoints"]),
        ("autoscaling.v2.HorizontalPodAutoscalerSpec", &["scaleTargetRef", "metrics", "minReplicas", "maxReplicas"]),
        ("autoscaling.v2.HorizontalPodAutoscalerStatus", &["currentReplicas"]),
        ("core.v1.NamespaceStatus", &["phase"]),
        ("rbac.v1.RoleBinding", &["roleRef"]),
    ];
    FIELDS.iter().any(|(name, fields)| *name == kind && fields.contains(&field))
}

/// Kinds whose fields describe columns of Tables.
const DESCRIBED: [&str; 15] = [
    "core.v1.Pod",
    "core.v1.Service",
    "core.v1.ConfigMap",
    "core.v1.Secret",
    "core.v1.Namespace",
    "core.v1.Node",
    "core.v1.Event",
    "core.v1.PersistentVolumeClaim",
    "apps.v1.ReplicaSet",
    "apps.v1.Deployment",
    "batch.v1.Job",
    "coordination.v1.Lease",
    "discovery.v1.EndpointSlice",
    "autoscaling.v2.HorizontalPodAutoscaler",
    "rbac.v1.RoleBinding",
];

/// Description of a field of a built-in type that heads a column; empty if there is none.
///
/// The first call builds the schemas of a dozen kinds; only the few texts that columns need are kept.
pub fn field_description(kind: &str, field: &str) -> &'static str {
    DESCRIPTIONS.get(&(kind.to_string(), field.to_string())).map_or("", String::as_str)
}
