//! This machine's resolvers, and the `resolv.conf` that pods get.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The most resolvers that are used, as the C library's.
const MAX_SERVERS: usize = 3;
/// How long the file's content is believed.
const FRESH: Duration = Duration::from_secs(5);

/// Who is asked for names that are not the platform's.
#[derive(Debug)]
pub enum Upstreams {
    /// Always these; empty: nobody, such names fail.
    Fixed(Vec<SocketAddr>),
    /// Those of a file in the format of `/etc/resolv.conf`, read again as it changes.
    ///
    /// A stub resolver on this machine's loopback (systemd-resolved, dnsmasq) is asked like any
    /// other: the question is put from this machine, never from a pod, and the stub knows which
    /// names belong to which link.
    File(ResolvConf),
}

/// A watched `resolv.conf`.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    read: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Upstreams {
    /// The servers of `path`.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File(ResolvConf { path: path.into(), read: Mutex::new(None) })
    }

    /// Who to ask now, in order; never `own`, which would ask itself.
    pub fn servers(&self, own: Ipv4Addr) -> Vec<SocketAddr> {
        match self {
            Self::Fixed(servers) => servers.clone(),
            Self::File(file) => {
                let mut servers = file.servers();
                servers.retain(|server| server.ip() != IpAddr::V4(own));
                servers
            }
        }
    }
}

impl ResolvConf {
    fn servers(&self) -> Vec<SocketAddr> {
        let now = Instant::now();
        let mut read = self.read.lock();
        match read.as_ref() {
            Some((at, servers)) if now.duration_since(*at) < FRESH => servers.clone(),
            _ => {
                let text = std::fs::read_to_string(&self.path).unwrap_or_default();
                let servers = parse(&text);
                *read = Some((now, servers.clone()));
                servers
            }
        }
    }
}

/// The `nameserver` lines of a `resolv.conf`, at most three.
pub(super) fn parse(text: &str) -> Vec<SocketAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next()).flatten()?;
        let address: IpAddr = address.parse().ok()?;
        (!address.is_unspecified() && !address.is_multicast()).then(|| SocketAddr::new(address, 53))
    };
    text.lines().filter_map(server).take(MAX_SERVERS).collect()
}

/// The `resolv.conf` of a pod in `namespace`, as on a cluster.
pub fn pod_resolv_conf(server: Ipv4Addr, namespace: &str, zone: &str) -> String {
    format!("search {namespace}.svc.{zone} svc.{zone} {zone}\nnameserver {server}\noptions ndots:5\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_read_and_the_rest_is_not() {
        let text = "# c\nnameserver 192.0.2.1\n search a b\nnameserver\t127.0.0.53 # stub\n\
                    nameserver fe80::1%eth0\nnameserver 0.0.0.0\nnameservers 1.2.3.4\n\
                    nameserver 2001:db8::1\nnameserver 9.9.9.9\n";
        let got: Vec<String> = parse(text).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["192.0.2.1:53", "127.0.0.53:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn the_bridge_itself_is_never_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        std::fs::write(&path, "nameserver 10.200.0.1\nnameserver 192.0.2.1\n").unwrap();
        let servers = Upstreams::file(&path).servers(Ipv4Addr::new(10, 200, 0, 1));
        assert_eq!(servers, ["192.0.2.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_pod_searches_its_namespace_first() {
        let got = pod_resolv_conf(Ipv4Addr::new(10, 200, 0, 1), "shop", "cluster.local");
        assert_eq!(
            got,
            "search shop.svc.cluster.local svc.cluster.local cluster.local\n\
             nameserver 10.200.0.1\noptions ndots:5\n"
        );
    }
}
