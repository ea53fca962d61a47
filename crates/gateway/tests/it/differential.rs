//! The same bytes to nginx, haproxy and the gateway, each in front of a recorder of its own.
//!
//! What the gateway hands on must be what the others hand on, and nothing that both of them refuse; it may refuse more.
//! A seed makes the bytes: a request by a grammar, then mutations. `COLIBRI_DIFFERENTIAL_SEED` and
//! `COLIBRI_DIFFERENTIAL_CASES` choose; a failure prints the seed of its case. Without the two programs the test says so
//! and is skipped, except in CI.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gateway::random::{Random, below};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::recorder::{MALFORMED, Recorder, Seen};
use crate::seeded;
use crate::world::{PODS, World, pod};

const SEED: u64 = 20_261_129;
const CASES: u64 = 3_000;
/// After so long without a byte a server waits for more.
const QUIET: Duration = Duration::from_millis(150);
/// The same, for a case that looks wrong.
const PATIENT: Duration = Duration::from_secs(3);
const HOST: &str = "attack.ns.localhost";
/// Sent behind each case: whoever sees its end elsewhere sees these otherwise.
const TAIL: &str = "GET /end HTTP/1.1\r\nHost: attack.ns.localhost\r\nConnection: close\r\n\r\n";

/// What one server made of a case.
#[derive(Debug, PartialEq, Eq)]
struct View {
    method: String,
    target: String,
    host: Vec<String>,
    body: Option<Vec<u8>>,
}

impl View {
    fn of(seen: Seen) -> Self {
        // Of a URL some hand on the field's host, some the URL's own.
        let host = |host: &str| {
            let name = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
            name.strip_suffix('.').unwrap_or(&name).to_owned()
        };
        let host = seen.values("host").into_iter().map(host).collect();
        // One that is empty is none.
        let body = Some(seen.body).filter(|body| !body.is_empty());
        let target = seen.target.split_once("://").map_or(seen.target.clone(), |(_, rest)| {
            rest.find('/').map_or("/".to_owned(), |path| rest[path..].to_owned())
        });
        Self { method: seen.method, target, host, body }
    }
}

struct Server {
    name: &'static str,
    address: SocketAddr,
    recorder: Recorder,
}

impl Server {
    /// Sends the bytes, waits until nothing more comes, and says what the recorder saw.
    async fn views(&self, bytes: &[u8], quiet: Duration) -> Vec<View> {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let mut space = vec![0; 16 * 1024];
        while let Ok(Ok(1..)) = timeout(quiet, stream.read(&mut space)).await {}
        drop(stream);
        self.recorder.take().into_iter().map(View::of).collect()
    }
}

/// A child process in a folder of its own; both go with it.
struct Program {
    child: Child,
    folder: PathBuf,
}

