//! Cold starts: many services at zero, each called once, one after the other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::stats::Summary;
use super::target::{Target, Workload};
use super::{bare, http};

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct ColdStarts {
    /// What was started.
    pub workload: Workload,
    /// From before the connection to the first byte of the response.
    pub cold: Option<Summary>,
    /// The stages that the gateway names, in the order of their names.
    pub stages: BTreeMap<String, Option<Summary>>,
    /// The same program as a plain process, from its start to its first answer, in the same run.
    pub bare: Option<Summary>,
    /// A second request to each instance.
    pub warm: Option<Summary>,
}

/// Services that wait at zero to be called.
pub struct Prepared {
    workload: Workload,
    names: Vec<String>,
    /// From the last of them being ready until none had a pod.
    pub back_to_zero: Duration,
}

/// Deploys `count` services and waits until each was ready and has gone to zero.
///
/// # Errors
///
/// When a service fails.
pub async fn prepare(target: &Target, workload: Workload, count: usize) -> Result<Prepared> {
    let names: Vec<String> = (0..count).map(|index| format!("bench-{}-{index}", workload.name())).collect();
    target.deploy_all(&names, workload).await?;
    let back_to_zero = target.all_zero(&names).await?;
    Ok(Prepared { workload, names, back_to_zero })
}

/// Calls each prepared service once from zero and once warm, starts its program bare, and deletes it.
///
/// # Errors
///
/// When a request is not answered with 200.
pub async fn measure(target: &Target, prepared: Prepared, hello: &Path, runtimes: &Path) -> Result<ColdStarts> {
    let Prepared { workload, names, .. } = prepared;
    let (mut cold, mut warm, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    let mut stages = BTreeMap::<String, Vec<Duration>>::new();
    for name in &names {
        let answer = http::get(target.gateway, &target.host(name), "/").await?;
        cold.push(answer.first_byte);
        for (stage, time) in answer.stages {
            stages.entry(stage).or_default().push(time);
        }
        warm.push(http::get(target.gateway, &target.host(name), "/").await?.first_byte);
        plain.push(bare::start(workload, hello, runtimes).await?.took);
    }
    for name in &names {
        target.delete(name, workload).await?;
    }
    Ok(ColdStarts {
        workload,
        cold: Summary::of(&cold),
        stages: stages.into_iter().map(|(stage, times)| (stage, Summary::of(&times))).collect(),
        bare: Summary::of(&plain),
        warm: Summary::of(&warm),
    })
}

impl ColdStarts {
    /// A table for people.
    pub fn table(&self) -> String {
        let short = |summary: &Option<Summary>| summary.as_ref().map_or_else(|| "-".to_owned(), Summary::short);
        let mut lines = vec![
            format!("{:<28} {}", "cold, p50 / p99", short(&self.cold)),
            format!("{:<28} {}", "bare process, p50 / p99", short(&self.bare)),
            format!("{:<28} {}", "warm, p50 / p99", short(&self.warm)),
        ];
        lines.extend(self.stages.iter().map(|(stage, times)| format!("  {stage:<26} {}", short(times))));
        lines.join("\n")
    }
}
