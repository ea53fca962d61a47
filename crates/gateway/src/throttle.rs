//! Slots and queue of one revision: who is served where, and who waits.
//!
//! An instance whose requests fail one after the other, while at least half of all serve theirs, is ejected: it is out of
//! rotation for a time that grows with each time. Where the others fail as well it is not the instance's fault.
//!
//! Pure: no clock, no tasks, no sockets; `I` is what the shell keeps for an instance, `W` what it keeps for a waiting
//! request. Every request has a ticket; tickets are served in order.
//!
//! Invariants:
//! - no instance ever has more requests than the limit (0 is no limit);
//! - while a request waits, no instance that is ready has a free slot;
//! - while an instance is ejected, another one is ready;
//! - a request that could not be handed over keeps its place.

use std::collections::BTreeMap;
use std::time::Duration;

use api::config::gateway::Ejection;
use tokio::time::Instant;

use crate::instance::{Event, Instance};
use crate::random::{Random, below};

/// Names an instance within its revision; never used twice.
pub type Key = u64;
/// A request's place in the order of arrival.
pub type Ticket = u64;

/// A slot on an instance.
#[derive(Debug, PartialEq)]
pub struct Grant<I> {
    /// The request.
    pub ticket: Ticket,
    /// The instance.
    pub key: Key,
    /// What the shell keeps for that instance.
    pub instance: I,
}

/// What becomes of a request that arrives.
#[derive(Debug, PartialEq)]
pub enum Admission<I> {
    /// It has a slot.
    Granted(Grant<I>),
    /// It waits.
    Queued(Ticket),
    /// Too many wait already.
    Full,
}

/// Waiting requests that got a slot, in order.
pub type Grants<I, W> = Vec<(W, Grant<I>)>;

struct Tracked<I> {
    state: Instance,
    instance: I,
    /// Requests that failed since one was served.
    failures: u32,
    /// Whether the last one was served.
    good: bool,
    /// How often it was ejected, less the times that it was not for long enough.
    ejections: u32,
    /// When its last ejection ends, or ended.
    ejected_until: Option<Instant>,
}

/// Slots and queue of one revision.
pub struct Throttle<I, W> {
    limit: u32,
    queue_limit: usize,
    instances: BTreeMap<Key, Tracked<I>>,
    /// Keys of the instances that are ready, in no order.
    ready: Vec<Key>,
    queue: BTreeMap<Ticket, W>,
    next_key: Key,
    next_ticket: Ticket,
    random: Random,
}

impl<I: Clone, W> Throttle<I, W> {
    /// No instance, nobody waits.
    pub fn new(queue_limit: usize, seed: u64) -> Self {
        Self {
            limit: 0,
            queue_limit,
            instances: BTreeMap::new(),
            ready: Vec::new(),
            queue: BTreeMap::new(),
            next_key: 0,
            next_ticket: 0,
            random: Random::new(seed),
        }
    }

    /// Sets the most requests that one instance may have; 0 is no limit.
    pub fn set_limit(&mut self, limit: u32) -> Grants<I, W> {
        self.limit = limit;
        self.serve_queue()
    }

    /// Adds an instance that is starting.
    pub fn add(&mut self, instance: I) -> Key {
        let key = self.next_key;
        self.next_key += 1;
        let state = Instance::Starting { in_flight: 0 };
        self.instances
            .insert(key, Tracked { state, instance, failures: 0, good: false, ejections: 0, ejected_until: None });
        key
    }

