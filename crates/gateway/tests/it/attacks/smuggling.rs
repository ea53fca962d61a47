//! Requests whose end two servers would see at different places.

use api::config::Gateway as ClientLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{LONG, attacked, converse};
use crate::recorder::Recorder;

const HOST: &str = "Host: attack.ns.localhost\r\n";

/// Sends each request, with another one behind it that must not be seen, and looks at the answer's status and text.
async fn refused(ip: u8, rows: &[(&str, &str, &str)]) {
    let recorder = Recorder::start(ip).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    for (attack, request, want) in rows {
        let bytes = format!("{request}GET /smuggled HTTP/1.1\r\n{HOST}\r\n");
        let answer = converse(world.public, bytes.as_bytes()).await;
        let (status, text) = want.split_once(' ').unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{attack}: {answer}");
        assert!(answer.contains(text), "{attack}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{attack}: one answer, then the end: {answer}");
        assert_eq!(recorder.take(), [], "{attack}");
    }
    assert_eq!(world.get("attack.ns.localhost").await.0, 200);
}

/// CVE-2025-4366 and CVE-2026-2835 (pingora), CVE-2025-22871 (Go), CVE-2026-2836, and what each of them is a case of.
#[tokio::test]
async fn two_framings_are_refused() {
    let rows = [
        (
            "CL.TE",
            "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
            "400 both a Content-Length and a",
        ),
        ("TE.CL", "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n", "400 both a Content-Length and a"),
        ("TE.0", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", "400 both a Content-Length and a"),
        (
            "TE.TE",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
            "400 more than one Transfer-Encoding",
        ),
        ("TE.TE", "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "501 other than chunked"),
        ("xchunked", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501 other than chunked"),
        ("list", "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", "501 other than chunked"),
        ("chunked twice", "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "501 other than chunked"),
        ("vertical tab", "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", "400 control character"),
        ("form feed", "Transfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n", "400 control character"),
        ("folded", "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", "501 other than chunked"),
        ("folded away", "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 folded"),
        ("space before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400 white space"),
        ("tab before the colon", "Content-Length\t: 5\r\n\r\nhello", "400 white space"),
        ("LF in front", "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 LF without CR"),
        ("LF at the end", "X: y\r\n\n0\r\n\r\n", "400 LF without CR"),
        ("CR in front", "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400 CR without LF"),
        ("NUL in a value", "X: y\0z\r\n\r\n", "400 control character"),
        ("NUL in a name", "Transfer-Encoding\0: chunked\r\n\r\n0\r\n\r\n", "400 not allowed"),
        ("NUL in the length", "Content-Length: 5\x001\r\n\r\nhello", "400 control character"),
        ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", "400 more than one Content-Length"),
        (
            "the same length twice",
            "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "400 more than one Content-Length",
        ),
        ("a list of lengths", "Content-Length: 5, 5\r\n\r\nhello", "400 Content-Length is no number"),
        ("a plus", "Content-Length: +5\r\n\r\nhello", "400 Content-Length is no number"),
        ("a minus", "Content-Length: -5\r\n\r\nhello", "400 Content-Length is no number"),
        ("hexadecimal", "Content-Length: 0x5\r\n\r\nhello", "400 Content-Length is no number"),
        ("an exponent", "Content-Length: 5e0\r\n\r\nhello", "400 Content-Length is no number"),
        ("overflow", "Content-Length: 18446744073709551621\r\n\r\nhello", "400 Content-Length is no number"),
        ("no number", "Content-Length: \r\n\r\nhello", "400 Content-Length is no number"),
        ("no colon", "Content-Length 5\r\n\r\nhello", "400 white space"),
        ("no name", ": x\r\n\r\n", "400 not allowed"),
    ];
    let rows: Vec<(&str, String, &str)> =
        rows.iter().map(|(attack, rest, want)| (*attack, format!("POST / HTTP/1.1\r\n{HOST}{rest}"), *want)).collect();
    let rows: Vec<(&str, &str, &str)> =
        rows.iter().map(|(attack, text, want)| (*attack, text.as_str(), *want)).collect();
    refused(201, &rows).await;
}

#[tokio::test]
async fn first_lines_and_versions_that_mislead_are_refused() {
    let host = HOST;
    let rows = [
        // CVE-2026-2835.
        (
            "HTTP/1.0 and chunks",
            format!("POST / HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            "400 HTTP/1.0",
        ),
        ("HTTP/0.9", "GET /\r\n".to_owned(), "400 no version"),
        ("HTTP/1.2", format!("GET / HTTP/1.2\r\n{host}\r\n"), "505 version"),
        ("HTTP/3", format!("GET / HTTP/3.0\r\n{host}\r\n"), "505 version"),
        ("half a preface", format!("PRI * HTTP/2.0\r\n{host}\r\n"), "400 neither a path nor a URL"),
        ("two spaces", format!("GET  / HTTP/1.1\r\n{host}\r\n"), "400 target"),
        ("a space in the target", format!("GET /a b HTTP/1.1\r\n{host}\r\n"), "400 version"),
        ("a tab in the target", format!("GET /a\tb HTTP/1.1\r\n{host}\r\n"), "400 target"),
        ("a CR in the target", format!("GET /a\rb HTTP/1.1\r\n{host}\r\n"), "400 version"),
        ("LF", format!("GET / HTTP/1.1\n{host}\r\n"), "400 LF without CR"),
        ("a space in front of the fields", format!("GET / HTTP/1.1\r\n {host}\r\n"), "400 folded"),
        ("a space in front", format!(" GET / HTTP/1.1\r\n{host}\r\n"), "400 method"),
        // CVE-2023-45539.
        ("a fragment", format!("GET /a#b HTTP/1.1\r\n{host}\r\n"), "400 fragment"),
    ];
    let rows: Vec<(&str, &str, &str)> =
        rows.iter().map(|(attack, text, want)| (*attack, text.as_str(), *want)).collect();
    refused(202, &rows).await;
}

/// Chunks of which two servers would make different bodies, as in TE.CL by chunk extensions ("funky chunks").
#[tokio::test]
async fn bodies_that_end_at_two_places_break() {
    let recorder = Recorder::start(203).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let rows = [
        ("no number", "x\r\n", "no hexadecimal number"),
        ("a sign", "+5\r\nhello\r\n0\r\n\r\n", "no hexadecimal number"),
        ("a prefix", "0x5\r\nhello\r\n0\r\n\r\n", "no hexadecimal number"),
        ("overflow", "fffffffffffffffff5\r\nhello\r\n0\r\n\r\n", "no hexadecimal number"),
        ("LF", "5\nhello\r\n0\r\n\r\n", "no hexadecimal number"),
        ("LF in an extension", "5;\nhello\r\n0\r\n\r\n", "chunk extension"),
        ("CR in an extension", "5;a\rb\r\nhello\r\n0\r\n\r\n", "CR without LF"),
        ("longer than it says", "5\r\nhello!\r\n0\r\n\r\n", "longer than its size"),
        ("ends in LF", "5\r\nhello\n0\r\n\r\n", "longer than its size"),
        ("ends in other bytes", "5\r\nhelloXX0\r\n\r\n", "longer than its size"),
        ("a request for a trailer", "0\r\nGET /smuggled HTTP/1.1\r\n", "trailer"),
        ("a folded trailer", "0\r\nx: y\r\n z\r\n\r\n", "trailer"),
    ];
    for (attack, body, want) in rows {
        let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
        let next = format!("GET /smuggled HTTP/1.1\r\n{HOST}\r\n");
        let answer = converse(world.public, format!("{head}{body}{next}").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(want), "{attack}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{attack}: {answer}");
        assert_eq!(recorder.take(), [], "{attack}");
    }
    let extra = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(20_000));
    let head = format!("POST / HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    assert!(converse(world.public, format!("{head}{extra}").as_bytes()).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(recorder.take(), []);
}

#[tokio::test]
async fn well_formed_bodies_arrive_as_they_were() {
    let recorder = Recorder::start(204).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let bodies = [
        ("Content-Length: 5\r\n\r\nhello", "hello"),
        ("content-length:\t005 \r\n\r\nhello", "hello"),
        ("Transfer-Encoding: CHUNKED\r\n\r\n2;x=\"y\"\r\nhe\r\n0003\r\nllo\r\n0;z\r\nx: y\r\n\r\n", "hello"),
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""),
        ("\r\n", ""),
    ];
    for (rest, want) in bodies {
        let first = format!("POST /one HTTP/1.1\r\n{HOST}{rest}");
        let next = format!("\r\nGET http://ATTACK.ns.localhost:80/two?x HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n");
        // As a whole, and byte by byte.
        for size in [usize::MAX, 1] {
            let mut stream = TcpStream::connect(world.public).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for piece in format!("{first}{next}").as_bytes().chunks(size) {
                stream.write_all(piece).await.unwrap();
            }
            let mut answer = String::new();
            timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{rest:?}: {answer}");
            let seen = recorder.take();
            let lines: Vec<(&str, &str, &[u8])> =
                seen.iter().map(|seen| (seen.method.as_str(), seen.target.as_str(), seen.body.as_slice())).collect();
            assert_eq!(lines, [("POST", "/one", want.as_bytes()), ("GET", "/two?x", b"")], "{rest:?}");
        }
    }
}

/// A body is the workload's to judge, whatever the method.
#[tokio::test]
async fn no_method_loses_its_body() {
    let recorder = Recorder::start(206).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "X"] {
        for framed in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
            let request = format!("{method} / HTTP/1.1\r\n{HOST}Connection: close\r\n{framed}");
            let answer = converse(world.public, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{method}: {answer}");
            assert_eq!(recorder.take()[0].body, b"hello", "{method} {framed:?}");
        }
    }
}

/// CVE-2026-2833: bytes behind a request for another protocol are requests unless the workload takes the protocol up.
#[tokio::test]
async fn a_premature_upgrade_opens_no_tunnel() {
    let recorder = Recorder::start(205).await;
    let world = attacked(&recorder, ClientLimits::default()).await;
    let upgrade = format!("GET /ws HTTP/1.1\r\n{HOST}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    let next = format!(
        "GET /other HTTP/1.1\r\nHost: nobody.ns.localhost\r\n\r\nGET /last HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
    );
    let answer = converse(world.public, format!("{upgrade}{next}").as_bytes()).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
    assert_eq!(statuses, ["200", "404", "200"], "{answer}");
    let targets: Vec<String> = recorder.take().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/ws", "/last"]);
    // What follows is still held to the rules.
    let answer = converse(world.public, format!("{upgrade}GET /a\0b HTTP/1.1\r\n{HOST}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("HTTP/1.1 400 "), "{answer}");
    assert_eq!(recorder.take().len(), 1);
}
