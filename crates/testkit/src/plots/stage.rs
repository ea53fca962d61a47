//! Plays a scenario: one service, its clients, and somebody who looks at it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use api::autoscaling::PodAutoscaler;
use api::serving::Service;
use base::RevisionId;
use bytes::Bytes;
use client::{Cache, Caches};
use gateway::Gateway;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use serde_json::json;
use tokio::io::duplex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::scenario::{Arrival, SEED, Scenario};
use super::series::{Row, Summary};
use crate::network::WORK;
use crate::nodes::Pace;
use crate::trace::Trace;
use crate::users::NAMESPACES;
use crate::wire::Role;
use crate::world::{Plan, World, in_virtual_time};

const NAME: &str = "shop";
/// Bytes that a connection holds in each direction.
const BUFFER: usize = 8 * 1024;
/// Longest time between two looks.
const LOOK_MS: u64 = 10;
/// Time that the new service may take to be ready, and then to be at zero.
const SETTLE: Duration = Duration::from_secs(300);
/// Time at zero before the first request: nothing of the start is left in any window.
const REST: Duration = Duration::from_secs(120);
/// Between what docs/benchmarks.md has for a function in Python and for one in Node.js.
const PACE: Pace = Pace { sandbox: 2..6, container: 20..60 };

/// Plays a scenario on this thread, which must not have run anything before.
///
/// # Errors
///
/// When the world cannot be set up, does not settle, or an invariant breaks.
pub fn play(scenario: &Scenario) -> anyhow::Result<(Vec<Row>, Summary)> {
    in_virtual_time(SEED, async {
        // The limit of the queue is the gateway's own; a status that waits for further changes would lag the picture.
        let queue_limit = gateway::Config::default().queue_limit;
        let plan = Plan { seed: SEED, queue_limit, status_delay: Duration::ZERO, ..Plan::default() };
        let world = World::start(&plan, Arc::new(Trace::new(None)?)).await?;
        world.nodes.set_pace(PACE);
        let stage = Stage::set(scenario, &world).await?;
        let seen = stage.play(scenario, &world).await?;
        match world.checks.breaches().first() {
            Some(breach) => bail!("an invariant broke: {breach}"),
            None => Ok(seen),
        }
    })
}

struct Stage {
    revision: RevisionId,
    autoscalers: Arc<Cache<PodAutoscaler>>,
    clients: Arc<Clients>,
}

