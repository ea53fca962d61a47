//! One seed's world: everything put together, an hour of trouble, and what must be left of it.
//!
//! | minutes | what happens |
//! |---|---|
//! | 0-40 | faults; users make, change, break, delete, split traffic, move tags, map domains; operators change settings; clients send; controllers crash; nodes get lost |
//! | 40-50 | no faults and no changes, one more restart; clients send: soon every request must be answered by a pod, and so every domain and tag |
//! | 50-57 | nobody sends: every app settles at its least scale, and then nothing writes any more |
//! | 57-60 | all apps are deleted: nothing of them is left |

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::config::{self as settings, Map};
use api::functions::Function;
use api::serving::annotations::{self, REVISION_LABEL};
use api::serving::{Revision, Route, Service};
use apiserver::{Admission, AdmissionError, AdmissionRequest, ApiServer, Operation, User};
use base::{MappingId, PodId, RevisionId, RouteId};
use client::link::{AutoscalerLink, GatewayLink, Late, Stat};
use client::{Caches, Live};
use futures::future::BoxFuture;
use gateway::Gateway;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DynamicObject, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use serving::Serving;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::checks::{Checks, Counts};
use crate::dice::Dice;
use crate::domains::Domains;
use crate::images::{Code, Nowhere, Registry};
use crate::network::{Dial, Network};
use crate::nodes::Nodes;
use crate::note;
use crate::settings::Operators;
use crate::trace::Trace;
use crate::traffic::Traffic;
use crate::users::{App, NAMESPACES, TAGS, Users};
use crate::wire::{Role, Wire};

/// Most requests that the gateway lets wait for one Revision.
pub const QUEUE_LIMIT: usize = 60;

/// How a run goes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything follows from it.
    pub seed: u64,
    /// Services and functions.
    pub apps: usize,
    /// Whether there are faults.
    pub faults: bool,
    /// A component that is broken on purpose.
    pub sabotage: Option<Sabotage>,
    /// Where the trace is written.
    pub trace: Option<PathBuf>,
    /// Most requests that the gateway lets wait for one Revision.
    pub queue_limit: usize,
    /// How long the status of a scale waits for further changes.
    pub status_delay: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        let status_delay = serving::Config::default().status_delay;
        Self { seed: 0, apps: 0, faults: false, sabotage: None, trace: None, queue_limit: QUEUE_LIMIT, status_delay }
    }
}

/// A component that is broken on purpose: the invariants must see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sabotage {
    /// The gateway does not know `containerConcurrency`.
    IgnoreConcurrency,
    /// The autoscaler does not know `max-scale`.
    IgnoreMaxScale,
    /// The gateway calls instances drained that are not.
    SkipDraining,
    /// No word of the gateway reaches the autoscaler.
    LoseReports,
    /// The controllers' deletions of anything but pods are not carried out.
    KeepGarbage,
    /// The gateway takes the claims of one namespace for another's.
    ForgeClaims,
    /// The gateway takes one tag for another.
    MistakeTags,
    /// One per cent of a split gets lost.
    LoseShare,
    /// A Route's status that is late takes the place of a newer one.
    StaleRoutes,
    /// The controllers do not know that traffic moves gradually.
    JumpRollouts,
    /// The collector of Revisions mistakes one for the one after it.
    CollectUsed,
    /// The collector of Revisions does not know the times and the limit in `config-gc`.
    IgnoreGc,
    /// The autoscaler does not know the least and the greatest scale in `config-autoscaler`.
    IgnoreSettings,
    /// Admission does not see the ConfigMaps.
    BlindAdmission,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Hash and length of the trace.
    pub trace: (u64, u64),
    /// What was broken.
    pub breaches: Vec<String>,
    /// The trace's last lines, if something was broken.
    pub last: Vec<String>,
    /// What the checks saw.
    pub counts: Counts,
    /// Requests sent, and those refused or broken off.
    pub requests: (usize, usize),
}

/// Runs one seed on this thread, which must not have run anything before.
///
/// # Errors
///
/// When the world cannot be set up.
pub fn run(plan: &Plan) -> anyhow::Result<Report> {
    in_virtual_time(plan.seed, live(plan))
}

