//! Gradual rollout: how traffic moves from a Configuration's Revisions to its newest one.
//!
//! A rollout begins with 1 %; once the gateway serves that, the rest follows in equal steps, so that all of it takes the
//! wanted time. A still newer Revision begins anew, and drains the newest of the others first. The state is data that a
//! controller keeps in the Route, so that a rollout goes on after a restart.
//!
//! Source: `knative/serving/pkg/reconciler/route/traffic/rollout.go`.

use serde::{Deserialize, Serialize};

const SECOND: f64 = 1e9;

/// The rollouts of one Route, sorted by tag, then by Configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// One for each Configuration and tag that follows the latest Revision.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<ConfigurationRollout>,
}

/// The rollout of one Configuration under one tag.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigurationRollout {
    /// Name of the Configuration.
    pub configuration_name: String,
    /// The tag; empty for the Route itself.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// Share of the Route's traffic. Per cent.
    pub percent: i64,
    /// Its Revisions, oldest first; their shares add up to `percent`. Two or more while a rollout goes on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RevisionRollout>,
    /// When and how far the next step goes.
    pub step_params: StepParams,
}

/// Share of one Revision.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionRollout {
    /// Name of the Revision.
    pub revision_name: String,
    /// Share of the Route's traffic. Per cent.
    pub percent: i64,
}

/// Times are nanoseconds since 1970; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StepParams {
    /// When the rollout began.
    #[serde(rename = "starttime", skip_serializing_if = "is_zero")]
    pub start_time: i64,
    /// When its next step is due.
    #[serde(skip_serializing_if = "is_zero")]
    pub next_step_time: i64,
    /// Time between two steps. Nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub step_duration: i64,
    /// How much moves in one step. Per cent.
    #[serde(skip_serializing_if = "is_zero")]
    pub step_size: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl Rollout {
    /// Whether all traffic is where it should be.
    pub fn is_done(&self) -> bool {
        self.configurations.iter().all(|configuration| configuration.revisions.len() < 2)
    }

    /// Whether the state can be gone on from: shares that add up, and a next step wherever traffic still has to move.
    /// It may come from an object that anybody has written.
    pub fn is_valid(&self) -> bool {
        self.configurations.iter().all(ConfigurationRollout::is_valid)
    }

    /// The rollout of a Configuration without a tag.
    pub fn of(&self, configuration: &str) -> Option<&ConfigurationRollout> {
        self.configurations.iter().find(|own| own.tag.is_empty() && own.configuration_name == configuration)
    }

    /// Takes note that the first 1 % is served, for rollouts of `duration_s` seconds that wait for it.
    pub fn observe_ready(&mut self, now: i64, duration_s: f64) {
        for configuration in &mut self.configurations {
            let params = configuration.step_params;
            if params.step_duration == 0 && params.start_time > 0 {
                let least = ((now - params.start_time) as f64 / SECOND).ceil().max(1.0);
                configuration.plan_steps(now, least, duration_s);
            }
        }
    }

    /// The state after `previous` on the way to this goal, and when the next step is due (0: none).
    pub fn step(&self, previous: &Self, now: i64) -> (Self, i64) {
        if previous.configurations.is_empty() {
            return (self.clone(), 0);
        }
        let mut next = Vec::new();
        let mut due = i64::MAX;
        let mut new_tags = std::collections::BTreeSet::new();
        for goal in &self.configurations {
            let mut of_tag = previous.configurations.iter().filter(|before| before.tag == goal.tag).peekable();
            if of_tag.peek().is_none() {
                // A new tag has nothing to roll from; it never has more than one Configuration.
                if new_tags.insert(&goal.tag) {
                    next.push(goal.clone());
                }
                continue;
            }
            match of_tag.find(|before| before.configuration_name == goal.configuration_name) {
                Some(before) if goal.percent > 1 => {
                    let stepped = goal.step_from(before.clone(), now);
                    let at = stepped.step_params.next_step_time;
                    due = if at > 0 { due.min(at) } else { due };
                    next.push(stepped);
                }
                Some(_) if goal.percent < 1 => {}
                // 1 % is not divided, and a new Configuration has nothing to roll from.
                Some(_) => next.push(goal.clone()),
                None if goal.percent == 0 && self.is_before_the_last(goal, previous) => {}
                None => next.push(goal.clone()),
            }
        }
        next.sort_by(|a, b| (&a.tag, &a.configuration_name).cmp(&(&b.tag, &b.configuration_name)));
        (Self { configurations: next }, if due == i64::MAX { 0 } else { due })
    }

    /// The reference drops a new Configuration without traffic where another one of its tag comes after it.
    fn is_before_the_last(&self, goal: &ConfigurationRollout, previous: &Self) -> bool {
        let of_tag = previous.configurations.iter().filter(|before| before.tag == goal.tag);
        of_tag.map(|before| &before.configuration_name).max().is_some_and(|last| goal.configuration_name < *last)
    }
}

