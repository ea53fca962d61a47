//! What must hold at every step. A breach is noted once and ends the run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::config::Settings;
use api::serving::annotations::{CONFIGURATION_LABEL, REVISION_LABEL, ROUTING_STATE_LABEL, SERVICE_LABEL};
use api::serving::domain::ClusterDomainClaim;
use api::serving::{Configuration, Revision, Route};
use client::{Cache, Caches, Change};
use k8s_openapi::api::core::v1::Pod;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::garbage::{Unused, left_behind};
use crate::network::{Network, PodServer};
use crate::note;
use crate::routes::Routes;
use crate::trace::Trace;
use crate::traffic::RECOVERY;

const MAX_SCALE: &str = "autoscaling.knative.dev/max-scale";

/// Namespace and name.
pub(crate) type Key = (String, String);

/// Time after which all that the API server says is known everywhere, in calm times.
const CALM_LAG: Duration = Duration::from_secs(2);

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
    routes: Routes,
    lives: BTreeMap<Key, Life>,
    /// The platform's settings, each with the time from when on they count.
    settings: Vec<(Instant, Arc<Settings>)>,
    /// Since when there are no faults.
    calm: Option<Instant>,
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

/// What there is to know of a Revision that is there.
#[derive(Clone, Debug)]
struct Life {
    configuration: String,
    created: Instant,
    /// Whether no Route leads to it, and since when that is so, or is not.
    unused: bool,
    since: Instant,
}

#[derive(Clone, Copy, Debug, Default)]
struct Limits {
    concurrency: u32,
    max_scale: usize,
}

impl State {
    fn lag(&self) -> Duration {
        lag(self.calm)
    }

    fn known_settings(&self) -> Vec<Arc<Settings>> {
        known(&self.settings, self.lag()).cloned().collect()
    }

    /// Why a Revision should not have been collected at this moment.
    fn objection(&self, namespace: &str, life: &Life) -> Option<String> {
        let lag = self.lag();
        let others = self.lives.iter().filter(|((of, _), other)| {
            let is_sibling = of == namespace && other.configuration == life.configuration;
            is_sibling && (other.unused || other.since.elapsed() < lag)
        });
        let (others, now) = (others.count(), Instant::now());
        let unused = Unused { created: life.created, since: life.since };
        let known = self.known_settings();
        let allowed = life.unused && known.iter().any(|settings| unused.may_go(&settings.gc, others, now));
        (!allowed).then(|| {
            let gc: Vec<_> = known.iter().map(|settings| &settings.gc).collect();
            let (age, time) = (life.created.elapsed(), life.since.elapsed());
            let used = if life.unused { "unused" } else { "in use" };
            format!("{age:?} old and {used} for {time:?}, beside {others} unused others, against config-gc: {gc:?}")
        })
    }
}

/// Time after which all that the API server says is known everywhere.
fn lag(calm: Option<Instant>) -> Duration {
    if calm.is_some_and(|since| since.elapsed() > RECOVERY) { CALM_LAG } else { RECOVERY }
}

/// Those of the settings that count or have counted within that time.
fn known(settings: &[(Instant, Arc<Settings>)], lag: Duration) -> impl Iterator<Item = &Arc<Settings>> {
    let ends = settings.iter().skip(1).map(|(since, _)| Some(*since)).chain([None]);
    let spans = settings.iter().zip(ends);
    spans.filter(move |(_, end)| end.is_none_or(|end| end.elapsed() < lag)).map(|((_, settings), _)| settings)
}

impl Checks {
    /// Checks that know nothing yet.
    pub fn new(trace: Arc<Trace>) -> Arc<Self> {
        Arc::new(Self { trace, state: Mutex::default() })
    }

