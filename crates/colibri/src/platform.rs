//! Composition: every part of the platform in one process, and its shutdown in phases.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use apiserver::{Access, ApiServer, User};
use client::Caches;
use client::link::{AutoscalerLink, Late};
use gateway::{Gateway, ListenerKind};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use node::Node;
use serving::Serving;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::fetch::HttpFetch;
use crate::up::{Listeners, UpArgs};
use crate::{admission, cluster_names, extensions, seed, tls};

/// Port of the gateway on the pod network.
pub(crate) const POD_GATEWAY_PORT: u16 = 80;
/// Port of the API server on the pod network.
pub(crate) const POD_API_PORT: u16 = 443;
/// Longest wait for controllers to end their present step.
const CONTROLLER_LIMIT: Duration = Duration::from_secs(5);
/// Longest wait for the node to remove everything it made.
pub(crate) const NODE_LIMIT: Duration = Duration::from_secs(20);

/// Where the platform listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// API server.
    pub api: SocketAddr,
    /// Gateway, HTTP.
    pub gateway: SocketAddr,
    /// Gateway, HTTPS.
    pub gateway_tls: SocketAddr,
    /// Metrics and health.
    pub metrics: SocketAddr,
}

impl Addresses {
    /// Addresses of the open ports.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    pub fn of(listeners: &Listeners) -> std::io::Result<Self> {
        Ok(Self {
            api: listeners.api.local_addr()?,
            gateway: listeners.gateway.local_addr()?,
            gateway_tls: listeners.gateway_tls.local_addr()?,
            metrics: listeners.metrics.local_addr()?,
        })
    }
}

/// A running platform.
pub struct Platform {
    server: Arc<ApiServer>,
    gateway: Arc<Gateway>,
    node: Arc<Node>,
    admin: Arc<Admin>,
    client: Client,
    gateway_tasks: TaskTracker,
    gateway_stop: CancellationToken,
    controller_tasks: TaskTracker,
    controller_stop: CancellationToken,
    server_tasks: TaskTracker,
    server_stop: CancellationToken,
    grace: Duration,
}

