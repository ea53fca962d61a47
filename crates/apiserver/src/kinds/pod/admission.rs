//! What the reference's default admission plugins do to new pods, as far as it needs other objects: service
//! accounts, priority classes, runtime classes, limit ranges.
//!
//! Source: `k8s.io/kubernetes/plugin/pkg/admission/{serviceaccount,priority,limitranger}`, `runtimeclass`.
//!
//! Surprise: a missing service account named `default` is no fault here, because a controller makes it a moment
//! after the namespace; every other missing account is.

use serde_json::{Map, Value, json};

use super::{SYSTEM_PRIORITIES, mount_token, qos_class};
use crate::kinds::json::{at, child, entries, is_true, items, number, set, text};
use crate::kinds::quantity;

/// Reads other objects.
pub trait Lookup {
    /// One object; the namespace is empty for kinds without namespaces.
    fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value>;
    /// All objects of a kind in a namespace (or of a kind without namespaces).
    fn list(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value>;
}

/// Completes a new pod that [`crate::resource::Strategy::prepare_create`] has seen.
///
/// # Errors
///
/// Why the pod is forbidden.
pub fn admit(pod: &mut Value, namespace: &str, lookup: &dyn Lookup) -> Result<(), String> {
    limit_ranges(pod, namespace, lookup)?;
    priority(pod, lookup)?;
    runtime_class(pod, lookup)?;
    service_account(pod, namespace, lookup)?;
    let qos = qos_class(pod);
    if let Some(status) = pod.get_mut("status") {
        set(status, "qosClass", qos);
    }
    Ok(())
}

fn service_account(pod: &mut Value, namespace: &str, lookup: &dyn Lookup) -> Result<(), String> {
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    let name = text(spec, "serviceAccountName").to_string();
    let account = lookup.get("", "serviceaccounts", namespace, &name);
    if account.is_none() && name != "default" {
        return Err(format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        ));
    }
    let account = account.unwrap_or(Value::Null);
    if items(spec, "imagePullSecrets").is_empty() && !items(&account, "imagePullSecrets").is_empty() {
        set(spec, "imagePullSecrets", at(&account, "imagePullSecrets").clone());
    }
    let declined = match at(spec, "automountServiceAccountToken") {
        Value::Bool(wanted) => !wanted,
        _ => at(&account, "automountServiceAccountToken") == &json!(false),
    };
    if !declined {
        mount_token(spec);
    }
    Ok(())
}

fn priority(pod: &mut Value, lookup: &dyn Lookup) -> Result<(), String> {
    const GROUP: &str = "scheduling.k8s.io";
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    let name = text(spec, "priorityClassName").to_string();
    if SYSTEM_PRIORITIES.iter().any(|(known, _)| *known == name) {
        return Ok(());
    }
    let class = if name.is_empty() {
        let classes = lookup.list(GROUP, "priorityclasses", "");
        let Some(class) = classes.into_iter().find(|class| is_true(class, "globalDefault")) else { return Ok(()) };
        set(spec, "priorityClassName", text(&class, "metadata.name"));
        class
    } else {
        lookup
            .get(GROUP, "priorityclasses", "", &name)
            .ok_or_else(|| format!("no PriorityClass with name {name} was found"))?
    };
    set(spec, "priority", number(&class, "value").unwrap_or(0));
    let policy = text(&class, "preemptionPolicy");
    if !policy.is_empty() {
        set(spec, "preemptionPolicy", policy);
    }
    Ok(())
}

fn runtime_class(pod: &mut Value, lookup: &dyn Lookup) -> Result<(), String> {
    let name = text(pod, "spec.runtimeClassName").to_string();
    if name.is_empty() {
        return Ok(());
    }
    let class = lookup
        .get("node.k8s.io", "runtimeclasses", "", &name)
        .ok_or_else(|| format!("pod rejected: RuntimeClass \"{name}\" not found"))?;
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    let overhead = at(&class, "overhead.podFixed");
    if overhead.is_object() {
        set(spec, "overhead", overhead.clone());
    }
    for (key, value) in entries(&class, "scheduling.nodeSelector") {
        if let Some(selector) = child(spec, "nodeSelector") {
            set(selector, key, value.clone());
        }
    }
    for toleration in items(&class, "scheduling.tolerations") {
        super::push(spec, "tolerations", toleration.clone());
    }
    Ok(())
}

