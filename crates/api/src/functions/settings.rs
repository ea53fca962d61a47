//! Durations and percentages of a Function, and how its `scaling` becomes Knative's annotations.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{FunctionSpec, Scaling};
use crate::serving::annotations::AUTOSCALING_PREFIX;

/// Shortest stable window that Knative allows.
const SHORTEST_WINDOW: Duration = Duration::from_secs(6);
/// Longest part of `idle` that becomes the window.
const LONGEST_WINDOW: Duration = Duration::from_secs(60);

/// A duration such as `1h`, `1m30s`, `2.5s` or `250ms`.
///
/// # Errors
///
/// A text with the cause and the cure.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let nanoseconds = base::duration::parse_nanoseconds(text).and_then(|signed| u64::try_from(signed).ok());
    let wrong = || format!("{text:?} is not a duration; write it with its unit, such as 250ms, 30s, 5m or 1h");
    nanoseconds.map(Duration::from_nanos).ok_or_else(wrong)
}

/// A share such as `70%`: from 1 to 100.
///
/// # Errors
///
/// A text with the cause and the cure.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<u32>().ok();
    let in_range = number.filter(|percent| (1..=100).contains(percent));
    in_range.ok_or_else(|| format!("{text:?} is not a percentage from 1% to 100%; write it like 70%"))
}

/// The autoscaler's annotations for a Function.
///
/// `idle` is the time from the last request to zero: up to a minute of it is the window in which demand is averaged
/// (at least 6 s), the rest is how long the last instance is kept after that. What cannot be parsed is left out:
/// validation has refused it.
pub fn autoscaling_annotations(scaling: &Scaling) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        annotations.insert(format!("{AUTOSCALING_PREFIX}{name}"), value);
    };
    if let Some(min) = scaling.min {
        set("min-scale", min.to_string());
    }
    if let Some(max) = scaling.max {
        set("max-scale", max.to_string());
    }
    if let Some(Ok(percent)) = scaling.target.as_deref().map(parse_percent) {
        set("target-utilization-percentage", percent.to_string());
    }
    if let Some(Ok(idle)) = scaling.idle.as_deref().map(parse_duration) {
        let window = idle.clamp(SHORTEST_WINDOW, LONGEST_WINDOW);
        let window = Duration::from_secs(whole_seconds(window));
        set("window", format!("{}s", window.as_secs()));
        let rest = whole_seconds(idle.saturating_sub(window));
        if rest > 0 {
            set("scale-to-zero-pod-retention-period", format!("{rest}s"));
        }
    }
    annotations
}

/// `timeoutSeconds` of the Revision: whole seconds, rounded up.
pub fn timeout_seconds(spec: &FunctionSpec) -> Option<i64> {
    timeout(spec).map(|timeout| i64::try_from(whole_seconds(timeout)).unwrap_or(i64::MAX))
}

/// Longest time of one invocation.
pub fn timeout(spec: &FunctionSpec) -> Option<Duration> {
    spec.timeout.as_deref().and_then(|text| parse_duration(text).ok())
}

/// Seconds, rounded up: the fields that they go into know no fractions.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let rows = [
            ("60s", Some(60_000)),
            ("1m30s", Some(90_000)),
            ("1h", Some(3_600_000)),
            ("250ms", Some(250)),
            ("2.5s", Some(2_500)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("60", None),
            ("s", None),
            ("1 s", None),
            ("-1s", None),
            ("1d", None),
            ("1..5s", None),
            ("99999999999999999999h", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse_duration(text).ok().map(|d| d.as_millis()), expected, "{text:?}");
        }
    }

    #[test]
    fn percentages() {
        for (text, expected) in
            [("70%", Some(70)), ("1", Some(1)), ("100%", Some(100)), ("0%", None), ("101%", None), ("x", None)]
        {
            assert_eq!(parse_percent(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn idle_is_split_into_window_and_retention() {
        let rows = [
            ("1s", "6s", None),
            ("6s", "6s", None),
            ("30s", "30s", None),
            ("60s", "60s", None),
            ("90s", "60s", Some("30s")),
            ("6500ms", "7s", None),
            ("1h", "60s", Some("3540s")),
        ];
        for (idle, window, retention) in rows {
            let annotations = autoscaling_annotations(&Scaling { idle: Some(idle.to_owned()), ..Scaling::default() });
            let get = |name: &str| annotations.get(&format!("{AUTOSCALING_PREFIX}{name}")).map(String::as_str);
            assert_eq!(get("window"), Some(window), "{idle}");
            assert_eq!(get("scale-to-zero-pod-retention-period"), retention, "{idle}");
        }
    }

    proptest::proptest! {
        #[test]
        fn parsers_never_panic(text in ".*") {
            let _ = parse_duration(&text);
            let _ = parse_percent(&text);
        }
    }
}
