//! Traffic targets.
//!
//! Source: `knative/serving/pkg/apis/serving/v1/route_validation.go`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::errors::Errors;
use super::{Kind, names, text};

/// Checks the targets of a Service or a Route.
pub(super) fn validate(kind: Kind, traffic: &Value) -> Errors {
    let mut errors = Errors::default();
    let mut sum = 0_i64;
    let mut tags = BTreeMap::new();
    for (index, target) in traffic.as_array().into_iter().flatten().enumerate() {
        errors.also(self::target(kind, target).via(&format!("[{index}]")));
        sum = sum.saturating_add(target["percent"].as_i64().unwrap_or_default());
        let tag = text(target, "tag");
        if tag.is_empty() {
            continue;
        }
        let problems = names::dns1035_label(tag);
        if !problems.is_empty() {
            let path = format!("tag[{index}]");
            errors.invalid(format!("not a DNS 1035 label: [{}]", problems.join(" ")), &path);
        }
        if let Some(first) = tags.get(tag) {
            let paths = [format!("[{index}].tag"), format!("[{first}].tag")];
            errors.add(format!("Multiple definitions for {tag:?}"), paths.iter().map(String::as_str));
        } else {
            tags.insert(tag, index);
        }
    }
    if sum != 100 {
        errors.add(format!("Traffic targets sum to {sum}, want 100"), [""]);
    }
    errors
}

fn target(kind: Kind, target: &Value) -> Errors {
    let mut errors = Errors::default();
    let revision = text(target, "revisionName");
    let configuration = text(target, "configurationName");
    if let Some(latest) = target["latestRevision"].as_bool().filter(|latest| *latest != revision.is_empty()) {
        let message = format!("may not set revisionName {revision:?} when latestRevision is {latest}");
        errors.add(message, ["latestRevision"]);
    }
    let mut key = |name: &str, path: &str| {
        let problems = names::qualified(name);
        if !problems.is_empty() {
            errors.add_detailed(format!("invalid key name {name:?}"), [path], problems.join(", "));
        }
    };
    match (revision, configuration) {
        (_, configuration) if kind == Kind::Service && !configuration.is_empty() => {
            errors.disallowed("configurationName");
        }
        ("", "") if kind == Kind::Service => {}
        ("", "") => errors.missing_one_of(["revisionName", "configurationName"]),
        (revision, "") => key(revision, "revisionName"),
        ("", configuration) => key(configuration, "configurationName"),
        _ => errors.multiple_one_of(["revisionName", "configurationName"]),
    }
    if let Some(percent) = target["percent"].as_i64().filter(|percent| !(0..=100).contains(percent)) {
        errors.out_of_bounds(percent, 0, 100, "percent");
    }
    if !text(target, "url").is_empty() {
        errors.disallowed("url");
    }
    errors
}
