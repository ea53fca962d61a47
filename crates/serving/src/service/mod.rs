//! Service: one Configuration and one Route of its name, and the sum of their conditions.

mod plan;
mod resources;

use std::sync::Arc;

use api::serving::{Configuration, Revision, Route, Service, ServiceStatus};
use client::ObjectKey;
use client::queue::Outcome;

use crate::context::Context;
use crate::pace::Verdict;
use crate::write::{Object, Write, WriteError};

const KIND: &str = "Service";

/// What is known about one Service.
#[derive(Clone, Debug)]
struct Observed {
    service: Arc<Service>,
    configuration: Option<Arc<Configuration>>,
    route: Option<Arc<Route>>,
    /// The Revision that bears the name that the template asks for.
    named: Option<Arc<Revision>>,
}

fn observe(context: &Context, key: &ObjectKey) -> Option<Observed> {
    let service = context.caches.services.get_key(key)?;
    let configuration = context.caches.configurations.get_key(key);
    let route = context.caches.routes.get_key(key);
    let name = service.spec.template.metadata.as_ref().and_then(|metadata| metadata.name.as_deref());
    let named = name.and_then(|name| context.caches.revisions.get(&key.namespace, name));
    Some(Observed { service, configuration, route, named })
}

/// Brings one Service's children and status up to date.
pub(crate) async fn reconcile(context: Arc<Context>, key: ObjectKey) -> Result<Outcome, WriteError> {
    let Some(observed) = observe(&context, &key) else {
        context.pace.forget(KIND, &key);
        return Ok(Outcome::Done);
    };
    let mut writes = plan::plan(&observed, context.now());
    let is_minor = |write: &Write| is_minor(&observed.service, write);
    let wait = context.pace.hold(KIND, &key, &mut writes, is_minor, context.config.status_delay);
    context.writer.apply_all(observed.service.as_ref(), &writes).await?;
    Ok(wait.map_or(Outcome::Done, Outcome::After))
}

/// Whether a status changes nothing but words about whether the Service is ready.
fn is_minor(service: &Service, write: &Write) -> bool {
    let Write::Status(Object::Service(next)) = write else { return false };
    let verdict = |status: &ServiceStatus| Verdict::new(&status.conditions, status.observed_generation);
    next.status.as_ref().is_some_and(|next| verdict(next).is_old(service.status.as_ref().map(verdict)))
}
