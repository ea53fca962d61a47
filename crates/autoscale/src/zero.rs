//! When a wanted 0 becomes a real one.
//!
//! | the Revision is | wanted 0 means |
//! |---|---|
//! | activating (no pod was ready yet) | keep, until the activation has taken too long |
//! | active for less than a stable window | keep one |
//! | active for longer | it turns inactive: keep one for max(grace, retention), then none |
//!
//! Any wish for a pod in between starts this anew. Where scale to zero is disabled one pod always stays.
//!
//! Source: `knative/serving/pkg/reconciler/autoscaling/kpa/scaler.go`.

use std::time::Duration;

use crate::Scaling;

/// What a Revision is to its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// Pods are wanted and none is ready yet.
    Activating {
        /// Since when.
        since: Duration,
    },
    /// Enough pods are ready.
    Active {
        /// Since when.
        since: Duration,
    },
    /// Nothing is wanted; the last pod may still be there.
    Inactive {
        /// Since when.
        since: Duration,
        /// Whether it got here by an activation that took too long.
        timed_out: bool,
    },
}

/// What the pods and the decider say at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Pods wanted, within the bounds of [`Scaling::bound`].
    pub wanted: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods that are there, ready or not, or already asked for.
    pub present: i32,
    /// Whether enough pods were ready once.
    pub initialized: bool,
    /// Longest time that an activation may take.
    pub activation_limit: Duration,
}

/// Pods to run, and when to look again although nothing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Pods to run.
    pub pods: i32,
    /// When this answer may change by itself.
    pub again: Option<Duration>,
}

impl Activity {
    /// The activity of a Revision with `ready` pods that nothing is known of yet.
    pub fn start(ready: i32, threshold: i32, wanted: i32, now: Duration) -> Self {
        if ready >= threshold && ready > 0 {
            Self::Active { since: now }
        } else if wanted > 0 {
            Self::Activating { since: now }
        } else {
            Self::Inactive { since: now, timed_out: false }
        }
    }

    /// The next activity and the pods to run at `now`.
    pub fn step(self, scaling: &Scaling, wish: &Wish, now: Duration) -> (Self, Scale) {
        let wanted = if wish.wanted == 0 && !scaling.to_zero { 1 } else { wish.wanted };
        if wanted > 0 { self.up(scaling, wish, wanted, now) } else { self.down(scaling, wish, now) }
    }

    fn up(self, scaling: &Scaling, wish: &Wish, wanted: i32, now: Duration) -> (Self, Scale) {
        let enough = wish.ready >= scaling.active_threshold(wish.initialized);
        let timed_out = |since: Duration| now >= since + wish.activation_limit;
        let next = match self {
            Self::Active { .. } | Self::Activating { .. } | Self::Inactive { .. } if enough => match self {
                Self::Active { since } => Self::Active { since },
                _ => Self::Active { since: now },
            },
            // Before the first success a failed activation stays failed; the owner may change the Revision.
            Self::Activating { since } if timed_out(since) && !wish.initialized => {
                Self::Inactive { since: now, timed_out: true }
            }
            Self::Activating { since } => Self::Activating { since },
            Self::Inactive { timed_out: true, since } if !wish.initialized => Self::Inactive { since, timed_out: true },
            Self::Active { .. } | Self::Inactive { .. } => Self::Activating { since: now },
        };
        let (pods, again) = match next {
            Self::Inactive { timed_out: true, .. } => (0, None),
            Self::Activating { since } if !wish.initialized => (wanted, Some(since + wish.activation_limit)),
            _ => (wanted, None),
        };
        (next, Scale { pods, again })
    }

