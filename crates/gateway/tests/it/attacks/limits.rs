//! Clients that send too much, or too slowly.

use std::time::Duration;

use api::config::Gateway as ClientLimits;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{LONG, attacked, converse};
use crate::recorder::Recorder;
use crate::world::{CONFIG_MAPS, until};

const HEAD: &str = "GET / HTTP/1.1\r\nHost: attack.ns.localhost\r\n";

#[tokio::test]
async fn heads_that_are_too_large_are_told_by_what() {
    let recorder = Recorder::start(231).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let target = |bytes: usize| {
        format!("GET /{} HTTP/1.1\r\nHost: attack.ns.localhost\r\nConnection: close\r\n\r\n", "a".repeat(bytes - 1))
    };
    let fields = |count: usize| format!("{HEAD}{}Connection: close\r\n\r\n", "X: y\r\n".repeat(count - 2));
    let rows = [
        (target(16 * 1024), "200 ", "ok"),
        (target(16 * 1024 + 1), "414 ", "the request's target is longer than 16384 bytes"),
        (format!("GET /{}", "a".repeat(1_000_000)), "414 ", "the request's target is longer than 16384 bytes"),
        (fields(100), "200 ", "ok"),
        (fields(101), "431 ", "the request has more than 100 header fields"),
        (format!("{HEAD}X: {}\r\n\r\n", "a".repeat(65_536)), "431 ", "the request's head is longer than 65536 bytes"),
        (format!("{HEAD}X: {}", "a".repeat(1_000_000)), "431 ", "the request's head is longer than 65536 bytes"),
        (format!("{HEAD}\r\n"), "200 ", "ok"),
    ];
    for (request, status, text) in rows {
        let request = if status == "200 " && !request.contains("close") {
            request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")
        } else {
            request
        };
        let answer = converse(world.public, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(text), "{text}: {answer}");
    }
    let metrics = world.gateway.metrics();
    assert!(metrics.contains("gateway_refused_total{response_code=\"414\"} 2"), "{metrics}");
}

fn short() -> ClientLimits {
    ClientLimits {
        header_timeout: Duration::from_secs(3),
        body_timeout: Duration::from_secs(5),
        body_progress_bytes: 10,
        idle_timeout: Duration::from_secs(20),
        ..ClientLimits::default()
    }
}

/// What comes back, and after how many seconds of the tests' own clock the connection ended.
async fn patient(stream: &mut TcpStream) -> (String, u64) {
    let (start, mut answer) = (Instant::now(), Vec::new());
    let _ = stream.read_to_end(&mut answer).await;
    (String::from_utf8_lossy(&answer).into_owned(), start.elapsed().as_secs())
}

