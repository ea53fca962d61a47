//! What a Revision's scale depends on: the cluster's settings and the Revision's annotations.
//!
//! Admission refuses annotations that are not valid; one that got past it (the settings changed, or the object is
//! older) counts as absent.
//!
//! Source: `knative/serving/pkg/autoscaler/config/config.go`, `pkg/apis/autoscaling/v1alpha1/pa_lifecycle.go`,
//! `pkg/reconciler/autoscaling/resources/target.go`.

use std::collections::BTreeMap;
use std::time::Duration;

pub use api::config::Autoscaler as Settings;
use api::serving::annotations::{self as keys, Spellings};

use crate::Aggregation;
use crate::decide::DeciderSpec;
use crate::usage::UsageSpec;

/// Least target of one pod.
const LEAST_TARGET: f64 = 0.01;
/// Utilisation that requests per second are always planned for.
const RPS_UTILIZATION: f64 = 0.7;
/// Shortest stable window.
const LEAST_WINDOW: Duration = Duration::from_secs(6);
/// Longest window, delay and retention.
const MOST_TIME: Duration = Duration::from_secs(3_600);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Requests in flight and waiting.
    Concurrency,
    /// Requests a second.
    Rps,
}

/// Who scales, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Class {
    /// We, by traffic: Knative's own class.
    Traffic,
    /// We, by what the pods use: the class of the horizontal autoscaler.
    Usage(UsageSpec),
    /// We, by a metric that nothing here measures: its name.
    Unmeasured(String),
    /// Somebody else.
    Foreign,
}

/// Whether requests can arrive at a Revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reachability {
    /// A Route names it.
    Reachable,
    /// No Route names it, or it has failed.
    Unreachable,
    /// Nobody has looked yet.
    #[default]
    Unknown,
}

impl Reachability {
    /// As a PodAutoscaler's spec writes it.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Reachable") => Self::Reachable,
            Some("Unreachable") => Self::Unreachable,
            _ => Self::Unknown,
        }
    }

    /// As a PodAutoscaler's spec writes it; unknown is absent.
    pub fn text(self) -> Option<&'static str> {
        match self {
            Self::Reachable => Some("Reachable"),
            Self::Unreachable => Some("Unreachable"),
            Self::Unknown => None,
        }
    }
}

/// How one Revision is scaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaling {
    /// Who scales, and by what.
    pub class: Class,
    /// What is counted.
    pub metric: Metric,
    /// How samples become one number.
    pub aggregation: Aggregation,
    /// Length of the panic window.
    pub panic_window: Duration,
    /// The decider's part.
    pub decider: DeciderSpec,
    /// Fewest pods.
    pub min: i32,
    /// Most pods; `i32::MAX` is no limit.
    pub max: i32,
    /// Pods to start with, before the Revision was ready once.
    pub initial: i32,
    /// Time the last pod is kept once none is wanted.
    pub retention: Duration,
    /// Least time between the last pod being unwanted and its end.
    pub grace: Duration,
    /// Whether the last pod may go at all.
    pub to_zero: bool,
}