impl Program {
    fn start(name: &str, configuration: &str, arguments: impl Fn(&Path) -> Vec<String>) -> Self {
        let folder = std::env::temp_dir().join(format!("colibri-differential-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("configuration"), configuration).unwrap();
        let child = Command::new(name)
            .args(arguments(&folder))
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { child, folder }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn is_there(name: &str) -> bool {
    let found = Command::new(name).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

fn nginx(port: u16, recorder: &Recorder) -> Program {
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].iter().fold(String::new(), |mut text, kind| {
            let _ = writeln!(text, "{kind}_temp_path {kind};");
            text
        });
    let configuration = format!(
        "user root; daemon off; master_process off; pid nginx.pid; error_log log;
         events {{ worker_connections 512; }}
         http {{ access_log off; {temporary}
           server {{ listen 127.0.0.1:{port};
             location / {{ proxy_pass http://{}:{}; proxy_http_version 1.1; proxy_request_buffering off;
               proxy_set_header Host $http_host; proxy_set_header Connection \"\"; }} }} }}",
        recorder.ip, recorder.port
    );
    Program::start("nginx", &configuration, |folder| {
        vec!["-p".into(), folder.display().to_string(), "-c".into(), "configuration".into()]
    })
}

fn haproxy(port: u16, recorder: &Recorder) -> Program {
    let configuration = format!(
        "global\n  maxconn 500\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 10s\n  timeout server 10s\n\
         frontend all\n  bind 127.0.0.1:{port}\n  default_backend recorder\n\
         backend recorder\n  server recorder {}:{}\n",
        recorder.ip, recorder.port
    );
    Program::start("haproxy", &configuration, |_| vec!["-db".into(), "-f".into(), "configuration".into()])
}

async fn serves(server: &Server) {
    let request = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    for _ in 0..300 {
        if TcpStream::connect(server.address).await.is_ok()
            && server.views(request.as_bytes(), PATIENT).await.len() == 1
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{} does not come up", server.name);
}

// What requests are made of: what is plain, and what is not.

const METHODS: [&[&str]; 2] =
    [&["GET", "POST", "PUT", "PATCH", "DELETE"], &["HEAD", "OPTIONS", "get", "X-Y", "TRACE", "CONNECT"]];
const TARGETS: [&[&str]; 2] = [
    &["/", "/a?b=c", "/%2e%2e/x", "/a;b", "http://attack.ns.localhost/abs", "//x/y"],
    &[
        "http://attack.ns.localhost",
        "http://other.ns.localhost/abs",
        "*",
        "/a%00b",
        "/?",
        "/a\\b",
        "/\u{fc}",
        "/../x",
        "http://attack.ns.localhost?x",
        "https://attack.ns.localhost/",
        "HTTP://attack.ns.localhost:80/",
        "attack.ns.localhost",
        "/a#b",
        "/a b",
        "http://u@attack.ns.localhost/",
        "/{}|^`\"<>",
        "/a//b/./c",
    ],
];
const VERSIONS: [&[&str]; 2] = [&["HTTP/1.1"], &["HTTP/1.0", "HTTP/1.0", "HTTP/1.2", "HTTP/2.0", "http/1.1"]];
const HOSTS: [&[&str]; 2] = [
    &["Host: attack.ns.localhost", "host:attack.ns.localhost", "HOST: ATTACK.ns.localhost:80"],
    &[
        "Host: attack.ns.localhost.",
        "Host: attack.ns.localhost\r\nHost: other",
        "Host: other\r\nHost: attack.ns.localhost",
        "Host: attack.ns.localhost\r\nHost: attack.ns.localhost",
        "Host: attack.ns.localhost:",
        "Host: attack.ns.localhost\t",
        "Host: attack.ns.localhost, other",
        "X: y",
    ],
];
const FIELDS: [&[&str]; 2] = [
    &["X: y", "X-Y:z", "X:", "Accept: */*", "Cookie: a=b; c=d"],
    &[
        "Connection: close",
        "Connection: keep-alive",
        "Connection: Host, Content-Length",
        "Connection: Transfer-Encoding",
        "TE: trailers",
        "TE: chunked",
        "X: a\r\n b",
        "X : y",
        "Upgrade: websocket\r\nConnection: Upgrade",
        "Upgrade: h2c",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",
        "X_Y: z",
        "Content_Length: 3",
        "Content-Length : 3",
        "Trailer: X",
        "Expect: 100-continue",
        "Content-Type: text/plain",
    ],
];
const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
const BODIES: [&[(&str, &str)]; 2] = [
    &[
        ("", ""),
        ("Content-Length: 5\r\n", "hello"),
        ("Content-Length: 0\r\n", ""),
        (CHUNKED, "5\r\nhello\r\n0\r\n\r\n"),
    ],
    &[
        ("Content-Length: 005\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 5\r\nContent-Length: 3\r\n", "hello"),
        ("Content-Length: 5, 5\r\n", "hello"),
        ("Content-Length: +5\r\n", "hello"),
        ("Content-Length: 0x5\r\n", "hello"),
        ("Content-Length:\t5\r\n", "hello"),
        ("Content-Length:\r\n", ""),
        (CHUNKED, "05\r\nhello\r\n000\r\n\r\n"),
        (CHUNKED, "5;a=b\r\nhello\r\n0;c\r\n\r\n"),
        (CHUNKED, "5 ; a\r\nhello\r\n0\r\n\r\n"),
        (CHUNKED, "5;a=\"b\r\n\"\r\nhello\r\n0\r\n\r\n"),
        (CHUNKED, "5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
        (CHUNKED, "5\nhello\n0\n\n"),
        (CHUNKED, "5\r\nhelloX\r\n0\r\n\r\n"),
        (CHUNKED, "0x5\r\nhello\r\n0\r\n\r\n"),
        (CHUNKED, "A\r\n0123456789\r\n0\r\n\r\n"),
        ("transfer-encoding:Chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: \tchunked\t\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked, chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked, gzip\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"),
        ("Transfer-Encoding: xchunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding:\r\n chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("X: y\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("X: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
    ],
];

/// Makes the bytes of one case.
struct Maker(Random);

impl Maker {
    fn below(&mut self, bound: usize) -> usize {
        below(self.0.next(), bound)
    }

    fn pick<'t>(&mut self, texts: &[&'t str]) -> &'t str {
        texts[self.below(texts.len())]
    }

    /// One of those that are plain, or, one time in five, one of the others.
    fn mostly<'t>(&mut self, plain: &[&'t str], others: &[&'t str]) -> &'t str {
        let texts = if self.below(5) > 0 { plain } else { others };
        self.pick(texts)
    }

    fn request(&mut self) -> Vec<u8> {
        let method = self.mostly(METHODS[0], METHODS[1]);
        let target = self.mostly(TARGETS[0], TARGETS[1]);
        let version = self.mostly(VERSIONS[0], VERSIONS[1]);
        let host = self.mostly(HOSTS[0], HOSTS[1]);
        let mut text = format!("{method} {target} {version}\r\n{host}\r\n");
        for _ in 0..self.below(3) {
            text.push_str(self.mostly(FIELDS[0], FIELDS[1]));
            text.push_str("\r\n");
        }
        let bodies = BODIES[usize::from(self.below(4) == 0)];
        let (framing, body) = bodies[self.below(bodies.len())];
        text.push_str(framing);
        text.push_str("\r\n");
        text.push_str(body);
        let mut bytes = text.into_bytes();
        for _ in 0..[0, 0, 0, 1, 1, 1, 2][self.below(7)] {
            self.mutate(&mut bytes);
        }
        bytes
    }

    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len().max(1)).min(bytes.len() - 1);
        match self.below(9) {
            0 | 1 => {
                let special = b"\0\r\n\t \x0b\x0c\x7f\x80\xff:;,\"#@/%\\_0";
                let byte = special[self.below(special.len())];
                bytes.insert(at, byte);
            }
            2 => {
                bytes.remove(at);
            }
            3 => bytes[at] = bytes[at].wrapping_add(1),
            4 => bytes[at] ^= 0x20,
            // A line again, or one of the lines' ends.
            5 => {
                let lines: Vec<Vec<u8>> = bytes.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
                let line = lines[self.below(lines.len())].clone();
                bytes.splice(at..at, line);
            }
            6 | 7 => {
                let ends: Vec<usize> = (1..bytes.len()).filter(|at| bytes[at - 1..=*at] == *b"\r\n").collect();
                if !ends.is_empty() {
                    let end = ends[self.below(ends.len())];
                    let with: &[u8] =
                        [&b"\n"[..], b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\r\n ", b""][self.below(7)];
                    bytes.splice(end - 1..=end, with.iter().copied());
                }
            }
            _ => {
                let more = bytes[..at].to_vec();
                bytes.splice(0..0, more);
            }
        }
        if bytes.is_empty() {
            bytes.push(b' ');
        }
    }
}

/// Whether a view is the other server's, or differs for a reason.
fn is_same(ours: &View, other: &View) -> bool {
    // Not even the workload takes what the other one hands on.
    other.method == MALFORMED
        || other == ours
        // nginx is told to hand on the Host field, and HTTP/1.0 may name its host in the URL alone.
        || (other.host.is_empty() && other.method == ours.method && other.target == ours.target && other.body == ours.body)
}

/// Whether there is a reason why this server may refuse, on its way, what the gateway accepts.
fn may_refuse(server: &str, bytes: &[u8]) -> bool {
    let first = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window.eq_ignore_ascii_case(text.as_bytes()));
    let is = |methods: &[&str]| methods.iter().any(|method| first.starts_with(method.as_bytes()));
    // A request begins where the body before it had no length.
    let merged = has("elloGET") || has("loGET") || has("oGET");
    match server {
        // It serves no TRACE, and knows no methods but of capitals; any token is one (RFC 9110 section 9.1).
        "nginx" => {
            let method = first.split(|byte| *byte == b' ').next().unwrap_or_default();
            is(&["TRACE"])
                || merged
                || !method.iter().all(|byte| byte.is_ascii_uppercase() || b"_-".contains(byte))
                // Nor paths that lead above the root or hold NUL: what those mean is the workload's.
                || ["/..", "%2e%2e", "%00"].iter().any(|text| has(text))
                // White space behind a value is none of it (RFC 9110 section 5.5).
                || has("localhost\t")
        }
        _ => {
            // It checks the handshake of WebSockets, which is the workload's part.
            has("Upgrade: websocket")
                // Clients such as curl send a target as it was typed.
                || first.iter().any(|byte| !byte.is_ascii())
                // It compares a URL's host and port with the field's byte by byte.
                || first.windows(3).any(|window| window == b"://")
                // HTTP/1.0 says nothing of which methods have bodies.
                || (is(&["GET", "HEAD", "DELETE"]) && first.ends_with(b"HTTP/1.0"))
        }
    }
}

/// What is wrong with a case, if anything. The gateway answers some requests itself, and goes on where others end.
fn fault(bytes: &[u8], ours: &[View], others: [(&str, &[View]); 2]) -> Option<String> {
    let mut left = others;
    for (at, view) in ours.iter().enumerate() {
        if view.method == MALFORMED {
            return Some(format!("request {at} is none: {}", view.target));
        }
        // Of each server that refuses, whether it has a reason.
        let mut refusals = Vec::new();
        for (name, views) in &mut left {
            match views.iter().position(|other| is_same(view, other)) {
                Some(found) => *views = &views[found + 1..],
                // What is left is for hosts that the gateway answers for.
                None if views.iter().all(|other| other.host != [HOST]) => {
                    refusals.push(may_refuse(name, bytes));
                }
                None => return Some(format!("request {at} is another one to {name}: {view:?}, not {views:?}")),
            }
        }
        if refusals.len() == left.len() && refusals.contains(&false) {
            return Some(format!("request {at} is accepted, and refused by both others: {view:?}"));
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_workload_sees_what_it_would_see_behind_nginx_and_haproxy() {
    if let Some(missing) = ["nginx", "haproxy"].iter().find(|name| !is_there(name)) {
        assert!(std::env::var("CI").is_err(), "{missing} is not installed");
        let _ = writeln!(std::io::stderr(), "{missing} is not installed: the differential suite is skipped");
        return;
    }
    let number = |name: &str, default: u64| {
        std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}: {text}")))
    };
    let (seed, cases) = (number("COLIBRI_DIFFERENTIAL_SEED", SEED), number("COLIBRI_DIFFERENTIAL_CASES", CASES));
    let recorders = [Recorder::start(191).await, Recorder::start(192).await, Recorder::start(193).await];
    let world = World::start(seeded(1)).await;
    world.service("attack", recorders[0].port, json!({})).await;
    world.api.put(PODS, pod("attack-1", "p", Some(recorders[0].ip)));
    let ports = [free_port(), free_port()];
    let _programs = [nginx(ports[0], &recorders[1]), haproxy(ports[1], &recorders[2])];
    let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let addresses = [("gateway", world.public), ("nginx", at(ports[0])), ("haproxy", at(ports[1]))];
    let servers: Vec<Server> = recorders
        .into_iter()
        .zip(addresses)
        .map(|(recorder, (name, address))| Server { name, address, recorder })
        .collect();
    for server in &servers {
        serves(server).await;
    }
    let (mut faults, mut accepted, mut stricter) = (Vec::new(), 0, 0);
    for case in seed..seed + cases {
        let mut bytes = Maker(Random::new(case)).request();
        bytes.extend(TAIL.repeat(3).as_bytes());
        let compare = async |quiet| {
            let [ours, nginx, haproxy] =
                [&servers[0], &servers[1], &servers[2]].map(|server| server.views(&bytes, quiet));
            let (ours, nginx, haproxy) = tokio::join!(ours, nginx, haproxy);
            let fault = fault(&bytes, &ours, [("nginx", &nginx), ("haproxy", &haproxy)]);
            (fault, ours.len(), nginx.len().min(haproxy.len()))
        };
        let (mut fault, ours, least) = compare(QUIET).await;
        if fault.is_some() {
            // A server may only have been slow.
            fault = compare(PATIENT).await.0;
        }
        accepted += usize::from(ours > 0);
        stricter += usize::from(ours < least);
        if let Some(fault) = fault {
            faults.push(format!("seed {case}: {}\n  {fault}", bytes[..bytes.len() - 3 * TAIL.len()].escape_ascii()));
        }
    }
    let _ = writeln!(
        std::io::stderr(),
        "{cases} cases: {accepted} accepted, {stricter} of which the gateway accepts less than both others"
    );
    assert!(accepted as u64 > cases / 5, "only {accepted} of {cases} cases were accepted at all");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}
