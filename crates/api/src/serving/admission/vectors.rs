//! What the reference answered, row by row.

use serde_json::Value;

use super::{Kind, Settings, default, validate};

/// Rows that must pass: those with the shipped configuration, of the kinds here.
const FLOOR: usize = 323;

/// Admits a row's object as the API server would; the first difference from the recording.
fn check(row: &Value, kind: Kind) -> Result<(), String> {
    let settings = Settings::default();
    let mut object = row["object"].clone();
    let old = row.get("old").filter(|old| !old.is_null());
    default(kind, &mut object, old, "tester", &settings);
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
    let error = validate(kind, &object, old, &settings).err().unwrap_or_default();
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

#[test]
fn vectors_serving_admission() {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
    let folder = std::env::var("COLIBRI_VECTORS").unwrap_or_else(|_| default.to_owned());
    let Ok(text) = std::fs::read_to_string(format!("{folder}/serving_admission.json")) else {
        println!("skipped: no serving_admission.json in {folder}");
        return;
    };
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!rows.is_empty(), "serving_admission.json has no rows");
    let mut passed = 0;
    for row in &rows {
        let Some(kind) = row["kind"].as_str().and_then(Kind::parse) else { continue };
        match check(row, kind) {
            Ok(()) => passed += 1,
            Err(why) => println!("{}: {why}", row["name"]),
        }
    }
    println!("serving_admission.json: {} rows, {passed} pass", rows.len());
    assert!(passed >= FLOOR, "{passed} rows pass, {FLOOR} did before");
}
