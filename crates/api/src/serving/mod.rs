//! Knative Serving `serving.knative.dev/v1`: Service, Configuration, Revision and Route; [`domain`] has the mappings.
//!
//! Source: `knative/serving/pkg/apis/serving/v1`. Field names, defaults and conditions are the reference's.

pub mod admission;
pub mod annotations;
pub mod domain;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;

/// Conditions that a Service's `Ready` depends on.
pub const SERVICE_DEPENDENTS: &[&str] = &["ConfigurationsReady", "RoutesReady"];
/// Conditions that a Revision's `Ready` depends on; `Active` is informational.
pub const REVISION_DEPENDENTS: &[&str] = &["ResourcesAvailable", "ContainerHealthy"];
/// Conditions that a Route's `Ready` depends on.
pub const ROUTE_DEPENDENTS: &[&str] = &["AllTrafficAssigned", "IngressReady", "CertificateProvisioned"];
/// A Configuration's `Ready` stands alone.
pub const CONFIGURATION_DEPENDENTS: &[&str] = &[];

/// What a Service asks for: a template for Revisions and a split of traffic over them.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "serving.knative.dev", version = "v1", kind = "Service", plural = "services", namespaced)]
#[kube(status = "ServiceStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// The template that each new Revision is made from.
    pub template: RevisionTemplate,
    /// How traffic is split; empty means everything to the latest ready Revision.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What is known of a Service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `ConfigurationsReady`, `RoutesReady`.
    pub conditions: Vec<Condition>,
    /// Annotations passed up from the children.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Newest Revision, ready or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_created_revision_name: Option<String>,
    /// Newest Revision that is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_ready_revision_name: Option<String>,
    /// Public URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Address inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Addressable>,
    /// The split as it is, with each target's Revision resolved.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What a Configuration asks for.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "serving.knative.dev", version = "v1", kind = "Configuration", plural = "configurations", namespaced)]
#[kube(status = "ConfigurationStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationSpec {
    /// The template that each new Revision is made from.
    pub template: RevisionTemplate,
}

/// What is known of a Configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`.
    pub conditions: Vec<Condition>,
    /// Newest Revision, ready or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_created_revision_name: Option<String>,
    /// Newest Revision that is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_ready_revision_name: Option<String>,
}

/// Metadata and spec of Revisions to come.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionTemplate {
    /// Labels, annotations and, optionally, the Revision's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ObjectMeta>,
    /// The Revision's spec.
    pub spec: RevisionSpec,
}

/// One immutable version: a pod spec and how requests reach it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "serving.knative.dev", version = "v1", kind = "Revision", plural = "revisions", namespaced)]
#[kube(status = "RevisionStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionSpec {
    /// Most requests that one instance may have in flight; 0 is no limit. 0 to 1000, default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// Longest time that a request may take. Seconds, default 300, at most 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Longest time until the first byte of the response. Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    /// Longest time without a byte in either direction. Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
    /// The pod.
    #[serde(flatten)]
    pub pod: PodSpec,
}

/// What is known of a Revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `ResourcesAvailable`, `ContainerHealthy`, `Active`.
    pub conditions: Vec<Condition>,
    /// Where the logs can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_url: Option<String>,
    /// The images, by digest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub container_statuses: Vec<ContainerStatus>,
    /// The init containers' images, by digest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init_container_statuses: Vec<ContainerStatus>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_replicas: Option<i32>,
    /// Pods that are wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_replicas: Option<i32>,
}

/// A container's image as it was resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// Name of the container.
    pub name: String,
    /// `repository@sha256:...`, empty while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
}

/// What a Route asks for.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "serving.knative.dev", version = "v1", kind = "Route", plural = "routes", namespaced)]
#[kube(status = "RouteStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct RouteSpec {
    /// How traffic is split.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// What is known of a Route. The gateway routes by this alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `AllTrafficAssigned`, `IngressReady`, `CertificateProvisioned`.
    pub conditions: Vec<Condition>,
    /// State of a gradual rollout.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Public URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Address inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Addressable>,
    /// The split as it is: each entry names its Revision; a tagged one has its URL.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// One share of the traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficTarget {
    /// Name under which this target alone can be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// A fixed Revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision_name: Option<String>,
    /// A Configuration whose latest ready Revision is meant (Route only).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration_name: Option<String>,
    /// Whether the latest ready Revision is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<bool>,
    /// Share in per cent; all shares add up to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// URL of the tag; status only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Where something can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Addressable {
    /// The URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}
