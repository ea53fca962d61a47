//! The gateway end to end: a fake API server, workloads on loopback, real sockets.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod at_zero;
mod attacks;
mod collector;
mod contract;
mod differential;
mod fake_api;
mod instances;
mod protocols;
mod recorder;
mod retries;
mod telemetry;
mod timeouts;
mod tls;
mod world;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base::{PodId, RevisionId, RouteId};
use bytes::Bytes;
use client::link::GatewayLink;
use futures::future::join_all;
use gateway::Config;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use world::{
    CONFIG_MAPS, PODS, REVISIONS, ROUTES, Workload, World, echo, full, pod, request, revision, send, text, until,
};

fn seeded(seed: u64) -> Config {
    Config { seed, grace: Duration::from_secs(5), ..Config::default() }
}

/// 200 requests at once, no instance, a hard limit, three instances that come up after the poke.
async fn burst_from_zero(seed: u64) {
    let world = World::start(seeded(seed)).await;
    let slow = |_| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        full("ok")
    };
    let first = Workload::start(2, 0, slow).await;
    let port = first.port;
    let mut workloads = vec![first];
    for ip in 3..5 {
        workloads.push(Workload::start(ip, port, slow).await);
    }
    world.service("burst", port, json!({"containerConcurrency": 10})).await;
    let api = world.api.clone();
    *world.autoscaler.on_poke.lock() = Some(Box::new(move |revision| {
        for ip in 2..5_u8 {
            api.put(PODS, pod(&revision.name, &format!("p{ip}"), Some(Ipv4Addr::new(127, 0, 0, ip))));
        }
    }));
    let responses = join_all((0..200).map(|_| send(world.public, request("GET", "burst.ns.localhost", "/", "")))).await;
    let mut cold = 0;
    for response in responses {
        assert_eq!(response.status(), 200);
        cold += usize::from(response.headers()["server-timing"].to_str().unwrap().contains("cold"));
        assert_eq!(text(response).await, "ok");
    }
    assert!(cold > 0, "Server-Timing names the cold start");
    for workload in &workloads {
        let most = workload.most.load(Ordering::SeqCst);
        assert!(most <= 10, "seed {seed}: {most} at once where 10 are allowed");
    }
    assert!(world.autoscaler.pokes.load(Ordering::SeqCst) >= 1);
    world.loaded("burst-1", 0).await;
    let metrics = world.gateway.metrics();
    assert!(metrics.contains("response_code_class=\"2xx\",protocol=\"http1\"} 200"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_requests_at_zero_instances_are_all_answered_within_the_limit() {
    for seed in 0..4 {
        burst_from_zero(seed).await;
    }
}

#[tokio::test]
async fn an_instance_that_refuses_loses_no_request() {
    let world = World::start(seeded(1)).await;
    let echo = |request: Request<hyper::body::Incoming>| async {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        full(String::from_utf8_lossy(&body))
    };
    let mut bad = Workload::start(12, 0, echo).await;
    let good = Workload::start(13, bad.port, echo).await;
    world.service("refuse", bad.port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("refuse-1", "bad", Some(bad.ip)));
    world.api.put(PODS, pod("refuse-1", "good", Some(good.ip)));
    // Both are in rotation once both have served.
    while bad.served.load(Ordering::SeqCst) == 0 || good.served.load(Ordering::SeqCst) == 0 {
        join_all((0..4).map(|_| world.get("refuse.ns.localhost"))).await;
    }
    bad.refuse().await;
    let posts = (0..40).map(|n| send(world.public, request("POST", "refuse.ns.localhost", "/", &format!("body {n}"))));
    for (n, response) in join_all(posts).await.into_iter().enumerate() {
        assert_eq!((response.status().as_u16(), text(response).await), (200, format!("body {n}")));
    }
}

/// A workload that closes each connection after one response, without having said so.
async fn closing_workload(ip: u8) -> (Ipv4Addr, u16) {
    let ip = Ipv4Addr::new(127, 0, 0, ip);
    let listener = tokio::net::TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                if stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    (ip, port)
}

#[tokio::test]
async fn a_connection_that_the_workload_closed_meanwhile_is_not_an_error() {
    let world = World::start(seeded(1)).await;
    let (ip, port) = closing_workload(21).await;
    world.service("stale", port, json!({})).await;
    world.api.put(PODS, pod("stale-1", "p", Some(ip)));
    for _ in 0..20 {
        assert_eq!(world.get("stale.ns.localhost").await, (200, "ok".into()));
    }
}

#[tokio::test]
async fn a_client_that_goes_frees_its_slot_and_cancels_the_workload() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(31, 0, |_| std::future::pending()).await;
    world.service("gone", workload.port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("gone-1", "p", Some(workload.ip)));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: gone.ns.localhost\r\n\r\n").await.unwrap();
        streams.push(stream);
    }
    world.loaded("gone-1", 3).await;
    until(|| workload.now.load(Ordering::SeqCst) == 1).await;
    drop(streams);
    world.loaded("gone-1", 0).await;
    until(|| workload.now.load(Ordering::SeqCst) == 0).await;
    assert_eq!(workload.most.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(41, 0, |request| async {
        let frames = request.into_body().into_data_stream();
        let frames = futures::StreamExt::map(frames, |data| Ok(Frame::data(data.unwrap())));
        let last = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        let frames = futures::StreamExt::chain(frames, futures::stream::iter([Ok(Frame::trailers(last))]));
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
        response
    })
    .await;
    world.service("stream", workload.port, json!({})).await;
    world.api.put(PODS, pod("stream-1", "p", Some(workload.ip)));
    let (sender, chunks) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, std::convert::Infallible>>();
    let request = Request::builder()
        .method("POST")
        .header("host", "stream.ns.localhost")
        .header("te", "trailers")
        .body(StreamBody::new(chunks));
    sender.unbounded_send(Ok(Frame::data(Bytes::from_static(b"a")))).unwrap();
    let mut body = send(world.public, request.unwrap()).await.into_body();
    // Each part is there before the next is sent.
    for part in ["a", "b", "c"] {
        if part != "a" {
            sender.unbounded_send(Ok(Frame::data(Bytes::from(part)))).unwrap();
        }
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part);
    }
    drop(sender);
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["x-sum"], "7");
}

