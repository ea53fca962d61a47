//! Requests that wait while there is no instance.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use gateway::Config;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;

use crate::seeded;
use crate::world::{PODS, World, http2, pod, up_to};

/// A pod of `stuck-1` whose container is in `state`.
fn stuck(state: Value) -> Value {
    let mut stuck = pod("stuck-1", "p", None);
    stuck["spec"]["nodeName"] = json!("n");
    let container =
        json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state});
    stuck["status"] = json!({"containerStatuses": [container]});
    stuck
}

#[tokio::test(start_paused = true)]
async fn a_deadline_names_the_stage_that_the_instance_is_in() {
    let world = World::start(seeded(1)).await;
    world.service("stuck", 1, json!({"timeoutSeconds": 2})).await;
    let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
    let rows = [
        (None, "no instance has been created"),
        (Some(waiting("ErrImagePull")), "its instance is pulling an image (ErrImagePull)"),
        (Some(waiting("CrashLoopBackOff")), "its instance is starting (CrashLoopBackOff)"),
        (Some(json!({"running": {}})), "its instance runs and is not ready"),
    ];
    for (state, stage) in rows {
        if let Some(state) = state {
            world.api.put(PODS, stuck(state));
        }
        let (status, body) = world.get("stuck.ns.localhost").await;
        let want = format!("request timeout: no instance was ready within 2s: {stage} (platform error, request ");
        assert!(status == 504 && body.starts_with(&want), "{status} {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_in_the_queue_says_that_all_instances_are_busy() {
    let world = World::start(seeded(1)).await;
    let workload = crate::world::Workload::start(161, 0, |_| std::future::pending()).await;
    world.service("stuck", workload.port, json!({"timeoutSeconds": 2, "containerConcurrency": 1})).await;
    // The first one gets the slot after a second, and keeps it beyond the second one's deadline.
    let first = world.get("stuck.ns.localhost");
    let second = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.get("stuck.ns.localhost").await
    };
    let instance = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.api.put(PODS, pod("stuck-1", "p", Some(workload.ip)));
    };
    let (first, second, ()) = tokio::join!(first, second, instance);
    assert!(first.1.contains("the service gave no answer within 2s"), "{first:?}");
    assert!(second.1.contains("all instances are busy"), "{second:?}");
}

#[tokio::test]
async fn a_client_that_goes_gives_up_its_place() {
    let world = World::start(seeded(1)).await;
    world.service("zero", 1, json!({})).await;
    let mut plain = TcpStream::connect(world.public).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: zero.ns.localhost\r\n\r\n").await.unwrap();
    let mut sender = http2(world.public).await;
    let request = || Request::get("http://zero.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
    let (reset, kept) = (sender.send_request(request()), tokio::spawn(sender.send_request(request())));
    let reset = tokio::spawn(reset);
    world.loaded("zero-1", 3).await;
    // One stream is reset; the other one of its connection waits on.
    reset.abort();
    world.loaded("zero-1", 2).await;
    drop(plain);
    world.loaded("zero-1", 1).await;
    kept.abort();
    world.loaded("zero-1", 0).await;
}

#[tokio::test]
async fn a_client_that_goes_with_its_body_unread_gives_up_its_place() {
    let world = World::start(seeded(1)).await;
    world.service("zero", 1, json!({})).await;
    let head = "POST / HTTP/1.1\r\nhost: zero.ns.localhost\r\ncontent-length: 1000000\r\n\r\n";
    let unread = [b'x'; 50_000];
    for used in [false, true] {
        let mut client = TcpStream::connect(world.public).await.unwrap();
        if used {
            // An answer of the gateway's own, after which the connection is kept.
            client.write_all(b"GET / HTTP/1.1\r\nhost: none.localhost\r\n\r\n").await.unwrap();
            up_to(&mut client, "\r\n\r\n").await;
        }
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&unread).await.unwrap();
        world.loaded("zero-1", 1).await;
        drop(client);
        world.loaded("zero-1", 0).await;
    }
}

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A client that has sent these bytes, and then neither sends nor reads; it takes no memory.
struct Still(&'static [u8]);

impl AsyncRead for Still {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.0.split_at(self.0.len().min(buf.remaining()));
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Still {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Has `requests` wait that come over `connections` of which each sends `bytes`; the gateway's memory for them.
async fn crowd(bytes: Vec<u8>, connections: usize, requests: usize) -> usize {
    let world = World::start(Config { queue_limit: requests, ..seeded(1) }).await;
    world.service("crowd", 1, json!({})).await;
    let bytes = &*bytes.leak();
    let before = resident_bytes();
    for _ in 0..connections {
        let gateway = world.gateway.clone();
        tokio::spawn(async move { gateway.serve(Still(bytes), ([192, 0, 2, 1], 1).into()).await });
    }
    world.loaded("crowd-1", requests).await;
    let used = resident_bytes() - before;
    let (status, _) = world.get("crowd.ns.localhost").await;
    assert_eq!(status, 503, "one more is too many");
    println!("{requests} requests wait on {connections} connections in {} MB", used / 1_000_000);
    used
}

#[tokio::test]
async fn ten_thousand_requests_wait_with_their_bodies_unread() {
    let head = "POST / HTTP/1.1\r\nhost: crowd.ns.localhost\r\nuser-agent: curl/8.0\r\naccept: */*\r\n\
        content-length: 1000000\r\n\r\n";
    let used = crowd([head.as_bytes(), &[b'x'; 100_000]].concat(), 10_000, 10_000).await;
    assert!(used < 100_000_000, "{used}");
}

#[tokio::test]
async fn ten_thousand_requests_wait_over_http2() {
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    };
    let mut bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat();
    for number in 0..100 {
        // POST, http, /, and the host as a literal; then a part of the body.
        let head = [&[0x83, 0x86, 0x84, 0x01, 18], &b"crowd.ns.localhost"[..]].concat();
        bytes.extend(frame(1, 4, 2 * number + 1, &head));
        bytes.extend(frame(0, 0, 2 * number + 1, &[b'x'; 512]));
    }
    let used = crowd(bytes, 100, 10_000).await;
    assert!(used < 100_000_000, "{used}");
}
