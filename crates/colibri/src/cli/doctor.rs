//! `colibri doctor`: what this machine lacks, and what cures it.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::access::Target;
use super::error::{CliError, print};

/// Open files that a platform wants.
const WANTED_FILES: u64 = 65_536;
/// Oldest Python that the runtime knows.
const OLDEST_PYTHON: (u32, u32) = (3, 9);
/// Oldest kernel that the sandbox is tried on.
const OLDEST_KERNEL: (u32, u32) = (5, 4);

/// Arguments of `colibri doctor`.
#[derive(Args, Clone, Debug)]
pub struct DoctorArgs {
    #[command(flatten)]
    target: Target,
}

/// How one check ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Finding {
    Good(String),
    /// Something works less well.
    Warning(String),
    /// The platform cannot work.
    Bad(String),
}

use Finding::{Bad, Good, Warning};

/// Prints each check; exit code 1 when one of them failed.
pub async fn run(args: DoctorArgs) -> Result<(), CliError> {
    let mut findings = vec![
        ("user", user()),
        ("kernel", kernel(&read("/proc/sys/kernel/osrelease"))),
        ("namespaces", namespaces()),
        ("cgroups", cgroups(&read("/proc/self/mountinfo"))),
        ("overlayfs", overlay(&read("/proc/filesystems"))),
        ("open files", open_files()),
        ("python", python()),
        ("names", names()),
    ];
    findings.extend(platform(&args.target).await);
    print(&findings.iter().map(|(name, finding)| line(name, finding)).collect::<String>());
    let failed = findings.iter().filter(|(_, finding)| matches!(finding, Bad(_))).count();
    match failed {
        0 => Ok(()),
        1 => Err(CliError::new("one check failed")),
        many => Err(CliError::new(format!("{many} checks failed"))),
    }
}

fn line(name: &str, finding: &Finding) -> String {
    let (word, text) = match finding {
        Good(text) => ("ok", text),
        Warning(text) => ("warn", text),
        Bad(text) => ("FAIL", text),
    };
    format!("{word:<5} {name:<12} {text}\n")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        Good("root".to_owned())
    } else {
        Warning("not root: start the platform with sudo colibri up".to_owned())
    }
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    match version(release) {
        Some(found) if found >= OLDEST_KERNEL => Good(format!("Linux {release}")),
        Some(_) => Bad(format!("Linux {release} is older than {}.{}; update it", OLDEST_KERNEL.0, OLDEST_KERNEL.1)),
        None => Bad("this is not Linux; the platform runs on Linux only".to_owned()),
    }
}

/// The first two numbers of a version.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn namespaces() -> Finding {
    let missing: Vec<&str> = ["mnt", "pid", "net", "ipc", "uts"]
        .into_iter()
        .filter(|kind| !Path::new("/proc/self/ns").join(kind).exists())
        .collect();
    if missing.is_empty() {
        let user = Path::new("/proc/self/ns/user").exists();
        return if user {
            Good("all".to_owned())
        } else {
            Warning("no user namespaces: pods run as the machine's users".to_owned())
        };
    }
    Bad(format!("the kernel has no namespaces of kind {}; use one that has them", missing.join(", ")))
}

fn cgroups(mounts: &str) -> Finding {
    let wanted = ["memory", "cpu", "pids"];
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    let has = |controller: &str| {
        let on_v1 = mounts.lines().filter(|line| line.contains(" - cgroup ")).any(|line| {
            let options = line.rsplit(' ').next().unwrap_or_default();
            options.split(',').any(|option| option == controller)
        });
        on_v1 || unified.split_whitespace().any(|found| found == controller)
    };
    let missing: Vec<&str> = wanted.into_iter().filter(|controller| !has(controller)).collect();
    if missing.is_empty() {
        Good(if unified.is_empty() { "version 1" } else { "version 2" }.to_owned())
    } else {
        Bad(format!(
            "no cgroup controller for {}; mount /sys/fs/cgroup, or in a container start it with --privileged",
            missing.join(", ")
        ))
    }
}

fn overlay(filesystems: &str) -> Finding {
    if filesystems.split_whitespace().any(|name| name == "overlay") {
        Good("there".to_owned())
    } else {
        Warning("not loaded; images need it: sudo modprobe overlay".to_owned())
    }
}

fn open_files() -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    match limit {
        Some(limit) if limit < WANTED_FILES => {
            Warning(format!("at most {limit}, {WANTED_FILES} are wanted: ulimit -Hn {WANTED_FILES} before colibri up"))
        }
        Some(limit) => Good(format!("up to {limit}")),
        None => Good("no limit".to_owned()),
    }
}

fn python() -> Finding {
    let cure = "Python functions need it: sudo apt install python3";
    let Some(path) = functions::runtimes::interpreter("python3") else {
        return Warning(format!("no python3; {cure}"));
    };
    let output = Command::new(&path).args(["-I", "-S", "-c", "import sys; print(sys.version.split()[0])"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    match version(&text) {
        Some(found) if found >= OLDEST_PYTHON => Good(format!("{} {text}", path.display())),
        Some(_) => Warning(format!("{} is {text}, older than 3.9; {cure}", path.display())),
        None => Warning(format!("{} does not run; {cure}", path.display())),
    }
}

/// Names below localhost: curl and browsers know them by themselves, other programs ask the system.
fn names() -> Finding {
    let mut found = ("hello.default.localhost", 80).to_socket_addrs().into_iter().flatten();
    if found.any(|address| address.ip().is_loopback()) {
        return Good("NAME.localhost is this machine".to_owned());
    }
    let cure = "sudo apt install libnss-myhostname";
    Warning(format!("the system does not resolve NAME.localhost (curl and browsers do): {cure}"))
}

async fn platform(target: &Target) -> Vec<(&'static str, Finding)> {
    let access = match target.open().await {
        Ok(access) => access,
        Err(error) => return vec![("platform", Warning(error.message))],
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), access.client.apiserver_version()).await;
    let server = match answer {
        Ok(Ok(version)) => Good(format!("Kubernetes API {}", version.git_version)),
        Ok(Err(error)) => Bad(CliError::api("reach the platform", &error).message),
        Err(_) => Bad("the API server gave no answer within 5s; look at the log of colibri up".to_owned()),
    };
    let gateway = match &access.gateway {
        Some(gateway) => gateway_answers(gateway),
        None => Warning("its address is not known: endpoints.json is not beside the kubeconfig".to_owned()),
    };
    vec![("api server", server), ("gateway", gateway)]
}

fn gateway_answers(gateway: &str) -> Finding {
    let address = gateway.trim_start_matches("http://").trim_end_matches('/');
    let mut addresses = address.to_socket_addrs().into_iter().flatten();
    let answers = addresses.any(|address| TcpStream::connect_timeout(&address, Duration::from_secs(2)).is_ok());
    if answers { Good(gateway.to_owned()) } else { Bad(format!("{gateway} does not answer; restart colibri up")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels() {
        assert!(matches!(kernel("6.1.0-18-amd64\n"), Good(_)));
        assert!(matches!(kernel("4.19.0"), Bad(_)));
        assert!(matches!(kernel(""), Bad(_)));
        assert_eq!(version("3.11.2"), Some((3, 11)));
    }

    #[test]
    fn the_overlay_is_looked_for() {
        assert!(matches!(overlay("nodev\tproc\nnodev\toverlay\n"), Good(_)));
        assert!(matches!(overlay("nodev\tproc\n"), Warning(_)));
    }

    #[test]
    fn a_line_starts_with_its_verdict() {
        assert_eq!(line("kernel", &Bad("old".to_owned())), "FAIL  kernel       old\n");
    }
}