impl Scaling {
    /// The scaling of a Revision with these annotations and this `containerConcurrency`.
    pub fn resolve(
        settings: &Settings,
        annotations: &BTreeMap<String, String>,
        container_concurrency: i64,
        reachability: Reachability,
    ) -> Self {
        let read = Annotations(annotations);
        let metric = match keys::value(annotations, keys::METRIC) {
            Some("rps") => Metric::Rps,
            _ => Metric::Concurrency,
        };
        let (target_value, total_value) = target(settings, &read, metric, container_concurrency);
        let stable_window = read.time(keys::WINDOW).unwrap_or(settings.stable_window).max(LEAST_WINDOW);
        let panic_percentage = read.number(keys::PANIC_WINDOW_PERCENTAGE).unwrap_or(settings.panic_window_percentage);
        let panic_seconds = (stable_window.as_secs_f64() * panic_percentage / 100.0).round().max(1.0);
        let threshold = read.number(keys::PANIC_THRESHOLD_PERCENTAGE).unwrap_or(settings.panic_threshold_percentage);
        let unreachable = reachability == Reachability::Unreachable;
        let max = read.count(keys::MAX_SCALE).unwrap_or(settings.max_scale);
        let class = class(settings, &read);
        // The horizontal autoscaler never scales to zero.
        let floor = i32::from(matches!(class, Class::Usage(_) | Class::Unmeasured(_)));
        let min = if unreachable { 0 } else { read.count(keys::MIN_SCALE).unwrap_or(settings.min_scale) };
        let decider = DeciderSpec {
            target_value,
            total_value,
            target_burst_capacity: read.number(keys::TARGET_BURST_CAPACITY).unwrap_or(settings.target_burst_capacity),
            max_scale_up_rate: settings.max_scale_up_rate,
            max_scale_down_rate: settings.max_scale_down_rate,
            panic_threshold: threshold / 100.0,
            stable_window,
            activation_scale: read.count(keys::ACTIVATION_SCALE).unwrap_or(0),
            scale_down_delay: read.time(keys::SCALE_DOWN_DELAY).unwrap_or(settings.scale_down_delay),
            reachable: !unreachable,
        };
        Self {
            class,
            metric,
            aggregation: match keys::value(annotations, keys::METRIC_AGGREGATION_ALGORITHM) {
                Some("weighted-exponential" | "weightedExponential") => Aggregation::WeightedExponential,
                _ => Aggregation::Linear,
            },
            panic_window: Duration::from_secs_f64(panic_seconds),
            decider,
            min: min.max(floor),
            max: if max == 0 { i32::MAX } else { max },
            initial: initial(settings, &read),
            retention: if unreachable {
                Duration::ZERO
            } else {
                let annotated = read.time(keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD);
                annotated.unwrap_or(settings.scale_to_zero_pod_retention_period)
            },
            grace: settings.scale_to_zero_grace_period,
            to_zero: settings.enable_scale_to_zero,
        }
    }

    /// Ready pods from which on the Revision counts as active.
    pub fn active_threshold(&self, initialized: bool) -> i32 {
        if initialized { self.min.max(1) } else { self.min.max(self.initial) }
    }

    /// `wanted` within `min-scale`, `max-scale` and, before the first success, `initial-scale`.
    pub fn bound(&self, wanted: i32, initialized: bool) -> i32 {
        let least = if initialized { self.min } else { self.min.max(self.initial) };
        wanted.max(least).min(self.max)
    }
}

fn class(settings: &Settings, read: &Annotations<'_>) -> Class {
    match keys::value(read.0, keys::CLASS).unwrap_or(&settings.class) {
        keys::CLASS_KPA => Class::Traffic,
        keys::CLASS_HPA => {
            let metric = keys::value(read.0, keys::METRIC).filter(|metric| !metric.is_empty());
            match UsageSpec::new(metric, read.number(keys::TARGET), read.time(keys::WINDOW)) {
                Some(spec) => Class::Usage(spec),
                None => Class::Unmeasured(metric.unwrap_or_default().to_owned()),
            }
        }
        _ => Class::Foreign,
    }
}

/// Target and total of one pod.
fn target(settings: &Settings, read: &Annotations<'_>, metric: Metric, container_concurrency: i64) -> (f64, f64) {
    let annotated = read.number(keys::TARGET);
    let (mut total, utilization) = match metric {
        Metric::Rps => (annotated.unwrap_or(settings.rps_target), RPS_UTILIZATION),
        Metric::Concurrency => {
            let hard = container_concurrency as f64;
            let limit = if container_concurrency > 0 { hard } else { settings.concurrency_target };
            let total = match annotated {
                Some(annotated) if container_concurrency > 0 => annotated.min(hard),
                Some(annotated) => annotated,
                None => limit,
            };
            (total, settings.target_utilization)
        }
    };
    total = total.max(LEAST_TARGET);
    let utilization =
        read.number(keys::TARGET_UTILIZATION_PERCENTAGE).map_or(utilization, |percentage| percentage / 100.0);
    ((total * utilization).max(LEAST_TARGET), total)
}

