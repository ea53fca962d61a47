//! A window over the last seconds, one bucket a second.
//!
//! Samples of one second add up. A second without a sample counts as 0 between the first and the last sample; before
//! the first sample nothing counts, so that a young Revision is averaged over the time it has been seen.
//!
//! Source: `knative/serving/pkg/autoscaler/aggregation/bucketing.go`.

use std::time::Duration;

/// Averages are rounded to so many parts, so that sums of fractions do not drift over a pod's boundary.
const PARTS: f64 = 1e6;
/// What may be left of the weights beyond the window's end.
const UNWEIGHTED_REST: f64 = 1.0 - 0.9999;
/// Least weight of the newest second.
const LEAST_WEIGHT: f64 = 0.2;

/// How the samples of a window become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Their mean.
    #[default]
    Linear,
    /// Their mean with weights that fall exponentially with age.
    WeightedExponential,
}

/// Samples of the last `length` seconds.
#[derive(Clone, Debug)]
pub struct Window {
    aggregation: Aggregation,
    buckets: Vec<f64>,
    written: Option<Written>,
}

/// Seconds of the first and the last sample that count.
#[derive(Clone, Copy, Debug)]
struct Written {
    first: u64,
    last: u64,
}

impl Window {
    /// An empty window; `length` is rounded up to whole seconds, at least one.
    pub fn new(length: Duration, aggregation: Aggregation) -> Self {
        let seconds = length.as_secs() + u64::from(length.subsec_nanos() > 0);
        let count = usize::try_from(seconds.max(1)).unwrap_or(usize::MAX).min(3_600);
        Self { aggregation, buckets: vec![0.0; count], written: None }
    }

    /// Adds a sample to the second of `now`. One that is older than the window is dropped.
    pub fn record(&mut self, now: Duration, value: f64) {
        let second = now.as_secs();
        let length = self.length();
        let written = match self.written {
            None => Written { first: second, last: second },
            Some(written) if second + length <= written.last => return,
            Some(written) if second >= written.last + length => {
                self.buckets.fill(0.0);
                Written { first: second, last: second }
            }
            Some(written) => {
                for passed in written.last + 1..=second {
                    *self.bucket_mut(passed) = 0.0;
                }
                Written { first: written.first.min(second), last: written.last.max(second) }
            }
        };
        self.written = Some(written);
        *self.bucket_mut(second) += value;
    }

    /// Whether no sample of the last `length` seconds is left.
    pub fn is_empty(&self, now: Duration) -> bool {
        self.written.is_none_or(|written| now.as_secs() > written.last + self.length())
    }

    /// The average at `now`; 0 without a sample.
    pub fn average(&self, now: Duration) -> f64 {
        let Some(written) = self.written else { return 0.0 };
        let age = now.as_secs().saturating_sub(written.last);
        if age >= self.length() {
            return 0.0;
        }
        let count = (written.last - written.first + 1).min(self.length() - age);
        let newest_first = (0..count).map(|back| self.buckets[self.index(written.last - back)]);
        let average = match self.aggregation {
            Aggregation::Linear => newest_first.sum::<f64>() / count as f64,
            Aggregation::WeightedExponential => self.weigh(newest_first, age),
        };
        (average * PARTS).round() / PARTS
    }

    /// When the average becomes 0 if no sample other than 0 comes; `None` if it is 0 already.
    pub fn zero_at(&self, now: Duration) -> Option<Duration> {
        let written = self.written?;
        let oldest = (now.as_secs() + 1).saturating_sub(self.length()).max(written.first);
        let busy = (oldest..=written.last).rev().find(|second| self.buckets[self.index(*second)] != 0.0)?;
        Some(Duration::from_secs(busy + self.length()))
    }

    fn weigh(&self, newest_first: impl Iterator<Item = f64>, age: u64) -> f64 {
        let weight = (1.0 - UNWEIGHTED_REST.powf(1.0 / self.length() as f64)).max(LEAST_WEIGHT);
        let keep = 1.0 - weight;
        let mut factor = weight;
        let mut sum = 0.0;
        for value in newest_first {
            sum += value * factor;
            factor *= keep;
        }
        sum * keep.powf(age as f64)
    }

    fn length(&self) -> u64 {
        self.buckets.len() as u64
    }

    fn index(&self, second: u64) -> usize {
        usize::try_from(second % self.length()).expect("an index is below the number of buckets")
    }

    fn bucket_mut(&mut self, second: u64) -> &mut f64 {
        let index = self.index(second);
        &mut self.buckets[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn a_young_window_is_averaged_over_its_life_and_gaps_count_as_zero() {
        let mut window = Window::new(at(6), Aggregation::Linear);
        assert_eq!(window.average(at(100)), 0.0);
        window.record(at(100), 2.0);
        window.record(at(100), 4.0);
        assert_eq!(window.average(at(100)), 6.0);
        window.record(at(102), 3.0);
        assert_eq!(window.average(at(102)), 3.0);
        assert_eq!(window.zero_at(at(102)), Some(at(108)));
        assert_eq!(window.average(at(107)), 3.0);
        assert_eq!(window.average(at(108)), 0.0);
        assert_eq!(window.zero_at(at(108)), None);
        assert!(!window.is_empty(at(108)));
        assert!(window.is_empty(at(109)));
    }

    #[test]
    fn zeros_do_not_delay_the_end() {
        let mut window = Window::new(at(60), Aggregation::Linear);
        window.record(at(11), 1.0);
        for second in 12..71 {
            window.record(at(second), 0.0);
            assert!(window.average(at(second)) > 0.0);
            assert_eq!(window.zero_at(at(second)), Some(at(71)));
        }
        window.record(at(71), 0.0);
        assert_eq!(window.average(at(71)), 0.0);
    }

    proptest! {
        #[test]
        fn the_average_agrees_with_the_samples_in_the_window(
            samples in prop::collection::vec((0_u64..200, 0_u32..50), 0..80), length in 1_u64..70,
        ) {
            let mut samples = samples;
            samples.sort_by_key(|(second, _)| *second);
            let mut window = Window::new(at(length), Aggregation::Linear);
            for (second, value) in &samples {
                window.record(at(*second), f64::from(*value));
            }
            if let Some((last, _)) = samples.last() {
                let sum: f64 = samples
                    .iter()
                    .filter(|(second, _)| second + length > *last)
                    .map(|(_, value)| f64::from(*value))
                    .sum();
                // The divisor is between one second and the whole window.
                let average = window.average(at(*last));
                prop_assert!(average <= sum + 1e-6 && average >= sum / length as f64 - 1e-6);
                prop_assert_eq!(window.average(at(last + length)), 0.0);
            }
        }
    }
}
