//! Revision: images by digest, its PodAutoscaler, and what its pods say of it.

mod auth;
mod digests;
mod failures;
mod plan;
mod resources;

use std::sync::Arc;
use std::time::Duration;

use api::autoscaling::PodAutoscaler;
use api::serving::annotations::PROGRESS_DEADLINE_ANNOTATION;
use api::serving::{Revision, RevisionStatus};
use client::ObjectKey;
use client::queue::Outcome;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub(crate) use digests::Digests;
use digests::Resolution;

use crate::context::Context;
use crate::pace::Verdict;
use crate::write::{Object, Write, WriteError};

const KIND: &str = "Revision";

/// What is known about one Revision.
#[derive(Clone, Debug)]
struct Observed {
    revision: Arc<Revision>,
    autoscaler: Option<Arc<PodAutoscaler>>,
    pods: Vec<Arc<Pod>>,
    images: Resolution,
    /// Why the API server refused the last pod, if it did.
    refused: Option<String>,
    /// Where its logs can be read.
    log_url: Option<String>,
}

fn observe(context: &Arc<Context>, key: &ObjectKey) -> Option<Observed> {
    let revision = context.caches.revisions.get_key(key)?;
    let images = digests::look_up(context, key, &revision);
    Some(Observed {
        autoscaler: context.caches.autoscalers.get_key(key),
        pods: context.instances.pods(key),
        refused: context.instances.refusal(key),
        log_url: context.live.get().observability.log_url(&revision.uid().unwrap_or_default()),
        images,
        revision,
    })
}

/// Brings one Revision's PodAutoscaler and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(observed) = observe(&context, &key) else {
        context.digests.forget(&key);
        context.pace.forget(KIND, &key);
        context.queues.instances.add(key);
        return Ok(Outcome::Done);
    };
    let mut writes = plan::plan(&observed, context.now());
    let is_minor = |write: &Write| is_minor(&observed.revision, write);
    let wait = context.pace.hold(KIND, &key, &mut writes, is_minor, context.config.status_delay);
    context.writer.apply_all(observed.revision.as_ref(), &writes).await?;
    Ok(wait.map_or(Outcome::Done, Outcome::After))
}

/// Whether a status changes nothing but numbers and words that nobody acts upon.
fn is_minor(revision: &Revision, write: &Write) -> bool {
    let Write::Status(Object::Revision(next)) = write else { return false };
    let present = revision.status.as_ref();
    let verdict = |status: &RevisionStatus| Verdict::new(&status.conditions, status.observed_generation);
    let images = |status: &RevisionStatus| (status.container_statuses.clone(), status.init_container_statuses.clone());
    next.status.as_ref().is_some_and(|next| {
        verdict(next).is_old(present.map(verdict)) && images(next) == present.map(images).unwrap_or_default()
    })
}

/// Time until a Revision that was never ready has failed.
pub(crate) fn progress_deadline(revision: Option<&Revision>, default: Duration) -> Duration {
    let text = revision.and_then(|revision| revision.annotations().get(PROGRESS_DEADLINE_ANNOTATION));
    text.and_then(|text| base::duration::parse(text)).unwrap_or(default)
}
