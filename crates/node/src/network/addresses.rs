//! Which pod addresses are free. Pure: the caller holds the lock.
//!
//! Fresh addresses are given first, then the one that has been free longest: an address rests for
//! as long as the range allows, so that a stale connection or cached name seldom meets another pod.

use std::collections::{HashSet, VecDeque};

use super::cidr::Cidr;
use super::names::GATEWAY_OFFSET;

/// Pods that one bridge can hold: Linux allows 1,023 ports.
pub const MAX_PODS: usize = 1000;

/// The free and used offsets of a pod range.
#[derive(Debug)]
pub struct Addresses {
    fresh: VecDeque<u32>,
    rested: VecDeque<u32>,
    used: HashSet<u32>,
}

impl Addresses {
    /// All of `pods` but its first, last and bridge address; `live` are in use already.
    ///
    /// `start` moves the first address given, so that a restarted platform does not begin with the
    /// addresses that the run before it used last.
    pub fn new(pods: Cidr, live: &[u32], start: u32) -> Self {
        let last = (1u32 << (32 - pods.prefix())) - 1;
        let used: HashSet<u32> = live.iter().copied().collect();
        let mut fresh: VecDeque<u32> = (GATEWAY_OFFSET + 1..last).filter(|offset| !used.contains(offset)).collect();
        let turn = start as usize % fresh.len().max(1);
        fresh.rotate_left(turn);
        Self { fresh, rested: VecDeque::new(), used }
    }

    /// Takes a free offset; `None` when [`MAX_PODS`] are in use.
    pub fn take(&mut self) -> Option<u32> {
        if self.used.len() >= MAX_PODS {
            return None;
        }
        let offset = self.fresh.pop_front().or_else(|| self.rested.pop_front())?;
        self.used.insert(offset);
        Some(offset)
    }

    /// Gives an offset back; false when it was not in use.
    pub fn give_back(&mut self, offset: u32) -> bool {
        let known = self.used.remove(&offset);
        if known {
            self.rested.push_back(offset);
        }
        known
    }

    /// Offsets in use now.
    pub fn used(&self) -> usize {
        self.used.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Cidr {
        "10.200.0.0/29".parse().unwrap() // offsets 2..=6 are for pods
    }

    #[test]
    fn bridge_first_and_last_addresses_are_never_given() {
        let mut free = Addresses::new(small(), &[], 0);
        let all: Vec<u32> = std::iter::from_fn(|| free.take()).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_live_address_is_not_given_and_can_be_given_back_once() {
        let mut free = Addresses::new(small(), &[3], 1);
        assert_eq!(free.take(), Some(4));
        assert!(free.give_back(3));
        assert!(!free.give_back(3));
        assert_eq!(free.used(), 1);
    }

    #[test]
    fn the_longest_rested_comes_back_first_and_after_fresh_ones() {
        let mut free = Addresses::new(small(), &[], 0);
        let (a, b) = (free.take().unwrap(), free.take().unwrap());
        free.give_back(b);
        free.give_back(a);
        let next: Vec<u32> = std::iter::from_fn(|| free.take()).collect();
        assert_eq!(next, [4, 5, 6, b, a]);
    }

    #[test]
    fn a_bridge_is_not_overfilled() {
        let mut free = Addresses::new("10.200.0.0/20".parse().unwrap(), &[], 4000);
        assert_eq!(std::iter::from_fn(|| free.take()).count(), MAX_PODS);
    }
}
