//! The gateway as a whole: started, asked, stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use base::{MappingId, PodId, RevisionId, RouteId};
use client::cache::Caches;
use client::link::{AutoscalerLink, GatewayLink, Stat};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::certificates;
use crate::clients::Clients;
use crate::config::Config;
use crate::fleet::Fleet;
use crate::listen::{self, Listener, ListenerKind};
use crate::metrics::Metrics;
use crate::proxy::{HostHandler, Proxy};
use crate::random::Random;
use crate::revision::Shared;
use crate::routes::Table;
use crate::telemetry::Telemetry;
use crate::transport::Duplex;
use crate::upstream::PoolLimits;

const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// A running gateway.
pub struct Gateway {
    shared: Arc<Shared>,
    proxy: Arc<Proxy>,
    fleet: Arc<Fleet>,
}

impl Gateway {
    /// Starts the gateway on its listeners. Must be called inside a tokio runtime.
    ///
    /// When `stop` is cancelled it accepts nothing more and lets requests in flight end, for `config.grace`; then, or
    /// on [`Gateway::stop_now`], it breaks them off. All of it runs on `tasks`, which the caller closes and awaits.
    pub fn start(
        config: Config,
        caches: Arc<Caches>,
        autoscaler: Arc<dyn AutoscalerLink>,
        listeners: Vec<Listener>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let pool = PoolLimits {
            connect_timeout: config.connect_timeout,
            idle: config.idle_connections,
            idle_timeout: config.idle_connection_timeout,
        };
        let connections = Arc::new(Semaphore::new(config.clients.connections));
        let metrics = Metrics::new();
        let shared = Arc::new(Shared {
            telemetry: Telemetry::new(config.access_log.clone(), &metrics),
            random: Random::new(config.seed),
            pool,
            autoscaler,
            metrics,
            tasks: TaskTracker::new(),
            background: TaskTracker::new(),
            stop,
            abort: CancellationToken::new(),
            probes: AtomicU64::new(0),
            tag_header: AtomicBool::new(false),
            clients: Clients::new(config.clients.clone(), connections.clone()),
            config,
        });
        let proxy = Arc::new(Proxy {
            shared: shared.clone(),
            table: Table::new(shared.random.next()),
            extra: ArcSwap::default(),
            certificates: Arc::default(),
            tls_port: AtomicU16::new(0),
        });
        let fleet = Fleet::start(shared.clone(), proxy.clone(), &caches);
        let tls_port = |listener: &Listener| match &listener.kind {
            ListenerKind::Tls(_) => listener.socket.local_addr().ok().map(|address| address.port()),
            ListenerKind::Public | ListenerKind::PodNetwork => None,
        };
        proxy.tls_port.store(listeners.iter().find_map(tls_port).unwrap_or_default(), Ordering::Relaxed);
        for mut listener in listeners {
            if let ListenerKind::Tls(config) = &mut listener.kind {
                *config = certificates::with(config, proxy.certificates.clone());
            }
            if let Ok(address) = listener.socket.local_addr() {
                info!(%address, "gateway listens");
            }
            shared.tasks.spawn(listen::accept(listener, proxy.clone(), connections.clone()));
        }
        shared.tasks.spawn(report(shared.clone(), fleet.clone()));
        tasks.spawn(end(shared.clone()));
        Arc::new(Self { shared, proxy, fleet })
    }

    /// Serves a client's connection that was accepted elsewhere, public hosts only, until it ends.
    pub async fn serve(&self, stream: impl Duplex, peer: SocketAddr) {
        listen::serve_public(stream, peer, self.proxy.clone()).await;
    }

    /// Metrics in Prometheus' text form.
    pub fn metrics(&self) -> String {
        self.shared.metrics.text()
    }

    /// Breaks off all requests: for a second signal, or a host that is going down.
    pub fn stop_now(&self) {
        self.shared.stop.cancel();
        self.shared.abort.cancel();
    }

    /// Instances of a revision that are starting or in rotation.
    pub fn instances(&self, revision: &RevisionId) -> usize {
        self.fleet.find(revision).map_or(0, |revision| revision.active())
    }

    /// Instances of a revision in rotation, and its requests that wait.
    pub fn ready_and_waiting(&self, revision: &RevisionId) -> (usize, usize) {
        self.fleet.find(revision).map_or((0, 0), |revision| (revision.ready(), revision.waiting()))
    }

    /// Requests in flight and waiting, of every revision that has any, and whether some of them wait.
    pub fn loads(&self) -> Vec<(RevisionId, usize, bool)> {
        let all = self.fleet.all().into_iter();
        let loads = all.map(|revision| (revision.id.clone(), revision.load(), revision.waiting() > 0));
        loads.filter(|(_, load, _)| *load > 0).collect()
    }

    /// As [`GatewayLink::retire`], of instances that another gateway has chosen.
    pub async fn retire_pods(&self, revision: &RevisionId, pods: &[PodId], drain_timeout: Duration) {
        if let Some(revision) = self.fleet.find(revision) {
            revision.retire_pods(pods, drain_timeout).await;
        }
    }

    /// Serves `host` (lower case, no port) by `handler` on the public listeners, where no Route claims it; no mapped domain
    /// takes its place.
    pub fn mount_host(&self, host: &str, handler: Arc<dyn HostHandler>) {
        self.proxy.extra.rcu(|extra| {
            let mut extra = extra.as_ref().clone();
            extra.insert(host.to_ascii_lowercase(), handler.clone());
            extra
        });
    }
}

impl GatewayLink for Gateway {
    fn programmed(&self, route: RouteId, generation: i64) -> BoxFuture<'static, ()> {
        self.fleet.clone().programmed(route, generation).boxed()
    }

    fn mapped(&self, mapping: MappingId, generation: i64) -> BoxFuture<'static, ()> {
        self.fleet.clone().mapped(mapping, generation).boxed()
    }

    fn retire(&self, revision: RevisionId, count: usize, drain_timeout: Duration) -> BoxFuture<'static, Vec<PodId>> {
        match self.fleet.find(&revision) {
            Some(revision) => revision.retire(count, drain_timeout).boxed(),
            None => futures::future::ready(Vec::new()).boxed(),
        }
    }

    fn load(&self, revision: &RevisionId) -> usize {
        self.fleet.find(revision).map_or(0, |revision| revision.load())
    }
}

/// Tells the autoscaler of each second.
async fn report(shared: Arc<Shared>, fleet: Arc<Fleet>) {
    let mut seconds = interval(REPORT_INTERVAL);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while shared.stop.run_until_cancelled(seconds.tick()).await.is_some() {
        let now = Instant::now();
        let stats: Vec<Stat> = fleet.all().iter().filter_map(|revision| revision.tick(now)).collect();
        if !stats.is_empty() {
            shared.autoscaler.report(&stats);
        }
        fleet.sweep();
    }
}

/// Waits for what runs once the gateway stops, and breaks it off when the grace is over.
async fn end(shared: Arc<Shared>) {
    shared.stop.cancelled().await;
    shared.tasks.close();
    let drained = async {
        tokio::select! {
            () = shared.tasks.wait() => {}
            () = shared.abort.cancelled() => {}
        }
    };
    if timeout(shared.config.grace, drained).await.is_err() {
        warn!(grace = ?shared.config.grace, "requests in flight outlast the grace, breaking them off");
    }
    shared.abort.cancel();
    shared.background.close();
    shared.tasks.wait().await;
    shared.background.wait().await;
    shared.telemetry.close().await;
}
