//! The platform that is measured: its addresses and a client.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::functions::Function;
use api::serving::Service;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

/// Longest wait for a service to become ready or to fall to zero.
const LIMIT: Duration = Duration::from_secs(180);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// A running platform.
#[derive(Clone)]
pub struct Target {
    /// Client with the administrator's rights.
    pub client: Client,
    /// The gateway's address.
    pub gateway: SocketAddr,
    /// Its address for HTTPS.
    pub gateway_tls: SocketAddr,
    /// Domain of the services.
    pub domain: String,
}

/// What is deployed to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// The example server, as a Knative Service; the image `hello:latest` must be loaded.
    Container,
    /// The example function in Python.
    Python,
    /// The example function in JavaScript.
    Node,
}

impl Workload {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::Container, Self::Python, Self::Node];

    /// The function that it is; `None` for a container.
    pub fn function(self) -> Option<&'static Example> {
        match self {
            Self::Container => None,
            Self::Python => Some(&PYTHON),
            Self::Node => Some(&NODE),
        }
    }

    /// Its name in the names of services.
    pub fn name(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Python => "python",
            Self::Node => "node",
        }
    }

    /// What it is, for people.
    pub fn title(self) -> &'static str {
        match self {
            Self::Container => "container with a static binary",
            Self::Python => "Python function",
            Self::Node => "Node.js function",
        }
    }

    /// The design's first target for its cold start, p50 / p99.
    pub fn bar(self) -> &'static str {
        match self {
            Self::Container => "60 / 120 ms",
            Self::Python => "40 / 80 ms",
            Self::Node => "100 / 200 ms",
        }
    }
}

/// The workloads whose interpreter is there.
pub fn usable() -> Vec<Workload> {
    let usable = |workload: &Workload| {
        let Some(example) = workload.function() else { return true };
        let found = functions::runtimes::interpreter(example.program).is_some();
        if !found {
            eprintln!("{} functions are skipped: sudo apt-get install {}", example.runtime, example.package);
        }
        found
    };
    Workload::ALL.into_iter().filter(usable).collect()
}

/// An example function.
#[derive(Debug)]
pub struct Example {
    /// Its runtime.
    pub runtime: &'static str,
    /// Name of its only file.
    pub file: &'static str,
    /// That file.
    pub code: &'static str,
    /// The interpreter.
    pub program: &'static str,
    /// Debian's package of the interpreter.
    pub package: &'static str,
}

const PYTHON: Example = Example {
    runtime: "python",
    file: "main.py",
    code: include_str!("../../../../examples/hello-python/main.py"),
    program: "python3",
    package: "python3",
};

const NODE: Example = Example {
    runtime: "nodejs",
    file: "index.mjs",
    code: include_str!("../../../../examples/hello-node/index.mjs"),
    program: "node",
    package: "nodejs",
};

impl Target {
    /// Host name of a service in the namespace `default`.
    pub fn host(&self, name: &str) -> String {
        format!("{name}.default.{}", self.domain)
    }

    /// Deploys a workload whose last pod goes six seconds after the last request and the cluster's grace time.
    ///
    /// # Errors
    ///
    /// When the API server refuses it.
    pub async fn deploy(&self, name: &str, workload: Workload) -> Result<()> {
        let metadata = json!({"name": name, "namespace": "default", "labels": {"colibri.dev/bench": "true"}});
        match workload.function() {
            None => {
                let annotations = json!({"autoscaling.knative.dev/window": "6s"});
                let service = json!({
                    "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": metadata,
                    "spec": {"template": {
                        "metadata": {"annotations": annotations},
                        "spec": {"containers": [{"image": "hello:latest"}]},
                    }},
                });
                self.create::<Service>(service).await
            }
            Some(example) => {
                let function = json!({
                    "apiVersion": "functions.colibri.dev/v1", "kind": "Function", "metadata": metadata,
                    "spec": {
                        "runtime": example.runtime,
                        "source": {"inline": {example.file: example.code}},
                        "scaling": {"idle": "6s", "concurrency": 10},
                    },
                });
                self.create::<Function>(function).await
            }
        }
    }

