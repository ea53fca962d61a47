//! Domains: owners in each namespace map them to their apps, move them, give them up. Some want the same one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::sleep;

use crate::checks::Checks;
use crate::dice::Dice;
use crate::note;
use crate::trace::Trace;
use crate::traffic::Traffic;
use crate::users::{NAMESPACES, Users};

/// What every mapped domain ends with.
pub const SUFFIX: &str = ".example.com";
/// Domains that are wanted, in each namespace.
const COUNT: usize = 2;

/// A domain as one namespace wants it.
#[derive(Clone, Debug)]
struct Wish {
    domain: String,
    namespace: &'static str,
    /// Name of the app that it leads to; `None` while it is not mapped.
    target: Option<String>,
}

/// All owners of domains.
pub struct Domains {
    client: Client,
    trace: Arc<Trace>,
    dice: Dice,
    checks: Arc<Checks>,
    /// Names of the apps in each namespace.
    apps: BTreeMap<&'static str, Vec<String>>,
    wishes: Mutex<Vec<Wish>>,
}

impl Domains {
    /// Owners with the users' apps, who have mapped nothing yet.
    pub fn new(client: Client, trace: Arc<Trace>, dice: Dice, checks: Arc<Checks>, users: &Users) -> Arc<Self> {
        let mut apps: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for app in users.apps() {
            apps.entry(app.namespace).or_default().push(app.name);
        }
        let pairs = (0..COUNT).flat_map(|index| NAMESPACES.map(|namespace| (index, namespace)));
        let wishes = pairs.filter(|(_, namespace)| apps.contains_key(namespace)).map(|(index, namespace)| Wish {
            domain: format!("shop{index}{SUFFIX}"),
            namespace,
            target: None,
        });
        let wishes = Mutex::new(wishes.collect());
        Arc::new(Self { client, trace, dice, checks, apps, wishes })
    }

    /// Something that an owner does: he maps a domain, moves it, or gives it up. Returns the domain.
    pub async fn act(&self) -> String {
        let (index, wish) = {
            let wishes = self.wishes.lock();
            let index = self.dice.below(wishes.len());
            (index, wishes[index].clone())
        };
        let target = if wish.target.is_some() && self.dice.chance(300) {
            None
        } else {
            Some(self.dice.pick::<String>(&self.apps[wish.namespace]).clone())
        };
        self.change(index, target).await;
        wish.domain
    }

    /// Gives all of them up.
    pub async fn leave(&self) {
        let count = self.wishes.lock().len();
        for index in 0..count {
            self.change(index, None).await;
        }
    }

    async fn change(&self, index: usize, target: Option<String>) {
        let wish = {
            let mut wishes = self.wishes.lock();
            wishes[index].target = target;
            wishes[index].clone()
        };
        let (domain, namespace) = (&wish.domain, wish.namespace);
        note!(self.trace, "{domain} is wanted in {namespace} for {:?}", wish.target);
        let api = Api::<DomainMapping>::namespaced(self.client.clone(), namespace);
        let Some(target) = &wish.target else {
            match api.delete(domain, &DeleteParams::background()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => panic!("{domain} cannot be deleted: {error}"),
            }
            return;
        };
        self.checks.may_lead(domain, namespace, target);
        let wanted = json!({
            "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
            "metadata": {"name": domain, "namespace": namespace},
            "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": target}},
        });
        let wanted: DomainMapping = serde_json::from_value(wanted).expect("the manifest is a DomainMapping");
        for _ in 0..600 {
            let written = match api.get_opt(domain).await {
                Ok(Some(present)) => {
                    let next = DomainMapping { spec: wanted.spec.clone(), ..present };
                    api.replace(domain, &PostParams::default(), &next).await
                }
                Ok(None) => api.create(&PostParams::default(), &wanted).await,
                Err(error) => Err(error),
            };
            match written {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => panic!("{domain} in {namespace} cannot be written: {error}"),
            }
            sleep(Duration::from_millis(200)).await;
        }
        panic!("{domain} in {namespace} cannot be written for two minutes");
    }

    /// Every domain that somebody wants is one namespace's and leads to its app; the others are told; nothing is claimed
    /// that nobody wants.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn check(&self, traffic: &Traffic) -> anyhow::Result<()> {
        let mut by_domain: BTreeMap<String, Vec<Wish>> = BTreeMap::new();
        for wish in self.wishes.lock().iter().cloned() {
            by_domain.entry(wish.domain.clone()).or_default().push(wish);
        }
        for (domain, mut wishes) in by_domain {
            wishes.retain(|wish| wish.target.is_some());
            let claim = Api::<ClusterDomainClaim>::all(self.client.clone()).get_opt(&domain).await?;
            let owner = claim.map(|claim| claim.spec.namespace);
            let has_owner = wishes.iter().any(|wish| Some(wish.namespace) == owner.as_deref());
            if has_owner == wishes.is_empty() || has_owner != owner.is_some() {
                self.checks.breach(format!("{domain} is claimed for {owner:?}, and wanted by {wishes:?}"));
            }
            let mut wanted = "404".to_owned();
            for wish in &wishes {
                let is_owner = Some(wish.namespace) == owner.as_deref();
                let expected = if is_owner { ("True", "") } else { ("False", "DomainAlreadyClaimed") };
                let mapping = Api::<DomainMapping>::namespaced(self.client.clone(), wish.namespace);
                let mapping = serde_json::to_value(mapping.get_opt(&domain).await?)?;
                let conditions = mapping["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let ready = conditions.iter().find(|condition| condition["type"] == "Ready").cloned();
                let text = |key: &str| ready.as_ref().and_then(|ready| ready[key].as_str()).unwrap_or_default();
                let is_old = mapping["status"]["observedGeneration"] != mapping["metadata"]["generation"];
                if is_old || (text("status"), text("reason")) != expected {
                    self.checks.breach(format!("{domain} of {} is not {expected:?}: {mapping}", wish.namespace));
                }
                if let Some(target) = wish.target.as_ref().filter(|_| is_owner) {
                    wanted = format!("200 {target}-");
                }
            }
            let answer = traffic.ask(&domain, "").await;
            if !answer.starts_with(&wanted) {
                self.checks.breach(format!("{domain} was answered by {answer:?}, not by {wanted:?}"));
            }
        }
        Ok(())
    }
}
