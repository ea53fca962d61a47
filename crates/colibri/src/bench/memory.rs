//! Memory and CPU of the platform's processes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::target::{Target, Workload};

/// A platform at rest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// Services that are deployed and at zero.
    pub services: usize,
    /// Resident memory of the platform's process, in MiB.
    pub rss_mib: f64,
    /// The same before the services were deployed.
    pub rss_before_mib: f64,
    /// Share of one core that it used, in per cent.
    pub cpu_percent: f64,
    /// Threads.
    pub threads: usize,
}

impl Idle {
    /// A line for people.
    pub fn table(&self) -> String {
        let services = if self.services == 0 {
            String::new()
        } else {
            format!(" with {} services at zero ({:.1} MiB before them)", self.services, self.rss_before_mib)
        };
        let Self { rss_mib, cpu_percent, threads, .. } = self;
        format!("{rss_mib:.1} MiB resident{services}, {cpu_percent:.2} % of a core, {threads} threads")
    }
}

/// What a process has used.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
}

impl Usage {
    /// Of the process `pid`.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name is in parentheses and may hold anything; utime and stime are the 12th and 13th fields after it.
        let rest = stat.rsplit_once(')').context("a process's state")?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks =
            |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).context("a process's times");
        #[expect(clippy::cast_precision_loss, reason = "100 on every Linux")]
        let per_second = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self { cpu_seconds: (ticks(11)? + ticks(12)?) / per_second })
    }
}

/// Process ID of the platform of that data directory.
///
/// # Errors
///
/// When no platform runs there.
pub fn platform_pid(data_dir: &Path) -> Result<u32> {
    let pid = std::fs::read_to_string(data_dir.join("lock"))
        .with_context(|| format!("no platform runs on {}: start one with `colibri up`", data_dir.display()))?;
    pid.trim().parse().context("the lock file holds a process ID")
}

/// Measures the platform whose process is `pid` over some seconds, after `services` were deployed and went to zero.
///
/// # Errors
///
/// When the process ends, or a service cannot be deployed.
pub async fn idle(target: &Target, pid: u32, services: usize, seconds: u64) -> Result<Idle> {
    let rss_before_mib = resident_mib(pid)?;
    let names: Vec<String> = (0..services).map(|index| format!("bench-idle-{index}")).collect();
    if services > 0 {
        target.deploy_all(&names, Workload::Container).await?;
        target.all_zero(&names).await?;
    }
    let before = Usage::of(pid)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = Usage::of(pid)?.cpu_seconds - before.cpu_seconds;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?.count();
    let rss_mib = resident_mib(pid)?;
    for name in &names {
        target.delete(name, Workload::Container).await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
    let cpu_percent = used / seconds.max(1) as f64 * 100.0;
    Ok(Idle { services, rss_mib, rss_before_mib, cpu_percent, threads })
}

/// Resident memory of a process, in MiB.
///
/// # Errors
///
/// When it is not there.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