fn initial(settings: &Settings, read: &Annotations<'_>) -> i32 {
    let wanted = read.count(keys::INITIAL_SCALE).unwrap_or(settings.initial_scale);
    if wanted == 0 && !settings.allow_zero_initial_scale { settings.initial_scale.max(1) } else { wanted }
}

struct Annotations<'a>(&'a BTreeMap<String, String>);

impl Annotations<'_> {
    fn number(&self, key: Spellings) -> Option<f64> {
        keys::value(self.0, key)?.parse().ok().filter(|number: &f64| number.is_finite())
    }

    fn count(&self, key: Spellings) -> Option<i32> {
        keys::value(self.0, key)?.parse().ok().filter(|count| *count >= 0)
    }

    fn time(&self, key: Spellings) -> Option<Duration> {
        base::duration::parse(keys::value(self.0, key)?).filter(|time| *time <= MOST_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn scaling(entries: &[(&str, &str)], container_concurrency: i64) -> Scaling {
        let entries: Vec<(String, &str)> =
            entries.iter().map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), *value)).collect();
        let annotations = entries.iter().map(|(key, value)| (key.clone(), (*value).to_owned())).collect();
        Scaling::resolve(&Settings::default(), &annotations, container_concurrency, Reachability::Reachable)
    }

    #[test]
    fn targets_follow_annotation_hard_limit_and_utilization() {
        type Row<'a> = (&'a [(&'a str, &'a str)], i64, f64, f64);
        let rows: [Row<'_>; 7] = [
            (&[], 0, 70.0, 100.0),
            (&[], 10, 7.0, 10.0),
            (&[("target", "50")], 0, 35.0, 50.0),
            (&[("target", "50")], 10, 7.0, 10.0),
            (&[("target", "5")], 10, 3.5, 5.0),
            (&[("target", "10"), ("targetUtilizationPercentage", "100")], 0, 10.0, 10.0),
            (&[("metric", "rps")], 1, 140.0, 200.0),
        ];
        for (annotations, limit, target, total) in rows {
            let decider = scaling(annotations, limit).decider;
            let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
            assert!(near(decider.target_value, target), "{annotations:?}: target {}", decider.target_value);
            assert!(near(decider.total_value, total), "{annotations:?}: total {}", decider.total_value);
        }
    }

    #[test]
    fn both_spellings_count_and_the_newer_one_wins() {
        assert_eq!(scaling(&[("minScale", "3")], 0).min, 3);
        assert_eq!(scaling(&[("minScale", "3"), ("min-scale", "2")], 0).min, 2);
        assert_eq!(scaling(&[("min-scale", "x")], 0).min, 0);
    }

    #[test]
    fn an_unreachable_revision_has_no_minimum_and_no_retention() {
        let annotations = map(&[
            ("autoscaling.knative.dev/min-scale", "3"),
            ("autoscaling.knative.dev/scale-to-zero-pod-retention-period", "1m"),
        ]);
        let unreachable = Scaling::resolve(&Settings::default(), &annotations, 0, Reachability::Unreachable);
        assert_eq!((unreachable.min, unreachable.retention), (0, Duration::ZERO));
        let unknown = Scaling::resolve(&Settings::default(), &annotations, 0, Reachability::Unknown);
        assert_eq!((unknown.min, unknown.retention), (3, Duration::from_secs(60)));
    }

    #[test]
    fn windows_have_whole_seconds() {
        let scaling = scaling(&[("window", "6s")], 0);
        assert_eq!(scaling.decider.stable_window, Duration::from_secs(6));
        assert_eq!(scaling.panic_window, Duration::from_secs(1));
    }
}
