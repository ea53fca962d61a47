//! Mixed load while services roll through five revisions, scale from nothing to twenty pods and back, and lose pods: no
//! request fails, each answer is complete and from a revision that was in force.
//!
//! Pods of `plain` and `mixed` are deleted by the API, which loses nothing of any protocol. Those of `killed` die of
//! SIGKILL: what they have begun is lost with them, so that service gets only requests that may be sent again.
//!
//! `COLIBRI_ZERO_LOSS_SECONDS` and `COLIBRI_ZERO_LOSS_SEED` choose how long and which pods; `make zero-loss` runs 60 s.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use e2e::{Options, Platform, cannot_run};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::chaos::{Random, number};
use crate::{NO_GRACE, SHORT_WINDOW, SOON, host, service_selector};

/// Where nothing else is asked for: short enough for every run of the tests.
const SECONDS: u64 = 15;
const REVISIONS: usize = 5;
/// The revision that has so many pods.
const WIDE: usize = 2;
const WIDTH: usize = 20;
/// Longest time of one request: a cold start on a busy machine is in it.
const REQUEST_LIMIT: Duration = Duration::from_secs(60);
/// Longest pause of a client between two requests.
const THINK_MS: u64 = 12;
/// Longest pause between two pods that go.
const LOSE_MS: u64 = 600;

/// What a client does over and over again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// Requests of all kinds over a kept HTTP/1.1 connection.
    Http1,
    /// The same over HTTP/2.
    Http2,
    /// Unary gRPC calls.
    Grpc,
    /// WebSockets that live for a while.
    WebSocket,
    /// Requests that may be sent again.
    Repeatable(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    One,
    Two,
}

