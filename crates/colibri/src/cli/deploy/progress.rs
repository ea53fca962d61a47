//! Waiting until what was deployed is ready, and saying meanwhile how far it is and how long each stage took.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use api::conditions::{Condition, ConditionStatus, READY};
use api::serving::Revision;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use tokio::time::Instant;

use crate::cli::access::Access;
use crate::cli::advice::{self, Advice};
use crate::cli::error::CliError;
use crate::cli::seen::{self, Seen};
use crate::cli::style::Style;
use crate::cli::workload::Workload;

/// Time between two looks.
const STEP: Duration = Duration::from_millis(25);
/// Without a terminal: how long a stage lasts until it is said what is waited for.
const PATIENCE: Duration = Duration::from_secs(2);

/// A stage that is reached, with what there is to say of it.
type Reached = (&'static str, String);

/// Waits until the workload is ready or has failed.
///
/// # Errors
///
/// What failed, with its cure; the time is up.
pub async fn wait(access: &Access, name: &str, deadline: Instant, stages: &mut Stages) -> Result<Workload, CliError> {
    let began = Instant::now();
    loop {
        let seen = seen::look(access, name).await?;
        for (stage, detail) in reached(&seen) {
            stages.reached(stage, &detail);
        }
        let advice = advice::of(&seen);
        if is_ready(&seen) {
            stages.finish();
            return Ok(seen.workload);
        }
        match advice {
            Some(found) if found.failed => {
                stages.clear();
                return Err(failed(&seen, &found));
            }
            found if Instant::now() >= deadline => {
                stages.clear();
                return Err(late(&seen, began.elapsed(), found));
            }
            found => stages.wait_for(&found.map_or_else(|| next(stages.last()).to_owned(), |found| found.cause)),
        }
        tokio::time::sleep(STEP).await;
    }
}

/// Whether the newest of what was asked for serves.
fn is_ready(seen: &Seen) -> bool {
    let (observed, generation) = match &seen.workload {
        Workload::Function(function) => {
            (function.status.as_ref().and_then(|status| status.observed_generation), function.metadata.generation)
        }
        Workload::Service(service) => {
            (service.status.as_ref().and_then(|status| status.observed_generation), service.metadata.generation)
        }
    };
    observed == generation && is_true(seen.workload.conditions(), READY)
}

/// The stages that are reached, in their order.
fn reached(seen: &Seen) -> Vec<Reached> {
    let Some(revision) = seen.newest() else { return Vec::new() };
    let mut found: Vec<Reached> = vec![("revision", revision.name_any())];
    let conditions = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    if let Some(pod) = seen.pods_of(revision).first() {
        found.extend(of_pod(pod, revision));
    }
    if is_true(conditions, READY) {
        if found.len() > 1 {
            found.push(("probe", format!("port {} answers", port(revision))));
        }
        if is_ready(seen) {
            found.push(("route", seen.workload.url().unwrap_or_default().to_owned()));
        }
    }
    found
}

fn of_pod(pod: &Pod, revision: &Revision) -> Vec<Reached> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
    let Some(node) = node else { return Vec::new() };
    let mut found: Vec<Reached> = vec![("scheduled", format!("{} on {node}", pod.name_any()))];
    let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    if !statuses.is_empty() && statuses.iter().all(|status| !status.image_id.is_empty() || has_begun(status)) {
        let image = revision.spec.pod.containers.first().and_then(|container| container.image.clone());
        found.push(("image", image.unwrap_or_default()));
        if statuses.iter().all(has_begun) {
            found.push(("started", String::new()));
        }
    }
    found
}

fn has_begun(status: &ContainerStatus) -> bool {
    let began =
        |state: &k8s_openapi::api::core::v1::ContainerState| state.running.is_some() || state.terminated.is_some();
    status.state.as_ref().is_some_and(began) || status.last_state.as_ref().is_some_and(began)
}

fn port(revision: &Revision) -> i32 {
    let containers = revision.spec.pod.containers.iter();
    let given = containers.flat_map(|container| container.ports.iter().flatten()).map(|port| port.container_port);
    given.into_iter().find(|port| *port != 0).unwrap_or(8080)
}

