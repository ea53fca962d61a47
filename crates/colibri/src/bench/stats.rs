//! Percentiles of measured times.

use std::time::Duration;

use serde::Serialize;

/// A summary of several times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many were measured.
    pub count: usize,
    /// Smallest.
    pub min_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile, by the nearest rank.
    pub p95_ms: f64,
    /// 99th percentile, by the nearest rank.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
}

impl Summary {
    /// Summarises times; `None` where there are none.
    pub fn of(times: &[Duration]) -> Option<Self> {
        let mut sorted: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a rank"
            )]
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.clamp(1, sorted.len()) - 1).copied()
        };
        (!sorted.is_empty()).then_some(())?;
        Some(Self {
            count: sorted.len(),
            min_ms: *sorted.first()?,
            p50_ms: rank(0.5)?,
            p95_ms: rank(0.95)?,
            p99_ms: rank(0.99)?,
            max_ms: *sorted.last()?,
        })
    }

    /// `p50 / p95 / p99` for people.
    pub fn percentiles(&self) -> String {
        format!("{:.1} / {:.1} / {:.1} ms", self.p50_ms, self.p95_ms, self.p99_ms)
    }

    /// `p50 / p99` for people.
    pub fn short(&self) -> String {
        format!("{:.1} / {:.1} ms", self.p50_ms, self.p99_ms)
    }
}

/// The value in the middle; 0 where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_the_nearest_rank() {
        let times: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        let summary = Summary::of(&times).unwrap();
        let figures = (summary.min_ms, summary.p50_ms, summary.p95_ms, summary.p99_ms, summary.max_ms);
        assert_eq!(figures, (1.0, 50.0, 95.0, 99.0, 100.0));
        let one = Summary::of(&[Duration::from_millis(7)]).unwrap();
        assert_eq!((one.p50_ms, one.p99_ms), (7.0, 7.0));
        assert_eq!(Summary::of(&[]), None);
    }
}
