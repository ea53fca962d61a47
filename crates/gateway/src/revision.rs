//! One revision at run time: its throttle, its numbers, and the shell around both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use base::{PodId, RevisionId};
use client::link::{AutoscalerLink, Stat};
use http::HeaderMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::affinity::{self, Token};
use crate::clients::Clients;
use crate::config::Config;
use crate::instance::{Event, Instance};
use crate::meter::Meter;
use crate::metrics::{Metrics, RevisionMetrics};
use crate::probe;
use crate::settings::Settings;
use crate::stage::Stage;
use crate::telemetry::Telemetry;
use crate::throttle::{Admission, Grant, Grants, Key, Throttle, Ticket};
use crate::upstream::{PoolLimits, Upstream};

/// Pokes of one revision are at least this far apart; the reports of each second tell the rest.
const POKE_INTERVAL: Duration = Duration::from_millis(100);

/// What all parts of one gateway share.
pub struct Shared {
    /// Limits and times.
    pub config: Config,
    /// What clients may do.
    pub clients: Clients,
    /// Whether the header `Knative-Serving-Tag` picks a tagged target: `tag-header-based-routing` of `config-features`.
    pub tag_header: AtomicBool,
    /// Limits of the connections to an instance.
    pub pool: PoolLimits,
    /// The autoscaler.
    pub autoscaler: Arc<dyn AutoscalerLink>,
    /// Metrics.
    pub metrics: Metrics,
    /// The access log and traces.
    pub telemetry: Telemetry,
    /// Randomness.
    pub random: crate::random::Random,
    /// Owns the tasks that a clean stop waits for: listeners, client connections, tunnels.
    pub tasks: TaskTracker,
    /// Owns the tasks that run until `abort`: probes, connections to instances.
    pub background: TaskTracker,
    /// Cancelled to stop accepting and to drain.
    pub stop: CancellationToken,
    /// Cancelled to break off what still runs.
    pub abort: CancellationToken,
    /// Probes that run now, over all revisions.
    pub probes: AtomicU64,
}

/// A request's slot is handed over through this.
type Waiter = oneshot::Sender<Slot>;

struct Core {
    throttle: Throttle<Arc<Upstream>, Waiter>,
    /// Instances that somebody waits for to be drained.
    claimed: BTreeSet<Key>,
    meter: Meter,
    last_poke: Option<Instant>,
    /// Whether the last report spoke of traffic.
    reported: bool,
}

/// One revision.
pub struct Revision {
    /// Its name.
    pub id: RevisionId,
    /// `None` while no Revision of that name is known.
    pub settings: ArcSwapOption<Settings>,
    /// Its series; there whenever the settings are.
    pub metrics: ArcSwapOption<RevisionMetrics>,
    core: Mutex<Core>,
    /// Told whenever a request on an instance out of rotation ends, and whenever an instance goes.
    drained: Notify,
    shared: Arc<Shared>,
}

/// A request's place on an instance, given back when dropped.
pub struct Slot {
    /// The revision.
    pub revision: Arc<Revision>,
    /// The instance.
    pub upstream: Arc<Upstream>,
    /// When the request arrived.
    pub arrived: Instant,
    /// Whether the instance has served it or failed; `None` where that cannot be told.
    pub served: Option<bool>,
    key: Key,
    ticket: Ticket,
    held: bool,
}

/// A request that waits; gives up when dropped.
pub struct Waiting {
    /// The revision.
    pub revision: Arc<Revision>,
    ticket: Ticket,
    slot: oneshot::Receiver<Slot>,
}

/// Instances that somebody waits for to be drained, until dropped.
struct Claim {
    revision: Arc<Revision>,
    pods: Vec<(Key, PodId)>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut core = self.revision.core.lock();
        for (key, _) in &self.pods {
            core.claimed.remove(key);
        }
    }
}

/// What becomes of a request that arrives.
pub enum Entry {
    /// It has a slot.
    Slot(Slot),
    /// It waits.
    Waiting(Waiting),
    /// Too many wait.
    Full,
}

