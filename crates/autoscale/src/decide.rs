//! How many pods a Revision wants.

use std::time::Duration;

use crate::delay::SlidingMax;

/// What the decision depends on besides traffic.
#[derive(Clone, Debug, PartialEq)]
pub struct DeciderSpec {
    /// What one pod should bear: requests in flight, or requests a second.
    pub target_value: f64,
    /// What one pod can bear.
    pub total_value: f64,
    /// Requests that must fit in on top; 0 asks for nothing, -1 for buffering always.
    pub target_burst_capacity: f64,
    /// Most that one decision multiplies the ready pods by. Greater than 1.
    pub max_scale_up_rate: f64,
    /// Most that one decision divides the ready pods by. Greater than 1.
    pub max_scale_down_rate: f64,
    /// Pods wanted by the panic window for each ready pod, from which on the decider panics.
    pub panic_threshold: f64,
    /// Length of the stable window: how long a panic lasts after its cause.
    pub stable_window: Duration,
    /// Least number of pods as soon as one is wanted; 0 or 1 is no such wish.
    pub activation_scale: i32,
    /// How long a smaller number must be wanted before it counts. Fixed when the state is made.
    pub scale_down_delay: Duration,
    /// Whether traffic can arrive. If not, scale-down is neither slowed nor delayed.
    pub reachable: bool,
}

/// Averages and pods at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// Average over the stable window.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// Pods that are ready.
    pub ready_pods: i32,
}

/// What a decider remembers.
#[derive(Clone, Debug)]
pub struct DeciderState {
    /// The last moment over the threshold, while the panic lasts.
    panic_since: Option<Duration>,
    max_panic_pods: i32,
    delay: Option<SlidingMax>,
}

impl DeciderState {
    /// The state of a decider that starts at `now`. With more than one ready pod it starts in panic, so that a restart
    /// of the autoscaler drops no pods before it has seen the traffic.
    pub fn new(spec: &DeciderSpec, ready_pods: i32, now: Duration) -> Self {
        let panics = ready_pods > 1;
        Self {
            panic_since: panics.then_some(now),
            max_panic_pods: if panics { ready_pods } else { 0 },
            delay: (!spec.scale_down_delay.is_zero()).then(|| SlidingMax::new(spec.scale_down_delay)),
        }
    }

    /// Whether it panics: only more pods are wanted, never fewer.
    pub fn panics(&self) -> bool {
        self.panic_since.is_some()
    }
}

/// What a decider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Pods wanted, before `min-scale` and `max-scale`.
    pub desired: i32,
    /// Requests that would still fit in; negative when the burst capacity is not there.
    pub excess_burst_capacity: i32,
}

/// Pods wanted for one Revision at `now`, which must not go back between calls.
pub fn decide(spec: &DeciderSpec, seen: &Observed, state: &mut DeciderState, now: Duration) -> Decision {
    let ready = f64::from(seen.ready_pods.max(1));
    let stable_wish = (seen.stable / spec.target_value).ceil();
    let panic_wish = (seen.panic / spec.target_value).ceil();
    let stable = within_limits(spec, ready, stable_wish);
    let panic = within_limits(spec, ready, panic_wish);
    step_panic(spec, state, panic_wish / ready >= spec.panic_threshold, now);

    let mut desired = stable;
    if state.panics() {
        state.max_panic_pods = state.max_panic_pods.max(stable).max(panic);
        desired = state.max_panic_pods;
    }
    if let Some(delay) = state.delay.as_mut().filter(|_| spec.reachable) {
        desired = delay.record(now, desired);
    }
    Decision { desired, excess_burst_capacity: excess_burst_capacity(spec, seen) }
}

/// The wish inside what one decision may change, raised to the activation scale.
fn within_limits(spec: &DeciderSpec, ready: f64, wish: f64) -> i32 {
    let most = (spec.max_scale_up_rate * ready).ceil();
    let least = if spec.reachable { (ready / spec.max_scale_down_rate).floor() } else { 0.0 };
    // The conversion saturates.
    let wanted = wish.max(least).min(most) as i32;
    if wish > 0.0 && spec.activation_scale > 1 { wanted.max(spec.activation_scale) } else { wanted }
}

fn step_panic(spec: &DeciderSpec, state: &mut DeciderState, over_threshold: bool, now: Duration) {
    if over_threshold {
        state.panic_since = Some(now);
    } else if state.panic_since.is_some_and(|since| since + spec.stable_window < now) {
        state.panic_since = None;
        state.max_panic_pods = 0;
    }
}

