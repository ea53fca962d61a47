//! A request's way through the gateway: host, revision, slot, connection, response.
//!
//! A request whose instance cannot be reached goes back to its place in the queue; nothing of its body has been read
//! by then. One that was written to a connection is sent again only if the connection had been idle (so that the
//! instance may have closed it meanwhile), the method is idempotent, and there is no body.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, request};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use crate::answer::Failure;
use crate::body::{Flow, RequestBody, ResponseBody, broken_by_client};
use crate::headers::{self, Peer};
use crate::revision::{Entry, Revision, Shared, Slot, Waiting};
use crate::routes::{HOST_LIMIT_BYTES, Table};
use crate::settings::{Protocol, Settings};
use crate::timing::{ColdStart, Timing, server_timing};
use crate::tunnel;
use crate::upstream::{Http1, drive_until};

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

/// What the proxy looks things up in.
pub struct Proxy {
    /// What all parts share.
    pub shared: Arc<Shared>,
    /// Hosts of the Routes.
    pub table: Table<Arc<Revision>>,
    /// Hosts with handlers of their own, on the public listeners.
    pub extra: ArcSwap<BTreeMap<String, Arc<dyn HostHandler>>>,
}

/// One request that has its revision, up to its response.
struct Passage<'p> {
    shared: &'p Arc<Shared>,
    settings: Arc<Settings>,
    arrived: Instant,
    routed: Instant,
}

/// A request on its way, as far as it can still be sent.
struct Outgoing {
    /// The request, until it is handed to a connection.
    request: Request<RequestBody>,
    /// Whether it may be sent twice.
    repeatable: bool,
}

/// What came of handing a request to a connection.
enum Exchange {
    Answered(Response<Incoming>, Option<Box<Http1>>),
    /// The connection was closed before anything was written.
    NotSent(Request<RequestBody>),
    /// Nobody knows what the instance made of it.
    Broken(hyper::Error),
    Timeout(Duration),
}

impl Proxy {
    /// Answers one request.
    pub async fn serve(&self, peer: &Peer, audience: Audience, request: Request<Incoming>) -> Response<ResponseBody> {
        let arrived = Instant::now();
        match self.route(audience, &request) {
            Ok(Routed::Revision(revision, untagged)) => self.pass(peer, arrived, revision, untagged, request).await,
            Ok(Routed::Handler(handler)) => handler.handle(request).await,
            Err(failure) => {
                if failure == Failure::NoRoute {
                    self.shared.metrics.unrouted.inc();
                }
                failure.answer(Some(request.headers()), headers::trace_id(request.headers()))
            }
        }
    }

    /// Answers what took the place of a request that was refused before it was read.
    pub fn refuse(&self, failure: &Failure) -> Response<ResponseBody> {
        self.shared.metrics.refused(failure.status());
        failure.answer(None, "-")
    }

    fn route(&self, audience: Audience, request: &Request<Incoming>) -> Result<Routed, Failure> {
        if request.method() == Method::CONNECT {
            return Err(Failure::Connect);
        }
        let mut buffer = [0; HOST_LIMIT_BYTES];
        let host = headers::host(request, &mut buffer)?;
        let public = audience == Audience::Public;
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
        let tag = request.headers().get(TAG).filter(|_| self.shared.tag_header.load(Ordering::Relaxed));
        let tagged = tag.and_then(|tag| targets.tagged(tag.as_bytes()));
        let revision = tagged.or_else(|| targets.pick(self.shared.random.next()));
        let untagged = tag.is_some() && tagged.is_none();
        revision.map(|revision| Routed::Revision(revision.clone(), untagged)).ok_or(Failure::NoRevision)
    }

    async fn pass(
        &self,
        peer: &Peer,
        arrived: Instant,
        revision: Arc<Revision>,
        untagged: bool,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let limit_bytes = self.shared.clients.body_limit_bytes();
        let upgrade = headers::upgrade(&request).map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
        let (mut head, body) = request.into_parts();
        head.extensions.clear();
        let random = &self.shared.random;
        headers::to_workload(&mut head, peer, || [random.next(), random.next(), random.next()]);
        if untagged {
            head.headers.insert(DEFAULT_ROUTE, HeaderValue::from_static("true"));
        }
        // Only an answer of the gateway's own needs these two later.
        let trace = head.headers.get("traceparent").cloned();
        let accept = head.headers.get(header::ACCEPT).cloned();
        let outcome = match limit_bytes.filter(|limit| body.size_hint().lower() > *limit) {
            Some(limit_bytes) => Err(Failure::BodyTooLong { limit_bytes }),
            None => {
                let outgoing = outgoing(head, RequestBody::new(body, limit_bytes));
                self.forward(arrived, &revision, outgoing, upgrade).await
            }
        };
        outcome.unwrap_or_else(|failure| {
            if let Some(metrics) = revision.metrics.load().as_deref() {
                metrics.ended(failure.status().as_u16(), arrived.elapsed());
            }
            let headers = [("traceparent", trace), ("accept", accept)];
            let headers = headers.into_iter().filter_map(|(name, value)| Some((HeaderName::from_static(name), value?)));
            let headers = http::HeaderMap::from_iter(headers);
            let answer = failure.answer(Some(&headers), headers::trace_id(&headers));
            debug!(revision = %revision.id, request = headers::trace_id(&headers), %failure, "request failed");
            answer
        })
    }