#[tokio::test]
async fn an_upgrade_is_tunnelled_and_counts_as_in_flight() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(51, 0, |request| async {
        assert_eq!(request.headers()["upgrade"], "echo");
        echo(request, "echo")
    })
    .await;
    world.service("ws", workload.port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("ws-1", "p", Some(workload.ip)));
    let mut asked = request("GET", "ws.ns.localhost", "/", "");
    asked.headers_mut().insert("connection", HeaderValue::from_static("Upgrade"));
    asked.headers_mut().insert("upgrade", HeaderValue::from_static("echo"));
    let response = send(world.public, asked).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()["upgrade"], "echo");
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!((&buffer, world.load("ws-1")), (b"ping", 1));
    drop(stream);
    world.loaded("ws-1", 0).await;
}

#[tokio::test]
async fn idle_instances_retire_at_once_and_busy_ones_when_they_are_done() {
    let world = World::start(seeded(1)).await;
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let handler = move |_| {
        let held = held.clone();
        async move {
            held.notified().await;
            full("done")
        }
    };
    let first = Workload::start(61, 0, handler.clone()).await;
    let second = Workload::start(62, first.port, handler).await;
    world.service("retire", first.port, json!({"containerConcurrency": 1})).await;
    world.api.put(PODS, pod("retire-1", "first", Some(first.ip)));
    let public = world.public;
    let call =
        tokio::spawn(async move { text(send(public, request("GET", "retire.ns.localhost", "/", "")).await).await });
    until(|| first.now.load(Ordering::SeqCst) == 1).await;
    world.api.put(PODS, pod("retire-1", "second", Some(second.ip)));
    let id = RevisionId::new("ns", "retire-1");
    let retire = |count| world.gateway.retire(id.clone(), count, Duration::from_secs(600));
    // The second is known once it can be retired; the first, which is busy, is never chosen before it.
    until(|| world.gateway.instances(&id) == 2).await;
    let idle = retire(1).await;
    assert_eq!(idle, [PodId::new("ns", "second")]);
    let rest = tokio::spawn(retire(5));
    tokio::task::yield_now().await;
    assert!(!rest.is_finished());
    release.notify_waiters();
    assert_eq!(call.await.unwrap(), "done");
    // The second was not deleted: whoever asked first may be gone, so it is named again.
    assert_eq!(rest.await.unwrap(), [PodId::new("ns", "second"), PodId::new("ns", "first")]);
}