fn excess_burst_capacity(spec: &DeciderSpec, seen: &Observed) -> i32 {
    if spec.target_burst_capacity == 0.0 {
        0
    } else if spec.target_burst_capacity < 0.0 {
        -1
    } else {
        let capacity = f64::from(seen.ready_pods) * spec.total_value;
        (capacity - spec.target_burst_capacity - seen.panic).floor() as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Aggregation, Window};
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Trace {
        name: String,
        spec: TraceSpec,
        ready_pods_at_creation: i32,
        steps: Vec<Step>,
    }

    #[derive(Deserialize)]
    struct TraceSpec {
        activation_scale: i32,
        aggregation: String,
        max_scale_down_rate: f64,
        max_scale_up_rate: f64,
        panic_threshold: f64,
        panic_window_s: f64,
        reachable: bool,
        scale_down_delay_s: f64,
        stable_window_s: f64,
        target_burst_capacity: f64,
        target_value: f64,
        total_value: f64,
    }

    #[derive(Deserialize)]
    struct Step {
        at_s: f64,
        ready_pods: i32,
        samples: Vec<f64>,
        tick: bool,
        valid: Option<bool>,
        stable: Option<f64>,
        panic: Option<f64>,
        desired: Option<i32>,
        excess_burst_capacity: Option<i32>,
    }

    fn replay(trace: &Trace) -> usize {
        let seconds = Duration::from_secs_f64;
        let given = &trace.spec;
        let spec = DeciderSpec {
            target_value: given.target_value,
            total_value: given.total_value,
            target_burst_capacity: given.target_burst_capacity,
            max_scale_up_rate: given.max_scale_up_rate,
            max_scale_down_rate: given.max_scale_down_rate,
            panic_threshold: given.panic_threshold,
            stable_window: seconds(given.stable_window_s),
            activation_scale: given.activation_scale,
            scale_down_delay: seconds(given.scale_down_delay_s),
            reachable: given.reachable,
        };
        let aggregation = match given.aggregation.as_str() {
            "linear" => Aggregation::Linear,
            "weighted-exponential" => Aggregation::WeightedExponential,
            other => panic!("aggregation {other:?}"),
        };
        let mut stable = Window::new(spec.stable_window, aggregation);
        let mut panic = Window::new(seconds(given.panic_window_s), aggregation);
        // Like the recording: a time since the epoch of the calendar, not 0.
        let origin = Duration::from_secs(1_700_000_000);
        let mut state = DeciderState::new(&spec, trace.ready_pods_at_creation, origin);
        let mut ticks = 0;
        for step in &trace.steps {
            let now = origin + seconds(step.at_s);
            for sample in &step.samples {
                stable.record(now, *sample);
                panic.record(now, *sample);
            }
            if !step.tick {
                continue;
            }
            ticks += 1;
            let place = format!("{} at {} s", trace.name, step.at_s);
            assert_eq!(Some(!stable.is_empty(now)), step.valid, "{place}");
            if step.valid == Some(false) {
                continue;
            }
            let seen = Observed { stable: stable.average(now), panic: panic.average(now), ready_pods: step.ready_pods };
            assert!((seen.stable - step.stable.unwrap()).abs() < 2e-6, "{place}: stable {}", seen.stable);
            assert!((seen.panic - step.panic.unwrap()).abs() < 2e-6, "{place}: panic {}", seen.panic);
            let decision = decide(&spec, &seen, &mut state, now);
            assert_eq!(Some(decision.desired), step.desired, "{place}");
            assert_eq!(Some(decision.excess_burst_capacity), step.excess_burst_capacity, "{place}");
        }
        ticks
    }

    #[test]
    fn vectors_kpa_traces() {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
        let folder = std::env::var("COLIBRI_VECTORS").unwrap_or_else(|_| default.to_owned());
        let Ok(text) = std::fs::read_to_string(format!("{folder}/kpa_traces.json")) else {
            println!("skipped: no kpa_traces.json in {folder}");
            return;
        };
        let traces: Vec<Trace> = serde_json::from_str(&text).unwrap();
        assert!(!traces.is_empty(), "kpa_traces.json has no rows");
        let ticks: usize = traces.iter().map(replay).sum();
        println!("kpa_traces.json: {} rows, {ticks} ticks", traces.len());
    }

    fn spec() -> DeciderSpec {
        DeciderSpec {
            target_value: 10.0,
            total_value: 10.0,
            target_burst_capacity: 0.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            panic_threshold: 2.0,
            stable_window: Duration::from_secs(60),
            activation_scale: 0,
            scale_down_delay: Duration::ZERO,
            reachable: true,
        }
    }

    #[test]
    fn a_panic_never_lowers_and_ends_a_stable_window_after_its_cause() {
        let spec = spec();
        let mut state = DeciderState::new(&spec, 0, Duration::ZERO);
        let mut at = |second, load, ready_pods| {
            let seen = Observed { stable: load, panic: load, ready_pods };
            decide(&spec, &seen, &mut state, Duration::from_secs(second)).desired
        };
        assert_eq!(at(0, 95.0, 0), 10);
        assert_eq!(at(2, 15.0, 10), 10);
        assert_eq!(at(60, 15.0, 10), 10);
        assert_eq!(at(62, 15.0, 10), 5);
    }

    #[test]
    fn an_unreachable_revision_falls_at_once() {
        let spec = DeciderSpec { reachable: false, ..spec() };
        let mut state = DeciderState::new(&spec, 1, Duration::ZERO);
        let seen = Observed { stable: 0.0, panic: 0.0, ready_pods: 8 };
        assert_eq!(decide(&spec, &seen, &mut state, Duration::ZERO).desired, 0);
    }
}
