//! HTTP/2, frame by frame: requests that would be others in HTTP/1, and frames that cost the server more than the client.

use std::time::Duration;

use api::config::Gateway as ClientLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::timeout;

use super::{LONG, attacked};
use crate::recorder::Recorder;
use crate::world::World;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as literals that are put in no table.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "attack.ns.localhost")];

/// A request, with fields in place of those of the same name and others behind them.
fn with<'f>(fields: &[(&'f str, &'f str)]) -> Vec<(&'f str, &'f str)> {
    let of = |name: &str| fields.iter().find(|(other, _)| *other == name).copied();
    let mut all: Vec<(&str, &str)> = GET.iter().map(|field| of(field.0).unwrap_or(*field)).collect();
    all.extend(fields.iter().filter(|(name, _)| GET.iter().all(|field| field.0 != *name)));
    all
}

fn headers(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

async fn connect(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    stream
}

async fn next(stream: &mut TcpStream) -> Option<(u8, u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], head[4], payload))
}

/// What a request comes to: a status, or the end of its stream or of the connection.
async fn outcome(world: &World, frames: &[u8]) -> String {
    let mut stream = connect(world).await;
    let _ = stream.write_all(frames).await;
    let answer = async {
        loop {
            match next(&mut stream).await {
                None => return "closed".to_owned(),
                Some((RST_STREAM | GOAWAY, _, _)) => return "reset".to_owned(),
                Some((HEADERS, _, payload)) => return status(&payload),
                Some(_) => {}
            }
        }
    };
    timeout(LONG, answer).await.unwrap()
}

/// The status in a block whose first field it is.
fn status(block: &[u8]) -> String {
    match block {
        [0x88, ..] => "200".to_owned(),
        [0x8c, ..] => "400".to_owned(),
        [0x8d, ..] => "404".to_owned(),
        // A literal whose name is in the static table, its value by Huffman's code or not.
        _ => "other".to_owned(),
    }
}

