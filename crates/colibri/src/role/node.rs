//! `colibri node`: runs the pods that are bound to it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ::node::{Config, Node};
use anyhow::{Context, Result};
use clap::Args;
use client::Caches;
use client::https::{self, names, server_tls};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{ApiArgs, PkiArgs, server_identity};
use super::forward::forward;
use super::kubelet::KubeletServer;
use super::{STOP_LIMIT, announce};
use crate::admin::Admin;
use crate::cluster_names::ClusterNames;
use crate::data_dir::{self, DataDir};
use crate::platform::{NODE_LIMIT, POD_API_PORT, POD_GATEWAY_PORT, pod_listener, within};
use crate::signals::StopSignals;
use crate::up::{listen, preflight};

/// Start a node alone. It needs root.
#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    pki: PkiArgs,
    /// Name of the Node object [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where images, code, sandboxes and logs are kept [default: /var/lib/colibri]
    #[arg(long, value_name = "DIR", env = "COLIBRI_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Address of the node's server, by which the API server reaches it; the Node's status names it
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// Port of the node's server; 0 picks a free one
    #[arg(long, default_value_t = 10_250)]
    kubelet_port: u16,
    /// Certificate of the node's server, PEM
    #[arg(long, value_name = "FILE", requires_all = ["kubelet_key", "kubelet_client_ca"])]
    kubelet_cert: Option<PathBuf>,
    /// Key to --kubelet-cert, PEM
    #[arg(long, value_name = "FILE", requires = "kubelet_cert")]
    kubelet_key: Option<PathBuf>,
    /// Certificates that the API server's must be signed by, PEM
    #[arg(long, value_name = "FILE", requires = "kubelet_cert")]
    kubelet_client_ca: Option<PathBuf>,
    /// The gateway's port for pods, as HOST:PORT: pods reach it as any service of the cluster
    #[arg(long, value_name = "HOST:PORT")]
    gateway: Option<String>,
    /// Leave the pods running at the stop; the next start on the same data directory takes them over
    #[arg(long)]
    keep_pods: bool,
    /// Port of metrics and health; 0 picks a free one
    #[arg(long, default_value_t = 9093)]
    metrics_port: u16,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, env = "COLIBRI_LOG", default_value = "warn,colibri=info")]
    pub log: String,
}

