//! PodAutoscaler: the shell around the KPA, one [`Scaler`] for each Revision that has traffic or pods.
//!
//! - A poke decides at once, in the gateway's own call, and hands the Revision to the instances controller: no tick, no
//!   write and no other object stands between a request and its pod.
//! - Statistics go into the windows as they come; decisions follow every 2 s, four times a second while requests wait for
//!   pods, and at the second in which the last traffic leaves the window.
//! - A Revision at rest, at zero or at its least scale, has no timer.
//! - A Revision of the class `hpa` is decided by what its pods use, whenever [`usage`] was read anew.
//! - The status is written after the pods were asked for, and changes that follow each other closely as one.

#[cfg(test)]
mod knobs;
mod scaler;
mod status;
pub(crate) mod usage;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use api::autoscaling::{PodAutoscaler, PodAutoscalerStatus};
use autoscale::settings::{Class, Reachability};
use autoscale::{Scaling, Settings};
use client::ObjectKey;
use client::link::Stat;
use client::queue::Outcome;
use kube::ResourceExt;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::context::{Context, revision_id, revision_key};
use crate::instances::Counts;
use crate::meta::is_deleted;
use crate::revision::progress_deadline;
use crate::write::{Write, WriteError};
use scaler::Scaler;

/// Time that an activation may take beyond the progress deadline.
const ACTIVATION_MARGIN: Duration = Duration::from_secs(30);
/// Time after a poke at which the gateway's load is looked at once more: what waits then counts too.
const BURST_DELAY: Duration = Duration::from_millis(20);
/// What the scalers' clock shows when the process starts: they can speak of an activation that began up to that long
/// before.
const PAST: Duration = Duration::from_secs(86_400);
/// Most pokes that are remembered for Revisions whose PodAutoscaler is not known yet.
const EARLY_LIMIT: usize = 10_000;

/// Scalers of all Revisions.
pub(crate) struct Autoscaler {
    /// When the scalers' clock showed [`PAST`].
    origin: Instant,
    settings: RwLock<Arc<Settings>>,
    entries: Mutex<HashMap<ObjectKey, Entry>>,
    /// Pokes that came before their PodAutoscaler.
    early: Mutex<HashSet<ObjectKey>>,
    usage: usage::UsageFeed,
}

struct Entry {
    uid: String,
    scaler: Scaler,
    /// What the scaler's settings were read from: a version of the PodAutoscaler and the settings of all.
    basis: (Option<String>, Arc<Settings>),
    /// What the status was found to tell, in that version of the PodAutoscaler.
    told: Option<(status::Seen, Option<String>)>,
    /// The status that was written last, and the version it was written over.
    written: Option<(Option<String>, PodAutoscalerStatus)>,
    /// The reading of [`usage`] that was decided by last.
    reading: u64,
    /// Since when the status differs from what is written.
    dirty_since: Option<Duration>,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            settings: RwLock::default(),
            entries: Mutex::default(),
            early: Mutex::default(),
            usage: usage::UsageFeed::default(),
        }
    }
}

impl Autoscaler {
    fn now(&self) -> Duration {
        PAST + self.origin.elapsed()
    }

    /// Pods to run for a Revision; `None` while it has no scaler.
    pub(crate) fn wanted(&self, key: &ObjectKey) -> Option<i32> {
        self.entries.lock().get(key).map(|entry| entry.scaler.pods())
    }

    /// Most pods of a Revision; `None` while it has no scaler.
    pub(crate) fn limit(&self, key: &ObjectKey) -> Option<i32> {
        self.entries.lock().get(key).map(|entry| entry.scaler.limit())
    }

    fn is_by_usage(&self, key: &ObjectKey) -> bool {
        self.entries.lock().get(key).is_some_and(|entry| entry.scaler.by_usage())
    }

    /// The Revisions that what their pods use decides about, in order.
    fn scaled_by_usage(&self) -> Vec<ObjectKey> {
        let entries = self.entries.lock();
        let mut keys: Vec<ObjectKey> =
            entries.iter().filter(|(_, entry)| entry.scaler.by_usage()).map(|(key, _)| key.clone()).collect();
        keys.sort();
        keys
    }

    /// Takes over the ConfigMap `config-autoscaler`.
    pub(crate) fn configure(&self, settings: &Settings) {
        *self.settings.write() = Arc::new(settings.clone());
    }

    /// Takes over one second's statistics.
    pub(crate) fn report(&self, context: &Context, stats: &[Stat]) {
        let now = self.now();
        let mut entries = self.entries.lock();
        for stat in stats {
            let key = revision_key(&stat.revision);
            if let Some(entry) = entries.get_mut(&key)
                && entry.scaler.record(stat.concurrency, stat.requests, now)
            {
                context.queues.autoscalers.add(key);
            }
        }
    }

    /// Decides at once for a Revision that a request waits at.
    pub(crate) fn poke(&self, context: &Context, key: ObjectKey) {
        let counts = context.instances.counts(&key);
        let now = self.now();
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&key) else {
            drop(entries);
            let mut early = self.early.lock();
            if early.len() < EARLY_LIMIT {
                early.insert(key);
            }
            return;
        };
        if !entry.scaler.poke(now) {
            return;
        }
        let changed = entry.scaler.evaluate(counts, now).changed;
        drop(entries);
        if changed {
            context.queues.instances.add(key.clone());
        }
        context.queues.autoscalers.add_after(key, BURST_DELAY);
    }
}

