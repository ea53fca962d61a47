//! The controller's side of the link: one [`Hub`] for each time that this process leads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base::{MappingId, PodId, RevisionId, RouteId};
use bytes::Bytes;
use client::https::{Body, Peer, carries, full, names};
use client::link::{AutoscalerLink, GatewayLink, Late};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::wire::{FromGateway, Lines, ToGateway, line};
use super::{GATEWAY_HEADER, PATH};

/// Lines that wait for a slow gateway; one that is slower is cut off.
const LINES: usize = 10_000;
/// Gateways at a time.
const GATEWAYS: usize = 64;

/// All gateways that are linked to this controller.
pub struct Hub {
    autoscaler: Arc<Late<dyn AutoscalerLink>>,
    state: Mutex<State>,
    /// Told whenever a gateway comes.
    arrivals: watch::Sender<u64>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Default)]
struct State {
    sessions: BTreeMap<u64, Session>,
    last_session: u64,
    last_call: u64,
    /// The last report of each gateway that was recorded, so that none counts twice.
    recorded: HashMap<String, u64>,
}

struct Session {
    gateway: String,
    lines: mpsc::Sender<Bytes>,
    /// Ends the stream.
    end: CancellationToken,
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    loads: HashMap<RevisionId, usize>,
}

/// A gateway's answer to a call.
enum Answer {
    Programmed,
    Retired(Vec<PodId>),
}

impl Hub {
    /// No gateway yet. What gateways tell goes to `autoscaler`; streams end with `stop`.
    pub fn new(autoscaler: Arc<Late<dyn AutoscalerLink>>, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { autoscaler, state: Mutex::default(), arrivals: watch::Sender::new(0), tasks, stop })
    }

    /// Gateways that are linked now.
    pub fn gateways(&self) -> usize {
        self.state.lock().sessions.len()
    }

    /// Answers a gateway that opens the link.
    pub fn handle(self: &Arc<Self>, peer: &Peer, request: Request<Body>) -> Response<Body> {
        if request.method() != Method::POST || request.uri().path() != PATH {
            return refuse(StatusCode::NOT_FOUND, &format!("there is only POST {PATH}"));
        }
        if !peer.certificate.as_ref().is_some_and(|certificate| carries(certificate, names::GATEWAY)) {
            return refuse(
                StatusCode::FORBIDDEN,
                &format!("the certificate does not carry the name {}", names::GATEWAY),
            );
        }
        let name = request.headers().get(GATEWAY_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if name.is_empty() || name.len() > 253 {
            return refuse(StatusCode::BAD_REQUEST, &format!("the header {GATEWAY_HEADER} names no gateway"));
        }
        let (name, address) = (name.to_owned(), peer.address);
        let (lines, receiver) = mpsc::channel::<Bytes>(LINES);
        let end = self.stop.child_token();
        let session =
            Session { gateway: name.clone(), lines, end: end.clone(), calls: HashMap::new(), loads: HashMap::new() };
        let Some(id) = self.add(session) else {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, &format!("{GATEWAYS} gateways are linked already"));
        };
        info!(gateway = name, %address, "a gateway is linked");
        let hub = self.clone();
        let ended = end.clone();
        self.tasks.spawn(async move {
            let listening = hub.listen(id, Lines::new(request.into_body()));
            match ended.run_until_cancelled(listening).await {
                Some(Err(error)) => info!(error, gateway = name, "a gateway has gone"),
                Some(Ok(())) | None => info!(gateway = name, "a gateway has gone"),
            }
            hub.remove(id);
            ended.cancel();
        });
        let lines = futures::stream::unfold((receiver, end), |(mut receiver, end)| async {
            let next = end.run_until_cancelled(receiver.recv()).await.flatten()?;
            Some((Ok(Frame::data(next)), (receiver, end)))
        });
        Response::new(StreamBody::new(lines.boxed()).boxed_unsync())
    }

    fn add(&self, session: Session) -> Option<u64> {
        let mut state = self.state.lock();
        // A gateway that comes again has lost its old stream, whether we know that already or not.
        for old in state.sessions.values().filter(|old| old.gateway == session.gateway) {
            old.end.cancel();
        }
        if state.sessions.len() >= GATEWAYS {
            return None;
        }
        state.last_session += 1;
        let id = state.last_session;
        state.sessions.insert(id, session);
        drop(state);
        self.arrivals.send_modify(|count| *count += 1);
        Some(id)
    }

    fn remove(&self, id: u64) {
        self.state.lock().sessions.remove(&id);
    }

    async fn listen(&self, id: u64, mut lines: Lines) -> Result<(), client::https::BoxError> {
        while let Some(message) = lines.next::<FromGateway>().await? {
            self.take(id, message);
        }
        Ok(())
    }

    fn take(&self, id: u64, message: FromGateway) {
        match message {
            FromGateway::Report { number, stats } => {
                let fresh = {
                    let mut state = self.state.lock();
                    let state = &mut *state;
                    let Some(session) = state.sessions.get_mut(&id) else { return };
                    for stat in &stats {
                        session.note((&stat.revision).into(), stat.load);
                    }
                    session.say(&ToGateway::Recorded { number });
                    let last = state.recorded.entry(session.gateway.clone()).or_default();
                    let fresh = number > *last;
                    *last = number.max(*last);
                    fresh
                };
                if fresh && let Some(autoscaler) = self.autoscaler.get() {
                    autoscaler.report(&stats.iter().map(super::wire::SecondOf::stat).collect::<Vec<_>>());
                }
            }
            FromGateway::Poke { revision, load } => {
                let revision = RevisionId::from(&revision);
                self.note(id, revision.clone(), load);
                self.autoscaler.poke(&revision);
            }
            FromGateway::Load { revision, load } => self.note(id, (&revision).into(), load),
            FromGateway::Programmed { call } => self.answered(id, call, Answer::Programmed),
            FromGateway::Retired { call, pods } => {
                self.answered(id, call, Answer::Retired(pods.iter().map(PodId::from).collect()));
            }
            FromGateway::Released { pods } => {
                self.autoscaler.released(&pods.iter().map(PodId::from).collect::<Vec<_>>());
            }
        }
    }

    fn note(&self, id: u64, revision: RevisionId, load: usize) {
        if let Some(session) = self.state.lock().sessions.get_mut(&id) {
            session.note(revision, load);
        }
    }

    fn answered(&self, id: u64, call: u64, answer: Answer) {
        let waiting = self.state.lock().sessions.get_mut(&id).and_then(|session| session.calls.remove(&call));
        if let Some(waiting) = waiting {
            // Nobody may wait any more.
            let _ = waiting.send(answer);
        }
    }

    /// The gateways that are linked; waits until there is one.
    async fn present(&self) -> Vec<u64> {
        let mut arrivals = self.arrivals.subscribe();
        loop {
            let present: Vec<u64> = self.state.lock().sessions.keys().copied().collect();
            if !present.is_empty() {
                return present;
            }
            // The sender lives as long as the hub.
            let _ = arrivals.changed().await;
        }
    }

    /// Asks one gateway; `None` when it goes before it answers.
    async fn call(self: &Arc<Self>, id: u64, message: impl FnOnce(u64) -> ToGateway) -> Option<Answer> {
        let (sender, receiver) = oneshot::channel();
        let call = {
            let mut state = self.state.lock();
            state.last_call += 1;
            let call = state.last_call;
            let session = state.sessions.get_mut(&id)?;
            session.calls.insert(call, sender);
            session.say(&message(call));
            call
        };
        let mut guard = Call { hub: self.clone(), session: id, call, answered: false };
        let answer = receiver.await.ok();
        guard.answered = true;
        answer
    }
}