/// A service, the protocol of its containers, and its clients.
type Planned = (&'static str, &'static str, &'static [(Load, usize)]);

const SERVICES: [Planned; 3] = [
    ("plain", "http1", &[(Load::Http1, 4), (Load::Http2, 3), (Load::WebSocket, 3)]),
    ("mixed", "h2c", &[(Load::Http1, 3), (Load::Http2, 3), (Load::Grpc, 3), (Load::WebSocket, 3)]),
    ("killed", "http1", &[(Load::Repeatable(Version::One), 3), (Load::Repeatable(Version::Two), 3)]),
];

/// A service, and which of its revisions may answer.
struct Service {
    name: &'static str,
    /// The newest that was seen to be ready: whoever asks later gets no older one.
    oldest: AtomicUsize,
    /// The newest that was ever asked for.
    newest: AtomicUsize,
}

struct World {
    gateway: String,
    services: Vec<Arc<Service>>,
    stop: AtomicBool,
    answered: Mutex<BTreeMap<Load, usize>>,
    failures: Mutex<Vec<String>>,
}

impl World {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// YAML of a service's `number`th revision.
fn manifest((name, port, _): Planned, number: usize) -> String {
    let pods = match (name, number) {
        ("plain", WIDE) => WIDTH,
        // With one pod left there would be nowhere to go.
        ("killed", ..REVISIONS) => 3,
        _ => 0,
    };
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  template:\n    metadata:\n      annotations: {{{}: {}, autoscaling.knative.dev/min-scale: \"{pods}\"}}\n    spec:\n      containers:\n      - image: echo:latest\n        ports: [{{containerPort: 8080, name: {port}}}]\n        env: [{{name: NUMBER, value: \"{number}\"}}]\n---\n",
        SHORT_WINDOW.0, SHORT_WINDOW.1
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_fails_while_revisions_change_and_pods_come_and_go() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let seconds = number("COLIBRI_ZERO_LOSS_SECONDS", SECONDS);
    let seed = number("COLIBRI_ZERO_LOSS_SEED", 7);
    println!("zero loss: {seconds} s, seed {seed}");
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_echo().await?;
    platform.apply(NO_GRACE).await?;
    let service = |name| Arc::new(Service { name, oldest: AtomicUsize::new(1), newest: AtomicUsize::new(1) });
    let world = Arc::new(World {
        gateway: platform.endpoint("gateway").trim_start_matches("http://").to_owned(),
        services: SERVICES.iter().map(|(name, ..)| service(*name)).collect(),
        stop: AtomicBool::new(false),
        answered: Mutex::default(),
        failures: Mutex::default(),
    });
    roll(&platform, &world, 1).await?;

    let clients = start_clients(&world, seed, usize::MAX);
    let (until, mut random) = (Instant::now() + Duration::from_secs(seconds), Random(seed));
    let rolling = async {
        for number in 2..=REVISIONS {
            tokio::time::sleep(Duration::from_secs(seconds) / REVISIONS as u32).await;
            roll(&platform, &world, number).await?;
            if number == WIDE {
                let wide = format!("serving.knative.dev/revision=plain-{WIDE:05}");
                ensure!(
                    ready_pods(&platform, &wide).await? >= WIDTH,
                    "{WIDTH} pods are there once the Service is ready"
                );
            }
        }
        Ok(())
    };
    let mut lost = Lost::default();
    let losing = async {
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(random.below(LOSE_MS))).await;
            lost.one(&platform, &mut random).await?;
        }
        anyhow::Ok(())
    };
    tokio::try_join!(rolling, losing)?;
    world.stop.store(true, Ordering::Relaxed);
    clients.join_all().await;
    report(&world, &lost, seed)?;

    // Nobody asks any more: to nothing, and once more from there.
    for (name, ..) in SERVICES {
        platform.wait_for_pods(&service_selector(name), 0, SOON * 2).await?;
    }
    world.stop.store(false, Ordering::Relaxed);
    start_clients(&world, seed + 1, 3).join_all().await;
    report(&world, &lost, seed)?;
    platform.stop().await
}

/// Makes the next revision of each service, and waits until all requests are the new one's.
async fn roll(platform: &Platform, world: &World, number: usize) -> Result<()> {
    world.services.iter().for_each(|service| service.newest.store(number, Ordering::SeqCst));
    platform.apply(&SERVICES.map(|service| manifest(service, number)).concat()).await?;
    for service in &world.services {
        let revision = format!("{}-{number:05}", service.name);
        let is_ready = |object: &Value| {
            let status = &object["status"];
            let mut conditions = status["conditions"].as_array().into_iter().flatten();
            status["latestReadyRevisionName"] == revision.as_str()
                && status["observedGeneration"] == object["metadata"]["generation"]
                && conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        };
        crate::until(SOON, async || platform.object("ksvc", service.name).await, is_ready).await?;
        service.oldest.store(number, Ordering::SeqCst);
    }
    Ok(())
}

async fn ready_pods(platform: &Platform, selector: &str) -> Result<usize> {
    let pods = platform.kubectl(&["get", "pods", "-l", selector, "-o", "json"]).await?.ok()?;
    let pods: Value = serde_json::from_str(&pods)?;
    let is_ready = |pod: &&Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    Ok(pods["items"].as_array().into_iter().flatten().filter(is_ready).count())
}

/// What the services lost.
#[derive(Debug, Default)]
struct Lost {
    deleted: usize,
    killed: usize,
}

impl Lost {
    /// Takes one pod away.
    async fn one(&mut self, platform: &Platform, random: &mut Random) -> Result<()> {
        if random.below(3) == 0 {
            let pids = containers_of(platform.data_dir(), "killed");
            let Some(pid) = chosen(&pids, random) else { return Ok(()) };
            // SAFETY: the process was seen this moment below this test's own data directory.
            let killed = unsafe { libc::kill(i32::try_from(*pid)?, libc::SIGKILL) };
            self.killed += usize::from(killed == 0);
            return Ok(());
        }
        let selector = "serving.knative.dev/service in (plain,mixed)";
        let pods = platform.pods(selector).await?;
        if let Some(pod) = chosen(&pods, random) {
            // It may be on its way out already.
            self.deleted += usize::from(platform.kubectl(&["delete", pod, "--wait=false"]).await?.code == 0);
        }
        Ok(())
    }
}

fn chosen<'a, T>(all: &'a [T], random: &mut Random) -> Option<&'a T> {
    all.get(usize::try_from(random.below(all.len().max(1) as u64)).unwrap_or_default())
}

/// Processes of a service's containers.
fn containers_of(data_dir: &Path, service: &str) -> Vec<u32> {
    let variable = format!("K_SERVICE={service}");
    let is_of = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes())
    };
    e2e::pods(data_dir).1.into_iter().filter(is_of).collect()
}

