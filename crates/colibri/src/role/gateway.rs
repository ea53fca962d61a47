//! `colibri gateway`: the data plane alone.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::gateway::{Config, Gateway, Listener, ListenerKind};
use anyhow::{Context, Result};
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Revision, Route};
use clap::Args;
use client::Caches;
use client::https::{client_tls, names, server_tls};
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::{ApiArgs, LinkArgs, PkiArgs};
use super::{STOP_LIMIT, announce, process_name};
use crate::admin::Admin;
use crate::data_dir::DataDir;
use crate::link::dial::{Dialer, Local, Way};
use crate::platform::{random_seed, within};
use crate::signals::StopSignals;
use crate::tls;
use crate::up::{listen, preflight};

/// Start the gateway alone. It needs no root.
#[derive(Args, Clone, Debug)]
pub struct GatewayArgs {
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    pki: PkiArgs,
    #[command(flatten)]
    link: LinkArgs,
    /// Certificate of the HTTPS port, PEM [default: one for each host, issued from --pki]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Key to --tls-cert, PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Folder for endpoints.json, which says where the gateway listens
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address that the ports are opened on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Port for HTTP; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    gateway_port: u16,
    /// Port for HTTPS; 0 picks a free one. Without --tls-cert and --pki it is not opened
    #[arg(long, default_value_t = 8443)]
    gateway_tls_port: u16,
    /// Port for pods, which nodes pass on to: it knows NAME.NAMESPACE.svc.cluster.local too; 0 picks a free one
    #[arg(long, default_value_t = 8081)]
    pod_port: u16,
    /// Port of metrics and health; 0 picks a free one
    #[arg(long, default_value_t = 9092)]
    metrics_port: u16,
    /// Domain under which services are reached: NAME.NAMESPACE.DOMAIN
    #[arg(long, default_value = "localhost")]
    domain: String,
    /// Seconds that requests in flight get to end after Ctrl-C or SIGTERM
    #[arg(long, default_value_t = 30)]
    grace_seconds: u64,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, env = "COLIBRI_LOG", default_value = "warn,colibri=info")]
    pub log: String,
}

/// Runs the gateway until Ctrl-C or SIGTERM.
///
/// # Errors
///
/// What keeps it from starting, with the flag that cures it.
pub async fn gateway(args: GatewayArgs) -> Result<()> {
    let mut signals = StopSignals::new()?;
    if let Some(files) = preflight::raise_open_files() {
        tracing::warn!(files, "the limit of open files is below 65,536; raise it with `ulimit -n` or LimitNOFILE");
    }
    let authority = args.pki.authority()?.map(Arc::new);
    let (identity, roots) = args.link.identity(names::GATEWAY, authority.as_deref())?;
    let link_tls = client_tls(roots, Some(identity)).context("the link's certificate")?;
    let host_tls = match (&args.tls_cert, &args.tls_key, &authority) {
        (Some(cert), Some(key), _) => {
            let identity = client::https::Identity::read(cert, key).context("--tls-cert and --tls-key")?;
            Some(Arc::new(server_tls(identity, None).context("--tls-cert and --tls-key")?))
        }
        (_, _, Some(authority)) => Some(tls::gateway(authority, &args.domain)?),
        _ => None,
    };
    let http = listen(args.bind, args.gateway_port, "gateway", "--gateway-port")?;
    let pods = listen(args.bind, args.pod_port, "pods' gateway", "--pod-port")?;
    let metrics = listen(args.bind, args.metrics_port, "metrics", "--metrics-port")?;
    let mut addresses = vec![
        ("gateway", "http", http.local_addr()?),
        ("pods", "http", pods.local_addr()?),
        ("metrics", "http", metrics.local_addr()?),
    ];
    let mut listeners = vec![
        Listener { socket: http, kind: ListenerKind::Public },
        Listener { socket: pods, kind: ListenerKind::PodNetwork },
    ];
    if let Some(tls) = host_tls {
        let socket = listen(args.bind, args.gateway_tls_port, "gateway's HTTPS", "--gateway-tls-port")?;
        addresses.push(("gateway_tls", "https", socket.local_addr()?));
        listeners.push(Listener { socket, kind: ListenerKind::Tls(tls) });
    }
    let data_dir = args.data_dir.as_deref().map(DataDir::open).transpose()?;

    let starting = async {
        let api = args.api.open().await?;
        api.await_kinds(&CancellationToken::new()).await;
        anyhow::Ok(api)
    };
    let api = tokio::select! {
        api = starting => api?,
        () = signals.next() => anyhow::bail!("stopped before the gateway was ready"),
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (gateway_tasks, gateway_stop) = (TaskTracker::new(), CancellationToken::new());
    let caches = Caches::new(api.client.clone(), tasks.clone(), stop.clone());
    let grace = Duration::from_secs(args.grace_seconds);
    let dialer = Dialer::new(process_name(), tasks.clone());
    let gateway = Gateway::start(
        Config { grace, seed: random_seed(), ..Config::default() },
        caches.clone(),
        dialer.clone(),
        listeners,
        gateway_tasks.clone(),
        gateway_stop.clone(),
    );
    let way = Way { client: api.client, tls: link_tls };
    tasks.spawn(dialer.clone().run(Arc::new(Local(gateway.clone())), way, stop.clone()));
    let told = (gateway.clone(), dialer.clone());
    let admin = Admin::new(move || {
        let linked = u8::from(told.1.is_connected());
        // The gateway's own text ends with the end mark of OpenMetrics.
        let linked = format!(
            "# HELP colibri_link_connected Whether a controller is linked.\n# TYPE colibri_link_connected gauge\ncolibri_link_connected {linked}\n"
        );
        linked + &told.0.metrics()
    });
    admin.serve(metrics, &tasks, &stop);
    let (routes, revisions, pods) = (caches.of::<Route>(), caches.of::<Revision>(), caches.of::<Pod>());
    let (mappings, claims) = (caches.of::<DomainMapping>(), caches.of::<ClusterDomainClaim>());
    let synced =
        async { tokio::join!(routes.synced(), revisions.synced(), pods.synced(), mappings.synced(), claims.synced()) };
    tokio::select! {
        _ = synced => {}
        () = signals.next() => anyhow::bail!("stopped before the gateway was ready"),
    }
    admin.set_ready(true);
    announce("gateway", data_dir.as_ref(), &addresses)?;

    signals.next().await;
    println!("stopping: requests in flight are answered first; Ctrl-C again stops at once");
    admin.set_ready(false);
    gateway_stop.cancel();
    gateway_tasks.close();
    let drained = within(grace + Duration::from_secs(2), "the gateway", gateway_tasks.wait());
    tokio::pin!(drained);
    tokio::select! {
        () = &mut drained => {}
        () = signals.next() => {
            gateway.stop_now();
            drained.await;
        }
    }
    stop.cancel();
    tasks.close();
    within(STOP_LIMIT, "the link", tasks.wait()).await;
    Ok(())
}
