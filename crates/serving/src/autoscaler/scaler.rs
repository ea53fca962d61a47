//! One Revision's scale: windows, decider and way to zero put together. Pure: the caller tells the time.

use std::sync::Arc;
use std::time::Duration;

use autoscale::settings::{Class, Metric};
use autoscale::usage::{self, PodSeen, Silent, UsageState};
use autoscale::zero::{Activity, Scale, Wish};
use autoscale::{DeciderState, Observed, Scaling, Window, decide};

use crate::instances::Counts;

/// Time between two decisions.
pub(super) const TICK: Duration = Duration::from_secs(2);
/// Time between two decisions while requests wait for pods.
const PRESSED_TICK: Duration = Duration::from_millis(250);

/// What was known of a Revision's scale before this process started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Restored {
    /// Whether enough pods were ready once.
    pub(super) initialized: bool,
    /// Whether the last activation took too long.
    pub(super) timed_out: bool,
    /// How long it had been activating.
    pub(super) activating_for: Duration,
}

impl Restored {
    /// Goes on where the last process ended: a restart neither repeats a failed activation nor puts its end off.
    fn activity(self, fresh: Activity, now: Duration) -> Activity {
        match fresh {
            Activity::Activating { .. } if self.timed_out && !self.initialized => {
                Activity::Inactive { since: now, timed_out: true }
            }
            Activity::Activating { .. } => Activity::Activating { since: now.saturating_sub(self.activating_for) },
            other => other,
        }
    }
}

/// What came of the last try to decide by what the pods use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// The number of pods is right by it.
    Given,
    /// Why there is none.
    Missing {
        /// A word for it.
        reason: &'static str,
        /// Cause and cure.
        message: Arc<str>,
    },
}

/// The scale of one Revision.
#[derive(Clone, Debug)]
pub(super) struct Scaler {
    scaling: Scaling,
    stable: Window,
    panic: Window,
    decider: DeciderState,
    usage: UsageState,
    /// What came of the last try to decide by use; `None` where nothing was tried.
    advice: Option<Advice>,
    activity: Activity,
    initialized: bool,
    /// The decider's last word.
    decided: i32,
    decide_at: Duration,
    /// Pods to run.
    pods: i32,
    /// Whether the load was more than the ready pods may have when it was looked at last.
    pressed: bool,
    /// Load that was recorded when it came, before the second's report that holds it too.
    advance: f64,
    activation_limit: Duration,
    /// Whether nothing happens until a report or a pod changes it: there is no tick.
    rests: bool,
}

/// What an evaluation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evaluation {
    /// Whether the number of pods to run has changed.
    pub(super) changed: bool,
    /// When to evaluate again although nothing changes; `None` for a Revision at rest.
    pub(super) again: Option<Duration>,
}

impl Scaler {
    pub(super) fn new(
        scaling: Scaling,
        restored: Restored,
        counts: Counts,
        activation_limit: Duration,
        now: Duration,
    ) -> Self {
        let wanted = scaling.bound(0, restored.initialized);
        let threshold = scaling.active_threshold(restored.initialized);
        let fresh = Activity::start(counts.ready, threshold, wanted.max(counts.present), now);
        let mut this = Self {
            stable: Window::new(scaling.decider.stable_window, scaling.aggregation),
            panic: Window::new(scaling.panic_window, scaling.aggregation),
            decider: DeciderState::new(&scaling.decider, counts.ready, now),
            activity: restored.activity(fresh, now),
            initialized: restored.initialized,
            usage: UsageState::new(counts.present.max(wanted), now),
            advice: None,
            decided: 0,
            decide_at: now,
            pods: counts.present.max(wanted),
            pressed: false,
            advance: 0.0,
            activation_limit,
            rests: false,
            scaling,
        };
        this.start_class(now);
        this
    }

