//! What the commands call by one name: a Function, or a Knative Service that belongs to none.

use api::conditions::{Condition, ConditionStatus, READY};
use api::functions::Function;
use api::serving::Service;
use api::serving::annotations::FUNCTION_LABEL;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::access::Access;
use super::error::CliError;
use super::output;

/// A Function or a Service.
#[derive(Clone, Debug)]
pub enum Workload {
    /// A Function.
    Function(Box<Function>),
    /// A Service of no Function.
    Service(Box<Service>),
}

impl Workload {
    /// The Function of that name, else the Service.
    ///
    /// # Errors
    ///
    /// When neither is there, or the server does not answer.
    pub async fn find(access: &Access, name: &str) -> Result<Self, CliError> {
        let what = format!("look for {name}");
        let functions: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
        if let Some(function) = optional(functions.get_opt(name).await, &what)? {
            return Ok(Self::Function(Box::new(function)));
        }
        let services: Api<Service> = Api::namespaced(access.client.clone(), &access.namespace);
        match optional(services.get_opt(name).await, &what)? {
            Some(service) => Ok(Self::Service(Box::new(service))),
            None => Err(Self::missing(access, name).await),
        }
    }

    /// Says that there is none of that name, and what there is.
    async fn missing(access: &Access, name: &str) -> CliError {
        let namespaces: Api<Namespace> = Api::all(access.client.clone());
        let namespace = &access.namespace;
        // Who may not read namespaces is told of the workload alone.
        if let Ok(None) = namespaces.get_opt(namespace).await {
            let list = namespaces.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
            let names: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
            let meant = base::nearest(namespace, names.iter().map(String::as_str));
            let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
            let cure = format!("make it: kubectl create namespace {namespace}; or choose another with -n");
            return CliError::new(format!("there is no namespace {namespace}{meant}")).cured_by(&cure);
        }
        let there = Self::list(&access.client, Some(namespace)).await.unwrap_or_default();
        let names: Vec<String> = there.iter().map(Self::name).collect();
        let meant = base::nearest(name, names.iter().map(String::as_str));
        let meant = meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default();
        CliError::new(format!("there is no function or service {name} in namespace {namespace}{meant}"))
            .cured_by("colibri list --all-namespaces shows what there is, colibri deploy makes one")
    }

    /// The whole object, as the API server has it.
    pub fn object(&self) -> Value {
        let (kind, version, object) = match self {
            Self::Function(function) => ("Function", "functions.colibri.dev/v1", serde_json::to_value(function)),
            Self::Service(service) => ("Service", "serving.knative.dev/v1", serde_json::to_value(service)),
        };
        let mut object = object.unwrap_or_default();
        if let Some(fields) = object.as_object_mut() {
            fields.insert("kind".to_owned(), kind.into());
            fields.insert("apiVersion".to_owned(), version.into());
        }
        output::tidy(object)
    }

    /// As kubectl names it: `function.functions.colibri.dev/greet`.
    pub fn full_name(&self) -> String {
        let kind = match self {
            Self::Function(_) => "function.functions.colibri.dev",
            Self::Service(_) => "service.serving.knative.dev",
        };
        format!("{kind}/{}", self.name())
    }

    /// All of one namespace, or of every namespace.
    ///
    /// # Errors
    ///
    /// When the server does not answer.
    pub async fn list(client: &Client, namespace: Option<&str>) -> Result<Vec<Self>, CliError> {
        let params = ListParams::default();
        let functions: Api<Function> = namespaced(client, namespace);
        let services: Api<Service> = namespaced(client, namespace);
        let found = functions.list(&params).await.map_err(|error| CliError::api("list functions", &error))?;
        let mut all: Vec<Self> = found.items.into_iter().map(|function| Self::Function(Box::new(function))).collect();
        let found = services.list(&params).await.map_err(|error| CliError::api("list services", &error))?;
        let own = found.items.into_iter().filter(|service| !service.labels().contains_key(FUNCTION_LABEL));
        all.extend(own.map(|service| Self::Service(Box::new(service))));
        all.sort_by_key(|workload| (workload.namespace(), workload.name()));
        Ok(all)
    }

    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Self::Function(function) => function.name_any(),
            Self::Service(service) => service.name_any(),
        }
    }

    /// Its namespace.
    pub fn namespace(&self) -> String {
        let found = match self {
            Self::Function(function) => function.namespace(),
            Self::Service(service) => service.namespace(),
        };
        found.unwrap_or_default()
    }

    /// What it is: `function (python)` or `service`.
    pub fn kind(&self) -> String {
        match self {
            Self::Function(function) => format!("function ({})", function.spec.runtime),
            Self::Service(_) => "service".to_owned(),
        }
    }

    /// Its public URL.
    pub fn url(&self) -> Option<&str> {
        match self {
            Self::Function(function) => function.status.as_ref()?.url.as_deref(),
            Self::Service(service) => service.status.as_ref()?.url.as_deref(),
        }
    }

    /// The newest version that is ready.
    pub fn version(&self) -> Option<&str> {
        match self {
            Self::Function(function) => function.status.as_ref()?.version.as_deref(),
            Self::Service(service) => service.status.as_ref()?.latest_ready_revision_name.as_deref(),
        }
    }

    /// Its conditions.
    pub fn conditions(&self) -> &[Condition] {
        let found = match self {
            Self::Function(function) => function.status.as_ref().map(|status| status.conditions.as_slice()),
            Self::Service(service) => service.status.as_ref().map(|status| status.conditions.as_slice()),
        };
        found.unwrap_or_default()
    }

    /// `True`, `False` or `Unknown`, and the reason where it is not True.
    pub fn ready(&self) -> (&'static str, String) {
        let ready = self.conditions().iter().find(|condition| condition.kind == READY);
        let reason = ready.and_then(|condition| condition.reason.clone()).unwrap_or_default();
        (status_text(ready.map_or(ConditionStatus::Unknown, |condition| condition.status)), reason)
    }

    /// When it was made.
    pub fn created(&self) -> Option<Timestamp> {
        let found = match self {
            Self::Function(function) => function.creation_timestamp(),
            Self::Service(service) => service.creation_timestamp(),
        };
        found.map(|time| time.0)
    }
}

/// A condition's status as Kubernetes writes it.
pub fn status_text(status: ConditionStatus) -> &'static str {
    match status {
        ConditionStatus::True => "True",
        ConditionStatus::False => "False",
        ConditionStatus::Unknown => "Unknown",
    }
}

fn namespaced<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A server that does not know the kind has no object of it either.
fn optional<K>(result: Result<Option<K>, kube::Error>, what: &str) -> Result<Option<K>, CliError> {
    result.map_err(|error| CliError::api(what, &error))
}
