//! Knative's conditions: a list with one "happy" condition that depends on others.
//!
//! Source: `knative.dev/pkg/apis/condition_set.go`. `Ready` is True when every dependent is True,
//! False as soon as one is False, else Unknown. Other conditions carry severity `Info` and decide nothing.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The happy condition of every kind here.
pub const READY: &str = "Ready";

/// `True`, `False` or `Unknown`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Nobody knows yet.
    #[default]
    Unknown,
}

/// One condition of an object's status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Name of the condition, such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Empty for an error, `Info` for a condition that decides nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<String>,
    /// When the condition last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<Timestamp>,
    /// One CamelCase word, from a fixed list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What a person should read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The conditions of one object while a controller works on them.
#[derive(Clone, Debug)]
pub struct Conditions {
    dependents: &'static [&'static str],
    list: Vec<Condition>,
    now: Timestamp,
}

impl Conditions {
    /// Goes on from `list`, adding `Ready` and each dependent as Unknown where absent.
    ///
    /// `now` becomes the transition time, in whole seconds, of each condition that changes.
    pub fn resume(dependents: &'static [&'static str], list: Vec<Condition>, now: Timestamp) -> Self {
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let mut conditions = Self { dependents, list, now };
        for kind in dependents.iter().copied().chain([READY]) {
            if conditions.get(kind).is_none() {
                conditions.set(kind, ConditionStatus::Unknown, None, None);
            }
        }
        conditions
    }

    /// The condition of that name.
    pub fn get(&self, kind: &str) -> Option<&Condition> {
        self.list.iter().find(|condition| condition.kind == kind)
    }

    /// Whether the condition of that name is True.
    pub fn is_true(&self, kind: &str) -> bool {
        self.get(kind).is_some_and(|condition| condition.status == ConditionStatus::True)
    }

    /// Marks `kind` True.
    pub fn mark_true(&mut self, kind: &str) {
        self.mark(kind, ConditionStatus::True, None, None);
    }

    /// Marks `kind` True with a reason (Knative's `TLSNotEnabled` is such a case).
    pub fn mark_true_with(&mut self, kind: &str, reason: &str, message: &str) {
        self.mark(kind, ConditionStatus::True, Some(reason), Some(message));
    }

    /// Marks `kind` False.
    pub fn mark_false(&mut self, kind: &str, reason: &str, message: &str) {
        self.mark(kind, ConditionStatus::False, Some(reason), Some(message));
    }

    /// Marks `kind` Unknown.
    pub fn mark_unknown(&mut self, kind: &str, reason: &str, message: &str) {
        self.mark(kind, ConditionStatus::Unknown, Some(reason), Some(message));
    }

    /// Takes over status, reason and message of another object's condition as `kind`.
    pub fn copy_from(&mut self, kind: &str, other: &Condition) {
        self.mark(kind, other.status, other.reason.as_deref(), other.message.as_deref());
    }

    /// The conditions, sorted by type as Knative writes them.
    pub fn into_list(mut self) -> Vec<Condition> {
        self.list.sort_by(|a, b| a.kind.cmp(&b.kind));
        self.list
    }

    fn mark(&mut self, kind: &str, status: ConditionStatus, reason: Option<&str>, message: Option<&str>) {
        self.set(kind, status, reason, message);
        if kind != READY && self.dependents.contains(&kind) {
            self.derive_ready();
        }
    }

    /// Ready copies the first False dependent, else the first Unknown one, else is True.
    fn derive_ready(&mut self) {
        let first = |wanted| {
            let mut found = self.dependents.iter().filter_map(|kind| self.get(kind));
            found.find(|condition| condition.status == wanted).cloned()
        };
        match first(ConditionStatus::False).or_else(|| first(ConditionStatus::Unknown)) {
            Some(worst) => self.set(READY, worst.status, worst.reason.as_deref(), worst.message.as_deref()),
            None => self.set(READY, ConditionStatus::True, None, None),
        }
    }

    fn set(&mut self, kind: &str, status: ConditionStatus, reason: Option<&str>, message: Option<&str>) {
        let decides = kind == READY || self.dependents.contains(&kind);
        let mut next = Condition {
            kind: kind.to_owned(),
            status,
            severity: (!decides).then(|| "Info".to_owned()),
            last_transition_time: None,
            reason: reason.filter(|text| !text.is_empty()).map(str::to_owned),
            message: message.filter(|text| !text.is_empty()).map(str::to_owned),
        };
        match self.list.iter_mut().find(|condition| condition.kind == kind) {
            Some(present) => {
                next.last_transition_time = present.last_transition_time;
                if *present != next {
                    next.last_transition_time = Some(self.now);
                    *present = next;
                }
            }
            None => {
                next.last_transition_time = Some(self.now);
                self.list.push(next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENTS: &[&str] = &["ConfigurationsReady", "RoutesReady"];

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(conditions: &Conditions) -> (ConditionStatus, Option<&str>) {
        let ready = conditions.get(READY).unwrap();
        (ready.status, ready.reason.as_deref())
    }

    #[test]
    fn ready_follows_its_dependents_and_false_beats_unknown() {
        let mut conditions = Conditions::resume(DEPENDENTS, Vec::new(), at(1));
        assert_eq!(ready(&conditions), (ConditionStatus::Unknown, None));
        conditions.mark_true("ConfigurationsReady");
        assert_eq!(ready(&conditions), (ConditionStatus::Unknown, None));
        conditions.mark_true("RoutesReady");
        assert_eq!(ready(&conditions), (ConditionStatus::True, None));
        conditions.mark_unknown("ConfigurationsReady", "OutOfDate", "");
        conditions.mark_false("RoutesReady", "NotOwned", "no");
        assert_eq!(ready(&conditions), (ConditionStatus::False, Some("NotOwned")));
    }

    #[test]
    fn a_condition_that_decides_nothing_is_info_and_leaves_ready_alone() {
        let mut conditions = Conditions::resume(DEPENDENTS, Vec::new(), at(1));
        conditions.mark_false("Active", "NoTraffic", "The target is not receiving traffic.");
        assert_eq!(conditions.get("Active").unwrap().severity.as_deref(), Some("Info"));
        assert_eq!(ready(&conditions), (ConditionStatus::Unknown, None));
    }

    #[test]
    fn the_transition_time_moves_only_when_the_condition_does() {
        let mut first = Conditions::resume(DEPENDENTS, Vec::new(), at(1));
        first.mark_true("RoutesReady");
        let list = first.into_list();
        let mut second = Conditions::resume(DEPENDENTS, list.clone(), at(9));
        second.mark_true("RoutesReady");
        assert_eq!(second.clone().into_list(), list);
        second.mark_false("RoutesReady", "NotOwned", "no");
        assert_eq!(second.get("RoutesReady").unwrap().last_transition_time, Some(at(9)));
    }
}
