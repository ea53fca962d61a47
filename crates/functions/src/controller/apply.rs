//! The only writes.

use api::functions::Function;
use api::serving::Service;
use client::is_there;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tracing::info;

use super::ReconcileError;
use super::observe::Observed;
use super::plan::{Plan, ServiceWrite};

/// Carries a plan out, up to the first failure.
pub async fn apply(client: &Client, observed: &Observed, plan: Plan) -> Result<(), ReconcileError> {
    let function = &observed.function;
    let namespace = function.namespace().unwrap_or_default();
    let params = PostParams::default();
    if let Some(write) = &plan.service {
        let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
        let written = match write {
            ServiceWrite::Create(service) => {
                // A cache that is behind shows a Function that is gone.
                if !is_there(client, function.as_ref()).await.map_err(|error| failure("Service", error))? {
                    return Ok(());
                }
                services.create(&params, service).await
            }
            ServiceWrite::Replace(service) => services.replace(&service.name_any(), &params, service).await,
        };
        written.map_err(|error| failure("Service", error))?;
        info!(%namespace, function = %function.name_any(), "service written");
    }
    if let Some(status) = plan.status {
        let functions: Api<Function> = Api::namespaced(client.clone(), &namespace);
        let mut function = Function::clone(function);
        function.status = Some(status);
        let name = function.name_any();
        match functions.replace_status(&name, &params, &function).await {
            // A Function that is gone needs no status.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            written => {
                written.map_err(|error| failure("status of the Function", error))?;
            }
        }
    }
    Ok(())
}

/// A conflict, or a Service that came or went, shows that the plan was made from an old picture.
fn failure(what: &'static str, source: kube::Error) -> ReconcileError {
    match &source {
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => ReconcileError::Stale { what, source },
        _ => ReconcileError::Write { what, source },
    }
}
