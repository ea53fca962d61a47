//! The Configuration and the Route of a Service.

use api::serving::annotations::{ROUTES_ANNOTATION, SERVICE_LABEL, SERVICE_UID_LABEL};
use api::serving::{Configuration, ConfigurationSpec, Route, RouteSpec, Service, TrafficTarget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::meta::{controlled_by, inherited_annotations, with};

/// The Configuration that `service` wants.
pub(super) fn configuration(service: &Service) -> Configuration {
    let name = service.name_any();
    let uid = service.uid().unwrap_or_default();
    let labels = with(service.labels().clone(), [(SERVICE_LABEL, name.as_str()), (SERVICE_UID_LABEL, &uid)]);
    let annotations = with(inherited_annotations(service), [(ROUTES_ANNOTATION, name.as_str())]);
    Configuration {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: controlled_by(service),
            ..ObjectMeta::default()
        },
        spec: ConfigurationSpec { template: service.spec.template.clone() },
        status: None,
    }
}

/// The Route that `service` wants. The latest Revision means that of the Service's own Configuration.
pub(super) fn route(service: &Service) -> Route {
    let name = service.name_any();
    let labels = with(service.labels().clone(), [(SERVICE_LABEL, name.as_str())]);
    let mut traffic = service.spec.traffic.clone();
    if traffic.is_empty() {
        traffic.push(TrafficTarget { latest_revision: Some(true), percent: Some(100), ..TrafficTarget::default() });
    }
    for target in &mut traffic {
        if target.revision_name.is_none() {
            target.configuration_name = Some(name.clone());
        }
    }
    Route {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: service.namespace(),
            labels: Some(labels),
            annotations: Some(inherited_annotations(service)),
            owner_references: controlled_by(service),
            ..ObjectMeta::default()
        },
        spec: RouteSpec { traffic },
        status: None,
    }
}
