//! A request's way through the gateway: host, revision, slot, connection, response.
//!
//! A request whose instance cannot be reached goes back to its place in the queue; nothing of its body has been read
//! by then. One that was written to a connection is sent again only if the connection ended before any byte of an
//! answer, the method is idempotent, there is no body, and only so often: first over a new connection to the same
//! instance if the old one had been used before, else on whichever instance has a slot.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use api::config::network::HttpProtocol;
use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Version, request};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::ext::Protocol as Extended;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::affinity::{self, Token};
use crate::answer::{Failure, is_grpc};
use crate::body::{End, Flow, RequestBody, ResponseBody, broken_by_client};
use crate::cause::Cause;
use crate::certificates::Certificates;
use crate::early::{self, Early};
use crate::guard::Dialogue;
use crate::headers::{self, Peer};
use crate::metrics::{RouteMetrics, Via};
use crate::record::{Record, Try};
use crate::revision::{Entry, Revision, Shared, Slot, Waiting};
use crate::routes::{HOST_LIMIT_BYTES, Table};
use crate::settings::{Protocol, Settings};
use crate::timing::{ColdStart, Timing, server_timing};
use crate::trace::Trace;
use crate::tunnel;
use crate::upstream::{ConnectError, Http1, Upstream, drive_until_deadline};

const TAG: HeaderName = HeaderName::from_static("knative-serving-tag");
const DEFAULT_ROUTE: HeaderName = HeaderName::from_static("knative-serving-default-route");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Serves a host that is no Route's, such as the console's.
pub trait HostHandler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<ResponseBody>>;
}

/// Which hosts a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Public hosts only.
    Public,
    /// Every host, the names inside the cluster included.
    PodNetwork,
}

/// A client's connection, as far as its requests need it.
pub struct Client {
    /// The client.
    pub peer: Peer,
    /// Which hosts it is served.
    pub audience: Audience,
    /// What the connection is told.
    pub dialogue: Arc<Dialogue>,
}

/// What the proxy looks things up in.
pub struct Proxy {
    /// What all parts share.
    pub shared: Arc<Shared>,
    /// Hosts of the Routes.
    pub table: Table<Target>,
    /// Hosts with handlers of their own, on the public listeners.
    pub extra: ArcSwap<BTreeMap<String, Arc<dyn HostHandler>>>,
    /// The hosts' own certificates.
    pub certificates: Arc<Certificates>,
    /// Port of the HTTPS listener; 0 without one.
    pub tls_port: AtomicU16,
}

/// Where a Route sends a request.
#[derive(Clone)]
pub struct Target {
    /// The revision.
    pub revision: Arc<Revision>,
    /// The Route's numbers.
    pub route: Arc<RouteMetrics>,
}

/// A request whose revision is known.
pub struct Arrival {
    /// What is noted of it.
    pub record: Record,
    /// The trace that it belongs to.
    pub trace: Trace,
    /// Its revision.
    pub revision: Arc<Revision>,
    /// Whether a tag was asked for that does not exist.
    pub untagged: bool,
    /// How it is served.
    pub way: Way,
}

/// How a request is served whose revision is known.
#[derive(Clone, Copy)]
pub struct Way {
    /// When its revision was known.
    pub routed: Instant,
    /// The instance that it asks for.
    pub asked: Option<Token>,
    /// Whether the client speaks TLS.
    pub secure: bool,
}

impl Arrival {
    fn new<B>(
        mut record: Record,
        trace: Trace,
        Target { revision, route }: Target,
        untagged: bool,
        (client, request): (&Client, &Request<B>),
    ) -> Self {
        record.routed(&revision, route);
        let headers = request.headers();
        let way =
            Way { routed: Instant::now(), asked: revision.asked(headers), secure: client.peer.is_secure(headers) };
        Self { record, trace, revision, untagged, way }
    }
}

/// One request that has its revision, up to its response.
struct Passage<'p> {
    shared: &'p Arc<Shared>,
    settings: Arc<Settings>,
    grpc: bool,
    arrived: Instant,
    way: Way,
    /// What is noted of it, until it is handed to whatever ends with the response.
    record: Option<Record>,
}

/// A request on its way, as far as it can still be sent.
struct Outgoing {
    /// The request, until it is handed to a connection.
    request: Request<RequestBody>,
    /// How often it may be sent again after it was written to a connection.
    repeats: u32,
}

