//! The `Server-Timing` header: the stages that a request went through.
//!
//! `route` (host to revision), `queue` (to a slot), `app` (to the response's head). A request that waited for an
//! instance to start has the marker `cold` and what its wait was made of: `schedule` (to the pod's creation), `start`
//! (to its address), `probe` (to the first probe that succeeds).

use std::time::Duration;

use http::HeaderValue;
use tokio::time::Instant;

use crate::upstream::Stages;

/// When a request reached which stage.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The request was there.
    pub arrived: Instant,
    /// Its revision was known.
    pub routed: Instant,
    /// It had its slot.
    pub granted: Instant,
    /// The response's head was there.
    pub responded: Instant,
}

/// What a cold start was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColdStart {
    /// From the arrival to the pod.
    pub schedule: Duration,
    /// From there to the pod's address.
    pub start: Duration,
    /// From there to the first probe that succeeded.
    pub probe: Duration,
}

impl ColdStart {
    /// The stages that a request went through if its instance became ready while it waited.
    pub fn of(arrived: Instant, granted: Instant, stages: Stages) -> Option<Self> {
        let ready = stages.ready.filter(|ready| *ready > arrived && *ready <= granted)?;
        let seen = stages.seen.max(arrived);
        let addressed = stages.addressed.unwrap_or(ready).max(seen);
        Some(Self {
            schedule: seen - arrived,
            start: addressed - seen,
            probe: ready.saturating_duration_since(addressed),
        })
    }
}

/// The header's value.
pub fn server_timing(timing: &Timing, cold: Option<ColdStart>) -> Option<HeaderValue> {
    let mut text = String::with_capacity(if cold.is_some() { 160 } else { 64 });
    write_stage(&mut text, "route", timing.routed - timing.arrived);
    write_stage(&mut text, "queue", timing.granted.saturating_duration_since(timing.routed));
    if let Some(cold) = cold {
        text.push_str("cold, ");
        write_stage(&mut text, "schedule", cold.schedule);
        write_stage(&mut text, "start", cold.start);
        write_stage(&mut text, "probe", cold.probe);
    }
    write_stage(&mut text, "app", timing.responded.saturating_duration_since(timing.granted));
    text.truncate(text.len() - 2);
    HeaderValue::try_from(text).ok()
}

/// Milliseconds with microseconds behind the point, by hand: this is on the path of every request.
fn write_stage(text: &mut String, name: &str, duration: Duration) {
    let mut micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    text.push_str(name);
    text.push_str(";dur=");
    // From the end: the digits behind the point, the point, at least one digit before it.
    let mut digits = [0; 24];
    let mut at = digits.len();
    while at > digits.len() - 5 || micros > 0 {
        at -= 1;
        if at == digits.len() - 4 {
            digits[at] = b'.';
            continue;
        }
        digits[at] = b'0' + (micros % 10) as u8;
        micros /= 10;
    }
    text.extend(digits[at..].iter().map(|digit| char::from(*digit)));
    text.push_str(", ");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_and_a_cold_request() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let timing = Timing { arrived: at(10), routed: at(10), granted: at(52), responded: at(60) };
        let warm = Stages { seen: at(0), addressed: Some(at(1)), ready: Some(at(5)) };
        assert_eq!(ColdStart::of(timing.arrived, timing.granted, warm), None);
        let text = server_timing(&timing, None).unwrap();
        assert_eq!(text, "route;dur=0.000, queue;dur=42.000, app;dur=8.000");
        let cold = Stages { seen: at(12), addressed: Some(at(30)), ready: Some(at(51)) };
        let cold = ColdStart::of(timing.arrived, timing.granted, cold);
        let text = server_timing(&timing, cold).unwrap();
        let want = "route;dur=0.000, queue;dur=42.000, cold, schedule;dur=2.000, start;dur=18.000, \
            probe;dur=21.000, app;dur=8.000";
        assert_eq!(text, want);
    }

    #[test]
    fn times_have_three_digits_behind_the_point() {
        for (micros, want) in [(0, "0.000"), (7, "0.007"), (1_000, "1.000"), (61_234_567, "61234.567")] {
            let mut text = String::new();
            write_stage(&mut text, "app", Duration::from_micros(micros));
            assert_eq!(text, format!("app;dur={want}, "));
        }
        write_stage(&mut String::new(), "app", Duration::MAX);
    }

    #[test]
    fn an_instance_that_was_on_its_way_already_counts_from_the_arrival() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let stages = Stages { seen: at(0), addressed: Some(at(5)), ready: Some(at(20)) };
        let cold = ColdStart::of(at(10), at(20), stages).unwrap();
        assert_eq!((cold.schedule, cold.start, cold.probe.as_millis()), (Duration::ZERO, Duration::ZERO, 10));
    }
}
