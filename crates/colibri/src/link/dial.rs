//! The gateway's side of the link.
//!
//! Bounds: a minute of reports that nobody acknowledged; lines that wait for a slow controller, beyond which the stream
//! is opened anew; instances given to a controller of which it may not know.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base::{PodId, RevisionId};
use bytes::Bytes;
use client::https::{self, BoxError, names};
use client::link::{AutoscalerLink, GatewayLink, Stat};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt};
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::wire::{FromGateway, Lines, SecondOf, ToGateway, line};
use super::{ADDRESS, GATEWAY_HEADER, LEASE, PATH};

/// Reports that are kept until they are acknowledged: the stable window's seconds.
const REPORTS: usize = 60;
/// Lines that wait for a slow controller.
const LINES: usize = 10_000;
/// Instances that were given to the present controller and that the next one is told of.
const GIVEN: usize = 10_000;
/// Pause between two attempts to find and reach the controller.
const PAUSE: Duration = Duration::from_millis(250);
/// Time for one attempt.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// When the load is told again after a poke: what comes in a burst waits then too.
const LOADS_AFTER_POKE: [Duration; 4] =
    [Duration::from_millis(10), Duration::from_millis(10), Duration::from_millis(20), Duration::from_millis(60)];

/// What the link asks of the gateway of its process.
pub trait LocalGateway: GatewayLink {
    /// Requests of every revision that has any, and whether some of them wait.
    fn loads(&self) -> Vec<(RevisionId, usize, bool)>;
    /// Takes these instances out of rotation; resolves once they are drained.
    fn retire_pods(&self, revision: RevisionId, pods: Vec<PodId>, drain_timeout: Duration) -> BoxFuture<'static, ()>;
}

/// The gateway's own wrapper, which a foreign trait needs.
pub struct Local(pub Arc<gateway::Gateway>);

impl GatewayLink for Local {
    fn programmed(&self, route: base::RouteId, generation: i64) -> BoxFuture<'static, ()> {
        self.0.programmed(route, generation)
    }

    fn mapped(&self, mapping: base::MappingId, generation: i64) -> BoxFuture<'static, ()> {
        self.0.mapped(mapping, generation)
    }

    fn retire(&self, revision: RevisionId, count: usize, drain_timeout: Duration) -> BoxFuture<'static, Vec<PodId>> {
        self.0.retire(revision, count, drain_timeout)
    }

    fn load(&self, revision: &RevisionId) -> usize {
        self.0.load(revision)
    }
}

impl LocalGateway for Local {
    fn loads(&self) -> Vec<(RevisionId, usize, bool)> {
        self.0.loads()
    }

    fn retire_pods(&self, revision: RevisionId, pods: Vec<PodId>, drain_timeout: Duration) -> BoxFuture<'static, ()> {
        let gateway = self.0.clone();
        async move { gateway.retire_pods(&revision, &pods, drain_timeout).await }.boxed()
    }
}

/// The link as the gateway holds it.
pub struct Dialer {
    /// Names this process among gateways.
    name: String,
    gateway: OnceLock<Arc<dyn LocalGateway>>,
    state: Mutex<State>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    /// Lines to the present controller.
    session: Option<mpsc::Sender<Bytes>>,
    /// Counts sessions.
    number: u64,
    /// Reports that nobody has acknowledged, with their numbers.
    reports: VecDeque<(u64, Vec<SecondOf>)>,
    last_report: u64,
    /// Retirements for the present controller, and of earlier ones that nobody has claimed.
    retiring: HashMap<u64, Retirement>,
    last_retirement: u64,
    /// Pods that were given to the present controller.
    given: VecDeque<PodId>,
}

/// Instances on their way out.
#[derive(Clone)]
struct Retirement {
    revision: RevisionId,
    count: usize,
    /// The session whose controller waits for it.
    session: u64,
    drained: Shared<BoxFuture<'static, Vec<PodId>>>,
}

impl AutoscalerLink for Dialer {
    fn report(&self, stats: &[Stat]) {
        let gateway = self.gateway.get();
        let load = |stat: &Stat| gateway.map_or(0, |gateway| gateway.load(&stat.revision));
        let stats: Vec<SecondOf> = stats.iter().map(|stat| SecondOf::new(stat, load(stat))).collect();
        let mut state = self.state.lock();
        state.last_report += 1;
        let number = state.last_report;
        state.reports.push_back((number, stats.clone()));
        if state.reports.len() > REPORTS {
            state.reports.pop_front();
        }
        state.say(&FromGateway::Report { number, stats });
    }

    fn poke(&self, revision: &RevisionId) {
        // The gateway calls without a lock of its own.
        let Some(gateway) = self.gateway.get() else { return };
        let load = gateway.load(revision);
        let (lines, session) = {
            let mut state = self.state.lock();
            state.say(&FromGateway::Poke { revision: revision.into(), load });
            (state.session.clone(), state.number)
        };
        let Some(lines) = lines else { return };
        debug!(%revision, load, session, "poked");
        self.tasks.spawn(tell_load(gateway.clone(), revision.clone(), load, lines));
    }
}

