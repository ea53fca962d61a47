//! Traffic targets.

use std::collections::BTreeMap;

use serde_json::Value;

use super::errors::Errors;
use super::{Kind, label_error, text};

/// Checks the targets of a Service or a Route.
pub(super) fn validate(kind: Kind, traffic: Option<&Value>, errors: &mut Errors) {
    let targets = traffic.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut sum = 0_i64;
    let mut tags = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let path = format!("spec.traffic[{index}]");
        if let Some(percent) = target["percent"].as_i64() {
            sum = sum.saturating_add(percent);
            if !(0..=100).contains(&percent) {
                errors.out_of_bounds(percent, 0, 100, format!("{path}.percent"));
            }
        }
        tag(target, index, &mut tags, errors);
        names(kind, target, &path, errors);
        if !text(target, "url").is_empty() {
            errors.disallowed(format!("{path}.url"));
        }
    }
    if sum != 100 {
        errors.add(format!("Traffic targets sum to {sum}, want 100"), "spec.traffic");
    }
}

fn tag<'a>(target: &'a Value, index: usize, tags: &mut BTreeMap<&'a str, usize>, errors: &mut Errors) {
    let tag = text(target, "tag");
    if tag.is_empty() {
        return;
    }
    if let Some(problem) = label_error(tag) {
        errors.invalid(problem, format!("spec.traffic.tag[{index}]"));
    }
    if let Some(first) = tags.insert(tag, index) {
        let message = format!("Multiple definitions for {tag:?}");
        errors.add(message.clone(), format!("spec.traffic[{first}].tag"));
        errors.add(message, format!("spec.traffic[{index}].tag"));
    }
}

fn names(kind: Kind, target: &Value, path: &str, errors: &mut Errors) {
    let revision = text(target, "revisionName");
    let configuration = text(target, "configurationName");
    let latest = target["latestRevision"].as_bool();
    let (revision_path, configuration_path) = (format!("{path}.revisionName"), format!("{path}.configurationName"));
    match (kind, revision.is_empty(), configuration.is_empty()) {
        (Kind::Service, _, false) => errors.disallowed(configuration_path),
        (Kind::Route, true, true) => {
            errors.add("expected exactly one, got neither", configuration_path);
            errors.add("expected exactly one, got neither", revision_path);
        }
        (Kind::Route, false, false) => {
            errors.add("expected exactly one, got both", configuration_path);
            errors.add("expected exactly one, got both", revision_path);
        }
        _ => {}
    }
    if let Some(latest) = latest.filter(|latest| *latest != revision.is_empty()) {
        let message = format!("may not set revisionName {revision:?} when latestRevision is {latest}");
        errors.add(message, format!("{path}.latestRevision"));
    }
}
