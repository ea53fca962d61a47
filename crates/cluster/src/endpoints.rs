//! Keeps the EndpointSlices of each Service that has a selector: who answers for it now.
//!
//! Source: Kubernetes' `endpointslice` controller. Two differences: a slice's name is the Service's with a number, so
//! that a repeated step finds what it made; and addresses are IPv4 only.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Cache, Caches, Index, ObjectKey, Queue, is_there, queue::Outcome, run_workers_after};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{StepError, is_conflict, unless_gone};

/// Label that leads from a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label that says who keeps a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Label of a headless Service's slices.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// The most endpoints in one slice.
const SLICE_SIZE: usize = 100;

pub(crate) fn start(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<ObjectKey>::new();
    let (services, pods, slices) = (caches.of::<Service>(), caches.of::<Pod>(), caches.of::<EndpointSlice>());
    let add = queue.clone();
    services.subscribe(move |change| add.add(change.key()));
    let add = queue.clone();
    let selecting = services.index(|service| has_selector(service).then(String::new));
    let slices_of = slices.index(|slice| service_of(slice).map(str::to_owned));
    pods.subscribe(move |change| {
        if change.old.as_deref().map(relevant) != change.new.as_deref().map(relevant) {
            add_services_of(&selecting, change, &add);
        }
    });
    let add = queue.clone();
    slices.subscribe(move |change| {
        if let Some(service) = service_of(change.object()) {
            add.add(ObjectKey::new(change.key().namespace, service));
        }
    });
    let client = caches.client().clone();
    let first = (services.clone(), pods.clone(), slices.clone());
    let ready = async move {
        tokio::join!(first.0.synced(), first.1.synced(), first.2.synced());
    };
    run_workers_after(ready, "endpoints", &queue, 1, tasks, stop, move |key: ObjectKey| {
        let (client, services, pods, slices_of) = (client.clone(), services.clone(), pods.clone(), slices_of.clone());
        async move {
            let Some(service) = services.get_key(&key) else { return Ok(Outcome::Done) };
            if service.metadata.deletion_timestamp.is_some() {
                return Ok(Outcome::Done);
            }
            let Some(wanted) = wanted(&service, &pods) else { return Ok(Outcome::Done) };
            let present = slices_of.get(&key.namespace, &key.name);
            bring_up(&client, &service, wanted, &present).await.map(|()| Outcome::Done)
        }
    });
}

/// What of a pod the slices show.
fn relevant(pod: &Pod) -> (Option<BTreeMap<String, String>>, Option<Endpoint>) {
    (pod.metadata.labels.clone(), endpoint(pod, None, false))
}

fn add_services_of(selecting: &Index<Service>, change: &client::Change<Pod>, queue: &Queue<ObjectKey>) {
    let selected = |service: &Service, pod: &Option<Arc<Pod>>| pod.as_ref().is_some_and(|pod| selects(service, pod));
    let namespace = change.key().namespace;
    for service in selecting.get(&namespace, "") {
        if selected(&service, &change.old) || selected(&service, &change.new) {
            queue.add(ObjectKey::of(service.as_ref()));
        }
    }
}

fn has_selector(service: &Service) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    selector.is_some_and(|selector| !selector.is_empty())
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = pod.labels();
    selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    })
}

/// The Service of a slice that this controller keeps.
fn service_of(slice: &EndpointSlice) -> Option<&str> {
    let labels = slice.labels();
    (labels.get(MANAGED_BY).map(String::as_str) == Some(MANAGER)).then(|| labels.get(SERVICE_NAME))?.map(String::as_str)
}

/// The slices that a Service should have; `None` where somebody else keeps them.
fn wanted(service: &Service, pods: &Cache<Pod>) -> Option<Vec<EndpointSlice>> {
    let spec = service.spec.as_ref()?;
    if !has_selector(service) || spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let selected = pods.select(&service.namespace().unwrap_or_default(), |pod| selects(service, pod));
    Some(slices(service, &selected))
}

