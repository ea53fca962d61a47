//! People: they make services and functions, change them, break them, repair them, delete them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::conditions::ConditionStatus;
use api::functions::Function;
use api::serving::annotations::SERVICE_LABEL;
use api::serving::{Revision, Service};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::nodes::CRASHES;
use crate::note;
use crate::trace::Trace;

/// Namespaces that services live in.
pub const NAMESPACES: [&str; 2] = ["blue", "green"];

/// Tags that owners use.
pub const TAGS: [&str; 3] = ["canary", "next", "stable"];

/// One service or function, as its owner wants it.
#[derive(Clone, Debug)]
pub struct App {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: String,
    /// Whether it is a Function.
    pub function: bool,
    /// Whether it should exist.
    pub wanted: bool,
    /// Whether its present version ends at its start.
    pub crashes: bool,
    /// Counts the versions.
    pub version: u32,
    /// Most requests in one pod; 0 is no limit.
    pub concurrency: u32,
    /// Whether it is scaled by requests per second: then pods are in surplus while long requests are in them.
    pub by_rate: bool,
    /// Fewest pods.
    pub min_scale: u32,
    /// Most pods; 0 is no limit.
    pub max_scale: u32,
    /// Pods at first.
    pub initial_scale: u32,
    /// Length of the stable window.
    pub window: Duration,
    /// Longest time of a request.
    pub timeout: Duration,
    /// A Revision that gets a share of the traffic, and its percentage; the latest one gets the rest.
    pub pinned: Option<(String, i64)>,
    /// Tags, each with the Revision that it names; `None` is the latest.
    pub tags: BTreeMap<&'static str, Option<String>>,
    /// Seconds over which traffic moves to a new version; 0 leaves it to the platform.
    pub rollout: u64,
    /// When its owner last changed it.
    pub changed: Instant,
    /// Since when it answers; `None` before its first answer since it was made.
    pub established: Option<Instant>,
}

impl App {
    /// Public host.
    pub fn host(&self) -> String {
        format!("{}.{}.localhost", self.name, self.namespace)
    }

    /// Host of a tag.
    pub fn tag_host(&self, tag: &str) -> String {
        format!("{tag}-{}", self.host())
    }

    fn manifest(&self) -> Value {
        if self.function { self.function() } else { self.service() }
    }

    fn service(&self) -> Value {
        let prefix = "autoscaling.knative.dev/";
        let mut annotations = json!({});
        annotations[format!("{prefix}window")] = format!("{}s", self.window.as_secs()).into();
        for (key, value) in
            [("min-scale", self.min_scale), ("max-scale", self.max_scale), ("initial-scale", self.initial_scale)]
        {
            if value > 0 {
                annotations[format!("{prefix}{key}")] = value.to_string().into();
            }
        }
        if self.by_rate {
            annotations[format!("{prefix}metric")] = "rps".into();
            annotations[format!("{prefix}target")] = "1".into();
        }
        let image = if self.crashes { CRASHES } else { "app" };
        let mut own = json!({});
        if self.rollout > 0 {
            own["serving.knative.dev/rollout-duration"] = format!("{}s", self.rollout).into();
        }
        json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": self.name, "namespace": self.namespace, "annotations": own},
            "spec": {
                "template": {
                    "metadata": {"annotations": annotations},
                    "spec": {
                        "containerConcurrency": self.concurrency, "timeoutSeconds": self.timeout.as_secs(),
                        "containers": [{"image": format!("r.example/{image}:v{}", self.version)}],
                    },
                },
                "traffic": self.traffic(),
            },
        })
    }

    fn traffic(&self) -> Vec<Value> {
        let mut traffic = Vec::new();
        let pinned = self.pinned.as_ref().map_or(0, |(_, share)| *share);
        if pinned < 100 {
            traffic.push(json!({"latestRevision": true, "percent": 100 - pinned}));
        }
        if let Some((revision, share)) = &self.pinned {
            traffic.push(json!({"revisionName": revision, "percent": share}));
        }
        for (tag, revision) in &self.tags {
            match revision {
                Some(revision) => traffic.push(json!({"revisionName": revision, "tag": tag, "percent": 0})),
                // A tag may stand beside a share, or have a target of its own.
                None if *tag == TAGS[0] && pinned < 100 => traffic[0]["tag"] = (*tag).into(),
                None => traffic.push(json!({"latestRevision": true, "tag": tag, "percent": 0})),
            }
        }
        traffic
    }

    fn function(&self) -> Value {
        let code = format!("def handle(request):\n    return 'version {}'\n", self.version);
        let mut scaling = json!({"idle": format!("{}s", self.window.as_secs())});
        for (key, value) in [("min", self.min_scale), ("max", self.max_scale), ("concurrency", self.concurrency)] {
            if value > 0 {
                scaling[key] = value.into();
            }
        }
        json!({
            "apiVersion": "functions.colibri.dev/v1", "kind": "Function",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": {
                "runtime": "python", "source": {"inline": {"main.py": code}}, "scaling": scaling,
                "timeout": format!("{}s", self.timeout.as_secs()),
            },
        })
    }
}

