//! Workloads that answer with what would mislead the client, or the gateway itself.

use api::config::Gateway as ClientLimits;

use super::{attacked, converse};
use crate::recorder::Recorder;

/// What the client gets where the workload answers with these bytes, and the next client after that.
async fn answered(ip: u8, answer: &'static [u8]) -> (String, String) {
    let good = Recorder::start(ip).await;
    let world = attacked(&good, ClientLimits::default()).await;
    let bad = Recorder::answering(ip, answer).await;
    world.service("bad", bad.port, serde_json::json!({})).await;
    world.api.put(crate::world::PODS, crate::world::pod("bad-1", "bad", Some(bad.ip)));
    let request = b"GET / HTTP/1.1\r\nHost: bad.ns.localhost\r\nConnection: close\r\n\r\n";
    let first = converse(world.public, request).await;
    let second = converse(world.public, request).await;
    assert_eq!(world.get("attack.ns.localhost").await.0, 200);
    (first, second)
}

#[tokio::test]
async fn answers_that_are_none_are_502() {
    let rows: [(&str, &'static [u8]); 7] = [
        ("no HTTP", b"SSH-2.0-x\r\n\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        ("no length", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc"),
        ("folded", b"HTTP/1.1 200 OK\r\nX: y\r\n z: q\r\nContent-Length: 0\r\n\r\n"),
        ("NUL", b"HTTP/1.1 200 OK\r\nX: y\0z\r\nContent-Length: 0\r\n\r\n"),
        ("white space before the colon", b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n"),
        (
            "101 that nobody asked for",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nhello",
        ),
    ];
    for (attack, answer) in rows {
        let (first, second) = answered(221, answer).await;
        assert!(first.starts_with("HTTP/1.1 502 ") && second.starts_with("HTTP/1.1 502 "), "{attack}: {first}");
    }
}

/// Response splitting: bytes behind an answer are not the next one's answer.
#[tokio::test]
async fn what_follows_an_answer_is_nobodys() {
    const SPLIT: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let (first, second) = answered(222, SPLIT).await;
    for answer in [first, second] {
        assert!(answer.ends_with("\r\n\r\nok") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    }
}

/// Of two framings of an answer the client gets one.
#[tokio::test]
async fn an_answer_has_one_framing() {
    const BOTH: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let (first, second) = answered(223, BOTH).await;
    for answer in [first, second] {
        let lower = answer.to_ascii_lowercase();
        let framings = lower.matches("content-length:").count() + lower.matches("transfer-encoding:").count();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("ok") && framings == 1, "{answer}");
        assert!(!lower.contains("content-length: 50"), "{answer}");
    }
}

#[tokio::test]
async fn fields_of_the_hop_stay_on_it() {
    const HOP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\
        Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\nok";
    let (first, _) = answered(224, HOP).await;
    let lower = first.to_ascii_lowercase();
    for field in ["x-hop", "keep-alive", "proxy-authenticate", "upgrade"] {
        assert!(!lower.contains(field), "{field}: {first}");
    }
    assert!(lower.contains("x-kept: 1"), "{first}");
}

#[tokio::test]
async fn endless_heads_end() {
    let heads: &'static [u8] =
        Box::leak([b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(200_000)].concat().into_boxed_slice());
    let long: &'static [u8] =
        Box::leak([b"HTTP/1.1 200 OK\r\nX: ".to_vec(), b"y".repeat(4_000_000)].concat().into_boxed_slice());
    for (attack, answer) in [("fields", heads), ("one field", long)] {
        let (first, _) = answered(225, answer).await;
        assert!(first.starts_with("HTTP/1.1 502 "), "{attack}: {}", &first[..first.len().min(200)]);
    }
}

/// Interim answers put no end off.
#[tokio::test]
async fn endless_interim_answers_end_with_the_revisions_timeout() {
    let interim: &'static [u8] =
        Box::leak(b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n".repeat(50_000).into_boxed_slice());
    let good = Recorder::start(226).await;
    let world = attacked(&good, ClientLimits::default()).await;
    let bad = Recorder::answering(226, interim).await;
    world.service("bad", bad.port, serde_json::json!({"timeoutSeconds": 1})).await;
    world.api.put(crate::world::PODS, crate::world::pod("bad-1", "bad", Some(bad.ip)));
    let answer = converse(world.public, b"GET / HTTP/1.1\r\nHost: bad.ns.localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.contains("HTTP/1.1 504 "), "{}", &answer[..answer.len().min(200)]);
    world.loaded("bad-1", 0).await;
}
