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

/// What `KIND/NAME` begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Function,
    Service,
}

/// Kind and name of what may be `NAME`, or `KIND/NAME` as `-o name` prints it.
fn split(name: &str) -> Result<(Option<Kind>, &str), CliError> {
    let Some((kind, bare)) = name.split_once('/') else { return Ok((None, name)) };
    let kind = match kind {
        "function" | "functions" | "fn" | "function.functions.colibri.dev" => Kind::Function,
        "service" | "services" | "ksvc" | "service.serving.knative.dev" => Kind::Service,
        _ => {
            let text = format!("{name:?} does not begin with the name of a kind");
            return Err(CliError::new(text).cured_by(&format!("write {bare}, function/{bare} or service/{bare}")));
        }
    };
    Ok((Some(kind), bare))
}

/// The name alone.
fn bare(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Whether a Service was made for a Function.
pub fn is_of_function(service: &Service) -> bool {
    service.labels().contains_key(FUNCTION_LABEL)
}

impl Workload {
    /// The one that serves under that name: the Function; the Service where there is no Function, or one that does not
    /// get the name because the Service has it. `function/NAME` and `service/NAME` say which is meant.
    ///
    /// # Errors
    ///
    /// When it is not there, or the server does not answer.
    pub async fn find(access: &Access, name: &str) -> Result<Self, CliError> {
        match Self::both(access, name).await? {
            (_, Some(service)) => Ok(service),
            (Some(function), None) => Ok(function),
            (None, None) => Err(Self::missing(access, bare(name)).await),
        }
    }

    /// The only one of that name.
    ///
    /// # Errors
    ///
    /// As [`Workload::find`]; also when there is a Function and a Service that is not the Function's.
    pub async fn only(access: &Access, name: &str) -> Result<Self, CliError> {
        if let (Some(_), Some(_)) = Self::both(access, name).await? {
            let text = format!("there is a function {name} and a service {name} that is not the function's");
            return Err(CliError::new(text).cured_by(&format!("say which: function/{name} or service/{name}")));
        }
        Self::find(access, name).await
    }

    /// The Function and the Service that is not the Function's.
    async fn both(access: &Access, name: &str) -> Result<(Option<Self>, Option<Self>), CliError> {
        let what = format!("look for {name}");
        let (kind, name) = split(name)?;
        let (mut function, mut service) = (None, None);
        if kind != Some(Kind::Service) {
            let functions: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
            function = optional(functions.get_opt(name).await, &what)?;
        }
        if kind != Some(Kind::Function) {
            let services: Api<Service> = Api::namespaced(access.client.clone(), &access.namespace);
            service = optional(services.get_opt(name).await, &what)?;
        }
        let service = service.filter(|service| function.is_none() || !is_of_function(service));
        let function = function.map(|function| Self::Function(Box::new(function)));
        Ok((function, service.map(|service| Self::Service(Box::new(service)))))
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
        let own = found.items.into_iter().filter(|service| !is_of_function(service));
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
