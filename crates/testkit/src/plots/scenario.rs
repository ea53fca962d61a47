//! Loads, and the pods that a model without any delay would run for them.

use std::f64::consts::TAU;
use std::ops::Range;

use crate::dice::Dice;

/// Share of `containerConcurrency` that is planned for: `target-utilization-percentage`, by default.
const UTILISATION: f64 = 0.7;
/// Seed of everything; an even one binds pods as machine mode does.
pub const SEED: u64 = 0;

/// One service and the traffic it gets.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Name of its files.
    pub name: &'static str,
    /// What the picture is called.
    pub title: &'static str,
    /// When requests come.
    pub traffic: Traffic,
    /// How long it is looked at.
    pub length_ms: u64,
    /// Length of one row of the series.
    pub row_ms: u64,
    /// How long a request takes on a pod.
    pub work_ms: Range<u64>,
    /// `containerConcurrency`.
    pub concurrency: u32,
    /// `max-scale`; 0 is no limit.
    pub max_scale: u32,
    /// `timeoutSeconds`: longest wait of a request, and then its longest time on a pod.
    pub timeout_seconds: u32,
}

/// When requests come.
#[derive(Clone, Copy, Debug)]
pub enum Traffic {
    /// At random, so many that this number is in work at that second on average.
    Load(fn(f64) -> f64),
    /// That many at that millisecond.
    Moments(&'static [(u64, u64)]),
}

/// A request that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When, from the start.
    pub at_ms: u64,
    /// How long it takes on a pod.
    pub work_ms: u64,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// All scenarios, in the page's order.
pub fn all() -> Vec<Scenario> {
    let short = Scenario {
        name: "",
        title: "",
        traffic: Traffic::Moments(&[]),
        length_ms: 0,
        row_ms: SECOND,
        work_ms: 100..201,
        concurrency: 5,
        max_scale: 0,
        timeout_seconds: 300,
    };
    let long = Scenario { work_ms: SECOND..2 * SECOND + 1, ..short.clone() };
    vec![
        Scenario {
            name: "step",
            title: "Step: from nothing to 40 requests at once, and back",
            traffic: Traffic::Load(|second| if (30.0..210.0).contains(&second) { 40.0 } else { 0.0 }),
            length_ms: 6 * MINUTE,
            ..short.clone()
        },
        Scenario {
            name: "ramp",
            title: "Ramp: up to 40 requests at once in five minutes, and down again",
            traffic: Traffic::Load(|second| (40.0 - (second - 330.0).abs() * 40.0 / 300.0).max(0.0)),
            length_ms: 13 * MINUTE,
            row_ms: 2 * SECOND,
            ..short.clone()
        },
        Scenario {
            name: "burst",
            title: "Burst: 200 requests in the same moment, from zero",
            traffic: Traffic::Moments(&[(200, 200)]),
            length_ms: SECOND,
            row_ms: 5,
            ..short.clone()
        },
        Scenario {
            name: "sparse",
            title: "Sparse: a request now and then",
            traffic: Traffic::Moments(&[
                (30 * SECOND, 1),
                (150 * SECOND, 1),
                (295 * SECOND, 1),
                (330 * SECOND, 1),
                (355 * SECOND, 1),
                (600 * SECOND, 1),
                (690 * SECOND, 1),
                (765 * SECOND, 1),
                (1_010 * SECOND, 1),
                (1_200 * SECOND, 1),
                (1_275 * SECOND, 1),
                (1_500 * SECOND, 1),
            ]),
            length_ms: 28 * MINUTE,
            ..long.clone()
        },
        Scenario {
            name: "daily",
            title: "Daily: a day with its peak at noon",
            traffic: Traffic::Load(|second| {
                let sun = (1.0 - (TAU * second / 86_400.0).cos()) / 2.0;
                0.01 + 20.0 * sun * sun
            }),
            length_ms: 24 * HOUR,
            row_ms: 2 * MINUTE,
            ..long
        },
        Scenario {
            name: "overload",
            title: "Overload: twice what max-scale 4 can serve, for a minute",
            traffic: Traffic::Load(|second| match second {
                30.0..60.0 | 120.0..150.0 => 15.0,
                60.0..120.0 => 40.0,
                _ => 0.0,
            }),
            length_ms: 5 * MINUTE,
            max_scale: 4,
            timeout_seconds: 10,
            ..short
        },
    ]
}

/// The scenario of that name.
pub fn find(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Requests in flight that one pod should have.
    pub fn target(&self) -> f64 {
        f64::from(self.concurrency) * UTILISATION
    }

    /// Number of rows of its series.
    pub fn rows(&self) -> usize {
        (self.length_ms / self.row_ms) as usize
    }

    /// The requests, in order; the same on every call.
    pub fn arrivals(&self) -> Vec<Arrival> {
        let dice = Dice::new(SEED, self.name);
        let arrival = |at_ms| Arrival { at_ms, work_ms: dice.between(self.work_ms.clone()) };
        match self.traffic {
            Traffic::Moments(moments) => {
                moments.iter().flat_map(|&(at_ms, count)| (0..count).map(move |_| at_ms)).map(arrival).collect()
            }
            // Each millisecond has its request or not: arrivals are independent, and close enough to Poisson's.
            Traffic::Load(load) => {
                let mean_work_ms = (self.work_ms.start + self.work_ms.end - 1) as f64 / 2.0;
                let chance = |at_ms: u64| load(at_ms as f64 / 1_000.0) / mean_work_ms;
                (0..self.length_ms)
                    .filter(|&at_ms| dice.below(1 << 32) < (chance(at_ms) * 2f64.powi(32)) as usize)
                    .map(arrival)
                    .collect()
            }
        }
    }

    /// Requests in work in each row, on average over it, if none ever had to wait.
    pub fn load(&self, arrivals: &[Arrival]) -> Vec<f64> {
        let mut busy_ms = vec![0; self.rows()];
        for arrival in arrivals {
            let (mut at, end) = (arrival.at_ms, arrival.at_ms + arrival.work_ms);
            while at < end {
                let row_end = (at / self.row_ms + 1) * self.row_ms;
                if let Some(row) = busy_ms.get_mut((at / self.row_ms) as usize) {
                    *row += row_end.min(end) - at;
                }
                at = row_end;
            }
        }
        busy_ms.iter().map(|&busy| busy as f64 / self.row_ms as f64).collect()
    }

    /// Pods of the model in each row: by Little's law as many requests are in work as arrive in the time that one
    /// takes; pods come and go at once, and each bears its target.
    pub fn ideal(&self, load: &[f64]) -> Vec<u32> {
        let expected = |(row, &seen): (usize, &f64)| match self.traffic {
            Traffic::Load(load) => load((row as f64 + 0.5) * self.row_ms as f64 / 1_000.0),
            Traffic::Moments(_) => seen,
        };
        load.iter().enumerate().map(expected).map(|load| (load / self.target()).ceil() as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(moments: &'static [(u64, u64)]) -> Scenario {
        let work_ms = 150..151;
        Scenario { traffic: Traffic::Moments(moments), length_ms: 500, row_ms: 100, work_ms, ..all().remove(0) }
    }

    #[test]
    fn the_load_of_a_row_is_what_would_be_in_work() {
        let scenario = given(&[(50, 1), (300, 8)]);
        let load = scenario.load(&scenario.arrivals());
        assert_eq!(load, [0.5, 1.0, 0.0, 8.0, 4.0]);
        assert_eq!(scenario.ideal(&load), [1, 1, 0, 3, 2]);
    }

    #[test]
    fn arrivals_bring_the_load_that_was_asked_for() {
        for scenario in all().into_iter().filter(|scenario| scenario.length_ms < HOUR) {
            let arrivals = scenario.arrivals();
            assert_eq!(arrivals, scenario.arrivals(), "{}", scenario.name);
            let Traffic::Load(load) = scenario.traffic else { continue };
            let asked: f64 = (0..scenario.length_ms / 1_000).map(|second| load(second as f64 + 0.5)).sum();
            let got: f64 = arrivals.iter().map(|arrival| arrival.work_ms as f64 / 1_000.0).sum();
            assert!((got / asked - 1.0).abs() < 0.02, "{}: {got} of {asked}", scenario.name);
        }
    }
}