#[tokio::test]
async fn a_wait_for_a_route_ends_with_the_route() {
    use client::link::GatewayLink;
    let world = World::start(seeded(3)).await;
    let workload = Workload::start(63, 0, |_| async { full("here") }).await;
    world.service("brief", workload.port, json!({})).await;
    let later = tokio::spawn(world.gateway.programmed(RouteId::new("ns", "brief"), 2));
    let other = tokio::spawn(world.gateway.programmed(RouteId::new("ns", "to-come"), 1));
    tokio::task::yield_now().await;
    assert!(!later.is_finished(), "its second generation is not there yet");
    world.api.delete(ROUTES, "brief");
    later.await.unwrap();
    assert!(!other.is_finished(), "a Route that was never there may still come");
    let traffic = json!([{"revisionName": "brief-1", "percent": 100}]);
    world.route("to-come", 1, traffic, json!({})).await;
    other.await.unwrap();
}

/// A request that asks for the tag `next`.
fn tagged(host: &str) -> Request<Full<Bytes>> {
    let mut request = request("GET", host, "/", "");
    request.headers_mut().insert("knative-serving-tag", HeaderValue::from_static("next"));
    request
}

#[tokio::test]
async fn shares_tags_and_audiences() {
    let world = World::start(seeded(5)).await;
    let old = Workload::start(71, 0, |_| async { full("old") }).await;
    let new = Workload::start(72, 0, |request| async move {
        let default = request.headers().contains_key("knative-serving-default-route");
        full(if default { "new by default" } else { "new" })
    })
    .await;
    for (name, workload) in [("old", &old), ("new", &new)] {
        world.api.put(REVISIONS, revision(name, workload.port, json!({})));
        world.api.put(PODS, pod(name, name, Some(workload.ip)));
    }
    let traffic = json!([{"revisionName": "old", "percent": 80},
        {"revisionName": "new", "percent": 20, "tag": "next", "url": "http://next-split.ns.localhost"}]);
    world.route("split", 1, traffic, json!({})).await;
    let mut news = 0;
    for _ in 0..200 {
        news += usize::from(world.get("split.ns.localhost:8080").await.1 == "new");
    }
    assert!((20..=60).contains(&news), "{news} of 200 went to the target of 20 %");
    assert_eq!(world.get("Next-Split.ns.localhost").await.1, "new");
    let mut by_tag = 0;
    for _ in 0..50 {
        by_tag += usize::from(text(send(world.public, tagged("split.ns.localhost")).await).await == "new");
    }
    assert!(by_tag < 40, "the header counts only where it is switched on: {by_tag} of 50");
    let features = json!({"metadata": {"name": "config-features", "namespace": "colibri-system"},
        "data": {"tag-header-based-routing": "Enabled"}});
    world.api.put(CONFIG_MAPS, features);
    let mut in_row = 0;
    let start = Instant::now();
    while in_row < 20 {
        assert!(start.elapsed() < Duration::from_secs(30), "the header has no effect");
        let new = text(send(world.public, tagged("split.ns.localhost")).await).await == "new";
        in_row = if new { in_row + 1 } else { 0 };
    }
    let all_new = json!([{"revisionName": "new", "percent": 100}]);
    world.route("split", 2, all_new.clone(), json!({})).await;
    assert_eq!(text(send(world.public, tagged("split.ns.localhost")).await).await, "new by default");
    assert_eq!(world.get("next-split.ns.localhost").await.0, 404);
    assert_eq!(world.get("split.ns.svc.cluster.local").await.0, 404);
    for host in ["split.ns.svc.cluster.local", "split.ns.svc", "split.ns", "split.ns.localhost"] {
        assert_eq!(send(world.inside, request("GET", host, "/", "")).await.status(), 200, "{host}");
    }
    let private = json!({"networking.knative.dev/visibility": "cluster-local"});
    world.route("split", 3, all_new, private).await;
    assert_eq!(world.get("split.ns.localhost").await.0, 404);
    assert_eq!(send(world.inside, request("GET", "split.ns", "/", "")).await.status(), 200);
}

