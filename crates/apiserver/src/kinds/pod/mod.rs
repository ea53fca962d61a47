//! Pods, and the pod templates inside other kinds.

pub mod admission;
mod columns;
pub mod defaults;
mod update;
pub mod validate;

use serde_json::{Value, json};

use super::json::{at, fill, is_true, items, number, set, text};
use super::{Faults, Rules};
use crate::resource::{Columns, FieldError};

/// Columns of Pods.
pub fn columns() -> Columns {
    columns::columns()
}

pub const RULES: Rules = Rules {
    default: defaults::pod,
    prepare_create,
    prepare_status: |new, _| sync_addresses(new),
    validate,
    validate_update: update::validate,
    validate_status,
    grace,
    ..Rules::NONE
};

/// Volume for the service account's token is named with this prefix and five random characters.
const TOKEN_VOLUME: &str = "kube-api-access-";
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Seconds of life of a mounted token: an hour, and seven seconds by which clients know it from one they asked for.
const TOKEN_SECONDS: i64 = 3607;
/// Priorities of the two classes that always exist.
const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// What the reference's default admission plugins and the pod strategy do to a new pod.
fn prepare_create(pod: &mut Value) {
    let qos = qos_class(pod);
    let gated = !items(pod, "spec.schedulingGates").is_empty();
    let mut status = json!({"phase": "Pending", "qosClass": qos});
    if gated {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        status["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "lastProbeTime": null,
            "lastTransitionTime": now,
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    set(pod, "status", status);
    let Some(spec) = pod.get_mut("spec") else { return };
    if text(spec, "serviceAccountName").is_empty() {
        set(spec, "serviceAccountName", "default");
    }
    let account = text(spec, "serviceAccountName").to_string();
    set(spec, "serviceAccount", account);
    let class = text(spec, "priorityClassName");
    let priority = SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == class).map_or(0, |(_, value)| *value);
    fill(spec, "priority", priority);
    fill(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate_node_faults(spec);
}

/// Pods leave a node that is lost for five minutes.
fn tolerate_node_faults(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = items(spec, "tolerations").iter().any(|toleration| {
            let (its_key, effect) = (text(toleration, "key"), text(toleration, "effect"));
            (its_key == key || its_key.is_empty() && text(toleration, "operator") == "Exists")
                && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            let toleration = json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
            push(spec, "tolerations", toleration);
        }
    }
}

fn push(object: &mut Value, name: &str, item: Value) {
    if let Some(map) = object.as_object_mut() {
        match map.get_mut(name).and_then(Value::as_array_mut) {
            Some(list) => list.push(item),
            None => {
                map.insert(name.to_string(), json!([item]));
            }
        }
    }
}

/// Mounts the service account's token into every container.
fn mount_token(spec: &mut Value) {
    let mounted =
        |container: &Value| items(container, "volumeMounts").iter().any(|m| text(m, "mountPath") == TOKEN_PATH);
    let lists = ["initContainers", "containers"];
    let all: Vec<&Value> = lists.iter().flat_map(|list| items(spec, list)).collect();
    if all.is_empty() || all.iter().all(|container| mounted(container)) {
        return;
    }
    let name = format!("{TOKEN_VOLUME}{}", random_suffix());
    for list in lists {
        for container in super::json::items_mut(spec, list) {
            if !mounted(container) {
                push(container, "volumeMounts", json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
            }
        }
    }
    push(
        spec,
        "volumes",
        json!({"name": name, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}),
    );
}

fn random_suffix() -> String {
    base::names::suffix(5, || {
        let mut byte = [0_u8];
        // Without randomness all pods use one name, which is unique within each pod all the same.
        let _ = getrandom::fill(&mut byte);
        byte[0]
    })
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
///
/// Source: `k8s.io/kubernetes/pkg/apis/core/v1/helper/qos`.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = || ["initContainers", "containers"].into_iter().flat_map(|list| items(at(pod, "spec"), list));
    let amount = |container: &Value, which: &str, name: &str| {
        at(at(container, "resources"), which)
            .get(name)
            .and_then(Value::as_str)
            .and_then(|text| super::quantity::nanos(text).ok())
    };
    let names = ["cpu", "memory"];
    let any = containers().any(|container| {
        names.iter().any(|name| {
            ["limits", "requests"].iter().any(|which| amount(container, which, name).is_some_and(|n| n > 0))
        })
    });
    let guaranteed = containers().all(|container| {
        names.iter().all(|name| {
            let limit = amount(container, "limits", name);
            limit.is_some_and(|n| n > 0) && amount(container, "requests", name).is_none_or(|n| Some(n) == limit)
        })
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// Keeps `podIP` and `podIPs` (and those of the host) in step.
fn sync_addresses(pod: &mut Value) {
    let Some(status) = pod.get_mut("status") else { return };
    for (one, many) in [("podIP", "podIPs"), ("hostIP", "hostIPs")] {
        let single = text(status, one).to_string();
        let first = items(status, many).first().map(|entry| text(entry, "ip").to_string());
        match (single.is_empty(), first) {
            (false, first) if first.as_deref() != Some(&single) => set(status, many, json!([{"ip": single}])),
            (true, Some(first)) => set(status, one, first),
            _ => {}
        }
    }
}

fn validate(pod: &Value, faults: &mut Faults) {
    validate::spec(at(pod, "spec"), "spec", faults);
    if !items(pod, "spec.ephemeralContainers").is_empty() && text(pod, "metadata.resourceVersion").is_empty() {
        faults.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
    let class = text(pod, "spec.priorityClassName");
    let priority = number(pod, "spec.priority");
    if let Some((_, wanted)) = SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == class)
        && priority.is_some_and(|priority| priority != *wanted)
    {
        faults.push(FieldError::forbidden("spec.priority", format!("must be {wanted}, the value of {class}")));
    }
}

fn validate_status(new: &Value, _old: &Value, faults: &mut Faults) {
    let addresses = items(new, "status.podIPs");
    let mut families = [0, 0];
    for (index, entry) in addresses.iter().enumerate() {
        match text(entry, "ip").parse::<std::net::IpAddr>() {
            Ok(address) => families[usize::from(address.is_ipv6())] += 1,
            Err(_) => faults.push(FieldError::invalid(
                format!("status.podIPs[{index}]"),
                text(entry, "ip"),
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            )),
        }
    }
    if families.iter().any(|count| *count > 1) {
        let shown: Vec<Value> = addresses.iter().map(|entry| json!({"IP": text(entry, "ip")})).collect();
        faults.push(FieldError::invalid("status.podIPs", shown, "may specify no more than one IP for each IP family"));
    }
    let nominated = text(new, "status.nominatedNodeName");
    if !nominated.is_empty() {
        for complaint in super::names::subdomain(nominated) {
            faults.push(FieldError::invalid("status.nominatedNodeName", nominated, complaint));
        }
    }
}

/// Seconds that a pod is given to end.
///
/// Source: `k8s.io/kubernetes/pkg/registry/core/pod/strategy.go`, `CheckGracefulDelete`.
fn grace(pod: &Value, asked: Option<i64>) -> Option<i64> {
    let unbound = text(pod, "spec.nodeName").is_empty();
    let finished = matches!(text(pod, "status.phase"), "Succeeded" | "Failed");
    if unbound || finished {
        return Some(0);
    }
    let seconds = asked.or_else(|| number(pod, "spec.terminationGracePeriodSeconds")).unwrap_or(0);
    Some(if seconds < 0 { 1 } else { seconds })
}

/// Whether a container is an init container that keeps running (a sidecar).
fn is_sidecar(container: &Value) -> bool {
    text(container, "restartPolicy") == "Always"
}

/// Whether the pod uses the node's network.
fn host_network(spec: &Value) -> bool {
    is_true(spec, "hostNetwork")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::schema::conform;

    fn created(mut pod: Value) -> Value {
        conform::normalise("core.v1.Pod", &mut pod);
        defaults::pod(&mut pod);
        prepare_create(&mut pod);
        let mut again = pod.clone();
        conform::normalise("core.v1.Pod", &mut again);
        defaults::pod(&mut again);
        assert_eq!(again, pod, "defaulting is idempotent");
        pod
    }

    #[test]
    fn a_minimal_pod_gets_the_reference_defaults() {
        let pod = created(json!({"metadata": {"name": "min"}, "spec": {
            "containers": [{"name": "c", "image": "example.com/app:1"}], "automountServiceAccountToken": false}}));
        let wanted = json!({
            "containers": [{"name": "c", "image": "example.com/app:1", "resources": {},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent"}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default", "serviceAccount": "default", "automountServiceAccountToken": false,
            "securityContext": {}, "schedulerName": "default-scheduler",
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority"});
        assert_eq!(pod["spec"], wanted);
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
    }

    #[test]
    fn the_token_is_mounted_once_into_every_container() {
        let mut pod = created(
            json!({"spec": {"containers": [{"name": "c", "image": "x"}], "initContainers": [{"name": "i", "image": "x"}]}}),
        );
        mount_token(&mut pod["spec"]);
        mount_token(&mut pod["spec"]);
        assert_eq!(pod["spec"]["volumes"].as_array().map(Vec::len), Some(1));
        for list in ["containers", "initContainers"] {
            assert_eq!(pod["spec"][list][0]["volumeMounts"][0]["name"], pod["spec"]["volumes"][0]["name"]);
        }
    }

    #[test]
    fn grace_follows_the_pod() {
        let rows = [
            (json!({"spec": {"terminationGracePeriodSeconds": 30}}), None, 0),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}), None, 30),
            (json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}}), Some(3), 3),
            (json!({"spec": {"nodeName": "n"}}), Some(-1), 1),
            (
                json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Failed"}}),
                None,
                0,
            ),
        ];
        for (pod, asked, wanted) in rows {
            assert_eq!(grace(&pod, asked), Some(wanted), "{pod}");
        }
    }

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let class = |resources: Value| qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}));
        assert_eq!(class(json!({})), "BestEffort");
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1024Mi"}})),
            "Guaranteed"
        );
        assert_eq!(class(json!({"requests": {"cpu": "100m"}})), "Burstable");
    }
}
