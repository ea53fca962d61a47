//! The only writes.

use api::functions::Function;
use api::serving::Service;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tracing::info;

use super::ReconcileError;
use super::observe::Observed;
use super::plan::{Plan, ServiceWrite};

/// Carries a plan out. A conflict is an error: the work is done again from newer state.
pub async fn apply(client: &Client, observed: &Observed, plan: Plan) -> Result<(), ReconcileError> {
    let function = &observed.function;
    let namespace = function.namespace().unwrap_or_default();
    let params = PostParams::default();
    if let Some(write) = &plan.service {
        let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
        let written = match write {
            ServiceWrite::Create(service) => services.create(&params, service).await,
            ServiceWrite::Replace(service) => services.replace(&service.name_any(), &params, service).await,
        };
        written.map_err(|source| ReconcileError::Write { what: "Service", source })?;
        info!(%namespace, function = %function.name_any(), "service written");
    }
    if let Some(status) = plan.status {
        let functions: Api<Function> = Api::namespaced(client.clone(), &namespace);
        let mut function = Function::clone(function);
        function.status = Some(status);
        let name = function.name_any();
        let written = functions.replace_status(&name, &params, &function).await;
        written.map_err(|source| ReconcileError::Write { what: "status of the Function", source })?;
    }
    Ok(())
}