#[tokio::test]
async fn what_another_gateway_chose_is_named_first_if_nobody_deletes_it() {
    let world = World::start(seeded(9)).await;
    let workload = Workload::start(77, 0, |_| async { full("ok") }).await;
    world.service("chosen", workload.port, json!({})).await;
    for name in ["a", "b", "c"] {
        world.api.put(PODS, pod("chosen-1", name, Some(workload.ip)));
    }
    let revision = RevisionId::new("ns", "chosen-1");
    until(|| world.gateway.instances(&revision) == 3).await;
    world.gateway.retire_pods(&revision, &[PodId::new("ns", "b")], Duration::ZERO).await;
    assert_eq!(world.gateway.instances(&revision), 2);
    let first = world.gateway.retire(revision, 1, Duration::ZERO).await;
    assert_eq!(first, [PodId::new("ns", "b")]);
}

#[tokio::test]
async fn traffic_moves_only_to_a_revision_that_is_known() {
    let world = World::start(seeded(8)).await;
    let one = Workload::start(75, 0, |_| async { full("one") }).await;
    let two = Workload::start(76, one.port, |_| async { full("two") }).await;
    world.service("late", one.port, json!({})).await;
    world.api.put(PODS, pod("late-1", "one", Some(one.ip)));
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(world.get("late.ns.localhost").await, ok("one"));
    // The Route is seen before the Revision; what comes after it on the same watch shows that it was seen.
    let status = json!({"observedGeneration": 2, "url": "http://late.ns.localhost",
        "traffic": [{"revisionName": "late-2", "percent": 100}]});
    let route = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"name": "late", "namespace": "ns"}, "spec": {}, "status": status});
    world.api.put(ROUTES, route);
    world.service("later", one.port, json!({})).await;
    assert_eq!(world.get("late.ns.localhost").await, ok("one"));
    world.api.put(REVISIONS, revision("late-2", two.port, json!({})));
    world.api.put(PODS, pod("late-2", "two", Some(two.ip)));
    world.gateway.programmed(RouteId::new("ns", "late"), 2).await;
    assert_eq!(world.get("late.ns.localhost").await, ok("two"));
}

#[tokio::test]
async fn http2_clients_and_workloads() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(81, 0, |request| async move {
        let (version, host) = (request.version(), request.uri().host().map(str::to_owned));
        full(format!("{version:?} {}", host.unwrap_or_default()))
    })
    .await;
    world.service("h2", workload.port, json!({"portName": "h2c"})).await;
    world.api.put(PODS, pod("h2-1", "p", Some(workload.ip)));
    assert_eq!(world.get("h2.ns.localhost").await, (200, "HTTP/2.0 h2.ns.localhost".into()));
    let stream = TcpStream::connect(world.public).await.unwrap();
    let executor = TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://h2.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(text(response).await, "HTTP/2.0 h2.ns.localhost");
}

