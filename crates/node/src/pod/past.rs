//! A pod that an earlier node ran: its machine, from what its supervisor or, without one, its status says. Pure.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use supervisor::{Stage, State};
use tokio::time::Instant;

use super::machine::{Ended, Machine, Past, Phase};
use super::spec;

/// This moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For time spans.
    pub instant: Instant,
    /// For the status.
    pub wall: Timestamp,
}

impl Now {
    /// The present.
    pub fn get() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }

    /// A time of the wall clock on the other one; never later than now.
    fn instant_of(self, at: Timestamp) -> Instant {
        let ago = self.wall.duration_since(at).max(SignedDuration::ZERO);
        self.instant.checked_sub(ago.unsigned_abs()).unwrap_or(self.instant)
    }
}

/// The machine of a pod whose sandbox is still there. What happened since the earlier node looked is made up for.
pub fn adopted(pod: &Pod, state: &State, now: Now) -> Machine {
    let mut machine = fresh(pod);
    for (name, container) in &state.containers {
        let past: Past = serde_json::from_str(&container.note).unwrap_or_default();
        let run = container.run;
        let running = |started_ms: i64| {
            let since = Timestamp::from_millisecond(started_ms).unwrap_or(now.wall);
            let status = status_of(pod, name);
            Phase::Running {
                since,
                from: now.instant_of(since),
                started: status.is_some_and(|status| status.started == Some(true)),
                ready: status.is_some_and(|status| status.ready),
            }
        };
        match &container.stage {
            Stage::Starting => machine.restore(name, past, run, Phase::Starting),
            Stage::Running { started_ms, .. } => {
                machine.restore(name, past, run, running(*started_ms));
                machine.settle(name);
            }
            Stage::Failed(failure) => {
                machine.restore(name, past, run, Phase::Starting);
                machine.failed(name, failure.clone(), now.wall, now.instant);
            }
            Stage::Exited(exit) => {
                machine.restore(name, past, run, running(exit.started_ms));
                let at = Timestamp::from_millisecond(exit.finished_ms).unwrap_or(now.wall);
                machine.exited(name, exit, now.instant_of(at));
            }
        }
    }
    machine
}

/// The machine of a pod whose sandbox is gone, if it ever had one; `next_run` numbers a container's next run.
pub fn lost(pod: &Pod, next_run: impl Fn(&str) -> u32, now: Now) -> Machine {
    let mut machine = fresh(pod);
    let names: Vec<String> = machine.containers.iter().map(|container| container.plan.name.clone()).collect();
    for name in &names {
        let Some(status) = status_of(pod, name) else { continue };
        let state = status.state.as_ref();
        let terminated = state.and_then(|state| state.terminated.as_ref());
        let before = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
        let past = Past {
            restarts: u32::try_from(status.restart_count).unwrap_or(0),
            last: terminated.or(before).map(ended),
            image_id: status.image_id.clone(),
            crashes: 0,
        };
        let since = state.and_then(|state| state.running.as_ref()).map(|running| running.started_at.as_ref());
        let phase = match (terminated, since) {
            (Some(terminated), _) => Phase::Ended(ended(terminated)),
            (None, Some(since)) => Phase::Running {
                since: since.map_or(now.wall, |time| time.0),
                from: now.instant,
                started: false,
                ready: false,
            },
            (None, None) => continue_waiting(status),
        };
        machine.restore(name, past, 0, phase);
    }
    machine.lose(now.wall);
    for container in &mut machine.containers {
        container.run = next_run(&container.plan.name);
    }
    machine
}

/// Whether the pod's status says that nothing of it will run any more.
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn fresh(pod: &Pod) -> Machine {
    Machine::new(pod.spec.as_ref().map(spec::plans).unwrap_or_default())
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    all.into_iter().find(|status| status.name == name)
}

fn continue_waiting(status: &ContainerStatus) -> Phase {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "ContainerCreating".into());
    Phase::Waiting { reason, message: String::new(), until: None }
}

