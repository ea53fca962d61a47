//! Each protocol on each side, byte by byte where the bytes matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::seeded;
use crate::world::{Body, PODS, Workload, World, bytes, full, http2, pod, raw_workload, rest, send, text, up_to};

async fn served(workload: &Workload, port_name: &str) -> World {
    let world = World::start(seeded(1)).await;
    world.service("p", workload.port, json!({"portName": port_name})).await;
    world.api.put(PODS, pod("p-1", "p", Some(workload.ip)));
    world
}

/// Answers with the body that it got and the request's version; as a stream where the path asks for it.
async fn echo(request: Request<Incoming>) -> Response<Body> {
    let is_head = request.method() == Method::HEAD;
    let mut response = echo_body(request).await;
    if is_head {
        let length = response.body().size_hint().exact();
        *response.body_mut() = full("").into_body();
        length.map(|length| response.headers_mut().insert(header::CONTENT_LENGTH, length.into()));
    }
    response
}

async fn echo_body(request: Request<Incoming>) -> Response<Body> {
    let streams = request.uri().path() == "/stream";
    let told = format!("{:?} ", request.version());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let text = format!("{told}{}", String::from_utf8_lossy(&body));
    if !streams {
        return full(text);
    }
    let parts = futures::stream::iter([Ok(Frame::data(Bytes::from(text)))]);
    Response::new(StreamBody::new(parts).boxed_unsync())
}

#[tokio::test]
async fn http_1_0_clients() {
    for (ip, port_name, told) in [(181, "http1", "HTTP/1.1 hi"), (182, "h2c", "HTTP/2.0 hi")] {
        let workload = Workload::start(ip, 0, echo).await;
        let world = served(&workload, port_name).await;
        let ask = |path: &str, keep: &str| {
            format!("POST {path} HTTP/1.0\r\nhost: p.ns.localhost\r\n{keep}content-length: 2\r\n\r\nhi")
        };
        // Closed by itself, without a length where none is known.
        let closed = bytes(world.public, &ask("/", "")).await;
        assert!(closed.starts_with("HTTP/1.0 200 OK\r\n") && closed.contains("content-length: 11\r\n"), "{closed}");
        assert!(closed.ends_with(&format!("\r\n\r\n{told}")), "{closed}");
        let stream = bytes(world.public, &ask("/stream", "connection: keep-alive\r\n")).await;
        assert!(!stream.contains("transfer-encoding") && stream.ends_with(&format!("\r\n\r\n{told}")), "{stream}");
        // Kept where the client asks for it and the length is known.
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        for _ in 0..2 {
            stream.write_all(ask("/", "Connection: Keep-Alive\r\n").as_bytes()).await.unwrap();
            let answer = up_to(&mut stream, told).await;
            assert!(answer.contains("connection: keep-alive\r\n"), "{answer}");
        }
    }
}