    fn down(self, scaling: &Scaling, wish: &Wish, now: Duration) -> (Self, Scale) {
        let kept = wish.present.clamp(0, 1);
        match self {
            Self::Activating { .. } if wish.present == 0 => {
                (Self::Inactive { since: now, timed_out: false }, Scale { pods: 0, again: None })
            }
            Self::Activating { since } if now < since + wish.activation_limit => {
                // Whether it succeeds is worth knowing: the pods stay until they are ready or late.
                let next = if wish.ready > 0 { Self::Active { since: now } } else { self };
                let again = match next {
                    Self::Active { since } => since + scaling.decider.stable_window,
                    _ => since + wish.activation_limit,
                };
                (next, Scale { pods: wish.present, again: Some(again) })
            }
            Self::Activating { .. } => (Self::Inactive { since: now, timed_out: true }, Scale { pods: 0, again: None }),
            Self::Active { since } if now < since + scaling.decider.stable_window => {
                (self, Scale { pods: kept, again: Some(since + scaling.decider.stable_window) })
            }
            Self::Active { .. } => Self::Inactive { since: now, timed_out: false }.down(scaling, wish, now),
            Self::Inactive { since, .. } => {
                let end = since + scaling.grace.max(scaling.retention);
                if now >= end || kept == 0 {
                    (self, Scale { pods: 0, again: None })
                } else {
                    (self, Scale { pods: kept, again: Some(end) })
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Reachability, Settings};
    use std::collections::BTreeMap;

    const LIMIT: Duration = Duration::from_secs(630);

    fn scaling() -> Scaling {
        Scaling::resolve(&Settings::default(), &BTreeMap::new(), 0, Reachability::Reachable)
    }

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn wish(wanted: i32, ready: i32, present: i32) -> Wish {
        Wish { wanted, ready, present, initialized: true, activation_limit: LIMIT }
    }

    #[test]
    fn the_last_pod_goes_after_the_grace_period_and_a_request_in_between_saves_it() {
        let scaling = scaling();
        let active = Activity::Active { since: at(0) };
        let (early, scale) = active.step(&scaling, &wish(0, 1, 1), at(59));
        assert_eq!((early, scale), (active, Scale { pods: 1, again: Some(at(60)) }));
        let (inactive, scale) = active.step(&scaling, &wish(0, 1, 1), at(70));
        assert_eq!(inactive, Activity::Inactive { since: at(70), timed_out: false });
        assert_eq!(scale, Scale { pods: 1, again: Some(at(100)) });
        assert_eq!(inactive.step(&scaling, &wish(0, 1, 1), at(99)).1.pods, 1);
        assert_eq!(inactive.step(&scaling, &wish(0, 1, 1), at(100)).1, Scale { pods: 0, again: None });
        assert_eq!(inactive.step(&scaling, &wish(1, 1, 1), at(80)).0, Activity::Active { since: at(80) });
    }

    #[test]
    fn retention_beyond_the_grace_period_counts_instead_of_it() {
        let scaling = Scaling { retention: at(300), ..scaling() };
        let inactive = Activity::Inactive { since: at(0), timed_out: false };
        assert_eq!(inactive.step(&scaling, &wish(0, 1, 1), at(299)).1.pods, 1);
        assert_eq!(inactive.step(&scaling, &wish(0, 1, 1), at(300)).1.pods, 0);
    }

    #[test]
    fn an_activation_that_never_succeeds_ends_at_its_limit() {
        let scaling = scaling();
        let first = Wish { initialized: false, ..wish(1, 0, 1) };
        let start = Activity::start(0, 1, 1, at(0));
        let (still, scale) = start.step(&scaling, &first, at(629));
        assert_eq!((still, scale), (start, Scale { pods: 1, again: Some(at(630)) }));
        let (failed, scale) = start.step(&scaling, &first, at(630));
        assert_eq!(failed, Activity::Inactive { since: at(630), timed_out: true });
        assert_eq!(scale.pods, 0);
        assert_eq!(failed.step(&scaling, &first, at(700)), (failed, Scale { pods: 0, again: None }));
    }

    #[test]
    fn a_revision_that_was_ready_once_is_activated_again_and_again() {
        let scaling = scaling();
        let inactive = Activity::Inactive { since: at(0), timed_out: true };
        let (next, scale) = inactive.step(&scaling, &wish(1, 0, 0), at(9));
        assert_eq!((next, scale.pods), (Activity::Activating { since: at(9) }, 1));
    }

    #[test]
    fn pods_that_start_are_not_stopped_before_they_are_ready() {
        let scaling = scaling();
        let activating = Activity::Activating { since: at(0) };
        assert_eq!(activating.step(&scaling, &wish(0, 0, 3), at(70)).1.pods, 3);
        let (active, scale) = activating.step(&scaling, &wish(0, 1, 3), at(70));
        assert_eq!((active, scale.pods), (Activity::Active { since: at(70) }, 3));
    }

    #[test]
    fn one_pod_stays_where_scale_to_zero_is_disabled() {
        let scaling = Scaling { to_zero: false, ..scaling() };
        let inactive = Activity::Inactive { since: at(0), timed_out: false };
        assert_eq!(inactive.step(&scaling, &wish(0, 1, 1), at(999)).1.pods, 1);
    }
}
