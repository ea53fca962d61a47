//! Printer columns of custom resources.

use std::sync::Arc;

use base::duration;
use jiff::Timestamp;
use serde_json::Value;

use super::text;
use crate::resource::{Column, Columns};

/// The columns of one version: the name, then those that the definition lists, or the age.
pub(super) fn columns(version: &Value) -> Columns {
    let mut definitions = vec![Column {
        name: "Name".into(),
        type_: "string".into(),
        format: "name".into(),
        description: crate::table::NAME.into(),
        priority: 0,
    }];
    let listed = version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default();
    let mut paths: Vec<(String, String)> = Vec::new();
    for column in &listed {
        let path = column["jsonPath"].as_str().unwrap_or_default().to_string();
        let type_ = column["type"].as_str().unwrap_or_default().to_string();
        let description = column["description"].as_str().map(str::to_string);
        definitions.push(Column {
            name: text(&column["name"]),
            type_: type_.clone().into(),
            format: text(&column["format"]),
            description: description
                .unwrap_or_else(|| format!("Custom resource definition column (in JSONPath format): {path}"))
                .into(),
            priority: i32::try_from(column["priority"].as_i64().unwrap_or(0)).unwrap_or(0),
        });
        paths.push((path, type_));
    }
    if listed.is_empty() {
        definitions.push(Column {
            name: "Age".into(),
            type_: "date".into(),
            format: "".into(),
            description: crate::table::CREATED.into(),
            priority: 0,
        });
        paths.push((".metadata.creationTimestamp".into(), "date".into()));
    }
    let cells = move |object: &Value, now: Timestamp| {
        let mut cells = vec![object["metadata"]["name"].clone()];
        cells.extend(paths.iter().map(|(path, type_)| cell(object, path, type_, now)));
        cells
    };
    Columns { definitions, cells: Arc::new(cells) }
}

fn cell(object: &Value, path: &str, type_: &str, now: Timestamp) -> Value {
    let found = find(object, path);
    let Some(first) = found.first() else { return Value::Null };
    match type_ {
        "date" => match first.as_str().and_then(|text| text.parse::<Timestamp>().ok()) {
            Some(time) => duration::human(now.as_second() - time.as_second()).into(),
            None => "<invalid>".into(),
        },
        "integer" => match first {
            Value::Number(n) => {
                n.as_i64().map_or_else(|| n.as_f64().map_or(Value::Null, |f| (f as i64).into()), Into::into)
            }
            _ => Value::Null,
        },
        "number" => {
            if first.is_number() {
                (*first).clone()
            } else {
                Value::Null
            }
        }
        "boolean" => {
            if first.is_boolean() {
                (*first).clone()
            } else {
                Value::Null
            }
        }
        _ => {
            let shown: Vec<String> = found.iter().map(|value| plain(value)).collect();
            shown.join(" ").into()
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What a JSONPath finds: names, indices, `[*]` and one kind of filter, `[?(@.a=="b")]`.
pub fn find<'a>(object: &'a Value, path: &str) -> Vec<&'a Value> {
    let mut found = vec![object];
    let mut rest = path.trim_start_matches('$');
    while !rest.is_empty() && !found.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let Some(end) = closing(inner) else { return Vec::new() };
            let (step, tail) = (&inner[..end], &inner[end + 1..]);
            found = found.into_iter().flat_map(|value| bracket(value, step)).collect();
            rest = tail;
            continue;
        }
        let dotted = rest.trim_start_matches('.');
        let (name, tail) = next_name(dotted);
        if name.is_empty() {
            return Vec::new();
        }
        found = found
            .into_iter()
            .flat_map(|value| -> Vec<&'a Value> {
                if name == "*" {
                    return match value {
                        Value::Object(map) => map.values().collect(),
                        Value::Array(list) => list.iter().collect(),
                        _ => Vec::new(),
                    };
                }
                value.get(&name).into_iter().collect()
            })
            .collect();
        rest = tail;
    }
    found
}

/// A name up to the next dot or bracket; a backslash makes the next character part of it.
fn next_name(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => return (name, &text[at..]),
            c => name.push(c),
        }
    }
    (name, "")
}

fn closing(inner: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in inner.char_indices() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn bracket<'a>(value: &'a Value, step: &str) -> Vec<&'a Value> {
    let unquote = |text: &str| text.trim().trim_matches(['"', '\'']).to_string();
    if step == "*" {
        return value.as_array().into_iter().flatten().collect();
    }
    if let Some(filter) = step.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let Some((left, right)) = filter.split_once("==") else { return Vec::new() };
        let path = left.trim().trim_start_matches('@').to_string();
        let wanted = unquote(right);
        let matches = |item: &&Value| find(item, &path).first().is_some_and(|v| plain(v) == wanted);
        return value.as_array().into_iter().flatten().filter(matches).collect();
    }
    if let Ok(index) = step.parse::<i64>() {
        let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
        let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
        let at = if index < 0 { length + index } else { index };
        return usize::try_from(at).ok().and_then(|at| list.get(at)).into_iter().collect();
    }
    value.get(unquote(step)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_values() {
        let object = json!({
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "False"}]},
            "spec": {"list": [1, 2], "a.b": "dotted"},
        });
        let rows = [
            (".status.conditions[?(@.type==\"Ready\")].status", vec![json!("True")]),
            (".status.conditions[?(@.type=='X')].status", vec![json!("False")]),
            (".spec.list[*]", vec![json!(1), json!(2)]),
            (".spec.list[-1]", vec![json!(2)]),
            (".spec['a.b']", vec![json!("dotted")]),
            (".spec.a\\.b", vec![json!("dotted")]),
            (".none.x", vec![]),
        ];
        for (path, expected) in rows {
            let found: Vec<Value> = find(&object, path).into_iter().cloned().collect();
            assert_eq!(found, expected, "for {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_makes_the_finder_panic(path in "[.\\[\\]a-z*?@='\"0-9\\\\-]{0,40}") {
            let _ = find(&json!({"a": [1, {"b": 2}]}), &path);
        }
    }
}
