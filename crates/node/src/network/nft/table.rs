//! Tables, chains and sets, and the batch that changes them in one step.

use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use super::attributes::{Attributes, find};
use super::rule::{Rule, Verdict, link_name};
use crate::network::netlink::{Netlink, Refused, Request};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// Elements in one message: an attribute's length has 16 bits.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// Where a table's packets come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 packets.
    Inet,
    /// Frames between ports of a bridge.
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => libc::NFPROTO_INET as u8,
            Self::Bridge => libc::NFPROTO_BRIDGE as u8,
        }
    }
}

/// When a base chain runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// "filter" or "nat".
    pub kind: &'static str,
    /// 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub point: u32,
    /// Lower runs first.
    pub priority: i32,
}

/// A chain; without a hook, only other chains lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name in its table.
    pub name: String,
    /// When it runs by itself.
    pub hook: Option<Hook>,
}

/// The sets and maps that the pod network uses, with their elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Set {
    /// Port, hardware address and IPv4 address that belong together.
    Ports(Vec<(String, [u8; 6], Ipv4Addr)>),
    /// Source and destination addresses.
    Pairs(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// Address, protocol and port.
    Services(Vec<(Ipv4Addr, u8, u16)>),
    /// Address, protocol and port to what becomes of the packet.
    ServiceVerdicts(Vec<((Ipv4Addr, u8, u16), Verdict)>),
    /// Targets by their number from 0.
    Targets(Vec<(Ipv4Addr, u16)>),
}

/// How the kernel (and `nft list`) is told of a set's shape.
struct Shape {
    flags: u32,
    key_type: u32,
    key_length: u32,
    data: Option<(u32, u32)>,
}

impl Set {
    fn shape(&self) -> Shape {
        const IPV4: u32 = 7;
        const ETHER: u32 = 9;
        const PROTOCOL: u32 = 12;
        const PORT: u32 = 13;
        const LINK: u32 = 41;
        const INTEGER: u32 = 4;
        const VERDICT: u32 = 0xffff_ff00;
        const MAP: u32 = 8;
        const CONSTANT: u32 = 2;
        let joined = |types: &[u32]| types.iter().fold(0, |all, one| (all << 6) | one);
        let service = joined(&[IPV4, PROTOCOL, PORT]);
        let plain = |key_type, key_length| Shape { flags: 0, key_type, key_length, data: None };
        match self {
            Self::Ports(_) => plain(joined(&[LINK, ETHER, IPV4]), 28),
            Self::Pairs(_) => plain(joined(&[IPV4, IPV4]), 8),
            Self::Services(_) => plain(service, 12),
            Self::ServiceVerdicts(_) => Shape { flags: MAP, data: Some((VERDICT, 0)), ..plain(service, 12) },
            Self::Targets(_) => {
                Shape { flags: MAP | CONSTANT, data: Some((joined(&[IPV4, PORT]), 8)), ..plain(INTEGER, 4) }
            }
        }
    }

    fn elements(&self) -> Vec<Attributes> {
        let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
        let element = |key: &[u8]| Attributes::default().nest(1, value(key));
        match self {
            Self::Ports(all) => all
                .iter()
                .map(|(link, hardware, address)| {
                    let mut key = [0; 28];
                    key[..16].copy_from_slice(&link_name(link));
                    key[16..22].copy_from_slice(hardware);
                    key[24..].copy_from_slice(&address.octets());
                    element(&key)
                })
                .collect(),
            Self::Pairs(all) => all.iter().map(|(a, b)| element(&[a.octets(), b.octets()].concat())).collect(),
            Self::Services(all) => all.iter().map(|key| element(&service_key(*key))).collect(),
            Self::ServiceVerdicts(all) => {
                all.iter().map(|(key, verdict)| element(&service_key(*key)).nest(2, verdict.data())).collect()
            }
            Self::Targets(all) => (0u32..)
                .zip(all)
                .map(|(number, (address, port))| {
                    element(&number.to_ne_bytes()).nest(2, value(&padded(*address, *port)))
                })
                .collect(),
        }
    }
}

fn service_key((address, protocol, port): (Ipv4Addr, u8, u16)) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&address.octets());
    key[4] = protocol;
    key[8..10].copy_from_slice(&port.to_be_bytes());
    key
}

fn padded(address: Ipv4Addr, port: u16) -> [u8; 8] {
    let mut value = [0; 8];
    value[..4].copy_from_slice(&address.octets());
    value[4..6].copy_from_slice(&port.to_be_bytes());
    value
}

