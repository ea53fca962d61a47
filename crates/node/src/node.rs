//! The node as a whole: started, told about pods, shut down.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use client::images::{ImageError, ImageResolver, RegistryAuth};
use client::kubelet::{Kubelet, KubeletError, LogOptions, LogStream, PodReference, Summary};
use client::{Caches, Change};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use store::cas::Cas;
use supervisor::{ContainerSpec, Event, Limits, PodConfig, Request, Root, UserSpec};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::Config;
use crate::events::Events;
use crate::images::Images;
use crate::logs::LogDir;
use crate::network::{self, Network, Resolve};
use crate::pod::env::Own;
use crate::pod::past::{self, Now};
use crate::pod::prepare::Supplies;
use crate::pod::status::{self, Addresses};
use crate::pod::worker::{Shared, SharedPlace, Wish, Worker};
use crate::pod::{spec, worker};
use crate::registration::{self, Facts};
use crate::sandbox::found::{self, Found};
use crate::sandbox::{PodNetwork, SandboxConfig, SandboxError, Sandboxes};
use crate::usage::{Measured, Meter};

/// Time for the workers beyond the pods' own grace when the node shuts down.
const SHUTDOWN_SLACK: Duration = Duration::from_secs(10);

/// Why the node could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The pod network could not be made.
    #[error("the pod network could not be made")]
    Network(#[from] network::NetworkError),
    /// Sandboxes could not be made.
    #[error("sandboxes could not be made")]
    Sandbox(#[from] SandboxError),
    /// The store of images could not be opened.
    #[error("the image store could not be opened: {0}")]
    Images(String),
    /// The Node object was refused.
    #[error("the node could not register itself")]
    Register(#[from] kube::Error),
}

struct Running {
    namespace: String,
    name: String,
    wishes: watch::Sender<Wish>,
    logs: Arc<LogDir>,
    place: SharedPlace,
}

impl Running {
    fn is_over(&self) -> bool {
        matches!(&*self.wishes.borrow(), Wish::Pod(pod) if past::is_over(pod))
    }
}

/// A running node.
pub struct Node {
    config: Config,
    client: Client,
    shared: Arc<Shared>,
    network: Network,
    pods: Mutex<HashMap<String, Running>>,
    /// Pods that found no place, by uid; the first of them gets the next one.
    waiting: Mutex<BTreeMap<String, Arc<Pod>>>,
    /// What an earlier node left of pods, by uid, until their objects are seen.
    found: Mutex<HashMap<String, Found>>,
    meter: Arc<Meter>,
    workers: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    /// Takes over the pods that a platform of the same data directory left running, removes what else it left, makes
    /// network and sandboxes, registers, and runs the pods that are bound to it. `resolve` answers names on the pod
    /// network. Tasks end by `stop`; pods by [`Node::shutdown`] alone.
    ///
    /// # Errors
    ///
    /// [`NodeError`]. What was made by then is removed; pods that run go on.
    pub async fn start(
        config: Config,
        client: Client,
        caches: Arc<Caches>,
        resolve: Arc<dyn Resolve>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, NodeError> {
        let images = open_images(&config)?;
        let stop = stop.child_token();
        let mut found = found::find(&config.data_dir.join("pods")).await;
        let live = found.iter().map(|found| found.sandbox.address).collect();
        let network_config = network::Config { live, ..network::Config::new(&config.data_dir) };
        let network = Network::start(network_config, resolve, CancellationToken::new()).await?;
        found.retain(|found| network.is_live(found.sandbox.address));
        let any = !found.is_empty();
        let made = Self::assemble(config, client, images, network.clone(), found, &tasks, &stop).await;
        match made {
            Ok(node) => {
                node.take_over(&caches).await;
                node.start_meter(&tasks);
                crate::services::start(&network, &caches, &tasks, &stop);
                Ok(node)
            }
            Err(error) => {
                stop.cancel();
                // The first error is the one that matters.
                if any {
                    network.detach_platform().await;
                } else {
                    let _ = network.stop().await;
                }
                Err(error)
            }
        }
    }

    async fn assemble(
        config: Config,
        client: Client,
        images: Images,
        network: Network,
        found: Vec<Found>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, NodeError> {
        let (sandboxes, user_namespaces) = start_sandboxes(&config, &found, &network, tasks, stop).await?;
        let facts = Facts {
            name: config.name.clone(),
            address: config.server.map_or_else(|| network.gateway_address().into(), |server| server.ip()).to_string(),
            server_port: config.server.map(|server| server.port()),
            max_pods: config.max_pods,
            pod_range: network.pod_range().to_string(),
            user_namespaces,
        };
        if let Err(error) = registration::register(&client, &facts).await {
            sandboxes.leave().await;
            return Err(error.into());
        }
        let lease = registration::keep_lease(client.clone(), config.name.clone(), config.lease_period, stop.clone());
        tasks.spawn(lease);
        let own = Own { pod_ip: String::new(), host_ip: facts.address.clone(), node: config.name.clone() };
        let supplies = Supplies { config: config.clone(), client: client.clone(), images, network: network.clone() };
        let events = Events::start(config.name.clone(), client.clone(), tasks, stop.clone());
        let shared = Shared { supplies: Arc::new(supplies), sandboxes, own, events };
        Ok(Arc::new(Self {
            config,
            client,
            shared: Arc::new(shared),
            network,
            pods: Mutex::default(),
            waiting: Mutex::default(),
            found: Mutex::new(found.into_iter().map(|found| (found.uid.clone(), found)).collect()),
            meter: Arc::default(),
            workers: TaskTracker::new(),
            stop: stop.clone(),
        }))
    }

    /// Gives each pod of this node a worker, now and when more come, and removes what belongs to none.
    async fn take_over(self: &Arc<Self>, caches: &Arc<Caches>) {
        let pods = caches.of::<Pod>();
        pods.synced().await;
        self.forget_addresses(&pods.list()).await;
        let node = Arc::downgrade(self);
        pods.subscribe(move |change| {
            if let Some(node) = node.upgrade() {
                node.pod_changed(change);
            }
        });
        let orphans: Vec<Found> = self.found.lock().drain().map(|(_, found)| found).collect();
        let logs: HashSet<OsString> = {
            let pods = self.pods.lock();
            pods.values().filter_map(|running| running.logs.path().file_name().map(OsString::from)).collect()
        };
        let node = self.clone();
        self.workers.spawn(async move {
            for orphan in &orphans {
                info!(sandbox = orphan.sandbox.name, "removing a sandbox whose pod is gone");
            }
            let removals = orphans.into_iter().map(|found| node.shared.sandboxes.destroy(found.sandbox));
            futures::future::join_all(removals).await;
        });
        remove_old_logs(&self.config.data_dir.join("logs"), &logs);
    }

    fn start_meter(self: &Arc<Self>, tasks: &TaskTracker) {
        let (meter, sandboxes) = (self.meter.clone(), self.shared.sandboxes.clone());
        let (name, node, stop) = (self.config.name.clone(), Arc::downgrade(self), self.stop.clone());
        let pods = move || node.upgrade().map(|node| node.measured()).unwrap_or_default();
        tasks.spawn(async move { meter.run(name, sandboxes, pods, stop).await });
    }

    /// The pods that run here, and where.
    fn measured(&self) -> Vec<Measured> {
        let pods = self.pods.lock();
        let placed = pods.iter().filter_map(|(uid, running)| {
            let place = running.place.lock().clone()?;
            let (namespace, name) = (running.namespace.clone(), running.name.clone());
            Some(Measured { pod: PodReference { name, namespace, uid: uid.clone() }, place })
        });
        placed.collect()
    }

    /// Tells the API server of the pods that ran once and have no sandbox any more, so that nobody sends them a request
    /// while another pod may get their address.
    async fn forget_addresses(&self, pods: &[Arc<Pod>]) {
        let ours = pods.iter().filter(|pod| self.is_ours(pod) && !past::is_over(pod));
        let lost = ours.filter(|pod| {
            let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref());
            address.is_some_and(|address| !address.is_empty()) && !self.found.lock().contains_key(&uid_of(pod))
        });
        let now = Now::get();
        let writes = lost.map(|pod| async move {
            let machine = past::lost(pod, |_| 0, now);
            let addresses = Addresses { pod: String::new(), host: self.shared.own.host_ip.clone() };
            let status = status::make(pod, &machine, &addresses, now.wall);
            if let Err(error) = worker::patch_status(&self.client, pod, &status).await {
                warn!(%error, "a pod's status could not be written; its worker tries again");
            }
        });
        futures::future::join_all(writes).await;
    }

    fn is_ours(&self, pod: &Pod) -> bool {
        pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&self.config.name)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The address on the pod network where gateway and API server are reached by pods.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.network.gateway_address()
    }

    /// The image store.
    pub fn images(&self) -> Images {
        self.shared.supplies.images.clone()
    }

    /// The pod network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Pods that are on this node now, those that have ended among them.
    pub fn pods(&self) -> usize {
        self.pods.lock().len()
    }

    fn pod_changed(self: &Arc<Self>, change: &Change<Pod>) {
        let (old, new) = (change.old.as_deref().map(uid_of), change.new.as_deref().map(uid_of));
        if let Some(old) = &old
            && new.as_ref() != Some(old)
            && let Some(running) = self.pods.lock().get(old)
        {
            running.wishes.send_replace(Wish::Gone);
        }
        if let Some(old) = &old {
            self.waiting.lock().remove(old);
        }
        if let Some(pod) = change.new.as_ref().filter(|pod| self.is_ours(pod)) {
            self.admit(uid_of(pod), pod);
            if past::is_over(pod) {
                self.admit_next();
            }
        }
    }

    /// Gives the place that has become free to a pod that waits for one.
    fn admit_next(self: &Arc<Self>) {
        let next = self.waiting.lock().pop_first();
        if let Some((uid, pod)) = next {
            self.admit(uid, &pod);
        }
    }

    fn admit(self: &Arc<Self>, uid: String, pod: &Arc<Pod>) {
        let mut pods = self.pods.lock();
        if let Some(running) = pods.get(&uid) {
            running.wishes.send_if_modified(|wish| {
                let open = matches!(wish, Wish::Pod(_));
                if open {
                    *wish = Wish::Pod(pod.clone());
                }
                open
            });
            return;
        }
        if self.stop.is_cancelled() {
            return;
        }
        let found = self.found.lock().remove(&uid);
        // As for a kubelet: a pod that has ended takes no place, although its logs are kept until it is deleted.
        let places = pods.values().filter(|running| !running.is_over()).count();
        if places >= self.config.max_pods && found.is_none() && !past::is_over(pod) {
            warn!(pods = places, "the node is full, a pod waits");
            self.waiting.lock().insert(uid, pod.clone());
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let logs = LogDir::open(self.config.data_dir.join("logs").join(format!("{namespace}_{name}_{uid}")));
        let (wishes, receiver) = watch::channel(Wish::Pod(pod.clone()));
        let place = SharedPlace::default();
        let worker = Worker::new(self.shared.clone(), pod.clone(), found, receiver, logs.clone(), place.clone());
        pods.insert(uid.clone(), Running { namespace, name, wishes, logs, place });
        let node = self.clone();
        self.workers.spawn(async move {
            worker.run().await;
            node.pods.lock().remove(&uid);
            node.admit_next();
        });
    }

    /// Ends all pods within the configured grace and leaves nothing of the node behind: no process, cgroup, mount,
    /// namespace, link, rule or socket.
    pub async fn shutdown(&self) {
        let grace = self.config.shutdown_grace;
        if !self.end_workers(&Wish::Shutdown(grace), grace + SHUTDOWN_SLACK).await {
            warn!("some pods did not end in time; what they hold is removed by force");
        }
        self.shared.sandboxes.shutdown().await;
        registration::unregister(&self.client, &self.config.name).await;
        if let Err(error) = self.network.stop().await {
            warn!(error = &error as &dyn std::error::Error, "the pod network was not removed completely");
        }
        info!("the node is down");
    }

    /// Ends the node and leaves its pods running, for the next start on the same data directory to take over.
    pub async fn leave(&self) {
        if !self.end_workers(&Wish::Leave, SHUTDOWN_SLACK).await {
            warn!("some pods were not let go in time");
        }
        self.shared.sandboxes.leave().await;
        self.network.detach_platform().await;
        info!(pods = self.pods(), "the node is down, its pods go on");
    }

    /// Ends a node whose platform could not start: pods that it took over go on, and nothing else of it is left.
    pub async fn give_up(&self) {
        if self.pods() > 0 { self.leave().await } else { self.shutdown().await }
    }

    /// Whether all workers ended in time.
    async fn end_workers(&self, wish: &Wish, limit: Duration) -> bool {
        self.stop.cancel();
        for running in self.pods.lock().values() {
            running.wishes.send_replace(wish.clone());
        }
        self.workers.close();
        tokio::time::timeout(limit, self.workers.wait()).await.is_ok()
    }
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

fn open_images(config: &Config) -> Result<Images, NodeError> {
    let cas = Cas::open(&config.data_dir.join("content")).map_err(|error| NodeError::Images(error.to_string()))?;
    let dir = config.data_dir.join("images");
    Images::open(&dir, cas, config.images.clone()).map_err(|error| NodeError::Images(error.text()))
}

/// Removes the logs of pods that are gone.
fn remove_old_logs(dir: &std::path::Path, keep: &HashSet<OsString>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !keep.contains(&entry.file_name())
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            warn!(%error, path = %entry.path().display(), "the logs of a pod that is gone could not be removed");
        }
    }
}

/// The sandboxes, with user namespaces where the kernel and the disk can; else why not.
async fn start_sandboxes(
    config: &Config,
    found: &[Found],
    network: &Network,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(Arc<Sandboxes>, Result<(), String>), NodeError> {
    let hash = hex::encode(Sha256::digest(config.data_dir.as_os_str().as_encoded_bytes()));
    let mut sandbox_config = SandboxConfig {
        dir: config.data_dir.join("pods"),
        prepared: config.prepared,
        cgroup: format!("colibri-{}", &hash[..8]),
        user_namespace: config.user_namespace,
    };
    let wires: Arc<dyn PodNetwork> = Arc::new(network.clone());
    let keep: BTreeSet<String> = found.iter().map(|found| found.sandbox.name.clone()).collect();
    let known = found.iter().any(|found| found.state.user_namespace);
    let why_not = if config.user_namespace.is_none() {
        "user namespaces are turned off".to_string()
    } else if known {
        let sandboxes = Sandboxes::start(sandbox_config, &keep, wires, tasks, stop.child_token()).await?;
        return Ok((sandboxes, Ok(())));
    } else {
        // Its own stop: this one may end before the node does.
        let sandboxes =
            Sandboxes::start(sandbox_config.clone(), &keep, wires.clone(), tasks, stop.child_token()).await?;
        match try_user_namespace(config, &sandboxes).await {
            Ok(()) => return Ok((sandboxes, Ok(()))),
            Err(why) => {
                warn!(why, "pods have no user namespaces on this machine");
                sandboxes.leave().await;
                why
            }
        }
    };
    sandbox_config.user_namespace = None;
    let sandboxes = Sandboxes::start(sandbox_config, &keep, wires, tasks, stop.child_token()).await?;
    Ok((sandboxes, Err(why_not)))
}

/// Starts a container of one empty layer where layers lie: all but the program must be there.
async fn try_user_namespace(config: &Config, sandboxes: &Sandboxes) -> Result<(), String> {
    let layer = config.data_dir.join("images").join("probe");
    std::fs::create_dir_all(&layer).map_err(|error| error.to_string())?;
    let mut sandbox = sandboxes.take("probe").await.map_err(|error| match error {
        SandboxError::Supervisor(why) => why,
        other => other.to_string(),
    })?;
    let probe = ContainerSpec {
        name: "probe".into(),
        run: 0,
        note: String::new(),
        root: Root::Layers(vec![layer.clone()]),
        read_only_root: false,
        mounts: Vec::new(),
        args: vec!["/nothing".into()],
        env: Vec::new(),
        cwd: "/".into(),
        user: UserSpec::default(),
        capabilities: spec::DEFAULT_CAPABILITIES.to_vec(),
        allow_privilege_escalation: false,
        unconfined: false,
        limits: Limits::default(),
        log: sandbox.dir.join("probe.log"),
        termination_log: "/dev/termination-log".into(),
        message_from_log: false,
    };
    let asked = async {
        sandbox.link.send(&Request::Configure(PodConfig { hostname: "probe".into(), ..PodConfig::default() })).await?;
        sandbox.link.send(&Request::Start(Box::new(probe))).await?;
        loop {
            match sandbox.link.next().await? {
                Some(Event::Failed { failure, .. }) => return Ok(failure.message),
                Some(_) => {}
                None => return Ok("the supervisor ended".into()),
            }
        }
    };
    let answer: Result<String, supervisor::FrameError> = asked.await;
    sandboxes.destroy(sandbox).await;
    // Its removal is only tidiness.
    let _ = std::fs::remove_dir(&layer);
    match answer {
        Ok(message) if message.starts_with("exec:") => Ok(()),
        Ok(message) => Err(message),
        Err(error) => Err(error.to_string()),
    }
}

impl PodNetwork for Network {
    fn attach(&self, pid: u32) -> BoxFuture<'_, Result<Ipv4Addr, String>> {
        Box::pin(async move {
            let attached = self.attach_process(pid).await;
            attached.map(|pod| pod.address).map_err(|error| error.to_string())
        })
    }

    fn release(&self, address: Ipv4Addr) -> BoxFuture<'_, ()> {
        Box::pin(async move { Network::release(self, address) })
    }
}

impl Kubelet for Node {
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, KubeletError>> {
        let found = {
            let pods = self.pods.lock();
            let running = pods.values().find(|running| running.namespace == namespace && running.name == pod);
            running.map(|running| (running.logs.clone(), running.wishes.borrow().clone()))
        };
        let name = format!("{namespace}/{pod}");
        Box::pin(async move {
            let (logs, wish) = found.ok_or(KubeletError::UnknownPod(name))?;
            let container = match (&options.container, &wish) {
                (Some(container), _) => container.clone(),
                (None, Wish::Pod(pod)) => only_container(pod)?,
                (None, _) => return Err(KubeletError::BadRequest("the pod is gone".into())),
            };
            logs.read(&container, &options)
        })
    }

    fn usage(&self) -> Summary {
        Summary::clone(&self.meter.latest())
    }
}

fn only_container(pod: &Pod) -> Result<String, KubeletError> {
    let names: Vec<&str> = pod.spec.iter().flat_map(|spec| &spec.containers).map(|c| c.name.as_str()).collect();
    match names.as_slice() {
        [name] => Ok((*name).to_string()),
        _ => Err(KubeletError::BadRequest(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            pod.metadata.name.as_deref().unwrap_or_default(),
            names.join(" ")
        ))),
    }
}

impl ImageResolver for Node {
    fn resolve(&self, reference: String, auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        ImageResolver::resolve(&self.shared.supplies.images, reference, auth)
    }
}