    async fn forward(
        &self,
        arrived: Instant,
        revision: &Arc<Revision>,
        outgoing: Outgoing,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let settings = revision.settings.load_full().ok_or(Failure::NoRevision)?;
        let passage = Passage { shared: &self.shared, settings, arrived, routed: Instant::now() };
        let slot = match revision.enter() {
            Entry::Slot(slot) => slot,
            Entry::Waiting(waiting) => {
                let slot = passage.wait(waiting).await?;
                passage.note_cold_start(&slot);
                slot
            }
            Entry::Full => {
                if let Some(metrics) = revision.metrics.load().as_deref() {
                    metrics.rejected.inc();
                }
                return Err(Failure::QueueFull);
            }
        };
        match upgrade {
            None => passage.exchange(slot, outgoing).await,
            Some((protocol, client)) => Box::pin(passage.upgrade(slot, outgoing, protocol, client)).await,
        }
    }
}

enum Routed {
    /// The revision, and whether a tag was asked for that does not exist.
    Revision(Arc<Revision>, bool),
    Handler(Arc<dyn HostHandler>),
}

fn outgoing(head: request::Parts, body: RequestBody) -> Outgoing {
    let repeatable = head.method.is_idempotent() && body.is_end_stream();
    Outgoing { request: Request::from_parts(head, body), repeatable }
}

