//! How many pods a Revision wants by what its pods use of processor or memory: the class `hpa`.
//!
//! The algorithm is that of Kubernetes' HorizontalPodAutoscaler with the default tolerance and policies. Surprises:
//! pods that were not measured count as idle where more pods are wanted and as fully used where fewer are; a pod's
//! start-up does not count as load; with nothing measured the number stays as it is.
//!
//! Source: `kubernetes/pkg/controller/podautoscaler/{replica_calculator,horizontal}.go`, and for the spec
//! `knative/serving/pkg/reconciler/autoscaling/hpa/resources/hpa.go`.

use std::collections::VecDeque;
use std::time::Duration;

/// Deviation from the target that changes nothing.
const TOLERANCE: f64 = 0.1;
/// Time after a pod's start in which its processor time may be that of its start-up.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// A pod that turned unready that soon after its start has never been ready.
const INITIAL_READINESS_DELAY: Duration = Duration::from_secs(30);
/// Length of the periods in which the pods may at most double, or grow by [`STEP_PODS`].
const PERIOD: Duration = Duration::from_secs(15);
/// Pods that may come in one period whatever their number.
const STEP_PODS: i32 = 4;
/// Time that fewer pods must be wanted where no window is set.
const DEFAULT_DOWN_WINDOW: Duration = Duration::from_secs(300);
/// Target where none is set, and for a memory metric without one too.
const DEFAULT_CPU_PERCENT: u32 = 80;
const MIB: f64 = 1_048_576.0;

/// What a pod should use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Percent of the processor time it requests.
    CpuPercent(u32),
    /// Bytes of memory.
    MemoryBytes(u64),
}

/// What the decision depends on besides the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageSpec {
    /// What a pod should use.
    pub target: Target,
    /// How long more pods must be wanted.
    pub up_window: Duration,
    /// How long fewer pods must be wanted.
    pub down_window: Duration,
}

impl UsageSpec {
    /// For the annotations `metric`, `target` and `window`; `None` for a metric that no node measures.
    pub fn new(metric: Option<&str>, target: Option<f64>, window: Option<Duration>) -> Option<Self> {
        // The conversions saturate.
        let target = match (metric, target) {
            (None | Some("cpu"), Some(percent)) => Target::CpuPercent((percent.ceil() as u32).max(1)),
            (Some("memory"), Some(mebibytes)) => Target::MemoryBytes(((mebibytes.trunc() * MIB) as u64).max(1)),
            (None | Some("cpu" | "memory"), None) => Target::CpuPercent(DEFAULT_CPU_PERCENT),
            (Some(_), _) => return None,
        };
        let up_window = window.unwrap_or(Duration::ZERO);
        Some(Self { target, up_window, down_window: window.unwrap_or(DEFAULT_DOWN_WINDOW) })
    }
}

/// One pod at one moment. Pods that are being deleted or have ended are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PodSeen {
    /// Whether its containers are still to start.
    pub pending: bool,
    /// Its condition `Ready`, and since when it is so.
    pub ready: Option<(bool, Duration)>,
    /// Time since it was started.
    pub age: Option<Duration>,
    /// Thousandths of a core that its containers request together; `None` where one requests nothing.
    pub cpu_request: Option<u64>,
    /// What it uses; `None` while it was not measured.
    pub sample: Option<Sample>,
}

/// What a pod uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Time since the end of the measurement.
    pub age: Duration,
    /// How long it took.
    pub window: Duration,
    /// Thousandths of a core.
    pub cpu_millis: u64,
    /// Bytes.
    pub memory_bytes: u64,
}

/// Why the pods say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silent {
    /// No ready pod was measured.
    #[error("no pod that is ready was measured yet")]
    Unmeasured,
    /// A container has no CPU request.
    #[error("a container requests no CPU, which the target is a share of")]
    NoRequest,
}

/// How a pod counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Counts,
    Unready,
    Missing,
}

impl Target {
    fn of(self, sample: &Sample) -> u64 {
        match self {
            Self::CpuPercent(_) => sample.cpu_millis,
            Self::MemoryBytes(_) => sample.memory_bytes,
        }
    }

    fn standing(self, pod: &PodSeen) -> Standing {
        let Some(sample) = pod.sample.as_ref().filter(|_| !pod.pending) else {
            return if pod.pending { Standing::Unready } else { Standing::Missing };
        };
        let starts = match (self, pod.ready, pod.age) {
            (Self::MemoryBytes(_), ..) => false,
            (_, Some((ready, since)), Some(age)) if age < CPU_INITIALIZATION => {
                !ready || sample.age + sample.window > since
            }
            (_, Some((ready, since)), Some(age)) => !ready && age < since + INITIAL_READINESS_DELAY,
            _ => true,
        };
        if starts { Standing::Unready } else { Standing::Counts }
    }

