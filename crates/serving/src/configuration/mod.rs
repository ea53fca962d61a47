//! Configuration: a Revision for each generation of its template, which one is the latest ready, and the end of those
//! that nobody uses.

mod gc;
mod plan;
mod resources;

use std::sync::Arc;
use std::time::Duration;

use api::config::Settings;
use api::serving::annotations as keys;
use api::serving::{Configuration, ConfigurationStatus, Revision};
use client::ObjectKey;
use client::queue::Outcome;
use kube::ResourceExt;

use crate::context::{Context, revision_id};
use crate::meta::is_controlled_by;
use crate::pace::Verdict;
use crate::write::{Object, Write, WriteError};

const KIND: &str = "Configuration";

/// Whether a Revision of the name that the template asks for is somebody else's, or says something else.
///
/// Source: `knative/serving/pkg/reconciler/service/service.go`, `CheckNameAvailability`.
pub(crate) fn is_taken(named: &Revision, configuration: &Configuration) -> bool {
    let generation = resources::generation(configuration).to_string();
    let of_generation = named.labels().get(keys::CONFIGURATION_GENERATION_LABEL) == Some(&generation);
    let mut spec = configuration.spec.template.spec.clone();
    // Filled in when a Revision is made, and in no template that was changed since.
    spec.pod.enable_service_links = spec.pod.enable_service_links.or(named.spec.pod.enable_service_links);
    !is_controlled_by(named, configuration) || !of_generation && named.spec != spec
}

/// Time after which the pods of a Revision that nobody uses are looked at again.
const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// What the pods of a Revision that nobody uses are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pods {
    /// They go by themselves, each when it is drained; the end of the last one leads back to the Configuration.
    Leaving,
    /// They would stay, and have requests.
    Busy,
    /// They may go with the Revision, if there are any.
    Idle,
}

impl Pods {
    fn of(context: &Context, revision: &Revision, settings: &Settings) -> Self {
        let (key, autoscaler) = (ObjectKey::of(revision), &settings.autoscaler);
        let class = keys::value(revision.annotations(), keys::CLASS).unwrap_or(&autoscaler.class);
        if !context.instances.has_pods(&key) {
            Self::Idle
        } else if class == keys::CLASS_KPA && autoscaler.enable_scale_to_zero {
            Self::Leaving
        } else if context.gateway.load(&revision_id(&key)) > 0 {
            Self::Busy
        } else {
            Self::Idle
        }
    }
}

/// What is known about one Configuration.
#[derive(Clone, Debug)]
struct Observed {
    configuration: Arc<Configuration>,
    /// The Revisions that carry its label, in any order.
    revisions: Vec<Arc<Revision>>,
    /// The Revision that has the name of the one that is wanted, whoever owns it.
    named: Option<Arc<Revision>>,
}

fn observe(context: &Context, key: &ObjectKey) -> Option<Observed> {
    let configuration = context.caches.configurations.get_key(key)?;
    let revisions = context.caches.revisions_of.get(&key.namespace, &key.name);
    let named = context.caches.revisions.get(&key.namespace, &resources::revision_name(&configuration));
    Some(Observed { configuration, revisions, named })
}

/// Brings one Configuration's Revision and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(observed) = observe(&context, &key) else {
        context.pace.forget(KIND, &key);
        return Ok(Outcome::Done);
    };
    let settings = context.live.get();
    let (mut unused, mut wait) = gc::collect(&observed, &settings.gc, context.now());
    unused.retain(|revision| {
        let pods = Pods::of(&context, revision, &settings);
        if pods == Pods::Busy {
            wait = Some(wait.map_or(BUSY_PAUSE, |wait| wait.min(BUSY_PAUSE)));
        }
        pods == Pods::Idle
    });
    let mut writes = plan::plan(&observed, context.now());
    let is_minor = |write: &Write| is_minor(&observed.configuration, write);
    let held = context.pace.hold(KIND, &key, &mut writes, is_minor, context.config.status_delay);
    // One that was just put to use again is not the one that was seen.
    writes.extend(unused.into_iter().map(|revision| Write::DeleteUnchanged(Revision::clone(&revision).into())));
    context.writer.apply_all(observed.configuration.as_ref(), &writes).await?;
    if let Some(wait) = wait {
        context.queues.configurations.add_after(key, wait);
    }
    Ok(held.map_or(Outcome::Done, Outcome::After))
}

/// Whether a status changes nothing but words about whether the latest Revision is ready.
fn is_minor(configuration: &Configuration, write: &Write) -> bool {
    let Write::Status(Object::Configuration(next)) = write else { return false };
    let present = configuration.status.as_ref();
    let verdict = |status: &ConfigurationStatus| Verdict::new(&status.conditions, status.observed_generation);
    next.status.as_ref().is_some_and(|next| {
        let latest = present.and_then(|present| present.latest_ready_revision_name.as_ref());
        verdict(next).is_old(present.map(verdict)) && next.latest_ready_revision_name.as_ref() == latest
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_name_is_taken_by_another_owner_or_another_spec() {
        let spec = |image: &str| json!({"containers": [{"image": image}]});
        let mut linked = spec("a");
        linked["enableServiceLinks"] = json!(false);
        let configuration: Configuration = serde_json::from_value(json!({
            "metadata": {"name": "hello", "uid": "1", "generation": 3}, "spec": {"template": {"spec": spec("a")}},
        }))
        .unwrap();
        let is_taken = |owner: &str, generation: &str, spec: Value| {
            let owner = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": "hello",
                "uid": owner, "controller": true});
            let revision = json!({"metadata": {"name": "hello-mine", "ownerReferences": [owner],
                "labels": {"serving.knative.dev/configurationGeneration": generation}}, "spec": spec});
            super::is_taken(&serde_json::from_value(revision).unwrap(), &configuration)
        };
        assert!(!is_taken("1", "3", spec("a")));
        assert!(is_taken("2", "3", spec("a")), "another Configuration's");
        assert!(!is_taken("1", "1", spec("a")), "an earlier generation that said the same");
        assert!(!is_taken("1", "1", linked), "with what only a new Revision is given");
        assert!(is_taken("1", "1", spec("b")));
    }
}