/// A pod as the cache has it.
#[derive(Debug)]
pub struct PodSeen {
    /// Name of the pod.
    pub pod: PodId,
    /// Its UID.
    pub uid: String,
    /// Its address.
    pub ip: Option<std::net::IpAddr>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it is gone or has ended.
    pub gone: bool,
    /// Whether its node calls it ready.
    pub ready: bool,
    /// How far it has come.
    pub stage: Stage,
}

impl Revision {
    /// A revision of which nothing is known but its name.
    pub fn new(id: RevisionId, shared: Arc<Shared>) -> Arc<Self> {
        let throttle = Throttle::new(shared.config.queue_limit, shared.random.next());
        let core = Core {
            throttle,
            claimed: BTreeSet::new(),
            meter: Meter::new(Instant::now()),
            last_poke: None,
            reported: false,
        };
        Arc::new(Self {
            id,
            settings: ArcSwapOption::empty(),
            metrics: ArcSwapOption::empty(),
            core: Mutex::new(core),
            drained: Notify::new(),
            shared,
        })
    }

    /// Takes over what the Revision says; `None` when it is gone.
    pub fn configure(self: &Arc<Self>, settings: Option<Settings>) {
        let Some(settings) = settings else {
            self.settings.store(None);
            self.metrics.store(None);
            self.shared.metrics.forget(&self.id);
            return;
        };
        if self.settings.load().as_deref() == Some(&settings) {
            return;
        }
        self.metrics.store(Some(self.shared.metrics.of(&self.id, &settings)));
        let limit = settings.concurrency;
        self.settings.store(Some(Arc::new(settings)));
        let grants = self.core.lock().throttle.set_limit(limit);
        self.hand_over(grants);
        self.probe_starting();
    }

    /// Takes over what the cache says of one of its pods.
    pub fn observe(self: &Arc<Self>, seen: PodSeen) {
        let now = Instant::now();
        let mut grants = Vec::new();
        {
            let mut core = self.core.lock();
            let throttle = &mut core.throttle;
            let known = throttle
                .instances()
                .find(|(_, state, upstream)| upstream.pod == seen.pod && !matches!(state, Instance::Stopped { .. }));
            let mut known = known.map(|(key, _, upstream)| (key, upstream.clone()));
            // Another pod under the same name, or the same one at another address or at none: the old instance is gone.
            if let Some((key, upstream)) = &known
                && (upstream.uid != seen.uid || upstream.ip().is_some_and(|ip| Some(ip) != seen.ip))
            {
                upstream.close_idle(Duration::ZERO);
                grants.extend(throttle.step(*key, Event::Gone));
                known = None;
            }
            if seen.gone {
                if let Some((key, upstream)) = known {
                    upstream.close_idle(Duration::ZERO);
                    grants.extend(throttle.step(key, Event::Gone));
                }
            } else {
                let (key, upstream) = known.unwrap_or_else(|| {
                    let (dialer, counter) = (self.shared.config.dialer.clone(), self.shared.metrics.upstream.clone());
                    let upstream = Upstream::new(seen.pod.clone(), seen.uid, dialer, counter, now);
                    (throttle.add(upstream.clone()), upstream)
                });
                upstream.node_ready.store(seen.ready, Ordering::Relaxed);
                upstream.set_stage(seen.stage);
                if let Some(ip) = seen.ip {
                    upstream.set_address(ip, now);
                }
                if seen.deleting {
                    upstream.deleting.store(true, Ordering::Relaxed);
                    grants.extend(throttle.step(key, Event::Drain));
                }
            }
        }
        self.drained.notify_waiters();
        self.hand_over(grants);
        self.probe_starting();
    }