impl StepParams {
    /// The rollout waits for its first 1 % to be served since `start_time`.
    pub fn waiting_since(start_time: i64) -> Self {
        Self { start_time, ..Self::default() }
    }

    fn is_valid(&self) -> bool {
        let all = [self.start_time, self.next_step_time, self.step_duration, self.step_size];
        all.iter().all(|number| *number >= 0) && (self.next_step_time == 0 || self.step_size > 0)
    }

    /// Whether there is a next step, or will be once the first is served.
    fn leads_on(&self) -> bool {
        if self.step_duration == 0 { self.start_time > 0 } else { self.next_step_time > 0 }
    }
}

impl ConfigurationRollout {
    fn is_valid(&self) -> bool {
        let is_share = |percent: i64| (0..=100).contains(&percent);
        is_share(self.percent)
            && self.revisions.iter().all(|revision| is_share(revision.percent))
            && self.revisions.iter().map(|revision| revision.percent).sum::<i64>() == self.percent
            && self.step_params.is_valid()
            && (self.revisions.len() < 2 || self.step_params.leads_on())
    }

    /// Time and size of the steps, where the first took `least_s` seconds of `duration_s`.
    fn plan_steps(&mut self, now: i64, least_s: f64, duration_s: f64) {
        let duration_s = (duration_s - least_s).max(1.0);
        let left = (self.percent - 1) as f64;
        let steps = (duration_s / least_s).max(1.0).min(left);
        let step_duration = duration_s / steps * SECOND;
        self.step_params.step_duration = step_duration as i64;
        self.step_params.step_size = (left / steps).round() as i64;
        self.step_params.next_step_time = (now as f64 + step_duration) as i64;
    }

    /// This goal, which has one Revision, reached from `before`.
    fn step_from(&self, mut before: Self, now: i64) -> Self {
        let newest = before.revisions.last().map(|revision| revision.revision_name.clone());
        if !before.revisions.is_empty() {
            before.adjust(self.percent);
        }
        let mut next = Self { step_params: StepParams::default(), ..self.clone() };
        let Some(wanted) = self.revisions.first() else { return next };
        if newest.is_none_or(|newest| newest == wanted.revision_name) {
            if before.revisions.len() > 1 {
                next.revisions = before.revisions;
                next.step_params = before.step_params;
                if next.step_params.step_size > 0 {
                    next.move_on(now);
                }
            }
            return next;
        }
        // A new Revision: it gets 1 % of the newest that has any.
        next.step_params = StepParams::waiting_since(now);
        if let Some(giver) = before.revisions.iter_mut().rev().find(|revision| revision.percent > 0) {
            giver.percent -= 1;
        }
        next.revisions = before.revisions.into_iter().filter(|revision| revision.percent != 0).collect();
        let share = if next.revisions.is_empty() { self.percent } else { 1 };
        next.revisions.push(RevisionRollout { percent: share, ..wanted.clone() });
        next
    }

    /// Another share of the whole: more goes to the newest Revision, less is taken from the oldest ones.
    fn adjust(&mut self, goal: i64) {
        let more = goal - self.percent;
        if goal == 0 {
            self.revisions.clear();
        } else if more > 0 {
            if let Some(newest) = self.revisions.last_mut() {
                newest.percent += more;
            }
        } else {
            let mut less = -more;
            while less > 0
                && let Some(oldest) = self.revisions.first_mut()
            {
                if oldest.percent > less {
                    oldest.percent -= less;
                    break;
                }
                less -= oldest.percent;
                self.revisions.remove(0);
            }
        }
    }

    /// Moves one step's share to the newest Revision, if it is time.
    fn move_on(&mut self, now: i64) {
        if now < self.step_params.next_step_time {
            return;
        }
        let Some(mut newest) = self.revisions.pop().filter(|_| !self.revisions.is_empty()) else { return };
        let mut left = self.step_params.step_size;
        while left > 0
            && let Some(giver) = self.revisions.last_mut()
        {
            if giver.percent > left {
                giver.percent -= left;
                break;
            }
            left -= giver.percent;
            self.revisions.pop();
        }
        newest.percent = (newest.percent + self.step_params.step_size).min(self.percent);
        self.revisions.push(newest);
        if self.revisions.len() > 1 {
            self.step_params.next_step_time = now.saturating_add(self.step_params.step_duration);
        } else {
            self.step_params = StepParams::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Deserialize)]
    struct Life {
        name: String,
        rollout_duration_s: f64,
        events: Vec<Event>,
    }

    #[derive(Deserialize)]
    struct Event {
        at_ns: i64,
        goal: Rollout,
        observe_ready_after_step: bool,
        result: Rollout,
        next_step_at_ns: i64,
    }

