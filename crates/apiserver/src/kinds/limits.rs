//! LimitRanges and ResourceQuotas.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core`.

use serde_json::{Value, json};

use super::json::{at, child, entries, items, items_mut, text};
use super::{Faults, Rules, quantity};
use crate::resource::FieldError;

pub const RANGES: Rules = Rules {
    default: |range| {
        for limit in items_mut(range, "spec.limits").filter(|limit| text(limit, "type") == "Container") {
            inherit(limit, "default", "max");
            inherit(limit, "defaultRequest", "default");
            inherit(limit, "defaultRequest", "min");
        }
    },
    validate: |range, faults| {
        for (index, limit) in items(range, "spec.limits").iter().enumerate() {
            validate_limit(limit, &format!("spec.limits[{index}]"), faults);
        }
    },
    ..Rules::NONE
};

pub const QUOTAS: Rules = Rules { validate: validate_quota, ..Rules::NONE };

/// Fills amounts that `to` does not state from `from`.
fn inherit(limit: &mut Value, to: &str, from: &str) {
    let amounts = at(limit, from).as_object().cloned().unwrap_or_default();
    if amounts.is_empty() {
        return;
    }
    if let Some(Value::Object(target)) = child(limit, to) {
        for (name, amount) in amounts {
            target.entry(name).or_insert(amount);
        }
    }
}

fn validate_limit(limit: &Value, path: &str, faults: &mut Faults) {
    let names: std::collections::BTreeSet<&String> = ["max", "min", "default", "defaultRequest"]
        .iter()
        .flat_map(|list| entries(limit, list).map(|(name, _)| name))
        .collect();
    let amount = |list: &str, name: &str| at(limit, list).get(name).and_then(Value::as_str);
    for name in names {
        let [max, min, default, request] = ["max", "min", "default", "defaultRequest"].map(|list| amount(list, name));
        let mut ordered = |field: &str, shown: Option<&str>, low: (Option<&str>, &str), high: (Option<&str>, &str)| {
            let (Some(small), Some(large)) = (low.0, high.0) else { return };
            let exceeds = matches!((quantity::nanos(small), quantity::nanos(large)), (Ok(a), Ok(b)) if a > b);
            if exceeds {
                let why = format!("{} value {small} is greater than {} value {large}", low.1, high.1);
                faults.push(FieldError::invalid(format!("{path}.{field}[{name}]"), shown.unwrap_or_default(), why));
            }
        };
        ordered("min", min, (min, "min"), (max, "max"));
        ordered("defaultRequest", request, (min, "min"), (request, "default request"));
        ordered("defaultRequest", request, (request, "default request"), (max, "max"));
        ordered("defaultRequest", request, (request, "default request"), (default, "default limit"));
        ordered("default", min, (min, "min"), (default, "default"));
        ordered("default", max, (default, "default"), (max, "max"));
    }
}

/// Resources that quotas count without a prefix.
const STANDARD: [&str; 20] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
    "storage",
];

fn validate_quota(quota: &Value, faults: &mut Faults) {
    for (name, amount) in entries(quota, "spec.hard") {
        let path = format!("spec.hard[{name}]");
        if !name.contains('/') && !STANDARD.contains(&name.as_str()) {
            for why in ["must be a standard resource type or fully qualified", "must be a standard resource for quota"]
            {
                faults.push(FieldError::invalid(&*path, name.as_str(), why));
            }
        }
        let given = amount.as_str().unwrap_or_default();
        if quantity::nanos(given).is_ok_and(|amount| amount < 0) {
            faults.push(FieldError::invalid(path, given, "must be greater than or equal to 0"));
        }
    }
    let scopes = items(quota, "spec.scopes");
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|scope| scopes.contains(&json!(scope))) {
            faults.push(FieldError::invalid("spec.scopes", scopes.to_vec(), "conflicting scopes"));
        }
    }
    let known = [
        "BestEffort",
        "CrossNamespacePodAffinity",
        "NotBestEffort",
        "NotTerminating",
        "PriorityClass",
        "Terminating",
        "VolumeAttributesClass",
    ];
    for scope in scopes.iter().filter_map(Value::as_str).filter(|scope| !known.contains(scope)) {
        faults.push(FieldError::invalid("spec.scopes", scope, "unsupported scope"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_of_a_range_are_inherited_and_must_be_in_order() {
        let mut range = json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "2"}, "max": {"cpu": "1"}, "min": {"cpu": "3"}}]}});
        (RANGES.default)(&mut range);
        let mut faults = Vec::new();
        (RANGES.validate)(&range, &mut faults);
        let mut texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        texts.sort();
        assert_eq!(
            texts,
            [
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than max value 1",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": min value 3 is greater than default request value 2",
                "spec.limits[0].default[cpu]: Invalid value: \"1\": default value 2 is greater than max value 1",
                "spec.limits[0].default[cpu]: Invalid value: \"3\": min value 3 is greater than default value 2",
                "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 1",
            ]
        );
    }
}