async fn raw(world: &World, text: &str) -> String {
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn limits_are_answered_with_the_side_that_failed() {
    let clients = api::config::Gateway { body_bytes: Some(3), ..api::config::Gateway::default() };
    let world = World::start(Config { queue_limit: 1, clients, ..seeded(1) }).await;
    world.service("limits", 1, json!({})).await;
    let public = world.public;
    let waits = tokio::spawn(send(public, request("GET", "limits.ns.localhost", "/", "")));
    world.loaded("limits-1", 1).await;
    let (status, body) = world.get("limits.ns.localhost").await;
    assert_eq!(status, 503);
    assert!(body.starts_with("pending request queue full (platform error, request "), "{body}");
    let long = send(public, request("POST", "limits.ns.localhost", "/", "1234")).await;
    assert_eq!((long.status().as_u16(), text(long).await.contains("client error")), (413, true));
    assert_eq!(world.get("nobody.localhost").await.0, 404);
    assert!(raw(&world, "GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let huge = format!("GET / HTTP/1.1\r\nhost: limits.ns.localhost\r\nx: {}\r\n\r\n", "a".repeat(100_000));
    assert!(raw(&world, &huge).await.starts_with("HTTP/1.1 431"));
    waits.abort();
    world.loaded("limits-1", 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_no_instance_takes_ends_at_the_revisions_timeout() {
    let world = World::start(seeded(1)).await;
    world.service("never", 1, json!({"timeoutSeconds": 7})).await;
    let start = tokio::time::Instant::now();
    let (status, body) = world.get("never.ns.localhost").await;
    assert_eq!((status, start.elapsed().as_secs()), (504, 7));
    let why = "request timeout: no instance was ready within 7s: no instance has been created (platform error";
    assert!(body.starts_with(why), "{body}");
    assert_eq!(world.load("never-1"), 0);
    let stats = world.autoscaler.stats.lock().clone();
    assert!(stats.iter().any(|stat| (stat.concurrency - 1.0).abs() < 0.01), "{stats:?}");
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_is_too_slow_is_a_504_before_its_first_byte_and_a_clean_end_after_it() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(101, 0, |request| async move {
        if request.uri().path() == "/silent" {
            return std::future::pending().await;
        }
        let first = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"first ")))]);
        let body = StreamBody::new(futures::StreamExt::chain(first, futures::stream::pending()));
        Response::new(body.boxed_unsync())
    })
    .await;
    let spec = json!({"timeoutSeconds": 10, "responseStartTimeoutSeconds": 4});
    world.service("slow", workload.port, spec).await;
    world.api.put(PODS, pod("slow-1", "p", Some(workload.ip)));
    let response = send(world.public, request("GET", "slow.ns.localhost", "/", "")).await;
    assert_eq!((response.status().as_u16(), text(response).await.as_str()), (200, "first request timeout"));
    let start = tokio::time::Instant::now();
    let response = send(world.public, request("GET", "slow.ns.localhost", "/silent", "")).await;
    assert_eq!((response.status().as_u16(), start.elapsed().as_secs()), (504, 4));
    assert!(text(response).await.starts_with("request timeout: the service gave no answer within 4s (workload error"));
    assert_eq!(world.load("slow-1"), 0);
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_end_and_takes_no_new_ones() {
    let world = World::start(seeded(1)).await;
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let workload = Workload::start(111, 0, move |_| {
        let held = held.clone();
        async move {
            held.notified().await;
            full("done")
        }
    })
    .await;
    world.service("stop", workload.port, json!({})).await;
    world.api.put(PODS, pod("stop-1", "p", Some(workload.ip)));
    let public = world.public;
    let call =
        tokio::spawn(async move { text(send(public, request("GET", "stop.ns.localhost", "/", "")).await).await });
    until(|| workload.now.load(Ordering::SeqCst) == 1).await;
    world.stop.cancel();
    while TcpStream::connect(public).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    release.notify_waiters();
    assert_eq!(call.await.unwrap(), "done");
    world.tasks.close();
    world.tasks.wait().await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let world = World::start(Config { grace: Duration::from_secs(3600), ..seeded(1) }).await;
    let workload = Workload::start(121, 0, |_| std::future::pending()).await;
    world.service("now", workload.port, json!({})).await;
    world.api.put(PODS, pod("now-1", "p", Some(workload.ip)));
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: now.ns.localhost\r\n\r\n").await.unwrap();
    until(|| workload.now.load(Ordering::SeqCst) == 1).await;
    world.gateway.stop_now();
    world.tasks.close();
    world.tasks.wait().await;
    assert_eq!(world.load("now-1"), 0);
}

#[tokio::test]
async fn a_pod_that_goes_takes_its_idle_connections_with_it_and_the_next_one_serves() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(131, 0, |_| async { full("one") }).await;
    let next = Workload::start(132, workload.port, |_| async { full("two") }).await;
    world.service("pods", workload.port, json!({})).await;
    world.api.put(PODS, pod("pods-1", "a", Some(workload.ip)));
    assert_eq!(world.get("pods.ns.localhost").await.1, "one");
    world.api.delete(PODS, "a");
    world.api.put(PODS, pod("pods-1", "b", None));
    world.api.put(PODS, pod("pods-1", "b", Some(next.ip)));
    while world.get("pods.ns.localhost").await.1 != "two" {}
    let body = Full::new(Bytes::from_static(b"x"));
    let put = Request::put("/").header("host", "pods.ns.localhost").body(body).unwrap();
    assert_eq!(text(send(world.public, put).await).await, "two");
}

