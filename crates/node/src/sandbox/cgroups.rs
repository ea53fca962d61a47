//! The platform's own cgroup: found, made, and removed with all that is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use supervisor::CgroupBase;

use super::{SandboxError, Step};

/// What limits need.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// On version 1 the used processor time is another controller's.
const ACCOUNTING: &str = "cpuacct";

/// Mount points of the hierarchies: version 1 by controller, and version 2.
fn hierarchies(mountinfo: &str) -> (BTreeMap<String, PathBuf>, Option<PathBuf>) {
    let (mut v1, mut v2) = (BTreeMap::new(), None);
    for line in mountinfo.lines() {
        let Some((mount, source)) = line.split_once(" - ") else { continue };
        let Some(at) = mount.split(' ').nth(4) else { continue };
        let mut source = source.split(' ');
        match source.next() {
            Some("cgroup2") if v2.is_none() => v2 = Some(PathBuf::from(at)),
            Some("cgroup") => {
                let options = source.nth(1).unwrap_or_default();
                let known = |option: &&str| CONTROLLERS.contains(option) || *option == ACCOUNTING;
                for controller in options.split(',').filter(known) {
                    v1.entry(controller.to_string()).or_insert_with(|| PathBuf::from(at));
                }
            }
            _ => {}
        }
    }
    (v1, v2)
}

/// Makes the cgroup `name` in each hierarchy that has a controller of use.
pub fn make(name: &str) -> Result<CgroupBase, SandboxError> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").step("reading /proc/self/mountinfo")?;
    let (v1, v2) = hierarchies(&mountinfo);
    let v2 = v2.filter(|root| {
        let present = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        present.split_whitespace().any(|controller| CONTROLLERS.contains(&controller))
    });
    if !v1.keys().any(|controller| controller != ACCOUNTING) && v2.is_none() {
        return Err(SandboxError::NoCgroups);
    }
    let base = CgroupBase {
        v1: v1.into_iter().map(|(controller, root)| (controller, root.join(name))).collect(),
        v2: v2.map(|root| root.join(name)),
    };
    for dir in base.v1.values().chain(&base.v2) {
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.step(format!("making cgroup {}", dir.display()))?,
        }
    }
    if let Some(dir) = &base.v2 {
        enable(dir.parent().unwrap_or(dir))?;
        enable(dir)?;
    }
    Ok(base)
}

fn enable(dir: &Path) -> Result<(), SandboxError> {
    let present = fs::read_to_string(dir.join("cgroup.controllers")).step("reading cgroup.controllers")?;
    let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
    for controller in CONTROLLERS {
        let listed = |text: &str| text.split_whitespace().any(|name| name == controller);
        if listed(&present) && !listed(&enabled) {
            let file = dir.join("cgroup.subtree_control");
            fs::write(&file, format!("+{controller}")).step(format!("enabling {controller} in {}", file.display()))?;
        }
    }
    Ok(())
}

/// Names of the sandboxes that have a cgroup.
pub fn names(base: &CgroupBase) -> BTreeSet<String> {
    let entries = base.v1.values().chain(&base.v2).flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten());
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Kills what is left in `name` below each hierarchy (all sandboxes, or one of them) and removes it.
pub async fn sweep(base: &CgroupBase, name: Option<&str>) {
    for dir in base.v1.values().chain(&base.v2) {
        let dir = name.map_or_else(|| dir.clone(), |name| dir.join(name));
        for _ in 0..200 {
            if kill_and_remove(&dir) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Whether it is gone.
fn kill_and_remove(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return true };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            kill_and_remove(&entry.path());
        }
    }
    let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 1) {
        // Gone already is as good.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    fs::remove_dir(dir).is_ok() || !dir.exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(mountinfo: &str, expected: &str) {
        let (v1, v2) = hierarchies(mountinfo);
        assert_eq!(format!("{v1:?} {v2:?}"), expected);
    }

    #[test]
    fn hierarchies_are_found_on_either_version_and_on_both() {
        check("30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "{} Some(\"/sys/fs/cgroup\")");
        check(
            "31 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
             32 25 0:28 / /sys/fs/cgroup/memory rw - cgroup none rw,memory\n\
             33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
             34 25 0:30 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd",
            "{\"cpu\": \"/sys/fs/cgroup/cpu,cpuacct\", \"cpuacct\": \"/sys/fs/cgroup/cpu,cpuacct\", \
             \"memory\": \"/sys/fs/cgroup/memory\"} Some(\"/sys/fs/cgroup/unified\")",
        );
        check("nonsense", "{} None");
    }
}