    /// Follows Routes, Revisions and pods.
    pub fn observe(self: &Arc<Self>, caches: &Caches, network: &Arc<Network>) {
        let (this, configurations) = (self.clone(), caches.of::<Configuration>());
        caches.of::<Revision>().subscribe(move |change| {
            this.revision_changed(change);
            if let (None, Some(gone)) = (&change.new, &change.old) {
                this.revision_gone(gone, &configurations);
            }
        });
        let this = self.clone();
        caches.of::<Route>().subscribe(move |change| this.route_changed(change));
        let this = self.clone();
        caches.of::<ClusterDomainClaim>().subscribe(move |change| {
            let claim = change.object();
            let ended = change.new.is_none().then(Instant::now);
            this.state.lock().claims.insert((claim.name_any(), claim.spec.namespace.clone()), ended);
        });
        let (this, network) = (self.clone(), network.clone());
        caches.of::<Pod>().subscribe(move |change| this.pod_changed(change, &network));
    }

    /// When the run began.
    pub fn start(&self) -> Instant {
        self.trace.start()
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

    /// Says whether faults are about to begin, or have ended.
    pub fn set_calm(&self, calm: bool) {
        self.state.lock().calm = calm.then(Instant::now);
    }

    /// From now on these settings count.
    pub fn set_settings(&self, settings: Settings) {
        self.state.lock().settings.push((Instant::now(), Arc::new(settings)));
    }

    /// The settings that were applied last.
    pub fn settings(&self) -> Arc<Settings> {
        self.state.lock().settings.last().map(|(_, settings)| settings.clone()).unwrap_or_default()
    }

    /// The settings that anybody may still act by.
    pub fn known_settings(&self) -> Vec<Arc<Settings>> {
        self.state.lock().known_settings()
    }

    /// Whether a Route's status names that Revision.
    pub fn is_served(&self, namespace: &str, revision: &str) -> bool {
        self.state.lock().routes.shows(namespace, revision)
    }

    /// What `config-gc` says must be gone is gone.
    pub fn check_garbage(&self) {
        let breaches: Vec<String> = {
            let state = self.state.lock();
            let gc = state.settings.last().map(|(_, settings)| settings.gc.clone()).unwrap_or_default();
            let mut unused: BTreeMap<(&str, &str), Vec<Unused>> = BTreeMap::new();
            for ((namespace, _), life) in state.lives.iter().filter(|(_, life)| life.unused) {
                let one = Unused { created: life.created, since: life.since };
                unused.entry((namespace, &life.configuration)).or_default().push(one);
            }
            let now = Instant::now();
            let late = unused.iter().filter_map(|((_, name), unused)| {
                left_behind(&gc, unused, now).map(|why| format!("{name} {why}: config-gc says {gc:?}"))
            });
            late.collect()
        };
        breaches.into_iter().for_each(|breach| self.breach(breach));
    }

    /// From now on a domain may lead to that Service.
    pub fn may_lead(&self, domain: &str, namespace: &str, service: &str) {
        let mut state = self.state.lock();
        state.domains.insert((domain.to_owned(), namespace.to_owned(), service.to_owned()));
    }

    /// A request that was sent at `sent` reached a pod.
    pub fn request_in(&self, pod: &PodServer, host: &str, tag: &str, sent: Instant) {
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
        let route = (pod.namespace.clone(), pod.service.clone());
        let may_answer = {
            let state = self.state.lock();
            let claim = state.claims.get(&(host.to_owned(), pod.namespace.clone()));
            let claimed = claim.is_some_and(|ended| ended.is_none_or(|ended| ended.elapsed() < RECOVERY));
            let is_led =
                claimed && state.domains.contains(&(host.to_owned(), pod.namespace.clone(), pod.service.clone()));
            // `NAME.NAMESPACE.` or `TAG-NAME.NAMESPACE.`, or a domain that leads there.
            let name = host.split_once('.').filter(|(name, rest)| {
                let of_service = *name == pod.service || name.ends_with(&format!("-{}", pod.service));
                of_service && rest.starts_with(&format!("{}.", pod.namespace))
            });
            let name = if is_led { Some(&*pod.service) } else { name.map(|(name, _)| name) };
            name.is_some_and(|name| {
                let key = (pod.namespace.clone(), name.to_owned());
                state.routes.may_answer(&key, tag, &pod.revision, sent, state.lag())
            })
        };
        if !may_answer {
            let tag = if tag.is_empty() { String::new() } else { format!(" with tag {tag}") };
            self.breach(format!("a request for {host}{tag} reached pod {}/{} of {}", route.0, pod.name, route.1));
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
                state.revisions.insert(key.clone(), limits);
                let unused = revision.labels().get(ROUTING_STATE_LABEL).is_some_and(|label| label == "reserve");
                let configuration = revision.labels().get(CONFIGURATION_LABEL).cloned().unwrap_or_default();
                let now = Instant::now();
                let life = state.lives.entry(key).or_insert(Life { configuration, created: now, unused, since: now });
                if life.unused != unused {
                    (life.unused, life.since) = (unused, now);
                }
            }
            None => drop(state.revisions.remove(&key)),
        }
    }

