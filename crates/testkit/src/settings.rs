//! Operators: they change the platform's ConfigMaps while it runs, and now and then try what is not valid.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::config::{Data, Settings, autoscaler, defaults, domain, features, gc, network};
use api::serving::Service;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::checks::Checks;
use crate::dice::Dice;
use crate::note;
use crate::trace::Trace;
use crate::users::NAMESPACES;

/// `max-scale` that is above every limit that operators set.
const TOO_MANY: i64 = 50;

/// Values that nobody may set, by ConfigMap and key.
const BAD: [(&str, &str, &str); 7] = [
    (autoscaler::NAME, "max-scale-up-rate", "1"),
    (autoscaler::NAME, "stable-window", "5s"),
    (gc::NAME, "min-non-active-revisions", "-1"),
    (gc::NAME, "retain-since-create-time", "soon"),
    (network::NAME, "rollout-duration", "1h"),
    (defaults::NAME, "revision-timeout-seconds", "601"),
    (domain::NAME, "Exa mple", ""),
];

/// All operators.
pub struct Operators {
    client: Client,
    trace: Arc<Trace>,
    dice: Dice,
    checks: Arc<Checks>,
    /// The ConfigMaps as they were written last, and what they say.
    present: Mutex<(BTreeMap<&'static str, Data>, Settings)>,
}

impl Operators {
    /// Operators who have changed nothing yet.
    pub fn new(client: Client, trace: Arc<Trace>, dice: Dice, checks: Arc<Checks>) -> Arc<Self> {
        Arc::new(Self { client, trace, dice, checks, present: Mutex::default() })
    }

    /// What is set from the start.
    pub async fn begin(&self) {
        self.apply(network::NAME, network_data("0")).await;
        let tags = Data::from([("tag-header-based-routing".to_owned(), "Enabled".to_owned())]);
        self.apply(features::NAME, tags).await;
        for map in [autoscaler::NAME, defaults::NAME, gc::NAME] {
            self.apply(map, Data::new()).await;
        }
    }

    /// Something that an operator does: he changes a ConfigMap, or tries to set what is not valid.
    pub async fn act(&self) {
        if self.dice.chance(200) {
            let (map, key, value) = *self.dice.pick(&BAD);
            return self.try_bad(map, key, value).await;
        }
        match self.dice.below(4) {
            0 => self.apply(autoscaler::NAME, self.autoscaler()).await,
            1 => self.apply(network::NAME, network_data(self.dice.pick::<&str>(&["0", "0", "0", "0", "20"]))).await,
            2 => self.apply(defaults::NAME, self.defaults()).await,
            _ => self.apply(gc::NAME, self.gc()).await,
        }
    }

    fn autoscaler(&self) -> Data {
        let mut data = Data::new();
        let max = *self.dice.pick(&[0, 3, 8]);
        data.insert("max-scale".to_owned(), max.to_string());
        data.insert("min-scale".to_owned(), self.dice.pick(&[0, 0, 1]).to_string());
        if max > 0 && self.dice.chance(500) {
            data.insert("max-scale-limit".to_owned(), "8".to_owned());
        }
        data
    }

    fn gc(&self) -> Data {
        let least = self.dice.below(3);
        let most = if self.dice.chance(500) { "disabled".to_owned() } else { (least + self.dice.below(2)).to_string() };
        let mut data = Data::from([
            ("min-non-active-revisions".to_owned(), least.to_string()),
            ("max-non-active-revisions".to_owned(), most),
        ]);
        for (key, times) in [
            ("retain-since-create-time", ["", "disabled", "1m", "5m"]),
            ("retain-since-last-active-time", ["", "disabled", "30s", "3m"]),
        ] {
            let time = *self.dice.pick::<&str>(&times);
            if !time.is_empty() {
                data.insert(key.to_owned(), time.to_owned());
            }
        }
        data
    }

