//! Columns of Tables.

use std::borrow::Cow;
use std::sync::Arc;

use base::duration;
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
        Ok(time) => json!(duration::human(now.as_second() - time.as_second())),
        Err(_) => json!("<unknown>"),
    }
}