impl Platform {
    /// Starts every part; returns once all of them are ready.
    ///
    /// # Errors
    ///
    /// What keeps a part from starting.
    pub async fn start(args: &UpArgs, data_dir: &Path, listeners: Listeners) -> Result<Arc<Self>> {
        let mut stages = Stages(Instant::now());
        let addresses = Addresses::of(&listeners)?;
        let (server_tasks, server_stop) = (TaskTracker::new(), CancellationToken::new());
        let (controller_tasks, controller_stop) = (TaskTracker::new(), CancellationToken::new());
        let (gateway_tasks, gateway_stop) = (TaskTracker::new(), CancellationToken::new());

        let server = ApiServer::open(apiserver::Config {
            data_dir: Some(data_dir.to_path_buf()),
            advertised: addresses.api.to_string(),
            ..apiserver::Config::default()
        })
        .await
        .context("starting the API server")?;
        stages.done("API server");
        let live = Arc::new(client::Live::default());
        server.add_admission(Arc::new(admission::BuiltIn(live.clone())));
        let client = server.client(User::master("system:colibri"));
        seed::install(&client).await.context("installing the platform's own objects")?;
        stages.done("the platform's own objects");
        let caches = Caches::new(client.clone(), controller_tasks.clone(), controller_stop.clone());
        // Nothing is admitted by other settings than the administrator's.
        live.follow(&caches);
        caches.of_system::<ConfigMap>().synced().await;
        serve_api(&server, listeners.api, Access::Full, &server_tasks, &server_stop);
        let tls = tls::gateway(server.pki().authority(), &args.domain)?;
        let runtimes_dir = functions::runtimes::install(&data_dir.join("runtimes"))?;
        stages.done("runtimes");
        let names = Arc::new(cluster_names::ClusterNames::new(&caches));
        let node = Node::start(
            node_config(data_dir, &runtimes_dir),
            client.clone(),
            caches.clone(),
            names.clone(),
            controller_tasks.clone(),
            controller_stop.clone(),
        )
        .await
        .context("starting the node")?;
        stages.done("node");
        server.set_kubelet(node.clone());
        names.set_gateway(node.gateway_address());
        let images = Arc::new(node.images());
        server.add_extension("/colibri/v1/", Arc::new(extensions::Uploads::new(images.clone())));
        let pod_api = pod_listener(&node, POD_API_PORT, "API server").await?;
        serve_api(&server, pod_api, Access::TokensOnly, &server_tasks, &server_stop);

        let autoscaler = Late::<dyn AutoscalerLink>::new();
        let pod_gateway = pod_listener(&node, POD_GATEWAY_PORT, "gateway").await?;
        let gateway_listeners = vec![
            gateway::Listener { socket: listeners.gateway, kind: ListenerKind::Public },
            gateway::Listener { socket: listeners.gateway_tls, kind: ListenerKind::Tls(tls) },
            gateway::Listener { socket: pod_gateway, kind: ListenerKind::PodNetwork },
        ];
        let gateway = Gateway::start(
            gateway::Config { grace: args.grace(), seed: random_seed(), ..gateway::Config::default() },
            caches.clone(),
            autoscaler.clone(),
            gateway_listeners,
            gateway_tasks.clone(),
            gateway_stop.clone(),
        );
        let serving = Serving::start(
            serving::Config {
                addresses: serving::Addresses {
                    domain: args.domain.clone(),
                    public_port: Some(addresses.gateway.port()),
                    ..serving::Addresses::default()
                },
                node_name: Some(node.name().to_owned()),
                ..serving::Config::default()
            },
            caches.clone(),
            gateway.clone(),
            node.clone(),
            controller_tasks.clone(),
            controller_stop.clone(),
        )
        .await;
        stages.done("gateway and serving");
        autoscaler.set(serving);
        let code = Arc::new(extensions::Code::new(images));
        functions::Functions::start(
            functions::Config::default(),
            caches.clone(),
            code,
            Arc::new(HttpFetch::new()),
            &controller_tasks,
            &controller_stop,
        );
        let cluster_config = cluster::Config { root_ca_pem: server.pki().ca_pem.clone() };
        cluster::start(cluster_config, &caches, &controller_tasks, &controller_stop);

        let metrics = gateway.clone();
        let admin = Admin::new(move || metrics.metrics());
        admin.serve(listeners.metrics, &server_tasks, &server_stop);
        admin.set_ready(true);
        let (compiled, stop) = (functions::runtimes::compile(runtimes_dir), controller_stop.clone());
        controller_tasks.spawn(async move { stop.run_until_cancelled(compiled).await });
        stages.done("functions and cluster");
        Ok(Arc::new(Self {
            server,
            gateway,
            node,
            admin,
            client,
            gateway_tasks,
            gateway_stop,
            controller_tasks,
            controller_stop,
            server_tasks,
            server_stop,
            grace: args.grace(),
        }))
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The administrator's kubeconfig for that address of the API server.
    pub fn kubeconfig(&self, api: &str) -> String {
        self.server.pki().kubeconfig(api)
    }

    /// The node's image store.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Stops in phases: no new requests, those in flight end; then the controllers; then the node with all pods; then
    /// the API server. With `keep_pods` the pods go on, for the next start on the same data directory.
    pub async fn stop(&self, keep_pods: bool) {
        self.admin.set_ready(false);
        self.gateway_stop.cancel();
        self.gateway_tasks.close();
        within(self.grace + Duration::from_secs(2), "the gateway", self.gateway_tasks.wait()).await;
        let node = async {
            if keep_pods {
                self.node.leave().await;
            } else {
                self.node.shutdown().await;
            }
        };
        within(NODE_LIMIT, "the node", node).await;
        self.controller_stop.cancel();
        self.controller_tasks.close();
        within(CONTROLLER_LIMIT, "the controllers", self.controller_tasks.wait()).await;
        self.server_stop.cancel();
        self.server_tasks.close();
        within(CONTROLLER_LIMIT, "the API server", self.server_tasks.wait()).await;
        self.server.close();
    }

    /// Cuts requests in flight.
    pub fn stop_now(&self) {
        self.gateway.stop_now();
    }
}

/// Tells how long each stage of the start took; holds when the present one began.
struct Stages(Instant);

impl Stages {
    fn done(&mut self, stage: &'static str) {
        let took = std::mem::replace(&mut self.0, Instant::now()).elapsed();
        tracing::debug!(stage, ?took, "started");
    }
}

pub(crate) async fn within(limit: Duration, what: &str, work: impl Future<Output = ()>) {
    if tokio::time::timeout(limit, work).await.is_err() {
        tracing::error!(?limit, "{what} did not stop in time");
    }
}

fn node_config(data_dir: &Path, runtimes_dir: &Path) -> node::Config {
    node::Config { runtimes_dir: runtimes_dir.to_path_buf(), ..node::Config::new(data_dir) }
}

fn serve_api(
    server: &Arc<ApiServer>,
    listener: TcpListener,
    access: Access,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) {
    let (server, stop) = (server.clone(), stop.clone());
    tasks.spawn(async move {
        if let Err(error) = server.serve(listener, access, stop).await {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "the API server's port is closed");
        }
    });
}

/// Opens a port on the pod network. Where that fails, the node ends, and what it made is gone.
pub(crate) async fn pod_listener(node: &Node, port: u16, purpose: &'static str) -> Result<TcpListener> {
    match crate::up::listen_for_pods(node.gateway_address(), port, purpose) {
        Ok(listener) => Ok(listener),
        Err(error) => {
            within(NODE_LIMIT, "the node", node.give_up()).await;
            Err(error).context("opening a port on the pod network")
        }
    }
}

/// True randomness for the choices that the gateway makes.
pub(crate) fn random_seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), std::process::id())
}
