//! URLs and placeholder Services of a Route.

use std::collections::{BTreeMap, BTreeSet};

use api::config::Settings;
use api::serving::Route;
use api::serving::annotations::{ROUTE_LABEL, VISIBILITY_LABEL};
use k8s_openapi::api::core::v1::{Service as CoreService, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::config::Addresses;
use crate::meta::{controlled_by, inherited_annotations};

/// Names that a Route is reachable under inside the cluster: its own and one for each tag.
pub(super) fn placeholder_names(route: &Route, settings: &Settings) -> BTreeSet<String> {
    let name = route.name_any();
    let tags = route.spec.traffic.iter().filter_map(|target| target.tag.as_deref()).filter(|tag| !tag.is_empty());
    tags.map(|tag| settings.network.tag_name(tag, &name)).chain([name.clone()]).collect()
}

/// Whether the Route is kept off the public gateway.
fn is_local(route: &Route) -> bool {
    route.labels().get(VISIBILITY_LABEL).is_some_and(|visibility| visibility == "cluster-local")
}

/// What URLs are made from.
pub(super) struct Naming<'a> {
    pub(super) addresses: &'a Addresses,
    pub(super) settings: &'a Settings,
}

/// URL of the Route, or of one of its tags.
pub(super) fn url(route: &Route, tag: Option<&str>, naming: &Naming<'_>) -> String {
    let Naming { addresses, settings } = naming;
    let name = match tag {
        Some(tag) => settings.network.tag_name(tag, &route.name_any()),
        None => route.name_any(),
    };
    let namespace = route.namespace().unwrap_or_default();
    let inside = format!("svc.{}", addresses.cluster_domain);
    if is_local(route) {
        return format!("http://{name}.{namespace}.{inside}");
    }
    let domain = settings.domains.of(route.labels()).unwrap_or(&addresses.domain);
    let host = settings.network.domain_template.render(|field, key| {
        let entry = |map: &BTreeMap<String, String>| key.and_then(|key| map.get(key)).cloned().unwrap_or_default();
        match field {
            "Name" => name.clone(),
            "Namespace" => namespace.clone(),
            "Domain" => domain.to_owned(),
            "Labels" => entry(route.labels()),
            _ => entry(route.annotations()),
        }
    });
    let scheme = settings.network.external_scheme;
    match addresses.public_port {
        // Inside the cluster, and for HTTPS, the ports are the usual ones.
        Some(port) if port != 80 && scheme == "http" && domain != inside => format!("http://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    }
}

/// Address of the Route inside the cluster.
pub(super) fn local_url(route: &Route, naming: &Naming<'_>) -> String {
    let (name, namespace) = (route.name_any(), route.namespace().unwrap_or_default());
    format!("http://{name}.{namespace}.svc.{}", naming.addresses.cluster_domain)
}

/// The core Service that holds a name of the Route and leads to the gateway.
pub(super) fn placeholder(route: &Route, name: &str, naming: &Naming<'_>) -> CoreService {
    let mut labels = route.labels().clone();
    labels.insert(ROUTE_LABEL.to_owned(), route.name_any());
    CoreService {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: route.namespace(),
            labels: Some(labels),
            annotations: Some(inherited_annotations(route)),
            owner_references: controlled_by(route),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            type_: Some("ExternalName".to_owned()),
            external_name: Some(naming.addresses.gateway_host.clone()),
            session_affinity: Some("None".to_owned()),
            ports: Some(vec![ServicePort { name: Some("http2".to_owned()), port: 80, ..ServicePort::default() }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}