    /// What the class of the scaling calls for before anything was measured: a restart drops no pods.
    fn start_class(&mut self, now: Duration) {
        self.usage = UsageState::new(self.pods, now);
        self.advice = match &self.scaling.class {
            Class::Unmeasured(metric) => Some(Advice::Missing {
                reason: "InvalidMetricSourceType",
                message: format!("the metric {metric:?} is measured by nobody here: use cpu or memory").into(),
            }),
            _ => None,
        };
        if !matches!(self.scaling.class, Class::Traffic) {
            self.decided = self.pods;
        }
    }

    /// Longest time of an activation.
    pub(super) fn set_activation_limit(&mut self, limit: Duration) {
        self.activation_limit = limit;
    }

    /// Takes over changed settings or annotations. Windows of the same length keep their samples.
    pub(super) fn retune(&mut self, scaling: Scaling, now: Duration) {
        if scaling == self.scaling {
            return;
        }
        let old = &self.scaling;
        if (old.decider.stable_window, old.aggregation, old.metric)
            != (scaling.decider.stable_window, scaling.aggregation, scaling.metric)
        {
            self.stable = Window::new(scaling.decider.stable_window, scaling.aggregation);
        }
        if (old.panic_window, old.aggregation, old.metric)
            != (scaling.panic_window, scaling.aggregation, scaling.metric)
        {
            self.panic = Window::new(scaling.panic_window, scaling.aggregation);
        }
        let changes = self.scaling.class != scaling.class;
        self.scaling = scaling;
        self.decide_at = now;
        if changes {
            self.start_class(now);
        }
    }

    fn by_traffic(&self) -> bool {
        self.scaling.class == Class::Traffic
    }

    /// Whether what the pods use decides.
    pub(super) fn by_usage(&self) -> bool {
        matches!(self.scaling.class, Class::Usage(_))
    }

    /// Whether another autoscaler decides.
    pub(super) fn is_foreign(&self) -> bool {
        self.scaling.class == Class::Foreign
    }

    /// Decides by what the pods use; an error says why nobody knows it.
    pub(super) fn measure(&mut self, seen: Result<&[PodSeen], &str>, now: Duration) {
        let Class::Usage(spec) = &self.scaling.class else { return };
        let missing = |reason, message: &str| Some(Advice::Missing { reason, message: message.into() });
        let recommended = match seen.map(|pods| usage::recommend(spec.target, pods, self.pods)) {
            Ok(Ok(recommended)) => {
                self.advice = Some(Advice::Given);
                recommended
            }
            // As it is with every pod at its start.
            Ok(Err(Silent::Unmeasured)) => self.pods,
            Ok(Err(silent)) => {
                let message =
                    format!("{silent}: set resources.requests.cpu, or revision-cpu-request in config-defaults");
                self.advice = missing("FailedGetResourceMetric", &message);
                self.pods
            }
            Err(why) => {
                self.advice = missing("FailedGetResourceMetric", why);
                self.pods
            }
        };
        let bounds = (self.scaling.bound(0, self.initialized), self.scaling.max);
        self.decided = self.usage.decide(spec, bounds, self.pods, recommended, now);
    }

    /// What came of the last try to decide by what the pods use.
    pub(super) fn advice(&self) -> Option<&Advice> {
        self.advice.as_ref()
    }

    /// One second's report; whether it needs a decision before the next tick.
    pub(super) fn record(&mut self, concurrency: f64, requests: f64, now: Duration) -> bool {
        if !self.by_traffic() {
            return false;
        }
        let value = match self.scaling.metric {
            Metric::Concurrency => concurrency,
            Metric::Rps => requests,
        };
        let value = (value - std::mem::take(&mut self.advance)).max(0.0);
        self.add(value, now);
        value > 0.0 && (self.pods == 0 || self.rests)
    }

    /// A request waits and nothing can take it; whether this asks for a decision, or for a look at the load.
    pub(super) fn poke(&mut self, now: Duration) -> bool {
        if !self.by_traffic() {
            return false;
        }
        if self.pods > 0 && self.decided > 0 {
            return self.counts_load();
        }
        self.advance += 1.0;
        self.add(1.0, now);
        self.decide_at = now;
        true
    }