/// All users.
pub struct Users {
    client: Client,
    trace: Arc<Trace>,
    dice: Dice,
    apps: Mutex<Vec<App>>,
}

impl Users {
    /// Owners of `count` apps that do not exist yet.
    pub fn new(client: Client, trace: Arc<Trace>, dice: Dice, count: usize) -> Arc<Self> {
        let apps = (0..count).map(|index| draw(&dice, index)).collect();
        Arc::new(Self { client, trace, dice, apps: Mutex::new(apps) })
    }

    /// The app of that index.
    pub fn app(&self, index: usize) -> App {
        self.apps.lock()[index].clone()
    }

    /// All apps.
    pub fn apps(&self) -> Vec<App> {
        self.apps.lock().clone()
    }

    /// A request to the app was answered by one of its pods.
    pub fn answered(&self, index: usize, sent: Instant) {
        let app = &mut self.apps.lock()[index];
        // An answer from before its deletion says nothing of what was made since.
        if app.wanted && sent >= app.changed {
            app.established.get_or_insert_with(Instant::now);
        }
    }

    /// Makes the app, or brings it to what its owner wants.
    pub async fn make(&self, index: usize) {
        self.change(index, |app| app.wanted = true).await;
    }

    /// Something that an owner does on a working day.
    /// Returns the app's index.
    pub async fn act(&self) -> usize {
        let index = self.dice.below(self.apps.lock().len());
        let exists = self.app(index).wanted;
        match self.dice.below(100) {
            _ if !exists => self.make(index).await,
            0..8 => self.delete(index).await,
            8..18 => {
                self.change(index, |app| {
                    app.version += 1;
                    app.crashes = !app.function;
                })
                .await;
            }
            18..30 => {
                let (min, extra) = (self.dice.below(3), self.dice.below(4));
                self.change(index, |app| {
                    app.version += 1;
                    app.crashes = false;
                    app.min_scale = u32::try_from(min).unwrap_or_default();
                    app.max_scale = if extra == 0 { 0 } else { app.min_scale.max(app.initial_scale) + extra as u32 };
                })
                .await;
            }
            30..60 if !self.app(index).function => self.move_traffic(index).await,
            _ => {
                self.change(index, |app| {
                    app.version += 1;
                    app.crashes = false;
                })
                .await;
            }
        }
        index
    }

    /// Splits the traffic, goes back to the latest version, or adds, moves or removes a tag.
    async fn move_traffic(&self, index: usize) {
        let ready = self.ready_revisions(&self.app(index)).await;
        let any = || (!ready.is_empty()).then(|| self.dice.pick::<String>(&ready).clone());
        let tag = *self.dice.pick::<&str>(&TAGS);
        match self.dice.below(10) {
            0 => self.change(index, |app| app.pinned = None).await,
            1 => {
                self.change(index, |app| {
                    app.tags.remove(tag);
                })
                .await;
            }
            2..6 => {
                let (pinned, share) = (any(), *self.dice.pick(&[10, 30, 90, 100]));
                self.change(index, |app| app.pinned = pinned.clone().map(|revision| (revision, share))).await;
            }
            _ => {
                let revision = any().filter(|_| self.dice.chance(750));
                self.change(index, |app| {
                    app.tags.insert(tag, revision.clone());
                })
                .await;
            }
        }
    }

    /// Everybody wants a version that works, and all traffic on it; who sees a version fail makes another, and so do some
    /// others. Tags stay, on versions that work.
    pub async fn repair(&self) {
        for index in 0..self.apps().len() {
            let app = self.app(index);
            let (failed, ready) = (self.has_failed(&app).await, self.ready_revisions(&app).await);
            let anew = failed || self.dice.chance(150);
            self.change(index, |app| {
                app.wanted = true;
                app.pinned = None;
                app.tags.retain(|_, revision| revision.as_ref().is_none_or(|revision| ready.contains(revision)));
                if std::mem::take(&mut app.crashes) || anew {
                    app.version += 1;
                }
            })
            .await;
        }
    }