/// Requests that HTTP/1 behind the gateway would read as another one, or as two.
#[tokio::test]
async fn what_http_1_would_read_otherwise_is_refused() {
    let recorder = Recorder::start(241).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    assert_eq!(outcome(&world, &headers(1, END_STREAM, &GET)).await, "200");
    assert_eq!(recorder.take().len(), 1);
    let rows: Vec<(&str, Vec<(&str, &str)>)> = vec![
        ("CR LF in a value", with(&[("x", "y\r\ntransfer-encoding: chunked")])),
        ("LF in a value", with(&[("x", "y\nz")])),
        ("NUL in a value", with(&[("x", "y\0z")])),
        ("CR LF in a name", with(&[("x: y\r\nz", "q")])),
        ("a colon in a name", with(&[("transfer-encoding:chunked", "y")])),
        ("a space in a name", with(&[("transfer-encoding ", "chunked")])),
        ("an upper-case name", with(&[("X", "y")])),
        ("an empty name", with(&[("", "y")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("connection", with(&[("connection", "keep-alive")])),
        ("proxy-connection", with(&[("proxy-connection", "keep-alive")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("CR LF in the path", with(&[(":path", "/ HTTP/1.1\r\nhost: x\r\n\r\nGET /smuggled")])),
        ("a space in the path", with(&[(":path", "/ HTTP/1.1")])),
        ("no path", with(&[(":path", "")])),
        ("CR LF in the method", with(&[(":method", "GET / HTTP/1.1\r\nx: y")])),
        ("a space in the method", with(&[(":method", "GET /x")])),
        ("CR LF in the authority", with(&[(":authority", "attack.ns.localhost\r\nx: y")])),
        ("userinfo", with(&[(":authority", "user@attack.ns.localhost")])),
        ("percent encoding", with(&[(":authority", "%61ttack.ns.localhost")])),
        ("another host", with(&[("host", "other.ns.localhost")])),
        ("two hosts", with(&[("host", "attack.ns.localhost"), ("host ", "x")])),
        ("a pseudo field twice", [&GET[..], &[(":path", "/smuggled")]].concat()),
        ("a method twice", [&[(":method", "POST")], &GET[..]].concat()),
        ("a late pseudo field", [&GET[..3], &[("x", "y"), GET[3]]].concat()),
        ("an unknown pseudo field", with(&[(":x", "y")])),
        (":status", with(&[(":status", "200")])),
        ("no method", GET[1..].to_vec()),
        ("no scheme", [&GET[..1], &GET[2..]].concat()),
        ("nothing for a path", [&GET[..2], &GET[3..]].concat()),
        ("no number for a length", with(&[("content-length", "x")])),
        ("a signed length", with(&[("content-length", "+0")])),
        ("a length without a body", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
    ];
    for (attack, fields) in rows {
        let outcome = outcome(&world, &headers(1, END_STREAM, &fields)).await;
        assert!(["400", "reset", "closed"].contains(&outcome.as_str()), "{attack}: {outcome}");
        assert_eq!(recorder.take(), [], "{attack}");
    }
    let nobody = with(&[(":authority", "nobody.ns.localhost"), ("host", "nobody.ns.localhost")]);
    assert_eq!(outcome(&world, &headers(1, END_STREAM, &nobody)).await, "404");
    let same = with(&[(":authority", "attack.ns.localhost:80"), ("host", "Attack.ns.localhost")]);
    assert_eq!(outcome(&world, &headers(1, END_STREAM, &same)).await, "200");
    let seen = recorder.take();
    assert_eq!((seen.len(), seen[0].values("host")), (1, vec!["attack.ns.localhost:80"]));
}

/// A body of another length than it says is never one that the workload takes for whole.
#[tokio::test]
async fn a_body_is_as_long_as_it_says() {
    let recorder = Recorder::start(242).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let post = with(&[(":method", "POST"), ("content-length", "5")]);
    let begun = headers(1, 0, &post);
    for (attack, body) in [("shorter", "abc"), ("longer", "abcdefgh")] {
        let outcome = outcome(&world, &[begun.clone(), frame(DATA, END_STREAM, 1, body.as_bytes())].concat()).await;
        assert!(["400", "reset", "closed"].contains(&outcome.as_str()), "{attack}: {outcome}");
        assert_eq!(recorder.take(), [], "{attack}");
    }
    assert_eq!(outcome(&world, &[begun, frame(DATA, END_STREAM, 1, b"abcde")].concat()).await, "200");
    assert_eq!(recorder.take()[0].body, b"abcde");
}

/// Reads until the end; whether the server said that it goes.
async fn drain(mut stream: OwnedReadHalf) {
    let mut space = vec![0; 64 * 1024];
    while stream.read(&mut space).await.is_ok_and(|count| count > 0) {}
}

/// Sends a flood until the connection is closed; panics if it goes on for ever.
async fn floods(ip: u8, attack: &str, begin: Vec<u8>, flood: impl Fn(u32) -> Vec<u8>) {
    let recorder = Recorder::start(ip).await;
    let clients = ClientLimits { http2_resets: 50, http2_overhead_bytes: 20_000, ..ClientLimits::default() };
    let world = attacked(&recorder, clients).await;
    let mut stream = connect(&world).await;
    stream.write_all(&begin).await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let mut closed = tokio::spawn(drain(reading));
    let flooding = async {
        for number in 0..20_000 {
            if writing.write_all(&flood(number)).await.is_err() || closed.is_finished() {
                return;
            }
        }
        // All is written: what is in the way still has to be read.
        let _ = (&mut closed).await;
    };
    assert!(timeout(LONG, flooding).await.is_ok(), "{attack}: the connection is left open");
    assert_eq!(world.get("attack.ns.localhost").await.0, 200, "{attack}");
    let freed = async {
        while world.load("attack-1") > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, freed).await.unwrap();
}

fn stream_of(number: u32) -> u32 {
    2 * number + 1
}

/// Rapid reset, CVE-2023-44487.
#[tokio::test]
async fn streams_that_are_opened_and_reset() {
    let flood = |number| {
        let stream = stream_of(number);
        [headers(stream, END_STREAM, &GET), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    floods(243, "rapid reset", Vec::new(), flood).await;
}

/// The same at a pace that leaves the server time to begin each, so that none is reset before it was taken.
#[tokio::test]
async fn streams_that_are_reset_one_by_one() {
    let recorder = Recorder::start(244).await;
    let world = attacked(&recorder, ClientLimits { http2_resets: 20, ..ClientLimits::default() }).await;
    let mut stream = connect(&world).await;
    let reset = async {
        for number in 0.. {
            let id = stream_of(number);
            if stream.write_all(&headers(id, END_STREAM, &GET)).await.is_err() {
                return number;
            }
            loop {
                match next(&mut stream).await {
                    None => return number,
                    Some((DATA | HEADERS, _, _)) => break,
                    Some(_) => {}
                }
            }
            let _ = stream.write_all(&frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())).await;
        }
        unreachable!()
    };
    let number = timeout(LONG, reset).await.unwrap();
    assert!((20..=25).contains(&number), "{number}");
}

/// CVE-2024-27316, CVE-2024-24549 (VU#421644; h2: RUSTSEC-2024-0332).
#[tokio::test]
async fn a_head_without_end() {
    let begin = frame(HEADERS, 0, 1, &block(&GET));
    floods(245, "CONTINUATION", begin.clone(), |_| frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))).await;
    floods(246, "empty CONTINUATION", begin, |_| frame(CONTINUATION, 0, 1, &[])).await;
}

/// CVE-2019-9512, CVE-2019-9515, CVE-2019-9513.
#[tokio::test]
async fn frames_that_want_an_answer() {
    floods(247, "PING", Vec::new(), |_| frame(PING, 0, 0, &[0; 8])).await;
    floods(248, "SETTINGS", Vec::new(), |_| frame(SETTINGS, 0, 0, &[])).await;
    floods(249, "PRIORITY", Vec::new(), |number| frame(PRIORITY, 0, stream_of(number), &[0, 0, 0, 0, 1])).await;
}

/// CVE-2019-9518; h2: RUSTSEC-2026-0258.
#[tokio::test]
async fn data_without_data() {
    let begin = headers(1, 0, &with(&[(":method", "POST")]));
    floods(250, "empty DATA", begin.clone(), |_| frame(DATA, 0, 1, &[])).await;
    let padded = [0; 4];
    floods(251, "padding", begin, |_| frame(DATA, 8, 1, &[3, padded[0], padded[1], padded[2]])).await;
}

/// MadeYouReset, CVE-2025-8671: the server resets what the client broke on purpose, and the client never resets.
#[tokio::test]
async fn streams_that_the_server_is_made_to_reset() {
    let flood = |number| {
        let stream = stream_of(number);
        [headers(stream, END_STREAM, &GET), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat()
    };
    floods(252, "window of nothing", Vec::new(), flood).await;
    let flood = |number| {
        let stream = stream_of(number);
        [headers(stream, END_STREAM, &GET), frame(DATA, 0, stream, b"x")].concat()
    };
    floods(253, "data behind the end", Vec::new(), flood).await;
}

/// h2: RUSTSEC-2024-0003. Heads that are refused are resets of the server's as well.
#[tokio::test]
async fn heads_that_the_server_is_made_to_refuse() {
    let bad = with(&[("connection", "x")]);
    floods(254, "malformed heads", Vec::new(), move |number| headers(stream_of(number), END_STREAM, &bad)).await;
}

#[tokio::test]
async fn no_more_streams_at_once_than_allowed() {
    let recorder = Recorder::answering(240, b"").await;
    let clients = ClientLimits { http2_streams: 5, ..ClientLimits::default() };
    let world = World::start(gateway::Config { clients, ..crate::seeded(1) }).await;
    world.service("attack", recorder.port, serde_json::json!({})).await;
    world.api.put(crate::world::PODS, crate::world::pod("attack-1", "p", Some(recorder.ip)));
    let mut stream = connect(&world).await;
    let requests: Vec<u8> = (0..9).flat_map(|number| headers(stream_of(number), END_STREAM, &GET)).collect();
    stream.write_all(&requests).await.unwrap();
    let mut refused = 0;
    while refused < 4 {
        let (kind, _, payload) = timeout(LONG, next(&mut stream)).await.unwrap().unwrap();
        if kind == RST_STREAM {
            assert_eq!(payload, 7_u32.to_be_bytes(), "REFUSED_STREAM: it can be sent again");
            refused += 1;
        }
    }
    world.loaded("attack-1", 5).await;
}