/// Slowloris: a head that never ends; also behind a request, and byte by byte.
#[tokio::test(start_paused = true)]
async fn a_slow_head_is_408() {
    let recorder = Recorder::start(232).await;
    let world = attacked(&recorder, short()).await;
    let late = "the request's head was not complete within 3s (client error";
    for begun in ["G", HEAD, "PRI * HTTP/2.0\r\n"] {
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let (answer, seconds) = patient(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(late), "{begun:?}: {answer}");
        // One more to read what the client might still send.
        assert!((3..=4).contains(&seconds), "{begun:?}: {seconds}");
    }
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(format!("{HEAD}\r\n{HEAD}").as_bytes()).await.unwrap();
    let (answer, _) = patient(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 408 "), "{answer}");
    let stream = TcpStream::connect(world.public).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let drip = tokio::spawn(async move {
        for byte in HEAD.bytes().chain(std::iter::repeat(b'x')) {
            if writing.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let mut answer = String::new();
    let start = Instant::now();
    let _ = reading.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(start.elapsed() < Duration::from_secs(6), "the time runs from the first byte: {:?}", start.elapsed());
    drip.abort();
}

/// R.U.D.Y.: a body that comes as slowly as it may.
#[tokio::test(start_paused = true)]
async fn a_slow_body_is_408() {
    let recorder = Recorder::start(233).await;
    let world = attacked(&recorder, short()).await;
    let post = "POST / HTTP/1.1\r\nHost: attack.ns.localhost\r\n";
    for rest in ["Content-Length: 100\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhel"] {
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        stream.write_all(format!("{post}{rest}").as_bytes()).await.unwrap();
        let (answer, seconds) = patient(&mut stream).await;
        let late = "fewer than 10 bytes of the request's body came within 5s (client error";
        assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains(late), "{answer}");
        assert!((5..=6).contains(&seconds), "{seconds}");
    }
    // One byte in 0.4 seconds is enough; one in four is not.
    for (pause, want) in [(Duration::from_millis(400), "200"), (Duration::from_secs(4), "408")] {
        let stream = TcpStream::connect(world.public).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        writing.write_all(format!("{post}Connection: close\r\nContent-Length: 60\r\n\r\n").as_bytes()).await.unwrap();
        let drip = tokio::spawn(async move {
            for _ in 0..60 {
                tokio::time::sleep(pause).await;
                if writing.write_all(b"x").await.is_err() {
                    return;
                }
            }
            std::future::pending().await
        });
        let mut answer = String::new();
        let _ = reading.read_to_string(&mut answer).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {want} ")), "{pause:?}: {answer}");
        drip.abort();
    }
    assert_eq!(recorder.take().len(), 1);
    until(|| world.load("attack-1") == 0).await;
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed() {
    let recorder = Recorder::start(234).await;
    let world = attacked(&recorder, short()).await;
    let mut silent = TcpStream::connect(world.public).await.unwrap();
    assert_eq!(patient(&mut silent).await, (String::new(), 20));
    let mut once = TcpStream::connect(world.public).await.unwrap();
    once.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
    let (answer, seconds) = patient(&mut once).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer}");
    assert_eq!(seconds, 20);
    let mut http2 = TcpStream::connect(world.public).await.unwrap();
    http2.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    assert_eq!(patient(&mut http2).await.1, 20);
}

/// A request in flight is not idle, however long it takes.
#[tokio::test(start_paused = true)]
async fn a_long_answer_outlasts_the_idle_time() {
    let recorder = Recorder::answering(235, b"").await;
    let world = crate::world::World::start(gateway::Config { clients: short(), ..crate::seeded(1) }).await;
    world.service("attack", recorder.port, json!({"timeoutSeconds": 100})).await;
    world.api.put(crate::world::PODS, crate::world::pod("attack-1", "p", Some(recorder.ip)));
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(format!("{HEAD}\r\n").as_bytes()).await.unwrap();
    let mut first = [0; 12];
    let start = Instant::now();
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!((&first, start.elapsed().as_secs()), (b"HTTP/1.1 504", 100));
}

#[tokio::test]
async fn one_client_does_not_take_all_connections() {
    let recorder = Recorder::start(236).await;
    let world = attacked(&recorder, ClientLimits { connections_per_client: 2, ..ClientLimits::default() }).await;
    let hello = format!("{HEAD}\r\n");
    let mut kept = Vec::new();
    while kept.len() < 2 {
        // The connection before may not have ended yet.
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        stream.write_all(hello.as_bytes()).await.unwrap();
        if stream.read(&mut [0; 1024]).await.is_ok_and(|bytes| bytes > 0) {
            kept.push(stream);
        }
    }
    assert_eq!(converse(world.public, hello.as_bytes()).await, "");
    drop(kept.pop());
    until_answered(world.public, &hello).await;
    // The settings are the operator's, while the platform runs.
    let map = json!({"metadata": {"name": "config-gateway", "namespace": "colibri-system"},
        "data": {"max-connections-per-client": "100", "max-headers": "1"}});
    world.api.put(CONFIG_MAPS, map);
    let refused = async {
        while !converse(world.public, format!("{HEAD}X: y\r\n\r\n").as_bytes()).await.contains("more than 1 header") {}
    };
    timeout(LONG, refused).await.unwrap();
}

async fn until_answered(to: std::net::SocketAddr, request: &str) {
    let answered = async {
        loop {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            if stream.read(&mut [0; 1024]).await.is_ok_and(|bytes| bytes > 0) {
                return;
            }
        }
    };
    timeout(LONG, answered).await.unwrap();
}
