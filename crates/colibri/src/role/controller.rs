//! `colibri controller`: Knative Serving's controllers, functions, the autoscaler. Of several processes one acts: the
//! one that holds the Lease; the others stand by.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::apiserver::body;
use ::node::images::Images;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use client::https::{self, Body, Peer, full, names, server_tls};
use client::lease::{self, LeaseConfig};
use client::link::{AutoscalerLink, Late};
use client::{Caches, Live};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use kube::Client;
use parking_lot::RwLock;
use serving::Serving;
use store::cas::Cas;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{Api, ApiArgs, LinkArgs, PkiArgs, server_identity};
use super::stores::NodeStores;
use super::{STOP_LIMIT, announce, process_name};
use crate::admin::Admin;
use crate::admission::{self, DEFAULTING_PATH, VALIDATION_PATH};
use crate::data_dir::DataDir;
use crate::fetch::HttpFetch;
use crate::link::serve::{Gateways, Hub};
use crate::link::{ADDRESS, LEASE};
use crate::platform::within;
use crate::signals::StopSignals;
use crate::up::listen;

/// What the version of an API server that is ours says.
const OWN_VERSION: &str = "+colibri";
/// Longest AdmissionReview: two objects of the API server's greatest size.
const REVIEW_LIMIT_BYTES: usize = 8 << 20;

/// Start the controllers alone. They need no root.
#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    pki: PkiArgs,
    #[command(flatten)]
    link: LinkArgs,
    /// Folder for endpoints.json and for what registries said [default: none; a temporary one]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address that the ports are opened on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Port of the link, which gateways connect to; 0 picks a free one
    #[arg(long, default_value_t = 9444)]
    link_port: u16,
    /// Address by which gateways reach the link, as HOST:PORT [default: that of --bind and --link-port]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Port of the admission webhooks, which the API server calls; 0 picks a free one
    #[arg(long, default_value_t = 9443)]
    webhook_port: u16,
    /// Certificate of the webhooks, PEM; it carries the host of their URL, or controller.colibri-system.svc
    #[arg(long, value_name = "FILE", requires = "webhook_key")]
    webhook_cert: Option<PathBuf>,
    /// Key to --webhook-cert, PEM
    #[arg(long, value_name = "FILE", requires = "webhook_cert")]
    webhook_key: Option<PathBuf>,
    /// Port of metrics and health; 0 picks a free one
    #[arg(long, default_value_t = 9091)]
    metrics_port: u16,
    /// Domain under which services are reached: NAME.NAMESPACE.DOMAIN
    #[arg(long, default_value = "localhost")]
    domain: String,
    /// Port of the gateway in the URLs of services [default: none, as for port 80]
    #[arg(long, value_name = "PORT")]
    public_port: Option<u16>,
    /// Whether to run what a Kubernetes cluster has anyway: scheduler, garbage collector, namespaces, accounts
    #[arg(long, value_enum, default_value_t = Cluster::Auto)]
    cluster_controllers: Cluster,
    /// Seconds without a sign of life after which another controller takes over
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=3600))]
    lease_seconds: u16,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, env = "COLIBRI_LOG", default_value = "warn,colibri=info")]
    pub log: String,
}

/// Pause between two tries to make the ConfigMaps.
const SEED_PAUSE: Duration = Duration::from_secs(1);

/// Whether to run the cluster's own controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cluster {
    /// Where the API server is Colibri's
    Auto,
    /// Yes
    On,
    /// No
    Off,
}

/// What every time of leading needs.
struct Role {
    api: Api,
    images: Images,
    serving: serving::Config,
    cluster: bool,
    /// The hub of gateways while this process leads.
    hub: Arc<RwLock<Option<Arc<Hub>>>>,
}

