//! Many services: the API server with its store on disk, the controllers and the gateway, all real and in this process,
//! over a node whose pods are entries of a table. What is measured is the platform without its sandboxes.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use api::serving::Service;
use apiserver::body::BoxError;
use apiserver::{ApiServer, User};
use bytes::Bytes;
use client::images::{ImageError, ImageResolver, RegistryAuth};
use client::link::{AutoscalerLink, Late};
use client::{Caches, Change};
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use gateway::transport::Stream;
use gateway::{Dialer, Gateway};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use serde_json::json;
use serving::Serving;
use tokio::io::duplex;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::memory::{Usage, resident_mib};
use super::stats::Summary;

/// The one node.
const NODE: &str = "simulated";
/// From a pod's address until its container listens.
const START: Duration = Duration::from_millis(5);
/// Requests that are under way at the same time while many services start, and services that are created at once.
const WIDTH: usize = 128;
/// Cold starts one at a time.
const SAMPLES: usize = 200;
/// Longest wait for anything.
const LIMIT: Duration = Duration::from_secs(180);
/// Bytes that a connection holds in each direction.
const BUFFER: usize = 8 * 1024;

/// What was measured with that many services.
#[derive(Clone, Debug, Serialize)]
pub struct Scale {
    /// Services that exist.
    pub services: usize,
    /// Those that were created for this row, each with its first pod.
    pub created: usize,
    /// Services that became Ready, a second.
    pub created_per_second: f64,
    /// From a service's creation until Ready.
    pub ready: Option<Summary>,
    /// CPU time for one of them, the simulated node and the clients included.
    pub cpu_ms_per_creation: f64,
    /// Durable writes for one of them, the user's own included.
    pub writes_per_creation: f64,
    /// One request to a service at zero, one at a time.
    pub cold: Option<Summary>,
    /// Services at zero that were called as fast as they were answered, a second.
    pub starts_per_second: f64,
    /// From such a request until its answer.
    pub start: Option<Summary>,
    /// CPU time for one of them.
    pub cpu_ms_per_start: f64,
    /// Durable writes for one of them, until all is at rest again.
    pub writes_per_start: f64,
    /// Resident memory of the process with all services at zero, in MiB.
    pub rss_mib: f64,
    /// Share of one core that the process uses then, in per cent.
    pub idle_cpu_percent: f64,
}

/// Creates services up to each of `steps` in turn, and measures with so many.
///
/// # Errors
///
/// When the platform cannot be set up in `dir`, or a service is not answered.
pub async fn run(dir: &Path, steps: &[usize], show: impl Fn(&Scale)) -> Result<Vec<Scale>> {
    let platform = Platform::start(dir).await?;
    let mut rows = Vec::new();
    let mut present = 0;
    for step in steps {
        let row = platform.measure(present, *step).await.with_context(|| format!("with {step} services"))?;
        show(&row);
        rows.push(row);
        present = *step;
    }
    platform.stop.cancel();
    Ok(rows)
}

/// The platform without sandboxes.
struct Platform {
    client: Client,
    gateway: Arc<Gateway>,
    pods: Arc<Pods>,
    writes: Arc<AtomicU64>,
    waiting: Arc<Waiting>,
    stop: CancellationToken,
    /// Keeps the autoscaler's far side alive.
    _serving: Arc<Serving>,
}

impl Platform {
    async fn start(dir: &Path) -> Result<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let config = apiserver::Config { data_dir: Some(dir.to_path_buf()), ..apiserver::Config::default() };
        let server = ApiServer::open(config).await.context("starting the API server")?;
        let live = Arc::new(client::Live::default());
        server.add_admission(Arc::new(crate::admission::BuiltIn(live.clone())));
        let writes = Arc::new(AtomicU64::new(0));
        let client = counting(server.clone(), writes.clone());
        crate::seed::install(&client).await.context("installing the platform's own objects")?;
        let caches = Caches::new(client.clone(), tasks.clone(), stop.clone());
        live.follow(&caches);
        caches.of_system::<ConfigMap>().synced().await;

