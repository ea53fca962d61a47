//! What listens inside a pod: asked of the kernel when a probe finds nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a listening socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";
/// Ports that a text names at most.
const NAMED_PORTS: usize = 5;

/// The listening TCP sockets of that process's network namespace; `None` when it cannot be asked.
pub fn of_process(pid: i32) -> Option<Vec<SocketAddr>> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).ok();
    let mut found = parse(&read("tcp")?);
    found.extend(parse(&read("tcp6").unwrap_or_default()));
    Some(found)
}

/// Why nobody answers at `port` of the pod's address, and what to do; `None` when somebody listens there.
pub fn explain(port: u16, listening: &[SocketAddr]) -> Option<String> {
    let here = || listening.iter().filter(|socket| socket.port() == port);
    if here().any(|socket| !socket.ip().is_loopback()) {
        return None;
    }
    if let Some(socket) = here().next() {
        return Some(format!(
            "the program listens on {socket} only, where nothing outside the container can reach it; let it listen on 0.0.0.0:{port}"
        ));
    }
    let mut others: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
    others.sort_unstable();
    others.dedup();
    Some(match others.first() {
        None => format!("nothing listens on port {port} yet; let the program listen on 0.0.0.0 and the port in $PORT"),
        Some(other) => {
            let list: Vec<String> = others.iter().take(NAMED_PORTS).map(u16::to_string).collect();
            format!(
                "nothing listens on port {port}, but something does on {}; let the program listen on the port in $PORT, or set ports: [{{containerPort: {other}}}]",
                list.join(", ")
            )
        }
    })
}

/// Source: `Documentation/networking/proc_net_tcp.rst`: local address, remote address, state.
fn parse(text: &str) -> Vec<SocketAddr> {
    let socket = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let state = fields.nth(1)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        (state == LISTEN).then_some(SocketAddr::new(parse_ip(address)?, port))
    };
    text.lines().filter_map(socket).collect()
}

/// Words of 32 bits in the machine's own order.
fn parse_ip(text: &str) -> Option<IpAddr> {
    let word = |index: usize| u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            let address = Ipv6Addr::from(bytes);
            Some(address.to_ipv4_mapped().map_or(address.into(), Into::into))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n\
            \u{20}  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n\
            \u{20}  1: 0200000A:1F91 0100000A:C350 01 00000000:00000000 00:00000000 00000000     0\n\
            \u{20}  2: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 0\n\
            \u{20}  3: 0000000000000000FFFF00000100007F:0BB9 00000000000000000000000000000000:0000 0A 0\n";
        let wanted = ["127.0.0.1:8080", "[::]:3000", "127.0.0.1:3001"].map(|text| text.parse().unwrap());
        assert_eq!(parse(text), wanted);
        assert!(parse("nonsense\n0: x:y z 0A").is_empty());
    }

    #[test]
    fn who_does_not_listen_is_told_where_to() {
        let sockets = |list: &[&str]| -> Vec<SocketAddr> { list.iter().map(|text| text.parse().unwrap()).collect() };
        let rows: [(&[&str], Option<&str>); 6] = [
            (&["0.0.0.0:8080"], None),
            (&["[::]:8080", "127.0.0.1:8080"], None),
            (&["127.0.0.1:8080"], Some("listens on 127.0.0.1:8080 only")),
            (&["[::1]:8080", "0.0.0.0:9"], Some("listens on [::1]:8080 only")),
            (&[], Some("nothing listens on port 8080 yet")),
            (&["0.0.0.0:3000", "127.0.0.1:2999"], Some("but something does on 2999, 3000")),
        ];
        for (listening, wanted) in rows {
            let found = explain(8080, &sockets(listening));
            assert_eq!(found.is_some(), wanted.is_some(), "{listening:?}: {found:?}");
            assert!(found.unwrap_or_default().contains(wanted.unwrap_or_default()), "{listening:?}");
        }
    }
}
