//! Waiting until a Function is ready, and saying what happens meanwhile.

use std::time::Duration;

use api::conditions::{Condition, ConditionStatus, READY};
use api::functions::Function;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use crate::cli::error::CliError;

/// Time between two looks.
const STEP: Duration = Duration::from_millis(100);
/// What is shown, in order: condition and word.
const STAGES: [(&str, &str); 4] =
    [("SourceReady", "source"), ("BuildReady", "build"), ("RevisionReady", "version"), ("RouteReady", "route")];

/// What a Function's status means for somebody who waits for its newest generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It serves.
    Ready,
    /// It failed, with the condition that says why.
    Failed { condition: String, message: String },
    /// Not yet, with what it waits for.
    Waiting { message: String },
}

/// Waits until the Function is ready or has failed.
///
/// # Errors
///
/// A failed condition with its message; the time is up.
pub async fn wait(functions: &Api<Function>, name: &str, limit: Duration) -> Result<Function, CliError> {
    let deadline = Instant::now() + limit;
    let mut shown = Vec::new();
    loop {
        let function = functions.get(name).await.map_err(|error| CliError::api(&format!("read {name}"), &error))?;
        for line in stages(&function) {
            if !shown.contains(&line) {
                eprintln!("  {line}");
                shown.push(line);
            }
        }
        match state(&function) {
            State::Ready => return Ok(function),
            State::Failed { condition, message } => return Err(failed(&function, &condition, &message)),
            State::Waiting { message } if Instant::now() >= deadline => {
                return Err(CliError::new(format!(
                    "{name} was not ready within {}s ({message}). It may still become so: colibri describe {name} tells more",
                    limit.as_secs()
                )));
            }
            State::Waiting { .. } => tokio::time::sleep(STEP).await,
        }
    }
}

/// The state of the newest generation.
pub fn state(function: &Function) -> State {
    let waiting = |message: &str| State::Waiting { message: message.to_owned() };
    let Some(status) = &function.status else { return waiting("no controller has looked at it yet") };
    if status.observed_generation != function.metadata.generation {
        return waiting("no controller has looked at the change yet");
    }
    let find = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
    let failed = STAGES.iter().filter_map(|(kind, _)| find(kind)).find(|found| found.status == ConditionStatus::False);
    if let Some(condition) = failed {
        return State::Failed { condition: condition.kind.clone(), message: text_of(condition) };
    }
    match find(READY) {
        Some(ready) if ready.status == ConditionStatus::True => State::Ready,
        Some(ready) => State::Waiting { message: text_of(ready) },
        None => waiting("its conditions are not known yet"),
    }
}

/// A line for each stage that is reached.
fn stages(function: &Function) -> Vec<String> {
    let Some(status) = &function.status else { return Vec::new() };
    if status.observed_generation != function.metadata.generation {
        return Vec::new();
    }
    let line = |(kind, word): &(&str, &str)| {
        let condition = status.conditions.iter().find(|condition| condition.kind == *kind)?;
        let detail = match *kind {
            "SourceReady" => status.build.as_ref().and_then(|build| build.digest.as_deref()).map(short),
            "RevisionReady" => status.version.clone(),
            "RouteReady" => status.url.clone(),
            _ => None,
        };
        let is_true = condition.status == ConditionStatus::True && *kind != "BuildReady";
        is_true.then(|| format!("{word:<8} ready  {}", detail.unwrap_or_default()).trim_end().to_owned())
    };
    STAGES.iter().filter_map(line).collect()
}

fn short(digest: &str) -> String {
    digest.chars().take("sha256:".len() + 12).collect()
}

fn text_of(condition: &Condition) -> String {
    let text = condition.message.clone().or_else(|| condition.reason.clone());
    text.unwrap_or_else(|| format!("{} is not known yet", condition.kind))
}

fn failed(function: &Function, condition: &str, message: &str) -> CliError {
    let version = function.status.as_ref().and_then(|status| status.version.clone());
    let rest = match version {
        Some(version) if condition == "RevisionReady" => {
            format!("\n{version} still serves; correct the code and deploy again")
        }
        _ => String::new(),
    };
    CliError::new(format!("{} failed ({condition}): {message}{rest}", function.name_any()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(generation: i64, observed: i64, conditions: &[(&str, &str, &str)]) -> Function {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(kind, status, message)| serde_json::json!({"type": kind, "status": status, "message": message}))
            .collect();
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "generation": generation}, "spec": {},
            "status": {"observedGeneration": observed, "conditions": conditions, "version": "a-00001"},
        }))
        .unwrap()
    }

    #[test]
    fn only_the_newest_generation_counts() {
        let rows = [
            (function(2, 1, &[("Ready", "True", "")]), "Waiting"),
            (function(2, 2, &[("Ready", "True", "")]), "Ready"),
            (function(2, 2, &[("Ready", "Unknown", "starting"), ("RevisionReady", "Unknown", "starting")]), "Waiting"),
            (function(2, 2, &[("Ready", "False", "x"), ("RevisionReady", "False", "main.py:1: x")]), "main.py:1: x"),
            (function(2, 1, &[("RevisionReady", "False", "of before")]), "Waiting"),
        ];
        for (function, expected) in rows {
            let found = format!("{:?}", state(&function));
            assert!(found.contains(expected), "{found} does not contain {expected}");
        }
    }

    #[test]
    fn a_failed_version_says_who_serves() {
        let error = failed(&function(1, 1, &[]), "RevisionReady", "main.py:1: SyntaxError: x");
        assert!(error.message.contains("main.py:1: SyntaxError: x\na-00001 still serves"), "{error}");
    }
}