/// Runs the controllers until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What keeps them from starting, with the flag that cures it.
pub async fn controller(args: ControllerArgs) -> Result<()> {
    let mut signals = StopSignals::new()?;
    let authority = args.pki.authority()?;
    let (identity, roots) = args.link.identity(names::CONTROLLER, authority.as_ref())?;
    let link_tls = server_tls(identity, Some(roots)).context("the link's certificate")?;
    let link = listen(args.bind, args.link_port, "link", "--link-port")?;
    let webhooks = listen(args.bind, args.webhook_port, "admission webhooks", "--webhook-port")?;
    let metrics = listen(args.bind, args.metrics_port, "metrics", "--metrics-port")?;
    let addresses = [
        ("link", "https", link.local_addr()?),
        ("webhooks", "https", webhooks.local_addr()?),
        ("metrics", "http", metrics.local_addr()?),
    ];
    let advertised = args.advertise.clone().unwrap_or_else(|| addresses[0].2.to_string());
    let webhook_identity = server_identity(
        (&args.webhook_cert, &args.webhook_key),
        authority.as_ref(),
        &[names::CONTROLLER.to_owned(), args.bind.to_string(), "localhost".to_owned()],
        "--webhook-cert and --webhook-key",
    )?;
    let webhook_tls = server_tls(webhook_identity, None).context("the webhooks' certificate")?;
    let data_dir = args.data_dir.as_deref().map(DataDir::open).transpose()?;
    let temporary = tempfile::tempdir().context("making a temporary folder")?;
    let folder = data_dir.as_ref().map_or_else(|| temporary.path().to_path_buf(), |dir| dir.path().to_path_buf());
    let images = open_images(&folder)?;

    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    // Before anything else: every write of our kinds waits for them.
    let live = Arc::new(Live::default());
    let settings = live.clone();
    tasks.spawn(https::serve(webhooks, webhook_tls, tasks.clone(), stop.clone(), move |_, request| {
        admit(request, settings.clone())
    }));
    let api = tokio::select! {
        api = args.api.open() => api?,
        () = signals.next() => anyhow::bail!("stopped before the controller was ready"),
    };
    live.follow(&Caches::new(api.client.clone(), tasks.clone(), stop.clone()));
    let cluster = match args.cluster_controllers {
        Cluster::On => true,
        Cluster::Off => false,
        Cluster::Auto => api.version.contains(OWN_VERSION),
    };
    let serving = serving::Config {
        addresses: serving::Addresses {
            domain: args.domain.clone(),
            public_port: args.public_port,
            ..serving::Addresses::default()
        },
        ..serving::Config::default()
    };
    let hub = Arc::new(RwLock::new(None));
    let role = Role { api, images, serving, cluster, hub: hub.clone() };
    let shown = hub.clone();
    tasks.spawn(https::serve(link, link_tls, tasks.clone(), stop.clone(), move |peer, request| {
        let answer = answer(&hub, &peer, request);
        async move { answer }
    }));
    let admin = Admin::new(move || metrics_text(shown.read().as_deref()));
    admin.serve(metrics, &tasks, &stop);
    admin.set_ready(true);
    announce("controller", data_dir.as_ref(), &addresses)?;

    let lease = LeaseConfig {
        namespace: api::SYSTEM_NAMESPACE.to_owned(),
        name: LEASE.to_owned(),
        holder: process_name(),
        annotations: BTreeMap::from([(ADDRESS.to_owned(), advertised)]),
        duration: Duration::from_secs(args.lease_seconds.into()),
    };
    let leading = tokio::spawn(compete(role, lease, stop.clone()));
    signals.next().await;
    println!("stopping");
    admin.set_ready(false);
    stop.cancel();
    leading.await.context("the controllers' task")??;
    tasks.close();
    within(STOP_LIMIT, "the controller's ports", tasks.wait()).await;
    Ok(())
}

fn open_images(folder: &std::path::Path) -> Result<Images> {
    let cas = Cas::open(&folder.join("content")).context("opening the folder for what registries say")?;
    let images = Images::open(&folder.join("images"), cas, ::node::images::Config::default());
    images.map_err(|error| anyhow::anyhow!(error.text()))
}

