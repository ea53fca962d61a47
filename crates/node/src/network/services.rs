//! Services' virtual addresses: what kube-proxy does on a cluster.
//!
//! They live in a table of their own that is replaced as a whole, so a change is atomic and leaves
//! no rule behind. Connections that exist keep their backend.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::names::Names;
use super::nft::{Batch, Chain, Family, Hook, Rule, Set, Verdict};

/// The most virtual ports at once.
pub const MAX_SERVICES: usize = 4096;
/// The most backends of one virtual port; more are left out.
pub const MAX_BACKENDS: usize = 1000;

/// A transport protocol that a Service's port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => libc::IPPROTO_TCP as u8,
            Self::Udp => libc::IPPROTO_UDP as u8,
        }
    }
}

/// One port of a Service's cluster address, and who answers it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VirtualIp {
    /// The Service's cluster address.
    pub ip: Ipv4Addr,
    /// The Service's port.
    pub port: u16,
    /// The port's protocol.
    pub protocol: Protocol,
    /// Ready endpoints, each taken equally often, at random. Empty: connections are refused at
    /// once.
    pub backends: Vec<SocketAddrV4>,
}

const WHAT: &str = "add the service rules";

/// Replaces the platform's table of services. Of two entries with the same address, protocol and
/// port, the first counts.
pub fn service_rules(names: &Names, services: &[VirtualIp]) -> Batch {
    let mut services: Vec<VirtualIp> = services.to_vec();
    services.sort_by_key(|s| (s.ip, s.protocol, s.port));
    services.dedup_by_key(|s| (s.ip, s.protocol, s.port));
    let table = names.services_table.as_str();
    let mut batch = Batch::default();
    if services.is_empty() {
        batch.no_table(Family::Inet, table);
        return batch;
    }
    batch.fresh_table(Family::Inet, table);
    let verdicts = backend_chains(&mut batch, table, &services);
    let refused = services.iter().filter(|s| s.backends.is_empty()).map(key).collect();
    let mut loops: Vec<(Ipv4Addr, Ipv4Addr)> =
        services.iter().flat_map(|s| &s.backends).map(|b| (*b.ip(), *b.ip())).collect();
    loops.sort();
    loops.dedup();
    batch.set(WHAT, Family::Inet, table, "services", 1, &Set::ServiceVerdicts(verdicts));
    batch.set(WHAT, Family::Inet, table, "refused", 2, &Set::Services(refused));
    batch.set(WHAT, Family::Inet, table, "loops", 3, &Set::Pairs(loops));
    base_chains(&mut batch, table);
    batch
}

/// One chain and one map of targets per service with backends; the map's entries lead there.
fn backend_chains(batch: &mut Batch, table: &str, services: &[VirtualIp]) -> Vec<((Ipv4Addr, u8, u16), Verdict)> {
    let mut verdicts = Vec::new();
    for (number, service) in (4u32..).zip(services.iter().filter(|s| !s.backends.is_empty())) {
        let name = format!("service-{number}");
        batch.chain(WHAT, Family::Inet, table, &Chain { name: name.clone(), hook: None });
        let targets: Vec<(Ipv4Addr, u16)> =
            service.backends.iter().take(MAX_BACKENDS).map(|b| (*b.ip(), b.port())).collect();
        let count = u32::try_from(targets.len()).unwrap_or(1);
        let map = format!("targets-{number}");
        batch.set(WHAT, Family::Inet, table, &map, number, &Set::Targets(targets));
        // The protocol is stated again: the kernel translates ports only where it knows it.
        let rule = Rule::new().transport(service.protocol.number()).send_to_random_target(&map, count);
        batch.rule(WHAT, Family::Inet, table, &name, rule);
        verdicts.push((key(service), Verdict::Goto(name)));
    }
    verdicts
}

fn base_chains(batch: &mut Batch, table: &str) {
    let hooks = [
        // From pods and from this machine itself.
        ("prerouting", Hook { kind: "nat", point: 0, priority: -100 }),
        ("output", Hook { kind: "nat", point: 3, priority: -100 }),
        ("postrouting", Hook { kind: "nat", point: 4, priority: 90 }),
        ("refuse-forward", Hook { kind: "filter", point: 2, priority: -10 }),
        ("refuse-output", Hook { kind: "filter", point: 3, priority: -10 }),
    ];
    for (name, hook) in hooks {
        let chain = Chain { name: name.to_owned(), hook: Some(hook) };
        batch.chain(WHAT, Family::Inet, table, &chain);
    }
    let mut rule = |chain: &str, rule| batch.rule(WHAT, Family::Inet, table, chain, rule);
    for chain in ["prerouting", "output"] {
        rule(chain, Rule::new().verdict_by_service("services"));
    }
    // A pod that reaches itself by way of its Service would drop its own address as a source.
    rule("postrouting", Rule::new().source_and_destination_in("loops").masquerade());
    for chain in ["refuse-forward", "refuse-output"] {
        let refused = || Rule::new().service_in("refused");
        rule(chain, refused().transport(Protocol::Tcp.number()).reset());
        rule(chain, refused().reject());
    }
}

fn key(service: &VirtualIp) -> (Ipv4Addr, u8, u16) {
    (service.ip, service.protocol.number(), service.port)
}
