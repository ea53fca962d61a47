//! Nodes that run nothing: a pod is a little program of delays and failures, told by its status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use api::serving::annotations::REVISION_LABEL;
use base::Backoff;
use client::{Caches, Change};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::checks::{Checks, service_of};
use crate::dice::Dice;
use crate::network::{Network, PodServer};
use crate::note;
use crate::trace::Trace;
use crate::wire::Wire;

/// Part of an image's name that makes its containers end at their start.
pub const CRASHES: &str = "crash";
/// Time after which a node that says nothing is called not ready.
const NODE_GRACE: Duration = Duration::from_secs(40);
/// Time after which the pods of such a node are deleted.
const EVICTION: Duration = Duration::from_secs(60);
/// Time between two looks at a pod that ends.
const DRAIN_STEP: Duration = Duration::from_millis(50);

/// How fast pods come up, in milliseconds: each takes a time from the range.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From the binding to the address.
    pub sandbox: Range<u64>,
    /// From then until the container listens.
    pub container: Range<u64>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { sandbox: 2..40, container: 10..400 }
    }
}

/// All nodes of the world.
pub struct Nodes {
    client: Client,
    network: Arc<Network>,
    checks: Arc<Checks>,
    wire: Arc<Wire>,
    trace: Arc<Trace>,
    dice: Dice,
    pace: Mutex<Pace>,
    /// Whether a node is lost.
    lost: BTreeMap<String, watch::Sender<bool>>,
    pods: Mutex<BTreeMap<String, Known>>,
}

/// A pod that a node knows.
struct Known {
    seen: watch::Sender<Seen>,
    server: Arc<PodServer>,
    node: String,
}

/// What the cache said of a pod last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Seen {
    deleted: bool,
    gone: bool,
}

/// What becomes of a container.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Runs,
    StartsLate(Duration),
    EndsAfter(Duration),
    FailsAfter(Duration),
}

/// A running container as its status tells it.
struct Told<'t> {
    phase: &'t str,
    ready: bool,
    restarts: u32,
    state: Value,
    last: Value,
}

impl Nodes {
    /// Registers `names` and begins to run the pods that are bound to them.
    ///
    /// # Errors
    ///
    /// When the API server refuses a node.
    pub async fn start(
        names: &[&str],
        caches: &Caches,
        network: Arc<Network>,
        checks: Arc<Checks>,
        wire: Arc<Wire>,
        trace: Arc<Trace>,
        dice: Dice,
    ) -> anyhow::Result<Arc<Self>> {
        let client = caches.client().clone();
        let api = Api::<Node>::all(client.clone());
        for name in names {
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
            set_node_ready(&client, name, true).await?;
        }
        let lost = names.iter().map(|name| ((*name).to_owned(), watch::Sender::new(false))).collect();
        let (pace, pods) = (Mutex::default(), Mutex::default());
        let nodes = Arc::new(Self { client, network, checks, wire, trace, dice, pace, lost, pods });
        let this = nodes.clone();
        caches.of::<Pod>().subscribe(move |change| this.changed(change));
        Ok(nodes)
    }

    /// From now on pods come up that fast.
    pub fn set_pace(&self, pace: Pace) {
        *self.pace.lock() = pace;
    }

    /// Names of the nodes.
    pub fn names(&self) -> Vec<String> {
        self.lost.keys().cloned().collect()
    }

    /// Pods that a node still holds.
    pub fn held(&self) -> usize {
        self.pods.lock().len()
    }

    /// The node cannot be reached for that time. After a while the cluster calls it not ready, then deletes its pods.
    pub async fn lose(&self, node: &str, time: Duration) {
        note!(self.trace, "node {node} is lost for {time:?}");
        self.set_lost(node, true);
        let end = Instant::now() + time;
        sleep(NODE_GRACE.min(time)).await;
        if Instant::now() < end {
            retry(|| set_node_ready(&self.client, node, false)).await;
            self.each_pod(node, |pod| self.call_ready(pod, false)).await;
            sleep(EVICTION.min(end - Instant::now())).await;
        }
        if Instant::now() < end {
            self.each_pod(node, |pod| self.evict(pod)).await;
            sleep(end - Instant::now()).await;
        }
        note!(self.trace, "node {node} is back");
        self.set_lost(node, false);
        retry(|| set_node_ready(&self.client, node, true)).await;
        self.each_pod(node, |pod| async move {
            if pod.listens() {
                self.call_ready(pod, true).await;
            }
        })
        .await;
    }