impl Passage<'_> {
    /// Waits for a slot as long as a request of this revision may take.
    async fn wait(&self, waiting: Waiting) -> Result<Slot, Failure> {
        let limit = self.settings.timeout;
        let slot = waiting.slot(self.arrived + limit, self.arrived);
        tokio::select! {
            slot = slot => slot.ok_or(Failure::QueueTimeout { limit }),
            () = self.shared.abort.cancelled() => Err(Failure::Stopping),
        }
    }

    fn note_cold_start(&self, slot: &Slot) {
        let now = Instant::now();
        let cold = ColdStart::of(self.arrived, now, slot.upstream.stages());
        if let (Some(_), Some(metrics)) = (cold, slot.revision.metrics.load().as_deref()) {
            metrics.started_cold(now - self.arrived);
        }
    }

    /// Sends the request until an instance answers, and makes the client's response.
    async fn exchange(&self, mut slot: Slot, mut outgoing: Outgoing) -> Result<Response<ResponseBody>, Failure> {
        let mut fresh = false;
        for _ in 0..self.shared.config.attempts.max(1) {
            let granted = Instant::now();
            let spare = outgoing.repeatable.then_some(());
            let (exchange, spare) = match self.settings.protocol {
                Protocol::Http1 => match self.connection(&slot, outgoing.repeatable, fresh).await {
                    Ok((connection, stale)) => {
                        let spare = spare.filter(|()| stale).map(|()| copy_head(&outgoing.request));
                        (self.send_http1(connection, outgoing.request, granted).await, spare)
                    }
                    Err(error) => {
                        debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "instance not reached");
                        slot = self.wait(slot.hand_back()).await?;
                        continue;
                    }
                },
                Protocol::H2c => {
                    let shared = self.shared;
                    let spawn = |task| {
                        let abort = shared.abort.clone();
                        shared.background.spawn(async move { abort.run_until_cancelled(task).await });
                    };
                    match slot.upstream.http2(self.settings.port, shared.config.connect_timeout, spawn).await {
                        Ok(sender) => (self.send_http2(sender, outgoing.request, granted).await, None),
                        Err(error) => {
                            debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "instance not reached");
                            slot = self.wait(slot.hand_back()).await?;
                            continue;
                        }
                    }
                }
            };
            match exchange {
                // Nobody asked to leave HTTP.
                Exchange::Answered(response, _) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Err(Failure::Broken);
                }
                Exchange::Answered(response, connection) => {
                    return Ok(self.respond(slot, response, connection, granted));
                }
                Exchange::NotSent(request) => outgoing.request = request,
                Exchange::Broken(error) => match spare {
                    Some(head) => outgoing.request = Request::from_parts(head, RequestBody::empty()),
                    None => {
                        debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "exchange broke");
                        return Err(broken_by_client(&error).unwrap_or(Failure::Broken));
                    }
                },
                Exchange::Timeout(limit) => return Err(Failure::Timeout { limit }),
            }
            fresh = true;
        }
        Err(Failure::Unreachable)
    }

    /// An idle connection, and whether it may be stale; else a new one.
    async fn connection(
        &self,
        slot: &Slot,
        repeatable: bool,
        fresh: bool,
    ) -> Result<(Box<Http1>, bool), crate::upstream::ConnectError> {
        if !fresh && let Some(found) = slot.upstream.reuse(repeatable, &self.shared.pool) {
            return Ok(found);
        }
        let limit = self.shared.config.connect_timeout;
        Ok((slot.upstream.http1(self.settings.port, limit).await?, false))
    }

    async fn send_http1(&self, mut connection: Box<Http1>, request: Request<RequestBody>, sent: Instant) -> Exchange {
        let response = connection.sender.try_send_request(request);
        let (deadline, limit) = self.first_byte(sent);
        match timeout_at(deadline, drive_until(&mut connection, response)).await {
            Ok(Ok(response)) => Exchange::Answered(response, Some(connection)),
            Ok(Err(mut error)) => match error.take_message() {
                Some(request) => Exchange::NotSent(request),
                None => Exchange::Broken(error.into_error()),
            },
            Err(_) => Exchange::Timeout(limit),
        }
    }

    async fn send_http2(
        &self,
        mut sender: hyper::client::conn::http2::SendRequest<RequestBody>,
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
                None => Exchange::Broken(error.into_error()),
            },
            Err(_) => Exchange::Timeout(limit),
        }
    }

    /// When the response must have started, and the limit that says so.
    fn first_byte(&self, sent: Instant) -> (Instant, Duration) {
        let whole = self.settings.timeout;
        let limit = self.settings.response_start_timeout.map_or(whole, |start| start.min(whole));
        (sent + limit, limit)
    }

    fn respond(
        &self,
        slot: Slot,
        response: Response<Incoming>,
        connection: Option<Box<Http1>>,
        granted: Instant,
    ) -> Response<ResponseBody> {
        let (mut head, incoming) = response.into_parts();
        head.extensions.clear();
        headers::to_client(&mut head.headers);
        self.add_timing(&mut head.headers, &slot, granted);
        let deadline = granted + self.settings.timeout;
        let idle = self.settings.idle_timeout;
        let status = head.status.as_u16();
        let flow = Flow::new(incoming, connection, slot, self.shared.clone(), status, deadline, idle);
        Response::from_parts(head, ResponseBody::Flow(Box::new(flow)))
    }

    fn add_timing(&self, headers: &mut http::HeaderMap, slot: &Slot, granted: Instant) {
        if !self.shared.config.server_timing {
            return;
        }
        let timing = Timing { arrived: self.arrived, routed: self.routed, granted, responded: Instant::now() };
        let cold = ColdStart::of(self.arrived, granted, slot.upstream.stages());
        if let Some(value) = server_timing(&timing, cold) {
            headers.append(SERVER_TIMING, value);
        }
    }

    /// Sends a request that asks for another protocol, over a connection of its own.
    async fn upgrade(
        &self,
        mut slot: Slot,
        mut outgoing: Outgoing,
        protocol: HeaderValue,
        client: OnUpgrade,
    ) -> Result<Response<ResponseBody>, Failure> {
        let headers = outgoing.request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocol);
        let mut tries = self.shared.config.attempts.max(1);
        let connection = loop {
            match slot.upstream.http1(self.settings.port, self.shared.config.connect_timeout).await {
                Ok(connection) => break connection,
                Err(error) => {
                    debug!(revision = %slot.revision.id, pod = %slot.upstream.pod, %error, "instance not reached");
                    tries = tries.checked_sub(1).filter(|left| *left > 0).ok_or(Failure::Unreachable)?;
                    slot = self.wait(slot.hand_back()).await?;
                }
            }
        };
        let (mut sender, driver) = connection.into_parts();
        let abort = self.shared.abort.clone();
        // Its requests learn of an error themselves.
        self.shared.background.spawn(async move { drop(abort.run_until_cancelled(driver.with_upgrades()).await) });
        let granted = Instant::now();
        let (deadline, limit) = self.first_byte(granted);
        let response = timeout_at(deadline, sender.send_request(outgoing.request)).await;
        let mut response = match response {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(broken_by_client(&error).unwrap_or(Failure::Broken)),
            Err(_) => return Err(Failure::Timeout { limit }),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Ok(self.respond(slot, response, None, granted));
        }
        let workload = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        head.extensions.clear();
        self.add_timing(&mut head.headers, &slot, granted);
        let (shared, end) = (self.shared.clone(), granted + self.settings.timeout);
        let idle = self.settings.idle_timeout;
        self.shared.tasks.spawn(tunnel::run(client, workload, slot, shared, end, idle));
        Ok(Response::from_parts(head, ResponseBody::empty()))
    }
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
