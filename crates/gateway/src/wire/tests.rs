use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { head_bytes: 8192, fields: 20, target_bytes: 100, resets: 10, overhead_bytes: 1000 };

/// Feeds `bytes` in pieces of at most `piece` bytes; what was passed, and where it stopped.
fn feed(bytes: &[u8], piece: usize) -> (Vec<u8>, Stop, Framing) {
    let mut framing = Framing::new(LIMITS);
    let (mut passed, mut held) = (Vec::new(), Vec::new());
    let mut last = Stop::Nothing;
    for part in bytes.chunks(piece) {
        held.extend_from_slice(part);
        let Scan { pass, stop } = framing.scan(&held);
        passed.extend(held.drain(..pass));
        last = stop;
        if matches!(last, Stop::Refused(_) | Stop::Broken(_)) {
            break;
        }
    }
    (passed, last, framing)
}

/// The outcome in a word: the same however the bytes arrive.
fn outcome(text: &str) -> String {
    let whole = feed(text.as_bytes(), usize::MAX);
    for piece in [1, 2, 3, 7] {
        let pieces = feed(text.as_bytes(), piece);
        assert_eq!((&whole.1, whole.2.heads), (&pieces.1, pieces.2.heads), "{text:?} in pieces of {piece}");
    }
    let (passed, stop, framing) = whole;
    match stop {
        Stop::Nothing => format!("{} passed, then {:?}", framing.heads, framing.expected(0)),
        Stop::Partial => format!("{} passed, then part of a head", framing.heads),
        Stop::Held => format!("{} passed, {} held", framing.heads, text.len() - passed.len()),
        Stop::Refused(failure) => format!("{} {failure}", failure.status().as_u16()),
        Stop::Broken(failure) => format!("body: {failure}"),
    }
}

#[track_caller]
fn check(text: &str, want: &str) {
    assert_eq!(outcome(text), want, "{text:?}");
}

