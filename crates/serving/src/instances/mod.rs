//! Instances: the pods of a Revision, made and removed one by one.
//!
//! The wanted number comes from the autoscaler, in memory; the pods are the API's. What lies between the two is kept
//! here: pods that were asked for and are not in the cache yet, so that none is made twice, and pods that the gateway
//! is draining, so that none is retired twice.
//!
//! Scale-in asks the gateway which instances to take: an idle one first, a busy one only after it is drained.

mod plan;
mod resources;

pub use resources::sample_pod;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use api::serving::Revision;
use api::serving::annotations::REVISION_LABEL;
use base::PodId;
use client::queue::Outcome;
use client::{Change, ObjectKey};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::{Context, revision_id};
use crate::meta::is_deleted;
use crate::write::{Write, WriteError};

/// Time after which a pod that was asked for and never appeared counts as not made.
const EXPECTATION_LIMIT: Duration = Duration::from_secs(30);
/// Pause before the gateway is asked again when it had nothing to give.
const RETIRE_PAUSE: Duration = Duration::from_secs(1);
/// How often the gateway may have nothing to give before pods are deleted without it.
const RETIRE_TRIES: u32 = 3;
/// Time requests have to end where the Revision has no timeout of its own.
const DEFAULT_TIMEOUT_SECONDS: i64 = 300;

/// What is known of the pods of each Revision. Bounded by Revisions and pods.
#[derive(Default)]
pub(crate) struct Instances(Mutex<HashMap<ObjectKey, Entry>>);

#[derive(Default)]
struct Entry {
    pods: BTreeMap<String, Arc<Pod>>,
    /// Names of pods that were asked for, and since when.
    expected: BTreeMap<String, Instant>,
    /// Pods that the gateway was asked to retire and has not named yet.
    retiring: usize,
    /// Names of pods that are being deleted, and since when; the cache may still show them as before.
    leaving: BTreeMap<String, Instant>,
    /// How often in a row it had nothing to give.
    empty_handed: u32,
    /// Why the API server refused the last pod.
    refused: Option<String>,
    /// Whether somebody else deleted a pod: the Revision may be gone, and only our picture of it old.
    doubted: bool,
}

/// Pods of a Revision by what they can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Ready, and not on their way out.
    pub(crate) ready: i32,
    /// There or asked for, and not on their way out.
    pub(crate) present: i32,
}

impl Entry {
    /// The pods that nobody deletes at this moment.
    fn staying(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().filter(|(name, _)| !self.leaving.contains_key(*name)).map(|(_, pod)| pod)
    }
}

impl Instances {
    /// A pod is about to be deleted: it counts no more.
    fn leave(&self, key: &ObjectKey, pods: impl IntoIterator<Item = String>) {
        if let Some(entry) = self.0.lock().get_mut(key) {
            let now = Instant::now();
            entry.leaving.extend(pods.into_iter().map(|pod| (pod, now)));
        }
    }

    /// A pod could not be deleted: it counts again.
    fn stay(&self, key: &ObjectKey, pod: &str) {
        if let Some(entry) = self.0.lock().get_mut(key) {
            entry.leaving.remove(pod);
        }
    }

    /// Takes over a change of a pod; the Revision it belongs to.
    pub(crate) fn observe(&self, change: &Change<Pod>) -> Option<ObjectKey> {
        let pod = change.object();
        let revision = pod.labels().get(REVISION_LABEL)?;
        let key = ObjectKey::new(pod.namespace().unwrap_or_default(), revision);
        let mut entries = self.0.lock();
        let entry = entries.entry(key.clone()).or_default();
        entry.expected.remove(&pod.name_any());
        if change.new.as_deref().is_none_or(is_deleted) {
            let ours = entry.leaving.remove(&pod.name_any()).is_some();
            let was_there = entry.pods.get(&pod.name_any()).is_some_and(|old| !is_deleted(old.as_ref()));
            entry.doubted |= was_there && !ours;
        }
        match &change.new {
            Some(pod) => drop(entry.pods.insert(pod.name_any(), pod.clone())),
            None => drop(entry.pods.remove(&pod.name_any())),
        }
        Some(key)
    }

    fn set_doubted(&self, key: &ObjectKey, doubted: bool) -> bool {
        let mut entries = self.0.lock();
        entries.get_mut(key).is_some_and(|entry| std::mem::replace(&mut entry.doubted, doubted))
    }

    /// The pods of a Revision.
    pub(crate) fn pods(&self, key: &ObjectKey) -> Vec<Arc<Pod>> {
        self.0.lock().get(key).map(|entry| entry.pods.values().cloned().collect()).unwrap_or_default()
    }

    /// The pods of a Revision that are not on their way out.
    pub(crate) fn staying(&self, key: &ObjectKey) -> Vec<Arc<Pod>> {
        self.0.lock().get(key).map(|entry| entry.staying().cloned().collect()).unwrap_or_default()
    }

    /// Whether a Revision has a pod, be it on its way out.
    pub(crate) fn has_pods(&self, key: &ObjectKey) -> bool {
        self.0.lock().get(key).is_some_and(|entry| !entry.pods.is_empty() || !entry.expected.is_empty())
    }

