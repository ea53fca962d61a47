//! What a container uses, as its cgroup counts it.

use std::fs;
use std::path::Path;

use supervisor::CgroupBase;

/// What a cgroup has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Processor time since its beginning, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, in bytes, files that were read included.
    pub memory_bytes: u64,
    /// The part of it that cannot be taken back at once: without the files that nobody used lately.
    ///
    /// Source: the kubelet's `working set`, `google/cadvisor/container/libcontainer/handler.go`.
    pub working_set_bytes: u64,
}

/// The counters of the cgroup that `pid` is in, and the cgroup's name below the sandbox's.
pub(super) fn of_process(base: &CgroupBase, sandbox: &str, pid: u32) -> Option<(String, Counters)> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let leaf = leaf(&membership, sandbox)?;
    let counters = read(base, &format!("{sandbox}/{leaf}"))?;
    Some((leaf.to_owned(), counters))
}

/// The cgroup of a process below that of the sandbox; `None` for a process that is not in it (any more).
fn leaf<'a>(membership: &'a str, sandbox: &str) -> Option<&'a str> {
    membership.lines().find_map(|line| {
        let (above, leaf) = line.splitn(3, ':').nth(2)?.rsplit_once('/')?;
        (above.rsplit('/').next() == Some(sandbox)).then_some(leaf)
    })
}

fn read(base: &CgroupBase, path: &str) -> Option<Counters> {
    let dir = |controller: &str| base.v1.get(controller).or(base.v2.as_ref()).map(|dir| dir.join(path));
    let cpu_ns = cpu_ns(&dir("cpuacct")?)?;
    let memory = dir("memory")?;
    let is_v1 = base.v1.contains_key("memory");
    let (current, inactive) =
        if is_v1 { ("memory.usage_in_bytes", "total_inactive_file") } else { ("memory.current", "inactive_file") };
    let memory_bytes: u64 = text(&memory, current)?.trim().parse().ok()?;
    let inactive_bytes = field(&text(&memory, "memory.stat")?, inactive)?;
    Some(Counters { cpu_ns, memory_bytes, working_set_bytes: memory_bytes.saturating_sub(inactive_bytes) })
}

/// Either version's file; version 2 counts the time even where its controller is not on.
fn cpu_ns(dir: &Path) -> Option<u64> {
    if let Some(text) = text(dir, "cpuacct.usage") {
        return text.trim().parse().ok();
    }
    Some(field(&text(dir, "cpu.stat")?, "usage_usec")?.saturating_mul(1000))
}

fn text(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

/// The number behind a name in a file of lines `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_process_is_found_in_the_cgroup_of_its_sandbox_only() {
        let v1 = "9:name=systemd:/\n4:memory:/colibri-1/s1-2/c0\n2:cpuacct:/colibri-1/s1-2/c0\n0::/\n";
        assert_eq!(leaf(v1, "s1-2"), Some("c0"));
        assert_eq!(leaf("0::/a.slice/colibri-1/s1-2/c3\n", "s1-2"), Some("c3"));
        for other in ["0::/colibri-1/s1-21/c3\n", "0::/user.slice\n", "0::/\n", "", "nonsense\n", "0::/s1-2\n"] {
            assert_eq!(leaf(other, "s1-2"), None, "{other:?}");
        }
    }

    #[test]
    fn both_versions_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpuacct/s/c0/cpuacct.usage", "1500\n");
        write("memory/s/c0/memory.usage_in_bytes", "1000\n");
        write("memory/s/c0/memory.stat", "inactive_file 1\ntotal_inactive_file 300\n");
        write("v2/s/c0/cpu.stat", "usage_usec 7\nuser_usec 5\n");
        write("v2/s/c0/memory.current", "200\n");
        write("v2/s/c0/memory.stat", "anon 5\ninactive_file 300\n");
        let at = |name: &str| dir.path().join(name);
        let v1 = BTreeMap::from([("cpuacct".to_owned(), at("cpuacct")), ("memory".to_owned(), at("memory"))]);
        let v1 = CgroupBase { v1, v2: None };
        let expected = Counters { cpu_ns: 1500, memory_bytes: 1000, working_set_bytes: 700 };
        assert_eq!(read(&v1, "s/c0"), Some(expected));
        let v2 = CgroupBase { v1: BTreeMap::new(), v2: Some(at("v2")) };
        let expected = Counters { cpu_ns: 7000, memory_bytes: 200, working_set_bytes: 0 };
        assert_eq!(read(&v2, "s/c0"), Some(expected));
        assert_eq!(read(&v2, "s/c1"), None);
    }
}