/// Runs the node until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What keeps it from starting, with the flag or command that cures it.
pub async fn node(args: NodeArgs) -> Result<()> {
    preflight::check()?;
    let mut signals = StopSignals::new()?;
    if let Some(files) = preflight::raise_open_files() {
        tracing::warn!(files, "the limit of open files is below 65,536; raise it with `ulimit -n` or LimitNOFILE");
    }
    if let Some(gateway) = &args.gateway {
        let port = gateway.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        if !matches!(port, Some(Ok(1..))) {
            anyhow::bail!("--gateway {gateway:?} is not HOST:PORT, such as 127.0.0.1:8081");
        }
    }
    let data_dir = DataDir::open(&args.data_dir.clone().unwrap_or_else(data_dir::default_path))?;
    let authority = args.pki.authority()?;
    let server = listen(args.address, args.kubelet_port, "node's server", "--kubelet-port")?;
    let metrics = listen(args.address, args.metrics_port, "metrics", "--metrics-port")?;
    let address = server.local_addr()?;
    let config = node_config(&args, &data_dir, address)?;
    let runtimes_dir = functions::runtimes::install(&config.runtimes_dir)?;
    let config = Config { runtimes_dir: runtimes_dir.clone(), ..config };
    let own_names = [config.name.clone(), address.ip().to_string(), names::NODE.to_owned()];
    let identity = server_identity(
        (&args.kubelet_cert, &args.kubelet_key),
        authority.as_ref(),
        &own_names,
        "--kubelet-cert, --kubelet-key and --kubelet-client-ca",
    )?;
    let clients = match (&args.kubelet_client_ca, &authority) {
        (Some(file), _) => https::read_roots(file).context("--kubelet-client-ca")?,
        (None, Some(authority)) => authority.roots()?,
        (None, None) => anyhow::bail!("whom the node's server may trust is missing: give --kubelet-client-ca or --pki"),
    };
    let tls = server_tls(identity, Some(clients)).context("the certificate of the node's server")?;

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let reaching = async {
        let api = args.api.open().await?;
        api.await_kinds(&stop).await;
        anyhow::Ok(api)
    };
    let api = tokio::select! {
        api = reaching => api?,
        () = signals.next() => anyhow::bail!("stopped before the node was ready"),
    };
    let starting = async {
        let caches = Caches::new(api.client.clone(), tasks.clone(), stop.clone());
        let resolve = Arc::new(ClusterNames::new(&caches));
        let node = Node::start(config, api.client.clone(), caches, resolve.clone(), tasks.clone(), stop.clone()).await;
        let node = node.context("starting the node")?;
        resolve.set_gateway(node.gateway_address());
        anyhow::Ok(node)
    };
    tokio::pin!(starting);
    let node = tokio::select! {
        node = &mut starting => node?,
        () = signals.next() => {
            // What is half made can be taken down only once it is made; a second signal leaves it to the next start.
            tokio::select! {
                node = &mut starting => within(NODE_LIMIT, "the node", node?.give_up()).await,
                () = signals.next() => {}
            }
            anyhow::bail!("stopped before the node was ready");
        }
    };
    let (compiled, ending) = (functions::runtimes::compile(runtimes_dir), stop.clone());
    tasks.spawn(async move { ending.run_until_cancelled(compiled).await });
    let kubelet = KubeletServer::new(node.clone(), api.client.clone());
    let answer = move |peer, request| kubelet.clone().handle(peer, request);
    tasks.spawn(https::serve(server, tls, tasks.clone(), stop.clone(), answer));
    let pod_api = pod_listener(&node, POD_API_PORT, "API server").await?;
    tasks.spawn(forward(pod_api, api.address, tasks.clone(), stop.clone()));
    if let Some(gateway) = &args.gateway {
        let pod_gateway = pod_listener(&node, POD_GATEWAY_PORT, "gateway").await?;
        tasks.spawn(forward(pod_gateway, gateway.clone(), tasks.clone(), stop.clone()));
    }
    let counted = node.clone();
    let metrics_address = metrics.local_addr()?;
    let admin = Admin::new(move || {
        format!(
            "# HELP colibri_node_pods Pods on this node.\n# TYPE colibri_node_pods gauge\ncolibri_node_pods {}\n# EOF\n",
            counted.pods()
        )
    });
    admin.serve(metrics, &tasks, &stop);
    admin.set_ready(true);
    announce("node", Some(&data_dir), &[("node", "https", address), ("metrics", "http", metrics_address)])?;

    signals.next().await;
    admin.set_ready(false);
    if args.keep_pods {
        println!("stopping: pods go on");
        within(NODE_LIMIT, "the node", node.leave()).await;
    } else {
        println!("stopping: pods end first");
        within(NODE_LIMIT, "the node", node.shutdown()).await;
    }
    stop.cancel();
    tasks.close();
    within(STOP_LIMIT, "the node's tasks", tasks.wait()).await;
    data_dir.remove(data_dir::ENDPOINTS);
    Ok(())
}

fn node_config(args: &NodeArgs, data_dir: &DataDir, server: SocketAddr) -> Result<Config> {
    let mut config = Config { server: Some(server), ..Config::new(data_dir.path()) };
    if let Some(name) = &args.name {
        if !base::names::is_dns1123_subdomain(name) {
            anyhow::bail!("--name {name:?} is not the name of a node: lower case letters, digits, - and . only");
        }
        config.name = name.clone();
    }
    Ok(config)
}