    /// The gateway's load at this moment. While it is more than the ready pods may have, what waits counts before the
    /// second ends, and the next decision is not left to the tick.
    pub(super) fn press(&mut self, load: usize, ready: i32, now: Duration) {
        let load = load as f64;
        let room = f64::from(ready) * self.scaling.decider.total_value;
        self.pressed = self.counts_load() && (self.is_activating() || load > room);
        let unseen = load - self.advance;
        if self.pressed && unseen > 0.0 {
            self.advance += unseen;
            self.add(unseen, now);
            self.decide_at = now;
        }
    }

    /// Whether more load brings more pods.
    fn counts_load(&self) -> bool {
        self.by_traffic() && self.scaling.metric == Metric::Concurrency && self.pods < self.scaling.max
    }

    fn add(&mut self, value: f64, now: Duration) {
        self.stable.record(now, value);
        self.panic.record(now, value);
    }

    /// Pods to run at `now`.
    pub(super) fn evaluate(&mut self, counts: Counts, now: Duration) -> Evaluation {
        if self.by_traffic() && now >= self.decide_at {
            self.decide(counts, now);
        }
        if !self.initialized && counts.ready >= self.scaling.active_threshold(false) {
            self.initialized = true;
        }
        let wish = Wish {
            wanted: self.scaling.bound(self.decided, self.initialized),
            ready: counts.ready,
            present: counts.present,
            initialized: self.initialized,
            activation_limit: self.activation_limit,
        };
        let (activity, scale) = self.activity.step(&self.scaling, &wish, now);
        self.activity = activity;
        let changed = scale.pods != self.pods;
        self.pods = scale.pods;
        Evaluation { changed, again: self.again(counts, scale, now) }
    }

    fn decide(&mut self, counts: Counts, now: Duration) {
        // A Revision with pods and no report has no traffic.
        if counts.ready > 0 {
            self.add(0.0, now);
        }
        let seen =
            Observed { stable: self.stable.average(now), panic: self.panic.average(now), ready_pods: counts.ready };
        self.decided = decide(&self.scaling.decider, &seen, &mut self.decider, now).desired;
        let tick = if self.pressed { PRESSED_TICK } else { TICK };
        // The end of the traffic is seen when it leaves the window, not at the tick after.
        let end = self.stable.zero_at(now).unwrap_or(Duration::MAX);
        self.decide_at = (now + tick).min(end);
    }

    fn again(&mut self, counts: Counts, scale: Scale, now: Duration) -> Option<Duration> {
        // Without traffic, and with the pods that it keeps even then, each tick would say the same.
        self.rests = self.decided == 0 && counts.present == scale.pods && self.stable.average(now) == 0.0;
        if self.rests || !self.by_traffic() {
            return scale.again;
        }
        Some(scale.again.map_or(self.decide_at, |again| again.min(self.decide_at)))
    }

    /// Pods to run.
    pub(super) fn pods(&self) -> i32 {
        self.pods
    }

    /// Most pods at any time.
    pub(super) fn limit(&self) -> i32 {
        self.scaling.max
    }

    /// What the Revision is to its users.
    pub(super) fn activity(&self) -> Activity {
        self.activity
    }

    /// Whether enough pods were ready once.
    pub(super) fn initialized(&self) -> bool {
        self.initialized
    }

    /// Whether pods are wanted and none is ready.
    pub(super) fn is_activating(&self) -> bool {
        matches!(self.activity, Activity::Activating { .. })
    }

    /// Pods that the status shows as wanted: 0 as soon as nothing wants them, although the last may still be kept.
    pub(super) fn desired_scale(&self) -> i32 {
        match self.activity {
            Activity::Inactive { .. } => 0,
            _ => self.pods,
        }
    }
}
