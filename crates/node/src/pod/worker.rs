//! The task of one pod: carries out what the machine decides, and tells the API server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodStatus, Probe};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use parking_lot::Mutex;
use supervisor::{Event as Said, ExecSpec, Request, Stage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::env::Own;
use super::machine::{Effect, Event, Machine, Phase, ProbeKind};
use super::past::{self, Now};
use super::prepare::{Ready, Refusal, Supplies, prepare};
use super::probe::{self, Action, Failure, Schedule};
use super::status::{self, Addresses};
use super::{listeners, machine, spec};
use crate::events::{Events, Severity};
use crate::logs::LogDir;
use crate::sandbox::found::Found;
use crate::sandbox::{Sandbox, Sandboxes};

/// Messages that wait for the worker; probes wait when it is full.
const INBOX: usize = 64;
/// Longest wait of a status that is not urgent.
const STATUS_DELAY: Duration = Duration::from_millis(100);
/// How long a probe may fail before the status says why, and how often it is asked again.
const EXPLAIN_AFTER: Duration = Duration::from_secs(1);
const EXPLAIN_EVERY: Duration = Duration::from_secs(2);
/// From a pod's deletion until its containers are told to stop.
const NOTICE: Duration = Duration::from_millis(100);
/// Grace of a pod whose object is gone already.
const ORPHAN_GRACE: Duration = Duration::from_secs(2);

/// What all workers share.
pub struct Shared {
    /// What preparation needs.
    pub supplies: Arc<Supplies>,
    /// The sandboxes.
    pub sandboxes: Arc<Sandboxes>,
    /// The node's name and address.
    pub own: Own,
    /// Where events go.
    pub events: Events,
}

/// What the node tells a worker.
#[derive(Clone, Debug)]
pub enum Wish {
    /// The pod as it is now.
    Pod(Arc<Pod>),
    /// The object is gone.
    Gone,
    /// The node shuts down: end within that time. The object stays; the next start runs the pod anew.
    Shutdown(Duration),
    /// The node goes and the pod stays, for the next start to take over.
    Leave,
}

/// What a worker makes of it.
enum Next {
    Stay,
    End(Duration),
    Leave,
}

/// Where a pod runs, for those who measure it.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Name of its sandbox.
    pub sandbox: String,
    /// The running containers, and the process id of each on the host.
    pub containers: BTreeMap<String, u32>,
}

/// The place of one pod; `None` while it has no sandbox.
pub type SharedPlace = Arc<Mutex<Option<Place>>>;

enum Inbound {
    Machine(Event),
    /// The number is that of the sandbox it was prepared for.
    Prepared {
        name: String,
        sandbox: u32,
        result: Box<Result<Ready, Refusal>>,
    },
    Exec {
        spec: ExecSpec,
        answer: oneshot::Sender<bool>,
    },
    /// A probe goes on failing.
    Unready {
        name: String,
        kind: ProbeKind,
        schedule: Schedule,
        failure: Failure,
    },
}

/// The task of one pod.
pub struct Worker {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    wishes: watch::Receiver<Wish>,
    logs: Arc<LogDir>,
    place: SharedPlace,
    machine: Machine,
    found: Option<Found>,
    sandbox: Option<Sandbox>,
    /// How many sandboxes were lost.
    lost: u32,
    address: String,
    inbox: mpsc::Receiver<Inbound>,
    outbox: mpsc::Sender<Inbound>,
    probes: BTreeMap<String, CancellationToken>,
    /// Why containers are not ready, as far as probes can tell.
    hints: BTreeMap<String, String>,
    execs: BTreeMap<u64, oneshot::Sender<bool>>,
    next_exec: u64,
    status: watch::Sender<Option<(PodStatus, bool)>>,
    /// The object needs no more care: it is gone, or the node goes before it.
    gone: bool,
    /// The node goes: the object is to stay as it is.
    quiet: bool,
}