    fn set_lost(&self, node: &str, lost: bool) {
        for known in self.pods.lock().values().filter(|known| known.node == node) {
            known.server.set_unreachable(lost);
            self.checks.broke(&known.server.namespace, &known.server.service);
            if lost {
                self.checks.excuse(&known.server.namespace, &known.server.name);
            }
        }
        self.lost[node].send_replace(lost);
    }

    async fn each_pod<F: Future<Output = ()>>(&self, node: &str, work: impl Fn(Arc<PodServer>) -> F) {
        let pods: Vec<Arc<PodServer>> = {
            let pods = self.pods.lock();
            pods.values().filter(|known| known.node == node).map(|known| known.server.clone()).collect()
        };
        for pod in pods {
            work(pod).await;
        }
    }

    async fn call_ready(&self, pod: Arc<PodServer>, ready: bool) {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        retry(|| async {
            let patched = api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(&patch)).await;
            unless_gone(patched.map(drop))
        })
        .await;
    }

    async fn evict(&self, pod: Arc<PodServer>) {
        self.checks.excuse(&pod.namespace, &pod.name);
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        retry(|| async { unless_gone(api.delete(&pod.name, &DeleteParams::default()).await.map(drop)) }).await;
    }

    fn changed(self: &Arc<Self>, change: &Change<Pod>) {
        let pod = change.object();
        let uid = pod.uid().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let Some(node) = node.filter(|node| self.lost.contains_key(node)) else { return };
        let deleted = change.new.as_ref().is_none_or(|pod| pod.metadata.deletion_timestamp.is_some());
        let now = Seen { deleted, gone: change.new.is_none() };
        let mut pods = self.pods.lock();
        if let Some(known) = pods.get(&uid) {
            known.seen.send_if_modified(|seen| std::mem::replace(seen, now) != now);
            return;
        }
        if now.gone {
            return;
        }
        let revision = pod.labels().get(REVISION_LABEL).cloned().unwrap_or_default();
        let namespace = pod.namespace().unwrap_or_default();
        let server = PodServer::new(namespace, pod.name_any(), service_of(pod), revision);
        server.set_unreachable(*self.lost[&node].borrow());
        let (seen, watching) = watch::channel(now);
        pods.insert(uid, Known { seen, server: server.clone(), node: node.clone() });
        tokio::spawn(self.clone().run(pod.clone(), server, node, watching));
    }

    /// Waits while the node is lost.
    async fn reachable(&self, node: &str) {
        // The sender lives as long as the world.
        let _ = self.lost[node].subscribe().wait_for(|lost| !lost).await;
    }

    async fn run(
        self: Arc<Self>,
        pod: Arc<Pod>,
        server: Arc<PodServer>,
        node: String,
        mut seen: watch::Receiver<Seen>,
    ) {
        self.reachable(&node).await;
        let mut address = None;
        // Once its program is over nothing more happens to it until somebody deletes it.
        let life = async {
            self.live(&pod, &server, &node, &mut address).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            _ = seen.wait_for(|seen| seen.deleted) => {}
            () = life => {}
        }
        self.reachable(&node).await;
        let grace = pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        let end = Instant::now() + Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        while server.in_flight() > 0 && Instant::now() < end {
            sleep(DRAIN_STEP).await;
        }
        sleep(self.dice.millis(5..100)).await;
        server.end();
        self.reachable(&node).await;
        let api = Api::<Pod>::namespaced(self.client.clone(), &server.namespace);
        let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
        let now = DeleteParams { grace_period_seconds: Some(0), preconditions, ..DeleteParams::default() };
        retry(|| async { unless_gone(api.delete(&server.name, &now).await.map(drop)) }).await;
        if let Some(address) = address {
            self.network.detach(address);
        }
        self.pods.lock().remove(&pod.uid().unwrap_or_default());
    }

    /// From the sandbox to the last state of the pod's container.
    async fn live(&self, pod: &Pod, server: &Arc<PodServer>, node: &str, address: &mut Option<IpAddr>) {
        let pace = self.pace.lock().clone();
        sleep(self.dice.millis(pace.sandbox)).await;
        let ip = loop {
            if let Some(ip) = self.network.attach(server.clone()) {
                break ip;
            }
            sleep(Duration::from_secs(1)).await;
        };
        *address = Some(ip);
        let waiting = || json!({"waiting": {"reason": "ContainerCreating"}});
        let created = Told { phase: "Pending", ready: false, restarts: 0, state: waiting(), last: Value::Null };
        self.tell(pod, node, ip, created).await;
        let crashes = pod.spec.as_ref().is_some_and(|spec| {
            spec.containers.iter().any(|container| container.image.as_deref().unwrap_or_default().contains(CRASHES))
        });
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let mut last = Value::Null;
        for restarts in 0.. {
            let fate = if crashes { Fate::EndsAfter(Duration::ZERO) } else { self.fate() };
            match fate {
                Fate::StartsLate(delay) => {
                    self.in_trouble(delay).await;
                }
                _ => sleep(self.dice.millis(pace.container.clone())).await,
            }
            if !crashes {
                server.listen();
                let state = json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}});
                let running = Told { phase: "Running", ready: true, restarts, state, last };
                self.tell(pod, node, ip, running).await;
            }
            match fate {
                Fate::EndsAfter(_) if crashes => {}
                Fate::EndsAfter(time) | Fate::FailsAfter(time) if self.in_trouble(time).await => {}
                _ => return,
            }
            self.reachable(node).await;
            self.checks.broke(&server.namespace, &server.service);
            note!(self.trace, "the container of pod {}/{} ends", server.namespace, server.name);
            server.end();
            let ended = json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "it broke"}});
            if matches!(fate, Fate::FailsAfter(_)) {
                let failed = Told { phase: "Failed", ready: false, restarts, state: ended, last: Value::Null };
                return self.tell(pod, node, ip, failed).await;
            }
            last = ended;
            let state = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
            let restarts = restarts + 1;
            let told = Told { phase: "Running", ready: false, restarts, state, last: last.clone() };
            self.tell(pod, node, ip, told).await;
            sleep(backoff.next_delay()).await;
        }
    }

    /// Waits for that time, or until faults end; whether they did not.
    async fn in_trouble(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while Instant::now() < end && self.wire.has_faults() {
            sleep(Duration::from_secs(1).min(end - Instant::now())).await;
        }
        self.wire.has_faults()
    }

    fn fate(&self) -> Fate {
        if !self.wire.has_faults() {
            return Fate::Runs;
        }
        match self.dice.below(100) {
            0..8 => Fate::StartsLate(self.dice.seconds(2..40)),
            8..10 => Fate::StartsLate(self.dice.seconds(60..900)),
            10..19 => Fate::EndsAfter(self.dice.seconds(1..200)),
            19..24 => Fate::FailsAfter(self.dice.seconds(1..200)),
            _ => Fate::Runs,
        }
    }

    /// Writes the pod's status, until the API server takes it.
    async fn tell(&self, pod: &Pod, node: &str, ip: IpAddr, told: Told<'_>) {
        let ready = if told.ready { "True" } else { "False" };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let statuses: Vec<Value> = containers
            .map(|container| {
                let mut status = json!({
                    "name": container.name, "image": container.image, "imageID": "", "ready": told.ready,
                    "started": told.ready, "restartCount": told.restarts, "state": told.state,
                });
                if !told.last.is_null() {
                    status["lastState"] = told.last.clone();
                }
                status
            })
            .collect();
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status});
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {
            "phase": told.phase, "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.1",
            "containerStatuses": statuses,
            "conditions": [condition("PodScheduled", "True"), condition("Initialized", "True"),
                condition("ContainersReady", ready), condition("Ready", ready)],
        }});
        let pods = Request::new(Pod::url_path(&(), pod.namespace().as_deref()));
        let name = pod.name_any();
        retry(|| async {
            self.reachable(node).await;
            let patch = Patch::Merge(&patch);
            let request = pods.patch_subresource("status", &name, &PatchParams::default(), &patch);
            let request = request.map_err(kube::Error::BuildRequest)?;
            unless_gone(self.client.request_text(request).await.map(drop))
        })
        .await;
    }
}

async fn set_node_ready(client: &Client, node: &str, ready: bool) -> kube::Result<()> {
    let (status, taints) = if ready { ("True", json!([])) } else { ("Unknown", json!([])) };
    let api = Api::<Node>::all(client.clone());
    let patch = json!({"spec": {"taints": taints}, "status": {
        "capacity": {"cpu": "1000", "memory": "4Ti", "pods": "1000"},
        "allocatable": {"cpu": "1000", "memory": "4Ti", "pods": "1000"},
        "conditions": [{"type": "Ready", "status": status}],
    }});
    api.patch_status(node, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// Tries until it works.
async fn retry<F: Future<Output = kube::Result<()>>>(mut work: impl FnMut() -> F) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    while work().await.is_err() {
        sleep(backoff.next_delay()).await;
    }
}

fn unless_gone(result: kube::Result<()>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        // Another pod has the name, or this one was deleted and made anew.
        Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains("recondition") => Ok(()),
        other => other,
    }
}