#[test]
fn requests_follow_each_other() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    check("", "0 passed, then Request");
    check(get, "1 passed, then Request");
    check(&get.repeat(3), "3 passed, then Request");
    check(&format!("\r\n{get}\r\n{get}"), "2 passed, then Request");
    check("GET / HTTP/1.1\r\nHost: a\r\n", "0 passed, then part of a head");
    check("GET / HTTP/1.0\r\n\r\n", "1 passed, then Request");
    check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "1 passed, then Request");
    check("GET http://a/b HTTP/1.1\r\nHost: a\r\n\r\n", "1 passed, then Request");
    let post = "POST /\u{fc}?a=%20 HTTP/1.1\r\nhost:a\r\ncontent-length:\t3 \r\n\r\nabc";
    check(&format!("{post}{get}"), "2 passed, then Request");
    check(post.strip_suffix('c').unwrap(), "1 passed, then Body");
    let chunked = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n";
    check(
        &format!("{chunked}3\r\nabc\r\n0A ;x=\"y\"\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n{get}"),
        "2 passed, then Request",
    );
    check(&format!("{chunked}0\r\n\r"), "1 passed, then Body");
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let rows = [
        ("Content-Length: 1\r\nContent-Length: 2", "400 the request is malformed: it has more than one Content-Length"),
        ("Content-Length: 5\r\nContent-Length: 5", "400 the request is malformed: it has more than one Content-Length"),
        ("Content-Length: 5, 5", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length: +5", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length: -1", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length: 0x5", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length: 5 5", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length:", "400 the request is malformed: its Content-Length is no number"),
        ("Content-Length: 18446744073709551616", "400 the request is malformed: its Content-Length is no number"),
        (
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "400 the request is malformed: it has both a Content-Length and a Transfer-Encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            "400 the request is malformed: it has both a Content-Length and a Transfer-Encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "400 the request is malformed: it has more than one Transfer-Encoding",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "400 the request is malformed: it has more than one Transfer-Encoding",
        ),
        ("Transfer-Encoding: gzip, chunked", "501 the request has a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: chunked, identity", "501 the request has a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: identity", "501 the request has a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: xchunked", "501 the request has a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding: \u{b}chunked", "400 the request is malformed: a header field holds a control character"),
        ("Transfer-Encoding: \"chunked\"", "501 the request has a Transfer-Encoding other than chunked"),
        ("Transfer-Encoding:", "501 the request has a Transfer-Encoding other than chunked"),
        (
            "Transfer-Encoding : chunked",
            "400 the request is malformed: white space stands before the colon of a header field",
        ),
        ("X: a\r\n b", "400 the request is malformed: a header field is folded over several lines"),
        (
            "X: a\r\n\tTransfer-Encoding: chunked",
            "400 the request is malformed: a header field is folded over several lines",
        ),
        ("X: a\nY: b", "400 the request is malformed: a line of its head ends in LF without CR"),
        ("X: a\rY: b", "400 the request is malformed: a line of its head holds a CR without LF"),
        ("X: a\0b", "400 the request is malformed: a header field holds a control character"),
        ("X\0: a", "400 the request is malformed: the name of a header field holds a byte that is not allowed"),
        ("X(): a", "400 the request is malformed: the name of a header field holds a byte that is not allowed"),
        (": a", "400 the request is malformed: the name of a header field holds a byte that is not allowed"),
        ("X", "400 the request is malformed: a line of its head has no colon"),
        ("Host: b", "400 the request is malformed: it has more than one Host"),
    ];
    for (field, want) in rows {
        check(&format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"), want);
    }
}

#[test]
fn first_lines() {
    let rows = [
        ("GET / HTTP/1.2", "505 this HTTP version is not served here"),
        ("GET / HTTP/2.0", "505 this HTTP version is not served here"),
        ("GET / HTTP/1.1 ", "400 the request is malformed: its first line ends in no version"),
        ("GET / HTTP/1.10", "400 the request is malformed: its first line ends in no version"),
        ("GET / HTTP/1.", "400 the request is malformed: its first line ends in no version"),
        ("GET / http/1.1", "400 the request is malformed: its first line ends in no version"),
        ("GET /", "400 the request is malformed: its first line has no version"),
        ("GET  / HTTP/1.1", "400 the request is malformed: its target holds a byte that is not allowed"),
        ("GET / x HTTP/1.1", "400 the request is malformed: its first line ends in no version"),
        ("GET\t/ HTTP/1.1", "400 the request is malformed: its method holds a byte that is not allowed"),
        (" GET / HTTP/1.1", "400 the request is malformed: its method holds a byte that is not allowed"),
        ("G@T / HTTP/1.1", "400 the request is malformed: its method holds a byte that is not allowed"),
        ("GET /\u{1} HTTP/1.1", "400 the request is malformed: its target holds a byte that is not allowed"),
        ("GET /a#b HTTP/1.1", "400 the request is malformed: its target has a fragment"),
        ("CONNECT a:80 HTTP/1.1", "405 the method CONNECT is served for WebSockets over HTTP/2 only"),
        ("GET other HTTP/1.1", "400 the request is malformed: its target is neither a path nor a URL"),
        ("GET * HTTP/1.1", "400 the request is malformed: its target is neither a path nor a URL"),
        ("GET ftp://a/ HTTP/1.1", "400 the request is malformed: its target is neither a path nor a URL"),
    ];
    for (line, want) in rows {
        check(&format!("{line}\r\nHost: a\r\n\r\n"), want);
    }
    check("GET / HTTP/1.1\nHost: a\n\n", "400 the request is malformed: a line of its head ends in LF without CR");
    check("GET / HTTP/1.1\r\n\r\n", "400 the request is malformed: it has no Host");
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    check(old, "400 the request is malformed: it has a Transfer-Encoding, which HTTP/1.0 does not know");
}

#[test]
fn limits_of_a_head() {
    let target = "a".repeat(200);
    let long = "414 the request's target is longer than 100 bytes";
    check(&format!("GET /{target} HTTP/1.1\r\n"), long);
    check(&format!("GET /{target}"), long);
    let many = "X: y\r\n".repeat(20);
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "431 the request has more than 20 header fields");
    let large = "y".repeat(9000);
    let too_large = "431 the request's head is longer than 8192 bytes";
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}\r\n\r\n"), too_large);
    check(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {large}"), too_large);
}

#[test]
fn chunks_end_where_they_say() {
    let rows = [
        ("g\r\n", "the size of a chunk is no hexadecimal number"),
        ("\r\n", "the size of a chunk is no hexadecimal number"),
        ("+1\r\n", "the size of a chunk is no hexadecimal number"),
        ("0x1\r\n", "the size of a chunk is no hexadecimal number"),
        (" 1\r\n", "the size of a chunk is no hexadecimal number"),
        ("1 \r\n", "the size of a chunk is no hexadecimal number"),
        ("1 2\r\n", "the size of a chunk is no hexadecimal number"),
        ("-1\r\n", "the size of a chunk is no hexadecimal number"),
        ("1000000000000000\r\n", "the size of a chunk is no hexadecimal number"),
        ("00000000000000001\r\n", "the size of a chunk is no hexadecimal number"),
        ("1\n", "the size of a chunk is no hexadecimal number"),
        ("1\rX", "the size of a chunk ends in CR without LF"),
        ("1;a\nb\r\n", "a chunk extension holds a control character"),
        ("1;a\rb", "the size of a chunk ends in CR without LF"),
        ("1\r\nab", "a chunk is longer than its size"),
        ("1\r\na\n", "a chunk is longer than its size"),
        ("0\r\nGET / HTTP/1.1\r\n", "a trailer field holds a byte that is not allowed"),
        ("0\r\n x: y\r\n", "a trailer field holds a byte that is not allowed"),
        ("0\r\nx : y\r\n", "a trailer field holds a byte that is not allowed"),
        ("0\r\nx: y\n", "a trailer field holds a byte that is not allowed"),
        ("0\r\n\rX", "its trailers end in no line end"),
    ];
    for (body, want) in rows {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
        check(&format!("{head}{body}"), &format!("body: the request is malformed: {want}"));
    }
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let long = format!("{head}1;{}\r\n", "x".repeat(20_000));
    check(&long, "body: the request is malformed: its chunk extensions and trailers are too long");
}