fn limit_ranges(pod: &mut Value, namespace: &str, lookup: &dyn Lookup) -> Result<(), String> {
    let ranges = lookup.list("", "limitranges", namespace);
    let limits: Vec<&Value> = ranges.iter().flat_map(|range| items(range, "spec.limits")).collect();
    let of_containers: Vec<&Value> = limits.into_iter().filter(|limit| text(limit, "type") == "Container").collect();
    if of_containers.is_empty() {
        return Ok(());
    }
    let mut notes = Vec::new();
    let Some(spec) = pod.get_mut("spec") else { return Ok(()) };
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        for container in crate::kinds::json::items_mut(spec, list) {
            for limit in &of_containers {
                fill_amounts(container, limit, word, &mut notes);
            }
        }
    }
    let mut faults = Vec::new();
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            of_containers.iter().for_each(|limit| check_amounts(container, limit, &mut faults));
        }
    }
    if !notes.is_empty()
        && let Some(metadata) = pod.get_mut("metadata")
        && let Some(annotations) = child(metadata, "annotations")
    {
        set(annotations, "kubernetes.io/limit-ranger", format!("LimitRanger plugin set: {}", notes.join("; ")));
    }
    match faults.as_slice() {
        [] => Ok(()),
        [only] => Err(only.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

fn fill_amounts(container: &mut Value, limit: &Value, word: &str, notes: &mut Vec<String>) {
    let name = text(container, "name").to_string();
    for (which, from, noun) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
        let defaults: Map<String, Value> = at(limit, from).as_object().cloned().unwrap_or_default();
        let Some(resources) = child(container, "resources") else { continue };
        let missing: Vec<(String, Value)> =
            defaults.into_iter().filter(|(key, _)| at(resources, which).get(key).is_none()).collect();
        if missing.is_empty() {
            continue;
        }
        let mut keys: Vec<&str> = missing.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        notes.push(format!("{} {noun} for {word} {name}", keys.join(", ")));
        if let Some(Value::Object(amounts)) = child(resources, which) {
            amounts.extend(missing);
        }
    }
}

fn check_amounts(container: &Value, limit: &Value, faults: &mut Vec<String>) {
    let amount = |which: &str, name: &str| {
        let given = at(at(container, "resources"), which).get(name).and_then(Value::as_str)?;
        Some((given.to_string(), quantity::nanos(given).ok()?))
    };
    let bound = |value: &Value| value.as_str().and_then(|text| Some((text.to_string(), quantity::nanos(text).ok()?)));
    for (name, value) in entries(limit, "min") {
        let Some((shown, least)) = bound(value) else { continue };
        let head = format!("minimum {name} usage per Container is {shown}");
        match (amount("requests", name), amount("limits", name)) {
            (None, _) => faults.push(format!("{head}.  No request is specified")),
            (Some((given, request)), _) if request < least => faults.push(format!("{head}, but request is {given}")),
            (_, Some((given, most))) if most < least => faults.push(format!("{head}, but limit is {given}")),
            _ => {}
        }
    }
    for (name, value) in entries(limit, "max") {
        let Some((shown, most)) = bound(value) else { continue };
        let head = format!("maximum {name} usage per Container is {shown}");
        match (amount("limits", name), amount("requests", name)) {
            (None, _) => faults.push(format!("{head}.  No limit is specified")),
            (Some((given, limit)), _) if limit > most => faults.push(format!("{head}, but limit is {given}")),
            (_, Some((given, request))) if request > most => faults.push(format!("{head}, but request is {given}")),
            _ => {}
        }
    }
    for (name, value) in entries(limit, "maxLimitRequestRatio") {
        let (Some((shown, ratio)), Some((_, limit)), Some((_, request))) =
            (bound(value), amount("limits", name), amount("requests", name))
        else {
            continue;
        };
        if request > 0 && limit.saturating_mul(1_000_000_000) > ratio.saturating_mul(request) {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
            let given = limit as f64 / request as f64;
            faults.push(format!(
                "{name} max limit to request ratio per Container is {shown}, but provided ratio is {given:.6}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Objects(Vec<(&'static str, Value)>);

    impl Lookup for Objects {
        fn get(&self, _group: &str, plural: &str, _namespace: &str, name: &str) -> Option<Value> {
            let found = self.0.iter().find(|(kind, object)| *kind == plural && text(object, "metadata.name") == name);
            found.map(|(_, object)| object.clone())
        }

        fn list(&self, _group: &str, plural: &str, _namespace: &str) -> Vec<Value> {
            self.0.iter().filter(|(kind, _)| *kind == plural).map(|(_, object)| object.clone()).collect()
        }
    }

    fn pod(resources: Value) -> Value {
        json!({"metadata": {"name": "p"}, "status": {}, "spec": {"serviceAccountName": "default", "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "x", "resources": resources}]}})
    }

    fn range() -> Objects {
        Objects(vec![(
            "limitranges",
            json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"},
                "max": {"cpu": "1"}, "min": {"cpu": "50m"}, "maxLimitRequestRatio": {"cpu": "10"}}]}}),
        )])
    }

    #[test]
    fn a_limit_range_fills_amounts_in_and_refuses_others() {
        let mut plain = pod(json!({}));
        assert_eq!(admit(&mut plain, "ns", &range()), Ok(()));
        assert_eq!(
            plain["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            plain["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
        let rows = [
            (
                json!({"limits": {"cpu": "2"}, "requests": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (
                json!({"limits": {"cpu": "20m"}, "requests": {"cpu": "10m"}}),
                "minimum cpu usage per Container is 50m, but request is 10m",
            ),
            (
                json!({"limits": {"cpu": "1"}, "requests": {"cpu": "50m"}}),
                "cpu max limit to request ratio per Container is 10, but provided ratio is 20.000000",
            ),
        ];
        for (resources, wanted) in rows {
            assert_eq!(admit(&mut pod(resources), "ns", &range()), Err(wanted.to_string()));
        }
    }

    #[test]
    fn what_a_pod_refers_to_must_exist() {
        let refused = |name: &str, value: &str| {
            let mut pod = pod(json!({}));
            pod["spec"][name] = json!(value);
            admit(&mut pod, "ns", &Objects(Vec::new()))
        };
        assert_eq!(refused("priorityClassName", "none"), Err("no PriorityClass with name none was found".into()));
        assert_eq!(
            refused("serviceAccountName", "none"),
            Err("error looking up service account ns/none: serviceaccount \"none\" not found".into())
        );
        assert_eq!(refused("runtimeClassName", "none"), Err("pod rejected: RuntimeClass \"none\" not found".into()));
        assert_eq!(refused("serviceAccountName", "default"), Ok(()));
    }
}
