//! The PodAutoscaler of a Revision.

use api::autoscaling::{PodAutoscaler, PodAutoscalerSpec};
use api::conditions::{Condition, ConditionStatus};
use api::serving::Revision;
use api::serving::annotations::ROUTING_STATE_LABEL;
use autoscale::settings::Reachability;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::meta::{annotations_of_revision, controlled_by, labels_of_revision};

/// The PodAutoscaler that `revision` wants while those are its conditions. It has the Revision's name.
pub(super) fn autoscaler(revision: &Revision, conditions: &[Condition]) -> PodAutoscaler {
    let name = revision.name_any();
    PodAutoscaler {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: revision.namespace(),
            labels: Some(labels_of_revision(revision)),
            annotations: Some(annotations_of_revision(revision)),
            owner_references: controlled_by(revision),
            ..ObjectMeta::default()
        },
        spec: PodAutoscalerSpec {
            container_concurrency: Some(revision.spec.container_concurrency.unwrap_or_default()),
            scale_target_ref: ObjectReference {
                api_version: Some("serving.knative.dev/v1".to_owned()),
                kind: Some("Revision".to_owned()),
                name: Some(name),
                ..ObjectReference::default()
            },
            reachability: reachability(revision, conditions).text().map(str::to_owned),
            protocol_type: Some(protocol(revision).to_owned()),
        },
        status: None,
    }
}

/// A Revision that has failed is not reachable whatever a Route says.
fn reachability(revision: &Revision, conditions: &[Condition]) -> Reachability {
    let failed = conditions.iter().any(|condition| {
        condition.status == ConditionStatus::False
            && ["ResourcesAvailable", "ContainerHealthy"].contains(&condition.kind.as_str())
    });
    match revision.labels().get(ROUTING_STATE_LABEL).map(String::as_str) {
        _ if failed => Reachability::Unreachable,
        Some("active") => Reachability::Reachable,
        Some("reserve") => Reachability::Unreachable,
        _ => Reachability::Unknown,
    }
}

fn protocol(revision: &Revision) -> &'static str {
    let containers = revision.spec.pod.containers.iter();
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    if ports.any(|port| port.name.as_deref() == Some("h2c")) { "h2c" } else { "http1" }
}
