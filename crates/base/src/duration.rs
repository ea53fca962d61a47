//! Durations as Go writes them: `90s`, `1h30m`, `1.5s`; and as kubectl shows them to people.

use std::time::Duration;

/// Units that Go's `time.ParseDuration` knows, in nanoseconds; longer names first.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("\u{b5}s", 1e3),
    ("\u{3bc}s", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// Signed nanoseconds of a duration such as `1h30m`, `-1s`, `1.5s` or `0`; `None` when it is not one.
pub fn parse_nanoseconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|end| *end > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, scale) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        total += number * scale;
        rest = &rest[unit.len()..];
    }
    let nanoseconds = (sign * total).round();
    // 2^63 is the first value that does not fit.
    (nanoseconds.abs() < 9_223_372_036_854_775_808.0).then_some(nanoseconds as i64)
}

/// A duration that is not negative; `None` when `text` is not one.
pub fn parse(text: &str) -> Option<Duration> {
    parse_nanoseconds(text).and_then(|nanoseconds| u64::try_from(nanoseconds).ok()).map(Duration::from_nanos)
}

/// A time as people read it, such as the age of an object: `45s`, `3m20s`, `5h`, `2d3h`, `100d`, `2y10d`.
///
/// Source: `k8s.io/apimachinery/pkg/util/duration`, `HumanDuration`.
pub fn human(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let pair = |big: i64, big_unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{big_unit}") } else { format!("{big}{big_unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..0 => "0s".into(),
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => pair(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => pair(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => pair(s / DAY, "d", s % DAY / HOUR, "h"),
        s if s < 2 * YEAR => format!("{}d", s / DAY),
        s if s < 8 * YEAR => pair(s / YEAR, "y", s % YEAR / DAY, "d"),
        s => format!("{}y", s / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_as_in_go() {
        let rows = [
            ("60s", Some(60_000_000_000)),
            ("1h0m0s", Some(3_600_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("7500ms", Some(7_500_000_000)),
            ("-1s", Some(-1_000_000_000)),
            ("+1us", Some(1_000)),
            (".5s", Some(500_000_000)),
            ("0", Some(0)),
            ("61m", Some(3_660_000_000_000)),
            ("", None),
            ("x", None),
            ("5", None),
            ("s", None),
            ("1d", None),
            (".s", None),
            ("1..2s", None),
            ("9999999999h", None),
        ];
        for (text, wanted) in rows {
            assert_eq!(parse_nanoseconds(text), wanted, "{text:?}");
        }
        assert_eq!(parse("-1s"), None);
    }

    #[test]
    fn times_read_as_kubectl_prints_them() {
        let rows = [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (3600, "60m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 120, "3h2m"),
            (9 * 3600, "9h"),
            (50 * 3600, "2d2h"),
            (100 * 86400, "100d"),
            (740 * 86400, "2y10d"),
        ];
        for (seconds, wanted) in rows {
            assert_eq!(human(seconds), wanted, "{seconds}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,24}") {
            let _ = parse_nanoseconds(&text);
        }
    }
}