impl Stage {
    /// Makes the service and waits until it has scaled to zero.
    async fn set(scenario: &Scenario, world: &World) -> anyhow::Result<Self> {
        let never = CancellationToken::new();
        let caches = Caches::new(world.wire.client(Role::Observer, never.clone()), TaskTracker::new(), never);
        let autoscalers = caches.of::<PodAutoscaler>();
        let services = Api::<Service>::namespaced(world.client.clone(), NAMESPACES[0]);
        services.create(&PostParams::default(), &service(scenario)?).await?;
        let settled = async {
            loop {
                let status = services.get(NAME).await?.status;
                let ready = status.and_then(|status| status.latest_ready_revision_name);
                if let Some(name) = ready.filter(|_| world.nodes.held() == 0) {
                    return anyhow::Ok(RevisionId::new(NAMESPACES[0], name));
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        let revision = timeout(SETTLE, settled).await.context("the service does not scale to zero")??;
        sleep(REST).await;
        let clients = Clients::new(world.gateway.gateway.clone());
        Ok(Self { revision, autoscalers, clients })
    }

    async fn play(&self, scenario: &Scenario, world: &World) -> anyhow::Result<(Vec<Row>, Summary)> {
        let arrivals = scenario.arrivals();
        let load = scenario.load(&arrivals);
        let ideal = scenario.ideal(&load);
        let start = Instant::now();
        let clients = tokio::spawn(self.clients.clone().send_all(arrivals.clone(), start));
        let look_ms = LOOK_MS.min(scenario.row_ms);
        let mut rows = Vec::with_capacity(load.len());
        let mut pods_ms = 0;
        for (index, (&load, &ideal)) in load.iter().zip(&ideal).enumerate() {
            let mut row = Row { load, ideal, desired: 0, ready: 0, queued: 0, refused: 0 };
            for look in 1..=scenario.row_ms / look_ms {
                let at_ms = index as u64 * scenario.row_ms + look * look_ms;
                sleep_until(start + Duration::from_millis(at_ms)).await;
                let (ready, waiting) = world.gateway.gateway.ready_and_waiting(&self.revision);
                (row.ready, row.queued) = (small(ready), row.queued.max(small(waiting)));
                row.desired = self.desired();
                pods_ms += world.nodes.held() as u64 * look_ms;
            }
            row.refused = small(self.clients.take_refused());
            rows.push(row);
        }
        // Requests that are still under way count, and so do pods until they are gone.
        clients.await.context("the clients ended early")?;
        let mut left = Duration::ZERO;
        while world.nodes.held() > 0 {
            ensure!(left < SETTLE, "the service does not scale to zero at the end");
            pods_ms += world.nodes.held() as u64 * LOOK_MS;
            left += Duration::from_millis(LOOK_MS);
            sleep(Duration::from_millis(LOOK_MS)).await;
        }
        let summary = summary(scenario, &rows, &self.clients.ended.lock(), pods_ms);
        Ok((rows, summary))
    }

    fn desired(&self) -> u32 {
        let autoscaler = self.autoscalers.get(&self.revision.namespace, &self.revision.name);
        let desired = autoscaler.and_then(|autoscaler| autoscaler.status.as_ref()?.desired_scale);
        desired.and_then(|desired| u32::try_from(desired).ok()).unwrap_or_default()
    }
}

fn service(scenario: &Scenario) -> serde_json::Result<Service> {
    let limit = scenario.max_scale.to_string();
    serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": NAME},
        "spec": {"template": {
            "metadata": {"annotations": {"autoscaling.knative.dev/max-scale": limit}},
            "spec": {
                "containerConcurrency": scenario.concurrency, "timeoutSeconds": scenario.timeout_seconds,
                "containers": [{"image": "r.example/shop:v1"}],
            },
        }},
    }))
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn summary(scenario: &Scenario, rows: &[Row], ended: &[Ended], pods_ms: u64) -> Summary {
    let mut waits: Vec<u64> = ended.iter().filter_map(|ended| ended.wait_ms).collect();
    waits.sort_unstable();
    let rank = |percent: usize| waits.get((waits.len() * percent / 100).min(waits.len().saturating_sub(1)));
    let most = |of: fn(&Row) -> u32| rows.iter().map(of).max().unwrap_or_default();
    Summary {
        name: scenario.name.to_owned(),
        requests: ended.len() as u64,
        refused: (ended.len() - waits.len()) as u64,
        wait_p50_ms: rank(50).copied().unwrap_or_default(),
        wait_p99_ms: rank(99).copied().unwrap_or_default(),
        wait_max_ms: rank(100).copied().unwrap_or_default(),
        most_queued: most(|row| row.queued),
        most_ready: most(|row| row.ready),
        most_ideal: most(|row| row.ideal),
        pod_seconds: pods_ms.div_ceil(1_000),
        ideal_pod_seconds: rows.iter().map(|row| u64::from(row.ideal) * scenario.row_ms).sum::<u64>().div_ceil(1_000),
    }
}

/// How a request ended.
struct Ended {
    /// What was added to its work; `None` if no pod answered it.
    wait_ms: Option<u64>,
}

/// All clients, with the connections that they keep.
struct Clients {
    gateway: Arc<Gateway>,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    ended: Mutex<Vec<Ended>>,
    refused: Mutex<usize>,
}

impl Clients {
    fn new(gateway: Arc<Gateway>) -> Arc<Self> {
        Arc::new(Self { gateway, idle: Mutex::default(), ended: Mutex::default(), refused: Mutex::default() })
    }

    /// Sends every request when it is due, and waits for the answers.
    async fn send_all(self: Arc<Self>, arrivals: Vec<Arrival>, start: Instant) {
        let tasks = TaskTracker::new();
        for arrival in arrivals {
            sleep_until(start + Duration::from_millis(arrival.at_ms)).await;
            tasks.spawn(self.clone().send(arrival.work_ms));
        }
        tasks.close();
        tasks.wait().await;
    }

    async fn send(self: Arc<Self>, work_ms: u64) {
        let sent = Instant::now();
        let answered = matches!(self.exchange(work_ms).await, Ok(StatusCode::OK));
        let took_ms = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.ended.lock().push(Ended { wait_ms: answered.then(|| took_ms.saturating_sub(work_ms)) });
        *self.refused.lock() += usize::from(!answered);
    }

    /// Refusals since the last call.
    fn take_refused(&self) -> usize {
        std::mem::take(&mut *self.refused.lock())
    }

    async fn exchange(&self, work_ms: u64) -> hyper::Result<StatusCode> {
        let mut connection = self.connection().await?;
        let request = Request::get("/").header("host", format!("{NAME}.{}.localhost", NAMESPACES[0]));
        let request = request.header(WORK, (work_ms * 1_000).to_string()).body(Empty::new());
        let response = connection.send_request(request.expect("the request's parts are valid")).await?;
        let status = response.status();
        response.into_body().collect().await?;
        self.idle.lock().push(connection);
        Ok(status)
    }

    /// A connection that is still good, or a new one.
    async fn connection(&self) -> hyper::Result<SendRequest<Empty<Bytes>>> {
        loop {
            let idle = self.idle.lock().pop();
            let Some(mut connection) = idle else { break };
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let (near, far) = duplex(BUFFER);
        let gateway = self.gateway.clone();
        let peer = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 9), 40_000));
        tokio::spawn(async move { gateway.serve(far, peer).await });
        let (sender, connection) = handshake(TokioIo::new(near)).await?;
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}
