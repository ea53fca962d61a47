//! Time-weighted concurrency of one revision.
//!
//! Pure. Counts every request from its arrival to its end, waiting ones included, as the autoscaler wants it
//! (`sum(concurrency * dt) / dt` over each second).

use std::time::Duration;

use tokio::time::Instant;

/// Counts requests and integrates over time.
#[derive(Debug)]
pub struct Meter {
    present: u32,
    arrivals: u64,
    /// Request-nanoseconds since `opened`.
    area: u128,
    opened: Instant,
    changed: Instant,
}

/// One closed interval of a [`Meter`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Average of requests present.
    pub concurrency: f64,
    /// Requests that arrived.
    pub arrivals: u64,
}

impl Meter {
    /// An empty meter whose first interval starts at `now`.
    pub fn new(now: Instant) -> Self {
        Self { present: 0, arrivals: 0, area: 0, opened: now, changed: now }
    }

    /// Requests present at this moment.
    pub fn present(&self) -> u32 {
        self.present
    }

    /// A request arrived.
    pub fn enter(&mut self, now: Instant) {
        self.advance(now);
        self.present += 1;
        self.arrivals += 1;
    }

    /// A request ended.
    pub fn leave(&mut self, now: Instant) {
        self.advance(now);
        self.present = self.present.saturating_sub(1);
    }

    /// Closes the interval at `now` and opens the next.
    pub fn close(&mut self, now: Instant) -> Reading {
        self.advance(now);
        let length = now.duration_since(self.opened);
        let concurrency = if length == Duration::ZERO {
            f64::from(self.present)
        } else {
            self.area as f64 / length.as_nanos() as f64
        };
        let reading = Reading { concurrency, arrivals: self.arrivals };
        self.area = 0;
        self.arrivals = 0;
        self.opened = now;
        reading
    }

    /// Two threads may read the clock in one order and get here in the other: time never goes back.
    fn advance(&mut self, now: Instant) {
        if now > self.changed {
            self.area += u128::from(self.present) * now.duration_since(self.changed).as_nanos();
            self.changed = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(changes: &[(u64, i32)], close_ms: u64, concurrency: f64, arrivals: u64) {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        for &(at_ms, change) in changes {
            let now = start + Duration::from_millis(at_ms);
            if change > 0 { meter.enter(now) } else { meter.leave(now) }
        }
        let reading = meter.close(start + Duration::from_millis(close_ms));
        assert!((reading.concurrency - concurrency).abs() < 1e-9, "{changes:?}: {reading:?}");
        assert_eq!(reading.arrivals, arrivals, "{changes:?}");
    }

    #[test]
    fn concurrency_is_weighted_by_time() {
        check(&[], 1000, 0.0, 0);
        check(&[(0, 1)], 1000, 1.0, 1);
        check(&[(0, 1), (500, -1)], 1000, 0.5, 1);
        check(&[(250, 1), (500, 1), (750, -1)], 1000, 1.0, 2);
        check(&[(0, 1), (100, -1), (100, 1), (200, -1)], 1000, 0.2, 2);
    }

    #[test]
    fn the_next_interval_goes_on_with_those_present() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.enter(start);
        meter.close(start + Duration::from_secs(1));
        let reading = meter.close(start + Duration::from_secs(2));
        assert_eq!(reading, Reading { concurrency: 1.0, arrivals: 0 });
    }

    #[test]
    fn a_clock_that_is_read_out_of_order_does_no_harm() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.enter(start + Duration::from_millis(10));
        meter.enter(start + Duration::from_millis(5));
        assert_eq!(meter.present(), 2);
        meter.leave(start);
        assert_eq!(meter.close(start).arrivals, 2);
    }
}
