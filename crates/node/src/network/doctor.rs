//! Whether this machine can have a pod network, asked of the kernel itself.
//!
//! The parts are tried in a network namespace made for it, so the machine's own network does not
//! change.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use super::error::NetworkError;
use super::host::{self, HostConfig};
use super::netns;
use super::services::{Protocol, VirtualIp, service_rules};
use super::worker;

/// How a check came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Fine; with a word about what was seen.
    Good(String),
    /// It works, but something may surprise; with the cure.
    Warning(String),
    /// It cannot work; with the cure.
    Bad(String),
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What: a few words.
    pub name: &'static str,
    /// How it came out.
    pub outcome: Outcome,
}

/// Looks at everything the pod network needs. Blocking; takes some milliseconds.
pub fn doctor() -> Vec<Check> {
    let mut checks = vec![capabilities(), parts()];
    checks.push(resolvers(Path::new("/etc/resolv.conf")));
    checks
}

fn capabilities() -> Check {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let outcome = match effective_capabilities(&status) {
        Some(held) if held & NET_ADMIN != 0 && held & SYS_ADMIN != 0 => {
            Outcome::Good("NET_ADMIN and SYS_ADMIN are held".to_owned())
        }
        _ => Outcome::Bad(
            "the capabilities NET_ADMIN and SYS_ADMIN are missing: start the platform as root (sudo)".to_owned(),
        ),
    };
    Check { name: "network capabilities", outcome }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn parts() -> Check {
    // A thread of its own, because it changes its namespace and ends there.
    let tried = std::thread::spawn(try_parts).join();
    let outcome = match tried {
        Ok(Ok(())) => Outcome::Good("bridge, veth, nf_tables and address translation work".to_owned()),
        Ok(Err(error)) => Outcome::Bad(with_causes(&error)),
        Err(_) => Outcome::Bad("the trial network could not be made".to_owned()),
    };
    Check { name: "pod network", outcome }
}

/// Makes a whole pod network with one pod in a namespace made for it.
fn try_parts() -> Result<(), NetworkError> {
    let fail = |source| NetworkError::from_io("make a network namespace", source);
    let home = netns::current().map_err(fail)?;
    let scratch: OwnedFd = netns::create(home.as_fd()).map_err(fail)?;
    let directory = tempfile::tempdir().map_err(|source| NetworkError::File {
        what: "write",
        path: std::env::temp_dir(),
        source,
    })?;
    let mut result = Ok(());
    netns::inside(home.as_fd(), scratch.as_fd(), || {
        result = try_here(directory.path());
        Ok(())
    })
    .map_err(fail)?;
    result
}

fn try_here(directory: &Path) -> Result<(), NetworkError> {
    let config =
        HostConfig { data_dir: directory.to_owned(), live: Vec::new(), avoid: Vec::new(), open_ports: vec![80, 443] };
    let host = host::make(&config)?;
    let service = VirtualIp {
        ip: [10, 96, 0, 1].into(),
        port: 443,
        protocol: Protocol::Tcp,
        backends: vec![std::net::SocketAddrV4::new(host.gateway, 443)],
    };
    service_rules(&host.names, &[service]).commit(&mut host::open_netfilter()?)?;
    let (handle, thread) = worker::start(host)?;
    let (answer, answered) = std::sync::mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    if let Ok(runtime) = runtime {
        let made = runtime.block_on(handle.run(|worker| worker.make_attached(2).map(drop)));
        let _ = answer.send(made);
    }
    drop(handle);
    let _ = thread.join();
    answered.recv().unwrap_or(Err(NetworkError::Stopped))?;
    host::unmake(directory)
}

fn resolvers(path: &Path) -> Check {
    let servers = super::dns::Upstreams::file(path).servers(std::net::Ipv4Addr::UNSPECIFIED);
    let outcome = if servers.is_empty() {
        Outcome::Warning(format!(
            "{} names no resolver: pods will find cluster names only; add a nameserver line",
            path.display()
        ))
    } else {
        let list: Vec<String> = servers.iter().map(|server| server.ip().to_string()).collect();
        Outcome::Good(format!("pods' other names are asked of {}", list.join(", ")))
    };
    Check { name: "resolvers", outcome }
}

fn with_causes(error: &NetworkError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_file() {
        assert_eq!(effective_capabilities("Name:\tx\nCapEff:\t0000000000201000\n"), Some(0x20_1000));
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
        assert_eq!(effective_capabilities("CapEff:\tzz\n"), None);
    }
}
