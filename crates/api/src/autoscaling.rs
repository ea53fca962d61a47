//! `autoscaling.internal.knative.dev/v1alpha1` PodAutoscaler: the scale of one Revision.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

use crate::conditions::Condition;

/// Conditions that a PodAutoscaler's `Ready` depends on.
pub const POD_AUTOSCALER_DEPENDENTS: &[&str] = &["Active", "ScaleTargetInitialized"];

/// What an autoscaler is told. The scaling annotations are copied from the Revision.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "autoscaling.internal.knative.dev", version = "v1alpha1", kind = "PodAutoscaler")]
#[kube(plural = "podautoscalers", shortname = "kpa", shortname = "pa", namespaced)]
#[kube(status = "PodAutoscalerStatus", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct PodAutoscalerSpec {
    /// The Revision's hard limit of requests in flight for each instance; 0 is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// The Revision.
    pub scale_target_ref: ObjectReference,
    /// `Reachable` while a Route sends traffic or a tag there, `Unreachable` when none does, else `Unknown`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reachability: Option<String>,
    /// `http1` or `h2c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_type: Option<String>,
}

/// What the autoscaler decided and saw.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodAutoscalerStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Active`, `ScaleTargetInitialized`.
    pub conditions: Vec<Condition>,
    /// Pods that are wanted; -1 while unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_scale: Option<i32>,
    /// Pods that are ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_scale: Option<i32>,
}
