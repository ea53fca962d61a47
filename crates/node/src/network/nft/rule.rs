//! One rule: expressions that load and compare, then a statement.

use std::net::Ipv4Addr;

use super::attributes::Attributes;
use crate::network::cidr::Cidr;

/// The first and second 16-byte registers, and the 4-byte ones inside them.
const REG_1: u32 = 1;
const REG_2: u32 = 2;
const REG32_1: u32 = 9;
const REG32_2: u32 = 10;
const REG32_6: u32 = 14;

const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

const IP_SOURCE: u32 = 12;
const IP_DESTINATION: u32 = 16;

/// What becomes of a packet that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The chain lets it pass; later base chains still see it.
    Accept,
    /// It is gone.
    Drop,
    /// The named chain decides.
    Goto(String),
}

impl Verdict {
    /// The verdict as a data attribute's value.
    pub(super) fn data(&self) -> Attributes {
        const ACCEPT: u32 = 1;
        const DROP: u32 = 0;
        const GOTO: i32 = -4;
        let verdict = match self {
            Self::Accept => Attributes::default().number(1, ACCEPT),
            Self::Drop => Attributes::default().number(1, DROP),
            Self::Goto(chain) => Attributes::default().number(1, GOTO as u32).text(2, chain),
        };
        Attributes::default().nest(2, verdict)
    }
}

/// A rule under construction: each call appends an expression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule(Attributes);

impl Rule {
    /// A rule that matches every packet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The expressions.
    pub(super) fn expressions(self) -> Attributes {
        self.0
    }

    /// The packet came in by this link.
    pub fn enters_by(self, name: &str) -> Self {
        self.meta(META_IIFNAME, REG_1).compare(true, &link_name(name))
    }

    /// The packet did not come in by this link.
    pub fn enters_not_by(self, name: &str) -> Self {
        self.meta(META_IIFNAME, REG_1).compare(false, &link_name(name))
    }

    /// The packet came in by a link whose name begins so.
    pub fn enters_by_any(self, prefix: &str) -> Self {
        self.meta(META_IIFNAME, REG_1).compare(true, prefix.as_bytes())
    }

    /// The packet leaves by this link.
    pub fn leaves_by(self, name: &str) -> Self {
        self.meta(META_OIFNAME, REG_1).compare(true, &link_name(name))
    }

    /// The packet does not leave by this link.
    pub fn leaves_not_by(self, name: &str) -> Self {
        self.meta(META_OIFNAME, REG_1).compare(false, &link_name(name))
    }

    /// The packet leaves by a link whose name begins so.
    pub fn leaves_by_any(self, prefix: &str) -> Self {
        self.meta(META_OIFNAME, REG_1).compare(true, prefix.as_bytes())
    }

    /// The packet is IPv4 (in an `inet` table).
    pub fn ipv4(self) -> Self {
        self.meta(META_NFPROTO, REG_1).compare(true, &[libc::NFPROTO_IPV4 as u8])
    }

    /// The packet is not IPv4 (in an `inet` table).
    pub fn not_ipv4(self) -> Self {
        self.meta(META_NFPROTO, REG_1).compare(false, &[libc::NFPROTO_IPV4 as u8])
    }

    /// The frame carries this protocol (in a `bridge` table).
    pub fn ether_type(self, protocol: u16) -> Self {
        self.meta(META_PROTOCOL, REG_1).compare(true, &protocol.to_be_bytes())
    }

    /// The frame does not carry this protocol (in a `bridge` table).
    pub fn not_ether_type(self, protocol: u16) -> Self {
        self.meta(META_PROTOCOL, REG_1).compare(false, &protocol.to_be_bytes())
    }

    /// The source address is in `range`.
    pub fn source_in(self, range: Cidr) -> Self {
        self.ipv4().load(NETWORK_HEADER, IP_SOURCE, 4, REG_1).in_range(range)
    }

    /// The destination address is in `range`.
    pub fn destination_in(self, range: Cidr) -> Self {
        self.ipv4().load(NETWORK_HEADER, IP_DESTINATION, 4, REG_1).in_range(range)
    }

    /// The destination address is this one.
    pub fn destination(self, address: Ipv4Addr) -> Self {
        self.ipv4().load(NETWORK_HEADER, IP_DESTINATION, 4, REG_1).compare(true, &address.octets())
    }

    /// The packet is of this transport protocol and goes to this port.
    pub fn port(self, protocol: u8, port: u16) -> Self {
        self.transport(protocol).load(TRANSPORT_HEADER, 2, 2, REG_1).compare(true, &port.to_be_bytes())
    }

    /// The packet is of this transport protocol.
    pub fn transport(self, protocol: u8) -> Self {
        self.meta(META_L4PROTO, REG_1).compare(true, &[protocol])
    }

    /// The packet is an ICMP message of this type.
    pub fn icmp(self, kind: u8) -> Self {
        self.transport(libc::IPPROTO_ICMP as u8).load(TRANSPORT_HEADER, 0, 1, REG_1).compare(true, &[kind])
    }

    /// The packet belongs to a connection that was let through.
    pub fn known_connection(self) -> Self {
        const ESTABLISHED_OR_RELATED: u32 = 2 | 4;
        self.connection_state(ESTABLISHED_OR_RELATED)
    }

