//! Random kills of the platform, of supervisors and of containers under churn: no acknowledged write is lost, requests
//! are answered again, and at the end nothing is left on the machine.
//!
//! `COLIBRI_CHAOS_KILLS` and `COLIBRI_CHAOS_SEED` choose how many and which; `make chaos` runs 200.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Layout, Leftovers, Machine, Options, Platform, cannot_run, layout};
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use parking_lot::Mutex;
use serde_json::json;

use crate::{NO_GRACE, SHORT_WINDOW, SOON, hello_service, host};

/// Kills where nothing else is asked for: few enough for every run of the tests.
const KILLS: usize = 12;
/// Between kills, at most.
const PAUSE_MS: u64 = 700;
/// Between checks that a new service answers.
const KILLS_PER_PROBE: usize = 10;
/// Longest wait of the churn for one call.
const CALL_LIMIT: Duration = Duration::from_secs(10);
const OBJECTS: u64 = 20;
const SERVICES: u64 = 4;

/// Numbers that a seed gives again.
pub struct Random(pub u64);

impl Random {
    /// Below `limit`. SplitMix64.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

/// How the platform is reached now.
struct Access {
    client: Client,
    gateway: String,
}

/// What a key of the API must hold: one of these.
type Allowed = Vec<Option<String>>;

/// What the churn and the killer share.
#[derive(Default)]
struct World {
    access: Mutex<Option<Arc<Access>>>,
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    answered: AtomicUsize,
    refused: AtomicUsize,
    violations: Mutex<Vec<String>>,
}

impl World {
    fn access(&self) -> Option<Arc<Access>> {
        self.access.lock().clone()
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn violated(&self, text: String) {
        println!("VIOLATION {text}");
        self.violations.lock().push(text);
    }

    /// The way to the platform, once there is one.
    async fn reach(&self) -> Option<Arc<Access>> {
        while !self.stopped() {
            if let Some(access) = self.access() {
                return Some(access);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }
}

async fn connect(platform: &Platform) -> Result<Arc<Access>> {
    let kubeconfig = Kubeconfig::read_from(platform.data_dir().join("kubeconfig"))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    Ok(Arc::new(Access { client, gateway: platform.endpoint("gateway").to_owned() }))
}

/// Objects of one kind that are written all the time, and what is known of each.
struct Churn {
    world: Arc<World>,
    resource: ApiResource,
    keys: u64,
    prefix: &'static str,
    random: Random,
    known: BTreeMap<String, Allowed>,
    serial: u64,
}

impl Churn {
    fn api(&self, access: &Access) -> Api<DynamicObject> {
        Api::namespaced_with(access.client.clone(), "default", &self.resource)
    }

    fn object(&self, name: &str, value: &str) -> Result<DynamicObject> {
        let mut object = json!({
            "apiVersion": self.resource.api_version, "kind": self.resource.kind,
            "metadata": {"name": name, "annotations": {"chaos": value}},
        });
        if self.resource.kind == "Service" {
            object["spec"] = json!({"template": {
                "metadata": {"annotations": {SHORT_WINDOW.0: SHORT_WINDOW.1}},
                "spec": {"containers": [{"image": "hello:latest"}]},
            }});
        }
        Ok(serde_json::from_value(object)?)
    }

    /// What the server holds of a key; an object on its way out counts as gone.
    async fn read(&self, access: &Access, name: &str) -> Result<Option<String>> {
        let api = self.api(access);
        let found = tokio::time::timeout(CALL_LIMIT, api.get_opt(name)).await.context("no answer")??;
        let found = found.filter(|object| object.metadata.deletion_timestamp.is_none());
        Ok(found.map(|object| object.metadata.annotations.unwrap_or_default().remove("chaos").unwrap_or_default()))
    }

    /// Holds what the server has against what it acknowledged.
    async fn check(&mut self, access: &Access, name: &str) -> Result<Option<String>> {
        let found = self.read(access, name).await?;
        let allowed = self.known.get(name).cloned().unwrap_or_else(|| vec![None]);
        if !allowed.contains(&found) {
            self.world.violated(format!("{} {name} is {found:?}, acknowledged was {allowed:?}", self.resource.kind));
        }
        self.known.insert(name.to_owned(), vec![found.clone()]);
        Ok(found)
    }

    /// One write; what it leaves is noted before it is known whether it came through.
    async fn write_once(&mut self, access: &Access) -> Result<()> {
        let name = format!("{}{}", self.prefix, self.random.below(self.keys));
        let present = match self.known.get(&name).map_or(&[None][..], Vec::as_slice) {
            [one] => one.clone(),
            _ => self.check(access, &name).await?,
        };
        self.serial += 1;
        let value = self.serial.to_string();
        let api = self.api(access);
        let delete = self.random.below(3) == 0;
        let next = if present.is_some() && delete { None } else { Some(value.clone()) };
        self.known.insert(name.clone(), vec![present.clone(), next.clone()]);
        let write = async {
            match (&present, &next) {
                (None, _) => api.create(&PostParams::default(), &self.object(&name, &value)?).await.map(drop)?,
                (Some(_), Some(_)) => {
                    let patch = Patch::Merge(json!({"metadata": {"annotations": {"chaos": value}}}));
                    api.patch(&name, &PatchParams::default(), &patch).await.map(drop)?;
                }
                (Some(_), None) => api.delete(&name, &DeleteParams::default()).await.map(drop)?,
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(CALL_LIMIT, write).await.context("no answer")? {
            Ok(()) => {
                self.known.insert(name, vec![next]);
                self.world.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            // The one before is on its way out.
            Err(error) if present.is_none() && error.to_string().contains("is being deleted") => {
                self.known.insert(name, vec![None]);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn run(mut self, pause: Duration) -> Self {
        while let Some(access) = self.world.reach().await {
            if let Err(error) = self.write_once(&access).await
                && let Some(kube::Error::Api(status)) = error.downcast_ref::<kube::Error>()
                && matches!(status.code, 404 | 409)
            {
                self.world.violated(format!("{} was refused: {status:?}", self.resource.kind));
            }
            tokio::time::sleep(pause).await;
        }
        self
    }
}

/// Calls services all the time; answers may fail while something is killed.
async fn call(world: Arc<World>, mut random: Random) -> Result<()> {
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
    while let Some(access) = world.reach().await {
        let name = format!("svc{}", random.below(SERVICES));
        let answer = http.get(&access.gateway).header("host", host(&name)).send().await;
        let counter = if answer.is_ok_and(|answer| answer.status() == 200) { &world.answered } else { &world.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

#[derive(Default)]
struct Report {
    platforms: usize,
    while_starting: usize,
    supervisors: usize,
    containers: usize,
    ready: Vec<Duration>,
    probes: usize,
}

struct Killer {
    world: Arc<World>,
    random: Random,
    options: Options,
    data_dir: PathBuf,
    platform: Option<Platform>,
    report: Report,
}

impl Killer {
    async fn start(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut platform = Platform::spawn(self.options.clone()).await?;
        platform.ready().await?;
        self.report.ready.push(start.elapsed());
        *self.world.access.lock() = Some(connect(&platform).await?);
        self.platform = Some(platform);
        Ok(())
    }

    async fn kill_one(&mut self) -> Result<()> {
        match self.random.below(10) {
            0..4 if layout() != Layout::One => self.kill_role().await,
            0..4 => self.kill_platform().await,
            4..7 => {
                self.report.supervisors += self.kill_process(|(supervisors, _)| supervisors);
                Ok(())
            }
            _ => {
                self.report.containers += self.kill_process(|(_, containers)| containers);
                Ok(())
            }
        }
    }

    async fn kill_platform(&mut self) -> Result<()> {
        *self.world.access.lock() = None;
        self.platform.as_mut().context("a platform")?.kill();
        self.report.platforms += 1;
        // Now and then again before it is ready.
        while self.random.below(3) == 0 {
            let mut half = Platform::spawn(self.options.clone()).await?;
            tokio::time::sleep(Duration::from_millis(self.random.below(400))).await;
            half.kill();
            self.report.while_starting += 1;
        }
        self.start().await
    }

    /// One of the roles after the other; the rest of them go on.
    async fn kill_role(&mut self) -> Result<()> {
        let role = ["node", "apiserver", "gateway", "controller"][self.report.platforms % 4];
        self.report.platforms += 1;
        let process = self.platform.as_mut().context("a platform")?.process(role)?;
        process.kill()?;
        while self.random.below(3) == 0 {
            process.start_again()?;
            tokio::time::sleep(Duration::from_millis(self.random.below(400))).await;
            process.kill()?;
            self.report.while_starting += 1;
        }
        let start = Instant::now();
        process.start_again()?;
        process.ready(SOON).await?;
        self.report.ready.push(start.elapsed());
        Ok(())
    }

    /// How many were killed: one, or none where there is none.
    fn kill_process(&mut self, which: impl Fn((Vec<u32>, Vec<u32>)) -> Vec<u32>) -> usize {
        let found = which(e2e::pods(&self.data_dir));
        let Some(pid) = usize::try_from(self.random.below(found.len().max(1) as u64)).ok().and_then(|n| found.get(n))
        else {
            return 0;
        };
        // SAFETY: the process was seen this moment below this test's own data directory.
        let killed = unsafe { libc::kill(i32::try_from(*pid).unwrap_or(i32::MAX), libc::SIGKILL) };
        usize::from(killed == 0)
    }

    fn platform(&self) -> Result<&Platform> {
        self.platform.as_ref().context("a platform")
    }

    /// A new service answers.
    async fn probe(&mut self) -> Result<()> {
        let name = format!("probe{}", self.report.probes);
        self.report.probes += 1;
        let platform = self.platform()?;
        platform.apply(&hello_service(&name, &[SHORT_WINDOW], "")).await?;
        let start = Instant::now();
        loop {
            let last = match platform.get(&host(&name), "/").await {
                Ok(answer) if answer.status == 200 => break,
                other => format!("{other:?}"),
            };
            if start.elapsed() > SOON {
                let all = platform.kubectl(&["get", "ksvc,pods", "-o", "wide"]).await?.text();
                bail!("{name} does not answer: {last}\n{all}\n{}", platform.log());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        platform.kubectl(&["delete", "ksvc", &name, "--wait=false"]).await?.ok()?;
        Ok(())
    }
}

pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn churn(world: &Arc<World>, resource: ApiResource, keys: u64, prefix: &'static str, seed: u64) -> Churn {
    let random = Random(seed);
    Churn { world: world.clone(), resource, keys, prefix, random, known: BTreeMap::new(), serial: 0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_is_left() -> Result<()> {
    if cannot_run(&["kubectl", "nft"]).is_some() {
        return Ok(());
    }
    let kills = usize::try_from(number("COLIBRI_CHAOS_KILLS", KILLS as u64))?;
    let seed = number("COLIBRI_CHAOS_SEED", 7);
    println!("chaos: {kills} kills, seed {seed}");
    let machine = Machine::alone().await?;
    let data_dir = machine.data_dir();
    let world = Arc::new(World::default());
    let mut killer = Killer {
        world: world.clone(),
        random: Random(seed),
        options: machine.options(),
        data_dir: data_dir.clone(),
        platform: None,
        report: Report::default(),
    };
    killer.start().await?;
    killer.platform()?.load_hello().await?;
    killer.platform()?.apply(NO_GRACE).await?;

    let maps = ApiResource::erase::<k8s_openapi::api::core::v1::ConfigMap>(&());
    let services = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("serving.knative.dev", "v1", "Service"));
    let maps = tokio::spawn(churn(&world, maps, OBJECTS, "map", seed + 1).run(Duration::from_millis(5)));
    let services = tokio::spawn(churn(&world, services, SERVICES, "svc", seed + 2).run(Duration::from_millis(250)));
    let calls: Vec<_> = (0..2).map(|n| tokio::spawn(call(world.clone(), Random(seed + 3 + n)))).collect();

    for kill in 0..kills {
        let pause = killer.random.below(PAUSE_MS);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        killer.kill_one().await.with_context(|| format!("kill {kill} of seed {seed}"))?;
        if kill % KILLS_PER_PROBE == KILLS_PER_PROBE - 1 {
            killer.probe().await.with_context(|| format!("after kill {kill} of seed {seed}"))?;
        }
    }
    world.stop.store(true, Ordering::Relaxed);
    for mut churn in [maps.await?, services.await?] {
        let access = world.access().context("a platform")?;
        let names: Vec<String> = churn.known.keys().cloned().collect();
        for name in names {
            churn.check(&access, &name).await?;
        }
    }
    for call in calls {
        call.await??;
    }
    let mut report = std::mem::take(&mut killer.report);
    report.ready.sort();
    println!(
        "chaos: killed {} platforms or roles, {} more while starting, {} supervisors, {} containers; \
         {} writes acknowledged, {} requests answered, {} not; {} new services answered; \
         ready after p50 {:?}, worst {:?}",
        report.platforms,
        report.while_starting,
        report.supervisors,
        report.containers,
        world.acknowledged.load(Ordering::Relaxed),
        world.answered.load(Ordering::Relaxed),
        world.refused.load(Ordering::Relaxed),
        report.probes,
        report.ready[report.ready.len() / 2],
        report.ready[report.ready.len() - 1],
    );
    let violations = world.violations.lock().clone();
    ensure!(violations.is_empty(), "seed {seed}: {violations:#?}");
    ensure!(world.answered.load(Ordering::Relaxed) > 0, "no request was ever answered");

    let mut platform = killer.platform.take().context("a platform")?;
    platform.kubectl(&["delete", "ksvc", "--all", "--timeout=90s"]).await?.ok()?;
    wait_for_no_pods(&platform, &data_dir).await?;
    platform.stop().await?;
    let after = machine.changes();
    assert_eq!(after, Leftovers::default(), "seed {seed}: nothing is left; the platform said:\n{}", platform.log());
    Ok(())
}

/// Pods are gone from the API, and no sandbox is left but the prepared ones.
async fn wait_for_no_pods(platform: &Platform, data_dir: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        let pods = platform.kubectl(&["get", "pods", "-A", "-o", "name"]).await?.ok()?;
        let (supervisors, _) = e2e::pods(data_dir);
        // Four are kept prepared.
        if pods.trim().is_empty() && supervisors.len() <= 4 {
            return Ok(());
        }
        ensure!(start.elapsed() < SOON * 2, "left: {pods}, supervisors {supervisors:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