/// Pods whose named ports lead to different numbers are in different slices, each of at most [`SLICE_SIZE`] endpoints.
fn slices(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSlice> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let publish_all = spec.publish_not_ready_addresses == Some(true);
    let ports = spec.ports.as_deref().unwrap_or_default();
    let mut groups: Vec<(Vec<EndpointPort>, Vec<Endpoint>)> = Vec::new();
    for pod in pods {
        let Some(endpoint) = endpoint(pod, service.metadata.name.as_deref(), publish_all) else { continue };
        let resolved = resolve(ports, pod);
        match groups.iter_mut().find(|(ports, _)| *ports == resolved) {
            Some((_, endpoints)) => endpoints.push(endpoint),
            None => groups.push((resolved, vec![endpoint])),
        }
    }
    if groups.is_empty() {
        groups.push((Vec::new(), Vec::new()));
    }
    let mut made = Vec::new();
    for (ports, mut endpoints) in groups {
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        let mut parts: Vec<Vec<Endpoint>> = endpoints.chunks(SLICE_SIZE).map(<[Endpoint]>::to_vec).collect();
        if parts.is_empty() {
            parts.push(Vec::new());
        }
        for endpoints in parts {
            made.push(slice(service, made.len(), ports.clone(), endpoints));
        }
    }
    made
}

fn slice(service: &Service, number: usize, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let name = service.name_any();
    let mut labels = service.labels().clone();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let cluster_ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if cluster_ip == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints,
        metadata: ObjectMeta {
            name: Some(format!("{name}-{number}")),
            namespace: service.namespace(),
            labels: Some(labels),
            owner_references: service.controller_owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        ports: (!ports.is_empty()).then_some(ports),
    }
}

/// How a pod stands behind a Service; `None` while it has no address, and when it has ended.
fn endpoint(pod: &Pod, service: Option<&str>, publish_all: bool) -> Option<Endpoint> {
    let status = pod.status.as_ref()?;
    let address = status.pod_ip.clone().filter(|address| !address.is_empty())?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let serving = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let spec = pod.spec.as_ref();
    let named = spec.filter(|spec| spec.subdomain.as_deref() == service && service.is_some());
    Some(Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(publish_all || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: named.and_then(|spec| spec.hostname.clone()),
        node_name: spec.and_then(|spec| spec.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    })
}

/// The Service's ports as numbers of that pod; a name that the pod does not have is left out.
fn resolve(ports: &[ServicePort], pod: &Pod) -> Vec<EndpointPort> {
    let number = |port: &ServicePort| match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => named_port(pod, name, port.protocol.as_deref().unwrap_or("TCP")),
    };
    let resolved = ports.iter().filter_map(|port| {
        Some(EndpointPort {
            app_protocol: port.app_protocol.clone(),
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(number(port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
        })
    });
    resolved.collect()
}

fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.as_deref().unwrap_or_default());
    let found =
        ports.find(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol);
    found.map(|port| port.container_port)
}

/// Creates, replaces and deletes slices until they are as wanted.
async fn bring_up(
    client: &Client,
    service: &Service,
    wanted: Vec<EndpointSlice>,
    present: &[Arc<EndpointSlice>],
) -> Result<(), StepError> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), &service.namespace().unwrap_or_default());
    for old in present.iter().filter(|old| wanted.iter().all(|new| new.name_any() != old.name_any())) {
        let same = Preconditions { uid: old.uid(), ..Preconditions::default() };
        let parameters = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        let deleted = api.delete(&old.name_any(), &parameters).await;
        unless_gone(deleted).map_err(StepError::api("deleting an endpoint slice"))?;
    }
    for mut new in wanted {
        let name = new.name_any();
        let written = match present.iter().find(|old| old.name_any() == name) {
            Some(old) if is_as_wanted(old, &new) => continue,
            Some(old) => {
                new.metadata.resource_version = old.resource_version();
                api.replace(&name, &PostParams::default(), &new).await
            }
            None => {
                let there = is_there(client, service).await;
                if !there.map_err(StepError::api("asking for the Service of an endpoint slice"))? {
                    return Ok(());
                }
                api.create(&PostParams::default(), &new).await
            }
        };
        match written {
            Ok(_) => {}
            // Another write was first, or the name belongs to a slice of the user's: looked at again.
            Err(error) if is_conflict(&error) => {
                return Err(StepError::NotYet(format!("endpoint slice {name} was changed or made by another")));
            }
            Err(error) => unless_gone(Err::<(), _>(error)).map_err(StepError::api("writing an endpoint slice"))?,
        }
    }
    Ok(())
}

