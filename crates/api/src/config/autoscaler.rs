//! `config-autoscaler`.
//!
//! Source: `knative/serving/pkg/autoscaler/config/config.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Key, Reader, SettingError};
use crate::serving::annotations::CLASS_KPA;

/// Name of the ConfigMap.
pub const NAME: &str = "config-autoscaler";
/// Least target of one pod.
const LEAST_TARGET: f64 = 0.01;
/// Shortest stable window.
const LEAST_WINDOW: Duration = Duration::from_secs(6);
/// Longest window.
const MOST_WINDOW: Duration = Duration::from_secs(3_600);
/// Longest of the other times.
const MOST_TIME: Duration = Duration::from_secs(24 * 3_600);

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("container-concurrency-target-default", "100", "requests in flight that one instance should have"),
    key(
        "container-concurrency-target-percentage",
        "70",
        "share of that target, and of a hard limit, that is planned for",
    ),
    key("requests-per-second-target-default", "200", "requests a second that one instance should have"),
    Key { in_force: false, ..key("target-burst-capacity", "211", "when the reference's activator steps aside") },
    key("stable-window", "60s", "what is averaged over; 6s to 1h"),
    key("panic-window-percentage", "10", "share of the window that shows a sudden load"),
    key("panic-threshold-percentage", "200", "load for each ready instance that counts as sudden"),
    key("max-scale-up-rate", "1000", "how many times as many instances one step may make"),
    key("max-scale-down-rate", "2", "how many times fewer instances one step may leave"),
    key("enable-scale-to-zero", "true", "whether the last instance may go"),
    key("scale-to-zero-grace-period", "30s", "least time between the last instance being unwanted and its end"),
    key("scale-to-zero-pod-retention-period", "0s", "least time that the last instance is kept"),
    key("scale-down-delay", "0s", "how long a smaller number must hold"),
    key("initial-scale", "1", "instances that a new Revision must start before it is ready"),
    key("allow-zero-initial-scale", "false", "whether that may be 0"),
    key("min-scale", "0", "fewest instances"),
    key("max-scale", "0", "most instances; 0: no limit"),
    key("max-scale-limit", "0", "the most that a Revision may ask for; 0: no limit"),
    key("pod-autoscaler-class", "kpa.autoscaling.knative.dev", "the autoscaler of Revisions that name none"),
    Key { in_force: false, ..key("activator-capacity", "100", "of the reference's activator; there is none") },
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

/// The ConfigMap `config-autoscaler`.
#[derive(Clone, Debug, PartialEq)]
pub struct Autoscaler {
    /// `container-concurrency-target-percentage` as a fraction. Default 0.7.
    pub target_utilization: f64,
    /// `container-concurrency-target-default`. Default 100.
    pub concurrency_target: f64,
    /// `requests-per-second-target-default`. Default 200.
    pub rps_target: f64,
    /// `target-burst-capacity`. Default 211.
    pub target_burst_capacity: f64,
    /// `stable-window`. Default 60 s.
    pub stable_window: Duration,
    /// `panic-window-percentage`. Default 10.
    pub panic_window_percentage: f64,
    /// `panic-threshold-percentage`. Default 200.
    pub panic_threshold_percentage: f64,
    /// `max-scale-up-rate`. Default 1000.
    pub max_scale_up_rate: f64,
    /// `max-scale-down-rate`. Default 2.
    pub max_scale_down_rate: f64,
    /// `enable-scale-to-zero`. Default true.
    pub enable_scale_to_zero: bool,
    /// `scale-to-zero-grace-period`. Default 30 s.
    pub scale_to_zero_grace_period: Duration,
    /// `scale-to-zero-pod-retention-period`. Default 0 s.
    pub scale_to_zero_pod_retention_period: Duration,
    /// `scale-down-delay`. Default 0 s.
    pub scale_down_delay: Duration,
    /// `initial-scale`. Default 1.
    pub initial_scale: i32,
    /// `allow-zero-initial-scale`. Default false.
    pub allow_zero_initial_scale: bool,
    /// `min-scale`. Default 0.
    pub min_scale: i32,
    /// `max-scale`; 0 is no limit. Default 0.
    pub max_scale: i32,
    /// `max-scale-limit`: the most that a Revision may ask for; 0 is no limit. Default 0.
    pub max_scale_limit: i32,
    /// `pod-autoscaler-class`. Default `kpa.autoscaling.knative.dev`.
    pub class: String,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            target_utilization: 0.7,
            concurrency_target: 100.0,
            rps_target: 200.0,
            target_burst_capacity: 211.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1_000.0,
            max_scale_down_rate: 2.0,
            enable_scale_to_zero: true,
            scale_to_zero_grace_period: Duration::from_secs(30),
            scale_to_zero_pod_retention_period: Duration::ZERO,
            scale_down_delay: Duration::ZERO,
            initial_scale: 1,
            allow_zero_initial_scale: false,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
            class: CLASS_KPA.to_owned(),
        }
    }
}