fn ended(terminated: &ContainerStateTerminated) -> Ended {
    Ended {
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone().unwrap_or_default(),
        started: terminated.started_at.as_ref().map(|time| time.0),
        finished: terminated.finished_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::time::Duration;

    use supervisor::{ContainerState, Exit, PROTOCOL, StartFailure};

    use super::super::machine::{Effect, Event};
    use super::*;

    fn pod(policy: &str, status: serde_json::Value) -> Pod {
        let spec = json!({
            "restartPolicy": policy,
            "initContainers": [{"name": "first"}],
            "containers": [{"name": "main", "readinessProbe": {"httpGet": {"port": 80}}}],
        });
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec, "status": status})).unwrap()
    }

    fn state(containers: Vec<(&str, u32, Past, Stage)>) -> State {
        let each = containers.into_iter().map(|(name, run, past, stage)| {
            let note = serde_json::to_string(&past).unwrap();
            (name.to_owned(), ContainerState { run, note, stage })
        });
        State { protocol: PROTOCOL, binding: None, user_namespace: false, containers: each.collect() }
    }

    fn exited(code: i32, now: Now, ran: Duration, ago: Duration) -> Stage {
        let finished_ms = now.wall.as_millisecond() - i64::try_from(ago.as_millis()).unwrap();
        let started_ms = finished_ms - i64::try_from(ran.as_millis()).unwrap();
        let message = String::new();
        Stage::Exited(Exit { code, signal: None, oom_killed: false, message, started_ms, finished_ms })
    }

    fn summary(machine: &Machine, now: Now) -> BTreeMap<String, String> {
        let show = |phase: &Phase| match phase {
            Phase::Waiting { reason, until, .. } => {
                format!("{reason} in {}s", until.map_or(0, |at| at.duration_since(now.instant).as_secs()))
            }
            Phase::Running { started, ready, .. } => format!("running started={started} ready={ready}"),
            Phase::Ended(ended) => format!("ended {} {}", ended.code, ended.reason),
            other => format!("{other:?}"),
        };
        let each = machine.containers.iter().map(|container| {
            let text = format!("{}, run {}, {} restarts", show(&container.phase), container.run, container.restarts);
            (container.plan.name.clone(), text)
        });
        each.collect()
    }

    #[test]
    fn what_runs_goes_on_and_stays_ready() {
        let now = Now::get();
        let started_ms = now.wall.as_millisecond() - 5000;
        let past = Past { restarts: 3, image_id: "id".into(), crashes: 1, last: None };
        let state = state(vec![
            ("first", 0, Past::default(), exited(0, now, Duration::ZERO, Duration::from_secs(6))),
            ("main", 3, past, Stage::Running { pid: 7, started_ms }),
        ]);
        let status = json!({"containerStatuses": [
            {"name": "main", "image": "", "imageID": "", "ready": true, "started": true, "restartCount": 3}
        ]});
        let mut machine = adopted(&pod("Always", status), &state, now);
        let all = summary(&machine, now);
        assert_eq!(all["first"], "ended 0 Completed, run 1, 0 restarts");
        assert_eq!(all["main"], "running started=true ready=true, run 3, 3 restarts");
        assert_eq!(machine.step(Event::Look, now.instant), []);
        assert_eq!(machine.container("main").unwrap().image_id, "id");
        // A status that was not written yet: the probes decide.
        let machine = adopted(&pod("Always", json!({})), &state, now);
        assert_eq!(summary(&machine, now)["main"], "running started=true ready=false, run 3, 3 restarts");
    }

    #[test]
    fn what_ended_while_nobody_looked_is_told_with_its_time() {
        let now = Now::get();
        let ran = Duration::from_secs(1);
        let look = |policy, crashes, code, ago| {
            let past = Past { restarts: 3, crashes, ..Past::default() };
            let init = ("first", 0, Past::default(), exited(0, now, ran, Duration::from_secs(60)));
            let state = state(vec![init, ("main", 3, past, exited(code, now, ran, Duration::from_secs(ago)))]);
            let mut machine = adopted(&pod(policy, json!({})), &state, now);
            let effects = machine.step(Event::Look, now.instant);
            (summary(&machine, now)["main"].clone(), effects)
        };
        let (text, effects) = look("Always", 0, 3, 1);
        assert!(text.ends_with("run 4, 4 restarts"), "{text}");
        assert_eq!(effects, [Effect::Prepare("main".into())]);
        // The back-off counts from the end on, not from the adoption.
        let (text, effects) = look("Always", 1, 3, 4);
        assert!(text.starts_with("CrashLoopBackOff in 6s") || text.starts_with("CrashLoopBackOff in 5s"), "{text}");
        assert_eq!(effects, []);
        let (text, effects) = look("Never", 0, 3, 1);
        assert_eq!((text.as_str(), effects), ("ended 3 Error, run 4, 3 restarts", vec![Effect::Finish]));
    }

    #[test]
    fn a_start_that_failed_meanwhile_is_tried_again() {
        let now = Now::get();
        let failure = StartFailure { config: false, message: "no".into() };
        let first = ("first", 0, Past::default(), Stage::Failed(failure));
        let mut machine = adopted(&pod("Always", json!({})), &state(vec![first]), now);
        assert_eq!(machine.step(Event::Look, now.instant), [Effect::Prepare("first".into())]);
        assert_eq!(machine.container("first").unwrap().restarts, 1);
    }

    fn lost_status(main: serde_json::Value) -> serde_json::Value {
        let first = json!({"name": "first", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let main =
            json!({"name": "main", "image": "", "imageID": "i", "ready": true, "restartCount": 2, "state": main});
        json!({"phase": "Running", "initContainerStatuses": [first], "containerStatuses": [main]})
    }

    #[test]
    fn a_lost_sandbox_starts_anew_as_the_policy_says() {
        let now = Now::get();
        let running = || json!({"running": {"startedAt": "2026-11-25T00:00:00Z"}});
        let look = |policy, main| {
            let mut machine = lost(&pod(policy, lost_status(main)), |_| 5, now);
            let effects = machine.step(Event::Look, now.instant);
            (summary(&machine, now), effects)
        };
        // A new sandbox has empty volumes: the init containers run again.
        let (all, effects) = look("Always", running());
        assert_eq!(all["main"], "ContainerCreating in 0s, run 5, 3 restarts");
        assert_eq!(effects, [Effect::Prepare("first".into())]);
        let (all, effects) = look("Never", running());
        assert_eq!(all["main"], "ended 137 ContainerStatusUnknown, run 5, 2 restarts");
        assert_eq!(effects, [Effect::Finish]);
        let (_, effects) = look("OnFailure", json!({"terminated": {"exitCode": 0}}));
        assert_eq!(effects, [Effect::Finish]);
    }

    #[test]
    fn a_pod_that_never_ran_is_fresh_and_looking_twice_changes_nothing() {
        let now = Now::get();
        let machine = lost(&pod("Always", json!({})), |_| 0, now);
        let pending = summary(&machine, now);
        assert_eq!(pending["main"], "ContainerCreating in 0s, run 0, 0 restarts");
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let first =
            json!({"name": "first", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": waiting});
        let again = lost(&pod("Always", json!({"initContainerStatuses": [first]})), |_| 5, now);
        assert_eq!(summary(&again, now)["first"], "ContainerCreating in 0s, run 5, 1 restarts");
    }
}