/// A host of the platform's own.
struct Own;

impl gateway::HostHandler for Own {
    fn handle(
        &self,
        _request: Request<hyper::body::Incoming>,
    ) -> futures::future::BoxFuture<'static, Response<gateway::ResponseBody>> {
        Box::pin(async { Response::new(gateway::ResponseBody::text(Bytes::from_static(b"own"))) })
    }
}

#[tokio::test]
async fn a_mapped_domain_leads_to_its_target_while_it_is_claimed() {
    const MAPPINGS: &str = "/apis/serving.knative.dev/v1beta1/domainmappings";
    const CLAIMS: &str = "/apis/networking.internal.knative.dev/v1alpha1/clusterdomainclaims";
    let world = World::start(seeded(4)).await;
    let echo = |name: &'static str| {
        move |request: Request<hyper::body::Incoming>| async move {
            let field = |name: &str| request.headers()[name].to_str().unwrap().to_owned();
            full(format!("{name} {} {} {}", field("host"), field("x-forwarded-host"), field("forwarded")))
        }
    };
    let one = Workload::start(141, 0, echo("one")).await;
    let two = Workload::start(142, 0, echo("two")).await;
    for (name, workload) in [("one", &one), ("two", &two)] {
        world.service(name, workload.port, json!({})).await;
        world.api.put(PODS, pod(&format!("{name}-1"), name, Some(workload.ip)));
    }
    let map = |domain: &str, target: &str, generation: i64| {
        let status = json!({"observedGeneration": generation,
            "annotations": {"networking.internal.knative.dev/target": target}});
        let reference = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": target});
        let mapping = json!({"apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
            "metadata": {"name": domain, "namespace": "ns"}, "spec": {"ref": reference}, "status": status});
        world.api.put(MAPPINGS, mapping);
    };
    let claim = |domain: &str, namespace: &str| {
        let claim = json!({"apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
            "metadata": {"name": domain}, "spec": {"namespace": namespace}});
        world.api.put(CLAIMS, claim);
    };
    let mapped = |domain: &str, generation| world.gateway.mapped(base::MappingId::new("ns", domain), generation);
    let answer = |name: &str| {
        let domain = "app.example.com";
        (200, format!("{name} {domain} {domain} for=127.0.0.1;host={domain};proto=http"))
    };
    // Somebody else's claim is none.
    map("app.example.com", "one", 1);
    claim("app.example.com", "other");
    claim("sign.example.com", "ns");
    map("sign.example.com", "one", 1);
    mapped("sign.example.com", 1).await;
    assert_eq!(world.get("app.example.com").await.0, 404);
    claim("app.example.com", "ns");
    mapped("app.example.com", 1).await;
    assert_eq!(world.get("app.example.com").await, answer("one"));
    map("app.example.com", "two", 2);
    mapped("app.example.com", 2).await;
    assert_eq!(world.get("app.example.com").await, answer("two"));

    // What a tenant maps is not the platform's; nor is such a mapping ever said to be served.
    world.gateway.mount_host("console.example.com", Arc::new(Own));
    claim("console.example.com", "ns");
    map("console.example.com", "one", 1);
    claim("end.example.com", "ns");
    map("end.example.com", "one", 1);
    mapped("end.example.com", 1).await;
    assert_eq!(world.get("console.example.com").await, (200, "own".to_owned()));
    assert!(futures::FutureExt::now_or_never(mapped("console.example.com", 1)).is_none());

    world.api.delete(CLAIMS, "app.example.com");
    while world.get("app.example.com").await.0 != 404 {}
    claim("app.example.com", "ns");
    mapped("app.example.com", 2).await;
    world.api.delete(MAPPINGS, "app.example.com");
    while world.get("app.example.com").await.0 != 404 {}
}
