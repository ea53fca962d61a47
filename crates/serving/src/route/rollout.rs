//! Gradual rollout of a Route's traffic to a Configuration's latest Revision. Pure.
//!
//! The state is an annotation in the Route's status, written together with the traffic that it describes: a restart goes
//! on from there. Tags do not roll out: whoever asks for one wants exactly what it names.

use std::time::Duration;

use api::config::Network;
use api::serving::TrafficTarget;
use api::serving::annotations as keys;
use autoscale::rollout::{ConfigurationRollout, RevisionRollout, Rollout, StepParams};
use jiff::Timestamp;
use kube::ResourceExt;

use super::Observed;

/// The traffic as it is served now.
pub(super) struct Split {
    /// Targets, each with its Revision.
    pub(super) traffic: Vec<TrafficTarget>,
    /// What to go on from; `None` without a rollout.
    pub(super) state: Option<String>,
    /// Whether not all of the traffic is where it should be.
    pub(super) in_progress: bool,
    /// Time until the next step.
    pub(super) next_step: Option<Duration>,
}

/// The split on the way to `goal`, which has a target for each of the Route's spec.
pub(super) fn split(observed: &Observed, goal: Vec<TrafficTarget>, settings: &Network, now: Timestamp) -> Split {
    let duration = duration(observed, settings);
    if duration.is_zero() {
        return Split { traffic: goal, state: None, in_progress: false, next_step: None };
    }
    let wanted = wanted(observed, &goal);
    let now_ns = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
    let (mut state, _) = wanted.step(&previous(observed, &wanted, now_ns), now_ns);
    // The gateway takes the first step up as soon as the status says it.
    state.observe_ready(now_ns, duration.as_secs_f64());
    let due = state.configurations.iter().map(|own| own.step_params.next_step_time).filter(|time| *time > 0).min();
    Split {
        traffic: shares(observed, goal, &state),
        in_progress: !state.is_done(),
        next_step: due.map(|due| Duration::from_nanos(u64::try_from(due - now_ns).unwrap_or_default())),
        state: serde_json::to_string(&state).ok(),
    }
}

/// How long a rollout takes: the Route's own word, or the platform's.
fn duration(observed: &Observed, settings: &Network) -> Duration {
    let own = keys::value(observed.route.annotations(), keys::ROLLOUT_DURATION);
    own.and_then(base::duration::parse).filter(|own| !own.is_zero()).unwrap_or(settings.rollout_duration)
}

/// The targets that follow a Configuration, by its name, with their shares.
fn followers<'a>(
    observed: &'a Observed,
    goal: &'a [TrafficTarget],
) -> impl Iterator<Item = (&'a str, &'a TrafficTarget)> {
    let spec = observed.route.spec.traffic.iter();
    spec.zip(goal).filter_map(|(spec, target)| {
        Some((spec.configuration_name.as_deref().filter(|name| !name.is_empty())?, target))
    })
}

/// Where all traffic should be at last.
fn wanted(observed: &Observed, goal: &[TrafficTarget]) -> Rollout {
    let mut rollout = Rollout::default();
    for (name, target) in followers(observed, goal) {
        let percent = target.percent.unwrap_or_default();
        if percent == 0 {
            continue;
        }
        let present = rollout.configurations.iter_mut().find(|own| own.configuration_name == name);
        let own = match present {
            Some(own) => own,
            None => {
                let revision_name = target.revision_name.clone().unwrap_or_default();
                rollout.configurations.push(ConfigurationRollout {
                    configuration_name: name.to_owned(),
                    revisions: vec![RevisionRollout { revision_name, percent: 0 }],
                    ..ConfigurationRollout::default()
                });
                rollout.configurations.last_mut().expect("one was just added")
            }
        };
        own.percent += percent;
        own.revisions[0].percent += percent;
    }
    rollout.configurations.sort_by(|a, b| a.configuration_name.cmp(&b.configuration_name));
    rollout
}

