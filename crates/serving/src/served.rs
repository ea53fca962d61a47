//! What the gateway has said that it serves.

use std::collections::HashMap;
use std::sync::Arc;

use client::{ObjectKey, Queue};
use futures::future::BoxFuture;
use kube::{Resource, ResourceExt};
use parking_lot::Mutex;

use crate::context::Context;

/// Uid and generation: what the gateway's word counts for.
pub(crate) type Version = (String, i64);

/// The version of an object.
pub(crate) fn version_of<K: Resource>(object: &K) -> Version {
    (object.uid().unwrap_or_default(), object.meta().generation.unwrap_or_default())
}

/// The gateway's words about the objects of one kind. As many as there are objects.
#[derive(Default)]
pub(crate) struct Served {
    said: Mutex<HashMap<ObjectKey, Version>>,
    awaited: Mutex<HashMap<ObjectKey, Version>>,
}

impl Served {
    /// Whether the gateway serves that version.
    pub(crate) fn holds(&self, key: &ObjectKey, version: &Version) -> bool {
        self.said.lock().get(key) == Some(version)
    }

    /// The gateway's word counts no more.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.said.lock().remove(key);
    }

    /// Notes when `answer` comes, which is the gateway's about that version, and looks at the object again then.
    pub(crate) fn note(
        self: &Arc<Self>,
        context: &Context,
        queue: &Arc<Queue<ObjectKey>>,
        key: &ObjectKey,
        version: Version,
        answer: impl FnOnce() -> BoxFuture<'static, ()>,
    ) {
        if self.awaited.lock().insert(key.clone(), version.clone()) == Some(version.clone()) {
            return;
        }
        let answer = answer();
        let (this, queue, key, stop) = (self.clone(), queue.clone(), key.clone(), context.stop.clone());
        context.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => return,
                () = answer => {}
            }
            let mut awaited = this.awaited.lock();
            if awaited.get(&key) == Some(&version) {
                awaited.remove(&key);
                drop(awaited);
                this.said.lock().insert(key.clone(), version);
                queue.add(key);
            }
        });
    }
}
