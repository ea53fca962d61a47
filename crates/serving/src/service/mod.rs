//! Service: one Configuration and one Route of its name, and the sum of their conditions.

mod plan;
mod resources;

use std::sync::Arc;

use api::serving::{Configuration, Route, Service};
use client::ObjectKey;
use client::queue::Outcome;

use crate::context::Context;
use crate::write::{self, WriteError};

/// What is known about one Service.
#[derive(Clone, Debug)]
struct Observed {
    service: Arc<Service>,
    configuration: Option<Arc<Configuration>>,
    route: Option<Arc<Route>>,
}

fn observe(context: &Context, key: &ObjectKey) -> Option<Observed> {
    let service = context.caches.services.get_key(key)?;
    let configuration = context.caches.configurations.get_key(key);
    let route = context.caches.routes.get_key(key);
    Some(Observed { service, configuration, route })
}

/// Brings one Service's children and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(observed) = observe(&context, &key) else { return Ok(Outcome::Done) };
    let writes = plan::plan(&observed, context.now());
    write::apply(&context.client, observed.service.as_ref(), &writes).await?;
    Ok(Outcome::Done)
}
