//! Cgroups of the sandbox: one per container, on version 1, version 2 or both.
//!
//! A container's cgroup is made, and its first process put into it, before the container's specification is known:
//! moving a process waits for other processors on version 1 and would cost a cold start milliseconds. Limits are
//! written later.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use supervisor::{CgroupBase, Limits};

use super::{Failure, Step};

/// The cgroup of one container in every hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    v1: Vec<(String, PathBuf)>,
    v2: Option<PathBuf>,
}

/// The sandbox's own cgroups, parents of those of its containers.
pub fn make_parents(base: &CgroupBase, name: &str) -> Result<(), Failure> {
    for dir in folders(base) {
        make(&dir.join(name))?;
    }
    if let Some(v2) = &base.v2 {
        enable_controllers(&v2.join(name))?;
    }
    Ok(())
}

/// Removes the sandbox's own cgroups.
pub fn remove_parents(base: &CgroupBase, name: &str) {
    for dir in folders(base) {
        // What is left is swept by the node.
        let _ = fs::remove_dir(dir.join(name));
    }
}

fn folders(base: &CgroupBase) -> impl Iterator<Item = &PathBuf> {
    base.v1.values().chain(&base.v2)
}

fn make(dir: &Path) -> Result<(), Failure> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.step(format!("making cgroup {}", dir.display())),
    }
}

/// Hands the controllers on to the cgroups below `dir`, those of them that there are.
fn enable_controllers(dir: &Path) -> Result<(), Failure> {
    let present = fs::read_to_string(dir.join("cgroup.controllers")).step("reading cgroup.controllers")?;
    for controller in ["cpu", "memory", "pids"] {
        if present.split_whitespace().any(|name| name == controller) {
            write(dir, "cgroup.subtree_control", &format!("+{controller}"))?;
        }
    }
    Ok(())
}

fn write(dir: &Path, file: &str, value: &str) -> Result<(), Failure> {
    fs::write(dir.join(file), value).step(format!("writing {value:?} to {}", dir.join(file).display()))
}

impl Cgroup {
    /// Makes the cgroup `leaf` of sandbox `name`.
    pub fn make(base: &CgroupBase, name: &str, leaf: &str) -> Result<Self, Failure> {
        let below = |dir: &PathBuf| dir.join(name).join(leaf);
        let group = Self {
            v1: base.v1.iter().map(|(controller, dir)| (controller.clone(), below(dir))).collect(),
            v2: base.v2.as_ref().map(below),
        };
        group.folders().try_for_each(|dir| make(dir))?;
        Ok(group)
    }

    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|(_, dir)| dir).chain(&self.v2)
    }

    /// Puts the calling process into it.
    pub fn join(&self) -> Result<(), Failure> {
        let mut done: Vec<&PathBuf> = Vec::new();
        for dir in self.folders() {
            if !done.contains(&dir) {
                write(dir, "cgroup.procs", "0")?;
                done.push(dir);
            }
        }
        Ok(())
    }

    /// Sets its limits.
    pub fn limit(&self, limits: &Limits) -> Result<(), Failure> {
        for (controller, dir) in &self.v1 {
            limit_v1(controller, dir, limits)?;
        }
        if let Some(dir) = &self.v2 {
            limit_v2(dir, limits)?;
        }
        Ok(())
    }

    /// Whether the kernel killed a process in it for want of memory.
    pub fn oom_killed(&self) -> bool {
        let v1 = self.v1.iter().find(|(controller, _)| controller == "memory");
        let text = match (v1, &self.v2) {
            (Some((_, dir)), _) => fs::read_to_string(dir.join("memory.oom_control")),
            (None, Some(dir)) => fs::read_to_string(dir.join("memory.events")),
            (None, None) => return false,
        };
        let text = text.unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"))
    }

    /// Kills what may be left in it and removes it.
    pub fn remove(&self) {
        for dir in self.folders() {
            for pid in processes(dir) {
                super::sys::kill(pid, libc::SIGKILL);
            }
            for _ in 0..50 {
                match fs::remove_dir(dir) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    _ => break,
                }
            }
        }
    }
}

fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1).collect()
}

/// Share of the processor on version 1: 1024 for a whole core, at least 2.
fn shares(millis: u64) -> u64 {
    (millis * 1024 / 1000).clamp(2, 262_144)
}

/// Share of the processor on version 2, from that on version 1 as Kubernetes has it.
fn weight(millis: u64) -> u64 {
    1 + ((shares(millis) - 2) * 9999) / 262_142
}

const CPU_PERIOD_US: u64 = 100_000;

fn quota_us(millis: u64) -> u64 {
    (millis * CPU_PERIOD_US / 1000).max(1000)
}

fn limit_v1(controller: &str, dir: &Path, limits: &Limits) -> Result<(), Failure> {
    match controller {
        "memory" => {
            if let Some(bytes) = limits.memory_bytes {
                write(dir, "memory.limit_in_bytes", &bytes.to_string())?;
                // Absent where swap is not accounted for.
                let _ = fs::write(dir.join("memory.memsw.limit_in_bytes"), bytes.to_string());
            }
        }
        "cpu" => {
            write(dir, "cpu.shares", &shares(limits.cpu_request_millis.unwrap_or(0)).to_string())?;
            if let Some(millis) = limits.cpu_millis {
                write(dir, "cpu.cfs_period_us", &CPU_PERIOD_US.to_string())?;
                write(dir, "cpu.cfs_quota_us", &quota_us(millis).to_string())?;
            }
        }
        "pids" => {
            if let Some(pids) = limits.pids {
                write(dir, "pids.max", &pids.to_string())?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn limit_v2(dir: &Path, limits: &Limits) -> Result<(), Failure> {
    let has = |file: &str| dir.join(file).exists();
    if let (Some(bytes), true) = (limits.memory_bytes, has("memory.max")) {
        write(dir, "memory.max", &bytes.to_string())?;
        let _ = fs::write(dir.join("memory.swap.max"), "0");
        let _ = fs::write(dir.join("memory.oom.group"), "1");
    }
    if has("cpu.weight") {
        write(dir, "cpu.weight", &weight(limits.cpu_request_millis.unwrap_or(0)).to_string())?;
        if let Some(millis) = limits.cpu_millis {
            write(dir, "cpu.max", &format!("{} {CPU_PERIOD_US}", quota_us(millis)))?;
        }
    }
    if let (Some(pids), true) = (limits.pids, has("pids.max")) {
        write(dir, "pids.max", &pids.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_shares_follow_kubernetes() {
        assert_eq!([shares(0), shares(100), shares(1000)], [2, 102, 1024]);
        assert_eq!([weight(0), weight(100), weight(1000)], [1, 4, 39]);
        assert_eq!([quota_us(1), quota_us(500), quota_us(2000)], [1000, 50_000, 200_000]);
    }
}