/// Changes that the kernel makes all at once, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
}

impl Batch {
    /// An empty table, whatever was there before under that name.
    pub fn fresh_table(&mut self, family: Family, table: &str) {
        self.add_table(family, table);
        self.delete_table(family, table);
        self.add_table(family, table);
    }

    /// No table of that name, whether or not there was one.
    pub fn no_table(&mut self, family: Family, table: &str) {
        self.add_table(family, table);
        self.delete_table(family, table);
    }

    fn add_table(&mut self, family: Family, table: &str) {
        let attributes = Attributes::default().text(1, table).number(2, 0);
        self.push("add a table", NEW_TABLE, NLM_F_CREATE, family, &attributes);
    }

    fn delete_table(&mut self, family: Family, table: &str) {
        let attributes = Attributes::default().text(1, table);
        self.push("remove a table", DELETE_TABLE, 0, family, &attributes);
    }

    /// A chain in `table`; `what` is for error texts.
    pub fn chain(&mut self, what: &'static str, family: Family, table: &str, chain: &Chain) {
        let mut attributes = Attributes::default().text(1, table).text(3, &chain.name);
        if let Some(hook) = chain.hook {
            let point = Attributes::default().number(1, hook.point).number(2, hook.priority as u32);
            const POLICY_ACCEPT: u32 = 1;
            attributes = attributes.nest(4, point).number(5, POLICY_ACCEPT).text(7, hook.kind);
        }
        self.push(what, NEW_CHAIN, NLM_F_CREATE, family, &attributes);
    }

    /// A rule at the end of `chain`; `what` is for error texts.
    pub fn rule(&mut self, what: &'static str, family: Family, table: &str, chain: &str, rule: Rule) {
        let attributes = Attributes::default().text(1, table).text(2, chain).nest(4, rule.expressions());
        self.push(what, NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, family, &attributes);
    }

    /// A set or map with its elements; `id` is its number in this batch. A set is declared before
    /// the rules that use it; a map's verdicts lead to chains declared before it.
    pub fn set(&mut self, what: &'static str, family: Family, table: &str, name: &str, id: u32, set: &Set) {
        let shape = set.shape();
        let elements = set.elements();
        let size = u32::try_from(elements.len().max(1)).unwrap_or(u32::MAX);
        let mut attributes = Attributes::default()
            .text(1, table)
            .text(2, name)
            .number(3, shape.flags)
            .number(4, shape.key_type)
            .number(5, shape.key_length);
        if let Some((data_type, data_length)) = shape.data {
            attributes = attributes.number(6, data_type).number(7, data_length);
        }
        attributes = attributes.nest(9, Attributes::default().number(1, size)).number(10, id);
        self.push(what, NEW_SET, NLM_F_CREATE, family, &attributes);
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let list = chunk.iter().fold(Attributes::default(), |list, element| list.nest(1, element.clone()));
            let attributes = Attributes::default().text(1, table).text(2, name).nest(3, list).number(4, id);
            self.push(what, NEW_ELEMENTS, NLM_F_CREATE, family, &attributes);
        }
    }

    /// Makes the changes.
    ///
    /// # Errors
    ///
    /// The kernel refused one of them; none was made.
    pub fn commit(&self, socket: &mut Netlink) -> Result<(), Refused> {
        let frame = |kind| Request { what: "change rules", kind, flags: 0, payload: vec![0, 0, 0, 10], tolerate: None };
        socket.run_atomic(&frame(BATCH_BEGIN), &self.requests, &frame(BATCH_END))
    }

    fn push(&mut self, what: &'static str, kind: u16, flags: u16, family: Family, attributes: &Attributes) {
        let mut payload = vec![family.number(), 0, 0, 0];
        payload.extend_from_slice(attributes.as_bytes());
        self.requests.push(Request { what, kind, flags, payload, tolerate: None });
    }
}

/// The names of all tables of one family.
///
/// # Errors
///
/// The kernel did not answer.
pub fn list_tables(socket: &mut Netlink, family: Family) -> Result<Vec<String>, Refused> {
    let request = Request {
        what: "list tables",
        kind: GET_TABLE,
        flags: 0,
        payload: vec![family.number(), 0, 0, 0],
        tolerate: None,
    };
    let answers = socket.dump(&request)?;
    let name = |payload: &[u8]| {
        let value = find(payload.get(4..)?, 1)?;
        Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned())
    };
    Ok(answers.iter().filter_map(|answer| name(&answer.payload)).collect())
}