/// Answers a gateway; a process that does not lead sends it away.
fn answer(hub: &RwLock<Option<Arc<Hub>>>, peer: &Peer, request: Request<Body>) -> Response<Body> {
    let hub = hub.read().clone();
    match hub {
        Some(hub) => hub.handle(peer, request),
        None => {
            let mut response = Response::new(full("this controller does not lead\n"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
    }
}

/// Answers an API server that asks about an object.
async fn admit(request: Request<Body>, live: Arc<Live>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let refuse = |status, text: &str| {
        let mut response = Response::new(full(format!("{text}\n")));
        *response.status_mut() = status;
        response
    };
    if request.method() != Method::POST || !matches!(path.as_str(), DEFAULTING_PATH | VALIDATION_PATH) {
        return refuse(StatusCode::NOT_FOUND, &format!("there are POST {DEFAULTING_PATH} and {VALIDATION_PATH}"));
    }
    let body = match body::read(request.into_body(), REVIEW_LIMIT_BYTES).await {
        Ok(body) => body,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, &error.message),
    };
    let review = serde_json::from_slice(&body).map_err(|error| format!("the body is no JSON: {error}"));
    match review.and_then(|review| admission::answer(&path, &review, &live.get())) {
        Ok(answer) => {
            let mut response = Response::new(full(answer.to_string()));
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            response
        }
        Err(why) => refuse(StatusCode::BAD_REQUEST, &why),
    }
}

fn metrics_text(hub: Option<&Hub>) -> String {
    let (leads, gateways) = (u8::from(hub.is_some()), hub.map_or(0, Hub::gateways));
    format!(
        "# HELP colibri_controller_leads Whether this process leads.\n# TYPE colibri_controller_leads gauge\ncolibri_controller_leads {leads}\n# HELP colibri_link_gateways Gateways that are linked.\n# TYPE colibri_link_gateways gauge\ncolibri_link_gateways {gateways}\n# EOF\n"
    )
}

/// Leads whenever the Lease is ours, until `stop`.
async fn compete(role: Role, lease: LeaseConfig, stop: CancellationToken) -> Result<()> {
    if role.api.await_kinds(&stop).await.is_none() {
        return Ok(());
    }
    while let Some(mut held) = lease::acquire(&role.api.client, lease.clone(), &stop).await {
        let (tasks, term) = (TaskTracker::new(), CancellationToken::new());
        tokio::select! {
            () = async { lead(&role, &tasks, &term).await; std::future::pending().await } => {}
            () = held.keep(&stop) => {}
        }
        *role.hub.write() = None;
        term.cancel();
        tasks.close();
        within(STOP_LIMIT, "the controllers", tasks.wait()).await;
        held.release().await;
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(())
}

/// Starts every controller; they run on `tasks` until `term`.
async fn lead(role: &Role, tasks: &TaskTracker, term: &CancellationToken) {
    let caches = Caches::new(role.api.client.clone(), tasks.clone(), term.clone());
    let autoscaler = Late::<dyn AutoscalerLink>::new();
    let hub = Hub::new(autoscaler.clone(), tasks.clone(), term.clone());
    let stores = Arc::new(NodeStores::new(&caches, role.images.clone()));
    let serving = Serving::start(
        role.serving.clone(),
        caches.clone(),
        Arc::new(Gateways(hub.clone())),
        stores.clone(),
        tasks.clone(),
        term.clone(),
    )
    .await;
    autoscaler.set(serving);
    // Only now gateways are let in: what they say first must not be lost.
    *role.hub.write() = Some(hub);
    let fetch = Arc::new(HttpFetch::new());
    functions::Functions::start(functions::Config::default(), caches.clone(), stores, fetch, tasks, term);
    tasks.spawn(seed(role.api.client.clone(), term.clone()));
    if role.cluster {
        let config = cluster::Config { root_ca_pem: role.api.ca_pem.clone() };
        cluster::start(config, &caches, tasks, term);
    }
}

/// Makes the ConfigMaps that are missing. This process serves the webhook that checks them, which the API server may not
/// reach at once.
async fn seed(client: Client, term: CancellationToken) {
    while let Err(error) = crate::seed::config_maps(&client).await {
        tracing::warn!(error = format!("{error:#}"), "the ConfigMaps cannot be made, trying again");
        if term.run_until_cancelled(tokio::time::sleep(SEED_PAUSE)).await.is_none() {
            return;
        }
    }
}