        let pods = Pods::start(&caches).await?;
        let autoscaler = Late::<dyn AutoscalerLink>::new();
        let gateway = Gateway::start(
            gateway::Config {
                seed: crate::platform::random_seed(),
                dialer: Arc::new(Dial(pods.clone())),
                ..gateway::Config::default()
            },
            caches.clone(),
            autoscaler.clone(),
            Vec::new(),
            tasks.clone(),
            stop.clone(),
        );
        let config = serving::Config { node_name: Some(NODE.to_owned()), ..serving::Config::default() };
        let resolver = Arc::new(Registry);
        let serving =
            Serving::start(config, caches.clone(), gateway.clone(), resolver, tasks.clone(), stop.clone()).await;
        autoscaler.set(serving.clone());
        let config = cluster::Config { root_ca_pem: server.pki().ca_pem.clone() };
        cluster::start(config, &caches, &tasks, &stop);
        // Otherwise each round would wait for half a minute more.
        let name = api::config::autoscaler::NAME;
        let quick = json!({"data": {"scale-to-zero-grace-period": "6s"}});
        let config_maps = Api::<ConfigMap>::namespaced(client.clone(), api::SYSTEM_NAMESPACE);
        config_maps.patch(name, &PatchParams::default(), &Patch::Merge(&quick)).await?;
        let waiting = Arc::new(Waiting::default());
        let told = waiting.clone();
        caches.of::<Service>().subscribe(move |change| told.changed(change));
        Ok(Self { client, gateway, pods, writes, waiting, stop, _serving: serving })
    }

    async fn measure(&self, present: usize, services: usize) -> Result<Scale> {
        ensure!(services > present, "steps must grow: {services} after {present}");
        let created = services - present;
        let (mut begin, mut spent) = (Instant::now(), self.spent()?);
        let ready = each(present..services, |index| self.create(index)).await?;
        let created_in = begin.elapsed();
        let of_creation = self.spent()? - spent;
        self.all_zero().await?;

        let mut cold = Vec::with_capacity(SAMPLES);
        for sample in 0..SAMPLES.min(services) {
            // Spread over all of them.
            cold.push(self.call(sample * services / SAMPLES.min(services)).await?);
        }
        self.all_zero().await?;

        (begin, spent) = (Instant::now(), self.spent()?);
        let starts = each(0..services, |index| self.call(index)).await?;
        let started_in = begin.elapsed();
        let cpu_of_starts = self.spent()? - spent;
        // The statuses follow within a second; what the way back to zero costs comes later.
        sleep(Duration::from_secs(1)).await;
        let of_starts = self.spent()? - spent;
        self.all_zero().await?;
        sleep(Duration::from_secs(2)).await;
        let rss_mib = resident_mib(std::process::id())?;
        spent = self.spent()?;
        let seconds = 10;
        sleep(Duration::from_secs(seconds)).await;
        let idle = self.spent()? - spent;
        let per = |value: f64, count: usize| value / count_of(count);
        Ok(Scale {
            services,
            created,
            created_per_second: count_of(created) / created_in.as_secs_f64(),
            ready: Summary::of(&ready),
            cpu_ms_per_creation: per(of_creation.cpu_seconds * 1000.0, created),
            writes_per_creation: per(of_creation.writes, created),
            cold: Summary::of(&cold),
            starts_per_second: count_of(services) / started_in.as_secs_f64(),
            start: Summary::of(&starts),
            cpu_ms_per_start: per(cpu_of_starts.cpu_seconds * 1000.0, services),
            writes_per_start: per(of_starts.writes, services),
            rss_mib,
            #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
            idle_cpu_percent: idle.cpu_seconds / seconds as f64 * 100.0,
        })
    }

    fn spent(&self) -> Result<Spent> {
        #[expect(clippy::cast_precision_loss, reason = "a count of writes")]
        let writes = self.writes.load(Ordering::Relaxed) as f64;
        Ok(Spent { cpu_seconds: Usage::of(std::process::id())?.cpu_seconds, writes })
    }

    /// Creates a service; how long it took until Ready.
    async fn create(&self, index: usize) -> Result<Duration> {
        let name = name(index);
        let object = json!({
            "metadata": {"name": name},
            "spec": {"template": {
                "metadata": {"annotations": {"autoscaling.knative.dev/window": "6s"}},
                "spec": {"containers": [{"image": "bench.example/simulated:1"}]},
            }},
        });
        let object: Service = serde_json::from_value(object)?;
        let ready = self.waiting.expect(&name);
        let begin = Instant::now();
        let api = Api::<Service>::namespaced(self.client.clone(), "default");
        api.create(&PostParams::default(), &object).await.with_context(|| format!("creating {name}"))?;
        timeout(LIMIT, ready).await.with_context(|| format!("{name} is not Ready after {LIMIT:?}"))??;
        Ok(begin.elapsed())
    }

    /// Sends one request to a service over a connection of its own; how long it took until the answer.
    async fn call(&self, index: usize) -> Result<Duration> {
        let begin = Instant::now();
        let (near, far) = duplex(BUFFER);
        let gateway = self.gateway.clone();
        let peer = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 9), 40_000));
        tokio::spawn(async move { gateway.serve(far, peer).await });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
        // It ends with the answer.
        tokio::spawn(async move { drop(connection.await) });
        let host = format!("{}.default.localhost", name(index));
        let request = Request::get("/").header("host", host).body(Empty::<Bytes>::new())?;
        let response = timeout(LIMIT, sender.send_request(request)).await??;
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        ensure!(status == StatusCode::OK, "{} was answered {status}: {}", name(index), String::from_utf8_lossy(&text));
        Ok(begin.elapsed())
    }

    async fn all_zero(&self) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < LIMIT {
            if self.pods.count() == 0 {
                // The last statuses are on their way.
                sleep(Duration::from_secs(1)).await;
                return Ok(());
            }
            sleep(Duration::from_millis(100)).await;
        }
        bail!("{} pods are still there after {LIMIT:?}", self.pods.count())
    }
}

