//! Requests that wait while there is no instance.

use std::time::Duration;

use bytes::Bytes;
use gateway::Config;
use http::Request;
use http_body_util::Empty;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::seeded;
use crate::world::{PODS, World, endless, http2, pod};

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

fn resident_bytes() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn ten_thousand_requests_wait_with_their_bodies_unread() {
    const REQUESTS: usize = 10_000;
    let world = World::start(Config { queue_limit: REQUESTS, ..seeded(1) }).await;
    world.service("crowd", 1, json!({})).await;
    let before = resident_bytes();
    let mut clients = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        // In memory: twice as many sockets are more than a process may have.
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let gateway = world.gateway.clone();
        tokio::spawn(async move { gateway.serve(server, ([192, 0, 2, 1], 1).into()).await });
        let head = "POST / HTTP/1.1\r\nhost: crowd.ns.localhost\r\ncontent-length: 1000000\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&[b'x'; 512]).await.unwrap();
        clients.push(client);
    }
    world.loaded("crowd-1", REQUESTS).await;
    // Most of it is the buffers of as many connections.
    let mebibytes = (resident_bytes() - before) >> 20;
    println!("{REQUESTS} waiting requests on connections of their own: {mebibytes} MiB");
    assert!(mebibytes < 320, "{mebibytes} MiB");
    let (status, _) = world.get("crowd.ns.localhost").await;
    assert_eq!(status, 503, "one more is too many");
}

#[tokio::test]
async fn ten_thousand_requests_wait_over_http2() {
    const CONNECTIONS: usize = 100;
    const STREAMS: usize = 100;
    let world = World::start(seeded(1)).await;
    world.service("crowd", 1, json!({})).await;
    let before = resident_bytes();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let sender = http2(world.public).await;
        for _ in 0..STREAMS {
            let mut sender = sender.clone();
            let request = Request::post("http://crowd.ns.localhost/").body(endless("unread")).unwrap();
            calls.spawn(async move { sender.send_request(request).await });
        }
    }
    world.loaded("crowd-1", CONNECTIONS * STREAMS).await;
    // The clients' memory is in it.
    let mebibytes = (resident_bytes() - before) >> 20;
    println!("{} waiting streams: {mebibytes} MiB", CONNECTIONS * STREAMS);
    assert!(mebibytes < 140, "{mebibytes} MiB");
    calls.shutdown().await;
    world.loaded("crowd-1", 0).await;
}