    /// What a pod that was not measured uses at most.
    fn full(self, pod: &PodSeen) -> u64 {
        match self {
            Self::CpuPercent(percent) => pod.cpu_request.unwrap_or_default() * u64::from(percent.max(100)) / 100,
            Self::MemoryBytes(bytes) => bytes,
        }
    }

    /// Use against target, of pods and what each of them uses.
    fn ratio(self, used: &[(&PodSeen, u64)]) -> f64 {
        let total: u64 = used.iter().map(|(_, used)| used).sum();
        match self {
            Self::CpuPercent(percent) => {
                let requested: u64 = used.iter().filter_map(|(pod, _)| pod.cpu_request).sum();
                // Whole percents, as the reference.
                let used = total.saturating_mul(100) / requested.max(1);
                used as f64 / f64::from(percent)
            }
            Self::MemoryBytes(bytes) => (total / used.len().max(1) as u64) as f64 / bytes as f64,
        }
    }
}

fn within_tolerance(ratio: f64) -> bool {
    (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio)
}

/// Pods that would bring the use of each to the target, where `current` are wanted now.
///
/// # Errors
///
/// [`Silent`] when that cannot be said.
pub fn recommend(target: Target, pods: &[PodSeen], current: i32) -> Result<i32, Silent> {
    if matches!(target, Target::CpuPercent(_)) && pods.iter().any(|pod| pod.cpu_request.is_none_or(|cpu| cpu == 0)) {
        return Err(Silent::NoRequest);
    }
    let standing = |wanted: Standing| pods.iter().filter(move |pod| target.standing(pod) == wanted);
    let counted = standing(Standing::Counts);
    let mut used: Vec<(&PodSeen, u64)> =
        counted.filter_map(|pod| Some((pod, target.of(pod.sample.as_ref()?)))).collect();
    if used.is_empty() {
        return Err(Silent::Unmeasured);
    }
    let count = |pods: usize| i32::try_from(pods).unwrap_or(i32::MAX);
    let pods_for = |ratio: f64, pods: i32| (ratio * f64::from(pods)).ceil() as i32;
    let ratio = target.ratio(&used);
    let (unready, missing) = (standing(Standing::Unready).count(), standing(Standing::Missing).count());
    let up_with_unready = unready > 0 && ratio > 1.0;
    if !up_with_unready && missing == 0 {
        return Ok(if within_tolerance(ratio) { current } else { pods_for(ratio, count(used.len())) });
    }
    if ratio < 1.0 {
        used.extend(standing(Standing::Missing).map(|pod| (pod, target.full(pod))));
    } else if ratio > 1.0 {
        used.extend(standing(Standing::Missing).map(|pod| (pod, 0)));
    }
    if up_with_unready {
        used.extend(standing(Standing::Unready).map(|pod| (pod, 0)));
    }
    let cautious = target.ratio(&used);
    if within_tolerance(cautious) || (ratio < 1.0 && cautious > 1.0) || (ratio > 1.0 && cautious < 1.0) {
        return Ok(current);
    }
    let wanted = pods_for(cautious, count(used.len()));
    let turns = (cautious < 1.0 && wanted > current) || (cautious > 1.0 && wanted < current);
    Ok(if turns { current } else { wanted })
}

/// What is remembered between decisions. Bounded by the windows and the time between decisions.
#[derive(Clone, Debug)]
pub struct UsageState {
    /// When what was recommended.
    recommended: VecDeque<(Duration, i32)>,
    /// When how many pods came or went.
    changes: VecDeque<(Duration, i32)>,
}

impl UsageState {
    /// The state where `current` pods are wanted at `now`.
    pub fn new(current: i32, now: Duration) -> Self {
        Self { recommended: VecDeque::from([(now, current)]), changes: VecDeque::new() }
    }

    /// Pods wanted at `now`, of `least` to `most`, where `current` were wanted so far and `recommended` would do.
    pub fn decide(
        &mut self,
        spec: &UsageSpec,
        (least, most): (i32, i32),
        current: i32,
        recommended: i32,
        now: Duration,
    ) -> i32 {
        let stable = self.stabilize(spec, current, recommended, now);
        let desired = stable.min(self.up_limit(current, now).max(current)).max(least).min(most);
        if desired != current {
            self.changes.push_back((now, desired - current));
        }
        desired
    }

    /// More than all that was recommended lately is never wanted, and less neither.
    fn stabilize(&mut self, spec: &UsageSpec, current: i32, recommended: i32, now: Duration) -> i32 {
        let longest = spec.up_window.max(spec.down_window);
        while self.recommended.front().is_some_and(|(at, _)| *at + longest <= now) {
            self.recommended.pop_front();
        }
        self.recommended.push_back((now, recommended));
        let last = |window: Duration| {
            let recent = self.recommended.iter().filter(move |(at, _)| *at + window > now);
            recent.map(|(_, pods)| *pods).chain([recommended])
        };
        let (floor, ceiling) = (last(spec.up_window).min(), last(spec.down_window).max());
        current.max(floor.unwrap_or(recommended)).min(ceiling.unwrap_or(recommended))
    }

