//! Requests whose instance goes before it has answered.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::seeded;
use crate::world::{CONFIG_MAPS, PODS, Workload, World, echo, full, pod, raw_workload, request, send, text, up_to};

/// An instance that gives `answer` to each request and ends the connection; and how many requests it got.
async fn dying(ip: u8, answer: &'static str) -> (Ipv4Addr, u16, Arc<AtomicUsize>) {
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    let die = move |mut stream: TcpStream| {
        let seen = counted.clone();
        async move {
            if stream.read(&mut [0; 4096]).await? > 0 {
                seen.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes()).await?;
            }
            Ok(())
        }
    };
    let (ip, port) = raw_workload(ip, die).await;
    (ip, port, seen)
}

async fn ask(world: &World, method: &str, body: &str) -> (u16, String) {
    let response = send(world.public, request(method, "dies.ns.localhost", "/", body)).await;
    (response.status().as_u16(), text(response).await)
}

#[tokio::test]
async fn a_request_that_was_not_answered_goes_to_another_instance_if_it_may_be_sent_twice() {
    let world = World::start(seeded(1)).await;
    let (ip, port, seen) = dying(61, "").await;
    let good = Workload::start(62, port, |_| async { full("ok") }).await;
    world.service("dies", port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("dies-1", "bad", Some(ip)));
    world.api.put(PODS, pod("dies-1", "good", Some(good.ip)));
    for method in ["GET", "PUT", "DELETE", "OPTIONS"] {
        let before = seen.load(Ordering::SeqCst);
        while seen.load(Ordering::SeqCst) == before {
            assert_eq!(ask(&world, method, "").await, (200, "ok".into()), "{method}");
        }
    }
    // What an instance may have acted on is not sent again.
    for (method, body) in [("POST", ""), ("PUT", "a body")] {
        let mut answers = Vec::new();
        while !answers.contains(&502) {
            answers.push(ask(&world, method, body).await.0);
        }
        assert!(answers.iter().all(|status| [200, 502].contains(status)), "{method} {answers:?}");
    }
}

#[tokio::test]
async fn tries_are_counted_and_can_be_turned_off() {
    let world = World::start(seeded(1)).await;
    let (ip, port, seen) = dying(63, "").await;
    world.service("dies", port, json!({})).await;
    world.api.put(PODS, pod("dies-1", "bad", Some(ip)));
    for (retries, sent) in [(None, 3), (Some("5"), 6), (Some("0"), 1)] {
        if let Some(retries) = retries {
            world.api.put(CONFIG_MAPS, json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "config-gateway", "namespace": "colibri-system"}, "data": {"max-retries": retries}}));
        }
        // The setting comes by a watch.
        loop {
            let before = seen.swap(0, Ordering::SeqCst);
            let (status, text) = ask(&world, "GET", "").await;
            assert_eq!(status, 502, "{text} after {before}");
            if seen.load(Ordering::SeqCst) == sent {
                break;
            }
            assert!(retries.is_some(), "the default sends a request {} times", seen.load(Ordering::SeqCst));
        }
    }
}

#[tokio::test]
async fn the_beginning_of_an_answer_is_no_reason_to_ask_again() {
    let world = World::start(seeded(1)).await;
    for (number, answer) in ["HTTP/1.1 2", "HTTP/1.1 200 OK\r\nx: ", "nonsense"].into_iter().enumerate() {
        let (ip, port, seen) = dying(64 + number as u8, answer).await;
        world.service("dies", port, json!({})).await;
        let name = format!("p{number}");
        world.api.put(PODS, pod("dies-1", &name, Some(ip)));
        while seen.load(Ordering::SeqCst) == 0 {
            assert_eq!(ask(&world, "GET", "").await.0, 502, "{answer:?}");
        }
        assert_eq!(seen.load(Ordering::SeqCst), 1, "{answer:?}");
        world.api.delete(PODS, &name);
    }
}

#[tokio::test]
async fn a_handshake_that_was_not_answered_goes_to_another_instance() {
    let world = World::start(seeded(1)).await;
    let (ip, port, seen) = dying(70, "").await;
    let good = Workload::start(71, port, |request| async { echo(request, "websocket") }).await;
    world.service("dies", port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("dies-1", "bad", Some(ip)));
    world.api.put(PODS, pod("dies-1", "good", Some(good.ip)));
    let handshake = "GET / HTTP/1.1\r\nhost: dies.ns.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    while seen.load(Ordering::SeqCst) < 3 {
        let mut client = TcpStream::connect(world.public).await.unwrap();
        client.write_all(handshake.as_bytes()).await.unwrap();
        let head = up_to(&mut client, "\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.write_all(b"ping").await.unwrap();
        assert_eq!(up_to(&mut client, "ping").await, "ping");
    }
}

#[tokio::test]
async fn the_same_holds_for_http2() {
    let world = World::start(seeded(1)).await;
    let ip = Ipv4Addr::new(127, 0, 0, 68);
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(AtomicUsize::new(0));
    let counted = seen.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(die_at_headers(stream, counted.clone()));
        }
    });
    let good = Workload::start(69, port, |_| async { full("ok") }).await;
    world.service("dies", port, json!({"portName": "h2c", "containerConcurrency": 1})).await;
    world.api.put(PODS, pod("dies-1", "bad", Some(ip)));
    world.api.put(PODS, pod("dies-1", "good", Some(good.ip)));
    while seen.load(Ordering::SeqCst) < 3 {
        assert_eq!(ask(&world, "GET", "").await, (200, "ok".into()));
    }
    let mut answers = Vec::new();
    while !answers.contains(&502) {
        answers.push(ask(&world, "POST", "").await.0);
    }
    assert!(answers.iter().all(|status| [200, 502].contains(status)), "{answers:?}");
}

/// Speaks HTTP/2 up to the first HEADERS.
async fn die_at_headers(mut stream: TcpStream, seen: Arc<AtomicUsize>) -> std::io::Result<()> {
    const PREFACE_BYTES: usize = 24;
    const HEADERS: u8 = 1;
    stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        stream.read_exact(&mut payload).await?;
        if head[3] == HEADERS {
            seen.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
    }
}