/// How the client asks to leave HTTP.
enum Switch {
    /// By HTTP/1.1's `Upgrade`, to this protocol.
    Upgrade(HeaderValue),
    /// To a WebSocket, by HTTP/2's extended CONNECT (RFC 8441).
    Connect,
}

/// The response, or why there is none, with what was noted of the request.
type Outcome = Result<Response<ResponseBody>, (Failure, Option<Record>)>;

/// What came of handing a request to a connection.
enum Exchange {
    Answered(Response<Incoming>, Option<Box<Http1>>),
    /// The connection was closed before anything was written.
    NotSent(Request<RequestBody>),
    /// The connection ended without a byte of an answer. Nobody knows what the instance made of the request.
    Lost(hyper::Error),
    /// What came is no answer.
    Broken(hyper::Error),
    Timeout(Duration),
}

impl Proxy {
    /// Gets the request its slot whose head is there, and of which nothing else is needed for that. `None` where it needs
    /// none.
    pub async fn prepare(&self, client: &Client, head: Option<&[u8]>) -> Option<Box<Early>> {
        let arrived = Instant::now();
        let mut arrival = {
            let head = early::read_head(head?)?;
            let limit_bytes = self.shared.clients.body_limit_bytes();
            if limit_bytes.is_some_and(|limit| early::announced_length(&head).is_some_and(|length| length > limit)) {
                return None;
            }
            match self.route(client, &head) {
                Ok(Routed::Revision(target, untagged)) => {
                    let trace = self.trace(head.headers());
                    let record = Record::of(&self.shared, arrived, &client.peer, trace, &head);
                    Arrival::new(record, trace, target, untagged, (client, &head))
                }
                _ => return None,
            }
        };
        let slot = self.shared.admit(client, &arrival.revision, arrival.way.asked, &mut arrival.record).await;
        Some(Box::new(Early { arrival, slot }))
    }

    /// Answers one request.
    pub async fn serve(
        &self,
        client: &Client,
        early: Option<Box<Early>>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let is_head = request.method() == Method::HEAD;
        let response = self.answer(client, early, request).await;
        // HTTP/2 would send a body, though to this method there is none.
        if is_head { without_body(response) } else { response }
    }

