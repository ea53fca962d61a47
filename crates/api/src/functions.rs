//! `functions.colibri.dev/v1` Function: source code, and everything that makes it a service.

pub mod admission;
pub mod settings;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, ResourceRequirements, Volume};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;
use crate::serving::TrafficTarget;

/// Conditions that a Function's `Ready` depends on.
pub const FUNCTION_DEPENDENTS: &[&str] = &["SourceReady", "BuildReady", "RevisionReady", "RouteReady"];

/// Name of the volume that holds a function's code.
pub const CODE_VOLUME: &str = "colibri-code";
/// Where the code is mounted.
pub const CODE_PATH: &str = "/code";
/// Where a function's own volumes are mounted, each under its name.
pub const VOLUMES_PATH: &str = "/mnt";
/// Driver of the inline CSI volume that a function's code is mounted by. Kubernetes API servers keep such volumes;
/// older ones drop image volumes.
pub const CODE_DRIVER: &str = "code.colibri.dev";
/// Attribute of that volume: the archive's digest. The pod's namespace must have that archive.
pub const CODE_DIGEST: &str = "digest";
/// Registry name of the runtimes that use the node's own interpreters: `runtime.colibri.local/python`.
pub const RUNTIME_REGISTRY: &str = "runtime.colibri.local";
/// Where the platform's own runtime files are inside such a container, one folder for each runtime.
pub const RUNTIME_PATH: &str = "/opt/colibri/runtime";

/// A function. Only `runtime` and a source are required.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(group = "functions.colibri.dev", version = "v1", kind = "Function", plural = "functions", shortname = "fn")]
#[kube(namespaced, status = "FunctionStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionSpec {
    /// `python`, `nodejs`, `binary`, `wasm`, or the name of an Environment.
    pub runtime: String,
    /// What to call, such as `main.handle`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// `auto`, `http`, `cloudevent`, `asgi` or `wsgi`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// Where the code is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// How it is built.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<Build>,
    /// Environment variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Environment variables from Secrets and ConfigMaps.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFromSource>,
    /// Volumes, as in a pod.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Requests and limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// Longest time of one invocation, such as `60s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// How it scales.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// What calls it; each entry has one key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub triggers: Vec<serde_json::Value>,
    /// Retries and dead letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<serde_json::Value>,
    /// How traffic is split over versions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// Where the code is: exactly one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Source {
    /// File names and their texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inline: Option<BTreeMap<String, String>>,
    /// An uploaded archive, or one at a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// A Git repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub git: Option<serde_json::Value>,
    /// A container image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// An archive (tar, tar.gz or zip).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Archive {
    /// `sha256:...` of an archive uploaded to the platform.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Where to fetch it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Expected SHA-256 of what is fetched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// How a function is built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Build {
    /// `warm` or `image`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The build command; the runtime has a default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Base image, in mode `image` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_image: Option<String>,
}

/// How a function scales.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scaling {
    /// Fewest instances. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Most instances; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Most requests in flight for each instance; 0 is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Target utilisation, such as `70%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Time from the last request to zero, such as `60s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle: Option<String>,
}

/// What is known of a Function.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FunctionStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `SourceReady`, `BuildReady`, `RevisionReady`, `RouteReady`.
    pub conditions: Vec<Condition>,
    /// Public URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Newest version that is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The code that the newest version runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build: Option<BuildStatus>,
}

/// The state of a build.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BuildStatus {
    /// `Pending`, `Running`, `Succeeded` or `Failed`.
    pub state: String,
    /// Digest of the code archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}
