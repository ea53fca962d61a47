//! What there is of one workload: itself, its versions, its instances.

use api::fields::holds;
use api::serving::annotations::{CONFIGURATION_LABEL, REVISION_LABEL, SERVICE_LABEL};
use api::serving::{Revision, Service, TrafficTarget};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::access::Access;
use super::error::CliError;
use super::workload::{Workload, is_of_function};

/// A workload and what belongs to it, at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The Function or Service.
    pub workload: Workload,
    /// The Service; a Function's own one where it is there.
    pub service: Option<Service>,
    /// Its versions, newest first.
    pub revisions: Vec<Revision>,
    /// Its instances.
    pub pods: Vec<Pod>,
}

/// Reads all of it.
///
/// # Errors
///
/// When the workload is not there, or the server does not answer.
pub async fn look(access: &Access, name: &str) -> Result<Seen, CliError> {
    let workload = Workload::find(access, name).await?;
    let name = &workload.name();
    let (client, namespace) = (access.client.clone(), access.namespace.as_str());
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let revisions: Api<Revision> = Api::namespaced(client.clone(), namespace);
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    let (of_service, by_label) = (format!("{CONFIGURATION_LABEL}={name}"), format!("{SERVICE_LABEL}={name}"));
    let (of_service, by_label) = (ListParams::default().labels(&of_service), ListParams::default().labels(&by_label));
    let failed = |what: &'static str| move |error| CliError::api(what, &error);
    let (service, revisions, pods) =
        tokio::join!(services.get_opt(name), revisions.list(&of_service), pods.list(&by_label));
    let service = service.map_err(failed("read the service"))?;
    if matches!(workload, Workload::Function(_)) && service.as_ref().is_some_and(|service| !is_of_function(service)) {
        return Ok(Seen { workload, service: None, revisions: Vec::new(), pods: Vec::new() });
    }
    let mut revisions = revisions.map_err(failed("list revisions"))?.items;
    revisions
        .sort_by_key(|revision| std::cmp::Reverse((revision.creation_timestamp().map(|t| t.0), revision.name_any())));
    Ok(Seen { workload, service, revisions, pods: pods.map_err(failed("list pods"))?.items })
}

impl Seen {
    /// How traffic is split.
    pub fn traffic(&self) -> &[TrafficTarget] {
        self.service.as_ref().and_then(|service| service.status.as_ref()).map_or(&[], |status| &status.traffic)
    }

    /// The version that is made from what the Service asks for now; `None` while it is not there.
    pub fn newest(&self) -> Option<&Revision> {
        if let Workload::Function(function) = &self.workload {
            // Until then the Service is that of before.
            let observed = function.status.as_ref().and_then(|status| status.observed_generation);
            if observed != function.metadata.generation {
                return None;
            }
        }
        let service = self.service.as_ref()?;
        let status = service.status.as_ref()?;
        if status.observed_generation != service.metadata.generation {
            return None;
        }
        let name = status.latest_created_revision_name.as_deref()?;
        let found = self.revisions.iter().find(|revision| revision.metadata.name.as_deref() == Some(name))?;
        // For a moment a status may name the version of before.
        let template = &service.spec.template;
        let wanted = template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref());
        let same = wanted.into_iter().flatten().all(|(key, value)| found.annotations().get(key) == Some(value));
        let json = |spec| serde_json::to_value(spec).unwrap_or_default();
        (same && holds(&json(&found.spec), &json(&template.spec))).then_some(found)
    }

    /// The instances of a version, newest first.
    pub fn pods_of(&self, revision: &Revision) -> Vec<&Pod> {
        let name = revision.name_any();
        let mut found: Vec<&Pod> =
            self.pods.iter().filter(|pod| pod.labels().get(REVISION_LABEL) == Some(&name)).collect();
        found.sort_by_key(|pod| std::cmp::Reverse(pod.creation_timestamp().map(|time| time.0)));
        found
    }
}