/// Does `work` for each index, [`WIDTH`] at a time.
async fn each<F>(indices: std::ops::Range<usize>, work: impl Fn(usize) -> F) -> Result<Vec<Duration>>
where
    F: Future<Output = Result<Duration>>,
{
    futures::stream::iter(indices).map(work).buffer_unordered(WIDTH).try_collect().await
}

fn name(index: usize) -> String {
    format!("scale-{index}")
}

#[expect(clippy::cast_precision_loss, reason = "a count of services")]
fn count_of(count: usize) -> f64 {
    count.max(1) as f64
}

/// What the process has used.
#[derive(Clone, Copy)]
struct Spent {
    cpu_seconds: f64,
    writes: f64,
}

impl std::ops::Sub for Spent {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { cpu_seconds: self.cpu_seconds - before.cpu_seconds, writes: self.writes - before.writes }
    }
}

/// A client like that of the platform's own process, which counts the durable writes: all that changed something, but
/// Leases, Events and the statuses of pods.
fn counting(server: Arc<ApiServer>, writes: Arc<AtomicU64>) -> Client {
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let (server, writes) = (server.clone(), writes.clone());
        let answer: BoxFuture<'static, Result<apiserver::body::Response, BoxError>> = Box::pin(async move {
            let path = request.uri().path();
            let lazy = ["/events", "/leases"].iter().any(|lazy| path.contains(lazy))
                || (path.contains("/pods/") && path.ends_with("/status"));
            let counts = *request.method() != Method::GET && !lazy;
            let mut request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
            request.headers_mut().insert(client::WITHOUT_MANAGED_FIELDS, HeaderValue::from_static("true"));
            let response = server.handle(User::master("system:colibri"), request).await;
            if counts && response.status().is_success() {
                writes.fetch_add(1, Ordering::Relaxed);
            }
            Ok(response)
        });
        answer
    });
    Client::new(service, "default")
}

/// Those who wait for a service to be Ready.
#[derive(Default)]
struct Waiting(Mutex<HashMap<String, oneshot::Sender<()>>>);

impl Waiting {
    fn expect(&self, name: &str) -> oneshot::Receiver<()> {
        let (told, ready) = oneshot::channel();
        self.0.lock().insert(name.to_owned(), told);
        ready
    }

    fn changed(&self, change: &Change<Service>) {
        let Some(service) = &change.new else { return };
        let conditions = service.status.iter().flat_map(|status| &status.conditions);
        let mut ready = conditions.filter(|condition| condition.kind == api::conditions::READY);
        if ready.any(|ready| ready.status == api::conditions::ConditionStatus::True)
            && let Some(told) = self.0.lock().remove(&service.name_any())
        {
            // Whoever gave up does not listen any more.
            let _ = told.send(());
        }
    }
}

/// A registry that knows every image.
struct Registry;

impl ImageResolver for Registry {
    fn resolve(&self, reference: String, _auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        let repository = reference.rsplit_once(':').map_or(reference.as_str(), |(repository, _)| repository);
        let resolved = format!("{repository}@sha256:{}", "0".repeat(64));
        Box::pin(async move { Ok(resolved) })
    }
}

/// The simulated node.
struct Pods {
    client: Client,
    /// Addresses of the pods whose containers listen.
    listening: RwLock<HashSet<IpAddr>>,
    addresses: Mutex<HashMap<String, IpAddr>>,
    next: AtomicU32,
    count: AtomicUsize,
}

