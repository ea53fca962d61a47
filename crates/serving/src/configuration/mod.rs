//! Configuration: a Revision for each generation of its template, and which one is the latest ready.

mod plan;
mod resources;

use std::sync::Arc;

use api::serving::annotations::CONFIGURATION_LABEL;
use api::serving::{Configuration, Revision};
use client::ObjectKey;
use client::queue::Outcome;
use kube::ResourceExt;

use crate::context::Context;
use crate::write::{self, WriteError};

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
    let own = |revision: &Revision| revision.labels().get(CONFIGURATION_LABEL) == Some(&key.name);
    let revisions = context.caches.revisions.select(&key.namespace, own);
    let named = context.caches.revisions.get(&key.namespace, &resources::revision_name(&configuration));
    Some(Observed { configuration, revisions, named })
}

/// Brings one Configuration's Revision and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(observed) = observe(&context, &key) else { return Ok(Outcome::Done) };
    let writes = plan::plan(&observed, context.now());
    write::apply(&context.client, observed.configuration.as_ref(), &writes).await?;
    Ok(Outcome::Done)
}