impl Session {
    fn note(&mut self, revision: RevisionId, load: usize) {
        if load == 0 {
            self.loads.remove(&revision);
        } else {
            self.loads.insert(revision, load);
        }
    }

    fn say(&self, message: &ToGateway) {
        if self.lines.try_send(line(message)).is_err() {
            self.end.cancel();
        }
    }
}

/// Takes a question back when nobody waits for its answer any more.
struct Call {
    hub: Arc<Hub>,
    session: u64,
    call: u64,
    answered: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        if let Some(session) = self.hub.state.lock().sessions.get_mut(&self.session)
            && session.calls.remove(&self.call).is_some()
        {
            session.say(&ToGateway::Cancel { call: self.call });
        }
    }
}

/// The gateways of one hub, as the serving controllers see them.
pub struct Gateways(pub Arc<Hub>);

impl Gateways {
    /// Resolves once every gateway that is linked has answered; one that comes later reads the objects first.
    fn served(&self, question: impl Fn(u64) -> ToGateway + Send + Sync + 'static) -> BoxFuture<'static, ()> {
        let hub = self.0.clone();
        async move {
            loop {
                let asked = hub.present().await.into_iter().map(|id| hub.call(id, &question));
                let answers = futures::future::join_all(asked).await;
                if answers.iter().any(Option::is_some) {
                    return;
                }
            }
        }
        .boxed()
    }
}

impl GatewayLink for Gateways {
    fn programmed(&self, route: RouteId, generation: i64) -> BoxFuture<'static, ()> {
        self.served(move |call| ToGateway::Programmed { call, route: (&route).into(), generation })
    }

    fn mapped(&self, mapping: MappingId, generation: i64) -> BoxFuture<'static, ()> {
        self.served(move |call| ToGateway::Mapped { call, mapping: (&mapping).into(), generation })
    }

    /// One gateway chooses, the others follow. A gateway that goes meanwhile is asked again when it is back, or another
    /// in its place; without any gateway for as long as requests may take, none of them can have a request.
    fn retire(&self, revision: RevisionId, count: usize, drain_timeout: Duration) -> BoxFuture<'static, Vec<PodId>> {
        let hub = self.0.clone();
        let drain_timeout_ms = u64::try_from(drain_timeout.as_millis()).unwrap_or(u64::MAX);
        async move {
            let deadline = Instant::now() + drain_timeout;
            loop {
                let Ok(present) = tokio::time::timeout_at(deadline, hub.present()).await else { return Vec::new() };
                let Some((first, others)) = present.split_first() else { continue };
                let revision = || (&revision).into();
                let chosen = hub
                    .call(*first, |call| ToGateway::Retire { call, revision: revision(), count, drain_timeout_ms })
                    .await;
                let Some(Answer::Retired(pods)) = chosen else { continue };
                let names: Vec<_> = pods.iter().map(Into::into).collect();
                let follow = others.iter().map(|id| {
                    let (hub, revision, pods) = (hub.clone(), revision(), names.clone());
                    async move {
                        hub.call(*id, |call| ToGateway::RetirePods { call, revision, pods, drain_timeout_ms }).await
                    }
                });
                futures::future::join_all(follow).await;
                return pods;
            }
        }
        .boxed()
    }

    fn load(&self, revision: &RevisionId) -> usize {
        let state = self.0.state.lock();
        state.sessions.values().filter_map(|session| session.loads.get(revision)).sum()
    }
}

fn refuse(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("{text}\n")));
    *response.status_mut() = status;
    response
}
