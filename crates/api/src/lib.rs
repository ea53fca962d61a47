//! The kinds that Colibri defines or speaks: Knative Serving's and its own `Function`.
//!
//! Pure: types, constants, conditions and the CRDs, no sockets, no files, no tasks, no clock.
//! Kubernetes' own kinds come from `k8s_openapi`.

pub mod autoscaling;
pub mod conditions;
pub mod config;
pub mod crds;
pub mod fields;
pub mod functions;
pub mod serving;

pub use conditions::{Condition, ConditionStatus, Conditions};

/// Namespace of the platform itself: ConfigMaps, Leases.
pub const SYSTEM_NAMESPACE: &str = "colibri-system";
