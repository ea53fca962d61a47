//! What the reference answered, row by row: a sample that lies here, and all of the shared vectors where they are.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Kind, Settings, default, validate};
use crate::config::{Autoscaler, Defaults, Features};

/// Rows that are decided otherwise on purpose, with the reason. None so far.
const EXCEPTIONS: &[(&str, &str)] = &[];

fn settings(row: &Value) -> Settings {
    let data = |key: &str| -> BTreeMap<String, String> {
        let data = row[key].as_object().into_iter().flatten();
        data.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    Settings {
        defaults: Defaults::parse(&data("config_defaults")).unwrap(),
        features: Features::parse(&data("config_features")).unwrap(),
        autoscaler: Autoscaler::parse(&data("config_autoscaler")).unwrap(),
        ..Settings::default()
    }
}

/// Admits a row's object as the API server would; the first difference from the recording.
fn check(row: &Value) -> Result<(), String> {
    let kind = row["kind"].as_str().and_then(Kind::parse).ok_or("unknown kind")?;
    let settings = settings(row);
    let mut object = row["object"].clone();
    let old = row.get("old").filter(|old| !old.is_null());
    let done = default(kind, &mut object, old, "tester", &settings);
    if let Some(wanted) = row["decode_error"].as_str() {
        return if done == Err(wanted.to_owned()) { Ok(()) } else { Err(format!("{done:?}, want {wanted}")) };
    }
    done.map_err(|error| format!("read: {error}"))?;
    let mut wanted = row["defaulted"].clone();
    for side in [&mut object, &mut wanted] {
        let empty = side["status"].as_object().is_none_or(|status| status.is_empty());
        if let Some(map) = side.as_object_mut().filter(|_| empty) {
            map.remove("status");
        }
    }
    if object != wanted {
        return Err(format!("defaulted\n  got  {object}\n  want {wanted}"));
    }
    let verdict = validate(kind, &object, old, &settings);
    let (error, warning) = (verdict.error.unwrap_or_default(), verdict.warnings.join("\n"));
    let wanted = row["warning"].as_str().unwrap_or_default();
    if warning != wanted {
        return Err(format!("warning\n  got  {warning:?}\n  want {wanted:?}"));
    }
    // A quoted difference between two structs is ours to word: the sentence before it counts, and the fields' names.
    let wanted = row["error"].as_str().unwrap_or_default();
    if let Some((sentence, difference)) = wanted.split_once("(-old +new)") {
        let fields = difference.lines().filter_map(|line| line.strip_suffix(':')?.rsplit(['.', '}']).next());
        let lower = error.to_lowercase();
        let named = fields.filter(|field| !field.is_empty()).all(|field| lower.contains(&field.to_lowercase()));
        return if error.starts_with(sentence) && named { Ok(()) } else { Err(format!("error\n  got  {error:?}")) };
    }
    if error != wanted {
        return Err(format!("error\n  got  {error:?}\n  want {}", row["error"]));
    }
    Ok(())
}

fn replay(name: &str, text: &str) {
    let rows: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(!rows.is_empty(), "{name} has no rows");
    let excepted = |row: &Value| EXCEPTIONS.iter().any(|(name, _)| row["name"] == *name);
    let (mut passed, mut failed) = (0, Vec::new());
    for row in rows.iter().filter(|row| !excepted(row)) {
        match check(row) {
            Ok(()) => passed += 1,
            Err(why) => failed.push(format!("{}: {why}", row["name"])),
        }
    }
    println!("{name}: {} rows, {passed} pass, {} exceptions", rows.len(), EXCEPTIONS.len());
    assert!(failed.is_empty(), "{} rows fail:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn admission_answers_as_the_reference_in_a_sample() {
    replay("sample.json", include_str!("sample.json"));
}

#[test]
fn vectors_serving_admission() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
    let folder = std::env::var("COLIBRI_VECTORS").unwrap_or_else(|_| default.to_owned());
    match std::fs::read_to_string(format!("{folder}/serving_admission.json")) {
        Ok(text) => replay("serving_admission.json", &text),
        Err(_) => println!("skipped: no serving_admission.json in {folder}"),
    }
}
