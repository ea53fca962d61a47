//! What a pod does next: a pure state machine.
//!
//! | container is | event | becomes | effect |
//! |---|---|---|---|
//! | waiting, due | any | preparing | prepare |
//! | preparing | prepared | starting | (the shell starts it) |
//! | preparing | refused | waiting, after a back-off | |
//! | starting | started | running | probe |
//! | starting | failed | ended, then as for exited | |
//! | running | exited | ended; waiting if the policy restarts it | |
//! | running | probe | running; killed when liveness or startup gave up | stop it |
//! | starting, running | its sandbox is lost | ended; waiting if the policy restarts it, without a back-off | |
//!
//! Init containers run one after the other, the others together after them. A delete stops all; once nothing runs the
//! pod is finished. A new sandbox runs the init containers again. Ties: a delete beats a restart; a start that is
//! reported after a delete is stopped at once.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use supervisor::{Exit, StartFailure};
use tokio::time::Instant;

/// First and longest pause between restarts, and between tries to fetch an image.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// A container that ran so long has no past.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// When a container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whenever it ends.
    Always,
    /// When it fails.
    OnFailure,
    /// Never.
    Never,
}

/// What the machine must know of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Its name.
    pub name: String,
    /// Whether it runs before the others.
    pub init: bool,
    /// Its policy.
    pub restart: RestartPolicy,
    /// Whether it is ready only when a probe says so.
    pub readiness_probe: bool,
    /// Whether it has started only when a probe says so.
    pub startup_probe: bool,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Signal, if one ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`.
    pub reason: String,
    /// What it left to say.
    pub message: String,
    /// When it began.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub finished: Timestamp,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It waits for its turn or its time.
    Waiting {
        /// For the status.
        reason: String,
        /// For the status.
        message: String,
        /// Not before.
        until: Option<Instant>,
    },
    /// Image and configuration are being fetched.
    Preparing {
        /// What it waited for before: shown until it is over.
        reason: String,
        /// As above.
        message: String,
    },
    /// The supervisor has its orders.
    Starting,
    /// Its program runs.
    Running {
        /// Since.
        since: Timestamp,
        /// Since, for time spans.
        from: Instant,
        /// Whether it has started up.
        started: bool,
        /// Whether it is ready.
        ready: bool,
    },
    /// It ended for good.
    Ended(Ended),
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// What is known of it.
    pub plan: ContainerPlan,
    /// Where it is.
    pub phase: Phase,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last run ended.
    pub last: Option<Ended>,
    /// The image as it was found.
    pub image_id: String,
    /// Number of its next or present run; one log file each.
    pub run: u32,
    crashes: u32,
    refusals: u32,
}

/// What is known of a container's earlier runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    /// How often it was started again.
    pub restarts: u32,
    /// How its last run ended.
    pub last: Option<Ended>,
    /// The image as it was found.
    pub image_id: String,
    /// Failures in a row, for the back-off.
    pub crashes: u32,
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Is it up? Until then the others wait.
    Startup,
    /// Can it take requests?
    Readiness,
    /// Is it alive? If not, it is killed.
    Liveness,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Time has passed, or nothing in particular.
    Look,
    /// A container's image and configuration are there; its start was ordered.
    Prepared {
        /// The container.
        name: String,
        /// The image as it was found.
        image_id: String,
    },
    /// They are not.
    Refused {
        /// The container.
        name: String,
        /// `ErrImagePull`, `CreateContainerConfigError` and so on.
        reason: String,
        /// For the user.
        message: String,
    },
    /// Its program runs.
    Started {
        /// The container.
        name: String,
        /// When.
        at: Timestamp,
    },
    /// Its program could not be started.
    Failed {
        /// The container.
        name: String,
        /// Why.
        failure: StartFailure,
        /// When.
        at: Timestamp,
    },
    /// Its program ended.
    Exited {
        /// The container.
        name: String,
        /// How.
        exit: Exit,
    },
    /// A probe has come to a new result.
    Probed {
        /// The container.
        name: String,
        /// What for.
        kind: ProbeKind,
        /// The result.
        success: bool,
    },
    /// The pod is to go.
    Delete {
        /// Time between SIGTERM and SIGKILL.
        grace: Duration,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Fetch image and configuration of a container and start it.
    Prepare(String),
    /// Begin to probe it.
    Probe(String),
    /// Stop one container; the pod's grace holds.
    Stop(String),
    /// Stop all.
    StopAll(Duration),
    /// Nothing runs and nothing will.
    Finish,
}

/// One pod.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its containers, those that run first in front.
    pub containers: Vec<Container>,
    /// Whether it is to go.
    pub deleting: bool,
    /// Whether [`Effect::Finish`] was said.
    pub finished: bool,
}

impl Machine {
    /// A pod of which nothing runs yet.
    pub fn new(plans: Vec<ContainerPlan>) -> Self {
        let container = |plan: ContainerPlan| Container {
            phase: waiting(if plan.init { "PodInitializing" } else { "ContainerCreating" }, "", None),
            plan,
            restarts: 0,
            last: None,
            image_id: String::new(),
            run: 0,
            crashes: 0,
            refusals: 0,
        };
        Self { containers: plans.into_iter().map(container).collect(), deleting: false, finished: false }
    }

    /// Takes an event; what is to be done now.
    pub fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = self.take(event, now);
        self.plan(now, &mut effects);
        effects
    }

    /// The sandbox is gone with all that ran in it; what is to run again waits for a new one.
    pub fn lose(&mut self, at: Timestamp) {
        let deleting = self.deleting;
        for container in &mut self.containers {
            container.lose(at, deleting);
        }
        if self.deleting || self.over() {
            return;
        }
        for container in self.containers.iter_mut().filter(|container| container.plan.init) {
            if matches!(container.phase, Phase::Ended(_)) {
                container.restarts += 1;
                container.phase = waiting("PodInitializing", "", None);
            }
        }
    }

    /// Puts a container where an earlier node had it.
    pub(super) fn restore(&mut self, name: &str, past: Past, run: u32, phase: Phase) {
        self.with(name, |container| {
            container.restarts = past.restarts;
            container.last = past.last;
            container.image_id = past.image_id;
            container.crashes = past.crashes;
            container.run = run;
            container.phase = phase;
        });
    }

    /// What a running container needs no probe for is true of it.
    pub(super) fn settle(&mut self, name: &str) {
        self.with(name, |container| {
            let (startup_probe, readiness_probe) = (container.plan.startup_probe, container.plan.readiness_probe);
            if let Phase::Running { started, ready, .. } = &mut container.phase {
                *started |= !startup_probe;
                *ready = *started && (*ready || !readiness_probe);
            }
        });
    }

    /// When to look again though nothing happens.
    pub fn wake(&self) -> Option<Instant> {
        let due = |container: &Container| match container.phase {
            Phase::Waiting { until, .. } => until,
            _ => None,
        };
        if self.deleting { None } else { self.containers.iter().filter_map(due).min() }
    }

    /// The container of that name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| container.plan.name == name)
    }

    /// Whether all init containers are through.
    pub fn initialized(&self) -> bool {
        let through = |container: &Container| matches!(&container.phase, Phase::Ended(ended) if ended.code == 0);
        self.containers.iter().filter(|container| container.plan.init).all(through)
    }

    /// Whether all others are ready.
    pub fn ready(&self) -> bool {
        let ready = |container: &Container| matches!(container.phase, Phase::Running { ready: true, .. });
        !self.deleting && self.containers.iter().filter(|container| !container.plan.init).all(ready)
    }

    fn take(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Look => {}
            Event::Delete { grace } => {
                self.deleting = true;
                return vec![Effect::StopAll(grace)];
            }
            Event::Prepared { name, image_id } => self.with(&name, |container| {
                container.image_id = image_id;
                container.refusals = 0;
                container.phase = Phase::Starting;
            }),
            Event::Refused { name, reason, message } => {
                self.with(&name, |container| container.refuse(reason, message, now));
            }
            Event::Started { name, at } => return self.started(&name, at, now),
            Event::Failed { name, failure, at } => self.failed(&name, failure, at, now),
            Event::Exited { name, exit } => self.exited(&name, &exit, now),
            Event::Probed { name, kind, success } => return self.probed(&name, kind, success),
        }
        Vec::new()
    }

    fn with(&mut self, name: &str, change: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.plan.name == name) {
            change(container);
        }
    }

    fn started(&mut self, name: &str, at: Timestamp, now: Instant) -> Vec<Effect> {
        if self.deleting {
            return vec![Effect::Stop(name.to_string())];
        }
        self.with(name, |container| {
            let started = !container.plan.startup_probe;
            let ready = started && !container.plan.readiness_probe;
            container.phase = Phase::Running { since: at, from: now, started, ready };
        });
        vec![Effect::Probe(name.to_string())]
    }

    pub(super) fn failed(&mut self, name: &str, failure: StartFailure, at: Timestamp, now: Instant) {
        let deleting = self.deleting;
        self.with(name, |container| {
            container.run += 1;
            if failure.config {
                return container.refuse("CreateContainerConfigError".into(), failure.message, now);
            }
            let ended = Ended {
                code: 128,
                signal: None,
                reason: "StartError".into(),
                message: failure.message,
                started: None,
                finished: at,
            };
            container.ended(ended, Duration::ZERO, deleting, now);
        });
    }

    pub(super) fn exited(&mut self, name: &str, exit: &Exit, now: Instant) {
        let deleting = self.deleting;
        self.with(name, |container| {
            let (started, ran) = match container.phase {
                Phase::Running { since, from, .. } => (Some(since), now.saturating_duration_since(from)),
                _ => (None, Duration::ZERO),
            };
            let reason = match (exit.oom_killed, exit.code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            };
            let ended = Ended {
                code: exit.code,
                signal: exit.signal,
                reason: reason.into(),
                message: exit.message.clone(),
                started,
                finished: Timestamp::from_millisecond(exit.finished_ms).unwrap_or_default(),
            };
            container.run += 1;
            container.ended(ended, ran, deleting, now);
        });
    }

    fn probed(&mut self, name: &str, kind: ProbeKind, success: bool) -> Vec<Effect> {
        let mut effects = Vec::new();
        self.with(name, |container| {
            let readiness_probe = container.plan.readiness_probe;
            let Phase::Running { started, ready, .. } = &mut container.phase else { return };
            match (kind, success) {
                (ProbeKind::Startup, true) => {
                    *started = true;
                    *ready |= !readiness_probe;
                }
                (ProbeKind::Readiness, result) => *ready = result && *started,
                (ProbeKind::Liveness, true) => {}
                (ProbeKind::Startup | ProbeKind::Liveness, false) => effects.push(Effect::Stop(name.to_string())),
            }
        });
        effects
    }

    fn plan(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let over = self.deleting || self.over();
        if over && !self.finished && !self.containers.iter().any(Container::is_alive) {
            self.finished = true;
            effects.push(Effect::Finish);
        }
        if over {
            return;
        }
        for container in &mut self.containers {
            match &container.phase {
                Phase::Waiting { until, reason, message } if until.is_none_or(|at| at <= now) => {
                    effects.push(Effect::Prepare(container.plan.name.clone()));
                    container.phase = Phase::Preparing { reason: reason.clone(), message: message.clone() };
                }
                _ => {}
            }
            // The next one waits for an init container.
            if container.plan.init && !matches!(&container.phase, Phase::Ended(ended) if ended.code == 0) {
                return;
            }
        }
    }

    /// Whether nothing will run any more: all ended, or an init container failed for good.
    pub fn over(&self) -> bool {
        let ended = |container: &Container| matches!(container.phase, Phase::Ended(_));
        let init_failed = |container: &Container| {
            container.plan.init && matches!(&container.phase, Phase::Ended(ended) if ended.code != 0)
        };
        self.containers.iter().all(ended) || self.containers.iter().any(init_failed)
    }
}

impl Container {
    /// Whether a process of it may be there.
    pub fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Running { .. })
    }

    /// What the next run should know.
    pub fn past(&self) -> Past {
        let Self { restarts, last, image_id, crashes, .. } = self.clone();
        Past { restarts, last, image_id, crashes }
    }

    fn lose(&mut self, at: Timestamp, deleting: bool) {
        let started = match &self.phase {
            Phase::Preparing { reason, message } => {
                self.phase = waiting(reason, message, None);
                return;
            }
            Phase::Starting => None,
            Phase::Running { since, .. } => Some(*since),
            _ => return,
        };
        self.run += 1;
        let ended = Ended {
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: "the pod's sandbox is gone, and with it how the container ended".into(),
            started,
            finished: at,
        };
        let again = self.runs_again(&ended);
        self.end(ended);
        if again && !deleting {
            self.restarts += 1;
            self.phase = waiting(if self.plan.init { "PodInitializing" } else { "ContainerCreating" }, "", None);
        }
    }

    fn runs_again(&self, ended: &Ended) -> bool {
        match self.plan.restart {
            RestartPolicy::Always => !self.plan.init || ended.code != 0,
            RestartPolicy::OnFailure => ended.code != 0,
            RestartPolicy::Never => false,
        }
    }

    fn refuse(&mut self, reason: String, message: String, now: Instant) {
        let pause = pause(self.refusals);
        self.refusals += 1;
        let backing_off = reason == "ErrImagePull" && self.refusals > 1;
        let reason = if backing_off { "ImagePullBackOff".to_string() } else { reason };
        self.phase = waiting(&reason, &message, Some(now + pause));
    }

    fn end(&mut self, ended: Ended) {
        self.last = Some(ended.clone());
        self.phase = Phase::Ended(ended);
    }

    fn ended(&mut self, ended: Ended, ran: Duration, deleting: bool, now: Instant) {
        let again = self.runs_again(&ended);
        self.end(ended);
        if deleting || !again {
            return;
        }
        if ran >= FORGIVEN_AFTER {
            self.crashes = 0;
        }
        self.restarts += 1;
        // The first time at once.
        let (until, message) = match self.crashes {
            0 => (None, String::new()),
            count => {
                let pause = pause(count - 1);
                let text = format!("back-off {}s restarting failed container={}", pause.as_secs(), self.plan.name);
                (Some(now + pause), text)
            }
        };
        self.crashes += 1;
        self.phase = waiting("CrashLoopBackOff", &message, until);
    }
}

fn waiting(reason: &str, message: &str, until: Option<Instant>) -> Phase {
    Phase::Waiting { reason: reason.to_string(), message: message.to_string(), until }
}

fn pause(times: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << times.min(8)).min(LAST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(name: &str, init: bool, restart: RestartPolicy) -> ContainerPlan {
        ContainerPlan { name: name.into(), init, restart, readiness_probe: false, startup_probe: false }
    }

    fn exited(name: &str, code: i32) -> Event {
        let exit =
            Exit { code, signal: None, oom_killed: false, message: String::new(), started_ms: 0, finished_ms: 0 };
        Event::Exited { name: name.into(), exit }
    }

    fn started(name: &str) -> Event {
        Event::Started { name: name.into(), at: Timestamp::UNIX_EPOCH }
    }

    fn prepared(name: &str) -> Event {
        Event::Prepared { name: name.into(), image_id: "id".into() }
    }

    fn prepare(name: &str) -> Effect {
        Effect::Prepare(name.into())
    }

    #[test]
    fn init_containers_come_first_and_one_by_one() {
        let now = Instant::now();
        let never = RestartPolicy::Never;
        let mut pod = Machine::new(vec![plan("a", true, never), plan("b", true, never), plan("c", false, never)]);
        assert_eq!(pod.step(Event::Look, now), [prepare("a")]);
        assert_eq!(pod.step(prepared("a"), now), []);
        assert_eq!(pod.step(started("a"), now), [Effect::Probe("a".into())]);
        assert_eq!(pod.step(exited("a", 0), now), [prepare("b")]);
        pod.step(prepared("b"), now);
        pod.step(started("b"), now);
        assert_eq!(pod.step(exited("b", 0), now), [prepare("c")]);
        assert!(pod.initialized() && !pod.ready());
        pod.step(prepared("c"), now);
        pod.step(started("c"), now);
        assert!(pod.ready());
        assert_eq!(pod.step(exited("c", 3), now), [Effect::Finish]);
    }

    #[test]
    fn crashes_back_off_and_a_long_run_is_forgiven() {
        let mut now = Instant::now();
        let mut pod = Machine::new(vec![plan("a", false, RestartPolicy::Always)]);
        pod.step(Event::Look, now);
        let mut pauses = Vec::new();
        for ran in [0, 0, 0, 700, 0] {
            pod.step(prepared("a"), now);
            pod.step(started("a"), now);
            now += Duration::from_secs(ran);
            let effects = pod.step(exited("a", 1), now);
            if effects.is_empty() {
                let at = pod.wake().unwrap();
                pauses.push((at - now).as_secs());
                now = at;
                assert_eq!(pod.step(Event::Look, now), [prepare("a")]);
            } else {
                pauses.push(0);
            }
        }
        assert_eq!(pauses, [0, 10, 20, 0, 10]);
        assert_eq!(pod.containers[0].restarts, 5);
    }

    #[test]
    fn a_delete_beats_a_restart() {
        let now = Instant::now();
        let mut pod = Machine::new(vec![plan("a", false, RestartPolicy::Always)]);
        pod.step(Event::Look, now);
        pod.step(prepared("a"), now);
        let grace = Duration::from_secs(3);
        assert_eq!(pod.step(Event::Delete { grace }, now), [Effect::StopAll(grace)]);
        assert_eq!(pod.step(started("a"), now), [Effect::Stop("a".into())]);
        assert_eq!(pod.step(exited("a", 143), now), [Effect::Finish]);
        assert_eq!(pod.step(Event::Look, now), []);
    }

    #[test]
    fn images_that_are_not_there_are_asked_for_again() {
        let now = Instant::now();
        let mut pod = Machine::new(vec![plan("a", false, RestartPolicy::Always)]);
        pod.step(Event::Look, now);
        let refused = || Event::Refused { name: "a".into(), reason: "ErrImagePull".into(), message: "no".into() };
        pod.step(refused(), now);
        assert!(matches!(&pod.containers[0].phase, Phase::Waiting { reason, .. } if reason == "ErrImagePull"));
        let later = pod.wake().unwrap();
        assert_eq!(pod.step(Event::Look, later), [prepare("a")]);
        pod.step(refused(), later);
        assert!(matches!(&pod.containers[0].phase, Phase::Waiting { reason, .. } if reason == "ImagePullBackOff"));
    }

    #[test]
    fn probes_decide_about_ready_and_alive() {
        let now = Instant::now();
        let probed =
            ContainerPlan { readiness_probe: true, startup_probe: true, ..plan("a", false, RestartPolicy::Always) };
        let mut pod = Machine::new(vec![probed]);
        pod.step(Event::Look, now);
        pod.step(prepared("a"), now);
        pod.step(started("a"), now);
        let probe = |kind, success| Event::Probed { name: "a".into(), kind, success };
        pod.step(probe(ProbeKind::Readiness, true), now);
        assert!(!pod.ready(), "it has not started up");
        pod.step(probe(ProbeKind::Startup, true), now);
        pod.step(probe(ProbeKind::Readiness, true), now);
        assert!(pod.ready());
        pod.step(probe(ProbeKind::Readiness, false), now);
        assert!(!pod.ready());
        assert_eq!(pod.step(probe(ProbeKind::Liveness, false), now), [Effect::Stop("a".into())]);
    }
}