    /// Why the API server refused the last pod.
    pub(crate) fn refusal(&self, key: &ObjectKey) -> Option<String> {
        self.0.lock().get(key).and_then(|entry| entry.refused.clone())
    }

    /// How many pods a Revision has.
    pub(crate) fn counts(&self, key: &ObjectKey) -> Counts {
        let entries = self.0.lock();
        let Some(entry) = entries.get(key) else { return Counts::default() };
        let live = entry.staying().filter(|pod| plan::is_live(pod));
        let (ready, starting): (Vec<_>, Vec<_>) = live.partition(|pod| plan::is_ready(pod));
        let kept = ready.len().saturating_sub(entry.retiring);
        let count = |pods: usize| i32::try_from(pods).unwrap_or(i32::MAX);
        Counts { ready: count(kept), present: count(kept + starting.len() + entry.expected.len()) }
    }
}

/// What is known about the pods of one Revision.
#[derive(Clone, Debug)]
struct Observed {
    revision: Option<Arc<Revision>>,
    pods: Vec<Arc<Pod>>,
    expected: usize,
    retiring: usize,
    /// Pods that the API may still hold live, those on their way out included.
    occupied: usize,
    /// Most pods at any time.
    limit: usize,
    /// Whether the gateway has nothing to give, again and again, and no request either.
    unknown_to_gateway: bool,
    /// Pods wanted; `None` while nobody has decided.
    wanted: Option<i32>,
}

fn observe(context: &Context, key: &ObjectKey) -> Observed {
    let revision = context.caches.revisions.get_key(key);
    let wanted = context.autoscaler.wanted(key);
    let limit = context.autoscaler.limit(key).and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    // Asked before any lock of ours is taken: the gateway calls us under its own.
    let idle = context.gateway.load(&revision_id(key)) == 0;
    let now = Instant::now();
    let mut entries = context.instances.0.lock();
    if revision.is_none() && entries.get(key).is_some_and(|entry| entry.pods.is_empty()) {
        entries.remove(key);
    }
    let none = Observed {
        revision: revision.clone(),
        pods: Vec::new(),
        expected: 0,
        retiring: 0,
        occupied: 0,
        limit,
        unknown_to_gateway: false,
        wanted,
    };
    let Some(entry) = entries.get_mut(key) else { return none };
    entry.expected.retain(|_, since| now < *since + EXPECTATION_LIMIT);
    entry.leaving.retain(|_, since| now < *since + EXPECTATION_LIMIT);
    Observed {
        pods: entry.staying().cloned().collect(),
        expected: entry.expected.len(),
        retiring: entry.retiring,
        occupied: entry.pods.values().filter(|pod| plan::is_live(pod)).count(),
        unknown_to_gateway: idle && entry.empty_handed >= RETIRE_TRIES,
        ..none
    }
}

/// Brings the number of one Revision's pods to what is wanted.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let observed = observe(&context, &key);
    let mut random = || {
        let mut byte = [0];
        // Names need no secrecy; without randomness the API server's refusal of a taken name brings another try.
        let _ = getrandom::fill(&mut byte);
        byte[0]
    };
    let plan = plan::plan(&observed, context.config.node_name.as_deref(), &mut random);
    if plan.retire > 0 {
        retire(&context, &key, observed.revision.as_deref(), plan.retire);
    }
    let expected = observed.expected + plan.create.len();
    if plan.create.is_empty() || may_create(&context, &key, observed.revision.as_deref()).await? {
        create(&context, &key, plan.create).await?;
    }
    for write in &plan.delete {
        delete(&context, &key, write).await?;
    }
    // One that was asked for and does not come is asked for again.
    Ok(if expected > 0 { Outcome::After(EXPECTATION_LIMIT) } else { Outcome::Done })
}

/// Whether pods may be made. Only a Revision whose pods somebody else deletes is asked for: a cold start waits for
/// nothing.
async fn may_create(context: &Context, key: &ObjectKey, revision: Option<&Revision>) -> Result<bool, WriteError> {
    let Some(revision) = revision.filter(|_| context.instances.set_doubted(key, false)) else { return Ok(true) };
    let there = client::is_there(&context.client, revision).await;
    if !matches!(there, Ok(true)) {
        context.instances.set_doubted(key, true);
    }
    there.map_err(|source| WriteError::Refused { write: format!("asking for Revision {key}"), source })
}

/// Makes pods, all at once: one cold start must not wait for another.
async fn create(context: &Arc<Context>, key: &ObjectKey, writes: Vec<Write>) -> Result<(), WriteError> {
    if writes.is_empty() {
        return Ok(());
    }
    {
        let mut entries = context.instances.0.lock();
        let entry = entries.entry(key.clone()).or_default();
        let now = Instant::now();
        entry.expected.extend(writes.iter().map(|write| (write.key().name, now)));
    }
    let results = futures::future::join_all(writes.iter().map(|write| make(context, write))).await;
    let mut failed = Ok(());
    let mut refused = None;
    {
        let mut entries = context.instances.0.lock();
        let entry = entries.entry(key.clone()).or_default();
        for (write, result) in writes.iter().zip(results) {
            if let Err(Unmade { error, expected }) = result {
                if !expected {
                    entry.expected.remove(&write.key().name);
                }
                refused = refusal(&error).or(refused);
                failed = Err(error);
            }
        }
        if entry.refused == refused {
            return failed;
        }
        entry.refused = refused;
    }
    context.queues.revisions.add(key.clone());
    failed
}

