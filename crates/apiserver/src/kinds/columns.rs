//! Columns of Tables.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::text;
use crate::resource::{Column, Columns};

/// Cells of one object; the name and the age are added around them where the kind says so.
pub type Cells = fn(&Value, Timestamp) -> Vec<Value>;

/// Where the description of a column comes from.
#[derive(Clone, Copy, Debug)]
pub enum Doc {
    /// It is given here.
    Own(&'static str),
    /// It is that of a field: type and field name.
    Of(&'static str, &'static str),
    /// It is that of a field up to the given words, which the reference's own texts do not have yet.
    Head(&'static str, &'static str, &'static str),
}

impl Doc {
    /// That of an object's name.
    pub const NAME: Self = Self::Of("meta.v1.ObjectMeta", "name");
    /// That of an object's creation time.
    pub const AGE: Self = Self::Of("meta.v1.ObjectMeta", "creationTimestamp");

    fn text(self) -> &'static str {
        match self {
            Self::Own(text) => text,
            Self::Of(kind, field) => crate::openapi::field_description(kind, field),
            Self::Head(kind, field, end) => {
                let text = crate::openapi::field_description(kind, field);
                text.find(end).map_or(text, |at| &text[..at])
            }
        }
    }
}

/// A head: name, type, priority, description.
pub type Head = (&'static str, &'static str, i32, Doc);

/// The column of the name.
pub const NAME: Head = ("Name", "string", 0, Doc::NAME);
/// The column of the age.
pub const AGE: Head = ("Age", "string", 0, Doc::AGE);

/// Columns from heads and a function.
pub fn columns(heads: &[Head], cells: Cells) -> Columns {
    let definitions = heads
        .iter()
        .map(|(name, type_, priority, description)| Column {
            name: Cow::Borrowed(name),
            type_: Cow::Borrowed(type_),
            format: Cow::Borrowed(if *name == "Name" { "name" } else { "" }),
            description: Cow::Borrowed(description.text()),
            priority: *priority,
        })
        .collect();
    Columns { definitions, cells: Arc::new(cells) }
}

/// Name and age only.
pub fn plain() -> Columns {
    columns(&[NAME, AGE], |object, now| vec![json!(text(object, "metadata.name")), age(object, now)])
}

/// Labels as `a=b,c=d`, sorted; empty if there are none.
pub fn labels(map: &Value) -> String {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    pairs.join(",")
}

/// A label selector as text: `a=b,c in (d,e)`; `<none>` if it is absent.
pub fn selector(selector: &Value) -> String {
    if selector.is_null() {
        return "<none>".into();
    }
    let mut terms: Vec<String> = Vec::new();
    let matched = labels(super::json::at(selector, "matchLabels"));
    if !matched.is_empty() {
        terms.push(matched);
    }
    for expression in super::json::items(selector, "matchExpressions") {
        let key = text(expression, "key");
        let mut values: Vec<&str> = super::json::items(expression, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        terms.push(match text(expression, "operator") {
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_string(),
            "DoesNotExist" => format!("!{key}"),
            _ => format!("{key} in ({values})"),
        });
    }
    if terms.is_empty() { "<none>".into() } else { terms.join(",") }
}

/// Time since creation as text, such as `5m`.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(text(object, "metadata.creationTimestamp"), now)
}

/// Time since a timestamp as text; `<unknown>` if there is none.
pub fn since(time: &str, now: Timestamp) -> Value {
    match time.parse::<Timestamp>() {
        Ok(time) => json!(human_duration(now.as_second() - time.as_second())),
        Err(_) => json!("<unknown>"),
    }
}

/// A duration as people read it: `45s`, `3m20s`, `5h`, `2d3h`, `100d`, `2y10d`.
///
/// Source: `k8s.io/apimachinery/pkg/util/duration`, `HumanDuration`.
pub fn human_duration(seconds: i64) -> String {
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

    #[test]
    fn durations_read_as_kubectl_prints_them() {
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
            assert_eq!(human_duration(seconds), wanted, "{seconds}");
        }
    }
}
