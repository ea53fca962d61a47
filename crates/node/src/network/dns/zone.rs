//! Which names are the platform's own, and what is answered for them. Pure.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use crate::network::cidr::Cidr;

/// Says where cluster names lead.
pub trait Resolve: Send + Sync {
    /// The addresses of `name`: lower case, full, no final dot, such as
    /// `hello.default.svc.cluster.local`. `None`: there is no such name. Must not block.
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>>;
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is asked of this machine's resolvers.
    Forward,
    /// The name exists and has these addresses of the asked type; with none, it has other records.
    Addresses(Vec<IpAddr>),
    /// It is answered with a code and no records.
    Code(ResponseCode),
}

/// Decides what to do with `query`.
pub fn decide(query: &Query, zones: &[String], pods: Cidr, resolve: &dyn Resolve) -> Decision {
    if query.query_class() != DNSClass::IN {
        return Decision::Code(ResponseCode::Refused);
    }
    if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return Decision::Code(ResponseCode::Refused);
    }
    let name = plain_name(query);
    if reverse_address(&name).is_some_and(|address| pods.contains(address)) {
        return Decision::Code(ResponseCode::NXDomain);
    }
    let Some(zone) = zones.iter().find(|zone| is_under(&name, zone)) else {
        return Decision::Forward;
    };
    if let Some(mut addresses) = resolve.lookup(&name) {
        addresses.retain(|address| match query.query_type() {
            RecordType::A => address.is_ipv4(),
            RecordType::AAAA => address.is_ipv6(),
            RecordType::ANY => true,
            _ => false,
        });
        return Decision::Addresses(addresses);
    }
    // The zone itself, and `svc` below it, exist without addresses.
    let exists = name == *zone || name.strip_suffix(zone.as_str()) == Some("svc.");
    if exists { Decision::Addresses(Vec::new()) } else { Decision::Code(ResponseCode::NXDomain) }
}

/// The asked name: lower case, without the final dot.
pub fn plain_name(query: &Query) -> String {
    let name = query.name().to_lowercase().to_ascii();
    name.strip_suffix('.').unwrap_or(&name).to_owned()
}

fn is_under(name: &str, zone: &str) -> bool {
    name.strip_suffix(zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn reverse_address(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let mut parts = digits.rsplit('.').map(|part| part.parse::<u8>().ok());
    let mut next = || parts.next().flatten();
    let octets = [next()?, next()?, next()?, next()?];
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    struct Names;

    impl Resolve for Names {
        fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
            match name {
                "hello.default.svc.cluster.local" => Some(vec!["10.200.0.1".parse().unwrap()]),
                "empty.default.svc.cluster.local" => Some(vec![]),
                _ => None,
            }
        }
    }

    fn ask(name: &str, kind: RecordType) -> Decision {
        let query = Query::query(Name::from_ascii(name).unwrap(), kind);
        decide(&query, &["cluster.local".to_owned()], "10.200.0.0/20".parse().unwrap(), &Names)
    }

    #[test]
    fn cluster_names_are_answered_here_and_others_forwarded() {
        let nx = Decision::Code(ResponseCode::NXDomain);
        let hello = Decision::Addresses(vec!["10.200.0.1".parse().unwrap()]);
        let nothing = Decision::Addresses(vec![]);
        use RecordType::{A, AAAA, PTR, TXT};
        for (name, kind, want) in [
            ("hello.default.svc.cluster.local.", A, &hello),
            ("HELLO.Default.svc.cluster.LOCAL", A, &hello),
            ("hello.default.svc.cluster.local.", AAAA, &nothing),
            ("hello.default.svc.cluster.local.", TXT, &nothing),
            ("empty.default.svc.cluster.local.", A, &nothing),
            ("other.default.svc.cluster.local.", A, &nx),
            ("example.com.default.svc.cluster.local.", A, &nx),
            ("hello.default.cluster.local.", A, &nx),
            ("cluster.local.", A, &nothing),
            ("svc.cluster.local.", A, &nothing),
            ("example.com.", A, &Decision::Forward),
            ("notcluster.local.", A, &Decision::Forward),
            (".", A, &Decision::Forward),
            ("5.1.200.10.in-addr.arpa.", PTR, &nx),
            ("5.1.0.10.in-addr.arpa.", PTR, &Decision::Forward),
            ("1.5.1.200.10.in-addr.arpa.", PTR, &Decision::Forward),
            ("hello.default.svc.cluster.local.", RecordType::AXFR, &Decision::Code(ResponseCode::Refused)),
        ] {
            assert_eq!(&ask(name, kind), want, "{name} {kind}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_decided_without_panic(
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8),
        ) {
            if let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice)) {
                let query = Query::query(name, RecordType::A);
                let _ = decide(&query, &["cluster.local".to_owned()], "10.200.0.0/20".parse().unwrap(), &Names);
            }
        }
    }
}
