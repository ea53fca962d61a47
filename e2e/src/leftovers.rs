//! What a platform could leave behind on the machine.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Everything of the machine that a platform may touch, at one moment; only what concerns one data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes whose command line or environment names the directory, and supervisors of it.
    pub processes: BTreeSet<String>,
    /// Mounts at or below the directory.
    pub mounts: BTreeSet<String>,
    /// Control groups named after Colibri.
    pub cgroups: BTreeSet<String>,
    /// Network links.
    pub links: BTreeSet<String>,
    /// Named network namespaces.
    pub namespaces: BTreeSet<String>,
    /// nf_tables tables, where `nft` can tell.
    pub tables: BTreeSet<String>,
    /// Unix sockets below the directory, and listening sockets in the abstract name space that name Colibri.
    pub sockets: BTreeSet<String>,
}

impl Leftovers {
    /// Looks at the machine.
    pub fn look(data_dir: &Path) -> Self {
        let marker = data_dir.to_string_lossy().into_owned();
        Self {
            processes: processes(&marker),
            mounts: lines("/proc/self/mounts", &marker),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), 4),
            links: links(),
            namespaces: names("/run/netns"),
            tables: tables(),
            sockets: lines("/proc/net/unix", &marker),
        }
    }

    /// What is here and was not there before.
    pub fn since(&self, before: &Self) -> Self {
        let new = |now: &BTreeSet<String>, then: &BTreeSet<String>| now.difference(then).cloned().collect();
        Self {
            processes: new(&self.processes, &before.processes),
            mounts: new(&self.mounts, &before.mounts),
            cgroups: new(&self.cgroups, &before.cgroups),
            links: new(&self.links, &before.links),
            namespaces: new(&self.namespaces, &before.namespaces),
            tables: new(&self.tables, &before.tables),
            sockets: new(&self.sockets, &before.sockets),
        }
    }
}

/// Process ids of the supervisors of a data directory, and those of the containers below them, prepared ones among them.
pub fn pods(data_dir: &Path) -> (Vec<u32>, Vec<u32>) {
    let marker = data_dir.to_string_lossy().into_owned();
    let pids: Vec<u32> = names("/proc").iter().filter_map(|name| name.parse().ok()).collect();
    let is_supervisor = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"colibri-supervisor\0") && String::from_utf8_lossy(&line).contains(&marker)
    };
    let parent = |pid: u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok())
    };
    // A container that waits for its orders still looks like its supervisor.
    let alike: Vec<u32> = pids.iter().copied().filter(is_supervisor).collect();
    let is_child = |pid: &u32| parent(*pid).is_some_and(|parent| alike.contains(&parent));
    let supervisors: Vec<u32> = alike.iter().copied().filter(|pid| !is_child(pid)).collect();
    let below = |pid: &u32| parent(*pid).is_some_and(|parent| supervisors.contains(&parent));
    let containers = pids.into_iter().filter(below).collect();
    (supervisors, containers)
}

fn processes(marker: &str) -> BTreeSet<String> {
    let own = std::process::id().to_string();
    let pids = names("/proc").into_iter().filter(|name| name.bytes().all(|c| c.is_ascii_digit()) && *name != own);
    let described = pids.filter_map(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(marker).then(|| format!("{pid} {line}"))
    });
    described.collect()
}

fn lines(file: &str, marker: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().filter(|line| line.contains(marker)).map(str::to_owned).collect()
}

/// Links of this network namespace: `/sys` shows those of the namespace that it was mounted in.
fn links() -> BTreeSet<String> {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn names(dir: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn cgroups(dir: &Path, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        if path.to_string_lossy().contains("colibri") {
            found.insert(path.to_string_lossy().into_owned());
        }
        if depth > 0 {
            found.extend(cgroups(&path, depth - 1));
        }
    }
    found
}

fn tables() -> BTreeSet<String> {
    match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect(),
        Err(_) => BTreeSet::new(),
    }
}
