//! What pods may reach, as nf_tables rules. Pure: a plan made of the names and ranges.
//!
//! - Frames (`bridge` family): a port speaks only with its own hardware and IPv4 address; nothing
//!   but IPv4 and ARP passes; ports exchange IPv4 only.
//! - Packets to this machine: from a pod only DNS, the open ports and echo requests, and only on
//!   the bridge address; to the bridge address only from pods and from this machine.
//! - Packets through this machine: pods reach the outside and each other (namespaces are not told
//!   apart yet), never link-local addresses nor other platforms' pods; nobody outside reaches pods.
//! - What leaves for the outside carries this machine's address.

use std::net::Ipv4Addr;

use super::cidr::Cidr;
use super::names::{self, BRIDGE_PREFIX, Names};
use super::nft::{Batch, Chain, Family, Hook, Rule, Set, Verdict};

const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const IPV4_FRAME: u16 = 0x0800;
const ARP_FRAME: u16 = 0x0806;
const PORTS_SET: &str = "ports";

/// What the rules are made of.
#[derive(Clone, Debug)]
pub struct RuleInput<'a> {
    /// The platform's names.
    pub names: &'a Names,
    /// The pods' range.
    pub pods: Cidr,
    /// TCP ports of the bridge address that pods may reach besides DNS.
    pub open_ports: &'a [u16],
}

/// Replaces the platform's tables by the rules for `input`, at once.
pub fn base_rules(input: &RuleInput<'_>) -> Batch {
    let mut batch = Batch::default();
    frame_rules(&mut batch, input);
    batch.fresh_table(Family::Inet, &input.names.table);
    let mut writer = Writer { batch: &mut batch, table: &input.names.table };
    input_rules(&mut writer, input);
    forward_rules(&mut writer, input);
    leaving_rules(&mut writer, input);
    batch
}

/// Removes all tables of the platform.
pub fn no_rules(names: &Names) -> Batch {
    let mut batch = Batch::default();
    batch.no_table(Family::Bridge, &names.table);
    batch.no_table(Family::Inet, &names.table);
    batch.no_table(Family::Inet, &names.services_table);
    batch
}

/// Adds to one `inet` table.
struct Writer<'a> {
    batch: &'a mut Batch,
    table: &'a str,
}

impl Writer<'_> {
    fn chain(&mut self, what: &'static str, name: &str, hook: Option<Hook>) {
        let chain = Chain { name: name.to_owned(), hook };
        self.batch.chain(what, Family::Inet, self.table, &chain);
    }

    fn rule(&mut self, what: &'static str, chain: &str, rule: Rule) {
        self.batch.rule(what, Family::Inet, self.table, chain, rule);
    }
}

fn frame_rules(batch: &mut Batch, input: &RuleInput<'_>) {
    const WHAT: &str = "add the port rules";
    let (names, family, table) = (input.names, Family::Bridge, &input.names.table);
    batch.fresh_table(family, table);
    let last = (1u32 << (32 - input.pods.prefix())) - 1;
    let ports = (names::GATEWAY_OFFSET + 1..last)
        .filter_map(|offset| {
            let address = input.pods.nth(offset)?;
            Some((names.link(offset), names::hardware_address(address), address))
        })
        .collect();
    batch.set(WHAT, family, table, PORTS_SET, 1, &Set::Ports(ports));
    let mut chain = |name: &str, point| {
        let hook = Hook { kind: "filter", point, priority: -200 };
        batch.chain(WHAT, family, table, &Chain { name: name.to_owned(), hook: Some(hook) });
    };
    chain("prerouting", 0);
    chain("forward", 2);
    let from_pods = || Rule::new().enters_by_any(&names.link_prefix);
    let mut rule = |chain: &str, rule| batch.rule(WHAT, family, table, chain, rule);
    let ip = from_pods().ether_type(IPV4_FRAME).port_hardware_source_in(PORTS_SET);
    rule("prerouting", ip.verdict(&Verdict::Accept));
    let arp = from_pods().ether_type(ARP_FRAME).port_hardware_sender_in(PORTS_SET);
    rule("prerouting", arp.verdict(&Verdict::Accept));
    rule("prerouting", from_pods().verdict(&Verdict::Drop));
    rule("forward", from_pods().not_ether_type(IPV4_FRAME).verdict(&Verdict::Drop));
}

