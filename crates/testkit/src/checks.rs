//! What must hold at every step. A breach is noted once and ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::serving::Revision;
use api::serving::annotations::{REVISION_LABEL, SERVICE_LABEL};
use api::serving::domain::ClusterDomainClaim;
use client::{Caches, Change};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::network::{Network, PodServer};
use crate::note;
use crate::trace::Trace;
use crate::traffic::RECOVERY;

const MAX_SCALE: &str = "autoscaling.knative.dev/max-scale";

/// Namespace and name.
type Key = (String, String);

/// The invariants and what they are checked against.
pub struct Checks {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    breaches: Vec<String>,
    revisions: BTreeMap<Key, Limits>,
    /// Pods that count, by Revision.
    live: BTreeMap<Key, BTreeSet<String>>,
    /// Pods whose end is a fault's doing.
    excused: BTreeSet<Key>,
    /// When a pod of a Service last broke.
    broke: BTreeMap<Key, Instant>,
    /// Domain, namespace and Service of every mapping that there ever was.
    domains: BTreeSet<(String, String, String)>,
    /// Domain and namespace of every claim that there ever was, and when it ended.
    claims: BTreeMap<(String, String), Option<Instant>>,
    counts: Counts,
}

/// What a run saw, for its summary.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Pods that were made.
    pub pods: u64,
    /// Most pods at a time.
    pub most_pods: usize,
    /// Requests that reached a pod.
    pub served: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    concurrency: u32,
    max_scale: usize,
}

impl Checks {
    /// Checks that know nothing yet.
    pub fn new(trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { trace, state: Mutex::default() })
    }

    /// Follows Revisions and pods.
    pub fn observe(self: &Arc<Self>, caches: &Caches, network: &Arc<Network>) {
        let this = self.clone();
        caches.of::<Revision>().subscribe(move |change| this.revision_changed(change));
        let this = self.clone();
        caches.of::<ClusterDomainClaim>().subscribe(move |change| {
            let claim = change.object();
            let ended = change.new.is_none().then(Instant::now);
            this.state.lock().claims.insert((claim.name_any(), claim.spec.namespace.clone()), ended);
        });
        let (this, network) = (self.clone(), network.clone());
        caches.of::<Pod>().subscribe(move |change| this.pod_changed(change, &network));
    }

    /// Notes a breach.
    pub fn breach(&self, what: String) {
        note!(self.trace, "BREACH: {what}");
        self.state.lock().breaches.push(what);
    }

    /// Breaches so far.
    pub fn breaches(&self) -> Vec<String> {
        self.state.lock().breaches.clone()
    }

    /// What the run saw so far.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }

    /// That pod is about to go by a fault.
    pub fn excuse(&self, namespace: &str, pod: &str) {
        self.state.lock().excused.insert((namespace.to_owned(), pod.to_owned()));
    }

    /// A pod of that Service broke, or could not be reached.
    pub fn broke(&self, namespace: &str, service: &str) {
        self.state.lock().broke.insert((namespace.to_owned(), service.to_owned()), Instant::now());
    }

    /// When a pod of that Service last broke.
    pub fn last_broke(&self, namespace: &str, service: &str) -> Option<Instant> {
        self.state.lock().broke.get(&(namespace.to_owned(), service.to_owned())).copied()
    }

    /// From now on a domain may lead to that Service.
    pub fn may_lead(&self, domain: &str, namespace: &str, service: &str) {
        let mut state = self.state.lock();
        state.domains.insert((domain.to_owned(), namespace.to_owned(), service.to_owned()));
    }

    /// A request reached a pod.
    pub fn request_in(&self, pod: &PodServer, host: &str) {
        let in_flight = pod.in_flight();
        let limit = {
            let mut state = self.state.lock();
            state.counts.served += 1;
            let key = (pod.namespace.clone(), pod.revision.clone());
            state.revisions.get(&key).map_or(0, |limits| limits.concurrency)
        };
        if limit > 0 && in_flight > limit {
            self.breach(format!("pod {} has {in_flight} requests, its limit is {limit}", pod.name));
        }
        let is_led = || {
            let state = self.state.lock();
            let claim = state.claims.get(&(host.to_owned(), pod.namespace.clone()));
            let claimed = claim.is_some_and(|ended| ended.is_none_or(|ended| ended.elapsed() < RECOVERY));
            claimed && state.domains.contains(&(host.to_owned(), pod.namespace.clone(), pod.service.clone()))
        };
        if !host.starts_with(&format!("{}.{}.", pod.service, pod.namespace)) && !is_led() {
            self.breach(format!("a request for {host} reached pod {}/{}", pod.namespace, pod.name));
        }
    }

    fn revision_changed(&self, change: &Change<Revision>) {
        let key = change.key();
        let key = (key.namespace, key.name);
        let mut state = self.state.lock();
        match change.new.as_deref().filter(|revision| revision.metadata.deletion_timestamp.is_none()) {
            Some(revision) => {
                let max_scale = revision.annotations().get(MAX_SCALE).and_then(|text| text.parse().ok());
                let concurrency = revision.spec.container_concurrency.and_then(|limit| u32::try_from(limit).ok());
                let limits = Limits { concurrency: concurrency.unwrap_or(0), max_scale: max_scale.unwrap_or(0) };
                state.revisions.insert(key, limits);
            }
            None => drop(state.revisions.remove(&key)),
        }
    }

    fn pod_changed(&self, change: &Change<Pod>, network: &Network) {
        let pod = change.object().as_ref();
        let Some(revision) = pod.labels().get(REVISION_LABEL) else { return };
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let key = (namespace.clone(), revision.clone());
        let live = change.new.as_deref().is_some_and(is_live);
        // What the cache shows as the old state of a deleted pod may be its very last.
        let was_live = self.state.lock().live.get(&key).is_some_and(|pods| pods.contains(&name));
        if live == was_live {
            return;
        }
        let verb = if live { "comes" } else { "goes" };
        note!(self.trace, "pod {namespace}/{name} {verb}");
        let mut breach = None;
        {
            let mut state = self.state.lock();
            let pods = state.live.entry(key.clone()).or_default();
            if live {
                pods.insert(name.clone());
            } else {
                pods.remove(&name);
            }
            let count = pods.len();
            let all: usize = state.live.values().map(BTreeSet::len).sum();
            state.counts.pods += u64::from(live);
            state.counts.most_pods = state.counts.most_pods.max(all);
            let limits = state.revisions.get(&key).copied();
            let excused = state.excused.contains(&(namespace.clone(), name.clone()));
            if change.new.is_none() {
                state.excused.remove(&(namespace.clone(), name.clone()));
            }
            if let Some(limits) = limits {
                if live && limits.max_scale > 0 && count > limits.max_scale {
                    breach = Some(format!("{} has {count} pods, its max-scale is {}", key.1, limits.max_scale));
                }
                let busy = network.find(&namespace, &name).map_or(0, |pod| pod.in_flight());
                if !live && busy > 0 && !excused {
                    breach = Some(format!("pod {name} is removed with {busy} requests in it"));
                }
            }
        }
        if let Some(breach) = breach {
            self.breach(breach);
        }
    }
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.meta().deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Name of the Service that a pod belongs to.
pub fn service_of(pod: &Pod) -> String {
    pod.labels().get(SERVICE_LABEL).cloned().unwrap_or_default()
}
