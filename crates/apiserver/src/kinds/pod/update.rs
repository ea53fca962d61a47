//! What may change in a pod.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core/validation`, `ValidatePodUpdate`.

use serde_json::Value;

use crate::kinds::Faults;
use crate::kinds::json::{at, items, number, set, text};
use crate::resource::FieldError;

const ALLOWED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Faults of an update through the main path.
pub fn validate(new: &Value, old: &Value, faults: &mut Faults) {
    for list in ["containers", "initContainers"] {
        if items(at(new, "spec"), list).len() != items(at(old, "spec"), list).len() {
            // Nothing else can be compared then.
            faults.clear();
            faults.push(FieldError::forbidden(format!("spec.{list}"), "pod updates may not add or remove containers"));
            return;
        }
        for (index, container) in items(at(new, "spec"), list).iter().enumerate() {
            if text(container, "image").is_empty() {
                faults.push(FieldError::required(format!("spec.{list}[{index}].image"), ""));
            }
        }
    }
    deadline(new, old, faults);
    let gated = !items(old, "spec.schedulingGates").is_empty();
    gates(new, old, faults);
    tolerations(new, old, faults);
    if expected(new, old, gated) != *at(new, "spec") {
        faults.push(FieldError::forbidden("spec", ALLOWED));
    }
}

fn deadline(new: &Value, old: &Value, faults: &mut Faults) {
    const PATH: &str = "spec.activeDeadlineSeconds";
    match (number(new, PATH), number(old, PATH)) {
        (Some(wanted), Some(before)) if wanted > before => {
            faults.push(FieldError::invalid(PATH, wanted, "must be less than or equal to previous value"));
        }
        (None, Some(_)) => {
            faults.push(FieldError::invalid(PATH, Value::Null, "must not update from a positive integer to nil value"));
        }
        _ => {}
    }
}

fn gates(new: &Value, old: &Value, faults: &mut Faults) {
    for (index, gate) in items(new, "spec.schedulingGates").iter().enumerate() {
        if !items(old, "spec.schedulingGates").contains(gate) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{}'", text(gate, "name"));
            faults.push(FieldError::forbidden(format!("spec.schedulingGates[{index}].name"), why));
        }
    }
}

fn without_seconds(toleration: &Value) -> Value {
    let mut bare = toleration.clone();
    if let Some(map) = bare.as_object_mut() {
        map.remove("tolerationSeconds");
    }
    bare
}

fn tolerations(new: &Value, old: &Value, faults: &mut Faults) {
    let kept = |toleration: &Value| {
        let bare = without_seconds(toleration);
        items(new, "spec.tolerations").iter().any(|other| without_seconds(other) == bare)
    };
    if !items(old, "spec.tolerations").iter().all(kept) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        faults.push(FieldError::forbidden("spec.tolerations", why));
    }
}

/// The old spec with those changes of the new one that are allowed.
fn expected(new: &Value, old: &Value, gated: bool) -> Value {
    let (new, mut spec) = (at(new, "spec"), at(old, "spec").clone());
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = items(new, list).iter().map(|container| at(container, "image").clone()).collect();
        for (container, image) in crate::kinds::json::items_mut(&mut spec, list).zip(images) {
            put(container, "image", &image);
        }
    }
    for name in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        put(&mut spec, name, at(new, name));
    }
    if number(&spec, "terminationGracePeriodSeconds").is_some_and(|n| n < 0)
        && number(new, "terminationGracePeriodSeconds") == Some(1)
    {
        set(&mut spec, "terminationGracePeriodSeconds", 1);
    }
    if gated {
        // A pod that nobody schedules yet may be narrowed down: selectors only grow.
        let grown = crate::kinds::json::entries(&spec, "nodeSelector")
            .all(|(key, value)| at(new, "nodeSelector").get(key) == Some(value));
        if grown {
            put(&mut spec, "nodeSelector", at(new, "nodeSelector"));
        }
        if at(&spec, "affinity.nodeAffinity").is_null() {
            put(&mut spec, "affinity", at(new, "affinity"));
        }
    }
    spec
}

fn put(object: &mut Value, name: &str, value: &Value) {
    if value.is_null() {
        if let Some(map) = object.as_object_mut() {
            map.remove(name);
        }
    } else {
        set(object, name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(change: fn(&mut Value), wanted: &[&str]) {
        let old = json!({"spec": {
            "containers": [{"name": "c", "image": "a"}], "activeDeadlineSeconds": 100,
            "tolerations": [{"key": "a", "operator": "Exists"}], "restartPolicy": "Always"}});
        let mut new = old.clone();
        change(&mut new);
        let mut faults = Vec::new();
        validate(&new, &old, &mut faults);
        let texts: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(texts, wanted);
    }

    #[test]
    fn images_deadline_and_added_tolerations_may_change() {
        check(|_| {}, &[]);
        check(|pod| pod["spec"]["containers"][0]["image"] = json!("b"), &[]);
        check(|pod| pod["spec"]["activeDeadlineSeconds"] = json!(50), &[]);
        check(
            |pod| {
                pod["spec"]["tolerations"] =
                    json!([{"key": "a", "operator": "Exists", "tolerationSeconds": 5}, {"key": "n"}])
            },
            &[],
        );
    }

    #[test]
    fn nothing_else_may() {
        check(
            |pod| pod["spec"]["activeDeadlineSeconds"] = json!(500),
            &["spec.activeDeadlineSeconds: Invalid value: 500: must be less than or equal to previous value"],
        );
        check(
            |pod| pod["spec"]["tolerations"] = json!([]),
            &["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"],
        );
        check(
            |pod| pod["spec"]["containers"] = json!([{"name": "c", "image": "a"}, {"name": "d", "image": "x"}]),
            &["spec.containers: Forbidden: pod updates may not add or remove containers"],
        );
        check(|pod| pod["spec"]["restartPolicy"] = json!("Never"), &[&format!("spec: Forbidden: {ALLOWED}")]);
    }
}
