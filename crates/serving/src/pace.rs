//! The pace of statuses: changes that nobody acts upon and that follow each other closely are written as one.

use std::collections::HashMap;
use std::time::Duration;

use api::Condition;
use api::conditions::{ConditionStatus, READY};
use client::ObjectKey;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::write::Write;

/// Since when the status of an object of one kind differs from what is written.
#[derive(Default)]
pub(crate) struct Pace(Mutex<HashMap<(&'static str, ObjectKey), Instant>>);

impl Pace {
    /// Takes a status that is minor out of a plan for as long as it may wait; `None` means that it need not.
    pub(crate) fn hold(
        &self,
        kind: &'static str,
        key: &ObjectKey,
        writes: &mut Vec<Write>,
        is_minor: impl Fn(&Write) -> bool,
        delay: Duration,
    ) -> Option<Duration> {
        let minor = writes.iter().position(is_minor);
        let wait = self.wait(kind, key, minor.is_some(), delay)?;
        writes.remove(minor?);
        Some(wait)
    }

    /// How long a change that is `minor` still waits; `None` means that it, or what goes with it, is written now.
    fn wait(&self, kind: &'static str, key: &ObjectKey, minor: bool, delay: Duration) -> Option<Duration> {
        let mut since = self.0.lock();
        let target = (kind, key.clone());
        if minor {
            let due = *since.entry(target.clone()).or_insert_with(Instant::now) + delay;
            let wait = due.saturating_duration_since(Instant::now());
            if !wait.is_zero() {
                return Some(wait);
            }
        }
        since.remove(&target);
        None
    }

    /// The object is gone.
    pub(crate) fn forget(&self, kind: &'static str, key: &ObjectKey) {
        self.0.lock().remove(&(kind, key.clone()));
    }
}

/// What a status says of readiness, and of which generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    ready: ConditionStatus,
    generation: Option<i64>,
}

impl Verdict {
    pub(crate) fn new(conditions: &[Condition], generation: Option<i64>) -> Self {
        let ready = conditions.iter().find(|condition| condition.kind == READY);
        Self { ready: ready.map(|ready| ready.status).unwrap_or_default(), generation }
    }

    /// Whether a status tells nothing new. The first one does not, while nothing is known.
    pub(crate) fn is_old(self, present: Option<Self>) -> bool {
        present.map_or(self.ready == ConditionStatus::Unknown, |present| present == self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn small_changes_wait_for_each_other_and_never_for_ever() {
        let (pace, key) = (Pace::default(), ObjectKey::new("a", "b"));
        let delay = Duration::from_millis(250);
        let wait = |minor| pace.wait("Revision", &key, minor, delay);
        assert_eq!(wait(true), Some(delay));
        tokio::time::advance(Duration::from_millis(200)).await;
        assert_eq!(wait(true), Some(Duration::from_millis(50)), "another change does not begin anew");
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(wait(true), None);
        assert_eq!(wait(true), Some(delay), "the next one after it was written");
        assert_eq!(wait(false), None, "what matters takes along what waits");
        assert!(pace.0.lock().is_empty());
        assert_eq!(pace.wait("Service", &key, true, delay), Some(delay));
        pace.forget("Service", &key);
        assert!(pace.0.lock().is_empty());
    }
}
