//! The node's own objects: Node and Lease.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;

const LEASES: &str = "kube-node-lease";
/// Seconds after which a node that does not renew counts as gone.
const LEASE_SECONDS: u32 = 40;

/// What is known of the machine.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The node's name.
    pub name: String,
    /// Address of its own server, else its address on the pod network.
    pub address: String,
    /// Port of its own server, where it has one.
    pub server_port: Option<u16>,
    /// Most pods.
    pub max_pods: usize,
    /// Range of its pods' addresses.
    pub pod_range: String,
    /// Whether pods have user namespaces, and why not.
    pub user_namespaces: Result<(), String>,
}

/// Makes the Node object and sets its status.
///
/// # Errors
///
/// When the API server refuses.
pub async fn register(client: &Client, facts: &Facts) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    let node: Node = serde_json::from_value(object(facts)).map_err(kube::Error::SerdeError)?;
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {
            nodes.patch(&facts.name, &PatchParams::default(), &Patch::Merge(object(facts))).await?;
        }
        Err(error) => return Err(error),
    }
    let status = json!({"status": status(facts, Timestamp::now())});
    nodes.patch_status(&facts.name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    Ok(())
}

/// Removes both objects.
pub async fn unregister(client: &Client, name: &str) {
    // The API server may be on its way out too.
    let _ = Api::<Lease>::namespaced(client.clone(), LEASES).delete(name, &DeleteParams::default()).await;
    let _ = Api::<Node>::all(client.clone()).delete(name, &DeleteParams::default()).await;
}

fn object(facts: &Facts) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": facts.name,
            "labels": {
                "kubernetes.io/hostname": facts.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": arch(),
                "node.colibri.dev/runtime": "sandbox",
                "node.colibri.dev/user-namespaces": facts.user_namespaces.is_ok().to_string(),
            },
        },
        "spec": {"podCIDR": facts.pod_range, "podCIDRs": [facts.pod_range]},
    })
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn status(facts: &Facts, now: Timestamp) -> serde_json::Value {
    let condition = |kind: &str, status: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if status { "True" } else { "False" }, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    let (namespaces, why) = match &facts.user_namespaces {
        Ok(()) => (true, "pods have user namespaces with id-mapped layers"),
        Err(why) => (false, why.as_str()),
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let capacity =
        json!({"cpu": cores.to_string(), "memory": format!("{}Ki", memory_kib()), "pods": facts.max_pods.to_string()});
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = concat!("v1.35.0+colibri-", env!("CARGO_PKG_VERSION"));
    json!({
        "daemonEndpoints": {"kubeletEndpoint": {"Port": facts.server_port.unwrap_or(0)}},
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [
            {"type": "InternalIP", "address": facts.address},
            {"type": "Hostname", "address": facts.name},
        ],
        "conditions": [
            condition("MemoryPressure", false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("UserNamespaces", namespaces, if namespaces { "Supported" } else { "Unsupported" }, why),
            condition("Ready", true, "KubeletReady", "the node takes pods"),
        ],
        "nodeInfo": {
            "architecture": arch(), "operatingSystem": "linux", "kernelVersion": kernel.trim(), "osImage": os_name(),
            "kubeletVersion": version, "kubeProxyVersion": "",
            "containerRuntimeVersion": concat!("colibri://", env!("CARGO_PKG_VERSION")),
            "machineID": "", "systemUUID": "", "bootID": "",
        },
    })
}

fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_string()
}

/// Renews the Lease until `stop`.
pub async fn keep_lease(client: Client, name: String, period: Duration, stop: CancellationToken) {
    let leases = Api::<Lease>::namespaced(client, LEASES);
    loop {
        if let Err(error) = renew(&leases, &name).await {
            warn!(%error, "the node's lease was not renewed");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(period) => {}
        }
    }
}

async fn renew(leases: &Api<Lease>, name: &str) -> Result<(), kube::Error> {
    // Times of Leases have microseconds.
    let now = format!("{:.6}", Timestamp::now());
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now});
    let patch = json!({"spec": spec});
    match leases.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            let lease = json!({"metadata": {"name": name, "namespace": LEASES}, "spec": spec});
            let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
            leases.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}