fn is_as_wanted(present: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let empty = |ports: &Option<Vec<EndpointPort>>| ports.clone().unwrap_or_default();
    present.endpoints == wanted.endpoints
        && empty(&present.ports) == empty(&wanted.ports)
        && present.metadata.labels == wanted.metadata.labels
        && present.metadata.owner_references == wanted.metadata.owner_references
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        let meta = json!({"name": "web", "namespace": "shop", "uid": "s1", "labels": {"tier": "front"}});
        serde_json::from_value(json!({"metadata": meta, "spec": spec})).unwrap()
    }

    fn pod(number: usize, ready: bool, port: u16) -> Arc<Pod> {
        let container = json!({"name": "c", "ports": [{"name": "http", "containerPort": port}]});
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "shop", "uid": format!("u{number}"), "labels": {"app": "web"}},
            "spec": {"containers": [container], "nodeName": "n", "hostname": "h", "subdomain": "web"},
            "status": {
                "phase": "Running",
                "podIP": format!("10.1.{}.{}", number / 250, number % 250 + 2),
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_behind_a_service_is_an_endpoint_with_its_named_port() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}));
        let made = slices(&service, &[pod(0, true, 8080), pod(1, false, 8080), pod(2, true, 9090)]);
        let seen: Vec<Value> = made.iter().map(|slice| serde_json::to_value(slice).unwrap()).collect();
        assert_eq!(made.len(), 2, "one slice for each number of the port");
        assert_eq!(seen[0]["metadata"]["name"], "web-0");
        assert_eq!(seen[0]["metadata"]["labels"], json!({"tier": "front", SERVICE_NAME: "web", MANAGED_BY: MANAGER}));
        assert_eq!(seen[0]["metadata"]["ownerReferences"][0]["name"], "web");
        assert_eq!(seen[0]["ports"], json!([{"name": "", "port": 8080, "protocol": "TCP"}]));
        let ready = json!({"ready": true, "serving": true, "terminating": false});
        let not_ready = json!({"ready": false, "serving": false, "terminating": false});
        assert_eq!(seen[0]["endpoints"][0]["conditions"], ready);
        assert_eq!(seen[0]["endpoints"][1]["conditions"], not_ready);
        assert_eq!(seen[0]["endpoints"][0]["hostname"], "h");
        assert_eq!(seen[0]["endpoints"][0]["targetRef"]["name"], "p0");
        assert_eq!(seen[1]["ports"][0]["port"], 9090);
    }

    #[test]
    fn pods_without_address_and_ended_pods_are_left_out() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let mut without = (*pod(0, true, 80)).clone();
        without.status.as_mut().unwrap().pod_ip = None;
        let mut ended = (*pod(1, true, 80)).clone();
        ended.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        let made = slices(&service, &[Arc::new(without), Arc::new(ended)]);
        assert_eq!(made.len(), 1, "an empty slice says that nobody answers");
        assert!(made[0].endpoints.is_empty() && made[0].ports.is_none());
    }

    #[test]
    fn many_pods_are_cut_into_slices_of_a_hundred() {
        let service = service(json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let pods: Vec<Arc<Pod>> = (0..250).map(|number| pod(number, true, 80)).collect();
        let sizes: Vec<usize> = slices(&service, &pods).iter().map(|slice| slice.endpoints.len()).collect();
        assert_eq!(sizes, [100, 100, 50]);
        assert_eq!(slices(&service, &pods)[0].labels()[HEADLESS], "");
    }

    #[test]
    fn addresses_that_are_not_ready_are_published_where_the_service_asks() {
        let spec = json!({"publishNotReadyAddresses": true, "selector": {"app": "web"}, "ports": [{"port": 80}]});
        let made = slices(&service(spec), &[pod(0, false, 80)]);
        let conditions = made[0].endpoints[0].conditions.as_ref().unwrap();
        assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
    }

    #[test]
    fn a_terminating_pod_still_serves_but_is_not_ready() {
        let mut pod = (*pod(0, true, 80)).clone();
        pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let conditions = endpoint(&pod, None, false).unwrap().conditions.unwrap();
        let seen = (conditions.ready, conditions.serving, conditions.terminating);
        assert_eq!(seen, (Some(false), Some(true), Some(true)));
    }

    #[test]
    fn what_is_as_wanted_is_not_written_again() {
        let service = service(json!({"selector": {"app": "web"}, "ports": [{"port": 80}]}));
        let made = slices(&service, &[pod(0, true, 80)]).remove(0);
        let mut stored = made.clone();
        stored.metadata.resource_version = Some("7".to_owned());
        assert!(is_as_wanted(&stored, &made));
        assert!(!is_as_wanted(&stored, &slices(&service, &[pod(0, false, 80)])[0]));
    }

    #[test]
    fn only_a_selector_that_names_something_selects() {
        let pod = pod(0, true, 80);
        assert!(selects(&service(json!({"selector": {"app": "web"}})), &pod));
        assert!(!selects(&service(json!({"selector": {"app": "other"}})), &pod));
        assert!(!selects(&service(json!({"selector": {}})), &pod));
        assert!(!selects(&service(json!({})), &pod));
    }
}
