//! Many services at zero, all called at the same moment.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use serde::Serialize;

use super::http;
use super::stats::Summary;
use super::target::{Target, Workload};

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Burst {
    /// What was started.
    pub workload: Workload,
    /// Services that were at zero.
    pub services: usize,
    /// Requests to each of them.
    pub requests_each: usize,
    /// Requests that were not answered with 200.
    pub failed: usize,
    /// The first of the failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failure: Option<String>,
    /// From before the connection to the first byte of the response.
    pub cold: Option<Summary>,
    /// From the first request until all were answered.
    pub all_ms: f64,
}

/// Deploys `services`, waits until all are at zero, and calls each `requests_each` times at once.
///
/// # Errors
///
/// When a service cannot be deployed; a request that fails is counted.
pub async fn run(target: &Target, workload: Workload, services: usize, requests_each: usize) -> Result<Burst> {
    let names: Vec<String> = (0..services).map(|index| format!("bench-burst-{}-{index}", workload.name())).collect();
    target.deploy_all(&names, workload).await?;
    target.all_zero(&names).await?;
    let start = Instant::now();
    let requests = names.iter().flat_map(|name| std::iter::repeat_n(target.host(name), requests_each));
    let calls = requests.map(|host| {
        let gateway = target.gateway;
        tokio::spawn(async move { http::get(gateway, &host, "/").await })
    });
    let (mut times, mut failures) = (Vec::<Duration>::new(), Vec::new());
    for answer in join_all(calls.collect::<Vec<_>>()).await {
        match answer? {
            Ok(answer) => times.push(answer.first_byte),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let all = start.elapsed();
    for name in &names {
        target.delete(name, workload).await?;
    }
    Ok(Burst {
        workload,
        services,
        requests_each,
        failed: failures.len(),
        first_failure: failures.into_iter().next(),
        cold: Summary::of(&times),
        all_ms: all.as_secs_f64() * 1000.0,
    })
}

impl Burst {
    /// Lines for people.
    pub fn table(&self) -> String {
        let short = self.cold.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
        let mut text = format!(
            "{} services at zero, {} request(s) to each at once: p50 / p99 {short}, all answered in {:.0} ms, {} failed",
            self.services, self.requests_each, self.all_ms, self.failed
        );
        if let Some(failure) = &self.first_failure {
            text.push_str(&format!("\nthe first failure: {failure}"));
        }
        text
    }
}
