//! End-to-end tests: the real binary, the real `kubectl`, real namespaces and cgroups.
//!
//! Each test starts a platform of its own on free ports. They need root and skip themselves, with the reason, without
//! it; in CI a skip is a failure.

mod bench;
mod chaos;
mod claims;
mod cli;
mod configuration;
mod containers;
mod demo;
mod dev;
mod docs;
mod domains;
mod functions;
mod init;
mod isolation;
mod memory;
mod mistakes;
mod refusals;
mod remote_code;
mod restart;
mod roles;
mod scale;
mod services;
mod stop;
mod telemetry;
mod traffic;
mod usage;
mod versions;
mod zero_loss;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use e2e::{Options, Platform};
use serde_json::{Value, json};

/// The gateway's host of a service in the namespace `default`.
fn host(name: &str) -> String {
    format!("{name}.default.localhost")
}

/// Selects the pods of a service.
fn service_selector(name: &str) -> String {
    format!("serving.knative.dev/service={name}")
}

/// A Knative Service of the example server; `annotations` and `spec` are lines of YAML for the template.
fn hello_service(name: &str, annotations: &[(&str, &str)], spec: &str) -> String {
    let annotations: String = annotations.iter().map(|(key, value)| format!("        {key}: \"{value}\"\n")).collect();
    let metadata = if annotations.is_empty() {
        String::new()
    } else {
        format!("    metadata:\n      annotations:\n{annotations}")
    };
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  template:\n{metadata}    spec:\n{spec}      containers:\n      - image: hello:latest\n"
    )
}

/// A platform with one service of the example server, which is ready.
async fn start_with_hello(options: Options, name: &str) -> Result<Platform> {
    let platform = Platform::start(options).await?;
    platform.load_hello().await?;
    platform.apply(&hello_service(name, &[], "")).await?;
    let ready = ["wait", "--for=condition=Ready", &format!("ksvc/{name}"), "--timeout=60s"];
    platform.kubectl(&ready).await?.ok()?;
    Ok(platform)
}

/// Changes keys of a ConfigMap, as an administrator does.
async fn configure(platform: &Platform, name: &str, data: Value) -> Result<e2e::Output> {
    let patch = json!({ "data": data }).to_string();
    platform.kubectl(&["-n", "colibri-system", "patch", "configmap", name, "--type", "merge", "-p", &patch]).await
}

/// Asks again until `check` is content with the answer.
async fn until<T>(limit: Duration, mut ask: impl AsyncFnMut() -> Result<T>, check: impl Fn(&T) -> bool) -> Result<T>
where
    T: std::fmt::Debug,
{
    let start = Instant::now();
    loop {
        let answer = ask().await?;
        if check(&answer) {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("still {answer:?} after {limit:?}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Lets a service fall to zero after 6 seconds: the shortest window that Knative allows, and hardly any grace.
const SHORT_WINDOW: (&str, &str) = ("autoscaling.knative.dev/window", "6s");

/// Takes the grace time away for the whole platform.
const NO_GRACE: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  name: config-autoscaler
  namespace: colibri-system
data:
  scale-to-zero-grace-period: 1ms
";

/// How long a pod may take to appear or go on a busy machine.
const SOON: Duration = Duration::from_secs(40);