impl Pods {
    async fn start(caches: &Caches) -> Result<Arc<Self>> {
        let client = caches.client().clone();
        let nodes = Api::<Node>::all(client.clone());
        let node = json!({"metadata": {"name": NODE}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        let room = json!({"cpu": "100000", "memory": "1Pi", "pods": "100000"});
        let status = json!({"status": {
            "capacity": room, "allocatable": room, "conditions": [{"type": "Ready", "status": "True"}],
        }});
        nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(&status)).await?;
        let pods = Arc::new(Self {
            client,
            listening: RwLock::default(),
            addresses: Mutex::default(),
            next: AtomicU32::new(u32::from(Ipv4Addr::new(10, 0, 0, 1))),
            count: AtomicUsize::new(0),
        });
        let this = pods.clone();
        caches.of::<Pod>().subscribe(move |change| this.changed(change));
        Ok(pods)
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    fn changed(self: &Arc<Self>, change: &Change<Pod>) {
        match (&change.old, &change.new) {
            (None, Some(pod)) => {
                self.count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(self.clone().begin(pod.clone()));
            }
            (Some(old), Some(pod))
                if old.metadata.deletion_timestamp.is_none() && pod.metadata.deletion_timestamp.is_some() =>
            {
                tokio::spawn(self.clone().end(pod.clone()));
            }
            (Some(_), None) => {
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    async fn begin(self: Arc<Self>, pod: Arc<Pod>) {
        let address = IpAddr::V4(Ipv4Addr::from(self.next.fetch_add(1, Ordering::Relaxed)));
        self.addresses.lock().insert(pod.name_any(), address);
        self.tell(&pod, address, false).await;
        sleep(START).await;
        self.listening.write().insert(address);
        self.tell(&pod, address, true).await;
    }

    async fn end(self: Arc<Self>, pod: Arc<Pod>) {
        let address = self.addresses.lock().remove(&pod.name_any());
        if let Some(address) = address {
            self.listening.write().remove(&address);
        }
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        if let Err(error) = api.delete(&pod.name_any(), &now).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a simulated pod cannot be deleted");
        }
    }

    async fn tell(&self, pod: &Pod, address: IpAddr, ready: bool) {
        let status = if ready { "True" } else { "False" };
        let state = if ready {
            json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}})
        } else {
            json!({"waiting": {"reason": "ContainerCreating"}})
        };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
        let containers: Vec<_> = containers
            .map(|container| {
                json!({
                    "name": container.name, "image": container.image, "imageID": "", "ready": ready, "started": ready,
                    "restartCount": 0, "state": state,
                })
            })
            .collect();
        let condition = |kind: &str| json!({"type": kind, "status": status});
        let patch = json!({"status": {
            "phase": if ready { "Running" } else { "Pending" }, "podIP": address, "podIPs": [{"ip": address}],
            "containerStatuses": containers, "conditions": [condition("ContainersReady"), condition("Ready")],
        }});
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a simulated pod cannot tell its status");
            }
            Ok(_) => {}
        }
    }
}

/// The gateway's way to the simulated pods: an HTTP server in memory behind each address that listens.
struct Dial(Arc<Pods>);

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

impl Dialer for Dial {
    fn dial(&self, address: SocketAddr) -> BoxFuture<'static, std::io::Result<Stream>> {
        let listens = self.0.listening.read().contains(&address.ip());
        Box::pin(async move {
            if !listens {
                return Err(std::io::ErrorKind::ConnectionRefused.into());
            }
            let (near, far) = duplex(BUFFER);
            let service =
                service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok")))));
            tokio::spawn(async move {
                // What breaks is the gateway's to see.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).await;
            });
            Ok(Stream::Other(Box::new(near)))
        })
    }
}

impl Scale {
    /// Lines for people.
    pub fn table(&self) -> String {
        let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::percentiles);
        format!(
            "{} created: {:.0}/s, created to Ready {}, {:.2} ms of CPU and {:.1} durable writes each\none from zero: {}\nall from zero, {WIDTH} at a time: {:.0}/s, {}, {:.2} ms of CPU and {:.1} durable writes each\nat rest: {:.0} MiB, {:.2} % of a core",
            self.created,
            self.created_per_second,
            short(&self.ready),
            self.cpu_ms_per_creation,
            self.writes_per_creation,
            short(&self.cold),
            self.starts_per_second,
            short(&self.start),
            self.cpu_ms_per_start,
            self.writes_per_start,
            self.rss_mib,
            self.idle_cpu_percent
        )
    }
}