impl Worker {
    /// A worker for `pod`, which was seen on this node for the first time since it started; `found` is what an earlier
    /// node left of it.
    pub fn new(
        shared: Arc<Shared>,
        pod: Arc<Pod>,
        found: Option<Found>,
        wishes: watch::Receiver<Wish>,
        logs: Arc<LogDir>,
        place: SharedPlace,
    ) -> Self {
        let (outbox, inbox) = mpsc::channel(INBOX);
        let now = Now::get();
        let machine = match &found {
            Some(found) => past::adopted(&pod, &found.state, now),
            None => past::lost(&pod, |container| logs.next_run(container), now),
        };
        // Answers to an earlier node's commands may still come.
        let next_exec = u64::try_from(now.wall.as_microsecond()).unwrap_or(0);
        Self {
            shared,
            pod,
            wishes,
            logs,
            place,
            machine,
            found,
            sandbox: None,
            lost: 0,
            address: String::new(),
            inbox,
            outbox,
            probes: BTreeMap::new(),
            hints: BTreeMap::new(),
            execs: BTreeMap::new(),
            next_exec,
            status: watch::Sender::new(None),
            gone: false,
            quiet: false,
        }
    }

    /// Runs until the pod is gone from this node.
    pub async fn run(mut self) {
        let name = format!("{}/{}", self.namespace(), self.name());
        let span = info_span!("pod", %name);
        async {
            let writer = tokio::spawn(write_status(self.shared.clone(), self.pod.clone(), self.status.subscribe()));
            self.adopt();
            // What is over needs no sandbox; one that was found goes.
            let leave = !past::is_over(&self.pod) && self.live().await;
            if !leave {
                self.end().await;
            }
            drop(self.status);
            // A status that was on its way when the pod went is of no use to anybody.
            let _ = writer.await;
        }
        .instrument(span)
        .await;
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Takes over what an earlier node left.
    fn adopt(&mut self) {
        let Some(Found { sandbox, state, .. }) = self.found.take() else { return };
        info!(sandbox = sandbox.name, containers = state.containers.len(), "took over a pod that runs");
        self.enter(sandbox);
        for (name, container) in state.containers {
            if matches!(container.stage, Stage::Starting | Stage::Running { .. }) {
                self.logs.began(&name, container.run);
            }
            if let Stage::Running { pid, .. } = container.stage {
                self.runs(&name, pid);
                self.start_probes(&name);
            }
        }
    }

    fn enter(&mut self, sandbox: Sandbox) {
        self.address = sandbox.address.to_string();
        *self.place.lock() = Some(Place { sandbox: sandbox.name.clone(), containers: BTreeMap::new() });
        self.sandbox = Some(sandbox);
    }

    async fn destroy_sandbox(&mut self) {
        *self.place.lock() = None;
        if let Some(sandbox) = self.sandbox.take() {
            self.shared.sandboxes.destroy(sandbox).await;
        }
    }

    fn runs(&self, container: &str, pid: u32) {
        if let Some(place) = &mut *self.place.lock() {
            place.containers.insert(container.to_owned(), pid);
        }
    }

    /// Tries until there is one; why there is none otherwise.
    async fn take_sandbox(&mut self) -> Next {
        let mut failures = base::Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        loop {
            match self.next() {
                Next::Stay => {}
                other => return other,
            }
            match self.shared.sandboxes.take(&uid).await {
                Ok(sandbox) => {
                    self.enter(sandbox);
                    return Next::Stay;
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "the pod gets no sandbox");
                    let message = format!("Failed to create pod sandbox: {error}");
                    self.shared.events.post(&self.pod, Severity::Warning, "FailedCreatePodSandBox", message);
                    tokio::select! {
                        () = sleep(failures.next_delay()) => {}
                        _ = self.wishes.changed() => {}
                    }
                }
            }
        }
    }