/// Tells the load a few times after a poke, where it has changed.
async fn tell_load(gateway: Arc<dyn LocalGateway>, revision: RevisionId, load: usize, lines: mpsc::Sender<Bytes>) {
    let mut told = load;
    for pause in LOADS_AFTER_POKE {
        tokio::time::sleep(pause).await;
        let load = gateway.load(&revision);
        if load != told {
            told = load;
            // A full channel is a slow controller; the next report tells it.
            let _ = lines.try_send(line(&FromGateway::Load { revision: (&revision).into(), load }));
        }
    }
}

impl State {
    /// Sends one line to the controller, if there is one; a controller that does not take its lines is left.
    fn say(&mut self, message: &FromGateway) {
        if let Some(session) = &self.session
            && session.try_send(line(message)).is_err()
        {
            self.session = None;
        }
    }
}

/// How the controller is found and spoken to.
pub struct Way {
    /// Reads the Lease.
    pub client: Client,
    /// Shows the gateway's certificate.
    pub tls: ClientConfig,
}

impl Dialer {
    /// A link that is not connected yet. Short tasks of it run on `tasks`.
    pub fn new(name: String, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { name, gateway: OnceLock::new(), state: Mutex::default(), tasks })
    }

    /// Whether a controller listens.
    pub fn is_connected(&self) -> bool {
        self.state.lock().session.is_some()
    }

    /// Keeps a stream to the controller open until `stop`.
    pub async fn run(self: Arc<Self>, gateway: Arc<dyn LocalGateway>, way: Way, stop: CancellationToken) {
        // Set once, here.
        let _ = self.gateway.set(gateway);
        let mut tls = way.tls;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let tls = Arc::new(tls);
        let leases = Api::<Lease>::namespaced(way.client, api::SYSTEM_NAMESPACE);
        let mut told = String::new();
        loop {
            let result = stop.run_until_cancelled(self.session(&leases, &tls)).await;
            let Some(result) = result else { return };
            if let Err(error) = result {
                let text = causes(error.as_ref());
                // The same cause four times a second would tell nothing.
                if text != told {
                    warn!(error = text, "the controller cannot be reached; requests wait meanwhile");
                    told = text;
                }
            } else {
                told.clear();
            }
            if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                return;
            }
        }
    }

    /// One stream, from finding the controller to the stream's end.
    async fn session(self: &Arc<Self>, leases: &Api<Lease>, tls: &Arc<ClientConfig>) -> Result<(), BoxError> {
        let address = find(leases).await?;
        let stream = https::connect(&address, names::CONTROLLER, tls.clone(), CONNECT_LIMIT).await?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(Some(https::PING_INTERVAL))
            .keep_alive_timeout(https::PING_LIMIT)
            .keep_alive_while_idle(true);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let _end = AbortOnDrop(connection.abort_handle());

        let (lines, receiver) = mpsc::channel::<Bytes>(LINES);
        let body = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|line| (Ok::<_, BoxError>(Frame::data(line)), receiver))
        });
        let request = Request::post(format!("https://{}{PATH}", names::CONTROLLER)).header(GATEWAY_HEADER, &self.name);
        let request = request.body(StreamBody::new(body.boxed()).boxed_unsync())?;
        let answer = tokio::time::timeout(CONNECT_LIMIT, sender.send_request(request)).await??;
        if !answer.status().is_success() {
            return Err(format!("the process at {address} refuses the link: {}", answer.status()).into());
        }
        info!(address, "linked to the controller");
        let session = self.begin(lines);
        let body = answer.into_body().map_err(|error| Box::new(error) as BoxError).boxed_unsync();
        let result = self.listen(session, Lines::new(body)).await;
        self.state.lock().session = None;
        info!(address, "the link to the controller has ended");
        result
    }

    /// Takes over a fresh stream: what the controller at its other end cannot know comes first.
    fn begin(self: &Arc<Self>, lines: mpsc::Sender<Bytes>) -> u64 {
        let loads = self.gateway.get().map(|gateway| gateway.loads()).unwrap_or_default();
        let mut state = self.state.lock();
        state.number += 1;
        state.session = Some(lines);
        for (revision, load, waits) in &loads {
            let (revision, load) = (revision.into(), *load);
            state.say(&if *waits {
                FromGateway::Poke { revision, load }
            } else {
                FromGateway::Load { revision, load }
            });
        }
        for (number, stats) in state.reports.clone() {
            state.say(&FromGateway::Report { number, stats });
        }
        let given: Vec<_> = state.given.drain(..).map(|pod| (&pod).into()).collect();
        if !given.is_empty() {
            state.say(&FromGateway::Released { pods: given });
        }
        state.number
    }

    /// Does what the controller asks, until the stream ends or is given up.
    async fn listen(self: &Arc<Self>, session: u64, mut lines: Lines) -> Result<(), BoxError> {
        let mut waits: HashMap<u64, AbortOnDrop> = HashMap::new();
        let mut health = tokio::time::interval(Duration::from_secs(1));
        loop {
            let message = tokio::select! {
                message = lines.next::<ToGateway>() => message?,
                _ = health.tick() => {
                    if self.is_connected() {
                        continue;
                    }
                    return Err("the controller does not take its lines".into());
                }
            };
            let Some(message) = message else { return Ok(()) };
            let gateway = self.gateway.get().expect("the gateway is set before the first session");
            match message {
                ToGateway::Recorded { number } => {
                    self.state.lock().reports.retain(|(own, _)| *own > number);
                }
                ToGateway::Programmed { call, route, generation } => {
                    let programmed = gateway.programmed((&route).into(), generation);
                    waits.retain(|_, task| !task.0.is_finished());
                    waits.insert(call, self.answer_after(programmed, session, call));
                }
                ToGateway::Mapped { call, mapping, generation } => {
                    let mapped = gateway.mapped((&mapping).into(), generation);
                    waits.retain(|_, task| !task.0.is_finished());
                    waits.insert(call, self.answer_after(mapped, session, call));
                }
                ToGateway::Retire { call, revision, count, drain_timeout_ms } => {
                    self.retire(session, call, (&revision).into(), count, Duration::from_millis(drain_timeout_ms));
                }
                ToGateway::RetirePods { call, revision, pods, drain_timeout_ms } => {
                    let named: Vec<PodId> = pods.iter().map(PodId::from).collect();
                    let limit = Duration::from_millis(drain_timeout_ms);
                    let drained = gateway.retire_pods((&revision).into(), named, limit);
                    let link = self.clone();
                    self.tasks.spawn(async move {
                        drained.await;
                        link.answer(session, &FromGateway::Retired { call, pods });
                    });
                }
                // Instances that are out of rotation stay so: that cannot be taken back.
                ToGateway::Cancel { call } => drop(waits.remove(&call)),
            }
        }
    }

    /// Answers a question about hosts once they are served.
    fn answer_after(self: &Arc<Self>, served: BoxFuture<'static, ()>, session: u64, call: u64) -> AbortOnDrop {
        let link = self.clone();
        let task = self.tasks.spawn(async move {
            served.await;
            link.answer(session, &FromGateway::Programmed { call });
        });
        AbortOnDrop(task.abort_handle())
    }

    /// Says it only if that controller still listens.
    fn answer(&self, session: u64, message: &FromGateway) {
        let mut state = self.state.lock();
        if state.number == session {
            state.say(message);
        }
    }

    /// Retires `count` instances: those first that are on their way out for a controller that is gone.
    fn retire(self: &Arc<Self>, session: u64, call: u64, revision: RevisionId, count: usize, limit: Duration) {
        let gateway = self.gateway.get().expect("the gateway is set before the first session").clone();
        let mut claimed = Vec::new();
        let mut left = count;
        {
            let mut state = self.state.lock();
            for (number, old) in &mut state.retiring {
                if left > 0 && old.session != session && old.revision == revision && old.count <= left {
                    left -= old.count;
                    old.session = session;
                    claimed.push((*number, old.drained.clone()));
                }
            }
            if left > 0 {
                state.last_retirement += 1;
                let number = state.last_retirement;
                let drained = gateway.retire(revision.clone(), left, limit).shared();
                let retirement = Retirement { revision, count: left, session, drained: drained.clone() };
                state.retiring.insert(number, retirement);
                claimed.push((number, drained));
            }
        }
        let link = self.clone();
        self.tasks.spawn(async move {
            let drained = claimed.into_iter().map(|(number, drained)| async move { (number, drained.await) });
            link.drained(session, call, futures::future::join_all(drained).await);
        });
    }

    /// Tells the controller that asked, or the one that has followed it.
    fn drained(&self, session: u64, call: u64, retirements: Vec<(u64, Vec<PodId>)>) {
        let mut state = self.state.lock();
        let mut pods = Vec::new();
        for (number, drained) in retirements {
            // What a later session has claimed, that one tells.
            if state.retiring.get(&number).is_some_and(|own| own.session == session) {
                state.retiring.remove(&number);
                pods.extend(drained);
            }
        }
        state.given.extend(pods.iter().cloned());
        let excess = state.given.len().saturating_sub(GIVEN);
        state.given.drain(..excess);
        let pods: Vec<_> = pods.iter().map(Into::into).collect();
        if state.number == session {
            state.say(&FromGateway::Retired { call, pods });
        } else if !pods.is_empty() {
            state.say(&FromGateway::Released { pods });
        }
    }
}

/// `host:port` of the controller that holds the Lease.
async fn find(leases: &Api<Lease>) -> Result<String, BoxError> {
    let found = tokio::time::timeout(CONNECT_LIMIT, leases.get_opt(LEASE)).await;
    let found = found.map_err(|_| "the API server does not answer")??;
    let Some(lease) = found else { return Err("no controller has been elected yet".into()) };
    let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
    if holder.is_empty() {
        return Err("no controller leads at present".into());
    }
    let address = lease.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ADDRESS));
    address.cloned().ok_or_else(|| format!("the lease {LEASE} names no address of {holder}").into())
}

fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        if !text.contains(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
