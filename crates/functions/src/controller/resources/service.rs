//! The Knative Service of a Function.

use std::collections::BTreeMap;

use api::fields::holds;
use api::functions::settings::{autoscaling_annotations, timeout, timeout_seconds};
use api::functions::{CODE_DIGEST, CODE_DRIVER, CODE_PATH, CODE_VOLUME, Function, RUNTIME_REGISTRY, VOLUMES_PATH};
use api::serving::annotations::{FUNCTION_LABEL, USER_CONTAINER};
use api::serving::{Revision, RevisionSpec, RevisionTemplate, Service, ServiceSpec};
use k8s_openapi::api::core::v1::{CSIVolumeSource, Container, EnvVar, PodSpec, Volume, VolumeMount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::runtimes;

/// Annotation with a hash of what was asked for: on the Service of its whole spec, so that fields that were taken away
/// show up; on the template, and so on each Revision, of the template, so that it is known which Revision is the newest.
pub const APPLIED_ANNOTATION: &str = "functions.colibri.dev/applied";

/// What the container runs.
pub enum Code<'a> {
    /// An archive of the code store, run by a built-in runtime.
    Archive { digest: &'a str },
    /// An image, run as it is.
    Image { reference: &'a str },
}

/// The Service that a Function wants.
pub fn make(function: &Function, code: &Code) -> Service {
    let mut spec = ServiceSpec { template: template(function, code), traffic: function.spec.traffic.clone() };
    let of_template = hash(&spec.template);
    let annotations = spec.template.metadata.get_or_insert_default().annotations.get_or_insert_default();
    annotations.insert(APPLIED_ANNOTATION.to_owned(), of_template);
    let applied = hash(&spec);
    let metadata = ObjectMeta {
        name: function.metadata.name.clone(),
        namespace: function.metadata.namespace.clone(),
        labels: Some(labels(function)),
        annotations: Some(BTreeMap::from([(APPLIED_ANNOTATION.to_owned(), applied)])),
        owner_references: function.controller_owner_ref(&()).map(|owner| vec![owner]),
        ..ObjectMeta::default()
    };
    Service { metadata, spec, status: None }
}

/// `present` with the wanted spec, labels and owner; what others wrote into its metadata stays.
pub fn merge(present: &Service, wanted: Service) -> Service {
    let mut merged = present.clone();
    merged.spec = wanted.spec;
    merged.labels_mut().extend(wanted.metadata.labels.unwrap_or_default());
    merged.annotations_mut().extend(wanted.metadata.annotations.unwrap_or_default());
    merged
}

/// Whether nothing has to be written: the same was asked for before, and every wanted field is there.
pub fn is_as_wanted(present: &Service, wanted: &Service) -> bool {
    let applied = present.annotations().get(APPLIED_ANNOTATION) == wanted.annotations().get(APPLIED_ANNOTATION);
    let labels = wanted.labels().iter().all(|(name, value)| present.labels().get(name) == Some(value));
    applied && labels && holds(&json(&present.spec), &json(&wanted.spec))
}

/// Whether a Revision was made from that Service's template.
pub fn is_of_template(revision: &Revision, wanted: &Service) -> bool {
    let template = wanted.spec.template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
    let wanted = template.and_then(|annotations| annotations.get(APPLIED_ANNOTATION));
    wanted.is_some() && revision.annotations().get(APPLIED_ANNOTATION) == wanted
}

fn labels(function: &Function) -> BTreeMap<String, String> {
    BTreeMap::from([(FUNCTION_LABEL.to_owned(), function.name_any())])
}

fn template(function: &Function, code: &Code) -> RevisionTemplate {
    let spec = &function.spec;
    let annotations = spec.scaling.as_ref().map(autoscaling_annotations).unwrap_or_default();
    let metadata = ObjectMeta {
        labels: Some(labels(function)),
        annotations: (!annotations.is_empty()).then_some(annotations),
        ..ObjectMeta::default()
    };
    let concurrency = spec.scaling.as_ref().and_then(|scaling| scaling.concurrency).map(i64::from);
    let revision = RevisionSpec {
        container_concurrency: concurrency,
        timeout_seconds: timeout_seconds(spec),
        pod: PodSpec {
            containers: vec![container(function, code)],
            volumes: volumes(function, code),
            ..PodSpec::default()
        },
        ..RevisionSpec::default()
    };
    RevisionTemplate { metadata: Some(metadata), spec: revision }
}

fn container(function: &Function, code: &Code) -> Container {
    let spec = &function.spec;
    let (image, command) = match code {
        Code::Archive { .. } => (format!("{RUNTIME_REGISTRY}/{}", spec.runtime), runtimes::command(&spec.runtime)),
        Code::Image { reference } => ((*reference).to_owned(), None),
    };
    let own = spec.volumes.iter().map(|volume| VolumeMount {
        name: volume.name.clone(),
        mount_path: format!("{VOLUMES_PATH}/{}", volume.name),
        read_only: volume.empty_dir.is_none().then_some(true),
        ..VolumeMount::default()
    });
    let code_mount = matches!(code, Code::Archive { .. }).then(|| VolumeMount {
        name: CODE_VOLUME.to_owned(),
        mount_path: CODE_PATH.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    });
    let mounts: Vec<VolumeMount> = code_mount.into_iter().chain(own).collect();
    Container {
        name: USER_CONTAINER.to_owned(),
        image: Some(image),
        command,
        env: Some(environment(function)),
        env_from: (!spec.env_from.is_empty()).then(|| spec.env_from.clone()),
        resources: spec.resources.clone(),
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        ..Container::default()
    }
}

/// The platform's variables, then the function's own.
fn environment(function: &Function) -> Vec<EnvVar> {
    let spec = &function.spec;
    let concurrency = spec.scaling.as_ref().and_then(|scaling| scaling.concurrency).filter(|limit| *limit > 0);
    let own = [
        ("COLIBRI_FUNCTION", function.metadata.name.clone()),
        ("COLIBRI_NAMESPACE", function.metadata.namespace.clone()),
        ("COLIBRI_HANDLER", spec.handler.clone()),
        ("COLIBRI_SIGNATURE", spec.signature.clone()),
        ("COLIBRI_CONCURRENCY", concurrency.map(|limit| limit.to_string())),
        ("COLIBRI_TIMEOUT_MS", timeout(spec).map(|timeout| timeout.as_millis().to_string())),
    ];
    let variable = |(name, value): (&str, Option<String>)| {
        value.map(|value| EnvVar { name: name.to_owned(), value: Some(value), value_from: None })
    };
    own.into_iter().filter_map(variable).chain(spec.env.iter().cloned()).collect()
}

fn volumes(function: &Function, code: &Code) -> Option<Vec<Volume>> {
    let code_volume = match code {
        Code::Archive { digest } => Some(Volume {
            name: CODE_VOLUME.to_owned(),
            csi: Some(CSIVolumeSource {
                driver: CODE_DRIVER.to_owned(),
                read_only: Some(true),
                volume_attributes: Some(BTreeMap::from([(CODE_DIGEST.to_owned(), (*digest).to_owned())])),
                ..CSIVolumeSource::default()
            }),
            ..Volume::default()
        }),
        Code::Image { .. } => None,
    };
    let volumes: Vec<Volume> = code_volume.into_iter().chain(function.spec.volumes.iter().cloned()).collect();
    (!volumes.is_empty()).then_some(volumes)
}

fn json(spec: &impl Serialize) -> Value {
    serde_json::to_value(spec).unwrap_or_default()
}

fn hash(spec: &impl Serialize) -> String {
    let digest = Sha256::digest(json(spec).to_string().as_bytes());
    hex::encode(&digest[..16])
}
