//! What pods and the machine use: counters become rates here, every [`USAGE_WINDOW`].
//!
//! A container has no rate until it was looked at twice. The working set of the machine is what is not available.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use client::kubelet::{
    ContainerStats, CpuStats, MemoryStats, NodeStats, PodReference, PodStats, Summary, USAGE_WINDOW, Usage,
};
use jiff::Timestamp;
use parking_lot::RwLock;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::worker::Place;
use crate::sandbox::{Counters, Sandboxes};

/// A pod to look at.
pub struct Measured {
    /// Which.
    pub pod: PodReference,
    /// Where it runs.
    pub place: Place,
}

/// Measures one node.
#[derive(Debug, Default)]
pub struct Meter {
    latest: RwLock<Arc<Summary>>,
}

/// A counter at one moment.
type Reading = (Instant, u64);
/// A run of a container: the pod's uid, and the name of the cgroup.
type Run = (String, String);

/// What is remembered between two looks.
#[derive(Default)]
struct Memory {
    containers: HashMap<Run, Reading>,
    machine: Option<Reading>,
}

impl Meter {
    /// What was measured last.
    pub fn latest(&self) -> Arc<Summary> {
        self.latest.read().clone()
    }

    /// Looks at the pods that `pods` names, again and again, until `stop`.
    pub async fn run(
        &self,
        node: String,
        sandboxes: Arc<Sandboxes>,
        pods: impl Fn() -> Vec<Measured>,
        stop: CancellationToken,
    ) {
        let mut memory = Memory::default();
        loop {
            let (name, sandboxes, pods) = (node.clone(), sandboxes.clone(), pods());
            let look = move || {
                let summary = memory.look(name, &sandboxes, &pods);
                (memory, summary)
            };
            let Ok((next, summary)) = tokio::task::spawn_blocking(look).await else { return };
            memory = next;
            *self.latest.write() = Arc::new(summary);
            if stop.run_until_cancelled(tokio::time::sleep(USAGE_WINDOW)).await.is_none() {
                return;
            }
        }
    }
}

impl Memory {
    fn look(&mut self, node_name: String, sandboxes: &Sandboxes, pods: &[Measured]) -> Summary {
        let mut seen = HashMap::new();
        let pods = pods.iter().filter_map(|pod| self.look_at(sandboxes, pod, &mut seen)).collect();
        // What has ended is forgotten.
        self.containers = seen;
        Summary { node: NodeStats { node_name, usage: self.machine() }, pods }
    }

    /// `None` while a container of it has no rate: half a pod would pass for an idle one.
    fn look_at(&self, sandboxes: &Sandboxes, pod: &Measured, seen: &mut HashMap<Run, Reading>) -> Option<PodStats> {
        let mut containers = Some(Vec::new());
        for (name, pid) in &pod.place.containers {
            // Otherwise it has ended in this moment.
            let Some((leaf, counters)) = sandboxes.usage(&pod.place.sandbox, *pid) else { continue };
            let (now, run) = ((Instant::now(), counters.cpu_ns), (pod.pod.uid.clone(), leaf));
            let rate = self.containers.get(&run).and_then(|before| rate(*before, now));
            seen.insert(run, now);
            match (rate, &mut containers) {
                (Some(rate), Some(list)) => {
                    list.push(ContainerStats { name: name.clone(), usage: usage(rate, counters) });
                }
                _ => containers = None,
            }
        }
        let containers = containers.filter(|containers| !containers.is_empty())?;
        Some(PodStats { pod_ref: pod.pod.clone(), containers })
    }

    fn machine(&mut self) -> Usage {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let cpu_ns = busy_ns(&text("/proc/stat")).unwrap_or_default();
        let now = (Instant::now(), cpu_ns);
        let rate = self.machine.replace(now).and_then(|before| rate(before, now)).unwrap_or_default();
        let memory = text("/proc/meminfo");
        let bytes = |name| kib(&memory, name).unwrap_or_default().saturating_mul(1024);
        let total = bytes("MemTotal:");
        let counters = Counters {
            cpu_ns,
            memory_bytes: total.saturating_sub(bytes("MemFree:")),
            working_set_bytes: total.saturating_sub(bytes("MemAvailable:")),
        };
        usage(rate, counters)
    }
}

fn usage(usage_nano_cores: u64, counters: Counters) -> Usage {
    let time = Timestamp::now();
    let Counters { cpu_ns, memory_bytes, working_set_bytes } = counters;
    Usage {
        cpu: CpuStats { time, usage_nano_cores, usage_core_nano_seconds: cpu_ns },
        memory: MemoryStats { time, usage_bytes: memory_bytes, working_set_bytes },
    }
}

/// Billionths of a core between two moments; `None` where no time has passed or the counter went back.
fn rate(before: Reading, after: Reading) -> Option<u64> {
    let nanoseconds = after.0.checked_duration_since(before.0)?.as_nanos();
    let used = after.1.checked_sub(before.1)?;
    let rate = (u128::from(used) * Duration::from_secs(1).as_nanos()).checked_div(nanoseconds)?;
    u64::try_from(rate).ok()
}

/// Time that all processors together did not idle, from `/proc/stat`: its first line counts in hundredths of a second.
fn busy_ns(stat: &str) -> Option<u64> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests count as user already.
    let busy = fields.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4));
    (fields.len() >= 5).then(|| busy.map(|(_, ticks)| ticks).sum::<u64>().saturating_mul(10_000_000))
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_moments_and_a_counter_that_grows() {
        let start = Instant::now();
        let at = |millis, used| (start + Duration::from_millis(millis), used);
        assert_eq!(rate(at(0, 0), at(5_000, 2_500_000_000)), Some(500_000_000));
        assert_eq!(rate(at(0, 7), at(5_000, 7)), Some(0));
        assert_eq!(rate(at(0, 7), at(0, 9)), None);
        assert_eq!(rate(at(0, 7), at(5_000, 6)), None);
        assert_eq!(rate(at(0, 0), at(1, u64::MAX)), None);
    }

    #[test]
    fn the_machine_is_read_from_proc() {
        assert_eq!(busy_ns("cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1 1 1\n"), Some(250_000_000));
        assert_eq!(busy_ns("intr 5"), None);
        assert_eq!(busy_ns("cpu x"), None);
        assert_eq!(kib("MemTotal:       100 kB\nMemFree:  30 kB\n", "MemFree:"), Some(30));
        assert_eq!(kib("", "MemFree:"), None);
    }
}
