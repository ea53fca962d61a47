//! Images by digest: resolved once for each Revision, in the background, so that every pod runs the same bytes.
//!
//! Bounded by the number of Revisions that are not resolved yet: what is in the Revision's status is forgotten here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use api::serving::{ContainerStatus, Revision};
use base::Backoff;
use client::ObjectKey;
use k8s_openapi::api::core::v1::Container;
use kube::ResourceExt;
use parking_lot::Mutex;

use super::auth;
use crate::context::Context;

/// First and longest time between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));

/// How far the resolution of a Revision's images is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// Under way.
    Pending,
    /// All are known.
    Done {
        /// Of the containers.
        containers: Vec<ContainerStatus>,
        /// Of the init containers.
        init_containers: Vec<ContainerStatus>,
    },
    /// One could not be resolved; it is tried again.
    Failed {
        /// The image.
        image: String,
        /// Why.
        why: String,
    },
}

struct Entry {
    uid: String,
    resolution: Resolution,
    backoff: Backoff,
}

/// Resolutions under way.
#[derive(Default)]
pub(crate) struct Digests(Mutex<HashMap<ObjectKey, Entry>>);

impl Digests {
    /// Forgets a Revision.
    pub(crate) fn forget(&self, key: &ObjectKey) {
        self.0.lock().remove(key);
    }
}

/// The Revision's images; starts their resolution if nobody has.
pub(super) fn look_up(context: &Arc<Context>, key: &ObjectKey, revision: &Revision) -> Resolution {
    if let Some(status) = &revision.status
        && status.container_statuses.len() == revision.spec.pod.containers.len()
    {
        context.digests.forget(key);
        return Resolution::Done {
            containers: status.container_statuses.clone(),
            init_containers: status.init_container_statuses.clone(),
        };
    }
    let uid = revision.uid().unwrap_or_default();
    let mut entries = context.digests.0.lock();
    if let Some(entry) = entries.get(key).filter(|entry| entry.uid == uid) {
        return entry.resolution.clone();
    }
    let entry = Entry { uid: uid.clone(), resolution: Resolution::Pending, backoff: Backoff::new(RETRY.0, RETRY.1) };
    entries.insert(key.clone(), entry);
    drop(entries);
    context.tasks.spawn(run(context.clone(), key.clone(), uid, Box::new(revision.clone())));
    Resolution::Pending
}

/// Tries until all images are known, or nobody asks any more.
async fn run(context: Arc<Context>, key: ObjectKey, uid: String, revision: Box<Revision>) {
    loop {
        let resolution = tokio::select! {
            () = context.stop.cancelled() => return,
            resolution = resolve(&context, &key, &revision) => resolution,
        };
        let done = matches!(resolution, Resolution::Done { .. });
        let delay = {
            let mut entries = context.digests.0.lock();
            let Some(entry) = entries.get_mut(&key).filter(|entry| entry.uid == uid) else { return };
            entry.resolution = resolution;
            entry.backoff.next_delay()
        };
        context.queues.revisions.add(key.clone());
        if done {
            return;
        }
        tokio::select! {
            () = context.stop.cancelled() => return,
            () = tokio::time::sleep(delay) => {}
        }
    }
}

async fn resolve(context: &Context, key: &ObjectKey, revision: &Revision) -> Resolution {
    let settings = context.live.get();
    let deployment = &settings.deployment;
    let pod = &revision.spec.pod;
    let secrets = pod.image_pull_secrets.as_deref().unwrap_or_default();
    let auth = auth::from_secrets(&context.client, &key.namespace, secrets).await;
    let all = async |containers: &[Container]| -> Result<Vec<ContainerStatus>, Resolution> {
        let mut statuses = Vec::with_capacity(containers.len());
        for container in containers {
            let image = container.image.clone().unwrap_or_default();
            let digest = if is_exempt(&image, &deployment.unresolved_registries) {
                None
            } else {
                let answer = context.resolver.resolve(image.clone(), auth.clone());
                match tokio::time::timeout(deployment.digest_timeout, answer).await {
                    Ok(Ok(digest)) => Some(digest),
                    Ok(Err(error)) => return Err(Resolution::Failed { image, why: error.to_string() }),
                    Err(_) => {
                        let why = format!("no answer within {:?}", deployment.digest_timeout);
                        return Err(Resolution::Failed { image, why });
                    }
                }
            };
            statuses.push(ContainerStatus { name: container.name.clone(), image_digest: digest });
        }
        Ok(statuses)
    };
    let init = pod.init_containers.as_deref().unwrap_or_default();
    match (all(&pod.containers).await, all(init).await) {
        (Ok(containers), Ok(init_containers)) => Resolution::Done { containers, init_containers },
        (Err(failed), _) | (_, Err(failed)) => failed,
    }
}

/// Whether the image's registry is one whose tags are taken as they are.
fn is_exempt(image: &str, registries: &[String]) -> bool {
    image.split_once('/').is_some_and(|(host, _)| registries.iter().any(|registry| registry == host))
}
