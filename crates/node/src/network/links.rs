//! The route-family requests: bridge, pod links, addresses, routes, neighbours.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::cidr::Cidr;
use super::names::{self, Names};
use super::netlink::{Netlink, Refused, Request, decode_route};

/// The pod's end of its link, as container images expect it.
pub const POD_LINK: &str = "eth0";

const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
const REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

/// A link of this machine, as far as the network needs to know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenLink {
    /// Its number in this namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The free text that its owner put on it.
    pub alias: String,
    /// Its largest packet.
    pub mtu: u32,
}

/// The links of the socket's namespace.
///
/// # Errors
///
/// The kernel did not answer.
pub fn list_links(socket: &mut Netlink) -> Result<Vec<SeenLink>, Refused> {
    let message = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let found = socket.dump_route(&Request::route("list links", &message, 0))?;
    Ok(found.iter().filter_map(seen_link).collect())
}

/// The link called `name` in the socket's namespace.
///
/// # Errors
///
/// There is none, or the kernel did not answer.
pub fn get_link(socket: &mut Netlink, name: &str) -> Result<SeenLink, Refused> {
    let message = RouteNetlinkMessage::GetLink(named(name));
    let answer = socket.get(&Request::route("find a link", &message, 0))?;
    answer
        .as_ref()
        .and_then(decode_route)
        .as_ref()
        .and_then(seen_link)
        .ok_or_else(|| Refused { what: "find a link", source: io::Error::from_raw_os_error(libc::ENODEV) })
}

fn seen_link(message: &RouteNetlinkMessage) -> Option<SeenLink> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let mut seen = SeenLink { index: link.header.index, ..SeenLink::default() };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => seen.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => seen.alias.clone_from(alias),
            LinkAttribute::Mtu(mtu) => seen.mtu = *mtu,
            _ => {}
        }
    }
    Some(seen)
}

/// The IPv4 routes of all tables and the addresses of all links, as ranges with their link; the
/// default route is the range of prefix 0.
///
/// # Errors
///
/// The kernel did not answer.
pub fn list_ranges(socket: &mut Netlink) -> Result<Vec<(Cidr, Option<u32>)>, Refused> {
    let mut ranges = Vec::new();
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    let request = Request::route("list routes", &RouteNetlinkMessage::GetRoute(message), 0);
    for found in socket.dump_route(&request)? {
        let RouteNetlinkMessage::NewRoute(route) = found else { continue };
        let mut destination = Ipv4Addr::UNSPECIFIED;
        let mut link = None;
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = *address,
                RouteAttribute::Oif(index) => link = Some(*index),
                _ => {}
            }
        }
        ranges.push((Cidr::new(destination, route.header.destination_prefix_length), link));
    }
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let request = Request::route("list addresses", &RouteNetlinkMessage::GetAddress(message), 0);
    for found in socket.dump_route(&request)? {
        let RouteNetlinkMessage::NewAddress(address) = found else { continue };
        for attribute in &address.attributes {
            if let AddressAttribute::Address(IpAddr::V4(ip)) = attribute {
                let range = Cidr::new(*ip, address.header.prefix_len);
                ranges.push((range, Some(address.header.index)));
            }
        }
    }
    Ok(ranges)
}

/// Creates the bridge, up; `alias` is its free text.
pub fn create_bridge(names: &Names, gateway: Ipv4Addr, mtu: u32) -> Vec<Request> {
    let mut link = named(&names.bridge);
    up(&mut link);
    link.attributes.push(LinkAttribute::Address(names::hardware_address(gateway).to_vec()));
    link.attributes.push(LinkAttribute::Mtu(mtu));
    link.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    vec![Request::route("create the bridge", &RouteNetlinkMessage::NewLink(link), CREATE)]
}

/// Puts a free text on the bridge.
pub fn describe_bridge(names: &Names, alias: &str) -> Request {
    let mut link = named(&names.bridge);
    link.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
    Request::route("describe the bridge", &RouteNetlinkMessage::SetLink(link), 0)
}

/// Gives the bridge its address, which makes the route to the pods.
pub fn address_bridge(bridge: u32, gateway: Ipv4Addr, pods: Cidr) -> Request {
    let message = address(bridge, gateway, pods.prefix());
    Request::route("address the bridge", &RouteNetlinkMessage::NewAddress(message), REPLACE)
}

/// What a pod's link is made of.
#[derive(Clone, Copy, Debug)]
pub struct PodLink<'a> {
    /// The platform's names.
    pub names: &'a Names,
    /// The bridge's number.
    pub bridge: u32,
    /// The pod's place in the range.
    pub offset: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// The bridge's address.
    pub gateway: Ipv4Addr,
    /// The largest packet.
    pub mtu: u32,
}