/// Brings one Revision's scale and its PodAutoscaler's status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let autoscaler = context.caches.autoscalers.get_key(&key).filter(|present| !is_deleted(present.as_ref()));
    let Some(autoscaler) = autoscaler else {
        context.autoscaler.entries.lock().remove(&key);
        context.queues.instances.add(key);
        return Ok(Outcome::Done);
    };
    let Evaluated { changed, again, write } = evaluate(&context, &key, &autoscaler);
    if changed {
        context.queues.instances.add(key.clone());
    }
    if let Some(write) = write {
        let result = context.writer.apply(&write).await;
        if let Some(entry) = context.autoscaler.entries.lock().get_mut(&key) {
            match (&result, write) {
                (Ok(_), Write::Status(crate::write::Object::PodAutoscaler(written))) => {
                    entry.dirty_since = None;
                    let status = written.status.clone().unwrap_or_default();
                    entry.written = Some((written.resource_version(), status));
                }
                _ => entry.written = None,
            }
        }
        result?;
    }
    Ok(again.map_or(Outcome::Done, Outcome::After))
}

/// What one look at a scaler gives.
struct Evaluated {
    changed: bool,
    again: Option<Duration>,
    write: Option<Write>,
}

fn evaluate(context: &Context, key: &ObjectKey, autoscaler: &PodAutoscaler) -> Evaluated {
    let this = &context.autoscaler;
    let counts = context.instances.counts(key);
    let revision = context.caches.revisions.get_key(key);
    let limit =
        progress_deadline(revision.as_deref(), context.live.get().deployment.progress_deadline) + ACTIVATION_MARGIN;
    let basis = (autoscaler.resource_version(), this.settings.read().clone());
    let scaling = || scaling(&basis.1, autoscaler);
    let poked = this.early.lock().remove(key);
    // Asked before any lock of ours is taken: the gateway calls us under its own.
    let load = context.gateway.load(&revision_id(key));
    let pods = this.is_by_usage(key).then(|| context.instances.staying(key));
    let now = this.now();

    let uid = autoscaler.uid().unwrap_or_default();
    let mut entries = this.entries.lock();
    let mut changed = false;
    let fresh = entries.get(key).is_none_or(|entry| entry.uid != uid);
    if fresh {
        let restored = status::restored(autoscaler.status.as_ref(), context.now());
        let scaler = Scaler::new(scaling(), restored, counts, limit, now);
        let entry =
            Entry { uid, scaler, basis: basis.clone(), told: None, written: None, reading: 0, dirty_since: None };
        entries.insert(key.clone(), entry);
        changed = true;
    }
    let entry = entries.get_mut(key).expect("the entry was made above");
    entry.scaler.set_activation_limit(limit);
    if entry.basis.0 != basis.0 || !Arc::ptr_eq(&entry.basis.1, &basis.1) {
        entry.scaler.retune(scaling(), now);
        entry.basis = basis;
    }
    if poked {
        entry.scaler.poke(now);
    }
    entry.scaler.press(load, counts.ready, now);
    if entry.scaler.by_usage() {
        this.usage.want();
        if let (Some(pods), Some(reading)) = (pods, this.usage.after(entry.reading)) {
            entry.reading = reading.number();
            let seen = reading.see(&pods, context.now());
            entry.scaler.measure(seen.as_deref().map_err(|why| *why), now);
        }
    }
    let evaluation = entry.scaler.evaluate(counts, now);
    changed |= evaluation.changed;
    let (write, due) = status_write(context, entry, autoscaler, counts, now);
    let again = [evaluation.again, due].into_iter().flatten().min().map(|at| at.saturating_sub(now));
    Evaluated { changed, again, write }
}

/// The status to write now, or when it is due.
fn status_write(
    context: &Context,
    entry: &mut Entry,
    autoscaler: &PodAutoscaler,
    counts: Counts,
    now: Duration,
) -> (Option<Write>, Option<Duration>) {
    // Another autoscaler's status says how many pods it wants.
    if entry.scaler.is_foreign() {
        return (None, None);
    }
    let seen = status::Seen {
        counts,
        desired: entry.scaler.desired_scale(),
        activity: entry.scaler.activity(),
        initialized: entry.scaler.initialized(),
        advice: entry.scaler.advice().cloned(),
    };
    let version = &autoscaler.metadata.resource_version;
    if entry.told.as_ref().is_some_and(|(told, over)| *told == seen && over == version) {
        return (None, None);
    }
    // What was written over the version that the cache still shows is newer than the cache.
    let known = match &entry.written {
        Some((over, status)) if over == version => Some(status),
        _ => autoscaler.status.as_ref(),
    };
    let status = status::status(known, autoscaler.metadata.generation, &seen, context.now());
    if known == Some(&status) {
        entry.dirty_since = None;
        entry.told = Some((seen, version.clone()));
        return (None, None);
    }
    let ready = entry.scaler.initialized() != status::restored(known, context.now()).initialized;
    let due = *entry.dirty_since.get_or_insert(now) + context.config.status_delay;
    // Written over a version that the cache does not show yet, it would only be refused.
    let behind = matches!(&entry.written, Some((over, _)) if over == version);
    if (ready || now >= due) && !behind {
        let next = PodAutoscaler { status: Some(status), ..autoscaler.clone() };
        return (Some(Write::Status(next.into())), None);
    }
    (None, Some(due.max(now + Duration::from_millis(10))))
}

fn scaling(settings: &Settings, autoscaler: &PodAutoscaler) -> Scaling {
    let spec = &autoscaler.spec;
    let reachability = Reachability::parse(spec.reachability.as_deref());
    let limit = spec.container_concurrency.unwrap_or_default();
    let scaling = Scaling::resolve(settings, autoscaler.annotations(), limit, reachability);
    if scaling.class != Class::Foreign {
        return scaling;
    }
    let told = autoscaler.status.as_ref().and_then(|status| status.desired_scale).filter(|desired| *desired >= 0);
    let pods = told.unwrap_or(scaling.initial.max(scaling.min));
    Scaling { min: pods, max: pods, ..scaling }
}