    /// Deploys a Knative Service of one container; `annotations` and `spec` are its template's.
    ///
    /// # Errors
    ///
    /// When the API server refuses it.
    pub async fn deploy_container(
        &self,
        name: &str,
        container: Value,
        annotations: Value,
        mut spec: Value,
    ) -> Result<()> {
        spec["containers"] = json!([container]);
        self.create::<Service>(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "labels": {"colibri.dev/bench": "true"}},
            "spec": {"template": {"metadata": {"annotations": annotations}, "spec": spec}},
        }))
        .await
    }

    async fn create<K>(&self, object: Value) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + serde::de::DeserializeOwned
            + serde::Serialize
            + Clone
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object)?;
        let api = Api::<K>::namespaced(self.client.clone(), "default");
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the Knative Service of that name is ready.
    ///
    /// # Errors
    ///
    /// When it fails, with the condition's message, or does not come in time.
    pub async fn ready(&self, name: &str) -> Result<()> {
        let api = Api::<Service>::namespaced(self.client.clone(), "default");
        let start = Instant::now();
        let mut last = String::new();
        while start.elapsed() < LIMIT {
            if let Some(service) = api.get_opt(name).await? {
                let current = service.status.as_ref().and_then(|status| status.observed_generation);
                let conditions = service.status.map(|status| status.conditions).unwrap_or_default();
                if let Some(ready) = conditions.iter().find(|condition| condition.kind == api::conditions::READY) {
                    last = ready.message.clone().unwrap_or_default();
                    if current == service.metadata.generation {
                        match ready.status {
                            api::ConditionStatus::True => return Ok(()),
                            api::ConditionStatus::False => bail!("{name} failed: {last}"),
                            api::ConditionStatus::Unknown => {}
                        }
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("{name} was not ready within {LIMIT:?}: {last}")
    }

    /// Deploys one workload under each of the names and waits until all are ready.
    ///
    /// # Errors
    ///
    /// When one is refused or fails.
    pub async fn deploy_all(&self, names: &[String], workload: Workload) -> Result<()> {
        for name in names {
            self.deploy(name, workload).await?;
        }
        for name in names {
            self.ready(name).await?;
        }
        Ok(())
    }

    /// Waits until none of these services has a pod; answers how long it took.
    ///
    /// # Errors
    ///
    /// When it does not happen in time.
    pub async fn all_zero(&self, names: &[String]) -> Result<Duration> {
        self.zero(&format!("{} in ({})", api::serving::annotations::SERVICE_LABEL, names.join(","))).await
    }

    /// Waits until none of the workloads has a pod; answers how long it took.
    ///
    /// # Errors
    ///
    /// When it does not happen in time.
    async fn zero(&self, selector: &str) -> Result<Duration> {
        let api = Api::<Pod>::namespaced(self.client.clone(), "default");
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if api.list_metadata(&ListParams::default().labels(selector)).await?.items.is_empty() {
                return Ok(start.elapsed());
            }
            tokio::time::sleep(LOOK).await;
        }
        bail!("pods of {selector} were still there after {LIMIT:?}")
    }

    /// Address of a service's pod.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub async fn pod_address(&self, service: &str) -> Result<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), "default");
        let selector = format!("{}={service}", api::serving::annotations::SERVICE_LABEL);
        let pods = api.list(&ListParams::default().labels(&selector)).await?;
        let mut addresses = pods.items.into_iter().filter_map(|pod| pod.status?.pod_ip);
        addresses.next().with_context(|| format!("{service} has no pod with an address"))
    }

    /// Deletes a workload.
    ///
    /// # Errors
    ///
    /// When the API server refuses.
    pub async fn delete(&self, name: &str, workload: Workload) -> Result<()> {
        let parameters = DeleteParams::background();
        let result = match workload.function() {
            None => {
                Api::<Service>::namespaced(self.client.clone(), "default").delete(name, &parameters).await.map(|_| ())
            }
            Some(_) => {
                Api::<Function>::namespaced(self.client.clone(), "default").delete(name, &parameters).await.map(|_| ())
            }
        };
        match result {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map_err(Into::into),
        }
    }
}

/// Addresses of the platform of that data directory.
///
/// # Errors
///
/// When no platform runs there.
pub async fn open(data_dir: &Path) -> Result<Target> {
    let endpoints = data_dir.join(crate::data_dir::ENDPOINTS);
    let text = std::fs::read(&endpoints)
        .with_context(|| format!("no platform runs on {}: start one with `colibri up`", data_dir.display()))?;
    let endpoints: Value = serde_json::from_slice(&text)?;
    let address = |key: &str, scheme: &str| {
        let url = endpoints[key].as_str().and_then(|url| url.strip_prefix(scheme));
        anyhow::Ok(url.with_context(|| format!("endpoints.json has no {key}"))?.parse::<SocketAddr>()?)
    };
    let (gateway, gateway_tls) = (address("gateway", "http://")?, address("gateway_tls", "https://")?);
    let kubeconfig = kube::config::Kubeconfig::read_from(data_dir.join(crate::data_dir::KUBECONFIG))?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &kube::config::KubeConfigOptions::default()).await?;
    let domain = endpoints["domain"].as_str().unwrap_or("localhost").to_owned();
    Ok(Target { client: Client::try_from(config)?, gateway, gateway_tls, domain })
}