    /// What is to become of the pod.
    fn next(&mut self) -> Next {
        let wish = self.wishes.borrow_and_update().clone();
        match wish {
            Wish::Gone => {
                self.gone = true;
                Next::End(ORPHAN_GRACE)
            }
            Wish::Shutdown(grace) => {
                self.gone = true;
                self.quiet = true;
                Next::End(grace)
            }
            Wish::Leave => {
                self.quiet = true;
                Next::Leave
            }
            Wish::Pod(pod) => {
                self.pod = pod;
                if self.pod.metadata.deletion_timestamp.is_none() {
                    return Next::Stay;
                }
                let own = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
                let seconds = self.pod.metadata.deletion_grace_period_seconds.or(own).unwrap_or(30);
                Next::End(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
            }
        }
    }

    /// Until nothing of the pod runs any more; whether it was left running.
    async fn live(&mut self) -> bool {
        let next = if self.sandbox.is_some() { self.next() } else { self.take_sandbox().await };
        match next {
            Next::Stay => self.step(Event::Look).await,
            Next::End(grace) => self.stop_with_notice(grace).await,
            Next::Leave => return true,
        }
        while !self.machine.finished {
            let wake = self.machine.wake();
            let sandbox = self.sandbox.as_mut();
            let said = async {
                match sandbox {
                    Some(sandbox) => sandbox.link.next().await,
                    None => std::future::pending().await,
                }
            };
            let next = tokio::select! {
                said = said => match said {
                    Ok(Some(said)) => {
                        self.hear(said).await;
                        Next::Stay
                    }
                    Ok(None) | Err(_) => self.lost().await,
                },
                inbound = self.inbox.recv() => {
                    if let Some(inbound) = inbound {
                        self.receive(inbound).await;
                    }
                    Next::Stay
                }
                changed = self.wishes.changed() => {
                    if changed.is_err() {
                        return true;
                    }
                    self.next()
                }
                () = async { match wake { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => {
                    self.step(Event::Look).await;
                    Next::Stay
                }
            };
            match next {
                Next::Stay => {}
                Next::End(grace) => self.stop_with_notice(grace).await,
                Next::Leave => return true,
            }
        }
        debug!("nothing of the pod runs any more");
        false
    }

    /// Stops all. Whoever sends the pod requests watches it too, and gets a moment to see that it goes: a container that
    /// is told to stop may close connections that a request is just being written to.
    async fn stop_with_notice(&mut self, grace: Duration) {
        let alive = self.machine.containers.iter().any(|container| container.is_alive());
        let first = !self.machine.deleting && !self.gone;
        let notice = if alive && first { NOTICE.min(grace) } else { Duration::ZERO };
        if !notice.is_zero() {
            sleep(notice).await;
        }
        self.step(Event::Delete { grace: grace - notice }).await;
    }

    /// The supervisor is gone, and all containers with it: what is to run again gets a new sandbox.
    async fn lost(&mut self) -> Next {
        warn!("the pod's supervisor is gone");
        let message = "Pod sandbox changed, it will be killed and re-created.".to_string();
        self.shared.events.post(&self.pod, Severity::Normal, "SandboxChanged", message);
        for container in self.machine.containers.iter().filter(|container| container.is_alive()) {
            self.logs.ended(&container.plan.name);
        }
        for stop in std::mem::take(&mut self.probes).into_values() {
            stop.cancel();
        }
        self.execs.clear();
        self.machine.lose(Timestamp::now());
        self.lost += 1;
        let again = !self.machine.deleting && !self.machine.over();
        if again {
            // Before the address is given to another pod.
            self.address.clear();
            self.publish(true);
        }
        self.destroy_sandbox().await;
        let next = if again { self.take_sandbox().await } else { Next::Stay };
        if matches!(next, Next::Stay) {
            self.step(Event::Look).await;
        }
        next
    }

    async fn hear(&mut self, said: Said) {
        let now = Timestamp::now();
        match said {
            Said::State(_) => {}
            Said::Started { container, pid, started_ms, .. } => {
                self.runs(&container, pid);
                let at = Timestamp::from_millisecond(started_ms).unwrap_or(now);
                self.step(Event::Started { name: container, at }).await;
            }
            Said::Failed { container, failure, .. } => {
                self.shared.events.post(&self.pod, Severity::Warning, "Failed", format!("Error: {}", failure.message));
                self.stop_probes(&container);
                self.step(Event::Failed { name: container, failure, at: now }).await;
            }
            Said::Exited { container, exit, .. } => {
                info!(container, code = exit.code, oom_killed = exit.oom_killed, "container ended");
                self.stop_probes(&container);
                self.logs.ended(&container);
                if let Some(place) = &mut *self.place.lock() {
                    place.containers.remove(&container);
                }
                self.step(Event::Exited { name: container, exit }).await;
            }
            Said::ExecDone { id, code, .. } => {
                if let Some(answer) = self.execs.remove(&id) {
                    // The probe may have been stopped.
                    let _ = answer.send(code == Some(0));
                }
            }
        }
    }

    async fn receive(&mut self, inbound: Inbound) {
        match inbound {
            Inbound::Machine(event) => self.step(event).await,
            Inbound::Prepared { sandbox, .. } if sandbox != self.lost => {}
            Inbound::Prepared { name, result, .. } => match *result {
                Ok(ready) => self.start(name, ready).await,
                Err(refusal) => {
                    self.shared.events.post(&self.pod, Severity::Warning, "Failed", refusal.to_string());
                    let (reason, message) = (refusal.reason.to_string(), refusal.message);
                    self.step(Event::Refused { name, reason, message }).await;
                }
            },
            Inbound::Unready { name, kind, schedule, failure } => self.explain(name, kind, &schedule, failure),
            Inbound::Exec { mut spec, answer } => {
                spec.id = self.next_exec;
                self.next_exec += 1;
                self.execs.insert(spec.id, answer);
                self.send(Request::Exec(spec)).await;
            }
        }
    }

    /// Says in the status, and in an event, why a container is not ready.
    fn explain(&mut self, name: String, kind: ProbeKind, schedule: &Schedule, failure: Failure) {
        let refused = schedule.action.port().filter(|_| failure == Failure::Refused);
        let sockets = || listeners::of_process(self.sandbox.as_ref()?.link.peer()?);
        let nobody = refused.and_then(|port| listeners::explain(port, &sockets()?));
        let text = nobody.unwrap_or_else(|| probe::explain(&schedule.action, failure, schedule.timeout));
        if self.hints.get(&name) == Some(&text) {
            return;
        }
        let what = if kind == ProbeKind::Startup { "Startup" } else { "Readiness" };
        self.shared.events.post(&self.pod, Severity::Warning, "Unhealthy", format!("{what} probe failed: {text}"));
        self.hints.insert(name, text);
        self.publish(true);
    }

    async fn start(&mut self, name: String, mut ready: Ready) {
        if self.machine.deleting {
            return;
        }
        let past = self.machine.container(&name).map(machine::Container::past).unwrap_or_default();
        let past = machine::Past { image_id: ready.image_id.clone(), ..past };
        ready.spec.note = serde_json::to_string(&past).unwrap_or_default();
        self.logs.began(&name, ready.spec.run);
        self.send(Request::Configure(ready.pod)).await;
        self.send(Request::Start(Box::new(ready.spec))).await;
        self.step(Event::Prepared { name, image_id: ready.image_id }).await;
    }

    /// A supervisor that is gone says so by the end of its events.
    async fn send(&mut self, request: Request) {
        if let Some(sandbox) = &mut self.sandbox
            && let Err(error) = sandbox.link.send(&request).await
        {
            warn!(%error, "the supervisor does not take a request");
        }
    }

    async fn step(&mut self, event: Event) {
        let was_ready = self.machine.ready();
        if let Event::Probed { name, success: true, .. } = &event {
            self.hints.remove(name);
        }
        let effects = self.machine.step(event, Instant::now());
        for effect in effects {
            match effect {
                Effect::Prepare(name) => self.prepare(name),
                Effect::Probe(name) => self.start_probes(&name),
                Effect::Stop(name) => {
                    let grace_ms = self.grace_ms();
                    self.send(Request::Stop { container: Some(name), grace_ms }).await;
                }
                Effect::StopAll(grace) => {
                    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
                    self.send(Request::Stop { container: None, grace_ms }).await;
                }
                Effect::Finish => {}
            }
        }
        let urgent = was_ready != self.machine.ready() || self.machine.finished || self.status.borrow().is_none();
        self.publish(urgent);
    }

    fn grace_ms(&self) -> u64 {
        let seconds = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30);
        u64::try_from(seconds).unwrap_or(0).saturating_mul(1000)
    }

    fn publish(&self, urgent: bool) {
        if self.quiet {
            return;
        }
        let addresses = Addresses { pod: self.address.clone(), host: self.shared.own.host_ip.clone() };
        let mut base = (*self.pod).clone();
        if let Some((last, _)) = &*self.status.borrow() {
            base.status = Some(last.clone());
        }
        let mut status = status::make(&base, &self.machine, &addresses, Timestamp::now());
        status::explain(&mut status, &self.hints);
        self.status.send_replace(Some((status, urgent)));
    }

    fn prepare(&self, name: String) {
        let Some(container) = self.spec_of(&name).cloned() else { return };
        let run = self.machine.container(&name).map_or(0, |container| container.run);
        let (shared, pod, outbox, sandbox) = (self.shared.clone(), self.pod.clone(), self.outbox.clone(), self.lost);
        let own = Own { pod_ip: self.address.clone(), ..shared.own.clone() };
        let logs = self.logs.path().to_path_buf();
        tokio::spawn(
            async move {
                let result = Box::new(prepare(&shared.supplies, &pod, &container, run, &own, logs).await);
                // The worker may have ended.
                let _ = outbox.send(Inbound::Prepared { name, sandbox, result }).await;
            }
            .in_current_span(),
        );
    }

    fn spec_of(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        spec::containers(spec).map(|(container, _)| container).find(|container| container.name == name)
    }

    fn stop_probes(&mut self, name: &str) {
        self.hints.remove(name);
        if let Some(stop) = self.probes.remove(name) {
            stop.cancel();
        }
    }

    fn start_probes(&mut self, name: &str) {
        self.stop_probes(name);
        let Some(container) = self.spec_of(name).cloned() else { return };
        let phase =
            self.machine.container(name).filter(|container| !container.plan.init).map(|container| &container.phase);
        let Some(&Phase::Running { started, ready, .. }) = phase else { return };
        let stop = CancellationToken::new();
        self.probes.insert(name.to_string(), stop.clone());
        let read =
            |probe: &Option<Probe>| probe.as_ref().and_then(|probe| probe::schedule(&container, probe, &self.address));
        let prober = Prober { name: name.to_string(), outbox: self.outbox.clone() };
        let (startup, readiness, liveness) =
            (read(&container.startup_probe), read(&container.readiness_probe), read(&container.liveness_probe));
        // A probe that asks for nothing is passed.
        let pass_startup = container.startup_probe.is_some() && startup.is_none();
        let pass_readiness = container.readiness_probe.is_some() && readiness.is_none();
        let work = async move {
            match &startup {
                Some(schedule) if !started => prober.until(ProbeKind::Startup, schedule).await,
                None if pass_startup => prober.tell(ProbeKind::Startup, true).await,
                _ => {}
            }
            if pass_readiness {
                prober.tell(ProbeKind::Readiness, true).await;
            }
            let follow = async |kind, schedule: Option<Schedule>| {
                if let Some(schedule) = schedule {
                    prober.follow(kind, &schedule, kind == ProbeKind::Liveness || ready).await;
                }
            };
            tokio::join!(follow(ProbeKind::Readiness, readiness), follow(ProbeKind::Liveness, liveness));
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = work => {}
            }
        });
    }