#[tokio::test]
async fn head_has_the_heads_of_get_and_no_body() {
    let workload = Workload::start(183, 0, echo).await;
    for port_name in ["http1", "h2c"] {
        let world = served(&workload, port_name).await;
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        for _ in 0..2 {
            stream.write_all(b"HEAD / HTTP/1.1\r\nhost: p.ns.localhost\r\n\r\n").await.unwrap();
            let head = up_to(&mut stream, "\r\n\r\n").await;
            assert!(
                head.starts_with("HTTP/1.1 200 OK") && head.contains("content-length: 9\r\n"),
                "{port_name}: {head}"
            );
        }
        stream.write_all(b"HEAD /stream HTTP/1.1\r\nhost: p.ns.localhost\r\n\r\n").await.unwrap();
        let head = up_to(&mut stream, "\r\n\r\n").await;
        assert!(!head.contains("content-length"), "a length that nobody knows: {head}");
        stream.write_all(b"GET / HTTP/1.1\r\nhost: p.ns.localhost\r\nconnection: close\r\n\r\n").await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "nothing of a body lies before it: {answer}");
        let request = Request::head("http://p.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
        let response = http2(world.public).await.send_request(request).await.unwrap();
        assert_eq!(response.headers()["content-length"], "9");
        assert_eq!(text(response).await, "");
        // An answer of the gateway's own.
        let request = Request::head("http://q.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
        let response = http2(world.public).await.send_request(request).await.unwrap();
        let length = response.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap();
        assert_eq!((response.status().as_u16(), length > 40, text(response).await), (404, true, String::new()));
    }
}

#[tokio::test]
async fn a_body_is_asked_for_when_an_instance_can_take_it() {
    let workload = Workload::start(184, 0, echo).await;
    let world = World::start(seeded(1)).await;
    world.service("p", workload.port, json!({})).await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: p.ns.localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    world.loaded("p-1", 1).await;
    let early = tokio::time::timeout(Duration::from_millis(50), stream.readable()).await;
    assert!(early.is_err(), "nobody can take the body yet");
    world.api.put(PODS, pod("p-1", "p", Some(workload.ip)));
    assert_eq!(up_to(&mut stream, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    let answer = up_to(&mut stream, "HTTP/1.1 hi").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // One that is refused is never asked for.
    let refused = bytes(
        world.public,
        &head.replace("p.ns", "q.ns").replace("content-length", "connection: close\r\ncontent-length"),
    )
    .await;
    assert!(refused.starts_with("HTTP/1.1 404"), "{refused}");
}

/// Sends the trailers of the request back as those of the response.
async fn echo_trailers(request: Request<Incoming>) -> Response<Body> {
    let collected = request.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let frames = [Ok(Frame::data(collected.to_bytes())), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-sum"));
    response
}

#[tokio::test]
async fn trailers_pass_both_ways_between_all_protocols() {
    let workload = Workload::start(185, 0, echo_trailers).await;
    for port_name in ["http1", "h2c"] {
        let world = served(&workload, port_name).await;
        let ask = "POST / HTTP/1.1\r\nhost: p.ns.localhost\r\nte: trailers\r\nconnection: close, te\r\ntrailer: x-sum\r\n\
            transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n";
        let answer = bytes(world.public, ask).await;
        assert!(answer.ends_with("2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n"), "{port_name}: {answer}");
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-sum"), HeaderValue::from_static("7"))]);
        let frames = [Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from("hi"))), Ok(Frame::trailers(trailers))];
        let request = Request::post("http://p.ns.localhost/").header("te", "trailers").header("trailer", "x-sum");
        let request = request.body(StreamBody::new(futures::stream::iter(frames))).unwrap();
        let response = http2(world.public).await.send_request(request).await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["x-sum"], "7", "{port_name}");
        assert_eq!(collected.to_bytes(), "hi");
    }
}

#[tokio::test]
async fn grpc_streams_both_ways_and_ends_with_its_status() {
    // Each message goes back as it comes; the status is in the trailers.
    let workload = Workload::start(186, 0, |request: Request<Incoming>| async move {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!((request.version(), request.uri().path()), (http::Version::HTTP_2, "/echo.Echo/Both"));
        let parts = request.into_body().into_data_stream().map(|data| Ok(Frame::data(data.unwrap())));
        let status =
            HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        let parts = parts.chain(futures::stream::iter([Ok(Frame::trailers(status))]));
        let mut response = Response::new(StreamBody::new(parts).boxed_unsync());
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    })
    .await;
    let world = served(&workload, "h2c").await;
    let (sender, messages) = futures::channel::mpsc::unbounded::<Result<Frame<Bytes>, std::convert::Infallible>>();
    let call = |body| {
        let request = Request::post("http://p.ns.localhost/echo.Echo/Both").header("te", "trailers");
        request.header("content-type", "application/grpc").body(body).unwrap()
    };
    let mut client = http2(world.public).await;
    let response = client.send_request(call(StreamBody::new(messages))).await.unwrap();
    let mut body = response.into_body();
    for message in ["\0\0\0\0\x01a", "\0\0\0\0\x01b"] {
        sender.unbounded_send(Ok(Frame::data(Bytes::from(message)))).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), message);
    }
    drop(sender);
    let trailers = body.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_instance() {
    const PART: usize = 64 * 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let workload = Workload::start(187, 0, move |_| {
        let counted = counted.clone();
        async move {
            let parts = futures::stream::repeat_with(move || {
                counted.fetch_add(PART, Ordering::SeqCst);
                Ok(Frame::data(Bytes::from(vec![b'x'; PART])))
            });
            Response::new(StreamBody::new(parts).boxed_unsync())
        }
    })
    .await;
    for port_name in ["http1", "h2c"] {
        let world = served(&workload, port_name).await;
        let mut stream = TcpStream::connect(world.public).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: p.ns.localhost\r\n\r\n").await.unwrap();
        let stalled = stalls(|| sent.load(Ordering::SeqCst)).await;
        // The kernel's buffers on two connections, and no more than some of our own.
        assert!(stalled < 32 << 20, "{port_name}: {stalled} bytes are on their way to nobody");
        let mut buffer = vec![0; 1 << 20];
        for _ in 0..64 {
            stream.read_exact(&mut buffer).await.unwrap();
        }
        assert!(sent.load(Ordering::SeqCst) > stalled, "it goes on when the client does");
        drop(stream);
        world.loaded("p-1", 0).await;
        sent.store(0, Ordering::SeqCst);
    }
}

