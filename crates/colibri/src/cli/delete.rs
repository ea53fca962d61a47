//! `colibri delete`.

use std::time::Duration;

use api::functions::Function;
use api::serving::Service;
use clap::Args;
use kube::Api;
use kube::api::DeleteParams;
use tokio::time::Instant;

use super::access::{Access, Target};
use super::error::CliError;
use super::workload::{Workload, is_of_function};

/// Longest wait until an object is gone.
const LIMIT: Duration = Duration::from_secs(60);
/// Time between two looks.
const STEP: Duration = Duration::from_millis(50);

/// Arguments of `colibri delete`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri delete hello
  colibri delete hello greet -n shop --no-wait")]
pub struct DeleteArgs {
    /// Functions or services; function/NAME and service/NAME say which
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not wait until they are gone
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

/// Deletes each; what belongs to it goes with it.
pub async fn run(args: DeleteArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    for name in &args.names {
        let workload = Workload::only(&access, name).await?;
        let (name, is_function) = (workload.name(), matches!(workload, Workload::Function(_)));
        delete(&access, &name, is_function).await?;
        if !args.no_wait {
            gone(&access, &name, is_function).await?;
        }
        eprintln!("{} {name} deleted", if is_function { "function" } else { "service" });
    }
    Ok(())
}

/// Deletes one.
///
/// # Errors
///
/// When it is not there, or the server refuses.
pub async fn delete(access: &Access, name: &str, is_function: bool) -> Result<(), CliError> {
    let params = DeleteParams::background();
    let result = if is_function {
        let api: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
        api.delete(name, &params).await.map(drop)
    } else {
        let api: Api<Service> = Api::namespaced(access.client.clone(), &access.namespace);
        api.delete(name, &params).await.map(drop)
    };
    result.map_err(|error| CliError::api(&format!("delete {name}"), &error))
}

/// Waits until the object and, of a Function, its Service are gone.
async fn gone(access: &Access, name: &str, is_function: bool) -> Result<(), CliError> {
    let functions: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
    let services: Api<Service> = Api::namespaced(access.client.clone(), &access.namespace);
    let deadline = Instant::now() + LIMIT;
    let failed = |error| CliError::api(&format!("look for {name}"), &error);
    loop {
        let function = if is_function { functions.get_opt(name).await.map_err(failed)? } else { None };
        let service = services.get_opt(name).await.map_err(failed)?;
        if function.is_none() && !service.is_some_and(|service| !is_function || is_of_function(&service)) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(CliError::new(format!(
                "{name} is still there after {}s: a finalizer may hold it, kubectl get ksvc {name} -o yaml shows which",
                LIMIT.as_secs()
            )));
        }
        tokio::time::sleep(STEP).await;
    }
}
