//! What the gateway tells of requests: metrics, the access log, traces.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gateway::Config;
use gateway::access_log::Sink;
use gateway::metrics::{SERIES_OF_REVISION, SERIES_OF_ROUTE};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::collector::{Collector, Span};
use crate::seeded;
use crate::world::{
    Body, CONFIG_MAPS, PODS, REVISIONS, ROUTES, Workload, World, bytes, echo, endless, full, http2, pod, raw_workload,
    request, send, text, until,
};

/// A text of metrics, read strictly.
struct Scrape {
    series: BTreeMap<String, f64>,
}

impl Scrape {
    /// Source: OpenMetrics 1.0, "Overall Structure" and "ABNF".
    fn read(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with the end mark");
        let (mut kinds, mut family) = (BTreeMap::new(), String::new());
        let mut series = BTreeMap::new();
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
                if what == "HELP" {
                    assert!(!kinds.contains_key(name), "{name} is described once");
                    name.clone_into(&mut family);
                    kinds.insert(family.clone(), String::new());
                }
                assert_eq!(name, family, "{line}");
                match what {
                    "TYPE" => *kinds.get_mut(name).unwrap() = rest.to_owned(),
                    "UNIT" => assert!(name.ends_with(&format!("_{rest}")), "{line}"),
                    "HELP" => assert!(rest.ends_with('.') && rest.len() > 10, "{line}"),
                    _ => panic!("{line}"),
                }
                continue;
            }
            let (key, value) = line.rsplit_once(' ').expect("a value");
            let name = key.split('{').next().unwrap();
            let labels = key.strip_prefix(name).unwrap();
            assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
            let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} is not of {family}"));
            let suffixes: &[&str] = match kinds[&family].as_str() {
                "counter" => &["_total"],
                "gauge" => &[""],
                "histogram" => &["_bucket", "_sum", "_count"],
                kind => panic!("{family} is a {kind}"),
            };
            assert!(suffixes.contains(&suffix), "{line}");
            check_labels(labels);
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(value >= 0.0, "{line}");
            assert!(series.insert(key.to_owned(), value).is_none(), "{key} is there once");
        }
        let scrape = Self { series };
        scrape.check_histograms();
        scrape
    }

    /// Buckets grow, and the last one has all.
    fn check_histograms(&self) {
        for (key, count) in self.series.iter().filter(|(key, _)| key.split('{').next().unwrap().ends_with("_count")) {
            let labels = key.split_once('{').map_or("", |(_, labels)| labels.trim_end_matches('}'));
            let name = key.split('{').next().unwrap().trim_end_matches("_count");
            let of = |key: &str| {
                let inner = key.strip_prefix(&format!("{name}_bucket{{le=\""))?.split_once('"')?;
                (inner.1.trim_start_matches(',').trim_end_matches('}') == labels).then(|| inner.0.to_owned())
            };
            let bucket = |(key, count): (&String, &f64)| {
                let bound = of(key)?;
                Some((if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() }, *count))
            };
            let mut buckets: Vec<(f64, f64)> = self.series.iter().filter_map(bucket).collect();
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.len() > 5 && buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{key}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{key}");
        }
    }

    /// The sum of the series with that name and all of those labels.
    fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let fits = |key: &str| {
            key.split('{').next() == Some(name)
                && labels.iter().all(|(label, value)| key.contains(&format!("{label}=\"{value}\"")))
        };
        self.series.iter().filter(|(key, _)| fits(key)).map(|(_, value)| value).sum()
    }
}