impl Autoscaler {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used; the caller keeps the settings it had.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let default = Self::default();
        let percentage = read.number(
            "container-concurrency-target-percentage",
            70.0,
            |x| x > 0.0 && x <= 100.0,
            "above 0 and up to 100",
        )?;
        let at_least = |x: f64| x >= LEAST_TARGET;
        read.number("activator-capacity", 100.0, |x| x >= 1.0, "of at least 1")?;
        let settings = Self {
            // A value up to 1 has always been read as a fraction.
            target_utilization: if percentage > 1.0 { percentage / 100.0 } else { percentage },
            concurrency_target: read.number(
                "container-concurrency-target-default",
                default.concurrency_target,
                at_least,
                "of at least 0.01",
            )?,
            rps_target: read.number(
                "requests-per-second-target-default",
                default.rps_target,
                at_least,
                "of at least 0.01",
            )?,
            target_burst_capacity: read.number(
                "target-burst-capacity",
                default.target_burst_capacity,
                |x| x >= 0.0 || x == -1.0,
                "of at least 0, or -1",
            )?,
            stable_window: read.seconds("stable-window", default.stable_window, LEAST_WINDOW, MOST_WINDOW)?,
            panic_window_percentage: read.number(
                "panic-window-percentage",
                default.panic_window_percentage,
                |x| (1.0..=100.0).contains(&x),
                "from 1 to 100",
            )?,
            panic_threshold_percentage: read.number(
                "panic-threshold-percentage",
                default.panic_threshold_percentage,
                |x| (110.0..=1_000.0).contains(&x),
                "from 110 to 1000",
            )?,
            max_scale_up_rate: read.number("max-scale-up-rate", default.max_scale_up_rate, |x| x > 1.0, "above 1")?,
            max_scale_down_rate: read.number(
                "max-scale-down-rate",
                default.max_scale_down_rate,
                |x| x > 1.0,
                "above 1",
            )?,
            enable_scale_to_zero: read.truth("enable-scale-to-zero", true)?,
            scale_to_zero_grace_period: read.time(
                "scale-to-zero-grace-period",
                default.scale_to_zero_grace_period,
                Duration::from_millis(1),
                MOST_TIME,
            )?,
            scale_to_zero_pod_retention_period: read.time(
                "scale-to-zero-pod-retention-period",
                Duration::ZERO,
                Duration::ZERO,
                MOST_TIME,
            )?,
            scale_down_delay: read.seconds("scale-down-delay", Duration::ZERO, Duration::ZERO, MOST_TIME)?,
            initial_scale: read.count("initial-scale", default.initial_scale)?,
            allow_zero_initial_scale: read.truth("allow-zero-initial-scale", false)?,
            min_scale: read.count("min-scale", 0)?,
            max_scale: read.count("max-scale", 0)?,
            max_scale_limit: read.count("max-scale-limit", 0)?,
            class: read.value("pod-autoscaler-class", default.class, "a class", |text| {
                (!text.is_empty()).then(|| text.to_owned())
            })?,
        };
        settings.check(&read)?;
        Ok(settings)
    }

    /// What keys must be to each other.
    fn check(&self, read: &Reader<'_>) -> Result<(), SettingError> {
        if self.target_utilization * self.concurrency_target < LEAST_TARGET {
            let wanted = "enough: times container-concurrency-target-percentage it must be at least 0.01";
            return Err(read.error("container-concurrency-target-default", self.concurrency_target, wanted));
        }
        if self.initial_scale == 0 && !self.allow_zero_initial_scale {
            let wanted = "at least 1 while allow-zero-initial-scale is false";
            return Err(read.error("initial-scale", self.initial_scale, wanted));
        }
        let limit = self.max_scale_limit;
        if limit > 0 && !(1..=limit).contains(&self.max_scale) {
            return Err(read.error("max-scale", self.max_scale, format!("from 1 to max-scale-limit ({limit})")));
        }
        if self.max_scale > 0 && self.min_scale > self.max_scale {
            return Err(read.error("min-scale", self.min_scale, format!("at most max-scale ({})", self.max_scale)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &[(&str, &str)]) -> Result<Autoscaler, String> {
        let data = entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Autoscaler::parse(&data).map_err(|error| error.to_string())
    }

    #[test]
    fn values_are_read_and_wrong_ones_named() {
        let settings = parse(&[
            ("_example", "..."),
            ("container-concurrency-target-percentage", "0.5"),
            ("stable-window", "90s"),
            ("enable-scale-to-zero", "false"),
        ]);
        let settings = settings.unwrap();
        assert_eq!(settings.target_utilization, 0.5);
        assert_eq!(settings.stable_window, Duration::from_secs(90));
        assert!(!settings.enable_scale_to_zero);
        assert_eq!(parse(&[]), Ok(Autoscaler::default()));
        let rows = [
            (&[("max-scale-up-rate", "1")][..], "max-scale-up-rate = \"1\" is not a number above 1"),
            (
                &[("stable-window", "5s")],
                "stable-window = \"5s\" is not a duration from 6s to 3600s in whole seconds, such as 90s or 1h",
            ),
            (
                &[("initial-scale", "0")],
                "initial-scale = \"0\" is not at least 1 while allow-zero-initial-scale is false",
            ),
            (&[("max-scale-limit", "5")], "max-scale = \"0\" is not from 1 to max-scale-limit (5)"),
            (&[("min-scale", "3"), ("max-scale", "2")], "min-scale = \"3\" is not at most max-scale (2)"),
        ];
        for (entries, wanted) in rows {
            assert_eq!(parse(entries), Err(format!("config-autoscaler: {wanted}")));
        }
    }
}