/// Waits until a number grows no more; the number.
async fn stalls(mut number: impl FnMut() -> usize) -> usize {
    let mut last = 0;
    let mut same = 0;
    while same < 20 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let now = number();
        same = if now == last && now > 0 { same + 1 } else { 0 };
        last = now;
    }
    last
}

#[tokio::test]
async fn an_instance_that_reads_no_more_stops_the_client() {
    let (ip, port) = raw_workload(188, |mut stream| async move {
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer).await?;
        std::future::pending::<()>().await;
        Ok(())
    })
    .await;
    let world = World::start(seeded(1)).await;
    world.service("p", port, json!({})).await;
    world.api.put(PODS, pod("p-1", "p", Some(ip)));
    let stream = TcpStream::connect(world.public).await.unwrap();
    let (_read, mut write) = stream.into_split();
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let writer = tokio::spawn(async move {
        let head = "POST / HTTP/1.1\r\nhost: p.ns.localhost\r\ncontent-length: 1000000000\r\n\r\n";
        write.write_all(head.as_bytes()).await.unwrap();
        let part = vec![b'x'; 64 * 1024];
        while write.write_all(&part).await.is_ok() {
            counted.fetch_add(part.len(), Ordering::SeqCst);
        }
    });
    let stalled = stalls(|| written.load(Ordering::SeqCst)).await;
    assert!(stalled < 32 << 20, "{stalled} bytes were taken for nobody");
    writer.abort();
}

#[tokio::test]
async fn an_event_stream_passes_event_by_event() {
    let (sender, events) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
    let events = Arc::new(tokio::sync::Mutex::new(Some(events)));
    let workload = Workload::start(189, 0, move |_| {
        let events = events.clone();
        async move {
            let mut events = events.lock().await.take().unwrap();
            let parts = futures::stream::poll_fn(move |cx| events.poll_recv(cx));
            let parts = parts.map(|event| Ok(Frame::data(Bytes::from_static(event.as_bytes()))));
            let mut response = Response::new(StreamBody::new(parts).boxed_unsync());
            response.headers_mut().insert("content-type", HeaderValue::from_static("text/event-stream"));
            response
        }
    })
    .await;
    let world = served(&workload, "http1").await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: p.ns.localhost\r\n\r\n").await.unwrap();
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        sender.send(event).unwrap();
        up_to(&mut stream, &format!("9\r\n{event}\r\n")).await;
    }
    drop(sender);
    assert_eq!(up_to(&mut stream, "0\r\n\r\n").await, "0\r\n\r\n");
}

#[tokio::test]
async fn an_answer_before_the_bodys_end_passes_while_the_body_goes_on() {
    let workload = Workload::start(190, 0, |request: Request<Incoming>| async move {
        let mut body = request.into_body();
        let (sender, parts) = futures::channel::mpsc::unbounded();
        sender.unbounded_send(Ok(Frame::data(Bytes::from("early;")))).unwrap();
        tokio::spawn(async move {
            let mut length = 0;
            while let Some(Ok(frame)) = body.frame().await {
                length += frame.into_data().map_or(0, |data| data.len());
            }
            drop(sender.unbounded_send(Ok(Frame::data(Bytes::from(format!("{length};"))))));
        });
        Response::new(StreamBody::new(parts).boxed_unsync())
    })
    .await;
    let world = served(&workload, "http1").await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "POST / HTTP/1.1\r\nhost: p.ns.localhost\r\ncontent-length: 6\r\nconnection: close\r\n\r\nabc";
    stream.write_all(head.as_bytes()).await.unwrap();
    up_to(&mut stream, "early;").await;
    stream.write_all(b"def").await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.contains("6;"), "{answer}");
}

