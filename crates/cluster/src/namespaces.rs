//! Empties a namespace that is being deleted and then removes the finalizer `kubernetes`.
//!
//! Source: Kubernetes' `namespace` controller. Pods go first with their own grace; the namespace's conditions say
//! what is still there.

use std::sync::Arc;
use std::time::Duration;

use client::{Caches, Queue, queue::Outcome, run_workers};
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::resources::{self, Kind};
use crate::{StepError, is_not_found, unless_gone};

const FINALIZER: &str = "kubernetes";
/// Time between two looks at a namespace whose objects are on their way out.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub(crate) fn start(caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<String>::new();
    let namespaces = caches.of::<Namespace>();
    let add = queue.clone();
    namespaces.subscribe(move |change| {
        if let Some(namespace) = change.new.as_ref().filter(|n| is_terminating(n)) {
            add.add(namespace.name_any());
        }
    });
    let client = caches.client().clone();
    run_workers("namespaces", &queue, 2, tasks, stop, move |name: String| {
        let (client, namespaces) = (client.clone(), namespaces.clone());
        async move {
            match namespaces.get("", &name).filter(|n| is_terminating(n)) {
                Some(namespace) => empty(&client, &namespace).await,
                None => Ok(Outcome::Done),
            }
        }
    });
}

fn is_terminating(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_deref()).unwrap_or_default();
    namespace.metadata.deletion_timestamp.is_some() && finalizers.iter().any(|name| name == FINALIZER)
}

/// What is left of one kind.
struct Remaining {
    kind: String,
    count: usize,
    finalizers: Vec<String>,
}

async fn empty(client: &Client, namespace: &Namespace) -> Result<Outcome, StepError> {
    let name = namespace.name_any();
    let mut remaining = Vec::new();
    for kind in resources::deletable(client).await?.iter().filter(|kind| kind.namespaced) {
        remaining.extend(empty_kind(client, &name, kind).await?);
    }
    report(client, namespace, &remaining).await?;
    if !remaining.is_empty() {
        return Ok(Outcome::After(LOOK_AGAIN));
    }
    finalize(client, namespace).await?;
    Ok(Outcome::Done)
}

async fn empty_kind(client: &Client, namespace: &str, kind: &Kind) -> Result<Option<Remaining>, StepError> {
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind.resource);
    if list(&api).await?.is_empty() {
        return Ok(None);
    }
    let deleted = api.delete_collection(&DeleteParams::background(), &ListParams::default()).await;
    match deleted {
        // 405: the kind has no collection delete (Service before Kubernetes 1.24); one by one then.
        Err(kube::Error::Api(status)) if status.code == 405 => {
            for object in list(&api).await? {
                let one = api.delete(&object.name_any(), &DeleteParams::background()).await;
                unless_gone(one).map_err(StepError::api("deleting an object of a namespace"))?;
            }
        }
        other => unless_gone(other).map_err(StepError::api("deleting the objects of a namespace"))?,
    }
    let left = list(&api).await?;
    let finalizers = left.iter().flat_map(|object| object.finalizers().iter().cloned()).collect();
    let kind = format!("{}.{}", kind.resource.plural, kind.resource.group);
    let kind = kind.trim_end_matches('.').to_owned();
    Ok((!left.is_empty()).then_some(Remaining { kind, count: left.len(), finalizers }))
}

async fn list(api: &Api<DynamicObject>) -> Result<Vec<PartialObjectMeta<DynamicObject>>, StepError> {
    match api.list_metadata(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(error) if is_not_found(&error) => Ok(Vec::new()),
        Err(error) => Err(StepError::api("listing the objects of a namespace")(error)),
    }
}

/// Writes the namespace's conditions, if they differ.
async fn report(client: &Client, namespace: &Namespace, remaining: &[Remaining]) -> Result<(), StepError> {
    let present = namespace.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let wanted = conditions(remaining, present, jiff::Timestamp::now());
    if wanted == present {
        return Ok(());
    }
    let api = Api::<Namespace>::all(client.clone());
    let patch = json!({"status": {"conditions": wanted}});
    let name = namespace.name_any();
    unless_gone(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await)
        .map_err(StepError::api("writing a namespace's conditions"))
}