fn input_rules(writer: &mut Writer<'_>, input: &RuleInput<'_>) {
    const WHAT: &str = "add the input rules";
    const ECHO_REQUEST: u8 = 8;
    let bridge = &input.names.bridge;
    let gateway = names::gateway_address(input.pods);
    writer.chain(WHAT, "from-pod", None);
    writer.rule("add the connection rules", "from-pod", Rule::new().known_connection().verdict(&Verdict::Accept));
    let mut open = |rule: Rule| writer.rule(WHAT, "from-pod", rule.verdict(&Verdict::Accept));
    let here = || Rule::new().destination(gateway);
    open(here().port(UDP, 53));
    open(here().port(TCP, 53));
    for port in input.open_ports {
        open(here().port(TCP, *port));
    }
    open(here().icmp(ECHO_REQUEST));
    refuse(writer, "from-pod", Rule::new);

    writer.chain(WHAT, "input", Some(Hook { kind: "filter", point: 1, priority: 0 }));
    let jump = Rule::new().enters_by(bridge).verdict(&Verdict::Goto("from-pod".to_owned()));
    writer.rule(WHAT, "input", jump);
    // A neighbour that routes to the bridge address through this machine's other links.
    let outsider = Rule::new().enters_not_by("lo").destination(gateway).verdict(&Verdict::Drop);
    writer.rule(WHAT, "input", outsider);
}

fn forward_rules(writer: &mut Writer<'_>, input: &RuleInput<'_>) {
    const WHAT: &str = "add the forward rules";
    let bridge = &input.names.bridge;
    let link_local = Cidr::new(Ipv4Addr::new(169, 254, 0, 0), 16);
    writer.chain(WHAT, "forward", Some(Hook { kind: "filter", point: 2, priority: 0 }));
    let mut rule = |rule: Rule| writer.rule(WHAT, "forward", rule);
    let from = || Rule::new().enters_by(bridge);
    let to = || Rule::new().leaves_by(bridge);
    rule(from().not_ipv4().verdict(&Verdict::Drop));
    rule(from().destination_in(link_local).verdict(&Verdict::Drop));
    rule(from().invalid_connection().verdict(&Verdict::Drop));
    rule(from().leaves_by(bridge).verdict(&Verdict::Accept));
    rule(to().known_connection().verdict(&Verdict::Accept));
    rule(to().verdict(&Verdict::Drop));
    rule(from().leaves_by_any(BRIDGE_PREFIX).verdict(&Verdict::Drop));
    rule(from().verdict(&Verdict::Accept));

    // Pods reach each other through the host; it must not advise them to go directly.
    const REDIRECT: u8 = 5;
    writer.chain(WHAT, "output", Some(Hook { kind: "filter", point: 3, priority: 0 }));
    let redirect = Rule::new().leaves_by(bridge).ipv4().icmp(REDIRECT).verdict(&Verdict::Drop);
    writer.rule(WHAT, "output", redirect);
}

fn leaving_rules(writer: &mut Writer<'_>, input: &RuleInput<'_>) {
    const WHAT: &str = "add the masquerade rule";
    writer.chain(WHAT, "postrouting", Some(Hook { kind: "nat", point: 4, priority: 100 }));
    let leaving = Rule::new().source_in(input.pods).leaves_not_by(&input.names.bridge).masquerade();
    writer.rule(WHAT, "postrouting", leaving);
}

/// Refuses what `matching` matches, in a way that the sender notices at once.
fn refuse(writer: &mut Writer<'_>, chain: &str, matching: impl Fn() -> Rule) {
    const WHAT: &str = "add the reject rules";
    writer.rule(WHAT, chain, matching().transport(TCP).reset());
    writer.rule(WHAT, chain, matching().reject());
}