/// `{name="value",…}`, or nothing; no name twice.
fn check_labels(labels: &str) {
    if labels.is_empty() {
        return;
    }
    let mut rest = labels.strip_prefix('{').and_then(|labels| labels.strip_suffix('}')).expect("braces");
    let mut names = BTreeSet::new();
    loop {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{labels}"));
        assert!(names.insert(name) && name.bytes().all(|b| b.is_ascii_lowercase() || b"_0123456789".contains(&b)));
        let end = value.find('"').unwrap_or_else(|| panic!("{labels}"));
        assert!(!value[..end].contains(['\\', '\n']), "{labels}");
        match value[end + 1..].strip_prefix(',') {
            Some(more) => rest = more,
            None => return assert_eq!(&value[end + 1..], "", "{labels}"),
        }
    }
}

impl World {
    fn scrape(&self) -> Scrape {
        Scrape::read(&self.gateway.metrics())
    }

    fn observe(&self, data: Value) {
        let metadata = json!({"name": "config-observability", "namespace": "colibri-system"});
        self.api.put(CONFIG_MAPS, json!({"metadata": metadata, "data": data}));
    }

    fn trace_to(&self, collector: &Collector, protocol: &str, share: &str) {
        self.observe(json!({"tracing-protocol": protocol, "tracing-sampling-rate": share,
            "tracing-endpoint": format!("http://{}", collector.address)}));
    }
}

/// Answers with what it got as `traceparent`, `tracestate` and B3.
async fn tell_trace(request: Request<Incoming>) -> Response<Body> {
    let of = |name: &str| request.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    let names = ["traceparent", "tracestate", "b3", "x-b3-traceid"];
    full(names.map(of).join("\n"))
}

const R: (&str, &str) = ("kn_revision_name", "m-1");

