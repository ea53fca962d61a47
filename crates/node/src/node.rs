//! The node as a whole: started, told about pods, shut down.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::images::{ImageError, ImageResolver, RegistryAuth};
use client::kubelet::{Kubelet, KubeletError, LogOptions, LogStream};
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
use crate::pod::prepare::Supplies;
use crate::pod::spec;
use crate::pod::worker::{Shared, Wish, Worker};
use crate::registration::{self, Facts};
use crate::sandbox::{PodNetwork, SandboxConfig, SandboxError, Sandboxes};

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
}

/// A running node.
pub struct Node {
    config: Config,
    client: Client,
    shared: Arc<Shared>,
    network: Network,
    pods: Mutex<HashMap<String, Running>>,
    workers: TaskTracker,
    stop: CancellationToken,
}

impl Node {
    /// Removes what a killed platform of the same data directory left, makes network and sandboxes, registers, and
    /// runs the pods that are bound to it. `resolve` answers names on the pod network. Tasks end by `stop`; pods by
    /// [`Node::shutdown`] alone.
    ///
    /// # Errors
    ///
    /// [`NodeError`]. What was made by then is removed.
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
        remove_old_logs(&config.data_dir);
        let network_config = network::Config::new(&config.data_dir);
        let network = Network::start(network_config, resolve, CancellationToken::new()).await?;
        let made = Self::assemble(config, client, images, network.clone(), &tasks, &stop).await;
        match made {
            Ok(node) => {
                node.watch(&caches);
                crate::services::start(&network, &caches, &tasks, &stop);
                Ok(node)
            }
            Err(error) => {
                stop.cancel();
                // The first error is the one that matters.
                let _ = network.stop().await;
                Err(error)
            }
        }
    }

    async fn assemble(
        config: Config,
        client: Client,
        images: Images,
        network: Network,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Arc<Self>, NodeError> {
        let (sandboxes, user_namespaces) = start_sandboxes(&config, &network, tasks, stop).await?;
        let facts = Facts {
            name: config.name.clone(),
            address: network.gateway_address().to_string(),
            max_pods: config.max_pods,
            pod_range: network.pod_range().to_string(),
            user_namespaces,
        };
        if let Err(error) = registration::register(&client, &facts).await {
            sandboxes.shutdown().await;
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
            workers: TaskTracker::new(),
            stop: stop.clone(),
        }))
    }

    fn watch(self: &Arc<Self>, caches: &Arc<Caches>) {
        let node = Arc::downgrade(self);
        caches.of::<Pod>().subscribe(move |change| {
            if let Some(node) = node.upgrade() {
                node.pod_changed(change);
            }
        });
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

    /// Pods that are on this node now.
    pub fn pods(&self) -> usize {
        self.pods.lock().len()
    }

    fn pod_changed(self: &Arc<Self>, change: &Change<Pod>) {
        let uid_of = |pod: &Arc<Pod>| pod.metadata.uid.clone().unwrap_or_default();
        let (old, new) = (change.old.as_ref().map(uid_of), change.new.as_ref().map(uid_of));
        if let Some(old) = &old
            && new.as_ref() != Some(old)
            && let Some(running) = self.pods.lock().get(old)
        {
            running.wishes.send_replace(Wish::Gone);
        }
        let Some(pod) = &change.new else { return };
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) != Some(&self.config.name) {
            return;
        }
        self.admit(uid_of(pod), pod);
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
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = matches!(phase, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none();
        if over || self.stop.is_cancelled() {
            return;
        }
        if pods.len() >= self.config.max_pods {
            warn!(pods = pods.len(), "the node is full, a pod waits");
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let logs = LogDir::new(self.config.data_dir.join("logs").join(format!("{namespace}_{name}_{uid}")));
        let (wishes, receiver) = watch::channel(Wish::Pod(pod.clone()));
        // The first value counts as news, so that a deletion that came with it is seen.
        let worker = Worker::new(self.shared.clone(), pod.clone(), receiver, logs.clone());
        pods.insert(uid.clone(), Running { namespace, name, wishes, logs });
        let node = self.clone();
        self.workers.spawn(async move {
            worker.run().await;
            node.pods.lock().remove(&uid);
        });
    }

    /// Ends all pods within the configured grace and leaves nothing of the node behind: no process, cgroup, mount,
    /// namespace, link, rule or socket.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let grace = self.config.shutdown_grace;
        for running in self.pods.lock().values() {
            running.wishes.send_replace(Wish::Shutdown(grace));
        }
        self.workers.close();
        if tokio::time::timeout(grace + SHUTDOWN_SLACK, self.workers.wait()).await.is_err() {
            warn!("some pods did not end in time; what they hold is removed by force");
        }
        self.shared.sandboxes.shutdown().await;
        registration::unregister(&self.client, &self.config.name).await;
        if let Err(error) = self.network.stop().await {
            warn!(error = &error as &dyn std::error::Error, "the pod network was not removed completely");
        }
        info!("the node is down");
    }
}

fn open_images(config: &Config) -> Result<Images, NodeError> {
    let cas = Cas::open(&config.data_dir.join("content")).map_err(|error| NodeError::Images(error.to_string()))?;
    let dir = config.data_dir.join("images");
    Images::open(&dir, cas, config.images.clone()).map_err(|error| NodeError::Images(error.text()))
}

/// Logs of pods that a platform before this one ran: their containers start anew.
fn remove_old_logs(data_dir: &Path) {
    // They may not be there.
    let _ = std::fs::remove_dir_all(data_dir.join("logs"));
}

/// The sandboxes, with user namespaces where the kernel and the disk can; else why not.
async fn start_sandboxes(
    config: &Config,
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
    let why_not = if config.user_namespace.is_none() {
        "user namespaces are turned off".to_string()
    } else {
        // Its own stop: this one may end before the node does.
        let sandboxes = Sandboxes::start(sandbox_config.clone(), wires.clone(), tasks, stop.child_token()).await?;
        match try_user_namespace(config, &sandboxes).await {
            Ok(()) => return Ok((sandboxes, Ok(()))),
            Err(why) => {
                warn!(why, "pods have no user namespaces on this machine");
                sandboxes.shutdown().await;
                why
            }
        }
    };
    sandbox_config.user_namespace = None;
    let sandboxes = Sandboxes::start(sandbox_config, wires, tasks, stop.child_token()).await?;
    Ok((sandboxes, Err(why_not)))
}

/// Starts a container of one empty layer where layers lie: all but the program must be there.
async fn try_user_namespace(config: &Config, sandboxes: &Sandboxes) -> Result<(), String> {
    let layer = config.data_dir.join("images").join("probe");
    std::fs::create_dir_all(&layer).map_err(|error| error.to_string())?;
    let mut sandbox = sandboxes.take().await.map_err(|error| match error {
        SandboxError::Supervisor(why) => why,
        other => other.to_string(),
    })?;
    let probe = ContainerSpec {
        name: "probe".into(),
        run: 0,
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
