//! Random choices of the simulated world: one stream for each part, so that one part's choices do not shift another's.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use gateway::random::{Random, below};

use crate::trace::fnv;

/// A stream of choices.
#[derive(Clone, Debug)]
pub struct Dice(Arc<Random>);

impl Dice {
    /// The stream of that name.
    pub fn new(seed: u64, name: &str) -> Self {
        Self(Arc::new(Random::new(seed ^ fnv(name.as_bytes()))))
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&self, bound: usize) -> usize {
        below(self.0.next(), bound)
    }

    /// A number in the range.
    pub fn between(&self, range: Range<u64>) -> u64 {
        let width = range.end.saturating_sub(range.start);
        range.start + self.below(usize::try_from(width).unwrap_or(usize::MAX)) as u64
    }

    /// A time of so many milliseconds.
    pub fn millis(&self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.between(range))
    }

    /// A time of so many seconds, at millisecond steps.
    pub fn seconds(&self, range: Range<u64>) -> Duration {
        self.millis(range.start * 1_000..range.end * 1_000)
    }

    /// True in `per_mille` of 1,000 calls.
    pub fn chance(&self, per_mille: usize) -> bool {
        self.below(1_000) < per_mille
    }

    /// One of the choices.
    pub fn pick<'c, C>(&self, choices: &'c [C]) -> &'c C {
        &choices[self.below(choices.len())]
    }
}