#[tokio::test]
async fn metrics_are_valid_and_count_by_class_protocol_and_cause() {
    let world = World::start(seeded(1)).await;
    let mut workload = Workload::start(241, 0, |request: Request<Incoming>| async move {
        match request.uri().path() {
            "/ws" => echo(request, "websocket"),
            "/endless" => Response::new(endless("first")),
            path => {
                let mut response = full("ok");
                *response.status_mut() = path.trim_start_matches('/').parse().unwrap();
                response
            }
        }
    })
    .await;
    world.service("m", workload.port, json!({})).await;
    // From zero.
    let get = |path: &str| send(world.public, request("GET", "m.ns.localhost", path, ""));
    let cold = tokio::spawn(send(world.public, request("GET", "m.ns.localhost", "/200", "")));
    world.loaded("m-1", 1).await;
    until(|| world.scrape().get("kn_revision_request_queued", &[R]) == 1.0).await;
    world.api.put(PODS, pod("m-1", "p", Some(workload.ip)));
    assert_eq!(text(cold.await.unwrap()).await, "ok");
    for path in ["/200", "/204", "/301", "/404", "/404", "/500"] {
        get(path).await.into_body().collect().await.unwrap();
    }
    let mut h2 = http2(world.public).await;
    for kind in ["text/plain", "application/grpc"] {
        let request = Request::post("http://m.ns.localhost/200").header("content-type", kind);
        h2.send_request(request.body(Empty::<Bytes>::new()).unwrap())
            .await
            .unwrap()
            .into_body()
            .collect()
            .await
            .unwrap();
    }
    let mut socket = TcpStream::connect(world.public).await.unwrap();
    let handshake = "GET /ws HTTP/1.1\r\nhost: m.ns.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    socket.write_all(handshake.as_bytes()).await.unwrap();
    crate::world::up_to(&mut socket, "\r\n\r\n").await;
    drop(socket);
    // A client that leaves in the middle of a response.
    let mut left = get("/endless").await;
    assert_eq!(left.body_mut().frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    drop(left);
    world.loaded("m-1", 0).await;
    let scrape = world.scrape();
    let class = |class, protocol| {
        scrape.get("gateway_requests_total", &[R, ("response_code_class", class), ("protocol", protocol)])
    };
    assert_eq!((class("2xx", "http1"), class("3xx", "http1"), class("4xx", "http1")), (4.0, 1.0, 2.0));
    assert_eq!((class("5xx", "http1"), class("2xx", "http2"), class("2xx", "grpc")), (1.0, 1.0, 1.0));
    assert_eq!(class("1xx", "upgrade"), 1.0);
    let route = |class| {
        let labels = [("kn_route_name", "m"), ("k8s_namespace_name", "ns"), ("response_code_class", class)];
        scrape.get("gateway_route_requests_total", &labels)
    };
    assert_eq!((route("1xx"), route("2xx"), route("4xx"), route("5xx")), (1.0, 6.0, 2.0, 1.0));
    assert_eq!(scrape.get("kn_serving_invocation_duration_seconds_count", &[R]), 11.0);
    assert_eq!(scrape.get("gateway_route_request_duration_seconds_count", &[("kn_route_name", "m")]), 11.0);
    assert_eq!(scrape.get("gateway_queue_duration_seconds_count", &[R]), 1.0, "one has waited");
    assert_eq!(scrape.get("gateway_cold_starts_total", &[R]), 1.0);
    assert_eq!(scrape.get("gateway_cold_start_duration_seconds_count", &[R]), 1.0);
    for stage in ["schedule", "start", "probe"] {
        let labels = [R, ("stage", stage)];
        assert_eq!(scrape.get("gateway_cold_start_stage_duration_seconds_count", &labels), 1.0, "{stage}");
    }
    assert_eq!(scrape.get("gateway_errors_total", &[R, ("cause", "client_gone")]), 1.0);
    assert!(scrape.get("gateway_upstream_connections_opened_total", &[]) >= 2.0);
    assert!(scrape.get("gateway_connections_opened_total", &[]) >= 9.0);
    // The instance refuses, then there is none, and the client does not wait.
    workload.refuse().await;
    until(|| world.scrape().get("gateway_connections", &[]) == 1.0).await;
    drop(h2);
    until(|| world.scrape().get("gateway_connections", &[]) == 0.0).await;
    // A POST takes no connection that has been idle for longer than half a second.
    sleep(Duration::from_millis(600)).await;
    let mut gone = TcpStream::connect(world.public).await.unwrap();
    gone.write_all(b"POST /200 HTTP/1.1\r\nhost: m.ns.localhost\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    until(|| world.scrape().get("gateway_errors_total", &[R, ("cause", "connect_refused")]) > 0.0).await;
    drop(gone);
    let left = || world.scrape().get("gateway_errors_total", &[R, ("cause", "client_gone")]);
    until(|| left() == 2.0).await;
    let gone = [R, ("response_code_class", "4xx"), ("protocol", "http1")];
    assert_eq!(world.scrape().get("gateway_requests_total", &gone), 3.0, "one without an answer counts as 499");
}

#[tokio::test(start_paused = true)]
async fn errors_of_instances_are_told_apart() {
    let world = World::start(seeded(1)).await;
    let answer = |answer: &'static [u8]| {
        move |mut stream: TcpStream| async move {
            let mut head = [0; 1024];
            tokio::io::AsyncReadExt::read(&mut stream, &mut head).await?;
            stream.write_all(answer).await?;
            Ok(())
        }
    };
    let silent = |stream: TcpStream| async move {
        let _held = stream;
        std::future::pending().await
    };
    let rows = [
        ("reset", raw_workload(242, answer(b"")).await, "reset", 502),
        ("garbage", raw_workload(243, answer(b"no HTTP at all\r\n\r\n")).await, "protocol_error", 502),
        ("asked", raw_workload(244, answer(b"HTTP/1.1 101 x\r\n\r\n")).await, "protocol_error", 502),
        ("short", raw_workload(245, answer(b"HTTP/1.1 200 ok\r\ncontent-length: 9\r\n\r\nx")).await, "reset", 200),
        ("late", raw_workload(246, silent).await, "response_timeout", 504),
    ];
    for (name, (ip, port), cause, status) in rows {
        world.service(name, port, json!({"timeoutSeconds": 5})).await;
        let revision = format!("{name}-1");
        world.api.put(PODS, pod(&revision, &format!("p-{name}"), Some(ip)));
        let request =
            format!("POST / HTTP/1.1\r\nhost: {name}.ns.localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        let text = bytes(world.public, &request).await;
        // What breaks off may take the head with it.
        let broken = status == 200 && text.is_empty();
        assert!(broken || text.starts_with(&format!("HTTP/1.1 {status}")), "{name}: {text}");
        world.loaded(&revision, 0).await;
        let labels = [("kn_revision_name", revision.as_str())];
        let all = world.scrape().get("gateway_errors_total", &labels);
        let named = world.scrape().get("gateway_errors_total", &[labels[0], ("cause", cause)]);
        assert_eq!((all, named), (1.0, 1.0), "{name}: {}", world.gateway.metrics());
    }
    world.service("none", 1, json!({"timeoutSeconds": 5})).await;
    assert_eq!(world.get("none.ns.localhost").await.0, 504);
    let labels = [("kn_revision_name", "none-1"), ("cause", "no_ready_instance")];
    assert_eq!(world.scrape().get("gateway_errors_total", &labels), 1.0);
}

/// Nothing that a client sends makes a series, and what is gone leaves none.
#[tokio::test]
async fn series_are_bounded_by_what_exists() {
    let world = World::start(seeded(1)).await;
    let empty = world.scrape().series.len();
    let workload = Workload::start(247, 0, |_| async { full("ok") }).await;
    world.service("m", workload.port, json!({})).await;
    world.api.put(PODS, pod("m-1", "p", Some(workload.ip)));
    assert_eq!(world.get("m.ns.localhost").await.0, 200);
    for n in 0..300 {
        let host = if n % 2 == 0 { "m.ns.localhost".to_owned() } else { format!("h{n}.evil") };
        let hostile = format!(
            "M{n} /p{n}?q={n} HTTP/1.1\r\nhost: {host}\r\nx{n}: y\r\nknative-serving-tag: t{n}\r\n\
             traceparent: 00-{n:032x}-{n:016x}-01\r\nuser-agent: a{n}\r\ncontent-type: application/grpc{n}\r\n\
             connection: close\r\n\r\n"
        );
        bytes(world.public, &hostile).await;
    }
    let malformed =
        ["GET / HTTP/1.1\nhost: m\r\n\r\n", "GET /\x01 HTTP/1.1\r\nhost: m\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"];
    for request in malformed {
        bytes(world.public, request).await;
    }
    world.loaded("m-1", 0).await;
    let scrape = world.scrape();
    // The statuses of what was refused are a fixed set, too.
    let refused = scrape.series.keys().filter(|key| key.starts_with("gateway_refused")).count();
    assert!((1..=10).contains(&refused), "{refused}");
    let count = scrape.series.len() - refused;
    assert!(count <= empty + SERIES_OF_REVISION + SERIES_OF_ROUTE, "{count} after {empty}");
    let text = world.gateway.metrics();
    assert!(!text.contains("evil") && !text.contains("p299") && !text.contains("t298"), "{text}");
    // One request is still there when Revision and Route go.
    let mut last = TcpStream::connect(world.public).await.unwrap();
    world.api.delete(PODS, "p");
    until(|| world.gateway.instances(&base::RevisionId::new("ns", "m-1")) == 0).await;
    last.write_all(b"GET / HTTP/1.1\r\nhost: m.ns.localhost\r\n\r\n").await.unwrap();
    world.loaded("m-1", 1).await;
    world.api.delete(ROUTES, "m");
    world.api.delete(REVISIONS, "m-1");
    until(|| !world.gateway.metrics().contains("\"m")).await;
    drop(last);
    world.loaded("m-1", 0).await;
    assert_eq!(world.scrape().series.len() - refused, empty, "{}", world.gateway.metrics());
}

/// Keeps lines.
#[derive(Debug, Default)]
struct Lines(Mutex<Vec<u8>>);

impl Sink for Lines {
    fn write(&self, lines: &[u8]) -> io::Result<()> {
        self.0.lock().extend_from_slice(lines);
        Ok(())
    }
}

impl Lines {
    fn all(&self) -> Vec<Value> {
        let bytes = self.0.lock().clone();
        assert!(bytes.iter().all(|byte| (b' '..=b'~').contains(byte) || *byte == b'\n'), "only ASCII");
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    async fn wait_for(&self, path: &str) -> Value {
        let find = || self.all().into_iter().find(|line| line["path"] == path);
        until(|| find().is_some()).await;
        find().unwrap()
    }
}

async fn logged() -> (World, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    let world = World::start(Config { access_log: lines.clone(), ..seeded(1) }).await;
    (world, lines)
}

/// Asks until the setting has come into effect.
async fn until_logged(world: &World, lines: &Lines) {
    until(|| {
        !lines.all().is_empty() || {
            let (public, request) = (world.public, request("GET", "nowhere.test", "/settling", ""));
            tokio::spawn(async move { drop(send(public, request).await) });
            false
        }
    })
    .await;
}

#[tokio::test]
async fn the_access_log_has_a_line_for_each_request_once_it_is_on() {
    let (world, lines) = logged().await;
    let workload = Workload::start(248, 0, |request: Request<Incoming>| async {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        full(format!("{} bytes", body.len()))
    })
    .await;
    world.service("l", workload.port, json!({})).await;
    world.api.put(PODS, pod("l-1", "p", Some(workload.ip)));
    assert_eq!(world.get("l.ns.localhost").await.0, 200);
    sleep(Duration::from_millis(300)).await;
    assert!(lines.all().is_empty(), "off by default");
    world.observe(json!({"logging.enable-request-log": "true"}));
    until_logged(&world, &lines).await;

    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let mut post = request("POST", "l.ns.localhost", "/post?a=%22b", "12345");
    post.headers_mut().insert("traceparent", parent.parse().unwrap());
    assert_eq!(text(send(world.public, post).await).await, "5 bytes");
    let mut line = lines.wait_for("/post?a=%22b").await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
    let time: jiff::Timestamp = line["time"].as_str().unwrap().parse().unwrap();
    assert!((now - 60..=now + 1).contains(&time.as_second()), "{line}");
    for number in ["duration_ms", "queue_ms"] {
        assert!(line[number].as_f64().is_some_and(|number| (0.0..60_000.0).contains(&number)), "{line}");
        line.as_object_mut().unwrap().remove(number);
    }
    line.as_object_mut().unwrap().remove("time");
    let upstream = format!("{}:{}", workload.ip, workload.port);
    let want = json!({"trace_id": "0af7651916cd43dd8448eb211c80319c", "client": "127.0.0.1", "method": "POST",
        "host": "l.ns.localhost", "path": "/post?a=%22b", "protocol": "HTTP/1.1", "status": 200, "bytes_in": 5,
        "bytes_out": 7, "namespace": "ns", "revision": "l-1", "route": "l", "pod": "p", "upstream": upstream,
        "cold": false});
    assert_eq!(line, want);

    // A refused head, an unknown host, a long path, another protocol.
    bytes(world.public, "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n").await;
    until(|| lines.all().iter().any(|line| line["error"] == "malformed" && line["status"] == 400)).await;
    let long = format!("/{}", "x".repeat(5000));
    assert_eq!(send(world.public, request("GET", "evil\u{e9}.test", &long, "")).await.status(), 400);
    until(|| lines.all().iter().any(|line| line["path"].as_str().is_some_and(|path| path.len() == 1024 + 3))).await;
    let mut h2 = http2(world.public).await;
    let answer = h2.send_request(Request::get("http://l.ns.localhost/h2").body(Empty::<Bytes>::new()).unwrap());
    answer.await.unwrap().into_body().collect().await.unwrap();
    let line = lines.wait_for("/h2").await;
    assert_eq!((&line["protocol"], &line["host"]), (&json!("HTTP/2"), &json!("l.ns.localhost")));

    // The answer names the same id as the line.
    let answer = text(send(world.public, request("GET", "nowhere.test", "/none", "")).await).await;
    let line = lines.wait_for("/none").await;
    assert!(answer.contains(line["trace_id"].as_str().unwrap()), "{answer} {line}");
    assert_eq!((&line["status"], &line["error"]), (&json!(404), &json!("no_route")));

    // A client that goes before the answer.
    world.service("zero", 1, json!({})).await;
    let mut gone = TcpStream::connect(world.public).await.unwrap();
    gone.write_all(b"GET /gone HTTP/1.1\r\nhost: zero.ns.localhost\r\n\r\n").await.unwrap();
    world.loaded("zero-1", 1).await;
    drop(gone);
    let line = lines.wait_for("/gone").await;
    assert_eq!((&line["status"], &line["error"]), (&json!(499), &json!("client_gone")));

    // Off again, live.
    world.observe(json!({}));
    sleep(Duration::from_millis(100)).await;
    let mut quiet = false;
    while !quiet {
        sleep(Duration::from_millis(300)).await;
        let before = lines.all().len();
        assert_eq!(world.get("l.ns.localhost").await.0, 200);
        sleep(Duration::from_millis(300)).await;
        quiet = lines.all().len() == before;
    }
}

#[tokio::test]
async fn the_access_log_may_have_a_share_of_the_requests() {
    let (world, lines) = logged().await;
    world.observe(json!({"logging.enable-request-log": "true", "logging.request-log-sampling-rate": "0.2"}));
    until_logged(&world, &lines).await;
    let mut stream = TcpStream::connect(world.public).await.unwrap();
    for n in 0..1000 {
        let request = format!("GET /share/{n} HTTP/1.1\r\nhost: nowhere.test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = crate::world::up_to(&mut stream, "\r\n\r\n").await;
        let length: usize = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut vec![0; length]).await.unwrap();
    }
    sleep(Duration::from_millis(300)).await;
    let of_share = |line: &Value| line["path"].as_str().is_some_and(|path| path.starts_with("/share/"));
    let count = lines.all().iter().filter(|line| of_share(line)).count();
    assert!((100..300).contains(&count), "{count} of 1000");
}

/// A world with the service `t` at zero, and a collector that gets all its traces.
async fn traced(ip: u8, protocol: &str, share: &str) -> (World, Collector, Workload) {
    let world = World::start(seeded(1)).await;
    let collector = Collector::start().await;
    let workload = Workload::start(ip, 0, tell_trace).await;
    world.service("t", workload.port, json!({})).await;
    world.trace_to(&collector, protocol, share);
    (world, collector, workload)
}

async fn ask(world: &World, headers: &[(&'static str, &str)]) -> Vec<String> {
    let mut request = request("GET", "t.ns.localhost", "/a/b?secret=1", "");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    let answer = text(send(world.public, request).await).await;
    answer.lines().map(str::to_owned).collect()
}

fn named<'s>(spans: &'s [Span], name: &str) -> &'s Span {
    let mut found = spans.iter().filter(|span| span.text("name") == name);
    let span = found.next().unwrap_or_else(|| panic!("no span {name} in {spans:?}"));
    assert!(found.next().is_none(), "one span {name} in {spans:?}");
    span
}

#[tokio::test]
async fn a_cold_start_is_one_trace_with_a_span_for_each_stage() {
    for (ip, protocol) in [(249, "http/protobuf"), (250, "grpc")] {
        let (world, collector, workload) = traced(ip, protocol, "1").await;
        let api = world.api.clone();
        let address = workload.ip;
        *world.autoscaler.on_poke.lock() = Some(Box::new(move |_| api.put(PODS, pod("t-1", "p", Some(address)))));
        let told = ask(&world, &[]).await;
        let (trace, span) = (told[0][3..35].to_owned(), told[0][36..52].to_owned());
        assert!(told[0].ends_with("-01"), "sampled: {told:?}");
        let spans = collector.wait_for(&trace).await;
        let root = named(&spans, "GET");
        assert_eq!(root.text("span_id"), span, "the instance's parent is the gateway's span");
        assert_eq!(
            (root.text("parent_span_id"), root.0["kind"].as_u64(), root.0["flags"].as_u64()),
            ("", Some(2), Some(1))
        );
        let want = [
            ("http.request.method", json!("GET")),
            ("http.response.status_code", json!(200)),
            ("url.path", json!("/a/b")),
            ("url.scheme", json!("http")),
            ("server.address", json!("t.ns.localhost")),
            ("network.protocol.version", json!("1.1")),
            ("client.address", json!("127.0.0.1")),
            ("k8s.namespace.name", json!("ns")),
            ("k8s.pod.name", json!("p")),
            ("kn.revision.name", json!("t-1")),
            ("kn.route.name", json!("t")),
            ("faas.coldstart", json!(true)),
            ("error.type", Value::Null),
        ];
        for (key, value) in want {
            assert_eq!(root.attribute(key), value, "{key}");
        }
        let parents = [
            ("route", "GET"),
            ("queue", "GET"),
            ("start", "queue"),
            ("start: schedule", "start"),
            ("start: container", "start"),
            ("start: probe", "start"),
            ("first byte", "GET"),
        ];
        // The probe's connection has carried the request.
        assert_eq!(spans.len(), 1 + parents.len(), "{spans:?}");
        for (name, parent) in parents {
            let (child, parent) = (named(&spans, name), named(&spans, parent));
            assert_eq!(child.text("parent_span_id"), parent.text("span_id"), "{name}");
            let ([from, to], [begin, end]) = [child, parent]
                .map(|span| ["start_time_unix_nano", "end_time_unix_nano"].map(|field| span.time(field)))
                .into();
            // A start counts from the arrival, the queue from where the route is known.
            let early = if name == "start" { 50_000_000 } else { 0 };
            assert!(from + early >= begin && to <= end + early, "{name} {from}..{to} within {begin}..{end}");
        }
        let ids: BTreeSet<&str> = spans.iter().map(|span| span.text("span_id")).collect();
        assert_eq!(ids.len(), spans.len());
        let kind = if protocol == "grpc" { "application/grpc" } else { "application/x-protobuf" };
        let path = match protocol {
            "grpc" => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            _ => "/v1/traces",
        };
        assert_eq!(collector.messages.lock()[0], (path.to_owned(), kind.to_owned()));
        until(|| world.scrape().get("gateway_spans_exported_total", &[]) == 8.0).await;
        // A POST takes no connection that has been idle for longer than half a second.
        sleep(Duration::from_millis(600)).await;
        let told = text(send(world.public, request("POST", "t.ns.localhost", "/", "")).await).await;
        let spans = collector.wait_for(&told[3..35]).await;
        assert_eq!(spans.len(), 4, "{spans:?}");
        let [connect, first_byte] = ["connect", "first byte"].map(|name| named(&spans, name));
        assert!(connect.time("end_time_unix_nano") <= first_byte.time("start_time_unix_nano"));
    }
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331";

#[tokio::test]
async fn the_parents_decision_counts_and_what_is_no_parent_begins_a_trace() {
    let (world, collector, workload) = traced(251, "http/protobuf", "0").await;
    world.api.put(PODS, pod("t-1", "p", Some(workload.ip)));
    // Until the settings are there the header goes on as it came.
    let sampled = format!("{PARENT}-01");
    let b3 = [("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"), ("x-b3-traceid", "463ac35c9f6413ad")];
    let told = loop {
        let told = ask(&world, &[("traceparent", &sampled), ("tracestate", "a=1"), b3[0], b3[1]]).await;
        if told[0] != sampled {
            break told;
        }
    };
    assert_eq!((&told[0][..36], &told[0][52..]), (&sampled[..36], "-01"), "the same trace, another span");
    assert_eq!(told[1..], ["a=1", b3[0].1, b3[1].1], "passed on untouched");
    let spans = collector.wait_for("0af7651916cd43dd8448eb211c80319c").await;
    let root = named(&spans, "GET");
    assert_eq!((root.text("parent_span_id"), root.text("span_id")), ("b7ad6b7169203331", &told[0][36..52]));
    assert_eq!((root.text("trace_state"), root.0["flags"].as_u64()), ("a=1", Some(0x301)));
    assert_eq!(root.attribute("faas.coldstart"), false);
    // Not sampled: as it came.
    let unsampled = format!("{PARENT}-00");
    assert_eq!(
        ask(&world, &[("traceparent", &unsampled), ("tracestate", "a=1")]).await[..2],
        [unsampled.as_str(), "a=1"]
    );
    // None, and none that is valid: a new one, which the share of 0 leaves out.
    let upper = PARENT.to_uppercase();
    for parent in ["00-x", &format!("{upper}-01"), &format!("{PARENT}-01-x")] {
        let told = ask(&world, &[("traceparent", parent), ("tracestate", "a=1")]).await;
        assert!(told[0].len() == 55 && told[0].ends_with("-00") && !told[0].contains(&PARENT[3..35]), "{told:?}");
        assert_eq!(told[1], "-", "the state of another trace");
    }
    let count = collector.count();
    sleep(Duration::from_secs(2)).await;
    assert_eq!(collector.count(), count, "nothing of what is not sampled");
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_is_down_gets_traces_later_and_what_is_too_much_is_dropped() {
    let (world, collector, workload) = traced(252, "grpc", "1").await;
    world.api.put(PODS, pod("t-1", "p", Some(workload.ip)));
    *collector.statuses.lock() = vec![503, 503];
    let mut trace = String::new();
    while trace.is_empty() {
        let told = ask(&world, &[]).await;
        if told[0].ends_with("-01") {
            trace = told[0][3..35].to_owned();
        }
    }
    let start = Instant::now();
    assert!(!collector.wait_for(&trace).await.is_empty());
    assert!(start.elapsed() >= Duration::from_secs(3), "after the third try");
    assert_eq!(world.scrape().get("gateway_spans_dropped_total", &[]), 0.0);
    // One that does not come back.
    *collector.statuses.lock() = vec![503; 4];
    ask(&world, &[]).await;
    until(|| world.scrape().get("gateway_spans_dropped_total", &[]) > 0.0).await;
}

#[tokio::test]
async fn what_is_left_is_told_at_the_end() {
    let lines = Arc::new(Lines::default());
    let world = World::start(Config { access_log: lines.clone(), ..seeded(1) }).await;
    let collector = Collector::start().await;
    world.observe(json!({"logging.enable-request-log": "true", "tracing-protocol": "http/protobuf",
        "tracing-endpoint": format!("http://{}/own/path", collector.address), "tracing-sampling-rate": "1"}));
    until_logged(&world, &lines).await;
    let answer = send(world.public, request("GET", "nowhere.test", "/last", "")).await;
    assert_eq!(answer.status(), 404);
    text(answer).await;
    world.stop.cancel();
    world.tasks.close();
    world.tasks.wait().await;
    let line = lines.all().into_iter().find(|line| line["path"] == "/last").expect("it is written");
    let spans = collector.of(line["trace_id"].as_str().unwrap());
    assert_eq!(named(&spans, "GET").attribute("error.type"), "no_route");
    assert_eq!(collector.messages.lock().last().unwrap().0, "/own/path");
}