    async fn end(&mut self) {
        for stop in std::mem::take(&mut self.probes).into_values() {
            stop.cancel();
        }
        if self.machine.finished && !self.gone {
            self.publish(true);
        }
        self.destroy_sandbox().await;
        // A pod that ended by itself stays until it is deleted.
        while !self.gone {
            match self.next() {
                Next::Stay => {}
                Next::End(_) => break,
                Next::Leave => return,
            }
            if self.wishes.changed().await.is_err() {
                return;
            }
        }
        if !self.gone {
            self.delete_object().await;
        }
        if !self.quiet {
            self.logs.remove();
        }
    }

    async fn delete_object(&mut self) {
        let pods = Api::<Pod>::namespaced(self.shared.supplies.client.clone(), self.namespace());
        let preconditions = Preconditions { uid: self.pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        let mut failures = base::Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        loop {
            match pods.delete(self.name(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                Err(error) => warn!(%error, "the pod's object could not be deleted"),
            }
            tokio::select! {
                () = sleep(failures.next_delay()) => {}
                _ = self.wishes.changed() => {
                    if matches!(self.next(), Next::Leave) || self.gone {
                        return;
                    }
                }
            }
        }
    }
}

struct Prober {
    name: String,
    outbox: mpsc::Sender<Inbound>,
}

impl Prober {
    async fn tell(&self, kind: ProbeKind, success: bool) {
        let event = machine::Event::Probed { name: self.name.clone(), kind, success };
        // The worker may have ended.
        let _ = self.outbox.send(Inbound::Machine(event)).await;
    }

    async fn attempt(&self, schedule: &Schedule) -> Result<(), Failure> {
        if let Some(result) = probe::attempt(&schedule.action, schedule.timeout).await {
            return result;
        }
        let Action::Exec(args) = &schedule.action else { return Err(Failure::Command) };
        let (answer, result) = oneshot::channel();
        let timeout_ms = u64::try_from(schedule.timeout.as_millis()).unwrap_or(1000);
        let spec = ExecSpec { id: 0, container: self.name.clone(), args: args.clone(), timeout_ms };
        if self.outbox.send(Inbound::Exec { spec, answer }).await.is_err() {
            return Err(Failure::Command);
        }
        if result.await.unwrap_or(false) { Ok(()) } else { Err(Failure::Command) }
    }

    /// Says from time to time why a container that runs for a while is not ready.
    async fn explain(&self, kind: ProbeKind, schedule: &Schedule, failure: Failure, next: &mut Instant) {
        if Instant::now() >= *next {
            *next = Instant::now() + EXPLAIN_EVERY;
            let (name, schedule) = (self.name.clone(), schedule.clone());
            // The worker may have ended.
            let _ = self.outbox.send(Inbound::Unready { name, kind, schedule, failure }).await;
        }
    }

    /// Until the first success, or until the failures are too many.
    async fn until(&self, kind: ProbeKind, schedule: &Schedule) {
        sleep(schedule.initial).await;
        let began = Instant::now();
        let patience = schedule.period * schedule.failures;
        let mut explain = began + EXPLAIN_AFTER;
        while let Err(failure) = self.attempt(schedule).await {
            self.explain(kind, schedule, failure, &mut explain).await;
            if began.elapsed() >= patience {
                self.tell(kind, false).await;
            }
            sleep(schedule.pause(false, began.elapsed())).await;
        }
        self.tell(kind, true).await;
    }

    /// For ever: says each change from what it is taken to be at first.
    async fn follow(&self, kind: ProbeKind, schedule: &Schedule, mut good: bool) {
        sleep(schedule.initial).await;
        let began = Instant::now();
        let (mut successes, mut failures) = (0, 0);
        let mut explain = began + EXPLAIN_AFTER;
        loop {
            match self.attempt(schedule).await {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(failure) => {
                    (successes, failures) = (0, failures + 1);
                    if kind == ProbeKind::Readiness {
                        self.explain(kind, schedule, failure, &mut explain).await;
                    }
                }
            }
            let turned = if good { failures >= schedule.failures } else { successes >= schedule.successes };
            if turned {
                good = !good;
                self.tell(kind, good).await;
            }
            let eager = kind == ProbeKind::Readiness && !good && successes == 0 && failures > 0;
            sleep(schedule.pause(!eager, began.elapsed())).await;
        }
    }
}

/// Writes a pod's status.
///
/// # Errors
///
/// When the API server refuses; also when the pod is gone, though another has its name.
pub async fn patch_status(client: &Client, pod: &Pod, status: &PodStatus) -> Result<(), kube::Error> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    // The uid makes sure that a successor of the same name is left alone.
    let patch = serde_json::json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(&patch)).await.map(drop)
}

