//! What becomes of a response that takes too long, for each way in which it can end.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::seeded;
use crate::world::{Body, PODS, Workload, World, bytes, echo, endless, http2, pod, raw_workload, request, send, text};

/// What the path asks for: each begins at once and never ends.
async fn never_ends(request: Request<Incoming>) -> Response<Body> {
    let mut response = Response::new(endless("first "));
    match request.uri().path() {
        "/silent" => return std::future::pending().await,
        "/length" => drop(response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000"))),
        "/grpc" => {
            let grpc = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(header::CONTENT_TYPE, grpc);
        }
        _ => {}
    }
    response
}

async fn slow_world(ip: u8, port_name: &str) -> (World, Workload) {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(ip, 0, never_ends).await;
    world.service("slow", workload.port, json!({"timeoutSeconds": 5, "portName": port_name})).await;
    world.api.put(PODS, pod("slow-1", "p", Some(workload.ip)));
    (world, workload)
}

fn get(path: &str, version: &str) -> String {
    format!("GET {path} HTTP/{version}\r\nhost: slow.ns.localhost\r\nconnection: close\r\n\r\n")
}

#[tokio::test(start_paused = true)]
async fn a_body_of_unknown_length_ends_cleanly_with_the_text() {
    for (ip, port_name) in [(151, "http1"), (152, "h2c")] {
        let (world, _workload) = slow_world(ip, port_name).await;
        let chunked = bytes(world.public, &get("/", "1.1")).await;
        assert!(chunked.starts_with("HTTP/1.1 200 OK\r\n"), "{chunked}");
        assert!(chunked.ends_with("6\r\nfirst \r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{chunked}");
        let closed = bytes(world.public, &get("/", "1.0")).await;
        assert!(!closed.contains("transfer-encoding") && !closed.contains("content-length"), "{closed}");
        assert!(closed.ends_with("\r\n\r\nfirst request timeout"), "{closed}");
        let asked = Request::get("http://slow.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
        let response = http2(world.public).await.send_request(asked).await.unwrap();
        assert_eq!(text(response).await, "first request timeout");
        assert_eq!(world.load("slow-1"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_the_instance_ends_by_closing_ends_cleanly_too() {
    let world = World::start(seeded(1)).await;
    let (ip, port) = raw_workload(153, |mut stream| async move {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await? > 0 {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nfirst ").await?;
        }
        Ok(())
    })
    .await;
    world.service("slow", port, json!({"timeoutSeconds": 5})).await;
    world.api.put(PODS, pod("slow-1", "p", Some(ip)));
    let answer = bytes(world.public, &get("/", "1.1")).await;
    assert!(answer.ends_with("6\r\nfirst \r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_body_of_announced_length_is_broken_off() {
    let (world, _workload) = slow_world(154, "http1").await;
    let answer = bytes(world.public, &get("/length", "1.1")).await;
    assert!(answer.contains("content-length: 1000\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nfirst "), "the connection ends, and says so: {answer}");
    let asked = Request::get("http://slow.ns.localhost/length").body(Empty::<Bytes>::new()).unwrap();
    let mut sender = http2(world.public).await;
    let mut body = sender.send_request(asked).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first ");
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(format!("{error:?}").contains("INTERNAL_ERROR"), "RST_STREAM: {error:?}");
    assert!(!sender.is_closed(), "other streams of the connection live on");
    assert_eq!(world.load("slow-1"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_ends_with_the_status_of_a_deadline() {
    let (world, _workload) = slow_world(155, "h2c").await;
    let call = |path: &str| {
        let request = Request::post(format!("http://slow.ns.localhost{path}"));
        request.header("content-type", "application/grpc").header("te", "trailers").body(Empty::<Bytes>::new()).unwrap()
    };
    let mut sender = http2(world.public).await;
    let mut body = sender.send_request(call("/grpc")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first ");
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"4".parse().unwrap(), &"request timeout".parse().unwrap())
    );
    assert!(body.frame().await.is_none());
    // Before the first byte the status is in the header.
    let response = sender.send_request(call("/silent")).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["grpc-status"]), (200, &"4".parse().unwrap()));
    let message = response.headers()["grpc-message"].to_str().unwrap();
    assert!(message.starts_with("request timeout: the service gave no answer within 5s"), "{message}");
    let metrics = world.gateway.metrics();
    assert!(metrics.contains("response_code_class=\"5xx\",protocol=\"grpc\"} 1"), "it counts as a 504: {metrics}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_response_and_each_byte_gives_it_more_time() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(156, 0, |request: Request<Incoming>| async move {
        if request.uri().path() == "/silent" {
            return std::future::pending().await;
        }
        // A part every 2 s, five times.
        let parts = futures::stream::unfold(0, |n| async move {
            if n == 5 {
                return std::future::pending().await;
            }
            sleep(Duration::from_secs(2)).await;
            Some((Ok(Frame::data(Bytes::from_static(b"."))), n + 1))
        });
        Response::new(StreamBody::new(parts).boxed_unsync())
    })
    .await;
    world.service("idle", workload.port, json!({"timeoutSeconds": 60, "idleTimeoutSeconds": 3})).await;
    world.api.put(PODS, pod("idle-1", "p", Some(workload.ip)));
    assert_eq!(world.get("idle.ns.localhost").await, (200, ".....request timeout".into()));
    let start = Instant::now();
    let response = send(world.public, request("GET", "idle.ns.localhost", "/silent", "")).await;
    assert_eq!((response.status().as_u16(), start.elapsed().as_secs()), (504, 3));
    assert!(text(response).await.starts_with("request timeout: the service gave no answer within 3s (workload error"));
}

#[tokio::test(start_paused = true)]
async fn a_websocket_may_be_silent_until_the_revisions_timeout() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(157, 0, |request| async {
        sleep(Duration::from_secs(3)).await;
        echo(request, "websocket")
    })
    .await;
    let spec = json!({"timeoutSeconds": 20, "responseStartTimeoutSeconds": 1, "idleTimeoutSeconds": 1});
    world.service("ws", workload.port, spec).await;
    world.api.put(PODS, pod("ws-1", "p", Some(workload.ip)));
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: ws.ns.localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = crate::world::up_to(&mut stream, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let open = Instant::now();
    sleep(Duration::from_secs(10)).await;
    stream.write_all(b"ping").await.unwrap();
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).await.unwrap();
    assert_eq!((&buffer, world.load("ws-1")), (b"ping", 1));
    assert_eq!(stream.read(&mut buffer).await.unwrap_or(0), 0);
    assert!((16..=20).contains(&open.elapsed().as_secs()), "{:?}", open.elapsed());
    world.loaded("ws-1", 0).await;
}