    /// A request arrives; `waiter` is called only if it has to wait.
    pub fn admit(&mut self, waiter: impl FnOnce() -> W) -> Admission<I> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if self.queue.is_empty()
            && let Some((key, instance)) = self.take()
        {
            return Admission::Granted(Grant { ticket, key, instance });
        }
        if self.queue.len() >= self.queue_limit {
            return Admission::Full;
        }
        self.queue.insert(ticket, waiter());
        Admission::Queued(ticket)
    }

    /// A request arrives that is to get its slot on the instance `key`, if that has one.
    pub fn admit_to(&mut self, key: Key) -> Option<Grant<I>> {
        if !self.queue.is_empty() || !self.state(key)?.is_ready() || !self.has_room(key) {
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let tracked = self.instances.get_mut(&key)?;
        tracked.state = tracked.state.step(Event::Taken);
        Some(Grant { ticket, key, instance: tracked.instance.clone() })
    }

    /// The request `ticket` could not be handed over to the instance `key`: it waits again, in its old place, and the
    /// instance is out of rotation until a probe succeeds. The queue's limit does not apply.
    pub fn hand_back(&mut self, ticket: Ticket, key: Key, waiter: W) -> Grants<I, W> {
        self.apply(key, Event::ConnectFailed);
        self.apply(key, Event::Finished);
        self.queue.insert(ticket, waiter);
        self.serve_queue()
    }

    /// A waiting request gives up. False if it does not wait (any more).
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        self.queue.remove(&ticket).is_some()
    }

    /// A request on the instance `key` has ended; its slot goes to the next that waits.
    pub fn finish(&mut self, key: Key) -> Option<(W, Grant<I>)> {
        self.apply(key, Event::Finished);
        self.serve_next()
    }

    /// A request on the instance `key` was served.
    pub fn served(&mut self, key: Key) {
        if let Some(tracked) = self.instances.get_mut(&key) {
            (tracked.failures, tracked.good) = (0, true);
        }
    }

    /// A request on the instance `key` failed; how long the instance is ejected, if it is now. Then it is to be
    /// readmitted.
    pub fn failed(&mut self, key: Key, limits: &Ejection, now: Instant) -> Option<Duration> {
        let tracked = self.instances.get_mut(&key)?;
        tracked.failures = tracked.failures.saturating_add(1);
        tracked.good = false;
        if limits.failures == 0 || tracked.failures < limits.failures || !self.may_eject(key, limits) {
            return None;
        }
        let tracked = self.instances.get_mut(&key)?;
        // As long without an ejection as one takes makes up for one.
        let good = tracked.ejected_until.map_or(Duration::ZERO, |until| now.saturating_duration_since(until));
        let made_up = u32::try_from(good.as_nanos() / limits.time.as_nanos().max(1)).unwrap_or(u32::MAX);
        tracked.ejections = tracked.ejections.saturating_sub(made_up) + 1;
        tracked.failures = 0;
        let time = limits.time.saturating_mul(tracked.ejections).min(limits.max_time);
        tracked.ejected_until = Some(now + time);
        self.apply(key, Event::Eject);
        Some(time)
    }

    /// Whether the instance is an outlier, and enough others are left.
    fn may_eject(&self, key: Key, limits: &Ejection) -> bool {
        if !self.state(key).is_some_and(Instance::is_ready) || self.ready.len() < 2 {
            return false;
        }
        let ejected = self.instances.values().filter(|t| t.state.is_ejected()).count();
        let good = self.ready.iter().filter(|other| self.instances.get(other).is_some_and(|t| t.good)).count();
        let all = self.ready.len() + ejected;
        (ejected + 1) * 100 <= all * limits.max_percent as usize && good * 2 >= self.ready.len()
    }

    /// The instance `key` has been ejected for long enough.
    pub fn readmit(&mut self, key: Key, now: Instant) -> Grants<I, W> {
        if self.instances.get(&key).is_some_and(|t| t.ejected_until.is_some_and(|until| until <= now)) {
            self.apply(key, Event::Readmit);
        }
        self.serve_queue()
    }

    /// Instances that are ejected.
    pub fn ejected(&self) -> usize {
        self.instances.values().filter(|t| t.state.is_ejected()).count()
    }

    /// Something happened to the instance `key`.
    pub fn step(&mut self, key: Key, event: Event) -> Grants<I, W> {
        self.apply(key, event);
        self.serve_queue()
    }

    /// Takes up to `count` instances out of rotation: those with the fewest requests first, of those the ones that
    /// are not ready, of those the newest.
    pub fn retire(&mut self, count: usize) -> (Vec<Key>, Grants<I, W>) {
        let mut order: Vec<_> = self.instances.iter().filter(|(_, t)| t.state.is_active()).collect();
        order.sort_by_key(|(key, t)| (t.state.in_flight(), t.state.is_ready(), std::cmp::Reverse(**key)));
        let chosen: Vec<Key> = order.into_iter().take(count).map(|(key, _)| *key).collect();
        for key in &chosen {
            self.apply(*key, Event::Drain);
        }
        (chosen, self.serve_queue())
    }

    /// State of an instance; `None` once it is gone and its requests have ended.
    pub fn state(&self, key: Key) -> Option<Instance> {
        self.instances.get(&key).map(|t| t.state)
    }

    /// What the shell keeps for each instance.
    pub fn instances(&self) -> impl Iterator<Item = (Key, Instance, &I)> {
        self.instances.iter().map(|(key, t)| (*key, t.state, &t.instance))
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Instances that are ready.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    fn serve_queue(&mut self) -> Grants<I, W> {
        std::iter::from_fn(|| self.serve_next()).collect()
    }

    fn serve_next(&mut self) -> Option<(W, Grant<I>)> {
        if self.queue.is_empty() {
            return None;
        }
        let (key, instance) = self.take()?;
        let (ticket, waiter) = self.queue.pop_first()?;
        Some((waiter, Grant { ticket, key, instance }))
    }

    /// Takes a slot on one of two instances drawn at random, the one with fewer requests; if both are full, on the
    /// first one that is not.
    fn take(&mut self) -> Option<(Key, I)> {
        let count = self.ready.len();
        let key = match count {
            0 => return None,
            1 => self.ready[0],
            _ => {
                let (a, b) = self.draw_two(count);
                if self.in_flight(a) <= self.in_flight(b) { a } else { b }
            }
        };
        let key = if self.has_room(key) { key } else { *self.ready.iter().find(|key| self.has_room(**key))? };
        let tracked = self.instances.get_mut(&key).expect("a ready instance is tracked");
        tracked.state = tracked.state.step(Event::Taken);
        Some((key, tracked.instance.clone()))
    }

    fn draw_two(&self, count: usize) -> (Key, Key) {
        let random = self.random.next();
        let first = below(random, count);
        let second = (first + 1 + below(random.rotate_left(32), count - 1)) % count;
        (self.ready[first], self.ready[second])
    }

    fn in_flight(&self, key: Key) -> u32 {
        self.instances.get(&key).map_or(u32::MAX, |t| t.state.in_flight())
    }

    fn has_room(&self, key: Key) -> bool {
        self.limit == 0 || self.in_flight(key) < self.limit
    }

    fn apply(&mut self, key: Key, event: Event) {
        let Some(tracked) = self.instances.get_mut(&key) else {
            return;
        };
        let before = tracked.state;
        tracked.state = before.step(event);
        let after = tracked.state;
        if before.is_ready() && !after.is_ready() {
            self.ready.retain(|ready| *ready != key);
        } else if !before.is_ready() && after.is_ready() {
            self.ready.push(key);
        }
        if after == (Instance::Stopped { in_flight: 0 }) {
            self.instances.remove(&key);
        }
        if self.ready.is_empty() {
            // Better a bad one than none.
            let ejected: Vec<Key> =
                self.instances.iter().filter(|(_, t)| t.state.is_ejected()).map(|(key, _)| *key).collect();
            for key in ejected {
                self.apply(key, Event::Readmit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Numbers = Throttle<(), u32>;

    fn ready(throttle: &mut Numbers, count: usize) -> Vec<Key> {
        let keys: Vec<Key> = (0..count).map(|_| throttle.add(())).collect();
        for key in &keys {
            throttle.step(*key, Event::ProbeSucceeded);
        }
        keys
    }

    fn waiters(grants: Grants<(), u32>) -> Vec<u32> {
        grants.into_iter().map(|(waiter, _)| waiter).collect()
    }

    #[test]
    fn the_queue_drains_in_order_once_an_instance_is_ready() {
        let mut throttle = Numbers::new(10, 1);
        let key = throttle.add(());
        for n in 0..5 {
            assert_eq!(throttle.admit(|| n), Admission::Queued(u64::from(n)));
        }
        assert!(throttle.cancel(2));
        assert!(!throttle.cancel(2));
        assert_eq!(waiters(throttle.step(key, Event::ProbeSucceeded)), [0, 1, 3, 4]);
        assert!(matches!(throttle.admit(|| 9), Admission::Granted(_)));
    }

    #[test]
    fn the_limit_holds_and_a_slot_given_back_goes_to_the_next() {
        let mut throttle = Numbers::new(2, 1);
        throttle.set_limit(1);
        let keys = ready(&mut throttle, 1);
        assert!(matches!(throttle.admit(|| 0), Admission::Granted(_)));
        assert_eq!(throttle.admit(|| 1), Admission::Queued(1));
        assert_eq!(throttle.admit(|| 2), Admission::Queued(2));
        assert_eq!(throttle.admit(|| 3), Admission::Full);
        assert_eq!(throttle.finish(keys[0]).map(|(waiter, _)| waiter), Some(1));
        assert_eq!(waiters(throttle.set_limit(0)), [2]);
    }

    #[test]
    fn a_request_that_could_not_be_handed_over_keeps_its_place() {
        let mut throttle = Numbers::new(2, 1);
        throttle.set_limit(1);
        let keys = ready(&mut throttle, 1);
        let Admission::Granted(grant) = throttle.admit(|| 0) else { panic!("no slot") };
        throttle.admit(|| 1);
        assert!(throttle.hand_back(grant.ticket, grant.key, 0).is_empty());
        assert_eq!(throttle.state(keys[0]), Some(Instance::Starting { in_flight: 0 }));
        assert_eq!(waiters(throttle.step(keys[0], Event::ProbeSucceeded)), [0]);
    }

    #[test]
    fn idle_instances_retire_first_then_those_with_the_fewest_requests() {
        let mut throttle = Numbers::new(10, 1);
        throttle.set_limit(1);
        let keys = ready(&mut throttle, 3);
        let starting = throttle.add(());
        let Admission::Granted(one) = throttle.admit(|| 0) else { panic!("no slot") };
        let idle: Vec<Key> = keys.iter().copied().filter(|key| *key != one.key).collect();
        assert_eq!(throttle.retire(2).0, [starting, idle[1]]);
        assert_eq!(throttle.retire(9).0, [idle[0], one.key]);
        assert_eq!(throttle.ready(), 0);
        assert_eq!(throttle.admit(|| 5), Admission::Queued(1));
        assert!(throttle.finish(one.key).is_none());
        assert_eq!(throttle.state(one.key), Some(Instance::Draining { in_flight: 0 }));
        throttle.step(one.key, Event::Gone);
        assert_eq!(throttle.state(one.key), None);
    }

    #[test]
    fn without_a_limit_load_spreads() {
        let mut throttle = Numbers::new(10, 3);
        let keys = ready(&mut throttle, 4);
        for _ in 0..400 {
            throttle.admit(|| 0);
        }
        let loads: Vec<u32> = keys.iter().map(|key| throttle.state(*key).unwrap().in_flight()).collect();
        assert!(loads.iter().all(|load| (90..=110).contains(load)), "{loads:?}");
    }

    const EJECTION: Ejection =
        Ejection { failures: 2, time: Duration::from_secs(10), max_time: Duration::from_secs(25), max_percent: 50 };

    fn fail(throttle: &mut Numbers, key: Key, now: Instant) -> Option<u64> {
        (0..2).filter_map(|_| throttle.failed(key, &EJECTION, now)).next().map(|time| time.as_secs())
    }

    #[test]
    fn an_outlier_is_ejected_for_longer_each_time() {
        let mut throttle = Numbers::new(10, 1);
        let keys = ready(&mut throttle, 3);
        keys.iter().for_each(|key| throttle.served(*key));
        let at = Instant::now();
        let at = |seconds| at + Duration::from_secs(seconds);
        assert_eq!(throttle.failed(keys[0], &EJECTION, at(0)), None);
        throttle.served(keys[0]);
        assert_eq!(fail(&mut throttle, keys[0], at(0)), Some(10), "only those in a row count");
        assert_eq!((throttle.ready(), throttle.ejected()), (2, 1));
        throttle.readmit(keys[0], at(9));
        assert_eq!(throttle.ejected(), 1, "too early");
        throttle.readmit(keys[0], at(10));
        assert_eq!((throttle.ready(), throttle.ejected()), (3, 0));
        assert_eq!(fail(&mut throttle, keys[0], at(11)), Some(20));
        throttle.readmit(keys[0], at(31));
        assert_eq!(fail(&mut throttle, keys[0], at(32)), Some(25), "no longer than that");
        throttle.readmit(keys[0], at(57));
        assert_eq!(fail(&mut throttle, keys[0], at(99)), Some(10), "good times make up");
    }

    #[test]
    fn neither_the_only_instance_nor_all_nor_one_of_many_that_fail_is_ejected() {
        let now = Instant::now();
        let mut throttle = Numbers::new(10, 1);
        let keys = ready(&mut throttle, 1);
        assert_eq!(fail(&mut throttle, keys[0], now), None);
        let more = ready(&mut throttle, 1);
        assert_eq!(fail(&mut throttle, keys[0], now), None, "nobody knows whether the other one is better");
        assert_eq!(fail(&mut throttle, more[0], now), None, "the other one fails as well");
        throttle.served(keys[0]);
        assert_eq!(fail(&mut throttle, more[0], now), Some(10));
        assert_eq!(fail(&mut throttle, keys[0], now), None);
        throttle.set_limit(1);
        throttle.admit(|| 0);
        throttle.admit(|| 1);
        assert_eq!(waiters(throttle.step(keys[0], Event::Gone)), [1], "the last one is better than none");
        assert_eq!((throttle.ready(), throttle.ejected()), (1, 0));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Add,
        Arrive,
        ArriveFor(usize),
        Finish(usize),
        Fail(usize),
        Cancel(usize),
        Step(usize, u8),
        Judge(usize, bool),
        Retire(usize),
        Limit(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            2 => Just(Act::Add),
            8 => Just(Act::Arrive),
            2 => any::<usize>().prop_map(Act::ArriveFor),
            6 => any::<usize>().prop_map(Act::Finish),
            1 => any::<usize>().prop_map(Act::Fail),
            1 => any::<usize>().prop_map(Act::Cancel),
            6 => (any::<usize>(), any::<bool>()).prop_map(|(n, served)| Act::Judge(n, served)),
            6 => (any::<usize>(), 0_u8..5).prop_map(|(n, e)| Act::Step(n, e)),
            1 => (0_usize..3).prop_map(Act::Retire),
        ]
    }

    struct Model {
        throttle: Numbers,
        limit: u32,
        keys: Vec<Key>,
        running: Vec<(Ticket, Key)>,
        waiting: Vec<Ticket>,
    }

    impl Model {
        fn granted(&mut self, grants: Grants<(), u32>) {
            for (_, grant) in grants {
                assert_eq!(self.waiting.iter().min(), Some(&grant.ticket), "the oldest is served first");
                self.waiting.retain(|ticket| *ticket != grant.ticket);
                self.running.push((grant.ticket, grant.key));
            }
        }

        fn act(&mut self, act: Act) {
            match act {
                Act::Add => self.keys.push(self.throttle.add(())),
                Act::Limit(limit) => {
                    self.limit = limit;
                    let grants = self.throttle.set_limit(limit);
                    self.granted(grants);
                }
                Act::Arrive => match self.throttle.admit(|| 0) {
                    Admission::Granted(grant) => self.running.push((grant.ticket, grant.key)),
                    Admission::Queued(ticket) => self.waiting.push(ticket),
                    // Requests handed back wait beyond the limit.
                    Admission::Full => assert!(self.waiting.len() >= 5),
                },
                Act::ArriveFor(n) if !self.keys.is_empty() => {
                    let key = self.keys[n % self.keys.len()];
                    if let Some(grant) = self.throttle.admit_to(key) {
                        assert!(grant.key == key && self.waiting.is_empty());
                        self.running.push((grant.ticket, grant.key));
                    }
                }
                Act::Finish(n) if !self.running.is_empty() => {
                    let (_, key) = self.running.swap_remove(n % self.running.len());
                    let grants = self.throttle.finish(key).into_iter().collect();
                    self.granted(grants);
                }
                Act::Fail(n) if !self.running.is_empty() => {
                    let (ticket, key) = self.running.swap_remove(n % self.running.len());
                    self.waiting.push(ticket);
                    let grants = self.throttle.hand_back(ticket, key, 0);
                    self.granted(grants);
                }
                Act::Cancel(n) if !self.waiting.is_empty() => {
                    let ticket = self.waiting.swap_remove(n % self.waiting.len());
                    assert!(self.throttle.cancel(ticket));
                }
                Act::Step(n, event) if !self.keys.is_empty() => {
                    let key = self.keys[n % self.keys.len()];
                    let events =
                        [Event::ProbeSucceeded, Event::ConnectFailed, Event::Drain, Event::Gone, Event::Readmit];
                    let grants = self.throttle.step(key, events[usize::from(event)]);
                    self.granted(grants);
                }
                Act::Judge(n, served) if !self.keys.is_empty() => {
                    let key = self.keys[n % self.keys.len()];
                    if served {
                        self.throttle.served(key);
                    } else if self.throttle.failed(key, &EJECTION, Instant::now()).is_some() {
                        let ejected = self.throttle.ejected();
                        assert!(ejected * 2 <= self.throttle.ready() + ejected, "no more than half are ejected");
                    }
                }
                Act::Retire(count) => {
                    let (retired, grants) = self.throttle.retire(count);
                    assert!(retired.len() <= count);
                    self.granted(grants);
                }
                Act::Finish(_) | Act::Fail(_) | Act::Cancel(_) | Act::Step(..) | Act::Judge(..) | Act::ArriveFor(_) => {
                }
            }
        }

        fn check(&self) {
            assert_eq!(self.throttle.waiting(), self.waiting.len());
            let mut room = false;
            for (key, state, ()) in self.throttle.instances() {
                let running = self.running.iter().filter(|(_, on)| *on == key).count();
                assert_eq!(state.in_flight() as usize, running, "each request is counted once");
                assert!(self.limit == 0 || running <= self.limit as usize, "the limit is hard");
                room |= state.is_ready() && (self.limit == 0 || running < self.limit as usize);
            }
            assert!(self.waiting.is_empty() || !room, "nobody waits beside a free slot");
            assert!(self.throttle.ejected() == 0 || self.throttle.ready() > 0, "not all are ejected");
        }
    }

    proptest! {
        #[test]
        fn invariants_hold(limit in 0_u32..4, seed: u64, acts in prop::collection::vec(act(), 1..200)) {
            let throttle = Numbers::new(5, seed);
            let mut model =
                Model { throttle, limit, keys: vec![], running: vec![], waiting: vec![] };
            model.act(Act::Limit(limit));
            for act in acts {
                model.act(act);
                model.check();
            }
        }
    }
}
