//! What `config-gc` says of the Revisions that nobody uses: a model of its own, to hold the collector against. Pure.

use std::time::Duration;

use api::config::Gc;
use tokio::time::Instant;

/// Times are whole seconds, and of the moment when somebody decided to write them: faults delay that by up to 3 s.
const EARLY: Duration = Duration::from_secs(5);
/// Time after which what is due must have gone, in calm times.
const MARGIN: Duration = Duration::from_secs(60);

/// A Revision that no Route leads to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unused {
    /// When it was made.
    pub(crate) created: Instant,
    /// Since when no Route leads to it.
    pub(crate) since: Instant,
}

impl Unused {
    /// When its time is over; `None` for never.
    fn due(self, gc: &Gc) -> Option<Instant> {
        let created = gc.retain_since_create.map(|time| self.created + time);
        let active = gc.retain_since_active.map(|time| self.since + time);
        created.max(active)
    }

    /// Whether it may be collected while there are so many others that nobody uses.
    pub(crate) fn may_go(self, gc: &Gc, others: usize, now: Instant) -> bool {
        let stale = self.due(gc).is_some_and(|due| due <= now + EARLY);
        (stale && others >= gc.min_non_active) || gc.max_non_active.is_some_and(|most| others >= most)
    }
}

/// Why not all of a Configuration's unused Revisions should still be there.
pub(crate) fn left_behind(gc: &Gc, unused: &[Unused], now: Instant) -> Option<String> {
    let count = unused.len();
    if let Some(most) = gc.max_non_active.filter(|most| count > *most) {
        return Some(format!("keeps {count} Revisions that nobody uses, more than {most}"));
    }
    let stale = unused.iter().filter_map(|one| one.due(gc)).filter(|due| *due + MARGIN <= now).count();
    let least = gc.min_non_active;
    (count > least && stale > 0).then(|| {
        format!("keeps {count} Revisions that nobody uses, more than {least}, and the time of {stale} is over")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_over_goes_and_the_rest_is_kept() {
        let start = Instant::now();
        let one = |created: u64, since: u64| Unused {
            created: start + Duration::from_secs(created),
            since: start + Duration::from_secs(since),
        };
        let (minute, at) = (Duration::from_secs(60), |seconds: u64| start + Duration::from_secs(seconds));
        let gc = Gc {
            retain_since_create: Some(2 * minute),
            retain_since_active: Some(minute),
            min_non_active: 1,
            max_non_active: Some(3),
        };
        assert!(!one(0, 100).may_go(&gc, 2, at(150)), "its time is not over");
        assert!(one(0, 100).may_go(&gc, 2, at(160)));
        assert!(one(0, 0).may_go(&gc, 1, at(120)) && !one(0, 0).may_go(&gc, 0, at(120)), "one is kept");
        assert!(one(0, 100).may_go(&gc, 3, at(101)), "there are too many");
        let forever = Gc { retain_since_create: None, retain_since_active: None, max_non_active: None, ..gc.clone() };
        assert!(!one(0, 0).may_go(&forever, 100, at(100_000)));
        assert!(left_behind(&forever, &[one(0, 0); 100], at(100_000)).is_none());
        assert!(left_behind(&gc, &[one(0, 0)], at(1_000)).is_none());
        assert!(left_behind(&gc, &[one(0, 100), one(0, 200)], at(219)).is_none(), "just now");
        assert!(left_behind(&gc, &[one(0, 100), one(0, 200)], at(220)).is_some());
        assert!(left_behind(&gc, &[one(0, 100); 4], at(101)).is_some());
    }
}
