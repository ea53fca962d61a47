//! A small generator whose seed is handed in: SplitMix64 over an atomic counter, so that threads share it without a
//! lock. Not for secrets.

use std::sync::atomic::{AtomicU64, Ordering};

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A shared generator.
#[derive(Debug)]
pub struct Random(AtomicU64);

impl Random {
    /// A generator that repeats itself for the same seed.
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next 64 bits.
    pub fn next(&self) -> u64 {
        mix(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }
}

/// Brings `random` into `0..bound` without a visible bias for small bounds; 0 for a bound of 0.
pub fn below(random: u64, bound: usize) -> usize {
    ((u128::from(random) * bound as u128) >> 64) as usize
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_bounds_hold() {
        let (a, b) = (Random::new(7), Random::new(7));
        assert!((0..100).all(|_| a.next() == b.next()));
        assert!((0..1000).all(|_| below(a.next(), 3) < 3));
        assert_eq!(below(a.next(), 0), 0);
        let seen: std::collections::BTreeSet<usize> = (0..100).map(|_| below(a.next(), 5)).collect();
        assert_eq!(seen.len(), 5);
    }
}
