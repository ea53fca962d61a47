//! Fields by which a client would be somebody else, and hosts by which a request would be for two.

use api::config::Gateway as ClientLimits;
use api::config::gateway::NetworkRange;

use super::{attacked, converse};
use crate::recorder::{Recorder, Seen};

const HOST: &str = "attack.ns.localhost";

async fn seen_with(ip: u8, clients: ClientLimits, fields: &str) -> Seen {
    let recorder = Recorder::start(ip).await;
    let world = attacked(&recorder, clients).await;
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{fields}Connection: close\r\n\r\n");
    let answer = converse(world.public, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    recorder.take().remove(0)
}

const CLAIMS: &str = "X-Forwarded-For: 192.0.2.1\r\nx_forwarded_for: 192.0.2.2\r\nX-FORWARDED-PROTO: https\r\n\
    X-Forwarded-Host: admin.example.com\r\nForwarded: for=192.0.2.3\r\nX-Real-Ip: 192.0.2.4\r\n\
    X-Forwarded_Proto: https\r\nK_Proxy_Request: activator\r\nContent_Length: 9\r\n";

/// CVE-2026-29054, CVE-2026-33433, CVE-2026-39858, CVE-2026-35051, CVE-2026-54763, CVE-2026-54764 (traefik).
#[tokio::test]
async fn a_client_does_not_say_who_it_is() {
    let nominated =
        "Connection: X-Forwarded-For, x-forwarded-proto, Forwarded, Host, Content-Length, X-Hop\r\nX-Hop: 1\r\n";
    let seen = seen_with(211, ClientLimits::default(), &format!("{CLAIMS}{nominated}")).await;
    let rows = [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", HOST),
        ("forwarded", "for=127.0.0.1;host=attack.ns.localhost;proto=http"),
        ("host", HOST),
    ];
    for (name, want) in rows {
        assert_eq!(seen.values(name), [want], "{name}");
    }
    let gone = ["x_forwarded_for", "x-forwarded_proto", "x-real-ip", "k_proxy_request", "content_length", "x-hop"];
    for name in gone.into_iter().chain(["connection"]) {
        assert!(seen.values(name).is_empty(), "{name}: {seen:?}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_says_who_its_clients_are() {
    let range = NetworkRange::parse("127.0.0.0/8").unwrap();
    let clients = ClientLimits { trusted_proxies: vec![range], ..ClientLimits::default() };
    let seen = seen_with(212, clients, CLAIMS).await;
    assert_eq!(seen.values("x-forwarded-for"), ["192.0.2.1, 127.0.0.1"]);
    assert_eq!(seen.values("x-forwarded-proto"), ["https"]);
    assert_eq!(seen.values("x-forwarded-host"), ["admin.example.com"]);
    assert_eq!(seen.values("forwarded"), ["for=192.0.2.3, for=127.0.0.1;host=attack.ns.localhost;proto=http"]);
    assert!(seen.values("x_forwarded_for").is_empty(), "an alias is nobody's");
}

/// Hosts that one server would route by and another one would not; CVE-2026-32695 and CVE-2026-29777 (rules injected by
/// a host or a path).
#[tokio::test]
async fn a_request_is_for_one_host() {
    let recorder = Recorder::start(213).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let rows = [
        ("/", "Host: attack.ns.localhost\r\nHost: other.ns.localhost\r\n", 400),
        ("/", "Host: attack.ns.localhost\r\nhost: attack.ns.localhost\r\n", 400),
        ("/", "Host: other.ns.localhost, attack.ns.localhost\r\n", 400),
        ("/", "Host : attack.ns.localhost\r\n", 400),
        ("/", " Host: attack.ns.localhost\r\n", 400),
        ("/", "X: y\r\n", 400),
        ("/", "Host:\r\n", 400),
        ("/", "Host: user@attack.ns.localhost\r\n", 400),
        ("/", "Host: attack.ns.localhost@other\r\n", 400),
        ("/", "Host: attack.ns.localhost/other\r\n", 400),
        ("/", "Host: attack.ns.localhost:80:80\r\n", 400),
        ("/", "Host: attack.ns.localhost:http\r\n", 400),
        ("/", "Host: attack.ns.localhost:99999\r\n", 400),
        ("/", "Host: attack.ns.localhost..\r\n", 400),
        ("/", "Host: %61ttack.ns.localhost\r\n", 400),
        ("/", "Host: \u{e4}ttack.ns.localhost\r\n", 400),
        ("/", "Host: `attack.ns.localhost`\r\n", 400),
        ("/", "Host: attack.ns.localhost`) || Host(`x\r\n", 400),
        ("http://attack.ns.localhost/", "Host: other.ns.localhost\r\n", 400),
        ("http://other.ns.localhost/", "Host: attack.ns.localhost\r\n", 400),
        ("http://user@attack.ns.localhost/", "Host: attack.ns.localhost\r\n", 400),
        ("http://%61ttack.ns.localhost/", "Host: %61ttack.ns.localhost\r\n", 400),
        ("ftp://attack.ns.localhost/", "Host: attack.ns.localhost\r\n", 400),
        ("attack.ns.localhost", "Host: attack.ns.localhost\r\n", 400),
        ("//attack.ns.localhost/", "Host: nobody.ns.localhost\r\n", 404),
        ("/", "Host: attack.ns.svc.cluster.local\r\n", 404),
        ("/", "Host: xn--attack.ns.localhost\r\n", 404),
        ("/", "Host: ATTACK.NS.LocalHost.:8080\r\n", 200),
        ("/", "Host: attack.ns.localhost:\r\n", 200),
        ("HTTP://Attack.ns.localhost:80/", "Host: attack.ns.localhost\r\n", 200),
        ("//other.ns.localhost/", "Host: attack.ns.localhost\r\n", 200),
        ("/`) || Host(`other`)", "Host: attack.ns.localhost\r\n", 400),
    ];
    for (target, fields, want) in rows {
        let request = format!("GET {target} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        let answer = converse(world.public, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want} ")), "{target} {fields:?}: {answer}");
        let seen = recorder.take();
        assert_eq!(seen.len(), usize::from(want == 200), "{target} {fields:?}");
        assert!(seen.iter().all(|seen| seen.values("host").len() == 1 && seen.target.starts_with('/')), "{seen:?}");
    }
    let old = converse(world.public, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 400 ") && old.contains("no valid host"), "{old}");
}
