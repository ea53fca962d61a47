//! The Revision of a Configuration's present generation.

use api::serving::annotations as keys;
use api::serving::{Configuration, Revision};
use base::names::child_name;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::meta::{controlled_by, with};

/// Generation of a Configuration; 0 before the API server gave one.
pub(super) fn generation(configuration: &Configuration) -> i64 {
    configuration.metadata.generation.unwrap_or_default()
}

/// Name of the Revision: the template's own, or `NAME-00001` of the generation.
pub(super) fn revision_name(configuration: &Configuration) -> String {
    let own = configuration.spec.template.metadata.as_ref().and_then(|meta| meta.name.clone());
    own.filter(|name| !name.is_empty())
        .unwrap_or_else(|| child_name(&configuration.name_any(), &format!("-{:05}", generation(configuration))))
}

/// The Revision that the present generation wants.
pub(super) fn revision(configuration: &Configuration, now: Timestamp) -> Revision {
    let template = &configuration.spec.template;
    let given = template.metadata.clone().unwrap_or_default();
    let name = configuration.name_any();
    let number = generation(configuration).to_string();
    let uid = configuration.uid().unwrap_or_default();
    let mut labels = with(
        given.labels.unwrap_or_default(),
        [
            (keys::CONFIGURATION_LABEL, name.as_str()),
            (keys::CONFIGURATION_GENERATION_LABEL, number.as_str()),
            (keys::CONFIGURATION_UID_LABEL, uid.as_str()),
            (keys::ROUTING_STATE_LABEL, "pending"),
        ],
    );
    for key in [keys::SERVICE_LABEL, keys::SERVICE_UID_LABEL] {
        labels.extend(configuration.labels().get(key).map(|value| (key.to_owned(), value.clone())));
    }
    let mut annotations = given.annotations.unwrap_or_default();
    let modified = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    annotations.insert(keys::ROUTING_STATE_MODIFIED_ANNOTATION.to_owned(), modified);
    let creator = configuration.annotations().get(keys::LAST_MODIFIER_ANNOTATION);
    annotations.extend(creator.map(|user| (keys::CREATOR_ANNOTATION.to_owned(), user.clone())));
    let routes = configuration.annotations().get(keys::ROUTES_ANNOTATION);
    annotations.extend(routes.map(|routes| (keys::ROUTES_ANNOTATION.to_owned(), routes.clone())));
    Revision {
        metadata: ObjectMeta {
            name: Some(revision_name(configuration)),
            namespace: configuration.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: controlled_by(configuration),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}