fn conditions(
    remaining: &[Remaining],
    present: &[NamespaceCondition],
    now: jiff::Timestamp,
) -> Vec<NamespaceCondition> {
    let content = remaining.iter().map(|left| format!("{} has {} resource instances", left.kind, left.count));
    let content: Vec<String> = content.collect();
    let mut finalizers = std::collections::BTreeMap::<&str, usize>::new();
    for name in remaining.iter().flat_map(|left| &left.finalizers) {
        *finalizers.entry(name).or_default() += 1;
    }
    let finalizers: Vec<String> =
        finalizers.iter().map(|(name, count)| format!("{name} in {count} resource instances")).collect();
    let rows = [
        ("NamespaceDeletionDiscoveryFailure", None, "ResourcesDiscovered", "All resources successfully discovered"),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        (
            "NamespaceDeletionContentFailure",
            None,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            (!content.is_empty())
                .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {}", content.join(", ")))),
            "ContentRemoved",
            "All content successfully removed",
        ),
        (
            "NamespaceFinalizersRemaining",
            (!finalizers.is_empty()).then(|| {
                (
                    "SomeFinalizersRemain",
                    format!("Some content in the namespace has finalizers remaining: {}", finalizers.join(", ")),
                )
            }),
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ];
    let one = |(kind, problem, reason, message): (&str, Option<(&str, String)>, &str, &str)| {
        let (status, reason, message) = match problem {
            Some((reason, message)) => ("True", reason.to_owned(), message),
            None => ("False", reason.to_owned(), message.to_owned()),
        };
        let old = present.iter().find(|condition| condition.type_ == kind && condition.status == status);
        let at = old.and_then(|condition| condition.last_transition_time.clone());
        NamespaceCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason),
            message: Some(message),
            last_transition_time: at.or_else(|| jiff::Timestamp::from_second(now.as_second()).ok().map(Time)),
        }
    };
    rows.into_iter().map(one).collect()
}

/// Removes the finalizer: the API server then deletes the namespace.
async fn finalize(client: &Client, namespace: &Namespace) -> Result<(), StepError> {
    let mut body = namespace.clone();
    if let Some(finalizers) = body.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|name| name != FINALIZER);
    }
    // The conditions were just written: the version in the cache is behind.
    body.metadata.resource_version = None;
    let name = namespace.name_any();
    let bytes = serde_json::to_vec(&body).expect("a namespace serialises");
    let request = http_put(&format!("/api/v1/namespaces/{name}/finalize"), bytes);
    let answer = client.request::<Namespace>(request).await;
    unless_gone(answer).map_err(StepError::api("finalizing a namespace"))
}

fn http_put(path: &str, body: Vec<u8>) -> http::Request<Vec<u8>> {
    http::Request::put(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .expect("a namespace's name is a valid path segment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left_and_keep_their_time_while_they_hold() {
        let left =
            [Remaining { kind: "pods".into(), count: 2, finalizers: vec!["a/b".into(), "a/b".into(), "c/d".into()] }];
        let first = conditions(&left, &[], jiff::Timestamp::from_second(5).unwrap());
        let message = |list: &[NamespaceCondition], kind: &str| {
            let found = list.iter().find(|condition| condition.type_ == kind).unwrap();
            (found.status.clone(), found.message.clone().unwrap())
        };
        assert_eq!(
            message(&first, "NamespaceContentRemaining"),
            ("True".into(), "Some resources are remaining: pods has 2 resource instances".into())
        );
        assert_eq!(
            message(&first, "NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: a/b in 2 resource instances, c/d in 1 resource instances"
        );
        let second = conditions(&left, &first, jiff::Timestamp::from_second(9).unwrap());
        assert_eq!(second, first, "nothing changed");
        let third = conditions(&[], &first, jiff::Timestamp::from_second(9).unwrap());
        assert_eq!(
            message(&third, "NamespaceContentRemaining"),
            ("False".into(), "All content successfully removed".into())
        );
    }
}