    async fn answer(
        &self,
        client: &Client,
        early: Option<Box<Early>>,
        request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        if let Some(early) = early {
            let Early { arrival, slot } = *early;
            return self.pass(client, arrival, Some(slot), request).await;
        }
        let arrived = Instant::now();
        let routed = self.route(client, &request);
        if matches!(routed, Ok(Routed::Probe)) {
            return Response::new(ResponseBody::empty());
        }
        let trace = self.trace(request.headers());
        let mut record = Record::of(&self.shared, arrived, &client.peer, trace, &request);
        match routed {
            Ok(Routed::Revision(target, untagged)) => {
                let arrival = Arrival::new(record, trace, target, untagged, (client, &request));
                self.pass(client, arrival, None, request).await
            }
            Ok(Routed::Handler(handler)) => {
                let response = handler.handle(request).await;
                record.answered(response.status().as_u16());
                response
            }
            Ok(Routed::Redirect(location)) => {
                let response = redirection(request.method(), location);
                record.answered(response.status().as_u16());
                response
            }
            Ok(Routed::Probe) => Response::new(ResponseBody::empty()),
            Err(failure) => {
                if failure == Failure::NoRoute {
                    self.shared.metrics.unrouted.inc();
                }
                let mut answer = failure.answer(Some(request.headers()), &trace.id());
                record.failed(&failure);
                record.sent(text_length(&answer));
                if matches!(failure, Failure::NoHost | Failure::Malformed { .. }) && request.version() < Version::HTTP_2
                {
                    // What else comes from whoever means two hosts is not read.
                    answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        }
    }

    /// Answers what took the place of a request that was refused before it was read.
    pub fn refuse(&self, peer: &Peer, early: Option<Box<Early>>, failure: &Failure) -> Response<ResponseBody> {
        self.shared.metrics.refused(failure.status());
        let early = early.map(|early| (early.arrival.trace, early.arrival.record));
        let (trace, mut record) = early.unwrap_or_else(|| {
            let trace = self.trace(&http::HeaderMap::new());
            (trace, Record::of_refused(&self.shared, peer, trace))
        });
        let answer = failure.answer(None, &trace.id());
        record.failed(failure);
        record.sent(text_length(&answer));
        answer
    }

    /// The trace that a request with these fields belongs to.
    fn trace(&self, headers: &http::HeaderMap) -> Trace {
        Trace::of(headers, self.shared.telemetry.sampling(), || self.shared.random.next())
    }

    fn route<B>(&self, client: &Client, request: &Request<B>) -> Result<Routed, Failure> {
        if request.method() == Method::CONNECT && !is_websocket(request) {
            return Err(Failure::Connect);
        }
        let mut buffer = [0; HOST_LIMIT_BYTES];
        let host = headers::host(request, &mut buffer)?;
        let public = client.audience == Audience::Public;
        let entry = self.table.get(host);
        let targets = entry.as_deref().and_then(|e| if public { e.public.as_ref() } else { Some(&e.inside) });
        // A Route's host is a Route's; what a tenant maps is never the platform's own.
        if public
            && (targets.is_none() || entry.as_deref().is_some_and(|entry| entry.mapped))
            && let Some(handler) = self.extra.load().get(host)
        {
            return Ok(Routed::Handler(handler.clone()));
        }
        let targets = targets.ok_or(Failure::NoRoute)?;
        let tls_port = self.tls_port.load(Ordering::Relaxed);
        if public && tls_port != 0 && !client.peer.is_secure(request.headers()) {
            match entry.as_deref().map_or(HttpProtocol::Enabled, |entry| entry.http) {
                HttpProtocol::Enabled => {}
                HttpProtocol::Redirected => return redirect(request, host, tls_port),
                HttpProtocol::Disabled => return Err(Failure::Insecure),
            }
        }
        // Whoever asks whether the host is routed wakes no instance and is not counted.
        if request.headers().contains_key(headers::NETWORK_PROBE) {
            return Ok(Routed::Probe);
        }
        let tag = request.headers().get(TAG).filter(|_| self.shared.tag_header.load(Ordering::Relaxed));
        let tagged = tag.and_then(|tag| targets.tagged(tag.as_bytes()));
        let target = tagged.or_else(|| targets.pick());
        let untagged = tag.is_some() && tagged.is_none();
        target.map(|target| Routed::Revision(target.clone(), untagged)).ok_or(Failure::NoRevision)
    }

    async fn pass(
        &self,
        client: &Client,
        arrival: Arrival,
        slot: Option<Result<Slot, Failure>>,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let Arrival { mut record, trace, revision, untagged, way } = arrival;
        let limit_bytes = self.shared.clients.body_limit_bytes();
        let switch = match request.method() {
            &Method::CONNECT => Some(Switch::Connect),
            _ => headers::upgrade(&request).map(Switch::Upgrade),
        };
        let switch = switch.map(|switch| (switch, hyper::upgrade::on(&mut request)));
        let (mut head, body) = request.into_parts();
        head.extensions.clear();
        if matches!(switch, Some((Switch::Connect, _))) {
            head.method = Method::GET;
        }
        headers::to_workload(&mut head, &client.peer, &trace);
        if untagged {
            head.headers.insert(DEFAULT_ROUTE, HeaderValue::from_static("true"));
        }
        // Only an answer of the gateway's own needs this later.
        let accept = head.headers.get(header::ACCEPT).cloned();
        let grpc = is_grpc(&head.headers).then(|| head.headers[header::CONTENT_TYPE].clone());
        if grpc.is_some() {
            record.set_via(Via::Grpc);
        } else if switch.is_some() {
            record.set_via(Via::Upgrade);
        }
        let outcome = match limit_bytes.filter(|limit| body.size_hint().lower() > *limit) {
            Some(limit_bytes) => Err((Failure::BodyTooLong { limit_bytes }, Some(record))),
            None => {
                let body = RequestBody::new(body, limit_bytes, record.received());
                let outgoing = outgoing(head, body, self.shared.clients.retries());
                let slot = match slot {
                    Some(slot) => slot,
                    None => self.shared.admit(client, &revision, way.asked, &mut record).await,
                };
                match slot {
                    Ok(slot) => self.forward(slot, record, way, outgoing, switch, grpc.is_some()).await,
                    Err(failure) => Err((failure, Some(record))),
                }
            }
        };
        outcome.unwrap_or_else(|(failure, record)| {
            let headers = [("accept", accept), ("content-type", grpc)];
            let headers = headers.into_iter().filter_map(|(name, value)| Some((HeaderName::from_static(name), value?)));
            let answer = failure.answer(Some(&http::HeaderMap::from_iter(headers)), &trace.id());
            if let Some(mut record) = record {
                record.failed(&failure);
                record.sent(text_length(&answer));
            }
            debug!(revision = %revision.id, request = trace.id(), %failure, "request failed");
            answer
        })
    }

    /// Boxed, as what a request needs once it has its slot is much more than what it needs to wait for it.
    fn forward<'p>(
        &'p self,
        slot: Slot,
        record: Record,
        way: Way,
        outgoing: Outgoing,
        switch: Option<(Switch, OnUpgrade)>,
        grpc: bool,
    ) -> BoxFuture<'p, Outcome> {
        Box::pin(async move {
            let Some(settings) = slot.revision.settings.load_full() else {
                return Err((Failure::NoRevision, Some(record)));
            };
            let (arrived, record) = (record.arrived(), Some(record));
            let mut passage = Passage { shared: &self.shared, settings, grpc, arrived, way, record };
            let response = match switch {
                None => passage.exchange(slot, outgoing).await,
                Some((switch, client)) => passage.switch(slot, outgoing, switch, client).await,
            };
            response.map_err(|failure| (failure, passage.record.take()))
        })
    }
}