/// A pod whose creation failed.
struct Unmade {
    error: WriteError,
    /// Whether it may be there all the same: another in its place could be one too many.
    expected: bool,
}

async fn make(context: &Context, write: &Write) -> Result<(), Unmade> {
    match write.apply(&context.client).await {
        Ok(_) => Ok(()),
        Err(error) => Err(Unmade { expected: write.is_made(&context.client, &error).await, error }),
    }
}

async fn delete(context: &Context, key: &ObjectKey, write: &Write) -> Result<(), WriteError> {
    let name = write.key().name;
    context.instances.leave(key, [name.clone()]);
    let result = write.apply(&context.client).await;
    if result.is_err() {
        context.instances.stay(key, &name);
    }
    result.map(drop)
}

/// How a refusal ends in a namespace that is so new that its account is still being made.
const NEW_NAMESPACE: &str = "serviceaccount \"default\" not found";

/// What the user should read of a refusal; a server that cannot be reached, or asks for another try, refuses nothing.
fn refusal(error: &WriteError) -> Option<String> {
    match error {
        WriteError::Refused { source: kube::Error::Api(status), .. } => {
            let try_again = status.details.as_ref().is_some_and(|details| details.retry_after_seconds > 0)
                || status.message.ends_with(NEW_NAMESPACE);
            (!try_again).then(|| status.message.clone())
        }
        _ => None,
    }
}

/// Lets the gateway choose and drain `count` pods, and deletes those that it names.
fn retire(context: &Arc<Context>, key: &ObjectKey, revision: Option<&Revision>, count: usize) {
    if let Some(entry) = context.instances.0.lock().get_mut(key) {
        entry.retiring += count;
    }
    let seconds = revision.and_then(|revision| revision.spec.timeout_seconds).unwrap_or(DEFAULT_TIMEOUT_SECONDS);
    let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
    let (context, key) = (context.clone(), key.clone());
    context.tasks.clone().spawn(async move {
        let chosen = tokio::select! {
            () = context.stop.cancelled() => return,
            chosen = context.gateway.retire(revision_id(&key), count, limit) => chosen,
        };
        let missing = count.saturating_sub(chosen.len());
        if let Some(entry) = context.instances.0.lock().get_mut(&key) {
            entry.retiring = entry.retiring.saturating_sub(count);
            let now = Instant::now();
            entry.leaving.extend(chosen.iter().map(|pod| (pod.name.to_string(), now)));
            entry.empty_handed = if missing > 0 { entry.empty_handed + 1 } else { 0 };
        }
        for pod in &chosen {
            let Some(pod) = context.caches.pods.get(&pod.namespace, &pod.name) else { continue };
            let write = Write::Delete(pod.as_ref().clone().into());
            if let Err(error) = delete(&context, &key, &write).await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot delete a drained pod");
            }
        }
        // The gateway may come to know more; and a pod that could not be deleted is still to go.
        let pause = if missing > 0 { RETIRE_PAUSE } else { Duration::from_millis(50) };
        context.queues.instances.add_after(key, pause);
    });
}

/// Deletes pods that the gateway took out of rotation for a controller before this one.
pub(crate) fn release(context: &Arc<Context>, pods: &[PodId]) {
    let (context, pods) = (context.clone(), pods.to_vec());
    context.tasks.clone().spawn(async move { delete_drained(&context, &pods).await });
}

async fn delete_drained(context: &Context, pods: &[PodId]) {
    for pod in pods {
        let Some(pod) = context.caches.pods.get(&pod.namespace, &pod.name) else { continue };
        if let Err(error) = Write::Delete(pod.as_ref().clone().into()).apply(&context.client).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot delete a drained pod");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stays_wrong_is_told() {
        let refused = |code, retry_after_seconds, message: &str| {
            let details = serde_json::json!({"retryAfterSeconds": retry_after_seconds});
            let status = serde_json::json!({"code": code, "message": message, "details": details});
            let status: kube::core::Status = serde_json::from_value(status).unwrap();
            WriteError::Refused { write: "creating Pod a".into(), source: kube::Error::Api(Box::new(status)) }
        };
        for (code, retry_after_seconds, told) in
            [(403, 0, true), (422, 0, true), (500, 0, true), (500, 1, false), (429, 1, false)]
        {
            let expected = told.then(|| "why".to_owned());
            assert_eq!(refusal(&refused(code, retry_after_seconds, "why")), expected, "{code} {retry_after_seconds}");
        }
        let looked_up =
            |account| format!("error looking up service account a/{account}: serviceaccount \"{account}\" not found");
        assert_eq!(refusal(&refused(403, 0, &looked_up("default"))), None);
        assert_eq!(refusal(&refused(403, 0, &looked_up("mine"))), Some(looked_up("mine")));
    }
}
