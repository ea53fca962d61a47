//! Memory and CPU of the platform's processes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// A platform at rest.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Idle {
    /// Resident memory of the platform's process, in MiB.
    pub rss_mib: f64,
    /// Share of one core that it used, in per cent.
    pub cpu_percent: f64,
    /// Threads.
    pub threads: usize,
}

impl Idle {
    /// A line for people.
    pub fn table(&self) -> String {
        format!("{:.1} MiB resident, {:.2} % of a core, {} threads", self.rss_mib, self.cpu_percent, self.threads)
    }
}

/// Measures the platform of that data directory over some seconds.
///
/// # Errors
///
/// When no platform runs there.
pub async fn idle(data_dir: &Path, seconds: u64) -> Result<Idle> {
    let pid = std::fs::read_to_string(data_dir.join("lock")).context("no platform runs on this data directory")?;
    let pid: u32 = pid.trim().parse().context("the lock file holds a process ID")?;
    let before = cpu_seconds(pid)?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let used = cpu_seconds(pid)? - before;
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"))?.count();
    #[expect(clippy::cast_precision_loss, reason = "a few seconds")]
    let cpu_percent = used / seconds.max(1) as f64 * 100.0;
    Ok(Idle { rss_mib: resident_mib(pid)?, cpu_percent, threads })
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

/// User and system time of a process, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in parentheses and may hold anything; utime and stime are the 12th and 13th fields after it.
    let rest = stat.rsplit_once(')').context("a process's state")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).context("a process's times");
    #[expect(clippy::cast_precision_loss, reason = "100 on every Linux")]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok((ticks(11)? + ticks(12)?) / per_second)
}
