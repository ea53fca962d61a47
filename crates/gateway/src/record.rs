//! What is noted of one request, from its arrival to its end: always the few numbers that metrics are made of; the rest
//! only where the access log or a collector gets to see it.
//!
//! A record is told when it is dropped, so that a request is told of exactly once however it ends. One that has no answer
//! by then has lost its client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::{HeaderValue, Method, Request, Uri, Version};
use tokio::time::Instant;

use crate::answer::Failure;
use crate::cause::Cause;
use crate::headers::Peer;
use crate::metrics::{RevisionMetrics, RouteMetrics, Via};
use crate::revision::{Revision, Shared};
use crate::settings::Settings;
use crate::timing::ColdStart;
use crate::trace::{self, Trace};
use crate::upstream::Upstream;

/// Status of a request whose client went before it was answered; as in nginx.
const CLIENT_GONE: u16 = 499;

/// What is noted of one request.
pub struct Record {
    shared: Arc<Shared>,
    arrived: Instant,
    revision: Option<Arc<RevisionMetrics>>,
    route: Option<Arc<RouteMetrics>>,
    via: Via,
    /// 0 until it is answered.
    status: u16,
    cause: Option<Cause>,
    detail: Option<Box<Detail>>,
}

/// What the access log and traces tell beyond metrics.
pub struct Detail {
    /// Whether the access log has a line of it.
    pub logged: bool,
    /// Its trace.
    pub trace: Trace,
    /// What the client said beside the trace.
    pub state: Option<HeaderValue>,
    /// What was asked for; nothing where the request was refused before it was read.
    pub asked: Option<Asked>,
    /// Address of the client.
    pub client: HeaderValue,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// Bytes of the request's body.
    pub received: Arc<AtomicU64>,
    /// Bytes of the response's body; `None` where nobody counts them.
    pub sent: Option<u64>,
    /// The revision and its settings.
    pub revision: Option<(Arc<Revision>, Arc<Settings>)>,
    /// The instance that it was sent to last.
    pub upstream: Option<Arc<Upstream>>,
    /// When its revision was known.
    pub routed: Option<Instant>,
    /// When it had its first slot, if it waited for one.
    pub granted: Option<Instant>,
    /// What its wait was made of, if its instance was started meanwhile.
    pub cold: Option<ColdStart>,
    /// Its tries to connect.
    pub tries: Vec<Try>,
    /// When it was handed to a connection, and when the response's head was there.
    pub exchange: Option<(Instant, Option<Instant>)>,
}

/// What a client asked for.
pub struct Asked {
    /// The method.
    pub method: Method,
    /// The target.
    pub target: Uri,
    /// The `Host` field.
    pub host: Option<HeaderValue>,
    /// The version.
    pub version: Version,
}

/// One try to connect to an instance.
#[derive(Clone, Copy, Debug)]
pub struct Try {
    /// When it began.
    pub began: Instant,
    /// When it was over.
    pub ended: Instant,
    /// Why there was no connection.
    pub cause: Option<Cause>,
}

/// A request that has ended.
pub struct Ended<'r> {
    /// When it arrived.
    pub arrived: Instant,
    /// When it ended.
    pub ended: Instant,
    /// Its status.
    pub status: u16,
    /// What went wrong.
    pub cause: Option<Cause>,
    /// Whether it left HTTP.
    pub via: Via,
    /// Name of its Route.
    pub route: Option<&'r str>,
    /// Everything else.
    pub detail: &'r Detail,
}

impl Record {
    /// Of a request that has arrived.
    pub fn of<B>(shared: &Arc<Shared>, arrived: Instant, peer: &Peer, trace: Trace, request: &Request<B>) -> Self {
        let via = if request.version() == Version::HTTP_2 { Via::Http2 } else { Via::Http1 };
        let mut record = Self::new(shared, arrived, via);
        record.look_closer(peer, trace, || {
            let asked = Asked {
                method: request.method().clone(),
                target: request.uri().clone(),
                host: request.headers().get(http::header::HOST).cloned(),
                version: request.version(),
            };
            (Some(asked), trace::state(request.headers()).filter(|_| trace.parent != 0).cloned())
        });
        record
    }

    /// Of a request that was refused before it was read.
    pub fn of_refused(shared: &Arc<Shared>, peer: &Peer, trace: Trace) -> Self {
        let mut record = Self::new(shared, Instant::now(), Via::Http1);
        record.look_closer(peer, trace, || (None, None));
        record
    }

    fn new(shared: &Arc<Shared>, arrived: Instant, via: Via) -> Self {
        Self { shared: shared.clone(), arrived, revision: None, route: None, via, status: 0, cause: None, detail: None }
    }