    /// The packet fits no connection that it claims to belong to.
    pub fn invalid_connection(self) -> Self {
        const INVALID: u32 = 1;
        self.connection_state(INVALID)
    }

    fn connection_state(self, bits: u32) -> Self {
        self.expression("ct", Attributes::default().number(1, REG_1).number(2, 0))
            .mask(&bits.to_ne_bytes())
            .compare(false, &[0; 4])
    }

    /// The port, hardware address and IPv4 source of a frame, together, are in `set`.
    pub fn port_hardware_source_in(self, set: &str) -> Self {
        self.port_hardware_in(set, IP_SOURCE)
    }

    /// The port, hardware address and sender of an ARP frame, together, are in `set`.
    pub fn port_hardware_sender_in(self, set: &str) -> Self {
        const ARP_SENDER: u32 = 14;
        self.port_hardware_in(set, ARP_SENDER)
    }

    fn port_hardware_in(self, set: &str, offset: u32) -> Self {
        self.meta(META_IIFNAME, REG_1)
            .load(LINK_HEADER, 6, 6, REG_2)
            .load(NETWORK_HEADER, offset, 4, REG32_6)
            .lookup(set, None)
    }

    /// Source and destination address, together, are in `set`.
    pub fn source_and_destination_in(self, set: &str) -> Self {
        self.ipv4()
            .load(NETWORK_HEADER, IP_SOURCE, 4, REG_1)
            .load(NETWORK_HEADER, IP_DESTINATION, 4, REG32_1)
            .lookup(set, None)
    }

    /// The verdict that `map` has for destination, protocol and port.
    pub fn verdict_by_service(self, map: &str) -> Self {
        self.service_key().lookup(map, Some(0))
    }

    /// Destination, protocol and port, together, are in `set`.
    pub fn service_in(self, set: &str) -> Self {
        self.service_key().lookup(set, None)
    }

    fn service_key(self) -> Self {
        self.ipv4().load(NETWORK_HEADER, IP_DESTINATION, 4, REG_1).meta(META_L4PROTO, REG32_1).load(
            TRANSPORT_HEADER,
            2,
            2,
            REG32_2,
        )
    }

    /// Sends the packet to one of the `count` targets (address and port) of `map`, at random.
    pub fn send_to_random_target(self, map: &str, count: u32) -> Self {
        const RANDOM: u32 = 1;
        let pick = Attributes::default().number(1, REG_1).number(2, count).number(3, RANDOM);
        const DNAT: u32 = 1;
        const PORT_GIVEN: u32 = 2;
        let translate = Attributes::default()
            .number(1, DNAT)
            .number(2, libc::NFPROTO_IPV4 as u32)
            .number(3, REG_1)
            .number(5, REG32_1)
            .number(7, PORT_GIVEN);
        self.expression("numgen", pick).lookup(map, Some(REG_1)).expression("nat", translate)
    }

    /// The packet leaves with the address of the link it leaves by.
    pub fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// The sender is told at once that this is not allowed.
    pub fn reject(self) -> Self {
        const ICMPX: u32 = 2;
        const PROHIBITED: u8 = 3;
        self.expression("reject", Attributes::default().number(1, ICMPX).byte(2, PROHIBITED))
    }

    /// The sender's TCP connection is reset.
    pub fn reset(self) -> Self {
        const TCP_RESET: u32 = 1;
        self.expression("reject", Attributes::default().number(1, TCP_RESET).byte(2, 0))
    }

    /// Ends the rule with a verdict.
    pub fn verdict(self, verdict: &Verdict) -> Self {
        let data = Attributes::default().number(1, 0).nest(2, verdict.data());
        self.expression("immediate", data)
    }

    fn meta(self, key: u32, register: u32) -> Self {
        self.expression("meta", Attributes::default().number(1, register).number(2, key))
    }

    fn load(self, base: u32, offset: u32, length: u32, register: u32) -> Self {
        let data = Attributes::default().number(1, register).number(2, base).number(3, offset).number(4, length);
        self.expression("payload", data)
    }

    fn in_range(self, range: Cidr) -> Self {
        self.mask(&range.mask().octets()).compare(true, &range.base().octets())
    }

    fn mask(self, mask: &[u8; 4]) -> Self {
        let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
        let data = Attributes::default()
            .number(1, REG_1)
            .number(2, REG_1)
            .number(3, 4)
            .nest(4, value(mask))
            .nest(5, value(&[0; 4]));
        self.expression("bitwise", data)
    }

    fn compare(self, equal: bool, value: &[u8]) -> Self {
        let data = Attributes::default()
            .number(1, REG_1)
            .number(2, u32::from(!equal))
            .nest(3, Attributes::default().bytes(1, value));
        self.expression("cmp", data)
    }

    fn lookup(self, set: &str, into: Option<u32>) -> Self {
        let mut data = Attributes::default().text(1, set).number(2, REG_1);
        if let Some(register) = into {
            data = data.number(3, register);
        }
        self.expression("lookup", data)
    }

    fn expression(mut self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nest(2, data);
        self.0 = self.0.nest(1, expression);
        self
    }
}

/// A whole link name as the kernel compares it: 16 bytes.
pub(super) fn link_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}
