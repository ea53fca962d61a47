//! `colibri doctor`: what this machine has and lacks for a platform, with the cure for each.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::ListParams;
use node::network::{Outcome, doctor as try_network};
use serde_json::{Value, json};

use super::access::{Target, default_data_dir};
use super::error::CliError;
use super::output::OutputArgs;
use super::style::Style;
use super::table;

/// Open files that a platform wants.
const WANTED_FILES: u64 = 65_536;
/// Oldest interpreters that the runtimes know.
const OLDEST_PYTHON: (u32, u32) = (3, 9);
const OLDEST_NODE: (u32, u32) = (18, 0);
/// Oldest kernels: that the sandbox is tried on, and that map ids of mounts and of overlays on them.
const OLDEST_KERNEL: (u32, u32) = (5, 4);
const MAPPED_MOUNTS: (u32, u32) = (5, 12);
const MAPPED_OVERLAYS: (u32, u32) = (5, 19);
/// Free space and inodes below which a warning, and below which a failure is due.
const LOW_SPACE: (u64, u64) = (2 << 30, 256 << 20);
const LOW_INODES: (u64, u64) = (100_000, 5_000);
/// The ports of `colibri up`, and the flags that choose others.
const PORTS: [(u16, &str); 4] =
    [(6443, "--api-port"), (8080, "--gateway-port"), (8443, "--gateway-tls-port"), (9090, "--metrics-port")];
/// Time for the platform to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `colibri doctor`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  sudo colibri doctor                   as root it tries the pod network too
  colibri doctor -o json | jq '.checks[] | select(.verdict != \"ok\")'")]
pub struct DoctorArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Something works less well.
    Warn,
    /// The platform cannot work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What there is.
    found: String,
    /// What to do; empty where nothing is to be done.
    cure: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), cure: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), cure: cure.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), cure: cure.into() }
    }

    fn line(&self, style: Style) -> String {
        let word = match self.verdict {
            Verdict::Ok => style.good("ok  "),
            Verdict::Warn => style.warning("warn"),
            Verdict::Fail => style.bad("FAIL"),
        };
        let cure = if self.cure.is_empty() { String::new() } else { format!("{:<20}cure: {}\n", "", self.cure) };
        format!("{word}  {:<13} {}\n{cure}", self.name, self.found)
    }

    fn value(&self) -> Value {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        json!({"name": self.name, "verdict": verdict, "found": self.found, "cure": self.cure})
    }
}

/// Prints each check; exit code 1 when one of them failed.
pub async fn run(args: DoctorArgs) -> Result<(), CliError> {
    let data_dir = args.target.data_dir.clone().unwrap_or_else(default_data_dir);
    let release = read("/proc/sys/kernel/osrelease");
    let mut checks = vec![
        user(),
        kernel(&release),
        namespaces(&read("/proc/sys/user/max_user_namespaces")),
        mapped_mounts(&release),
        overlay(&read("/proc/filesystems")),
        seccomp(&read("/proc/self/status")),
        cgroups(&read("/proc/self/mountinfo"), &read("/sys/fs/cgroup/cgroup.controllers")),
    ];
    checks.extend(network());
    checks.extend([ports(), names(), open_files(), python(), nodejs()]);
    checks.extend(disk(&data_dir));
    checks.extend(platform(&args.target).await);
    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    let value = json!({"ok": failed == 0, "checks": checks.iter().map(Check::value).collect::<Vec<_>>()});
    let names = || {
        let bad = checks.iter().filter(|check| check.verdict != Verdict::Ok);
        bad.map(|check| format!("{}\n", check.name)).collect()
    };
    args.output.show(&value, names, || checks.iter().map(|check| check.line(Style::stdout())).collect());
    match failed {
        0 => Ok(()),
        1 => Err(CliError::new("one check failed")),
        many => Err(CliError::new(format!("{many} checks failed"))),
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn user() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::ok("user", "root")
    } else {
        Check::warn("user", "not root: pods need namespaces and a network", "start the platform with sudo colibri up")
    }
}