/// CVE-2026-2833: what follows a request for another protocol is not the new protocol's before the answer says so.
#[test]
fn what_follows_an_upgrade_waits_for_the_answer() {
    let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    let next = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";
    check(&format!("{upgrade}{next}"), &format!("1 passed, {} held", next.len()));
    let (_, _, mut framing) = feed(upgrade.as_bytes(), 5);
    assert!(framing.is_undecided());
    framing.decide(false);
    assert_eq!(framing.scan(next.as_bytes()), Scan { pass: next.len(), stop: Stop::Nothing });
    assert_eq!(framing.requests(), 2);
    let (_, _, mut framing) = feed(upgrade.as_bytes(), 5);
    framing.decide(true);
    assert_eq!(framing.scan(b"\0\n\r anything"), Scan { pass: 12, stop: Stop::Nothing });
    assert_eq!(framing.expected(0), Expected::Anything);
    // HTTP/1.0 has no upgrades.
    check("GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n", "1 passed, then Request");
}

fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
    frame.resize(9 + payload, 0);
    frame
}

/// How many of these frames pass, after `others`.
fn flood(others: &[Vec<u8>], frame: &[u8]) -> usize {
    let mut framing = Framing::new(LIMITS);
    assert_eq!(framing.scan(&[PREFACE, &others.concat()].concat()).stop, Stop::Nothing);
    (0..1000).take_while(|_| framing.scan(frame).stop == Stop::Nothing).count()
}

/// CVE-2019-9512 (PING), CVE-2019-9515 (SETTINGS), CVE-2019-9513 (PRIORITY), CVE-2019-9518 (empty DATA), CVE-2024-27316
/// (CONTINUATION), CVE-2025-8671 (WINDOW_UPDATE).
#[test]
fn frames_that_carry_nothing_are_counted() {
    for (kind, payload, answered) in [(6, 8, 2), (4, 0, 2), (2, 5, 1), (0, 0, 1), (9, 0, 1), (8, 4, 1), (77, 3, 1)] {
        assert_eq!(flood(&[], &frame(kind, 0, payload)), 1000 / (9 + payload) / answered, "type {kind}");
    }
    assert_eq!(flood(&[], &frame(0, 0, 5)), 1000, "data is no flood");
    assert_eq!(flood(&[frame(0, 0, 991)], &frame(6, 0, 8)), 2000 / 34, "beside data there may be more");
    let mut framing = Framing::new(LIMITS);
    framing.scan(PREFACE);
    framing.wrote(34_000);
    assert!((0..1000).all(|_| framing.scan(&frame(6, 0, 8)).stop == Stop::Nothing), "and beside responses");
}

/// CVE-2023-44487.
#[test]
fn streams_that_are_reset_are_counted() {
    let opened_and_reset = [frame(1, 4, 20), frame(3, 0, 4)].concat();
    assert_eq!(flood(&[], &opened_and_reset), 10);
    let served = vec![frame(1, 5, 20); 100];
    assert_eq!(flood(&served, &opened_and_reset), 100, "as many as there were others");
}

#[test]
fn a_preface_in_pieces_is_http_2() {
    let (passed, stop, framing) = feed(PREFACE, 1);
    assert_eq!((passed.as_slice(), stop, framing.expected(0)), (PREFACE, Stop::Nothing, Expected::Frames));
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\rX", "400 the request is malformed: its target is neither a path nor a URL");
    check("PRI", "0 passed, then part of a head");
}

proptest! {
    /// However the bytes arrive, they pass, stop and are refused alike; nothing panics.
    #[test]
    fn pieces_change_nothing(
        parts in prop::collection::vec(prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /a HTTP/1.0\r\n", "Host: a\r\n", "Content-Length: 3\r\n", "Upgrade: x\r\n",
            "Transfer-Encoding: chunked\r\n", "\r\n", "\n", "abc", "3\r\nabc\r\n", "0\r\n\r\n", ";x", " ", "\0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]), 0..12),
        piece in 1_usize..40,
    ) {
        let text = parts.concat();
        let (whole, pieces) = (feed(text.as_bytes(), usize::MAX), feed(text.as_bytes(), piece));
        // Of a body that breaks, what came with the break is not passed either.
        let broken = matches!(whole.1, Stop::Broken(_));
        prop_assert!(broken || whole.0 == pieces.0);
        prop_assert_eq!((whole.1, whole.2.heads), (pieces.1, pieces.2.heads));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, piece in 1_usize..9) {
        feed(&bytes, piece);
    }
}