    /// Starts a probe for each instance that is starting, has an address, and has no probe yet.
    pub fn probe_starting(self: &Arc<Self>) {
        if self.settings.load().is_none() {
            return;
        }
        let starting: Vec<(Key, Arc<Upstream>)> = {
            let core = self.core.lock();
            let instances = core.throttle.instances();
            instances
                .filter(|(_, state, upstream)| state.is_starting() && upstream.ip().is_some())
                .filter(|(_, _, upstream)| !upstream.probing.swap(true, Ordering::Relaxed))
                .map(|(key, _, upstream)| (key, upstream.clone()))
                .collect()
        };
        for (key, upstream) in starting {
            let stop = self.shared.abort.clone();
            let probe = probe::until_ready(self.clone(), self.shared.clone(), key, upstream);
            self.shared.background.spawn(async move { stop.run_until_cancelled(probe).await });
        }
    }

    /// Whether an instance still has to be probed.
    pub fn is_starting(&self, key: Key) -> bool {
        self.core.lock().throttle.state(key).is_some_and(Instance::is_starting)
    }

    /// A probe of the instance succeeded.
    pub fn probed(self: &Arc<Self>, key: Key, upstream: &Upstream) {
        upstream.note_ready(Instant::now());
        upstream.probing.store(false, Ordering::Relaxed);
        let grants = self.core.lock().throttle.step(key, Event::ProbeSucceeded);
        self.hand_over(grants);
    }

    /// The instance takes no requests for so long.
    fn ejected(self: &Arc<Self>, key: Key, pod: &PodId, time: Duration) {
        info!(revision = %self.id, %pod, seconds = time.as_secs_f64(), "ejected an instance whose requests failed");
        if let Some(metrics) = self.metrics.load().as_deref() {
            metrics.ejected();
        }
        let (revision, abort) = (Arc::downgrade(self), self.shared.abort.clone());
        self.shared.background.spawn(async move {
            abort.run_until_cancelled(sleep(time)).await;
            if let Some(revision) = revision.upgrade() {
                let grants = revision.core.lock().throttle.readmit(key, Instant::now());
                revision.hand_over(grants);
            }
        });
    }

    /// The instance that a client asks for, where the revision has affinity.
    pub fn asked(&self, headers: &HeaderMap) -> Option<Token> {
        let affinity = self.settings.load().as_ref().is_some_and(|settings| settings.affinity);
        if affinity { affinity::asked(headers, &self.id) } else { None }
    }

    /// Whether the instance of that name is in rotation.
    pub fn has_ready(&self, token: Token) -> bool {
        self.core.lock().throttle.instances().any(|(_, state, upstream)| state.is_ready() && upstream.token == token)
    }

    /// A request arrives, for the instance that it asks for if that has a slot.
    pub fn enter(self: &Arc<Self>, asked: Option<Token>) -> Entry {
        let now = Instant::now();
        let (sender, poke, admission) = {
            let mut core = self.core.lock();
            core.meter.enter(now);
            let mut receiver = None;
            let key = asked.and_then(|token| core.throttle.instances().find(|(.., upstream)| upstream.token == token));
            let key = key.map(|(key, ..)| key);
            let admission = match key.and_then(|key| core.throttle.admit_to(key)) {
                Some(grant) => Admission::Granted(grant),
                None => core.throttle.admit(|| {
                    let (waiter, slot) = oneshot::channel();
                    receiver = Some(slot);
                    waiter
                }),
            };
            if matches!(admission, Admission::Full) {
                core.meter.leave(now);
            }
            (receiver, receiver_needs_poke(&mut core, now, &admission), admission)
        };
        if poke {
            self.shared.autoscaler.poke(&self.id);
        }
        match (admission, sender) {
            (Admission::Granted(grant), _) => Entry::Slot(self.slot(grant, now)),
            (Admission::Queued(ticket), Some(slot)) => Entry::Waiting(Waiting { revision: self.clone(), ticket, slot }),
            _ => Entry::Full,
        }
    }

    fn slot(self: &Arc<Self>, grant: Grant<Arc<Upstream>>, arrived: Instant) -> Slot {
        let Grant { ticket, key, instance } = grant;
        Slot { revision: self.clone(), upstream: instance, arrived, served: None, key, ticket, held: true }
    }