/// Says what was asked, and fails if anything was lost.
fn report(world: &World, lost: &Lost, seed: u64) -> Result<()> {
    let answered = world.answered.lock().clone();
    let failures = world.failures.lock().clone();
    println!("zero loss: answered {answered:?}; {lost:?}; {} failed", failures.len());
    ensure!(failures.is_empty(), "seed {seed}: {} requests failed:\n{}", failures.len(), failures.join("\n"));
    let kinds = SERVICES.iter().flat_map(|(.., loads)| loads.iter().map(|(load, _)| load));
    for load in kinds {
        ensure!(answered.get(load) > Some(&0), "nothing was asked by {load:?}");
    }
    ensure!(lost.deleted > 0 && lost.killed > 0, "no pod was lost: {lost:?}");
    Ok(())
}

/// Starts all clients; each ends after so many requests, or when it is told to.
fn start_clients(world: &Arc<World>, seed: u64, requests: usize) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for ((_, _, loads), service) in SERVICES.iter().zip(&world.services) {
        for (load, count) in *loads {
            for number in 0..*count {
                let random = Random((seed << 16) ^ (clients.len() + number) as u64);
                let client =
                    Client { world: world.clone(), service: service.clone(), load: *load, random, connection: None };
                clients.spawn(client.run(requests));
            }
        }
    }
    clients
}

struct Client {
    world: Arc<World>,
    service: Arc<Service>,
    load: Load,
    random: Random,
    connection: Option<Connection>,
}