/// Where the traffic was: what the status says of it, as far as its Revisions are still there.
fn previous(observed: &Observed, wanted: &Rollout, now: i64) -> Rollout {
    let exists = |name: &str| {
        let mut routed = observed.routed.iter();
        observed.revisions.contains_key(name) || routed.any(|revision| revision.name_any() == name)
    };
    let status = observed.route.status.as_ref();
    let state = status.and_then(|status| status.annotations.get(keys::ROLLOUT_ANNOTATION));
    let state: Option<Rollout> = state.and_then(|text| serde_json::from_str(text).ok());
    let mut state = match state.filter(Rollout::is_valid) {
        Some(state) => state,
        None => {
            Rollout { configurations: wanted.configurations.iter().map(|own| served(observed, own, now)).collect() }
        }
    };
    for own in &mut state.configurations {
        let before = own.revisions.len();
        own.revisions.retain(|revision| exists(&revision.revision_name));
        let sum: i64 = own.revisions.iter().map(|revision| revision.percent).sum();
        match own.revisions.last_mut() {
            Some(newest) if before > 0 => newest.percent += own.percent - sum,
            _ => own.percent = 0,
        }
    }
    state
}

/// A Configuration's share as it is served by a Route that has no state yet, or has lost it. Several Revisions are a
/// rollout that goes on from there.
fn served(observed: &Observed, wanted: &ConfigurationRollout, now: i64) -> ConfigurationRollout {
    let status = observed.route.status.iter().flat_map(|status| &status.traffic);
    let of_configuration = |name: &str| {
        let mut known = observed.routed.iter().chain(observed.revisions.values());
        known.any(|revision| {
            let label = revision.labels().get(keys::CONFIGURATION_LABEL);
            revision.name_any() == name && label == Some(&wanted.configuration_name)
        })
    };
    let mut own = ConfigurationRollout {
        configuration_name: wanted.configuration_name.clone(),
        ..ConfigurationRollout::default()
    };
    for target in status.filter(|target| target.latest_revision == Some(true)) {
        let (name, percent) = (target.revision_name.as_deref().unwrap_or_default(), target.percent.unwrap_or_default());
        if percent > 0 && of_configuration(name) {
            own.percent += percent;
            match own.revisions.iter_mut().find(|revision| revision.revision_name == name) {
                Some(revision) => revision.percent += percent,
                None => own.revisions.push(RevisionRollout { revision_name: name.to_owned(), percent }),
            }
        }
    }
    if own.revisions.len() > 1 {
        own.step_params = StepParams::waiting_since(now);
    }
    own
}

/// The targets with the shares of the rollouts that go on; a tag stays with the Revision that it names.
fn shares(observed: &Observed, goal: Vec<TrafficTarget>, state: &Rollout) -> Vec<TrafficTarget> {
    let mut traffic = Vec::with_capacity(goal.len());
    let mut told = Vec::new();
    for (spec, target) in observed.route.spec.traffic.iter().zip(goal) {
        let follows = spec.configuration_name.as_deref().filter(|_| target.percent.unwrap_or_default() > 0);
        let rollout = follows.and_then(|name| state.of(name)).filter(|own| own.revisions.len() > 1);
        let Some(rollout) = rollout else {
            traffic.push(target);
            continue;
        };
        // The first target of a Configuration shows the shares of all of them.
        let first = !told.contains(&rollout.configuration_name);
        told.push(rollout.configuration_name.clone());
        for revision in rollout.revisions.iter().filter(|_| first) {
            let newest = Some(&revision.revision_name) == target.revision_name.as_ref();
            traffic.push(TrafficTarget {
                revision_name: Some(revision.revision_name.clone()),
                latest_revision: Some(true),
                percent: Some(revision.percent),
                tag: target.tag.clone().filter(|_| newest),
                url: target.url.clone().filter(|_| newest),
                ..TrafficTarget::default()
            });
        }
        if !first && target.tag.is_some() {
            traffic.push(TrafficTarget { percent: Some(0), ..target });
        }
    }
    traffic
}