    /// The app's Revisions that are ready.
    async fn ready_revisions(&self, app: &App) -> Vec<String> {
        let params = ListParams::default().labels(&format!("{SERVICE_LABEL}={}", app.name));
        let revisions = Api::<Revision>::namespaced(self.client.clone(), app.namespace).list(&params).await;
        let revisions = revisions.map(|list| list.items).unwrap_or_default();
        let is_ready = |revision: &Revision| {
            let conditions = revision.status.iter().flat_map(|status| &status.conditions);
            let mut ready = conditions.filter(|condition| condition.kind == "Ready");
            revision.metadata.deletion_timestamp.is_none()
                && ready.any(|condition| condition.status == ConditionStatus::True)
        };
        revisions.into_iter().filter(is_ready).map(|revision| revision.name_any()).collect()
    }

    /// Whether the newest version was given up.
    async fn has_failed(&self, app: &App) -> bool {
        let service = Api::<Service>::namespaced(self.client.clone(), app.namespace).get_opt(&app.name).await;
        let Some(status) = service.ok().flatten().and_then(|service| service.status) else { return false };
        let name = status.latest_created_revision_name.unwrap_or_default();
        let revision = Api::<Revision>::namespaced(self.client.clone(), app.namespace).get_opt(&name).await;
        let Some(status) = revision.ok().flatten().and_then(|revision| revision.status) else { return false };
        status
            .conditions
            .iter()
            .any(|condition| condition.kind == "Ready" && condition.status == ConditionStatus::False)
    }

    /// Deletes the app.
    pub async fn delete(&self, index: usize) {
        let app = {
            let mut apps = self.apps.lock();
            let app = &mut apps[index];
            (app.wanted, app.changed, app.established) = (false, Instant::now(), None);
            // Its versions go with it.
            (app.pinned, app.tags) = (None, BTreeMap::new());
            app.clone()
        };
        note!(self.trace, "{} is deleted by its owner", app.host());
        if app.function {
            delete::<Function>(&self.client, &app).await;
        } else {
            delete::<Service>(&self.client, &app).await;
        }
    }

    async fn change(&self, index: usize, change: impl Fn(&mut App)) {
        let app = {
            let mut apps = self.apps.lock();
            change(&mut apps[index]);
            apps[index].changed = Instant::now();
            apps[index].clone()
        };
        note!(
            self.trace,
            "{} is wanted at version {}{}, scale {}-{}, beside {:?}, tags {:?}",
            app.host(),
            app.version,
            if app.crashes { ", which crashes" } else { "" },
            app.min_scale,
            app.max_scale,
            app.pinned,
            app.tags
        );
        if app.function {
            put::<Function>(&self.client, &app).await;
        } else {
            put::<Service>(&self.client, &app).await;
        }
    }
}

fn draw(dice: &Dice, index: usize) -> App {
    let concurrency = *dice.pick(&[0, 0, 1, 2, 5]);
    let initial_scale = *dice.pick(&[0, 0, 0, 2]);
    let min_scale = *dice.pick(&[0, 0, 0, 1, 2]);
    let max_scale = *dice.pick(&[0, 2, 3, 6]);
    App {
        namespace: NAMESPACES[dice.below(NAMESPACES.len())],
        name: format!("app{index}"),
        function: dice.chance(250),
        wanted: false,
        crashes: false,
        version: 1,
        concurrency,
        by_rate: dice.chance(300),
        min_scale,
        max_scale,
        initial_scale,
        window: Duration::from_secs(*dice.pick(&[6, 20, 60])),
        timeout: Duration::from_secs(*dice.pick(&[10, 30, 60])),
        pinned: None,
        tags: BTreeMap::new(),
        rollout: *dice.pick(&[0, 0, 0, 0, 10, 30]),
        changed: Instant::now(),
        established: None,
    }
}

/// What a tool like `kubectl apply` does.
async fn put<K>(client: &Client, app: &App)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + serde::Serialize
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), app.namespace);
    for _ in 0..600 {
        let present = api.get_opt(&app.name).await;
        let mut object: K = match serde_json::from_value(app.manifest()) {
            Ok(object) => object,
            Err(error) => unreachable!("the manifest is one: {error}"),
        };
        let written = match present {
            // The one that is being deleted must be gone before another takes its name.
            Ok(Some(present)) if present.meta().deletion_timestamp.is_none() => {
                *object.meta_mut() = present.meta().clone();
                api.replace(&app.name, &PostParams::default(), &object).await.map(drop)
            }
            Ok(_) => api.create(&PostParams::default(), &object).await.map(drop),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => return,
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{}: {error}: {}", app.host(), app.manifest()),
        }
        sleep(Duration::from_millis(200)).await;
    }
    panic!("{} cannot be written for two minutes", app.host());
}

async fn delete<K>(client: &Client, app: &App)
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), app.namespace);
    match api.delete(&app.name, &DeleteParams::background()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => panic!("{} cannot be deleted: {error}", app.host()),
    }
}
