//! The control plane: durable writes a second, and services from creation to Ready and back to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use api::serving::{Revision, Service};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde::Serialize;
use serde_json::json;

use super::memory::Usage;
use super::stats::Summary;
use super::target::{Target, Workload};

/// Payload of each durable write, in bytes.
const PAYLOAD: usize = 1024;
/// Longest wait until what was deleted is gone.
const LIMIT: Duration = Duration::from_secs(180);

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ControlPlane {
    /// ConfigMaps of 1 KiB created, each on disk before it is acknowledged.
    pub writes: usize,
    /// Clients that wrote at the same time.
    pub writers: usize,
    /// Durable creates a second.
    pub creates_per_second: f64,
    /// Time of one create.
    pub create: Option<Summary>,
    /// Services that were created at once, each with its first pod.
    pub services: usize,
    /// Services that became Ready, a second.
    pub ready_per_second: f64,
    /// From a service's creation until Ready.
    pub ready: Option<Summary>,
    /// CPU time of the platform for one service, from creation to Ready.
    pub cpu_ms_per_service: f64,
    /// From the deletion of all services until no object of theirs is left.
    pub gone_ms: f64,
}

/// Measures both on the platform whose process is `pid`.
///
/// # Errors
///
/// When a write is refused, or a service does not become Ready.
pub async fn run(target: &Target, pid: u32, writes: usize, writers: usize, services: usize) -> Result<ControlPlane> {
    let (creates_per_second, create) = durable_creates(&target.client, writes, writers).await?;
    let names: Vec<String> = (0..services).map(|index| format!("bench-plane-{index}")).collect();
    let before = Usage::of(pid)?;
    let start = Instant::now();
    let created = futures::future::join_all(names.iter().map(async |name| {
        let begin = Instant::now();
        target.deploy(name, Workload::Container).await?;
        target.ready(name).await?;
        Ok::<_, anyhow::Error>(begin.elapsed())
    }));
    let times = created.await.into_iter().collect::<Result<Vec<Duration>>>()?;
    let all = start.elapsed().as_secs_f64();
    let used = Usage::of(pid)?.cpu_seconds - before.cpu_seconds;
    let gone = delete_all(target, &names).await?;
    #[expect(clippy::cast_precision_loss, reason = "a count of services")]
    let count = services.max(1) as f64;
    Ok(ControlPlane {
        writes,
        writers,
        creates_per_second,
        create,
        services,
        ready_per_second: count / all,
        ready: Summary::of(&times),
        cpu_ms_per_service: used * 1000.0 / count,
        gone_ms: gone.as_secs_f64() * 1000.0,
    })
}

/// Creates `count` ConfigMaps from `writers` clients in a namespace of its own, which is deleted afterwards.
async fn durable_creates(client: &Client, count: usize, writers: usize) -> Result<(f64, Option<Summary>)> {
    let namespace = format!("bench-writes-{}", std::process::id());
    let namespaces = Api::<Namespace>::all(client.clone());
    let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
    namespaces.create(&PostParams::default(), &object).await.context("creating a namespace")?;
    let payload = "x".repeat(PAYLOAD);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let writing = (0..writers.max(1)).map(|_| {
        let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        let (next, payload) = (next.clone(), payload.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok::<_, anyhow::Error>(times);
                }
                let object = json!({"metadata": {"name": format!("w{number}")}, "data": {"payload": payload}});
                let object = serde_json::from_value(object)?;
                let begin = Instant::now();
                api.create(&PostParams::default(), &object).await?;
                times.push(begin.elapsed());
            }
        })
    });
    let mut times = Vec::with_capacity(count);
    for writer in futures::future::join_all(writing.collect::<Vec<_>>()).await {
        times.extend(writer??);
    }
    let seconds = start.elapsed().as_secs_f64();
    namespaces.delete(&namespace, &DeleteParams::background()).await.context("deleting the namespace")?;
    #[expect(clippy::cast_precision_loss, reason = "a count of writes")]
    Ok((times.len() as f64 / seconds, Summary::of(&times)))
}

/// Deletes the services; answers how long it took until their Revisions and pods were gone.
async fn delete_all(target: &Target, names: &[String]) -> Result<Duration> {
    let start = Instant::now();
    for deleted in futures::future::join_all(names.iter().map(|name| target.delete(name, Workload::Container))).await {
        deleted?;
    }
    let selector = format!("{} in ({})", api::serving::annotations::SERVICE_LABEL, names.join(","));
    let parameters = ListParams::default().labels(&selector);
    let client = &target.client;
    while start.elapsed() < LIMIT {
        let services = Api::<Service>::namespaced(client.clone(), "default");
        let left = services.list_metadata(&ListParams::default().labels("colibri.dev/bench=true")).await?.items.len();
        let revisions = Api::<Revision>::namespaced(client.clone(), "default").list_metadata(&parameters).await?;
        let pods = Api::<Pod>::namespaced(client.clone(), "default").list_metadata(&parameters).await?;
        if left == 0 && revisions.items.is_empty() && pods.items.is_empty() {
            return Ok(start.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("objects of the deleted services were still there after {LIMIT:?}")
}

impl ControlPlane {
    /// Lines for people.
    pub fn table(&self) -> String {
        let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
        format!(
            "durable creates: {:.0}/s from {} writers, p50 / p99 {}\n{} services at once, created to Ready: {:.1}/s, p50 / p99 {}, {:.1} ms of CPU each\nall of them deleted and gone: {:.0} ms",
            self.creates_per_second,
            self.writers,
            short(&self.create),
            self.services,
            self.ready_per_second,
            short(&self.ready),
            self.cpu_ms_per_service,
            self.gone_ms
        )
    }
}