    fn route_changed(&self, change: &Change<Route>) {
        let key = change.key();
        let key = (key.namespace, key.name);
        let wrong = {
            let mut state = self.state.lock();
            let State { routes, lives, settings, calm, .. } = &mut *state;
            let gradual = known(settings, lag(*calm)).all(|settings| !settings.network.rollout_duration.is_zero());
            let exists = |revision: &str| lives.contains_key(&(key.0.clone(), revision.to_owned()));
            routes.set(&key, change.new.as_deref(), gradual, exists)
        };
        wrong.into_iter().for_each(|what| self.breach(what));
    }

    /// A Revision is gone: if its Configuration stays, nobody was to use it, and its time was to be over.
    fn revision_gone(self: &Arc<Self>, gone: &Revision, configurations: &Arc<Cache<Configuration>>) {
        let (namespace, name) = (gone.namespace().unwrap_or_default(), gone.name_any());
        let (life, wrong) = {
            let mut state = self.state.lock();
            let Some(life) = state.lives.remove(&(namespace.clone(), name.clone())) else { return };
            let wrong = state.objection(&namespace, &life);
            (life, wrong)
        };
        let owner = gone.owner_references().first().map(|owner| owner.uid.clone());
        let (this, configurations) = (self.clone(), configurations.clone());
        tokio::spawn(async move {
            // With a Configuration all of its Revisions go, in any order; and the last word of a Route may be on its way.
            sleep(Duration::from_secs(1)).await;
            let user = {
                let state = this.state.lock();
                state.routes.user_of(&namespace, &name, state.lag()).map(|route| format!("but {route} uses it"))
            };
            let Some(wrong) = user.or(wrong) else { return };
            let present = configurations.get(&namespace, &life.configuration);
            if present.is_some_and(|owned| owned.uid() == owner && owned.metadata.deletion_timestamp.is_none()) {
                this.breach(format!("Revision {name} is collected, {wrong}"));
            }
        });
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
                } else if live && limits.max_scale == 0 {
                    // Where the Revision does not say, the platform does.
                    let most = state.known_settings().iter().map(|settings| settings.autoscaler.max_scale).collect();
                    breach = most_of(most)
                        .filter(|most| count > *most)
                        .map(|most| format!("{} has {count} pods, max-scale in config-autoscaler is {most}", key.1));
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

/// The greatest of these limits; 0 is none.
fn most_of(limits: Vec<i32>) -> Option<usize> {
    let limited = limits.iter().all(|limit| *limit > 0);
    limits.into_iter().max().filter(|_| limited).and_then(|most| usize::try_from(most).ok())
}

fn is_live(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    pod.meta().deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
}

/// Name of the Service that a pod belongs to.
pub fn service_of(pod: &Pod) -> String {
    pod.labels().get(SERVICE_LABEL).cloned().unwrap_or_default()
}