    fn look_closer(&mut self, peer: &Peer, trace: Trace, asked: impl FnOnce() -> (Option<Asked>, Option<HeaderValue>)) {
        let logged = self.shared.telemetry.is_logged(|| self.shared.random.next());
        if !logged && !trace.exported {
            return;
        }
        let (asked, state) = asked();
        self.detail = Some(Box::new(Detail {
            logged,
            trace,
            state,
            asked,
            client: peer.address().clone(),
            scheme: peer.scheme(),
            received: Arc::default(),
            sent: None,
            revision: None,
            upstream: None,
            routed: None,
            granted: None,
            cold: None,
            tries: Vec::new(),
            exchange: None,
        }));
    }

    /// The request is the revision's, by that Route.
    pub fn routed(&mut self, revision: &Arc<Revision>, route: Arc<RouteMetrics>) {
        self.revision = revision.metrics.load_full();
        self.route = Some(route);
        if let Some(detail) = &mut self.detail {
            detail.routed = Some(Instant::now());
            detail.revision = revision.settings.load_full().map(|settings| (revision.clone(), settings));
        }
    }

    /// What the client speaks is not what its connection does.
    pub fn set_via(&mut self, via: Via) {
        self.via = via;
    }

    /// When it arrived.
    pub fn arrived(&self) -> Instant {
        self.arrived
    }

    /// What counts the bytes of the request's body, if anyone wants to know.
    pub fn received(&self) -> Option<Arc<AtomicU64>> {
        self.detail.as_ref().map(|detail| detail.received.clone())
    }

    /// Bytes of the response's body went to the client.
    pub fn sent(&mut self, bytes: usize) {
        self.note(|detail| *detail.sent.get_or_insert_default() += bytes as u64);
    }

    /// Adds to what the access log and traces tell, if they tell of this request.
    pub fn note(&mut self, note: impl FnOnce(&mut Detail)) {
        if let Some(detail) = &mut self.detail {
            note(detail);
        }
    }

    /// The time, if anyone wants to know.
    pub fn now(&self) -> Option<Instant> {
        self.detail.as_ref().map(|_| Instant::now())
    }

    /// Something went wrong, though another try may cure it.
    pub fn error(&mut self, cause: Cause) {
        self.cause = Some(cause);
        if let Some(revision) = &self.revision {
            revision.error(cause);
        }
    }

    /// It has its slot, after it waited.
    pub fn granted(&mut self, now: Instant, upstream: &Upstream) {
        let cold = ColdStart::of(self.arrived, now, upstream.stages());
        if let Some(revision) = &self.revision {
            revision.waited(now - self.arrived);
            if let Some(cold) = &cold {
                revision.waited_cold(now - self.arrived);
                if upstream.tell_cold() {
                    revision.started_cold(cold);
                }
            }
        }
        self.note(|detail| (detail.granted, detail.cold) = (Some(now), cold));
    }

    /// The client gets an answer of the gateway's own in place of the workload's.
    pub fn failed(&mut self, failure: &Failure) {
        self.status = failure.status().as_u16();
        if let Some(cause) = Cause::of_failure(failure) {
            self.error(cause);
        }
        if let (Failure::QueueFull, Some(revision)) = (failure, &self.revision) {
            revision.reject();
        }
    }

    /// The client gets an answer with that status; what went wrong before has been cured.
    pub fn answered(&mut self, status: u16) {
        self.status = status;
        self.cause = None;
    }

    /// Whether a response with its status has a body.
    pub fn has_body(&self) -> bool {
        ![204, 304].contains(&self.status)
    }

    /// What it shares with all.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let ended = Instant::now();
        if self.status == 0 {
            self.status = CLIENT_GONE;
            self.error(Cause::ClientGone);
        }
        let took = ended - self.arrived;
        if let Some(revision) = &self.revision {
            revision.ended(self.via, self.status, took);
        }
        if let Some(route) = &self.route {
            route.ended(self.status, took);
        }
        if let Some(detail) = self.detail.take() {
            self.shared.telemetry.tell(&Ended {
                arrived: self.arrived,
                ended,
                status: self.status,
                cause: self.cause,
                via: self.via,
                route: self.route.as_ref().map(|route| &*route.id.name),
                detail: &detail,
            });
        }
    }
}

impl Ended<'_> {
    /// Bytes of the request's body.
    pub fn received(&self) -> u64 {
        self.detail.received.load(Ordering::Relaxed)
    }

    /// The host that the client named, and the path, query included.
    pub fn host_and_path(&self) -> Option<(&[u8], &str)> {
        let asked = self.detail.asked.as_ref()?;
        let authority = asked.target.authority().map(|authority| authority.as_str().as_bytes());
        let host = authority.or(asked.host.as_ref().map(HeaderValue::as_bytes)).unwrap_or_default();
        Some((host, asked.target.path_and_query().map_or("", |path| path.as_str())))
    }
}