    fn defaults(&self) -> Data {
        Data::from([
            ("revision-timeout-seconds".to_owned(), self.dice.pick(&[60, 120, 300]).to_string()),
            ("container-concurrency".to_owned(), self.dice.pick(&[0, 10]).to_string()),
        ])
    }

    /// Applies what is valid: from now on it counts.
    async fn apply(&self, map: &'static str, data: Data) {
        note!(self.trace, "{map} is set to {data:?}");
        let settings = {
            let (maps, settings) = &mut *self.present.lock();
            settings.apply(map, Some(&data)).unwrap_or_else(|error| unreachable!("it is valid: {error}"));
            maps.insert(map, data.clone());
            settings.clone()
        };
        self.checks.set_settings(settings);
        if let Err(error) = self.put(map, &data).await {
            self.checks.breach(format!("{map} cannot be set to {data:?}: {error}"));
        }
    }

    async fn try_bad(&self, map: &'static str, key: &str, value: &str) {
        let mut data = self.present.lock().0.get(map).cloned().unwrap_or_default();
        data.insert(key.to_owned(), value.to_owned());
        note!(self.trace, "somebody tries {key} = {value:?} in {map}");
        match self.put(map, &data).await {
            Err(kube::Error::Api(status)) if status.code == 400 && status.message.contains(key) => {}
            other => self.checks.breach(format!("{map} was not refused with {key} = {value:?}: {other:?}")),
        }
    }

    async fn put(&self, map: &str, data: &Data) -> Result<(), kube::Error> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), api::SYSTEM_NAMESPACE);
        let present = api.get_opt(map).await?;
        let mut next = present.clone().unwrap_or_default();
        next.metadata.name = Some(map.to_owned());
        next.data = Some(data.clone());
        match present {
            Some(_) => api.replace(map, &PostParams::default(), &next).await.map(drop),
            None => api.create(&PostParams::default(), &next).await.map(drop),
        }
    }

    /// Asks the API server, without changing anything, what it would make of a Service: it must say what the settings say.
    pub async fn ask(&self) {
        sleep(self.dice.millis(5_000..30_000)).await;
        let service = |template: Value| -> Service {
            let service = json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "question"},
                "spec": {"template": template},
            });
            serde_json::from_value(service).expect("the manifest is a Service")
        };
        let api = Api::<Service>::namespaced(self.client.clone(), NAMESPACES[0]);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let spec = json!({"containers": [{"image": "r.example/app:v1"}]});
        let known = self.checks.known_settings();
        let plain = match api.create(&dry, &service(json!({"spec": spec}))).await {
            Ok(plain) => plain.spec.template.spec,
            Err(error) => return self.checks.breach(format!("a plain Service is refused: {error}")),
        };
        let (timeout, concurrency) = (plain.timeout_seconds, plain.container_concurrency);
        let is_default = |settings: &Settings| {
            let defaults = &settings.defaults;
            timeout == Some(defaults.timeout_seconds) && concurrency == Some(defaults.container_concurrency)
        };
        if !known.iter().any(|settings| is_default(settings)) {
            self.checks.breach(format!(
                "a Service gets timeout {timeout:?} and concurrency {concurrency:?}, which config-defaults does not say"
            ));
        }
        let annotation = json!({"autoscaling.knative.dev/max-scale": TOO_MANY.to_string()});
        let many = service(json!({"metadata": {"annotations": annotation}, "spec": spec}));
        let refused = api.create(&dry, &many).await.is_err();
        if !known.iter().any(|settings| (settings.autoscaler.max_scale_limit > 0) == refused) {
            self.checks.breach(format!("max-scale {TOO_MANY} is refused: {refused}, against config-autoscaler"));
        }
    }

    /// Time between two acts.
    pub fn pause(&self) -> Duration {
        self.dice.seconds(60..300)
    }
}

/// The world's `config-network`.
fn network_data(rollout: &str) -> Data {
    Data::from([
        ("autocreate-cluster-domain-claims".to_owned(), "true".to_owned()),
        ("rollout-duration".to_owned(), rollout.to_owned()),
    ])
}
