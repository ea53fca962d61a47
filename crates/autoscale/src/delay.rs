//! The greatest value of the last moments: scale-down waits until it has passed.

use std::collections::VecDeque;
use std::time::Duration;

/// Length of one slot: the autoscaler's tick.
pub(crate) const SLOT: Duration = Duration::from_secs(2);

/// Sliding maximum over whole slots.
///
/// Source: `knative/serving/pkg/autoscaler/aggregation/max`.
#[derive(Clone, Debug)]
pub(crate) struct SlidingMax {
    slots: u64,
    /// Slot and value, values strictly falling: an older one that is not greater can never be the maximum again.
    falling: VecDeque<(u64, i32)>,
}

impl SlidingMax {
    pub(crate) fn new(delay: Duration) -> Self {
        Self { slots: delay.as_secs().div_ceil(SLOT.as_secs()).max(1), falling: VecDeque::new() }
    }

    /// Takes a value in and returns the maximum.
    pub(crate) fn record(&mut self, now: Duration, value: i32) -> i32 {
        let slot = now.as_secs() / SLOT.as_secs();
        while self.falling.back().is_some_and(|(_, last)| *last <= value) {
            self.falling.pop_back();
        }
        while self.falling.front().is_some_and(|(first, _)| first + self.slots <= slot) {
            self.falling.pop_front();
        }
        self.falling.push_back((slot, value));
        self.falling.front().map_or(value, |(_, greatest)| *greatest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fall_is_seen_after_the_delay_and_a_rise_at_once() {
        let mut window = SlidingMax::new(Duration::from_secs(5));
        let at = Duration::from_secs;
        assert_eq!(window.record(at(0), 3), 3);
        assert_eq!(window.record(at(2), 1), 3);
        assert_eq!(window.record(at(4), 2), 3);
        assert_eq!(window.record(at(6), 1), 2);
        assert_eq!(window.record(at(8), 5), 5);
    }
}
