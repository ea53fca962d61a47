//! Names that pods look up: services of the cluster, answered from the caches.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use api::serving::Route;
use client::{Cache, Caches};
use k8s_openapi::api::core::v1::{Pod, Service};
use node::network::Resolve;

/// Answers `NAME.NS.svc.DOMAIN`.
pub struct ClusterNames {
    services: Arc<Cache<Service>>,
    routes: Arc<Cache<Route>>,
    pods: Arc<Cache<Pod>>,
    gateway: OnceLock<Ipv4Addr>,
}

impl ClusterNames {
    /// Answers from `caches`.
    pub fn new(caches: &Caches) -> Self {
        Self { services: caches.of(), routes: caches.of(), pods: caches.of(), gateway: OnceLock::new() }
    }

    /// The address of gateway and API server on the pod network, once it is known.
    pub fn set_gateway(&self, address: Ipv4Addr) {
        // Set once, at start.
        let _ = self.gateway.set(address);
    }
}

impl Resolve for ClusterNames {
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        let gateway = || self.gateway.get().map(|address| vec![IpAddr::V4(*address)]);
        let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
        let [service, namespace, "svc", ..] = labels.as_slice() else { return None };
        if (*service, *namespace) == ("kubernetes", "default")
            || (*service, *namespace) == ("gateway", api::SYSTEM_NAMESPACE)
        {
            return gateway();
        }
        if self.routes.get(namespace, service).is_some() {
            return gateway();
        }
        let found = self.services.get(namespace, service)?;
        let spec = found.spec.as_ref()?;
        match spec.cluster_ip.as_deref() {
            Some(address) if address != "None" && !address.is_empty() => Some(vec![address.parse().ok()?]),
            _ => Some(self.headless(namespace, spec.selector.as_ref()?)),
        }
    }
}

impl ClusterNames {
    fn headless(&self, namespace: &str, selector: &std::collections::BTreeMap<String, String>) -> Vec<IpAddr> {
        let matches = |pod: &Pod| {
            let labels = pod.metadata.labels.as_ref();
            selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
        };
        let pods = self.pods.select(namespace, matches);
        pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok()).collect()
    }
}