    /// Sends slots to requests that waited. One that gave up meanwhile drops its slot, which passes it on.
    fn hand_over(self: &Arc<Self>, grants: Grants<Arc<Upstream>, Waiter>) {
        let now = Instant::now();
        for (waiter, grant) in grants {
            let _ = waiter.send(self.slot(grant, now));
        }
    }

    /// Takes up to `count` instances out of rotation and waits until they are drained.
    pub async fn retire(self: Arc<Self>, count: usize, drain_timeout: Duration) -> Vec<PodId> {
        let claim = self.claim(count);
        self.drain(&claim.pods.iter().map(|(key, _)| *key).collect::<Vec<_>>(), drain_timeout).await;
        claim.pods.iter().map(|(_, pod)| pod.clone()).collect()
    }

    /// Takes these instances out of rotation and waits until they are drained. Whoever asks deletes them; if it cannot,
    /// they are the first that [`Revision::retire`] names.
    pub async fn retire_pods(self: Arc<Self>, pods: &[PodId], drain_timeout: Duration) {
        let (keys, _claim, grants) = {
            let mut core = self.core.lock();
            let named = core.throttle.instances().filter(|(_, _, upstream)| pods.contains(&upstream.pod));
            let named: Vec<(Key, PodId)> = named.map(|(key, _, upstream)| (key, upstream.pod.clone())).collect();
            let keys: Vec<Key> = named.iter().map(|(key, _)| *key).collect();
            let grants: Vec<_> = keys.iter().flat_map(|key| core.throttle.step(*key, Event::Drain)).collect();
            // What somebody has claimed already stays his.
            let pods = named.into_iter().filter(|(key, _)| core.claimed.insert(*key)).collect();
            (keys, Claim { revision: self.clone(), pods }, grants)
        };
        self.hand_over(grants);
        self.drain(&keys, drain_timeout).await;
    }

    /// Waits until no request is left on these instances.
    async fn drain(&self, keys: &[Key], limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let changed = self.drained.notified();
            let busy = {
                let core = self.core.lock();
                keys.iter().any(|key| core.throttle.state(*key).is_some_and(|state| state.in_flight() > 0))
            };
            if !busy || timeout_at(deadline, changed).await.is_err() {
                return;
            }
        }
    }

    /// What keeps its requests waiting.
    pub fn stage(&self) -> Stage {
        let core = self.core.lock();
        let instances = core.throttle.instances().filter_map(|(_, state, upstream)| match state {
            Instance::Ready { .. } | Instance::Ejected { .. } => Some(Stage::Busy),
            Instance::Starting { .. } => Some(upstream.stage()),
            Instance::Draining { .. } | Instance::Stopped { .. } => None,
        });
        instances.max().unwrap_or_default()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.core.lock().throttle.waiting()
    }

    /// Instances in rotation.
    pub fn ready(&self) -> usize {
        self.core.lock().throttle.ready()
    }

    /// Chooses up to `count` instances to go. Those that are out of rotation although nobody waits for them any more
    /// come first: whoever asked for them has crashed, or could not delete them.
    fn claim(self: &Arc<Self>, count: usize) -> Claim {
        let mut core = self.core.lock();
        let Core { throttle, claimed, .. } = &mut *core;
        let forgotten = throttle.instances().filter(|(key, state, upstream)| {
            let draining = matches!(state, Instance::Draining { .. });
            draining && !upstream.deleting.load(Ordering::Relaxed) && !claimed.contains(key)
        });
        let mut keys: Vec<Key> = forgotten.map(|(key, ..)| key).take(count).collect();
        let (retired, grants) = throttle.retire(count - keys.len());
        keys.extend(retired);
        claimed.extend(&keys);
        let of = |key: Key| throttle.instances().find(|(other, ..)| *other == key);
        let pods =
            keys.iter().filter_map(|key| of(*key).map(|(key, _, upstream)| (key, upstream.pod.clone()))).collect();
        drop(core);
        self.hand_over(grants);
        Claim { revision: self.clone(), pods }
    }

    /// Requests in flight and waiting.
    pub fn load(&self) -> usize {
        self.core.lock().meter.present() as usize
    }

    /// Instances that are starting or in rotation.
    pub fn active(&self) -> usize {
        let core = self.core.lock();
        core.throttle.instances().filter(|(_, state, _)| state.is_active()).count()
    }

    /// Closes the interval; `None` if there is nothing to tell.
    pub fn tick(&self, now: Instant) -> Option<Stat> {
        let mut core = self.core.lock();
        let reading = core.meter.close(now);
        let waiting = core.throttle.waiting();
        if let Some(metrics) = self.metrics.load().as_deref() {
            let present = core.meter.present() as usize;
            metrics.load(waiting, present.saturating_sub(waiting), reading.concurrency);
            metrics.set_ejected(core.throttle.ejected());
        }
        let idle_timeout = self.shared.config.idle_connection_timeout;
        for (_, _, upstream) in core.throttle.instances() {
            upstream.close_idle(idle_timeout);
        }
        let busy = reading.concurrency > 0.0 || reading.arrivals > 0;
        let tell = busy || core.reported;
        core.reported = busy;
        tell.then(|| Stat {
            revision: self.id.clone(),
            concurrency: reading.concurrency,
            requests: reading.arrivals as f64,
        })
    }

    /// Whether nothing but a name is left of it.
    pub fn is_empty(&self) -> bool {
        let core = self.core.lock();
        self.settings.load().is_none() && core.meter.present() == 0 && core.throttle.instances().next().is_none()
    }
}