impl Shared {
    /// Gets a request that has arrived its slot.
    async fn admit(
        &self,
        client: &Client,
        revision: &Arc<Revision>,
        asked: Option<Token>,
        record: &mut Record,
    ) -> Result<Slot, Failure> {
        let limit = revision.settings.load().as_ref().ok_or(Failure::NoRevision)?.timeout;
        match revision.enter(asked) {
            Entry::Slot(slot) => Ok(slot),
            Entry::Waiting(waiting) => {
                let watched = client.dialogue.wait();
                let slot = self.wait(waiting, record.arrived(), limit).await?;
                drop(watched);
                record.granted(Instant::now(), &slot.upstream);
                Ok(slot)
            }
            Entry::Full => Err(Failure::QueueFull),
        }
    }

    /// Waits for a slot as long as a request of its revision may take.
    async fn wait(&self, waiting: Waiting, arrived: Instant, limit: Duration) -> Result<Slot, Failure> {
        let revision = waiting.revision.clone();
        tokio::select! {
            slot = waiting.slot(arrived + limit, arrived) => {
                slot.ok_or_else(|| Failure::QueueTimeout { limit, stage: revision.stage() })
            }
            () = self.abort.cancelled() => Err(Failure::Stopping),
        }
    }
}

/// How long the body of an answer of the gateway's own is.
fn text_length(answer: &Response<ResponseBody>) -> usize {
    answer.body().size_hint().exact().and_then(|length| usize::try_from(length).ok()).unwrap_or_default()
}

