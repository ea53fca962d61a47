//! Feeds the pod network with the cluster's Services: each cluster address leads to the ready endpoints of its slices.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use client::{Cache, Caches, Queue, queue::Outcome, run_workers_after};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::network::{Network, NetworkError, Protocol, VirtualIp};

/// Label that leads from a slice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Changes within this time are one change of the rules.
const GATHER: Duration = Duration::from_millis(20);

/// Keeps the network's virtual addresses as the caches have them, until `stop`.
pub(crate) fn start(network: &Network, caches: &Caches, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<&'static str>::new();
    let (services, slices) = (caches.of::<Service>(), caches.of::<EndpointSlice>());
    let add = queue.clone();
    services.subscribe(move |change| {
        // The names of thousands of Routes are Services without an address.
        if [&change.old, &change.new].into_iter().flatten().any(|service| address_of(service).is_some()) {
            add.add_after("services", GATHER);
        }
    });
    // Whatever an earlier platform left goes, also where there is no Service any more.
    queue.add_after("services", GATHER);
    let add = queue.clone();
    slices.subscribe(move |_| add.add_after("services", GATHER));
    let network = network.clone();
    // Nothing is known of what an earlier platform left.
    let shown = Arc::new(parking_lot::Mutex::new(None));
    let (first_services, first_slices) = (services.clone(), slices.clone());
    let ready = async move {
        first_services.synced().await;
        first_slices.synced().await;
    };
    run_workers_after(ready, "services", &queue, 1, tasks, stop, move |_| {
        let (network, services, slices, shown) = (network.clone(), services.clone(), slices.clone(), shown.clone());
        async move {
            let wanted = virtual_addresses(&services, &slices);
            if shown.lock().as_ref() != Some(&wanted) {
                network.set_services(wanted.clone()).await?;
                *shown.lock() = Some(wanted);
            }
            Ok::<_, NetworkError>(Outcome::Done)
        }
    });
}

fn virtual_addresses(services: &Cache<Service>, slices: &Cache<EndpointSlice>) -> Vec<VirtualIp> {
    let mut found = Vec::new();
    for service in services.list() {
        let name = service.name_any();
        let own = |slice: &EndpointSlice| slice.labels().get(SERVICE_NAME) == Some(&name);
        if let Some(ip) = address_of(&service) {
            let slices = slices.select(&service.namespace().unwrap_or_default(), own);
            found.extend(ports_of(&service, ip, &slices));
        }
    }
    found
}

/// The cluster address, if it has one.
fn address_of(service: &Service) -> Option<Ipv4Addr> {
    service.spec.as_ref()?.cluster_ip.as_ref()?.parse().ok()
}

fn ports_of(service: &Service, ip: Ipv4Addr, slices: &[Arc<EndpointSlice>]) -> Vec<VirtualIp> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.as_deref().unwrap_or_default());
    let made = ports.filter_map(|port| {
        let protocol = protocol(port.protocol.as_deref())?;
        let mut backends: Vec<SocketAddrV4> = slices.iter().flat_map(|slice| backends(slice, port)).collect();
        backends.sort_unstable();
        backends.dedup();
        Some(VirtualIp { ip, port: u16::try_from(port.port).ok()?, protocol, backends })
    });
    made.collect()
}

fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// The ready endpoints of a slice for a port of the Service; the two are joined by the port's name.
fn backends(slice: &EndpointSlice, port: &ServicePort) -> Vec<SocketAddrV4> {
    let name = port.name.as_deref().unwrap_or_default();
    let same = |candidate: &&k8s_openapi::api::discovery::v1::EndpointPort| {
        candidate.name.as_deref().unwrap_or_default() == name
            && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
    };
    let target = slice.ports.iter().flatten().find(same).and_then(|found| found.port);
    let Some(number) = target.and_then(|number| u16::try_from(number).ok()) else { return Vec::new() };
    let ready = slice
        .endpoints
        .iter()
        .filter(|endpoint| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false));
    // All addresses of one endpoint lead to the same place: the first counts.
    let addresses = ready.filter_map(|endpoint| endpoint.addresses.first()?.parse::<Ipv4Addr>().ok());
    addresses.map(|address| SocketAddrV4::new(address, number)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn slice(ports: Value, endpoints: Value) -> Arc<EndpointSlice> {
        let labels = json!({SERVICE_NAME: "web"});
        let slice = json!({
            "metadata": {"name": "web-0", "namespace": "shop", "labels": labels},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        Arc::new(serde_json::from_value(slice).unwrap())
    }

    #[test]
    fn ports_and_endpoints_are_joined_by_name_and_protocol() {
        let service = service(json!({"clusterIP": "10.96.0.20", "ports": [
            {"name": "http", "port": 80, "targetPort": 8080},
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "sctp", "port": 99, "protocol": "SCTP"},
        ]}));
        let slice = slice(
            json!([{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}]),
            json!([
                {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.4"]},
                {"addresses": ["not an address"]},
            ]),
        );
        let ip = address_of(&service).unwrap();
        assert_eq!(ip, Ipv4Addr::new(10, 96, 0, 20));
        let seen: Vec<(u16, Protocol, Vec<String>)> = ports_of(&service, ip, &[slice])
            .into_iter()
            .map(|made| (made.port, made.protocol, made.backends.iter().map(ToString::to_string).collect()))
            .collect();
        let expected = [
            (80, Protocol::Tcp, vec!["10.1.0.2:8080".to_owned(), "10.1.0.4:8080".to_owned()]),
            (53, Protocol::Udp, vec!["10.1.0.2:5353".to_owned(), "10.1.0.4:5353".to_owned()]),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_service_without_an_address_has_no_rule_and_one_without_endpoints_refuses() {
        assert_eq!(address_of(&service(json!({"clusterIP": "None", "ports": [{"port": 80}]}))), None);
        assert_eq!(address_of(&service(json!({"ports": [{"port": 80}]}))), None);
        let lone = service(json!({"clusterIP": "10.96.0.20", "ports": [{"port": 80}]}));
        let made = ports_of(&lone, address_of(&lone).unwrap(), &[]);
        assert_eq!((made.len(), made[0].backends.len()), (1, 0));
    }
}