/// A WebSocket of sorts by HTTP/1.1: bytes go back as they come, after `hello ` and the subprotocol.
async fn websocket(mut request: Request<Incoming>) -> Response<Body> {
    match request.uri().path() {
        "/refused" => {
            let mut response = full("not you");
            *response.status_mut() = StatusCode::FORBIDDEN;
            return response;
        }
        "/misled" => return full("a page"),
        _ => {}
    }
    let headers = request.headers();
    let extended = request.extensions().get::<Protocol>().is_some();
    let by = if extended { "CONNECT" } else { "GET" };
    assert_eq!(request.method().as_str(), by);
    let host = request.uri().host().or(headers.get("host").and_then(|host| host.to_str().ok()));
    assert_eq!((host, &headers["sec-websocket-version"]), (Some("p.ns.localhost"), &"13".parse().unwrap()));
    if !extended {
        assert_eq!((&headers["upgrade"], headers["sec-websocket-key"].len()), (&"websocket".parse().unwrap(), 24));
    }
    let chosen = headers["sec-websocket-protocol"].clone();
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(upgrade.await.unwrap());
        stream.write_all(format!("by {by};").as_bytes()).await.unwrap();
        let mut buffer = [0; 1024];
        // Its own side ends after the client's.
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.unwrap();
        }
        stream.write_all(b"bye").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut response = full("");
    response.headers_mut().insert("sec-websocket-protocol", chosen);
    if !extended {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        response.headers_mut().insert("sec-websocket-accept", HeaderValue::from_static("x"));
    }
    response
}

fn connect(path: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().method(Method::CONNECT).uri(format!("http://p.ns.localhost{path}"));
    let request = request.extension(Protocol::from_static("websocket")).header("sec-websocket-version", "13");
    request.header("sec-websocket-protocol", "chat").body(Empty::new()).unwrap()
}

/// To an instance that speaks HTTP/1.1, to one that speaks HTTP/2 with extended CONNECT, to one without.
#[tokio::test]
async fn websockets_over_http2() {
    let kinds = [
        (Workload::start(191, 0, websocket).await, "http1", "by GET;"),
        (Workload::with_extended_connect(192, websocket).await, "h2c", "by CONNECT;"),
        (Workload::start(193, 0, websocket).await, "h2c", "by GET;"),
    ];
    for (workload, port_name, greeting) in kinds {
        let world = served(&workload, port_name).await;
        let mut sender = http2(world.public).await;
        let response = sender.send_request(connect("/")).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["sec-websocket-protocol"]),
            (200, &"chat".parse().unwrap())
        );
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut hello = vec![0; greeting.len()];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(String::from_utf8(hello).unwrap(), greeting);
        stream.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        stream.read_exact(&mut buffer).await.unwrap();
        assert_eq!((&buffer, world.load("p-1")), (b"ping", 1));
        // One side ends; the other one may still speak.
        stream.shutdown().await.unwrap();
        let mut last = String::new();
        stream.read_to_string(&mut last).await.unwrap();
        assert_eq!(last, "bye");
        world.loaded("p-1", 0).await;
        let refused = sender.send_request(connect("/refused")).await.unwrap();
        assert_eq!((refused.status().as_u16(), text(refused).await.as_str()), (403, "not you"));
        if greeting == "by GET;" {
            let misled = sender.send_request(connect("/misled")).await.unwrap();
            let status = misled.status().as_u16();
            assert_eq!(
                (status, text(misled).await.starts_with("the service did not switch to a WebSocket")),
                (502, true)
            );
        }
        world.loaded("p-1", 0).await;
    }
}