fn without_body(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let (mut head, mut body) = response.into_parts();
    if let ResponseBody::Flow(flow) = &mut body {
        flow.discard();
    }
    if let (ResponseBody::Text(_), Some(length)) = (&body, body.size_hint().exact()) {
        head.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(head, ResponseBody::empty())
}

enum Routed {
    /// Where to, and whether a tag was asked for that does not exist.
    Revision(Target, bool),
    Handler(Arc<dyn HostHandler>),
    /// The host is served over HTTPS.
    Redirect(HeaderValue),
    /// The client asks no more than whether the host is routed.
    Probe,
}

/// Where the same is found over HTTPS: at the listener's port, unless the client came by the port that has no name.
fn redirect<B>(request: &Request<B>, host: &str, tls_port: u16) -> Result<Routed, Failure> {
    let named = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let named = named.or(request.headers().get(header::HOST).map(HeaderValue::as_bytes)).unwrap_or_default();
    let port = if named.contains(&b':') && tls_port != 443 { format!(":{tls_port}") } else { String::new() };
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let location = HeaderValue::try_from(format!("https://{host}{port}{path}"));
    location.map(Routed::Redirect).map_err(|_| Failure::NoHost)
}

/// 308 where another status would turn the method into GET.
fn redirection(method: &Method, location: HeaderValue) -> Response<ResponseBody> {
    let safe = [Method::GET, Method::HEAD].contains(method);
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = if safe { StatusCode::MOVED_PERMANENTLY } else { StatusCode::PERMANENT_REDIRECT };
    response.headers_mut().insert(header::LOCATION, location);
    response
}

fn is_websocket<B>(request: &Request<B>) -> bool {
    request.extensions().get::<Extended>().is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"))
}

/// Source: RFC 9110 section 9.2.2 for what may be sent again.
fn outgoing(head: request::Parts, body: RequestBody, retries: u32) -> Outgoing {
    let repeatable = head.method.is_idempotent() && body.is_end_stream();
    Outgoing { request: Request::from_parts(head, body), repeats: if repeatable { retries } else { 0 } }
}

impl Passage<'_> {
    fn note(&mut self, note: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            note(record);
        }
    }

    /// Notes a try to connect that began at `began`.
    fn tried(&mut self, began: Instant, error: Option<&ConnectError>) {
        let cause = error.map(Cause::of_connect);
        self.note(|record| {
            if let Some(cause) = cause {
                record.error(cause);
            }
            if let Some(ended) = record.now() {
                record.note(|detail| detail.tries.push(Try { began, ended, cause }));
            }
        });
    }

    /// Notes that the request is handed to a connection to `upstream`.
    fn sending(&mut self, upstream: &Arc<Upstream>) {
        self.note(|record| {
            if let Some(now) = record.now() {
                record.note(|detail| {
                    detail.exchange = Some((now, None));
                    detail.upstream = Some(upstream.clone());
                });
            }
        });
    }

    /// Sends the request until an instance answers, and makes the client's response.
    async fn exchange(&mut self, mut slot: Slot, mut outgoing: Outgoing) -> Result<Response<ResponseBody>, Failure> {
        let mut fresh = false;
        for _ in 0..self.shared.config.attempts.max(1) {
            let granted = Instant::now();
            let spare = (outgoing.repeats > 0).then(|| copy_head(&outgoing.request));
            let (exchange, used) = match self.settings.protocol {
                Protocol::Http1 => match self.connection(&slot, spare.is_some(), fresh).await {
                    Ok((connection, used)) => {
                        self.sending(&slot.upstream);
                        (self.send_http1(connection, outgoing.request, granted).await, used)
                    }
                    Err(error) => {
                        slot = self.again(slot, granted, &error).await?;
                        fresh = false;
                        continue;
                    }
                },
                Protocol::H2c => match self.http2(&slot).await {
                    Ok((sender, new)) => {
                        if new {
                            self.tried(granted, None);
                        }
                        self.sending(&slot.upstream);
                        (self.send_http2(sender, outgoing.request, granted).await, !new)
                    }
                    Err(error) => {
                        slot = self.again(slot, granted, &error).await?;
                        fresh = false;
                        continue;
                    }
                },
            };
            match exchange {
                // Nobody asked to leave HTTP.
                Exchange::Answered(response, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    self.note(|record| record.error(Cause::Protocol));
                    slot.served = Some(false);
                    return Err(Failure::Broken);
                }
                Exchange::Answered(response, connection) => {
                    return Ok(self.respond(slot, response, connection, granted));
                }
                Exchange::NotSent(request) => {
                    outgoing.request = request;
                    fresh = true;
                }
                Exchange::Lost(error) => {
                    let Some(head) = spare else { return Err(self.failed(&mut slot, &error)) };
                    outgoing.request = Request::from_parts(head, RequestBody::empty());
                    outgoing.repeats -= 1;
                    fresh = used;
                    if !used {
                        slot = self.elsewhere(slot, &error).await?;
                    }
                }
                Exchange::Broken(error) => return Err(self.failed(&mut slot, &error)),
                Exchange::Timeout(limit) => {
                    slot.served = Some(false);
                    return Err(Failure::Timeout { limit });
                }
            }
        }
        Err(Failure::Unreachable)
    }

    /// Why there is no answer after an exchange that broke.
    fn broken(&mut self, error: &hyper::Error) -> Failure {
        debug!(%error, "exchange broke");
        broken_by_client(error).unwrap_or_else(|| {
            self.note(|record| record.error(Cause::of_exchange(error)));
            Failure::Broken
        })
    }

    /// The same, of an exchange that has its slot; whether the instance is to blame.
    fn failed(&mut self, slot: &mut Slot, error: &hyper::Error) -> Failure {
        let failure = self.broken(error);
        slot.served = (failure == Failure::Broken).then_some(false);
        failure
    }

    /// Another slot in place of one whose instance gave no answer.
    async fn elsewhere(&mut self, slot: Slot, error: &hyper::Error) -> Result<Slot, Failure> {
        self.note(|record| record.error(Cause::of_exchange(error)));
        debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "instance lost");
        self.shared.wait(slot.hand_back(), self.arrived, self.settings.timeout).await
    }

    /// Another slot in place of one whose instance was not reached.
    async fn again(&mut self, slot: Slot, began: Instant, error: &ConnectError) -> Result<Slot, Failure> {
        self.tried(began, Some(error));
        debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "instance not reached");
        self.shared.wait(slot.hand_back(), self.arrived, self.settings.timeout).await
    }

    /// The connection to the slot's instance, and whether it is new.
    async fn http2(&self, slot: &Slot) -> Result<(http2::SendRequest<RequestBody>, bool), ConnectError> {
        let shared = self.shared;
        let spawn = |task| {
            let abort = shared.abort.clone();
            shared.background.spawn(async move { abort.run_until_cancelled(task).await });
        };
        slot.upstream.http2(self.settings.port, shared.config.connect_timeout, spawn).await
    }

    /// An idle connection, else a new one; and whether it has been used.
    async fn connection(
        &mut self,
        slot: &Slot,
        repeatable: bool,
        fresh: bool,
    ) -> Result<(Box<Http1>, bool), ConnectError> {
        let began = self.record.as_ref().and_then(Record::now);
        if !fresh && let Some(found) = slot.upstream.reuse(repeatable, &self.shared.pool) {
            return Ok((found, true));
        }
        let limit = self.shared.config.connect_timeout;
        let connection = slot.upstream.http1(self.settings.port, limit).await?;
        if let Some(began) = began {
            self.tried(began, None);
        }
        Ok((connection, false))
    }

    async fn send_http1(
        &self,
        mut connection: Box<Http1>,
        mut request: Request<RequestBody>,
        sent: Instant,
    ) -> Exchange {
        headers::frame(&mut request);
        let response = connection.sender.try_send_request(request);
        let (deadline, limit) = self.first_byte(sent);
        match drive_until_deadline(&mut connection, response, deadline).await {
            Some(Ok(response)) => Exchange::Answered(response, Some(connection)),
            Some(Err(mut error)) => match error.take_message() {
                Some(request) => Exchange::NotSent(request),
                None if connection.has_unread() => Exchange::Broken(error.into_error()),
                None => Exchange::Lost(error.into_error()),
            },
            None => Exchange::Timeout(limit),
        }
    }

    async fn send_http2(
        &self,
        mut sender: http2::SendRequest<RequestBody>,
        mut request: Request<RequestBody>,
        sent: Instant,
    ) -> Exchange {
        headers::to_http2(&mut request);
        let (deadline, limit) = self.first_byte(sent);
        match timeout_at(deadline, sender.try_send_request(request)).await {
            Ok(Ok(response)) => Exchange::Answered(response, None),
            Ok(Err(mut error)) => match error.take_message() {
                Some(mut request) => {
                    from_http2(&mut request);
                    Exchange::NotSent(request)
                }
                // Of a stream nothing has come, or there would be an answer.
                None => Exchange::Lost(error.into_error()),
            },
            Err(_) => Exchange::Timeout(limit),
        }
    }

    /// When the response must have started, and the limit that says so.
    fn first_byte(&self, sent: Instant) -> (Instant, Duration) {
        let Settings { timeout, response_start_timeout, idle_timeout, .. } = *self.settings;
        let limit = [response_start_timeout, idle_timeout].into_iter().flatten().fold(timeout, Duration::min);
        (sent + limit, limit)
    }

    fn respond(
        &mut self,
        mut slot: Slot,
        response: Response<Incoming>,
        connection: Option<Box<Http1>>,
        granted: Instant,
    ) -> Response<ResponseBody> {
        let (mut head, incoming) = response.into_parts();
        head.extensions.clear();
        // That of the hop behind decides nothing here: with HTTP/2's an HTTP/1.0 client's connection would not be kept.
        head.version = Version::HTTP_11;
        headers::to_client(&mut head.headers);
        self.add_timing(&mut head.headers, &slot, granted);
        self.add_cookie(&mut head.headers, &slot);
        if head.status.is_server_error() {
            slot.served = Some(false);
        }
        let end = End {
            deadline: granted + self.settings.timeout,
            idle_timeout: self.settings.idle_timeout,
            grpc: self.grpc && is_grpc(&head.headers),
        };
        match self.answered(head.status) {
            Some(record) => {
                let flow = Flow::new(incoming, connection, slot, record, end);
                Response::from_parts(head, ResponseBody::Flow(Box::new(flow)))
            }
            None => Response::from_parts(head, ResponseBody::empty()),
        }
    }

    /// Hands over what is noted of the request to whatever ends with the response, whose head is there.
    fn answered(&mut self, status: StatusCode) -> Option<Record> {
        let mut record = self.record.take()?;
        record.answered(status.as_u16());
        if let Some(now) = record.now() {
            record.note(|detail| detail.exchange = detail.exchange.map(|(sent, _)| (sent, Some(now))));
        }
        Some(record)
    }

    fn add_timing(&self, headers: &mut http::HeaderMap, slot: &Slot, granted: Instant) {
        if !self.shared.config.server_timing {
            return;
        }
        let timing = Timing { arrived: self.arrived, routed: self.way.routed, granted, responded: Instant::now() };
        let cold = ColdStart::of(self.arrived, granted, slot.upstream.stages());
        if let Some(value) = server_timing(&timing, cold) {
            headers.append(SERVER_TIMING, value);
        }
    }

    /// Has the client ask for this instance, unless the one that it asks for is only busy.
    fn add_cookie(&self, headers: &mut http::HeaderMap, slot: &Slot) {
        let (revision, token) = (&slot.revision, slot.upstream.token);
        let stays = |asked: Token| asked == token || revision.has_ready(asked);
        if self.settings.affinity
            && !self.way.asked.is_some_and(stays)
            && let Some(cookie) = affinity::cookie(&revision.id, token, self.way.secure)
        {
            headers.append(header::SET_COOKIE, cookie);
        }
    }

    /// Sends a request that asks to leave HTTP, over a connection of its own; with HTTP/2 on both sides, over a stream.
    ///
    /// Only the revision's timeout counts: the one for the first byte would end what is meant to be silent.
    async fn switch(
        &mut self,
        mut slot: Slot,
        outgoing: Outgoing,
        switch: Switch,
        client: OnUpgrade,
    ) -> Result<Response<ResponseBody>, Failure> {
        let Outgoing { mut request, mut repeats } = outgoing;
        let limit = self.settings.timeout;
        let is_websocket_handshake = match &switch {
            Switch::Connect => true,
            Switch::Upgrade(protocol) => headers::is_websocket(protocol, request.headers()),
        };
        let mut tries = self.shared.config.attempts.max(1);
        let (mut response, wanted, accept, granted) = loop {
            let began = Instant::now();
            let sender = match self.switching(&slot, is_websocket_handshake).await {
                Ok(sender) => {
                    self.tried(began, None);
                    sender
                }
                Err(error) => {
                    let left = tries.checked_sub(1).filter(|left| *left > 0);
                    if left.is_none() {
                        self.tried(began, Some(&error));
                    }
                    tries = left.ok_or(Failure::Unreachable)?;
                    slot = self.again(slot, began, &error).await?;
                    continue;
                }
            };
            self.sending(&slot.upstream);
            let spare = (repeats > 0).then(|| copy_head(&request));
            let granted = Instant::now();
            match timeout_at(granted + limit, self.shake_hands(sender, request, &switch)).await {
                Ok((Ok(response), wanted, accept)) => break (response, wanted, accept, granted),
                Ok((Err(error), ..)) => {
                    let Some(head) = spare.filter(|_| is_lost(&error)) else { return Err(self.broken(&error)) };
                    request = Request::from_parts(head, RequestBody::empty());
                    repeats -= 1;
                    slot = self.elsewhere(slot, &error).await?;
                }
                Err(_) => return Err(Failure::Timeout { limit }),
            }
        };
        if response.status() != wanted {
            // To a CONNECT any success says that the stream is a WebSocket now.
            if (matches!(switch, Switch::Connect) || wanted == StatusCode::OK) && !is_refusal(response.status()) {
                return Err(Failure::NotSwitched);
            }
            return Ok(self.respond(slot, response, None, granted));
        }
        let workload = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        head.extensions.clear();
        if matches!(switch, Switch::Connect) {
            head.status = StatusCode::OK;
            headers::from_websocket(&mut head.headers);
        }
        if let Some(accept) = accept {
            head.status = StatusCode::SWITCHING_PROTOCOLS;
            headers::accept_websocket(&mut head.headers, accept);
        }
        self.add_cookie(&mut head.headers, &slot);
        self.add_timing(&mut head.headers, &slot, granted);
        if let Some(record) = self.answered(head.status) {
            self.shared.tasks.spawn(tunnel::run(client, workload, slot, record, granted + limit));
        }
        Ok(Response::from_parts(head, ResponseBody::empty()))
    }

    /// The answer to a request that asks to leave HTTP, the status that says yes, and what the client wants to hear of a
    /// WebSocket that it has asked for by HTTP/1.1, and that is none by then.
    async fn shake_hands(
        &self,
        sender: Switching,
        mut request: Request<RequestBody>,
        switch: &Switch,
    ) -> (hyper::Result<Response<Incoming>>, StatusCode, Option<HeaderValue>) {
        match sender {
            Switching::Http1(mut sender) => {
                headers::frame(&mut request);
                match switch {
                    Switch::Connect => {
                        let random = &self.shared.random;
                        headers::to_websocket(request.headers_mut(), [random.next(), random.next()]);
                    }
                    Switch::Upgrade(protocol) => {
                        let headers = request.headers_mut();
                        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                        headers.insert(header::UPGRADE, protocol.clone());
                    }
                }
                (sender.send_request(request).await, StatusCode::SWITCHING_PROTOCOLS, None)
            }
            Switching::Http2(mut sender) => {
                headers::to_http2(&mut request);
                let accept = match switch {
                    Switch::Upgrade(_) => headers::take_websocket_key(request.headers_mut()),
                    Switch::Connect => None,
                };
                *request.method_mut() = Method::CONNECT;
                request.extensions_mut().insert(Extended::from_static("websocket"));
                (sender.send_request(request).await, StatusCode::OK, accept)
            }
        }
    }

    /// What a request that asks to leave HTTP is sent by.
    async fn switching(&self, slot: &Slot, is_websocket: bool) -> Result<Switching, ConnectError> {
        if is_websocket && self.settings.protocol == Protocol::H2c {
            let (sender, _) = self.http2(slot).await?;
            if slot.upstream.takes_extended_connect(self.shared.config.connect_timeout).await {
                return Ok(Switching::Http2(sender));
            }
        }
        let connection = slot.upstream.http1(self.settings.port, self.shared.config.connect_timeout).await?;
        let (sender, driver, open) = connection.into_parts();
        let abort = self.shared.abort.clone();
        // Its requests learn of an error themselves.
        self.shared.background.spawn(async move {
            drop(abort.run_until_cancelled(driver.with_upgrades()).await);
            drop(open);
        });
        Ok(Switching::Http1(sender))
    }
}

/// A connection for a request that asks to leave HTTP.
enum Switching {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

/// Whether the connection ended without an answer.
fn is_lost(error: &hyper::Error) -> bool {
    let causes = std::iter::successors(error.source(), |cause| (**cause).source());
    error.is_incomplete_message() || error.is_canceled() || causes.into_iter().any(|cause| cause.is::<std::io::Error>())
}

fn is_refusal(status: StatusCode) -> bool {
    !status.is_success() && !status.is_informational()
}

/// The head of a request without a body, for a second try.
fn copy_head(request: &Request<RequestBody>) -> request::Parts {
    let mut head = Request::new(()).into_parts().0;
    head.method = request.method().clone();
    head.uri = request.uri().clone();
    head.version = request.version();
    head.headers = request.headers().clone();
    head
}

/// Undoes [`headers::to_http2`] for another try.
fn from_http2(request: &mut Request<RequestBody>) {
    if let Some(authority) = request.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        request.headers_mut().insert(header::HOST, host);
    }
}