/// A kept connection.
enum Connection {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    async fn run(mut self, requests: usize) {
        for _ in 0..requests {
            if self.world.stopped() {
                return;
            }
            let start = Instant::now();
            let outcome = tokio::time::timeout(REQUEST_LIMIT, self.once()).await;
            match outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time"))) {
                Ok(()) => *self.world.answered.lock().entry(self.load).or_default() += 1,
                Err(error) => {
                    let failure =
                        format!("{} {:?} after {:?}: {error:#}", self.service.name, self.load, start.elapsed());
                    self.world.failures.lock().push(failure);
                    self.connection = None;
                }
            }
            tokio::time::sleep(Duration::from_millis(self.random.below(THINK_MS))).await;
        }
    }

    async fn once(&mut self) -> Result<()> {
        match self.load {
            Load::WebSocket => self.websocket().await,
            Load::Grpc => self.call().await,
            Load::Http1 | Load::Http2 => self.any().await,
            Load::Repeatable(_) => self.repeatable().await,
        }
    }

    /// One of several kinds of requests; the answer is complete.
    async fn any(&mut self) -> Result<()> {
        let wait = self.random.below(30);
        if self.random.below(3) == 0 {
            let body = Bytes::from(vec![b'a' + (wait % 26) as u8; self.below(100_000)]);
            let (_, answer) = self.send(Method::POST, "/", &[], body.clone()).await?;
            let answer = answer.to_bytes();
            ensure!(answer == body, "{} bytes of {} came back", answer.len(), body.len());
            return Ok(());
        }
        let bytes = if self.random.below(2) == 0 { 12 } else { self.below(300_000) };
        let chunked = if self.random.below(2) == 0 { "&chunked" } else { "" };
        self.letters(Method::GET, bytes, &format!("/?bytes={bytes}&ms={wait}{chunked}")).await
    }

    async fn repeatable(&mut self) -> Result<()> {
        let method = [Method::GET, Method::DELETE, Method::OPTIONS][self.below(3)].clone();
        let wait = self.random.below(30);
        self.letters(method, 12, &format!("/?ms={wait}")).await
    }

    async fn letters(&mut self, method: Method, bytes: usize, path: &str) -> Result<()> {
        let (_, answer) = self.send(method, path, &[], Bytes::new()).await?;
        let answer = answer.to_bytes();
        ensure!(answer.len() == bytes && answer.iter().all(|byte| *byte == b'x'), "{} of {bytes} bytes", answer.len());
        Ok(())
    }

    /// A unary gRPC call.
    async fn call(&mut self) -> Result<()> {
        let message = vec![7; self.below(20_000)];
        let length = u32::try_from(message.len())?.to_be_bytes();
        let body = Bytes::from([&[0], &length[..], &message].concat());
        let headers = [("content-type", "application/grpc"), ("te", "trailers")];
        let (_, answer) = self.send(Method::POST, "/echo.Echo/Unary", &headers, body.clone()).await?;
        let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status")).cloned();
        ensure!(status.as_ref().is_some_and(|status| status == "0"), "grpc-status {status:?}");
        ensure!(answer.to_bytes() == body, "another message came back");
        Ok(())
    }

    fn below(&mut self, limit: u64) -> usize {
        usize::try_from(self.random.below(limit)).unwrap_or_default()
    }

    /// The whole answer to a request, whose status and revision are as they should be.
    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(HeaderMap, Collected<Bytes>)> {
        let host = host(self.service.name);
        let two = matches!(self.load, Load::Http2 | Load::Grpc | Load::Repeatable(Version::Two));
        let shown = format!("{method} {path}");
        let mut request = Request::builder().method(method);
        request =
            if two { request.uri(format!("http://{host}{path}")) } else { request.uri(path).header("host", &host) };
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body))?;
        let oldest = self.service.oldest.load(Ordering::SeqCst);
        let answer = async {
            let response = self.response(two, request).await?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.context("the answer breaks off");
            if head.status != 200 {
                let text = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
                anyhow::bail!("{} {text:?}", head.status);
            }
            Ok((head.headers, body?))
        };
        let (headers, answer) = answer.await.context(shown)?;
        self.check_revision(&headers, oldest)?;
        Ok((headers, answer))
    }

    async fn response(&mut self, two: bool, request: Request<Full<Bytes>>) -> Result<Response<Incoming>> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let stream = TcpStream::connect(&self.world.gateway).await?;
                stream.set_nodelay(true)?;
                let stream = TokioIo::new(stream);
                none.insert(if two {
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                    tokio::spawn(connection);
                    Connection::Two(sender)
                } else {
                    let (sender, connection) = http1::handshake(stream).await?;
                    tokio::spawn(connection);
                    Connection::One(sender)
                })
            }
        };
        Ok(match connection {
            Connection::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Connection::Two(sender) => sender.send_request(request).await?,
        })
    }

    fn check_revision(&self, headers: &HeaderMap, oldest: usize) -> Result<()> {
        let revision = headers.get("x-revision").and_then(|value| value.to_str().ok()).unwrap_or_default();
        self.check(revision, oldest)
    }

    /// Only what was in force between the request and its answer may have answered.
    fn check(&self, revision: &str, oldest: usize) -> Result<()> {
        let newest = self.service.newest.load(Ordering::SeqCst);
        let number = revision.strip_prefix(self.service.name).and_then(|rest| rest.strip_prefix('-')?.parse().ok());
        let in_force = number.is_some_and(|number: usize| (oldest..=newest).contains(&number));
        ensure!(in_force, "answered by {revision:?}, in force were {oldest} to {newest}");
        Ok(())
    }

    /// A WebSocket on which some messages go to and fro.
    async fn websocket(&mut self) -> Result<()> {
        let oldest = self.service.oldest.load(Ordering::SeqCst);
        let mut stream = TcpStream::connect(&self.world.gateway).await?;
        stream.set_nodelay(true)?;
        let handshake = format!(
            "GET /chat HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            host(self.service.name)
        );
        stream.write_all(handshake.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.with_context(|| String::from_utf8_lossy(&head).into_owned())?);
        }
        let head = String::from_utf8(head)?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let revision = head.lines().find_map(|line| line.strip_prefix("x-revision: "));
        self.check(revision.unwrap_or_default(), oldest)?;
        let messages = 1 + self.random.below(8);
        for message in 0..messages {
            exchange(&mut stream, 0x82, self.below(120)).await.with_context(|| format!("message {message}"))?;
            tokio::time::sleep(Duration::from_millis(self.random.below(150))).await;
        }
        exchange(&mut stream, 0x88, 0).await.context("close")?;
        ensure!(stream.read(&mut [0]).await? == 0, "something comes after the end");
        Ok(())
    }
}

/// Sends a short frame and gets it back.
async fn exchange(stream: &mut TcpStream, first: u8, length: usize) -> Result<()> {
    let short = u8::try_from(length)?;
    // With a mask of zeros the payload is as it is.
    let payload = vec![b'w'; length];
    stream.write_all(&[&[first, 0x80 | short, 0, 0, 0, 0], &payload[..]].concat()).await?;
    let mut back = vec![0; 2 + length];
    stream.read_exact(&mut back).await?;
    ensure!(back == [&[first, short], &payload[..]].concat(), "another frame came back");
    Ok(())
}