#[tokio::test]
async fn connect_is_for_websockets_only() {
    let workload = Workload::start(194, 0, echo).await;
    let world = served(&workload, "http1").await;
    let mut sender = http2(world.public).await;
    let mut other = connect("/");
    other.extensions_mut().insert(Protocol::from_static("connect-udp"));
    let plain = Request::builder().method(Method::CONNECT).uri("p.ns.localhost:443").body(Empty::new()).unwrap();
    for request in [other, plain] {
        assert_eq!(sender.send_request(request).await.unwrap().status(), 405);
    }
    let answer = bytes(
        world.public,
        "CONNECT p.ns.localhost:443 HTTP/1.1\r\nhost: p.ns.localhost:443\r\nconnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_eq!(workload.served.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn each_side_of_an_upgraded_connection_ends_by_itself() {
    let workload = Workload::start(195, 0, websocket).await;
    let world = served(&workload, "http1").await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: p.ns.localhost\r\nconnection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: chat\r\n\r\n";
    // What comes with the handshake is the WebSocket's.
    stream.write_all(format!("{head}ping").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answer}");
    assert!(answer.contains("sec-websocket-accept: x\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nby GET;pingbye"), "{answer}");
    world.loaded("p-1", 0).await;
}

#[tokio::test]
async fn a_websocket_over_http1_reaches_an_instance_that_has_http2_only() {
    let workload = Workload::with_extended_connect(181, websocket).await;
    let world = served(&workload, "h2c").await;
    let handshake = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: p.ns.localhost\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            sec-websocket-protocol: chat\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(handshake("/").as_bytes()).await.unwrap();
    let head = up_to(&mut stream, "by CONNECT;").await;
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    // RFC 6455's own example.
    for field in ["sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "sec-websocket-protocol: chat"] {
        assert!(head.contains(&format!("{field}\r\n")), "{head}");
    }
    stream.write_all(b"ping").await.unwrap();
    up_to(&mut stream, "ping").await;
    assert_eq!(world.load("p-1"), 1);
    stream.shutdown().await.unwrap();
    assert_eq!(rest(&mut stream).await, "bye");
    world.loaded("p-1", 0).await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(handshake("/refused").as_bytes()).await.unwrap();
    let refused = up_to(&mut stream, "not you").await;
    assert!(refused.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{refused}");
}

#[tokio::test]
async fn an_upgrade_to_h2c_is_not_taken_and_not_passed_on() {
    let workload = Workload::start(196, 0, |request: Request<Incoming>| async move {
        let passed = ["upgrade", "http2-settings"].map(|name| request.headers().contains_key(name));
        full(format!("{passed:?}"))
    })
    .await;
    let world = served(&workload, "http1").await;
    let ask = "GET / HTTP/1.1\r\nhost: p.ns.localhost\r\nconnection: Upgrade, HTTP2-Settings, close\r\nupgrade: h2c\r\n\
        http2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    let answer = bytes(world.public, ask).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.ends_with("[false, false]"), "{answer}");
}

#[tokio::test]
async fn an_instances_1xx_comes_before_nothing_else() {
    let (ip, port) = raw_workload(197, |mut stream| async move {
        let mut buffer = [0; 4096];
        while stream.read(&mut buffer).await? > 0 {
            let hints = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";
            stream.write_all(hints.as_bytes()).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
        }
        Ok(())
    })
    .await;
    let world = World::start(seeded(1)).await;
    world.service("p", port, json!({})).await;
    world.api.put(PODS, pod("p-1", "p", Some(ip)));
    for _ in 0..3 {
        assert_eq!(world.get("p.ns.localhost").await, (200, "ok".into()));
    }
}

#[tokio::test]
async fn a_large_body_passes_whole() {
    let workload = Workload::start(198, 0, |request: Request<Incoming>| async move {
        let mut body = request.into_body();
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            length += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        full(length.to_string())
    })
    .await;
    for port_name in ["http1", "h2c"] {
        let world = served(&workload, port_name).await;
        let part = Bytes::from(vec![b'x'; 1 << 20]);
        let length = 96 << 20;
        let parts = || {
            let part = part.clone();
            let parts =
                futures::stream::iter(0..96).map(move |_| Ok::<_, std::convert::Infallible>(Frame::data(part.clone())));
            StreamBody::new(parts)
        };
        let plain = Request::post("/").header("host", "p.ns.localhost").body(parts()).unwrap();
        assert_eq!(text(send(world.public, plain).await).await, length.to_string());
        let second = Request::post("http://p.ns.localhost/").body(parts()).unwrap();
        assert_eq!(text(http2(world.public).await.send_request(second).await.unwrap()).await, length.to_string());
    }
}
