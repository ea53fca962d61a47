//! Making and unmaking the host's part: range, bridge, kernel settings, rules. Blocking.

use std::io;
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::cidr::{Cidr, choose};
use super::error::NetworkError;
use super::links::{self, SeenLink};
use super::names::{self, BRIDGE_PREFIX, Names};
use super::netlink::Netlink;
use super::nft::{Family, list_tables};
use super::rules::{RuleInput, base_rules, no_rules};

const STATE_FILE: &str = "network.json";
const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// On a bridge's alias: this platform, or one before it, switched forwarding on.
const FORWARD_WAS_OFF: &str = "colibri forward-was-off";
const FORWARD_WAS_ON: &str = "colibri forward-was-on";
/// The longest alias that the kernel keeps.
const MAX_ALIAS_BYTES: usize = 250;
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// What is remembered in the data directory.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    pods: String,
}

/// What is asked of the host.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// Where the state file lies.
    pub data_dir: PathBuf,
    /// Addresses of pods that still run from before.
    pub live: Vec<Ipv4Addr>,
    /// Ranges to keep away from: the Services', the resolvers'.
    pub avoid: Vec<Cidr>,
    /// TCP ports of the bridge address that pods may reach.
    pub open_ports: Vec<u16>,
}

/// The host's part, made.
#[derive(Clone, Debug)]
pub struct Host {
    /// Names of everything.
    pub names: Names,
    /// The pods' range.
    pub pods: Cidr,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// The bridge's number.
    pub bridge: u32,
    /// The largest packet.
    pub mtu: u32,
    /// Offsets of live pods that were found again.
    pub live: Vec<u32>,
}

/// Makes the host's part, using again what a run before left for the live pods.
///
/// # Errors
///
/// Whatever [`NetworkError`] names; what was made by then is removed.
pub fn make(config: &HostConfig) -> Result<Host, NetworkError> {
    let names = Names::new(&config.data_dir);
    let _lock = StartLock::take()?;
    let mut route = open_route()?;
    let links = links::list_links(&mut route)?;
    let previous = read_state(&config.data_dir)
        .filter(|_| !config.live.is_empty() && links.iter().any(|l| l.name == names.bridge));
    let result = match previous {
        Some(pods) => adopt(config, &names, pods, &mut route, &links),
        None => {
            remove_left_over(&names, &mut route, &links)?;
            create(config, &names, &mut route, &links)
        }
    };
    if result.is_err() && previous.is_none() {
        let _ = unmake_locked(&config.data_dir, &names);
    }
    result
}

/// Removes the host's part with all pods' links. Does nothing where nothing is left.
///
/// # Errors
///
/// The kernel refused; the rest was removed all the same.
pub fn unmake(data_dir: &Path) -> Result<(), NetworkError> {
    let _lock = StartLock::take()?;
    unmake_locked(data_dir, &Names::new(data_dir))
}

fn create(config: &HostConfig, names: &Names, route: &mut Netlink, links: &[SeenLink]) -> Result<Host, NetworkError> {
    let ranges = links::list_ranges(route)?;
    let mtu = uplink_mtu(&ranges, links);
    let taken: Vec<Cidr> = ranges
        .iter()
        .map(|(range, _)| *range)
        // Halves and quarters of everything are default routes in disguise.
        .filter(|range| range.prefix() >= 8)
        .chain(config.avoid.iter().copied())
        .collect();
    let pods = choose(&taken, names.seed()).ok_or(NetworkError::NoRange)?;
    let gateway = names::gateway_address(pods);
    write_state(&config.data_dir, pods)?;
    route.run(&links::create_bridge(names, gateway, mtu))?;
    let bridge = links::get_link(route, &names.bridge)?.index;
    quiet_bridge(&names.bridge);
    allow_forwarding(config, names, route, links, false)?;
    // Rules first, then the address: there is no moment in which pods reach more than they may.
    let rules = RuleInput { names, pods, open_ports: &config.open_ports };
    base_rules(&rules).commit(&mut open_netfilter()?)?;
    route.run(&[links::address_bridge(bridge, gateway, pods)])?;
    info!(%pods, bridge = names.bridge, "made the pod network");
    Ok(Host { names: names.clone(), pods, gateway, bridge, mtu, live: Vec::new() })
}