fn kernel(release: &str) -> Check {
    let release = release.trim();
    match version(release) {
        Some(found) if found >= OLDEST_KERNEL => Check::ok("kernel", format!("Linux {release}")),
        Some(_) => Check::fail(
            "kernel",
            format!("Linux {release} is older than {}.{}", OLDEST_KERNEL.0, OLDEST_KERNEL.1),
            "update it: sudo apt full-upgrade, or a newer release of the distribution",
        ),
        None => Check::fail("kernel", "this is not Linux", "run the platform in a virtual machine with Linux"),
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn namespaces(most_user_namespaces: &str) -> Check {
    let has = |kind: &&str| Path::new("/proc/self/ns").join(kind).exists();
    let kinds = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let missing: Vec<&str> = kinds.into_iter().filter(|kind| !has(kind)).collect();
    if !missing.is_empty() {
        let cure = "use a kernel that has them (CONFIG_NAMESPACES)";
        return Check::fail("namespaces", format!("none of kind {}", missing.join(", ")), cure);
    }
    let off = most_user_namespaces.trim() == "0";
    match (has(&"user"), off) {
        (true, false) => Check::ok("namespaces", "all, user namespaces too"),
        (true, true) => Check::warn(
            "namespaces",
            "user namespaces are switched off: pods run as the machine's users",
            "sudo sysctl user.max_user_namespaces=10000",
        ),
        (false, _) => Check::warn(
            "namespaces",
            "no user namespaces: pods run as the machine's users",
            "use a kernel that has them (CONFIG_USER_NS)",
        ),
    }
}

fn mapped_mounts(release: &str) -> Check {
    let name = "mounts";
    match version(release) {
        Some(found) if found >= MAPPED_OVERLAYS => Check::ok(name, "ids can be mapped, of overlays too"),
        Some(found) if found >= MAPPED_MOUNTS => Check::warn(
            name,
            "ids can be mapped, but not below overlays: images run as the machine's users",
            "Linux 5.19 can",
        ),
        _ => Check::warn(name, "ids cannot be mapped: images run as the machine's users", "Linux 5.19 can"),
    }
}

fn overlay(filesystems: &str) -> Check {
    if filesystems.split_whitespace().any(|name| name == "overlay") {
        Check::ok("overlayfs", "there")
    } else {
        Check::warn("overlayfs", "not loaded, images need it", "sudo modprobe overlay")
    }
}

/// Source: proc(5): `Seccomp` is there where the kernel has it.
fn seccomp(status: &str) -> Check {
    if status.lines().any(|line| line.starts_with("Seccomp:")) {
        Check::ok("seccomp", "there")
    } else {
        Check::fail("seccomp", "the kernel has none", "use a kernel that has it (CONFIG_SECCOMP_FILTER)")
    }
}

fn cgroups(mounts: &str, unified: &str) -> Check {
    let on_v1 = |controller: &str| {
        mounts.lines().filter(|line| line.contains(" - cgroup ")).any(|line| {
            let options = line.rsplit(' ').next().unwrap_or_default();
            options.split(',').any(|option| option == controller)
        })
    };
    let on_v2 = |controller: &str| unified.split_whitespace().any(|found| found == controller);
    let missing: Vec<&str> =
        ["memory", "cpu", "pids"].into_iter().filter(|controller| !on_v1(controller) && !on_v2(controller)).collect();
    if !missing.is_empty() {
        return Check::fail(
            "cgroups",
            format!("no controller for {}", missing.join(", ")),
            "mount /sys/fs/cgroup; a container that holds the platform is started with --privileged",
        );
    }
    let has_v1 = mounts.lines().any(|line| line.contains(" - cgroup "));
    let has_v2 = mounts.lines().any(|line| line.contains(" - cgroup2 "));
    Check::ok(
        "cgroups",
        match (has_v1, has_v2) {
            (true, true) => "version 1 and 2 (hybrid): limits hold, but writes are not throttled",
            (true, false) => "version 1: limits hold, but writes are not throttled",
            _ => "version 2",
        },
    )
}

/// Makes a pod network in a namespace of its own, as root only.
fn network() -> Vec<Check> {
    if !rustix::process::geteuid().is_root() {
        let found = "not tried: that needs root (bridge, veth, nftables)";
        return vec![Check::warn("network", found, "sudo colibri doctor")];
    }
    let name = |name: &str| match name {
        "resolvers" => "resolvers",
        "network capabilities" => "capabilities",
        _ => "nftables",
    };
    let checks = try_network().into_iter();
    checks
        .map(|check| {
            let name = name(check.name);
            match check.outcome {
                Outcome::Good(found) => Check::ok(name, found),
                Outcome::Warning(text) => {
                    let (found, cure) = text.split_once("; ").unwrap_or((text.as_str(), "look at /etc/resolv.conf"));
                    Check::warn(name, found, cure)
                }
                Outcome::Bad(text) if name == "capabilities" => {
                    Check::fail(name, text, "sudo colibri up; in a container --privileged")
                }
                Outcome::Bad(text) => Check::fail(
                    name,
                    text,
                    "load the kernel's modules: sudo modprobe -a nf_tables nft_chain_nat nft_masq bridge veth br_netfilter",
                ),
            }
        })
        .collect()
}

/// Whether the ports of `colibri up` are free, or whose they are.
fn ports() -> Check {
    let taken: Vec<(u16, &str, String)> = PORTS
        .into_iter()
        .filter(|(port, _)| TcpListener::bind((IpAddr::V4(Ipv4Addr::LOCALHOST), *port)).is_err())
        .map(|(port, flag)| (port, flag, crate::up::owner_of_port(port)))
        .collect();
    let shown = |(port, _, owner): &(u16, &str, String)| format!("{port}{owner}");
    let list = |taken: &[(u16, &str, String)]| taken.iter().map(shown).collect::<Vec<_>>().join(", ");
    let foreign: Vec<(u16, &str, String)> =
        taken.iter().filter(|(_, _, owner)| !owner.contains(" by colibri ")).cloned().collect();
    match (taken.is_empty(), foreign.is_empty()) {
        (true, _) => Check::ok("ports", "6443, 8080, 8443 and 9090 are free"),
        (false, true) => Check::ok("ports", format!("a platform has {}", list(&taken))),
        (false, false) => {
            let flags: Vec<&str> = foreign.iter().map(|(_, flag, _)| *flag).collect();
            let cure = format!("end that program, or start with colibri up {} 0", flags.join(" 0 "));
            Check::warn("ports", format!("taken: {}", list(&foreign)), cure)
        }
    }
}

/// Names below localhost: curl and browsers know them by themselves, other programs ask the system.
fn names() -> Check {
    let mut found = ("hello.default.localhost", 80).to_socket_addrs().into_iter().flatten();
    if found.any(|address| address.ip().is_loopback()) {
        return Check::ok("names", "NAME.localhost is this machine");
    }
    Check::warn(
        "names",
        "the system does not resolve NAME.localhost (curl and browsers do by themselves)",
        "sudo apt install libnss-myhostname; or send the header Host: NAME.NAMESPACE.localhost",
    )
}

fn open_files() -> Check {
    let name = "open files";
    match rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum {
        Some(limit) if limit < WANTED_FILES => Check::warn(
            name,
            format!("at most {limit}, {WANTED_FILES} are wanted"),
            format!("ulimit -Hn {WANTED_FILES} before colibri up, or LimitNOFILE={WANTED_FILES} in its unit"),
        ),
        Some(limit) => Check::ok(name, format!("up to {limit}")),
        None => Check::ok(name, "no limit"),
    }
}

fn python() -> Check {
    let cure = "functions in Python need it: sudo apt install python3";
    let print = ["-I", "-S", "-c", "import sys; print(sys.version.split()[0])"];
    interpreter("python", functions::runtimes::interpreter("python3"), &print, OLDEST_PYTHON, cure)
}

fn nodejs() -> Check {
    let cure = "functions in JavaScript need it: sudo apt install nodejs";
    interpreter("node", functions::runtimes::interpreter("node"), &["--version"], OLDEST_NODE, cure)
}

fn interpreter(name: &'static str, path: Option<PathBuf>, print: &[&str], oldest: (u32, u32), cure: &str) -> Check {
    let Some(path) = path else { return Check::warn(name, "not installed", cure) };
    let output = Command::new(&path).args(print).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let shown = path.display();
    match version(&text) {
        Some(found) if found >= oldest => Check::ok(name, format!("{shown} {text}")),
        Some(_) => Check::warn(name, format!("{shown} is {text}, older than {}.{}", oldest.0, oldest.1), cure),
        None => Check::warn(name, format!("{shown} does not run"), cure),
    }
}

/// Space and inodes where the platform keeps its state.
fn disk(data_dir: &Path) -> Vec<Check> {
    let there = data_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let Ok(found) = rustix::fs::statvfs(there) else {
        let cure = "look at the disk, or choose another place with --data-dir";
        return vec![Check::fail("disk", format!("{} cannot be asked", there.display()), cure)];
    };
    let place = data_dir.display();
    let cure =
        format!("free some: colibri image list shows images; or choose another place than {place} with --data-dir");
    let space = found.f_bavail.saturating_mul(found.f_frsize);
    let inodes = if found.f_files == 0 { u64::MAX } else { found.f_favail };
    let free_inodes =
        if inodes == u64::MAX { "no limit of inodes".to_owned() } else { format!("{inodes} inodes free") };
    vec![
        level("disk", space, LOW_SPACE, format!("{} free for {place}", table::size(space)), &cure),
        level("inodes", inodes, LOW_INODES, free_inodes, &cure),
    ]
}

fn level(name: &'static str, value: u64, (low, none): (u64, u64), found: String, cure: &str) -> Check {
    match value {
        value if value < none => Check::fail(name, found, cure),
        value if value < low => Check::warn(name, found, cure),
        _ => Check::ok(name, found),
    }
}

async fn platform(target: &Target) -> Vec<Check> {
    let access = match target.open().await {
        Ok(access) => access,
        Err(error) => {
            let (found, cure) = error.message.split_once(". ").unwrap_or((&error.message, "sudo colibri up"));
            return vec![Check::warn("api server", found, cure)];
        }
    };
    let name = "api server";
    let answer = tokio::time::timeout(ANSWER_LIMIT, access.client.apiserver_version()).await;
    let log = "look at the log of colibri up, and start it again";
    let server = match answer {
        Ok(Ok(version)) => Check::ok(name, format!("{} answers, Kubernetes {}", access.server, version.git_version)),
        Ok(Err(error)) => Check::fail(name, super::error::causes(&error), "sudo colibri up"),
        Err(_) => Check::fail(name, format!("no answer within {ANSWER_LIMIT:?}"), log),
    };
    let is_there = server.verdict == Verdict::Ok;
    let gateway = match &access.gateway {
        Some(gateway) => gateway_answers(gateway),
        None => Check::warn(
            "gateway",
            "its address is not known: endpoints.json is not beside the kubeconfig",
            "name the platform with --data-dir",
        ),
    };
    let mut checks = vec![server, gateway];
    if is_there {
        checks.extend(nodes(&access.client).await);
    }
    checks
}

/// Whether the nodes are ready; who may not list them is told nothing.
async fn nodes(client: &kube::Client) -> Option<Check> {
    let list = tokio::time::timeout(ANSWER_LIMIT, Api::<Node>::all(client.clone()).list(&ListParams::default())).await;
    let nodes = list.ok()?.ok()?.items;
    let bad: Vec<String> = nodes.iter().filter_map(not_ready).collect();
    let log = "look at the log of colibri up on that machine";
    Some(match (nodes.is_empty(), bad.is_empty()) {
        (true, _) => Check::fail("nodes", "there is none, nothing can run", log),
        (false, true) => Check::ok("nodes", format!("{} ready", nodes.len())),
        (false, false) => Check::fail("nodes", bad.join("; "), log),
    })
}

/// Name and reason of a node that is not ready.
fn not_ready(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
    if ready.is_some_and(|ready| ready.status == "True") {
        return None;
    }
    let why = ready.and_then(|ready| ready.message.clone()).unwrap_or_else(|| "it says nothing".to_owned());
    Some(format!("{} is not ready: {why}", node.metadata.name.as_deref().unwrap_or_default()))
}

fn gateway_answers(gateway: &str) -> Check {
    let address = gateway.trim_start_matches("http://").trim_end_matches('/');
    let mut addresses = address.to_socket_addrs().into_iter().flatten();
    let answers = addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok());
    if answers {
        Check::ok("gateway", format!("{gateway} answers"))
    } else {
        Check::fail("gateway", format!("{gateway} does not answer"), "start colibri up again")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &Check, verdict: Verdict, word: &str) {
        assert_eq!(found.verdict, verdict, "{found:?}");
        assert!(format!("{} {}", found.found, found.cure).contains(word), "{found:?}");
        assert_eq!(found.cure.is_empty(), verdict == Verdict::Ok, "a cure where something is wrong: {found:?}");
    }

    #[test]
    fn kernels() {
        check(&kernel("6.1.0-18-amd64\n"), Verdict::Ok, "6.1.0");
        check(&kernel("4.19.0"), Verdict::Fail, "older than 5.4");
        check(&kernel(""), Verdict::Fail, "not Linux");
        check(&mapped_mounts("6.1.0"), Verdict::Ok, "overlays too");
        check(&mapped_mounts("5.15.0"), Verdict::Warn, "5.19");
        check(&mapped_mounts("5.4.0"), Verdict::Warn, "cannot be mapped");
        check(&namespaces("15000\n"), Verdict::Ok, "user");
        check(&namespaces("0\n"), Verdict::Warn, "sysctl");
        check(&overlay("nodev\tproc\nnodev\toverlay\n"), Verdict::Ok, "there");
        check(&overlay("nodev\tproc\n"), Verdict::Warn, "modprobe overlay");
        check(&seccomp("Name:\tx\nSeccomp:\t0\n"), Verdict::Ok, "there");
        check(&seccomp("Name:\tx\n"), Verdict::Fail, "CONFIG_SECCOMP_FILTER");
        assert_eq!(version("v20.1.2"), Some((20, 1)));
    }

    #[test]
    fn cgroups_of_each_kind() {
        let v1 = "33 31 0:30 / /sys/fs/cgroup/x rw - cgroup cgroup rw,cpu,memory,pids\n";
        let v2 = "33 31 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        check(&cgroups(v1, ""), Verdict::Ok, "version 1: ");
        check(&cgroups(v2, "cpuset cpu io memory pids"), Verdict::Ok, "version 2");
        check(&cgroups(&format!("{v1}{v2}"), ""), Verdict::Ok, "hybrid");
        check(&cgroups(v2, "cpu pids"), Verdict::Fail, "no controller for memory");
    }

    #[test]
    fn disks() {
        let all = disk(Path::new("/no/such/folder"));
        assert_eq!(all.iter().map(|check| check.name).collect::<Vec<_>>(), ["disk", "inodes"]);
        check(&level("disk", 1, LOW_SPACE, "1 B free".into(), "free some"), Verdict::Fail, "free some");
        check(&level("disk", 1 << 30, LOW_SPACE, "1 GiB free".into(), "free some"), Verdict::Warn, "free some");
    }

    #[test]
    fn a_node_that_is_not_ready_is_named() {
        let node = |status: &str| -> Node {
            let ready = json!([{"type": "Ready", "status": status, "message": "the kubelet stopped"}]);
            serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": ready}})).unwrap()
        };
        assert_eq!(not_ready(&node("True")), None);
        assert_eq!(not_ready(&node("Unknown")).unwrap(), "n is not ready: the kubelet stopped");
    }

    #[test]
    fn a_line_starts_with_its_verdict() {
        let line = Check::fail("kernel", "old", "update it").line(Style::plain());
        assert_eq!(line, "FAIL  kernel        old\n                    cure: update it\n");
    }
}
