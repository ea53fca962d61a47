//! The garbage collector: deletes objects whose owners are gone, and carries out foreground and orphan deletion.
//!
//! Source: Kubernetes' `garbagecollector` controller. Metadata of every deletable kind is watched; kinds come and go
//! with CRDs. Nothing is deleted before each kind was listed once and an owner that the graph lacks was asked for.

mod graph;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::queue::Outcome;
use client::{Caches, Queue, run_workers};
use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use self::graph::{FOREGROUND, Graph, Item, ORPHAN, Plan, Propagation, Uid};
use crate::resources::{self, Kind};
use crate::{StepError, is_conflict, is_not_found, unless_gone};

/// Kinds that come and go by themselves and own nothing.
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];
/// Wait after a change of the CRDs, so that several at once cost one discovery.
const SETTLE: Duration = Duration::from_millis(50);
/// Workers.
const WORKERS: usize = 2;

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Arc<Queue<Uid>>,
    kinds: Mutex<HashMap<Kind, CancellationToken>>,
    /// Kinds that were not listed yet.
    unlisted: watch::Sender<usize>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

pub(crate) fn start(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let collector = Arc::new(Collector {
        client: caches.client().clone(),
        graph: Mutex::default(),
        queue: Queue::new(),
        kinds: Mutex::default(),
        unlisted: watch::Sender::new(1),
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let changed = Arc::new(Notify::new());
    let notify = changed.clone();
    caches.of::<CustomResourceDefinition>().subscribe(move |_| notify.notify_one());
    tasks.spawn(collector.clone().follow_kinds(changed));
    let worker = collector.clone();
    run_workers("collector", &collector.queue, WORKERS, tasks, stop, move |uid: Uid| {
        let collector = worker.clone();
        async move { collector.work(uid).await.map(|()| Outcome::Done) }
    });
}

impl Collector {
    /// Watches every kind there is, now and after each change of the CRDs.
    async fn follow_kinds(self: Arc<Self>, changed: Arc<Notify>) {
        let mut first = true;
        loop {
            match resources::deletable(&self.client).await {
                Ok(found) => {
                    self.set_kinds(found);
                    if std::mem::take(&mut first) {
                        self.unlisted.send_modify(|count| *count -= 1);
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    warn!(error, "discovery failed, trying again");
                    changed.notify_one();
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    fn set_kinds(self: &Arc<Self>, found: Vec<Kind>) {
        let ignored = |kind: &Kind| IGNORED.contains(&(kind.resource.group.as_str(), kind.resource.plural.as_str()));
        let found: HashSet<Kind> = found.into_iter().filter(|kind| !ignored(kind)).collect();
        let mut kinds = self.kinds.lock();
        kinds.retain(|kind, stop| {
            let keep = found.contains(kind);
            if !keep {
                stop.cancel();
                self.forget_missing(kind, &HashSet::new());
            }
            keep
        });
        for kind in found {
            kinds.entry(kind).or_insert_with_key(|kind| {
                let stop = self.stop.child_token();
                self.unlisted.send_modify(|count| *count += 1);
                self.tasks.spawn(self.clone().watch(kind.clone(), stop.clone()));
                stop
            });
        }
    }

    async fn watch(self: Arc<Self>, kind: Kind, stop: CancellationToken) {
        let api = Api::<PartialObjectMeta<DynamicObject>>::all_with(self.client.clone(), &kind.resource);
        let kind = Arc::new(kind);
        let mut events = watcher::watcher(api, watcher::Config::default()).default_backoff().boxed();
        let mut listed = HashSet::new();
        let mut first = true;
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => break,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Init)) => listed.clear(),
                Some(Ok(Event::InitApply(object))) => {
                    listed.extend(object.uid());
                    self.observe(&kind, &object);
                }
                Some(Ok(Event::InitDone)) => {
                    self.forget_missing(&kind, &listed);
                    listed = HashSet::new();
                    if std::mem::take(&mut first) {
                        self.unlisted.send_modify(|count| *count -= 1);
                    }
                }
                Some(Ok(Event::Apply(object))) => self.observe(&kind, &object),
                Some(Ok(Event::Delete(object))) => self.forget(&object.uid().unwrap_or_default()),
                Some(Err(error)) => warn!(%error, kind = kind.resource.kind, "watch failed, trying again"),
                None => break,
            }
        }
        if first {
            self.unlisted.send_modify(|count| *count -= 1);
        }
    }

    fn observe(&self, kind: &Arc<Kind>, object: &PartialObjectMeta<DynamicObject>) {
        let Some(uid) = object.uid() else { return };
        let changed = self.graph.lock().observe(uid, Item::new(kind.clone(), &object.metadata));
        self.look_at(changed);
    }

    fn forget(&self, uid: &str) {
        let changed = self.graph.lock().forget(uid);
        self.look_at(changed);
    }

    fn forget_missing(&self, kind: &Kind, listed: &HashSet<Uid>) {
        let missing = self.graph.lock().missing(kind, listed);
        for uid in missing {
            self.forget(&uid);
        }
    }

    fn look_at(&self, uids: impl IntoIterator<Item = Uid>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }

    async fn work(&self, uid: Uid) -> Result<(), StepError> {
        // The sender lives as long as the collector.
        let _ = self.unlisted.subscribe().wait_for(|count| *count == 0).await;
        let Some(item) = self.graph.lock().get(&uid).cloned() else { return Ok(()) };
        let unknown = self.graph.lock().unknown_owners(&uid);
        let mut absent = HashSet::new();
        for owner in unknown {
            if !self.exists(&owner, &item).await? {
                absent.insert(owner.uid);
            }
        }
        let plan = self.graph.lock().plan(&uid, &absent);
        match plan {
            Plan::Nothing => Ok(()),
            Plan::Delete(propagation) => self.delete(&uid, &item, propagation).await,
            Plan::DropReferences(owners) => self.drop_references(&uid, &item, &owners).await,
            Plan::RemoveForegroundFinalizer => self.remove_finalizer(&uid, &item, FOREGROUND).await,
            Plan::DeleteDependents(dependents) => {
                self.look_at(dependents);
                Ok(())
            }
            Plan::ReleaseDependents(dependents) => {
                for dependent in dependents {
                    let child = self.graph.lock().get(&dependent).cloned();
                    if let Some(child) = child {
                        self.drop_references(&dependent, &child, &BTreeSet::from([uid.clone()])).await?;
                    }
                }
                self.remove_finalizer(&uid, &item, ORPHAN).await
            }
        }
    }

    fn api(&self, kind: &Kind, namespace: &str) -> Api<DynamicObject> {
        if kind.namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
        } else {
            Api::all_with(self.client.clone(), &kind.resource)
        }
    }

    /// Asks the API server itself: the graph may be behind.
    async fn exists(&self, owner: &OwnerReference, dependent: &Item) -> Result<bool, StepError> {
        let kind = {
            let kinds = self.kinds.lock();
            let same = |kind: &&Kind| {
                let group = owner.api_version.split_once('/').map_or("", |(group, _)| group);
                kind.resource.kind == owner.kind && kind.resource.group == group
            };
            kinds.keys().find(same).cloned()
        };
        // A kind that does not exist (any more) cannot be asked for: the dependent stays, as in Kubernetes.
        let Some(kind) = kind else { return Ok(true) };
        if kind.namespaced && dependent.namespace.is_empty() {
            return Ok(true);
        }
        match self.api(&kind, &dependent.namespace).get_metadata(&owner.name).await {
            Ok(found) => Ok(found.uid().as_deref() == Some(owner.uid.as_str())),
            Err(error) if is_not_found(&error) => Ok(false),
            Err(error) => Err(StepError::api("asking for an owner")(error)),
        }
    }

    async fn delete(&self, uid: &Uid, item: &Item, propagation: Propagation) -> Result<(), StepError> {
        let policy = match propagation {
            Propagation::Background => PropagationPolicy::Background,
            Propagation::Foreground => PropagationPolicy::Foreground,
            Propagation::Orphan => PropagationPolicy::Orphan,
        };
        let parameters = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: Some(uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        let deleted = self.api(&item.kind, &item.namespace).delete(&item.name, &parameters).await;
        match deleted {
            // Another object has taken the name: ours is gone.
            Err(error) if is_conflict(&error) => Ok(()),
            other => unless_gone(other).map_err(StepError::api("deleting a dependent")),
        }
    }

    async fn drop_references(&self, uid: &Uid, item: &Item, owners: &BTreeSet<Uid>) -> Result<(), StepError> {
        self.edit(uid, item, |object| {
            let mut references = object.metadata.owner_references.clone().unwrap_or_default();
            let before = references.len();
            references.retain(|owner| !owners.contains(&owner.uid));
            (references.len() != before).then(|| json!({"ownerReferences": references}))
        })
        .await
    }

    async fn remove_finalizer(&self, uid: &Uid, item: &Item, finalizer: &str) -> Result<(), StepError> {
        self.edit(uid, item, |object| {
            let finalizers: Vec<&String> = object.finalizers().iter().filter(|name| *name != finalizer).collect();
            (finalizers.len() != object.finalizers().len()).then(|| json!({"finalizers": finalizers}))
        })
        .await
    }

    /// Patches metadata of the object as it is now, unless it has changed in between or is another one.
    async fn edit(
        &self,
        uid: &Uid,
        item: &Item,
        change: impl Fn(&PartialObjectMeta<DynamicObject>) -> Option<serde_json::Value>,
    ) -> Result<(), StepError> {
        let api = self.api(&item.kind, &item.namespace);
        let object = match api.get_metadata(&item.name).await {
            Ok(object) if object.uid().as_ref() == Some(uid) => object,
            Ok(_) => return Ok(()),
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(StepError::api("reading an object's metadata")(error)),
        };
        let Some(mut metadata) = change(&object) else { return Ok(()) };
        metadata["uid"] = json!(uid);
        metadata["resourceVersion"] = json!(object.resource_version());
        let patch = Patch::Merge(json!({"metadata": metadata}));
        unless_gone(api.patch_metadata(&item.name, &PatchParams::default(), &patch).await)
            .map_err(StepError::api("editing an object's metadata"))
    }
}