fn adopt(
    config: &HostConfig,
    names: &Names,
    pods: Cidr,
    route: &mut Netlink,
    links: &[SeenLink],
) -> Result<Host, NetworkError> {
    let wanted: Vec<u32> = config.live.iter().filter_map(|address| pods.offset_of(*address)).collect();
    let there = links.iter().filter_map(|link| names.offset_of_link(&link.name));
    let (live, gone): (Vec<u32>, Vec<u32>) = there.partition(|offset| wanted.contains(offset));
    let gateway = names::gateway_address(pods);
    let bridge = links.iter().find(|link| link.name == names.bridge).cloned().unwrap_or_default();
    let pod = |offset: u32| links::PodLink {
        names,
        bridge: bridge.index,
        offset,
        address: pods.nth(offset).unwrap_or(Ipv4Addr::UNSPECIFIED),
        gateway,
        mtu: bridge.mtu,
    };
    let mut discard: Vec<_> = gone.iter().flat_map(|offset| pod(*offset).discard_requests()).collect();
    discard.push(links::delete_group(names.trash_group));
    route.run(&discard)?;
    let was_off = bridge.alias.starts_with(FORWARD_WAS_OFF);
    allow_forwarding(config, names, route, links, was_off)?;
    let rules = RuleInput { names, pods, open_ports: &config.open_ports };
    base_rules(&rules).commit(&mut open_netfilter()?)?;
    route.run(&[links::address_bridge(bridge.index, gateway, pods)])?;
    info!(%pods, pods_alive = live.len(), "took over the pod network");
    let names = names.clone();
    Ok(Host { names, pods, gateway, bridge: bridge.index, mtu: bridge.mtu, live })
}

/// Removes what a platform of this data directory left when it was killed.
fn remove_left_over(names: &Names, route: &mut Netlink, links: &[SeenLink]) -> Result<(), NetworkError> {
    let ours = |link: &&SeenLink| link.name == names.bridge || names.offset_of_link(&link.name).is_some();
    let left = links.iter().filter(ours).count();
    if left > 0 {
        debug!(left, "removing links of an earlier run");
        remove_links(names, route)?;
    }
    Ok(())
}

fn remove_links(names: &Names, route: &mut Netlink) -> Result<(), NetworkError> {
    route.run(&[
        links::delete_group(names.group),
        links::delete_group(names.trash_group),
        links::delete_link(&names.bridge),
    ])?;
    Ok(())
}

fn unmake_locked(data_dir: &Path, names: &Names) -> Result<(), NetworkError> {
    let mut route = open_route()?;
    let links = links::list_links(&mut route)?;
    let bridge = links.iter().find(|link| link.name == names.bridge);
    let was_off = bridge.is_some_and(|link| link.alias.starts_with(FORWARD_WAS_OFF));
    let removed = remove_links(names, &mut route);
    let cleared = open_netfilter().and_then(|mut socket| Ok(no_rules(names).commit(&mut socket)?));
    let others = links.iter().any(|link| is_platform_bridge(link) && link.name != names.bridge);
    if was_off && !others {
        write(Path::new(FORWARD), "0")?;
    }
    let path = data_dir.join(STATE_FILE);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(NetworkError::File { what: "remove", path, source });
        }
        _ => {}
    }
    removed.and(cleared)
}

/// Whether anything of the platform of `data_dir` is still on this machine: links and tables.
///
/// # Errors
///
/// The kernel did not answer.
pub fn left_over(data_dir: &Path) -> Result<Vec<String>, NetworkError> {
    let names = Names::new(data_dir);
    let mut found: Vec<String> = links::list_links(&mut open_route()?)?
        .into_iter()
        .map(|link| link.name)
        .filter(|name| *name == names.bridge || names.offset_of_link(name).is_some())
        .collect();
    let mut socket = open_netfilter()?;
    for family in [Family::Inet, Family::Bridge] {
        let tables = list_tables(&mut socket, family)?;
        let ours = |table: &String| *table == names.table || *table == names.services_table;
        found.extend(tables.into_iter().filter(ours));
    }
    Ok(found)
}

/// Opens a socket for links, with its failure sorted by cause.
///
/// # Errors
///
/// [`NetworkError::Kernel`] or [`NetworkError::Capability`].
pub fn open_route() -> Result<Netlink, NetworkError> {
    Netlink::route().map_err(|source| NetworkError::from_io("talk to the kernel's network", source))
}

/// Opens a socket for nf_tables, with its failure sorted by cause.
///
/// # Errors
///
/// [`NetworkError::Kernel`] or [`NetworkError::Capability`].
pub fn open_netfilter() -> Result<Netlink, NetworkError> {
    Netlink::netfilter().map_err(|source| NetworkError::from_io("talk to the kernel's firewall", source))
}