/// Writes the newest status; one that is not urgent waits a little, since the next may follow at once.
async fn write_status(shared: Arc<Shared>, pod: Arc<Pod>, mut statuses: watch::Receiver<Option<(PodStatus, bool)>>) {
    let written = Mutex::new(pod.status.clone());
    let mut failures = base::Backoff::new(Duration::from_millis(20), Duration::from_secs(5));
    while statuses.changed().await.is_ok() {
        let waited = Instant::now();
        loop {
            let urgent = statuses.borrow_and_update().as_ref().is_some_and(|(_, urgent)| *urgent);
            if urgent || waited.elapsed() >= STATUS_DELAY {
                break;
            }
            tokio::select! {
                () = sleep(STATUS_DELAY.saturating_sub(waited.elapsed())) => {}
                changed = statuses.changed() => if changed.is_err() { return },
            }
        }
        let Some((status, _)) = statuses.borrow().clone() else { continue };
        if written.lock().as_ref() == Some(&status) {
            continue;
        }
        match patch_status(&shared.supplies.client, &pod, &status).await {
            Ok(()) => {
                failures.reset();
                *written.lock() = Some(status);
            }
            Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409 | 422) => {
                debug!(%answer, "the pod's status is not taken");
            }
            Err(error) => {
                warn!(%error, "the pod's status could not be written, trying again");
                sleep(failures.next_delay()).await;
                statuses.mark_changed();
            }
        }
    }
}