    #[test]
    fn vectors_gradual_rollout() {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
        let folder = std::env::var("COLIBRI_VECTORS").unwrap_or_else(|_| default.to_owned());
        let Ok(text) = std::fs::read_to_string(format!("{folder}/gradual_rollout.json")) else {
            println!("skipped: no gradual_rollout.json in {folder}");
            return;
        };
        let lives: Vec<Life> = serde_json::from_str(&text).unwrap();
        assert!(!lives.is_empty(), "gradual_rollout.json has no rows");
        let mut steps = 0;
        for life in &lives {
            let mut state = Rollout::default();
            for event in &life.events {
                let (mut next, due) = event.goal.step(&state, event.at_ns);
                if event.observe_ready_after_step {
                    next.observe_ready(event.at_ns + 2_500_000_000, life.rollout_duration_s);
                }
                let place = format!("{} at {}", life.name, event.at_ns);
                assert_eq!(next, event.result, "{place}");
                assert_eq!(due, event.next_step_at_ns, "{place}");
                state = next;
                steps += 1;
            }
        }
        println!("gradual_rollout.json: {} rows, {steps} steps", lives.len());
    }

    fn goal(revision: &str, percent: i64) -> Rollout {
        let revisions = vec![RevisionRollout { revision_name: revision.to_owned(), percent }];
        let name = "c".to_owned();
        Rollout {
            configurations: vec![ConfigurationRollout {
                configuration_name: name,
                percent,
                revisions,
                ..ConfigurationRollout::default()
            }],
        }
    }

    fn shares(state: &Rollout) -> Vec<(&str, i64)> {
        let all = state.configurations.iter().flat_map(|configuration| &configuration.revisions);
        all.map(|revision| (revision.revision_name.as_str(), revision.percent)).collect()
    }

    #[test]
    fn traffic_moves_in_equal_steps_and_arrives() {
        let second = |s: i64| s * 1_000_000_000;
        let (first, _) = goal("r1", 100).step(&Rollout::default(), second(10));
        let (mut state, due) = goal("r2", 100).step(&first, second(20));
        assert_eq!((shares(&state), due), (vec![("r1", 99), ("r2", 1)], 0));
        state.observe_ready(second(20), 5.0);
        let mut seen = Vec::new();
        let mut now = second(20);
        while !state.is_done() {
            let next = state.configurations[0].step_params.next_step_time;
            assert!(next > now, "{state:?}");
            now = next;
            state = goal("r2", 100).step(&state, now).0;
            seen.push(shares(&state).last().unwrap().1);
        }
        assert_eq!(seen, [26, 51, 76, 100]);
        assert_eq!(now, second(24));
    }

    #[test]
    fn a_state_that_leads_nowhere_is_not_gone_on_from() {
        let of = |shares: &[i64], step_params: StepParams| {
            let revisions: Vec<RevisionRollout> = shares
                .iter()
                .map(|percent| RevisionRollout { percent: *percent, ..RevisionRollout::default() })
                .collect();
            let own = ConfigurationRollout { percent: 100, revisions, step_params, ..ConfigurationRollout::default() };
            Rollout { configurations: vec![own] }.is_valid()
        };
        let stepping = StepParams { start_time: 1, next_step_time: 9, step_duration: 4, step_size: 5 };
        assert!(of(&[100], StepParams::default()), "arrived");
        assert!(of(&[99, 1], StepParams::waiting_since(1)), "waits for its first step");
        assert!(of(&[40, 60], stepping));
        assert!(!of(&[99, 1], StepParams::default()), "waits for nothing");
        assert!(!of(&[40, 60], StepParams { step_size: 0, ..stepping }), "steps that move nothing");
        assert!(!of(&[40, 60], StepParams { next_step_time: 0, ..stepping }), "no next step");
        assert!(!of(&[40, 60], StepParams { start_time: i64::MIN, ..stepping }));
        assert!(!of(&[40, 50], stepping), "less than the whole");
        assert!(!of(&[i64::MAX, i64::MAX, 102], stepping), "a sum that wraps");
        assert!(!of(&[120, -20], stepping));
    }

    proptest! {
        #[test]
        fn shares_always_add_up(
            events in prop::collection::vec((1_u8..4, 0_i64..=100, 0_i64..20, any::<bool>()), 1..40),
            duration in 1_u32..60,
        ) {
            let (mut state, mut now) = (Rollout::default(), 1_000_000_000_000);
            for (revision, percent, seconds, ready) in events {
                now += seconds * 1_000_000_000;
                state = goal(&format!("r{revision}"), percent).step(&state, now).0;
                if ready {
                    state.observe_ready(now, f64::from(duration));
                }
                prop_assert!(state.is_valid(), "{:?}", state);
            }
        }
    }
}