fn is_true(conditions: &[Condition], kind: &str) -> bool {
    conditions.iter().any(|condition| condition.kind == kind && condition.status == ConditionStatus::True)
}

/// What comes after a stage.
fn next(stage: &str) -> &'static str {
    match stage {
        "revision" => "the image is resolved, an instance is made",
        "scheduled" => "the image is fetched",
        "image" => "the container starts",
        "started" => "the program has to answer the probe",
        "probe" => "the route is made",
        _ => "the new version is made",
    }
}

fn failed(seen: &Seen, advice: &Advice) -> CliError {
    let name = seen.workload.name();
    let newest = seen.newest().map(ResourceExt::name_any);
    let rest = match seen.workload.version() {
        Some(version) if newest.as_deref() != Some(version) => {
            format!("\n{version} still serves; correct it and deploy again")
        }
        _ => String::new(),
    };
    CliError::new(format!("{name} failed at {advice}{rest}"))
}

fn late(seen: &Seen, waited: Duration, advice: Option<Advice>) -> CliError {
    let name = seen.workload.name();
    let (_, reason) = seen.workload.ready();
    let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
    let why = advice.map_or(reason, |advice| format!(". It waits at {advice}"));
    CliError::new(format!(
        "{name} was not ready within {}{why}\nIt may still become so: colibri describe {name} tells more; --timeout waits longer",
        shown(waited)
    ))
}

/// The stages so far; prints each as it is reached, on a terminal with what is waited for below them.
pub struct Stages {
    began: Instant,
    since: Instant,
    done: Vec<&'static str>,
    waiting: String,
    style: Style,
    terminal: bool,
    quiet: bool,
}

impl Stages {
    /// The clock of the first stage starts.
    pub fn start() -> Self {
        let now = Instant::now();
        Self {
            began: now,
            since: now,
            done: Vec::new(),
            waiting: String::new(),
            style: Style::stderr(),
            terminal: std::io::stderr().is_terminal(),
            quiet: false,
        }
    }

    /// As [`Stages::start`], and nothing is printed but what [`Stages::say`] is given.
    pub fn quiet() -> Self {
        Self { quiet: true, terminal: false, ..Self::start() }
    }

    /// The last stage that was reached.
    fn last(&self) -> &'static str {
        self.done.last().copied().unwrap_or_default()
    }

    /// A stage is reached; the first time counts.
    pub fn reached(&mut self, stage: &'static str, detail: &str) {
        if self.done.contains(&stage) {
            return;
        }
        let now = Instant::now();
        let took = shown(now - self.since);
        self.done.push(stage);
        self.since = now;
        self.waiting.clear();
        if self.quiet {
            return;
        }
        let line = format!("  {} {stage:<10} {took:>8}  {}", self.style.good("+"), self.style.dim(detail));
        self.say(line.trim_end());
    }

    /// Prints a line above what is waited for.
    pub fn say(&self, line: &str) {
        self.clear();
        eprintln!("{line}");
    }

    /// Says what is waited for: on a terminal always, else once it takes long.
    fn wait_for(&mut self, what: &str) {
        let waited = self.since.elapsed();
        if self.terminal {
            let what: String = what.lines().next().unwrap_or_default().chars().take(70).collect();
            eprint!("\r\x1b[K  {} {:<10} {:>8}  {what}", self.style.warning("-"), "waiting", shown(waited));
            // What is not shown now is shown by the next one.
            let _ = std::io::stderr().flush();
        } else if !self.quiet && waited >= PATIENCE && self.waiting != what {
            what.clone_into(&mut self.waiting);
            eprintln!("  - {:<10} {:>8}  {what}", "waiting", shown(waited));
        }
    }

    /// Takes the line of what is waited for away.
    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    fn finish(&self) {
        if self.quiet {
            return;
        }
        self.say(&format!("{} in {}", self.style.good("ready"), shown(self.began.elapsed())));
    }
}