/// A poke is due when the queue gets its first entry, and not more often than its interval.
fn receiver_needs_poke(core: &mut Core, now: Instant, admission: &Admission<Arc<Upstream>>) -> bool {
    let first = matches!(admission, Admission::Queued(_)) && core.throttle.waiting() == 1;
    let due = core.last_poke.is_none_or(|last| now.duration_since(last) >= POKE_INTERVAL);
    if first && due {
        core.last_poke = Some(now);
    }
    first && due
}

impl Waiting {
    /// Waits for a slot until `deadline`.
    pub async fn slot(mut self, deadline: Instant, arrived: Instant) -> Option<Slot> {
        let mut slot = timeout_at(deadline, &mut self.slot).await.ok()?.ok()?;
        slot.arrived = arrived;
        Some(slot)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let revision = &self.revision;
        let mut core = revision.core.lock();
        if core.throttle.cancel(self.ticket) {
            core.meter.leave(Instant::now());
        }
        // Else it has a slot; one that lies in the channel is given back as the receiver goes.
    }
}

impl Slot {
    /// The instance could not be reached: gives the slot back and waits again, in the old place.
    pub fn hand_back(mut self) -> Waiting {
        self.held = false;
        let (waiter, slot) = oneshot::channel();
        let revision = self.revision.clone();
        let grants = revision.core.lock().throttle.hand_back(self.ticket, self.key, waiter);
        revision.hand_over(grants);
        revision.probe_starting();
        Waiting { revision, ticket: self.ticket, slot }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        let now = Instant::now();
        let revision = &self.revision;
        let (next, out, ejected) = {
            let mut core = revision.core.lock();
            core.meter.leave(now);
            let ejected = match self.served {
                Some(false) => core.throttle.failed(self.key, &revision.shared.clients.limits().ejection, now),
                Some(true) => {
                    core.throttle.served(self.key);
                    None
                }
                None => None,
            };
            let next = core.throttle.finish(self.key);
            let out = core.throttle.state(self.key).is_none_or(|state| !state.is_ready());
            (next, out, ejected)
        };
        if let Some(time) = ejected {
            revision.ejected(self.key, &self.upstream.pod, time);
        }
        if out {
            revision.drained.notify_waiters();
        }
        if let Some(grant) = next {
            revision.hand_over(vec![grant]);
        }
    }
}