    /// Most pods that there may be in this period.
    fn up_limit(&mut self, current: i32, now: Duration) -> i32 {
        while self.changes.front().is_some_and(|(at, _)| *at + PERIOD <= now) {
            self.changes.pop_front();
        }
        let start = current - self.changes.iter().map(|(_, change)| change).sum::<i32>();
        start.saturating_add(STEP_PODS).max(start.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CPU: Target = Target::CpuPercent(80);
    const MEMORY: Target = Target::MemoryBytes(100);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// An old, ready pod that requests 1000m and uses so many thousandths of a core, and bytes.
    fn pod(used: u64) -> PodSeen {
        let sample = Sample { age: seconds(1), window: seconds(5), cpu_millis: used, memory_bytes: used };
        PodSeen {
            pending: false,
            ready: Some((true, seconds(900))),
            age: Some(seconds(901)),
            cpu_request: Some(1000),
            sample: Some(sample),
        }
    }

    fn missing() -> PodSeen {
        PodSeen { sample: None, ..pod(0) }
    }

    fn pending() -> PodSeen {
        PodSeen { pending: true, ready: Some((false, seconds(3))), age: None, sample: None, ..pod(0) }
    }

    /// Started and ready for so long, using much.
    fn young(ready_for: u64) -> PodSeen {
        PodSeen { age: Some(seconds(ready_for + 1)), ready: Some((true, seconds(ready_for))), ..pod(4000) }
    }

    #[test]
    fn recommendations_follow_the_reference() {
        let never_ready = PodSeen { ready: Some((false, seconds(890))), ..pod(4000) };
        let unready_now = PodSeen { ready: Some((false, seconds(10))), ..pod(1600) };
        let unasked = PodSeen { cpu_request: None, ..pod(10) };
        type Row = (&'static str, Target, Vec<PodSeen>, Result<i32, Silent>);
        let rows: Vec<Row> = vec![
            ("at the target", CPU, vec![pod(800)], Ok(1)),
            ("within the tolerance", CPU, vec![pod(880), pod(720)], Ok(2)),
            ("just beyond it", CPU, vec![pod(890)], Ok(2)),
            ("twice the target", CPU, vec![pod(1600), pod(1600)], Ok(4)),
            ("the average counts", CPU, vec![pod(3200), pod(0)], Ok(4)),
            ("half the target", CPU, vec![pod(400); 4], Ok(2)),
            ("idle", CPU, vec![pod(0); 4], Ok(0)),
            ("whole percents", CPU, vec![pod(887)], Ok(1)),
            ("missing pods are idle on the way up", CPU, vec![pod(2400), missing()], Ok(3)),
            ("and may take the reason away", CPU, vec![pod(1000), missing()], Ok(2)),
            ("missing pods are full on the way down", CPU, vec![pod(100), pod(100), missing(), missing()], Ok(3)),
            ("and may take that reason away", CPU, vec![pod(700), missing()], Ok(2)),
            ("pending pods are idle on the way up", CPU, vec![pod(2400), pending()], Ok(3)),
            ("and do not count on the way down", CPU, vec![pod(100), pod(100), pending()], Ok(1)),
            ("the start-up is no load", CPU, vec![pod(800), young(3)], Ok(2)),
            ("a whole window of a young pod is", CPU, vec![pod(800), young(6)], Ok(6)),
            ("a pod that was never ready is no load", CPU, vec![pod(800), never_ready], Ok(2)),
            ("one that no longer is, is", CPU, vec![pod(1600), unready_now], Ok(4)),
            ("nothing measured", CPU, vec![missing(), pending()], Err(Silent::Unmeasured)),
            ("no pods", CPU, vec![], Err(Silent::Unmeasured)),
            ("no request", CPU, vec![pod(10), unasked], Err(Silent::NoRequest)),
            ("targets above 100", Target::CpuPercent(200), vec![pod(100), missing()], Ok(2)),
            ("memory", MEMORY, vec![pod(200), pod(100)], Ok(3)),
            ("memory needs no request", MEMORY, vec![unasked; 3], Ok(1)),
            ("memory of a young pod counts", MEMORY, vec![young(1)], Ok(40)),
            ("missing memory is at the target on the way down", MEMORY, vec![pod(50), missing()], Ok(2)),
        ];
        for (name, target, pods, expected) in rows {
            let current = i32::try_from(pods.len()).unwrap();
            assert_eq!(recommend(target, &pods, current), expected, "{name}");
        }
    }

    #[test]
    fn specs_follow_the_annotations() {
        let spec = |metric, target, window: Option<u64>| {
            let spec = UsageSpec::new(metric, target, window.map(seconds))?;
            Some((spec.target, spec.up_window.as_secs(), spec.down_window.as_secs()))
        };
        assert_eq!(spec(None, None, None), Some((Target::CpuPercent(80), 0, 300)));
        assert_eq!(spec(Some("cpu"), Some(54.2), Some(6)), Some((Target::CpuPercent(55), 6, 6)));
        assert_eq!(spec(Some("memory"), Some(2.0), None), Some((Target::MemoryBytes(2 << 20), 0, 300)));
        assert_eq!(spec(Some("memory"), None, None), Some((Target::CpuPercent(80), 0, 300)));
        assert_eq!(spec(Some("memory"), Some(0.01), None), Some((Target::MemoryBytes(1), 0, 300)));
        assert_eq!(spec(Some("queue-length"), Some(5.0), None), None);
    }

    /// Decides over and over, at the given seconds; what is wanted after each.
    fn run(spec: &UsageSpec, bounds: (i32, i32), start: i32, steps: &[(u64, i32)]) -> Vec<i32> {
        let (mut state, mut current) = (UsageState::new(start, Duration::ZERO), start);
        let mut step = |&(second, recommended): &(u64, i32)| {
            current = state.decide(spec, bounds, current, recommended, seconds(second));
            current
        };
        steps.iter().map(&mut step).collect()
    }

    #[test]
    fn a_rise_is_limited_for_each_period() {
        let spec = UsageSpec::new(None, None, None).unwrap();
        let steps = [(1, 100), (5, 100), (14, 100), (16, 100), (31, 100), (46, 100)];
        assert_eq!(run(&spec, (1, i32::MAX), 1, &steps), [5, 5, 5, 10, 20, 40]);
        assert_eq!(run(&spec, (1, 8), 1, &[(1, 100), (16, 100)]), [5, 8]);
        assert_eq!(run(&spec, (3, 8), 1, &[(1, 0)]), [3]);
    }

    #[test]
    fn a_fall_waits_for_its_window_and_a_rise_for_the_annotated_one() {
        let spec = UsageSpec::new(None, None, None).unwrap();
        let steps = [(10, 4), (100, 2), (309, 1), (310, 1), (399, 1), (401, 1)];
        assert_eq!(run(&spec, (1, 10), 4, &steps), [4, 4, 4, 2, 2, 1]);
        let spec = UsageSpec::new(None, None, Some(seconds(6))).unwrap();
        let steps = [(1, 3), (5, 4), (7, 4), (8, 1), (12, 1), (14, 1)];
        assert_eq!(run(&spec, (1, 10), 1, &steps), [1, 1, 4, 4, 4, 1]);
    }

    fn any_pod() -> impl Strategy<Value = PodSeen> {
        (
            any::<bool>(),
            prop::option::of((any::<bool>(), 0_u64..1000)),
            0_u64..1000,
            1_u64..4000,
            prop::option::of(0_u64..8000),
        )
            .prop_map(|(pending, ready, age, request, used)| PodSeen {
                pending,
                ready: ready.map(|(ready, since)| (ready, seconds(since))),
                age: Some(seconds(age)),
                cpu_request: Some(request),
                sample: used.and_then(|used| pod(used).sample),
            })
    }

    proptest! {
        #[test]
        fn what_is_wanted_stays_in_bounds_and_more_use_never_wants_fewer(
            pods in prop::collection::vec(any_pod(), 1..20),
            percent in 1_u32..300,
            more in 0_u64..8000,
            least in 1_i32..5,
            room in 0_i32..10,
            second in 0_u64..400,
        ) {
            let (target, current) = (Target::CpuPercent(percent), i32::try_from(pods.len()).unwrap());
            let busier: Vec<PodSeen> = pods.iter().map(|pod| {
                let sample = pod.sample.map(|sample| Sample { cpu_millis: sample.cpu_millis + more, ..sample });
                PodSeen { sample, ..*pod }
            }).collect();
            let (now, then) = (recommend(target, &pods, current), recommend(target, &busier, current));
            prop_assert_eq!(now.is_ok(), then.is_ok());
            if let (Ok(now), Ok(then)) = (now, then) {
                prop_assert!(now >= 0);
                let grows = |pods: i32| (pods - current).signum();
                prop_assert!(grows(then) >= grows(now), "{} became {} of {}", now, then, current);
                let spec = UsageSpec::new(None, None, None).unwrap();
                let mut state = UsageState::new(current, Duration::ZERO);
                let desired = state.decide(&spec, (least, least + room), current, now, seconds(second));
                prop_assert!((least..=least + room).contains(&desired));
            }
        }
    }
}