fn is_platform_bridge(link: &SeenLink) -> bool {
    link.name.starts_with(BRIDGE_PREFIX) && link.alias.starts_with("colibri ")
}

fn uplink_mtu(ranges: &[(Cidr, Option<u32>)], links: &[SeenLink]) -> u32 {
    const ETHERNET: u32 = 1500;
    let uplinks = ranges.iter().filter(|(range, _)| range.prefix() == 0).filter_map(|(_, l)| *l);
    let mtus = uplinks.filter_map(|index| links.iter().find(|l| l.index == index)).map(|l| l.mtu);
    mtus.min().filter(|mtu| (1280..=9216).contains(mtu)).unwrap_or(ETHERNET)
}

/// Switches forwarding on and notes on the bridge whether it was off before any platform came.
fn allow_forwarding(
    config: &HostConfig,
    names: &Names,
    route: &mut Netlink,
    links: &[SeenLink],
    own_mark: bool,
) -> Result<(), NetworkError> {
    let path = Path::new(FORWARD);
    let now = std::fs::read_to_string(path).map_err(|source| NetworkError::File {
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    let is_off = now.trim() == "0";
    let others_mark = links.iter().any(|l| is_platform_bridge(l) && l.alias.starts_with(FORWARD_WAS_OFF));
    let mark = match is_off || own_mark || others_mark {
        true => FORWARD_WAS_OFF,
        false => FORWARD_WAS_ON,
    };
    let mut alias = format!("{mark} {}", config.data_dir.display());
    alias.truncate(alias.floor_char_boundary(MAX_ALIAS_BYTES));
    // The mark first: a crash between the two must not lose it.
    route.run(&[links::describe_bridge(names, &alias)])?;
    if is_off {
        write(path, "1")?;
    }
    Ok(())
}

/// Settings of the bridge that no pod may profit from; a kernel without one of them is fine.
fn quiet_bridge(bridge: &str) {
    for (file, value) in [
        (format!("/proc/sys/net/ipv4/conf/{bridge}/accept_redirects"), "0"),
        (format!("/proc/sys/net/ipv4/conf/{bridge}/send_redirects"), "0"),
        (format!("/proc/sys/net/ipv4/conf/{bridge}/route_localnet"), "0"),
        (format!("/proc/sys/net/ipv6/conf/{bridge}/disable_ipv6"), "1"),
    ] {
        if let Err(error) = std::fs::write(&file, value) {
            debug!(file, %error, "cannot set");
        }
    }
}

fn write(path: &Path, value: &str) -> Result<(), NetworkError> {
    std::fs::write(path, value).map_err(|source| NetworkError::File { what: "write", path: path.to_owned(), source })
}

fn read_state(data_dir: &Path) -> Option<Cidr> {
    let bytes = std::fs::read(data_dir.join(STATE_FILE)).ok()?;
    let state: State = serde_json::from_slice(&bytes)
        .inspect_err(|error| warn!(%error, "the network's state file is damaged, starting anew"))
        .ok()?;
    state.pods.parse().ok().filter(|pods: &Cidr| pods.prefix() == super::cidr::POD_PREFIX)
}

fn write_state(data_dir: &Path, pods: Cidr) -> Result<(), NetworkError> {
    let path = data_dir.join(STATE_FILE);
    let fail = |source| NetworkError::File { what: "write", path: path.clone(), source };
    std::fs::create_dir_all(data_dir).map_err(fail)?;
    let bytes = serde_json::to_vec(&State { pods: pods.to_string() }).map_err(|error| fail(error.into()))?;
    // Whole or not at all, so that a crash leaves no half file.
    let temporary = data_dir.join(format!("{STATE_FILE}.new"));
    std::fs::write(&temporary, bytes).map_err(fail)?;
    std::fs::rename(&temporary, &path).map_err(fail)
}

/// Held while a range is chosen: two platforms that start at once must not choose the same.
///
/// An abstract socket lives in the network namespace, just as what it protects, and goes with its
/// process.
struct StartLock {
    _listener: UnixListener,
}

impl StartLock {
    fn take() -> Result<Self, NetworkError> {
        let what = "lock the network's start";
        let address = SocketAddr::from_abstract_name("colibri-network-start")
            .map_err(|source| NetworkError::from_io(what, source))?;
        let begin = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(listener) => return Ok(Self { _listener: listener }),
                Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                    return Err(NetworkError::from_io(what, error));
                }
                Err(_) if begin.elapsed() > LOCK_LIMIT => {
                    return Err(NetworkError::Locked { seconds: LOCK_LIMIT.as_secs() });
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}