impl PodLink<'_> {
    /// The host's side, in one batch: the link with its far end already in `netns`, and the pod's
    /// hardware address, so that no address resolution is needed.
    pub fn host_requests(&self, netns: BorrowedFd<'_>) -> Vec<Request> {
        let hardware = names::hardware_address(self.address).to_vec();
        let mut peer = named(POD_LINK); // can be started only once the pair is made
        peer.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
        peer.attributes.push(LinkAttribute::Address(hardware.clone()));
        peer.attributes.push(LinkAttribute::Mtu(self.mtu));
        peer.attributes.push(LinkAttribute::NumTxQueues(1));
        peer.attributes.push(LinkAttribute::NumRxQueues(1));
        let mut link = named(&self.names.link(self.offset));
        up(&mut link);
        link.attributes.push(LinkAttribute::Mtu(self.mtu));
        link.attributes.push(LinkAttribute::NumTxQueues(1));
        link.attributes.push(LinkAttribute::NumRxQueues(1));
        link.attributes.push(LinkAttribute::Group(self.names.group));
        link.attributes.push(LinkAttribute::Controller(self.bridge));
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        vec![
            Request::route("create a pod's link", &RouteNetlinkMessage::NewLink(link), CREATE),
            self.hairpin_request(),
            neighbour("announce a pod", self.bridge, self.address, self.address, true),
        ]
    }

    /// Lets a frame go back out by the port it came in by.
    ///
    /// Where bridged frames pass the packet rules (`br_netfilter`, as container engines switch it
    /// on), the kernel turns a frame for a virtual address around on the bridge, without routing.
    fn hairpin_request(&self) -> Request {
        let mut link = named(&self.names.link(self.offset));
        let data = InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)]);
        link.attributes
            .push(LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(InfoPortKind::Bridge), LinkInfo::PortData(data)]));
        Request::route("set up a pod's port", &RouteNetlinkMessage::NewLink(link), 0)
    }

    /// The pod's side, in one batch: both links up, address, gateway, default route. `link` is the
    /// number of the pod's end in its namespace.
    ///
    /// The address has 32 bits, so that pods reach each other through the host, where the rules
    /// are, and virtual addresses find their way back.
    pub fn pod_requests(&self, link: u32) -> Vec<Request> {
        let address = address(link, self.address, 32);
        vec![
            start_loopback(),
            start_link(link),
            Request::route("address a pod", &RouteNetlinkMessage::NewAddress(address), CREATE),
            neighbour("tell a pod its gateway", link, self.gateway, self.gateway, true),
            default_route(link, self.gateway),
        ]
    }

    /// Moves the pod's link to the group of links that go next, and forgets its neighbour entry.
    pub fn discard_requests(&self) -> Vec<Request> {
        let mut link = named(&self.names.link(self.offset));
        link.attributes.push(LinkAttribute::Group(self.names.trash_group));
        let set = RouteNetlinkMessage::SetLink(link);
        vec![
            // The link may have gone with its namespace.
            Request::route("take down a pod's link", &set, 0).tolerating(libc::ENODEV),
            neighbour("forget a pod", self.bridge, self.address, self.address, false).tolerating(libc::ENOENT),
        ]
    }
}

/// Switches the loopback link of the socket's namespace on.
pub fn start_loopback() -> Request {
    start_link(1) // the first link of every namespace
}

/// Switches a link on.
pub fn start_link(link: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = link;
    up(&mut message);
    Request::route("start a link", &RouteNetlinkMessage::SetLink(message), 0)
}

/// Sends everything without another route by way of `gateway`, a neighbour on `link`.
pub fn default_route(link: u32, gateway: Ipv4Addr) -> Request {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Boot;
    route.header.scope = RouteScope::Universe;
    route.header.kind = RouteType::Unicast;
    route.header.flags = RouteFlags::Onlink;
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(gateway)));
    route.attributes.push(RouteAttribute::Oif(link));
    Request::route("route a pod", &RouteNetlinkMessage::NewRoute(route), CREATE)
}

/// Removes all links of a group in one step.
pub fn delete_group(group: u32) -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(group));
    Request::route("remove links", &RouteNetlinkMessage::DelLink(link), 0).tolerating(libc::ENODEV)
}

/// Removes one link.
pub fn delete_link(name: &str) -> Request {
    Request::route("remove a link", &RouteNetlinkMessage::DelLink(named(name)), 0).tolerating(libc::ENODEV)
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn up(link: &mut LinkMessage) {
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
}

fn address(link: u32, ip: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = link;
    message.attributes.push(AddressAttribute::Local(IpAddr::V4(ip)));
    message.attributes.push(AddressAttribute::Address(IpAddr::V4(ip)));
    message
}

/// Adds or removes the permanent entry for `ip`, whose hardware address is that of `owner`.
fn neighbour(what: &'static str, link: u32, ip: Ipv4Addr, owner: Ipv4Addr, add: bool) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::empty();
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)));
    if !add {
        return Request::route(what, &RouteNetlinkMessage::DelNeighbour(message), 0);
    }
    let hardware = names::hardware_address(owner).to_vec();
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(hardware));
    Request::route(what, &RouteNetlinkMessage::NewNeighbour(message), REPLACE)
}