/// `12 ms`, `3.4 s`, `2m5s`.
pub fn shown(time: Duration) -> String {
    match time.as_millis() {
        0..1_000 => format!("{} ms", time.as_millis()),
        1_000..60_000 => format!("{:.1} s", time.as_secs_f64()),
        _ => format!("{}m{}s", time.as_secs() / 60, time.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seen(generation: i64, ready: &str, revision_ready: &str, pod: Option<Value>) -> Seen {
        let template =
            json!({"containers": [{"name": "c", "image": "hello:latest", "ports": [{"containerPort": 9000}]}]});
        let service: api::serving::Service = serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": generation}, "spec": {"template": {"spec": template}},
            "status": {"observedGeneration": 1, "latestCreatedRevisionName": "web-00001", "url": "http://web",
                "conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap();
        let revision = json!({"metadata": {"name": "web-00001"}, "spec": template,
            "status": {"conditions": [{"type": "Ready", "status": revision_ready}]}});
        let pods = pod.into_iter().map(|status| {
            let labels = json!({"serving.knative.dev/revision": "web-00001"});
            let pod = json!({"metadata": {"name": "p", "labels": labels}, "spec": {"nodeName": "n", "containers": []}, "status": status});
            serde_json::from_value(pod).unwrap()
        });
        Seen {
            workload: Workload::Service(Box::new(service.clone())),
            service: Some(service),
            revisions: vec![serde_json::from_value(revision).unwrap()],
            pods: pods.collect(),
        }
    }

    fn status(fields: Value) -> Value {
        let mut status = json!({"name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0});
        status.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({ "containerStatuses": [status] })
    }

    #[test]
    fn stages_follow_what_is_seen() {
        let names = |seen: &Seen| reached(seen).into_iter().map(|(stage, _)| stage).collect::<Vec<_>>().join(" ");
        let begun = status(json!({"state": {"running": {}}}));
        let rows = [
            (seen(2, "Unknown", "Unknown", None), ""),
            (seen(1, "Unknown", "Unknown", None), "revision"),
            (seen(1, "Unknown", "Unknown", Some(json!({}))), "revision scheduled"),
            (seen(1, "Unknown", "Unknown", Some(status(json!({"imageID": "x"})))), "revision scheduled image"),
            (seen(1, "Unknown", "Unknown", Some(begun.clone())), "revision scheduled image started"),
            (seen(1, "Unknown", "True", Some(begun.clone())), "revision scheduled image started probe"),
            (seen(1, "True", "True", Some(begun)), "revision scheduled image started probe route"),
            // It was deployed before and is at zero.
            (seen(1, "True", "True", None), "revision route"),
        ];
        for (seen, expected) in rows {
            assert_eq!(names(&seen), expected, "{seen:?}");
        }
        let crashed = status(json!({"state": {"waiting": {}}, "lastState": {"terminated": {"exitCode": 1}}}));
        let all = reached(&seen(1, "True", "True", Some(crashed)));
        assert_eq!(all[1].1, "p on n");
        assert_eq!(all[4].1, "port 9000 answers");
    }

    #[test]
    fn only_the_newest_generation_counts() {
        assert!(is_ready(&seen(1, "True", "True", None)));
        assert!(!is_ready(&seen(2, "True", "True", None)));
        assert!(!is_ready(&seen(1, "Unknown", "True", None)));
    }

    #[test]
    fn a_failure_says_who_serves() {
        let mut found = seen(1, "False", "False", None);
        let Workload::Service(service) = &mut found.workload else { panic!("a service") };
        service.status.as_mut().unwrap().latest_ready_revision_name = Some("web-00000".into());
        let advice = Advice { stage: "container", cause: "boom".into(), cure: "less".into(), failed: true };
        let error = failed(&found, &advice).message;
        assert_eq!(
            error,
            "web failed at container: boom\n  cure: less\nweb-00000 still serves; correct it and deploy again"
        );
    }

    #[test]
    fn times() {
        for (ms, expected) in [(0, "0 ms"), (999, "999 ms"), (1_500, "1.5 s"), (125_000, "2m5s")] {
            assert_eq!(shown(Duration::from_millis(ms)), expected);
        }
    }
}