/// Runs a world on this thread, which must not have run anything before, with the clock and the randomness of `seed`.
pub(crate) fn in_virtual_time<T>(seed: u64, life: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    crate::os::seed_thread(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let end = runtime.block_on(async {
        crate::os::follow_paused_clock();
        let end = life.await;
        crate::os::leave_paused_clock();
        end
    });
    // What still runs would only be taken down task by task.
    std::mem::forget(runtime);
    end
}

async fn live(plan: &Plan) -> anyhow::Result<Report> {
    let trace = Arc::new(Trace::new(plan.trace.as_deref())?);
    let world = World::start(plan, trace.clone()).await?;
    tokio::select! {
        biased;
        () = breached(&world.checks) => {}
        result = world.clone().hour(plan.faults) => result?,
    }
    trace.flush();
    let breaches = world.checks.breaches();
    let last = if breaches.is_empty() { Vec::new() } else { trace.last() };
    let (counts, requests) = (world.checks.counts(), world.traffic.counts());
    Ok(Report { seed: plan.seed, trace: trace.hash(), breaches, last, counts, requests })
}

async fn breached(checks: &Checks) {
    while checks.breaches().is_empty() {
        sleep(Duration::from_secs(1)).await;
    }
}

/// The parts of one seed's world.
pub(crate) struct World {
    seed: u64,
    status_delay: Duration,
    pub(crate) wire: Arc<Wire>,
    trace: Arc<Trace>,
    pub(crate) checks: Arc<Checks>,
    pub(crate) nodes: Arc<Nodes>,
    users: Arc<Users>,
    domains: Arc<Domains>,
    operators: Arc<Operators>,
    traffic: Arc<Traffic>,
    pub(crate) gateway: Arc<Link>,
    autoscaler: Arc<Late<dyn AutoscalerLink>>,
    pub(crate) client: Client,
    baseline: BTreeSet<String>,
    controllers: Mutex<Option<Controllers>>,
}

/// One life of the controllers.
struct Controllers {
    tasks: TaskTracker,
    stop: CancellationToken,
    crashed: CancellationToken,
    /// Keeps the autoscaler's far side alive.
    _serving: Arc<Serving>,
}

impl World {
    pub(crate) async fn start(plan: &Plan, trace: Arc<Trace>) -> anyhow::Result<Arc<Self>> {
        let seed = plan.seed;
        let server = ApiServer::open(apiserver::Config::default()).await?;
        let admission = Arc::new(BuiltIn { live: Arc::default(), sabotage: plan.sabotage });
        server.add_admission(admission.clone());
        install(&server.client(User::master("system:colibri"))).await?;
        let wire = Wire::new(server, trace.clone(), seed, plan.sabotage);
        let checks = Checks::new(trace.clone());
        let network = Network::new(checks.clone());
        let never = CancellationToken::new();
        let caches = |role| Caches::new(wire.client(role, never.clone()), TaskTracker::new(), never.clone());
        checks.observe(&caches(Role::Observer), &network);
        if plan.sabotage != Some(Sabotage::BlindAdmission) {
            admission.live.follow(&caches(Role::Admission));
        }

        // Machine mode binds pods as it makes them; on a cluster there is a scheduler.
        let names: &[&str] = if seed.is_multiple_of(2) { &["node-0"] } else { &["node-0", "node-1", "node-2"] };
        let (dice, of_nodes) = (|name: &str| Dice::new(seed, name), caches(Role::Node));
        let nodes =
            Nodes::start(names, &of_nodes, network.clone(), checks.clone(), wire.clone(), trace.clone(), dice("nodes"))
                .await?;

        let autoscaler = Late::<dyn AutoscalerLink>::new();
        let mouthpiece = Arc::new(Mouthpiece { autoscaler: autoscaler.clone(), sabotage: plan.sabotage });
        let config = gateway::Config {
            queue_limit: plan.queue_limit,
            seed,
            dialer: Arc::new(Dial(network.clone())),
            ..gateway::Config::default()
        };
        let of_gateway = caches(Role::Gateway);
        let gateway = Gateway::start(config, of_gateway, mouthpiece, Vec::new(), TaskTracker::new(), never.clone());
        let client = wire.client(Role::User, never);
        let users = Users::new(client.clone(), trace.clone(), dice("users"), plan.apps);
        let domains = Domains::new(client.clone(), trace.clone(), dice("domains"), checks.clone(), &users);
        let operators = Operators::new(client.clone(), trace.clone(), dice("operators"), checks.clone());
        operators.begin().await;
        let traffic = Traffic::new(gateway.clone(), users.clone(), checks.clone(), trace.clone(), dice("traffic"));
        let gateway = Arc::new(Link { gateway, sabotage: plan.sabotage });
        let mut world = Self {
            seed,
            status_delay: plan.status_delay,
            wire,
            trace,
            checks,
            nodes,
            users,
            domains,
            operators,
            traffic,
            gateway,
            autoscaler,
            client,
            baseline: BTreeSet::new(),
            controllers: Mutex::default(),
        };
        world.start_controllers().await;
        sleep(Duration::from_secs(5)).await;
        world.baseline = world.objects().await?;
        Ok(Arc::new(world))
    }

    async fn start_controllers(&self) {
        let (tasks, stop, crashed) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
        let caches = Caches::new(self.wire.client(Role::Controllers, crashed.clone()), tasks.clone(), stop.clone());
        let registry = Registry::new(self.wire.clone(), Dice::new(self.seed, "registry"));
        let node_name = self.seed.is_multiple_of(2).then(|| "node-0".to_owned());
        let config = serving::Config { node_name, status_delay: self.status_delay, ..serving::Config::default() };
        let gateway = self.gateway.clone();
        let serving = Serving::start(config, caches.clone(), gateway, registry, tasks.clone(), stop.clone()).await;
        self.autoscaler.set(serving.clone());
        functions::Functions::start(
            functions::Config::default(),
            caches.clone(),
            Arc::new(Code::default()),
            Arc::new(Nowhere),
            &tasks,
            &stop,
        );
        cluster::start(cluster::Config { root_ca_pem: "none".to_owned() }, &caches, &tasks, &stop);
        *self.controllers.lock() = Some(Controllers { tasks, stop, crashed, _serving: serving });
        note!(self.trace, "the controllers run");
    }

    /// Stops the controllers, in order or not, and starts them again.
    async fn restart_controllers(&self, dice: &Dice) {
        let crash = dice.chance(500);
        let Some(controllers) = self.controllers.lock().take() else { return };
        note!(self.trace, "the controllers {}", if crash { "crash" } else { "stop" });
        if crash {
            controllers.crashed.cancel();
        }
        controllers.stop.cancel();
        controllers.tasks.close();
        if !crash {
            controllers.tasks.wait().await;
        }
        drop(controllers);
        sleep(dice.millis(10..20_000)).await;
        self.start_controllers().await;
    }

    async fn hour(self: Arc<Self>, faults: bool) -> anyhow::Result<()> {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        let (repair, quiet, settled) = if faults { (at(40), at(50), at(57)) } else { (at(2), at(10), at(17)) };
        self.wire.set_faults(faults);
        self.traffic.set_calm(!faults);
        for index in 0..self.users.apps().len() {
            tokio::spawn(self.clone().appear(index));
            tokio::spawn(self.traffic.clone().run(index, quiet));
        }
        tokio::spawn(self.clone().trouble_domains(repair));
        tokio::spawn(self.clone().trouble_settings(repair));
        if faults {
            let trouble = [
                tokio::spawn(self.clone().trouble_users(repair)),
                tokio::spawn(self.clone().trouble_controllers(repair)),
                tokio::spawn(self.clone().trouble_nodes(repair)),
            ];
            for part in trouble {
                part.await?;
            }
        }
        sleep_until(repair).await;
        self.wire.set_faults(false);
        self.traffic.set_calm(true);
        self.users.repair().await;
        // What has begun goes on.
        let dice = Dice::new(self.seed, "last restart");
        sleep(dice.seconds(2..30)).await;
        self.restart_controllers(&dice).await;
        sleep_until(quiet - Duration::from_secs(60)).await;
        self.domains.check(&self.traffic).await?;
        self.check_traffic().await?;
        sleep_until(settled - Duration::from_secs(60)).await;
        self.check_settled().await?;
        let writes = self.wire.writes();
        sleep_until(settled).await;
        let since = self.wire.writes() - writes;
        if since > 0 {
            self.checks.breach(format!("{since} writes in a minute in which nothing happened"));
        }
        self.domains.leave().await;
        for index in 0..self.users.apps().len() {
            self.users.delete(index).await;
        }
        sleep(Duration::from_secs(170)).await;
        self.check_clean().await
    }

    async fn appear(self: Arc<Self>, index: usize) {
        sleep(Dice::new(self.seed, &format!("app {index}")).millis(0..60_000)).await;
        self.users.make(index).await;
    }

    async fn trouble_users(self: Arc<Self>, end: Instant) {
        let dice = Dice::new(self.seed, "pauses of users");
        loop {
            let next = Instant::now() + dice.seconds(25..280);
            if next >= end {
                return;
            }
            sleep_until(next).await;
            let app = self.users.app(self.users.act().await);
            let (tag, by_host) = (*dice.pick::<&str>(&TAGS), dice.chance(500));
            let (traffic, pause) = (self.traffic.clone(), dice.millis(0..20_000));
            // Whatever the answer is: no pod but those that the tag leads to may see the request.
            tokio::spawn(async move {
                sleep(pause).await;
                match by_host {
                    true => traffic.ask(&app.tag_host(tag), "").await,
                    false => traffic.ask(&app.host(), tag).await,
                }
            });
        }
    }

    async fn trouble_settings(self: Arc<Self>, end: Instant) {
        loop {
            let next = Instant::now() + self.operators.pause();
            if next + Duration::from_secs(5) >= end {
                return;
            }
            sleep_until(next).await;
            self.operators.act().await;
            let operators = self.operators.clone();
            tokio::spawn(async move { operators.ask().await });
        }
    }

    async fn trouble_domains(self: Arc<Self>, end: Instant) {
        let dice = Dice::new(self.seed, "pauses of owners");
        loop {
            let next = Instant::now() + dice.seconds(20..340);
            // Whoever maps a domain at the last moment would not be done when everything has to be.
            if next + Duration::from_secs(5) >= end {
                return;
            }
            sleep_until(next).await;
            let (domain, traffic) = (self.domains.act().await, self.traffic.clone());
            let pause = dice.millis(0..20_000);
            // Whatever the answer is: no pod but those that the domain leads to may see the request.
            tokio::spawn(async move {
                sleep(pause).await;
                traffic.ask(&domain, "").await;
            });
        }
    }

    async fn trouble_controllers(self: Arc<Self>, end: Instant) {
        let dice = Dice::new(self.seed, "controllers");
        loop {
            let next = Instant::now() + dice.seconds(120..1_200);
            if next + Duration::from_secs(60) >= end {
                return;
            }
            sleep_until(next).await;
            self.restart_controllers(&dice).await;
        }
    }

    /// A single node is the machine itself: only one of several gets lost.
    async fn trouble_nodes(self: Arc<Self>, end: Instant) {
        let dice = Dice::new(self.seed, "loss of nodes");
        let names = self.nodes.names();
        loop {
            let (next, time) = (Instant::now() + dice.seconds(120..900), dice.seconds(5..240));
            if names.len() < 2 || next + time >= end {
                return;
            }
            sleep_until(next).await;
            self.nodes.lose(dice.pick::<String>(&names), time).await;
        }
    }

    /// Every rollout has ended, and every tag is answered by the version that it names.
    async fn check_traffic(&self) -> anyhow::Result<()> {
        for app in self.users.apps() {
            let route = Api::<Route>::namespaced(self.client.clone(), app.namespace).get_opt(&app.name).await?;
            let traffic = route.and_then(|route| route.status).map(|status| status.traffic).unwrap_or_default();
            let newest = self.newest(&app).await?;
            let shares = traffic.iter().filter(|target| target.percent.unwrap_or_default() > 0);
            if !shares.map(|target| target.revision_name.as_ref()).eq([Some(&newest)]) {
                self.checks.breach(format!("a rollout of {} to {newest} has not ended: {traffic:?}", app.host()));
            }
            for (tag, revision) in &app.tags {
                let wanted = format!("200 {}", revision.as_ref().unwrap_or(&newest));
                for (host, tag) in [(app.tag_host(tag), ""), (app.host(), *tag)] {
                    let answer = self.traffic.ask(&host, tag).await;
                    if answer != wanted {
                        self.checks.breach(format!("{host} {tag} was answered by {answer:?}, not by {wanted:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Every app is as its owner wants it, at its least scale.
    async fn check_settled(&self) -> anyhow::Result<()> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let revisions = Api::<Revision>::all(self.client.clone()).list(&ListParams::default()).await?.items;
        let settings = self.checks.settings();
        self.checks.check_garbage();
        for app in self.users.apps() {
            let object = self.app_object(&app).await?;
            if let Some(why) = not_settled(&app, &object) {
                self.checks.breach(format!("{} is not as wanted: {why}: {}", app.host(), object["status"]));
            }
            let newest = self.newest(&app).await?;
            for revision in revisions.iter().filter(|revision| belongs(revision, &app)) {
                let name = revision.name_any();
                let least = if self.checks.is_served(app.namespace, &name) {
                    least_scale(revision, &settings.autoscaler)
                } else {
                    0
                };
                let wanted = if name == newest { least.max(app.min_scale as usize) } else { least };
                let of_revision = pods.iter().filter(|pod| {
                    pod.namespace().as_deref() == Some(app.namespace) && pod.labels().get(REVISION_LABEL) == Some(&name)
                });
                let count = of_revision.count();
                if count != wanted {
                    let least = settings.autoscaler.min_scale;
                    self.checks.breach(format!(
                        "{name} of {} rests with {count} pods, not {wanted}; min-scale in config-autoscaler is {least}",
                        app.host()
                    ));
                }
                let told = revision.status.as_ref().and_then(|status| status.actual_replicas).unwrap_or_default();
                if usize::try_from(told).ok() != Some(count) {
                    self.checks.breach(format!("{name} of {} tells of {told} pods, not {count}", app.host()));
                }
            }
        }
        if self.traffic.waiting() > 0 {
            self.checks.breach(format!("{} requests are still without an answer", self.traffic.waiting()));
        }
        Ok(())
    }

    async fn app_object(&self, app: &App) -> anyhow::Result<Value> {
        let object = if app.function {
            let api = Api::<Function>::namespaced(self.client.clone(), app.namespace);
            api.get_opt(&app.name).await?.map(serde_json::to_value)
        } else {
            let api = Api::<Service>::namespaced(self.client.clone(), app.namespace);
            api.get_opt(&app.name).await?.map(serde_json::to_value)
        };
        Ok(object.transpose()?.unwrap_or_default())
    }

    async fn newest(&self, app: &App) -> anyhow::Result<String> {
        let service = Api::<Service>::namespaced(self.client.clone(), app.namespace).get_opt(&app.name).await?;
        let status = service.and_then(|service| service.status);
        Ok(status.and_then(|status| status.latest_created_revision_name).unwrap_or_default())
    }

    /// Nothing is left of the apps.
    async fn check_clean(&self) -> anyhow::Result<()> {
        for left in self.objects().await?.difference(&self.baseline) {
            self.checks.breach(format!("{left} is left behind"));
        }
        if self.nodes.held() > 0 {
            self.checks.breach(format!("the nodes still hold {} pods", self.nodes.held()));
        }
        Ok(())
    }

    /// Names of all objects.
    async fn objects(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut found = BTreeSet::new();
        for kind in cluster::resources::deletable(&self.client).await? {
            let api = Api::<DynamicObject>::all_with(self.client.clone(), &kind.resource);
            for object in api.list_metadata(&ListParams::default()).await?.items {
                let namespace = object.namespace().unwrap_or_default();
                found.insert(format!("{} {namespace}/{}", kind.resource.kind, object.name_any()));
            }
        }
        Ok(found)
    }
}

/// Pods of a Revision that a Route leads to and nobody asks anything.
fn least_scale(revision: &Revision, settings: &settings::Autoscaler) -> usize {
    let own = |key| annotations::value(revision.annotations(), key).and_then(|text| text.parse::<i32>().ok());
    let least = own(annotations::MIN_SCALE).unwrap_or(settings.min_scale);
    let most = own(annotations::MAX_SCALE).unwrap_or(settings.max_scale);
    usize::try_from(if most > 0 { least.min(most) } else { least }).unwrap_or_default()
}

fn belongs(revision: &Revision, app: &App) -> bool {
    revision.namespace().as_deref() == Some(app.namespace)
        && revision.labels().get("serving.knative.dev/service") == Some(&app.name)
}

fn not_settled(app: &App, object: &Value) -> Option<String> {
    let status = &object["status"];
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    if object.is_null() {
        Some("it does not exist".to_owned())
    } else if status["observedGeneration"] != object["metadata"]["generation"] {
        Some("its status is old".to_owned())
    } else if !ready {
        Some("it is not ready".to_owned())
    } else if !app.function && status["latestReadyRevisionName"] != status["latestCreatedRevisionName"] {
        Some("its newest version is not ready".to_owned())
    } else {
        None
    }
}

/// The gateway as the controllers see it.
pub(crate) struct Link {
    pub(crate) gateway: Arc<Gateway>,
    sabotage: Option<Sabotage>,
}

impl GatewayLink for Link {
    fn programmed(&self, route: RouteId, generation: i64) -> BoxFuture<'static, ()> {
        self.gateway.programmed(route, generation)
    }

    fn mapped(&self, mapping: MappingId, generation: i64) -> BoxFuture<'static, ()> {
        self.gateway.mapped(mapping, generation)
    }

    fn retire(&self, revision: RevisionId, count: usize, drain_timeout: Duration) -> BoxFuture<'static, Vec<PodId>> {
        let skip = self.sabotage == Some(Sabotage::SkipDraining);
        self.gateway.retire(revision, count, if skip { Duration::ZERO } else { drain_timeout })
    }

    fn load(&self, revision: &RevisionId) -> usize {
        self.gateway.load(revision)
    }
}

/// The autoscaler as the gateway sees it.
struct Mouthpiece {
    autoscaler: Arc<Late<dyn AutoscalerLink>>,
    sabotage: Option<Sabotage>,
}

impl AutoscalerLink for Mouthpiece {
    fn report(&self, stats: &[Stat]) {
        if self.sabotage != Some(Sabotage::LoseReports) {
            self.autoscaler.report(stats);
        }
    }

    fn poke(&self, revision: &RevisionId) {
        if self.sabotage != Some(Sabotage::LoseReports) {
            self.autoscaler.poke(revision);
        }
    }
}

/// What the platform installs, and the namespaces of the apps.
async fn install(client: &Client) -> anyhow::Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in api::crds::all() {
        definitions.create(&PostParams::default(), &definition).await?;
    }
    let namespaces = Api::<Namespace>::all(client.clone());
    for name in NAMESPACES.into_iter().chain([api::SYSTEM_NAMESPACE]) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
    }
    Ok(())
}

/// Defaults and checks of Knative's kinds and of the ConfigMaps, as the binary adds them.
struct BuiltIn {
    live: Arc<Live>,
    sabotage: Option<Sabotage>,
}

impl Admission for BuiltIn {
    fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError> {
        use api::serving::admission::{self, Kind};
        if request.operation == Operation::Delete || !request.subresource.is_empty() {
            return Ok(Vec::new());
        }
        let refuse = |message: String| AdmissionError { code: 400, message };
        if let Some(kind) = Kind::parse(request.kind).filter(|_| request.group == "serving.knative.dev") {
            let settings = self.live.get();
            admission::default(kind, object, request.old, &request.user.name, &settings).map_err(refuse)?;
            let verdict = admission::validate(kind, object, request.old, &settings);
            verdict.error.map_or(Ok(()), |error| Err(refuse(error)))?;
        }
        let is_setting = request.kind == "ConfigMap" && request.namespace == api::SYSTEM_NAMESPACE;
        let map = Map::of(object["metadata"]["name"].as_str().unwrap_or_default());
        if let Some(map) = map.filter(|_| is_setting && self.sabotage != Some(Sabotage::BlindAdmission)) {
            let data = serde_json::from_value(object["data"].clone()).unwrap_or_default();
            map.check(&data).map_err(|error| refuse(error.to_string()))?;
        }
        Ok(Vec::new())
    }
}
