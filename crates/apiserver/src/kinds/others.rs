//! Small kinds: Leases, autoscalers, disruption budgets, network, storage, RBAC, priorities, webhooks.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::columns::{AGE, Doc, NAME, age, columns as make};
use super::json::{at, child, fill, items, items_mut, number, set, text};
use super::workloads::{at_most_all, int_or_percent};
use super::{Faults, Rules, names, remove};
use crate::resource::{Columns, FieldError};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const RBAC: &str = "rbac.authorization.k8s.io";

pub const LEASES: Rules = Rules {
    validate: |lease, faults| {
        if let Some(seconds) = number(lease, "spec.leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            faults.push(FieldError::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
        }
        if let Some(count) = number(lease, "spec.leaseTransitions").filter(|count| *count < 0) {
            faults.push(FieldError::invalid("spec.leaseTransitions", count, NOT_NEGATIVE));
        }
    },
    ..Rules::NONE
};

/// Columns of Leases.
pub fn lease_columns() -> Columns {
    make(&[NAME, ("Holder", "string", 0, Doc::Of("coordination.v1.LeaseSpec", "holderIdentity")), AGE], |lease, now| {
        vec![json!(text(lease, "metadata.name")), json!(text(lease, "spec.holderIdentity")), age(lease, now)]
    })
}

pub const AUTOSCALERS: Rules = Rules {
    default: |scaler| {
        let Some(spec) = scaler.get_mut("spec") else { return };
        fill(spec, "minReplicas", 1);
        if items(spec, "metrics").is_empty() {
            set(spec, "metrics", json!([cpu_metric(80)]));
        }
    },
    validate: validate_autoscaler,
    ..Rules::NONE
};

/// Version 1 knows processor use only; the stored form is version 2's.
pub const OLD_AUTOSCALERS: Rules = Rules {
    default: |scaler| {
        if let Some(spec) = scaler.get_mut("spec") {
            fill(spec, "minReplicas", 1);
        }
    },
    validate: validate_autoscaler,
    convert: Some((old_autoscaler_to_stored, stored_to_old_autoscaler)),
    ..Rules::NONE
};

fn cpu_metric(percent: i64) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}})
}

fn validate_autoscaler(scaler: &Value, faults: &mut Faults) {
    let spec = at(scaler, "spec");
    let (least, most) = (number(spec, "minReplicas").unwrap_or(1), number(spec, "maxReplicas").unwrap_or(0));
    if least < 1 {
        faults.push(FieldError::invalid("spec.minReplicas", least, "must be greater than or equal to 1"));
    }
    if most < 1 {
        faults.push(FieldError::invalid("spec.maxReplicas", most, "must be greater than 0"));
    } else if most < least {
        faults.push(FieldError::invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"));
    }
    for name in ["kind", "name"] {
        if text(at(spec, "scaleTargetRef"), name).is_empty() {
            faults.push(FieldError::required(format!("spec.scaleTargetRef.{name}"), ""));
        }
    }
}

const METRICS_ANNOTATION: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn old_autoscaler_to_stored(scaler: &mut Value) {
    if let Some(spec) = scaler.get_mut("spec") {
        if let Some(percent) = number(spec, "targetCPUUtilizationPercentage") {
            set(spec, "metrics", json!([cpu_metric(percent)]));
        }
        remove(spec, "targetCPUUtilizationPercentage");
    }
    let kept = at(scaler, "metadata.annotations").get(METRICS_ANNOTATION).and_then(Value::as_str).map(str::to_string);
    if let Some(annotations) = super::json::value_mut(scaler, "metadata.annotations") {
        remove(annotations, METRICS_ANNOTATION);
    }
    if let Some(Ok(Value::Array(more))) = kept.map(|text| serde_json::from_str(&text))
        && let Some(spec) = scaler.get_mut("spec")
    {
        let mut metrics = items(spec, "metrics").to_vec();
        metrics.extend(more);
        set(spec, "metrics", metrics);
    }
    let percent = number(scaler, "status.currentCPUUtilizationPercentage");
    if let Some(status) = scaler.get_mut("status") {
        remove(status, "currentCPUUtilizationPercentage");
        if let Some(percent) = percent {
            let current = json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent, "averageValue": "0"}}});
            set(status, "currentMetrics", json!([current]));
        }
    }
    super::schema::conform::normalise("autoscaling.v2.HorizontalPodAutoscaler", scaler);
}

fn stored_to_old_autoscaler(scaler: &mut Value) {
    let is_cpu = |metric: &Value| {
        text(metric, "resource.name") == "cpu" && number(metric, "resource.target.averageUtilization").is_some()
    };
    let mut others = Vec::new();
    if let Some(spec) = scaler.get_mut("spec") {
        let mut percent = None;
        for metric in items(spec, "metrics") {
            if percent.is_none() && is_cpu(metric) {
                percent = number(metric, "resource.target.averageUtilization");
            } else {
                others.push(metric.clone());
            }
        }
        if let Some(percent) = percent {
            set(spec, "targetCPUUtilizationPercentage", percent);
        }
        remove(spec, "metrics");
        remove(spec, "behavior");
    }
    if !others.is_empty()
        && let Some(metadata) = scaler.get_mut("metadata")
        && let Some(annotations) = child(metadata, "annotations")
    {
        set(annotations, METRICS_ANNOTATION, Value::Array(others).to_string());
    }
    if let Some(status) = scaler.get_mut("status") {
        let percent =
            items(status, "currentMetrics").iter().find_map(|m| number(m, "resource.current.averageUtilization"));
        if let Some(percent) = percent {
            set(status, "currentCPUUtilizationPercentage", percent);
        }
        remove(status, "currentMetrics");
        remove(status, "conditions");
    }
}

/// Columns of HorizontalPodAutoscalers of version 2.
pub fn autoscaler_columns() -> Columns {
    const SPEC: &str = "autoscaling.v2.HorizontalPodAutoscalerSpec";
    make(
        &[
            NAME,
            ("Reference", "string", 0, Doc::Of(SPEC, "scaleTargetRef")),
            ("Targets", "string", 0, Doc::Head(SPEC, "metrics", " If not set")),
            ("MinPods", "string", 0, Doc::Of(SPEC, "minReplicas")),
            ("MaxPods", "string", 0, Doc::Of(SPEC, "maxReplicas")),
            ("Replicas", "string", 0, Doc::Of("autoscaling.v2.HorizontalPodAutoscalerStatus", "currentReplicas")),
            AGE,
        ],
        |scaler, now| {
            let target = at(scaler, "spec.scaleTargetRef");
            let least = number(scaler, "spec.minReplicas").map_or("<unset>".to_string(), |n| n.to_string());
            vec![
                json!(text(scaler, "metadata.name")),
                json!(format!("{}/{}", text(target, "kind"), text(target, "name"))),
                json!(targets(scaler)),
                json!(least),
                json!(number(scaler, "spec.maxReplicas").unwrap_or(0)),
                json!(number(scaler, "status.currentReplicas").unwrap_or(0)),
                age(scaler, now),
            ]
        },
    )
}

fn targets(scaler: &Value) -> String {
    let percent = number(scaler, "spec.targetCPUUtilizationPercentage");
    if let Some(percent) = percent {
        let now = number(scaler, "status.currentCPUUtilizationPercentage");
        return format!("cpu: {}/{percent}%", now.map_or("<unknown>".into(), |n| format!("{n}%")));
    }
    let metrics = items(scaler, "spec.metrics");
    let shown: Vec<String> = metrics
        .iter()
        .enumerate()
        .map(|(index, metric)| {
            let current = items(scaler, "status.currentMetrics").get(index).unwrap_or(&Value::Null);
            target(metric, current)
        })
        .collect();
    match shown.len() {
        0 => "<none>".into(),
        1 | 2 => shown.join(", "),
        many => format!("{} + {} more...", shown[..2].join(", "), many - 2),
    }
}

fn target(metric: &Value, current: &Value) -> String {
    let (source, name) = match text(metric, "type") {
        "Resource" => ("resource", text(metric, "resource.name").to_string()),
        "ContainerResource" => ("containerResource", text(metric, "containerResource.name").to_string()),
        "Pods" => ("pods", String::new()),
        "Object" => ("object", String::new()),
        _ => ("external", String::new()),
    };
    let (wanted, now) = (at(at(metric, source), "target"), at(at(current, source), "current"));
    let value = match number(wanted, "averageUtilization") {
        Some(percent) => {
            let now = number(now, "averageUtilization").map_or("<unknown>".into(), |n| format!("{n}%"));
            format!("{now}/{percent}%")
        }
        None => {
            let field = if at(wanted, "averageValue").is_null() { "value" } else { "averageValue" };
            let now = match text(now, field) {
                "" => "<unknown>",
                now => now,
            };
            let average =
                if field == "averageValue" && source != "resource" && source != "pods" { " (avg)" } else { "" };
            format!("{now}/{}{average}", text(wanted, field))
        }
    };
    if name.is_empty() { value } else { format!("{name}: {value}") }
}

pub const BUDGETS: Rules = Rules {
    validate: |budget, faults| {
        let spec = at(budget, "spec");
        let (least, most) = (at(spec, "minAvailable"), at(spec, "maxUnavailable"));
        if !least.is_null() && !most.is_null() {
            let shown = json!({"MinAvailable": least, "Selector": at(spec, "selector"), "MaxUnavailable": most,
                "UnhealthyPodEvictionPolicy": at(spec, "unhealthyPodEvictionPolicy")});
            faults.push(FieldError::invalid("spec", shown, "minAvailable and maxUnavailable cannot be both set"));
        }
        for (name, value) in [("minAvailable", least), ("maxUnavailable", most)] {
            if !value.is_null() {
                let path = format!("spec.{name}");
                int_or_percent(value, &path, faults);
                at_most_all(value, &path, faults);
            }
        }
        let policy = text(spec, "unhealthyPodEvictionPolicy");
        if !matches!(policy, "" | "AlwaysAllow" | "IfHealthyBudget") {
            let known = ["AlwaysAllow", "IfHealthyBudget"];
            faults.push(FieldError::not_supported("spec.unhealthyPodEvictionPolicy", policy, &known));
        }
        super::pod::validate::label_selector(at(spec, "selector"), "spec.selector", faults);
    },
    ..Rules::NONE
};

/// Columns of PodDisruptionBudgets.
pub fn budget_columns() -> Columns {
    make(
        &[
            NAME,
            ("Min Available", "string", 0, Doc::Own("The minimum number of pods that must be available.")),
            ("Max Unavailable", "string", 0, Doc::Own("The maximum number of pods that may be unavailable.")),
            (
                "Allowed Disruptions",
                "integer",
                0,
                Doc::Own("Calculated number of pods that may be disrupted at this time."),
            ),
            AGE,
        ],
        |budget, now| {
            let shown = |name: &str| match at(at(budget, "spec"), name) {
                Value::Null => json!("N/A"),
                Value::String(text) => json!(text),
                other => json!(other.to_string()),
            };
            vec![
                json!(text(budget, "metadata.name")),
                shown("minAvailable"),
                shown("maxUnavailable"),
                json!(number(budget, "status.disruptionsAllowed").unwrap_or(0)),
                age(budget, now),
            ]
        },
    )
}

pub const INGRESSES: Rules = Rules { validate: validate_ingress, ..Rules::NONE };

fn validate_ingress(ingress: &Value, faults: &mut Faults) {
    let spec = at(ingress, "spec");
    let default = at(spec, "defaultBackend");
    if items(spec, "rules").is_empty() && default.is_null() {
        faults.push(FieldError::invalid("spec", Value::Null, "either `defaultBackend` or `rules` must be specified"));
    }
    if !default.is_null() {
        backend(default, "spec.defaultBackend", faults);
    }
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        let host = text(rule, "host");
        if host.parse::<IpAddr>().is_ok() {
            faults.push(FieldError::invalid(format!("{path}.host"), host, "must be a DNS name, not an IP address"));
        } else if !host.is_empty() {
            let plain = host.strip_prefix("*.").unwrap_or(host);
            faults.extend(
                names::subdomain(plain).into_iter().map(|why| FieldError::invalid(format!("{path}.host"), host, why)),
            );
        }
        let http = at(rule, "http");
        if http.is_null() {
            continue;
        }
        if items(http, "paths").is_empty() {
            faults.push(FieldError::required(format!("{path}.http.paths"), ""));
        }
        for (index, entry) in items(http, "paths").iter().enumerate() {
            ingress_path(entry, &format!("{path}.http.paths[{index}]"), faults);
        }
    }
}

fn ingress_path(entry: &Value, path: &str, faults: &mut Faults) {
    let given = text(entry, "path");
    match text(entry, "pathType") {
        "" => faults.push(FieldError::required(format!("{path}.pathType"), "pathType must be specified")),
        "Exact" | "Prefix" => {
            if !given.starts_with('/') {
                faults.push(FieldError::invalid(format!("{path}.path"), given, "must be an absolute path"));
            }
        }
        "ImplementationSpecific" => {
            if !given.is_empty() && !given.starts_with('/') {
                faults.push(FieldError::invalid(format!("{path}.path"), given, "must be an absolute path"));
            }
        }
        other => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            faults.push(FieldError::not_supported(format!("{path}.pathType"), other, &known));
        }
    }
    backend(at(entry, "backend"), &format!("{path}.backend"), faults);
}

fn backend(backend: &Value, path: &str, faults: &mut Faults) {
    let (service, resource) = (at(backend, "service"), at(backend, "resource"));
    match (service.is_null(), resource.is_null()) {
        (true, true) => faults.push(FieldError::invalid(path, "", "resource or service backend is required")),
        (false, false) => faults.push(FieldError::invalid(path, "", "cannot set both resource and service backends")),
        (true, false) => {}
        (false, true) => {
            if text(service, "name").is_empty() {
                faults.push(FieldError::required(format!("{path}.service.name"), ""));
            }
            if text(service, "port.name").is_empty() && number(service, "port.number").unwrap_or(0) == 0 {
                faults.push(FieldError::required(path, "port name or number is required"));
            }
        }
    }
}

/// Columns of Ingresses.
pub fn ingress_columns() -> Columns {
    make(
        &[
            NAME,
            (
                "Class",
                "string",
                0,
                Doc::Own("The name of the IngressClass resource that should be used for additional configuration"),
            ),
            (
                "Hosts",
                "string",
                0,
                Doc::Own("Hosts that incoming requests are matched against before the ingress rule"),
            ),
            ("Address", "string", 0, Doc::Own("Address is a list containing ingress points for the load-balancer")),
            ("Ports", "string", 0, Doc::Own("Ports of TLS configurations that open")),
            AGE,
        ],
        |ingress, now| {
            let class = match text(ingress, "spec.ingressClassName") {
                "" => "<none>",
                class => class,
            };
            let hosts: Vec<&str> = items(ingress, "spec.rules")
                .iter()
                .map(|rule| text(rule, "host"))
                .filter(|host| !host.is_empty())
                .collect();
            let hosts = match hosts.len() {
                0 => "*".to_string(),
                1..=3 => hosts.join(","),
                many => format!("{} + {} more...", hosts[..3].join(","), many - 3),
            };
            let addresses: Vec<&str> = items(ingress, "status.loadBalancer.ingress")
                .iter()
                .map(|entry| if text(entry, "ip").is_empty() { text(entry, "hostname") } else { text(entry, "ip") })
                .collect();
            let ports = if items(ingress, "spec.tls").is_empty() { "80" } else { "80, 443" };
            vec![
                json!(text(ingress, "metadata.name")),
                json!(class),
                json!(hosts),
                json!(addresses.join(",")),
                json!(ports),
                age(ingress, now),
            ]
        },
    )
}

pub const POLICIES: Rules = Rules {
    default: |policy| {
        let Some(spec) = policy.get_mut("spec") else { return };
        for list in ["ingress", "egress"] {
            for rule in items_mut(spec, list) {
                for port in items_mut(rule, "ports") {
                    fill(port, "protocol", "TCP");
                }
            }
        }
        if items(spec, "policyTypes").is_empty() {
            let both = !items(spec, "egress").is_empty();
            set(spec, "policyTypes", if both { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
        }
    },
    validate: |policy, faults| {
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in items(at(policy, "spec"), list).iter().enumerate() {
                for (peer, entry) in items(rule, peers).iter().enumerate() {
                    let path = format!("spec.{list}[{index}].{peers}[{peer}]");
                    if entry.as_object().is_none_or(serde_json::Map::is_empty) {
                        faults.push(FieldError::required(path, "must specify a peer"));
                    } else if !at(entry, "ipBlock").is_null() {
                        block(at(entry, "ipBlock"), &format!("{path}.ipBlock"), faults);
                    }
                }
            }
        }
    },
    ..Rules::NONE
};

fn is_cidr(given: &str) -> bool {
    let Some((address, bits)) = given.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn block(block: &Value, path: &str, faults: &mut Faults) {
    const WHY: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let cidr = text(block, "cidr");
    if cidr.is_empty() {
        faults.push(FieldError::required(format!("{path}.cidr"), ""));
    } else if !is_cidr(cidr) {
        faults.push(FieldError::invalid(format!("{path}.cidr"), cidr, WHY));
    }
    for (index, except) in items(block, "except").iter().enumerate() {
        let except = except.as_str().unwrap_or_default();
        if !is_cidr(except) {
            faults.push(FieldError::invalid(format!("{path}.except[{index}]"), except, WHY));
        }
    }
}

pub const STORAGE_CLASSES: Rules = Rules {
    default: |class| {
        fill(class, "reclaimPolicy", "Delete");
        fill(class, "volumeBindingMode", "Immediate");
    },
    validate: |class, faults| {
        if text(class, "provisioner").is_empty() {
            faults.push(FieldError::required("provisioner", ""));
        }
        let policy = text(class, "reclaimPolicy");
        if !matches!(policy, "Delete" | "Retain") {
            faults.push(FieldError::not_supported("reclaimPolicy", policy, &["Delete", "Retain"]));
        }
        let mode = text(class, "volumeBindingMode");
        if !matches!(mode, "Immediate" | "WaitForFirstConsumer") {
            faults.push(FieldError::not_supported("volumeBindingMode", mode, &["Immediate", "WaitForFirstConsumer"]));
        }
    },
    validate_update: |new, old, faults| {
        for name in ["parameters", "provisioner", "reclaimPolicy"] {
            if at(new, name) != at(old, name) {
                faults.push(FieldError::forbidden(name, format!("updates to {name} are forbidden.")));
            }
        }
        if at(new, "volumeBindingMode") != at(old, "volumeBindingMode") {
            let mode = at(new, "volumeBindingMode").clone();
            faults.push(FieldError::invalid("volumeBindingMode", mode, "field is immutable"));
        }
    },
    ..Rules::NONE
};

pub const PRIORITY_CLASSES: Rules = Rules {
    default: |class| fill(class, "preemptionPolicy", "PreemptLowerPriority"),
    validate: |class, faults| {
        let name = text(class, "metadata.name");
        if name.starts_with("system-") && !matches!(name, "system-cluster-critical" | "system-node-critical") {
            faults.push(FieldError::forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only",
            ));
        }
        let value = number(class, "value").unwrap_or(0);
        if value > 1_000_000_000 && !name.starts_with("system-") {
            faults
                .push(FieldError::forbidden("value", "maximum allowed value of a user defined priority is 1000000000"));
        }
    },
    validate_update: |new, old, faults| {
        if number(new, "value") != number(old, "value") {
            faults.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        if at(new, "preemptionPolicy") != at(old, "preemptionPolicy") {
            let given = at(new, "preemptionPolicy").clone();
            faults.push(FieldError::invalid("preemptionPolicy", given, "field is immutable"));
        }
    },
    ..Rules::NONE
};

pub const ROLES: Rules = Rules { validate: |role, faults| rules(role, true, faults), ..Rules::NONE };
pub const CLUSTER_ROLES: Rules = Rules { validate: |role, faults| rules(role, false, faults), ..Rules::NONE };
pub const BINDINGS: Rules = Rules {
    default: default_binding,
    validate: |binding, faults| validate_binding(binding, &["Role", "ClusterRole"], faults),
    validate_update: same_role,
    ..Rules::NONE
};
pub const CLUSTER_BINDINGS: Rules = Rules {
    default: default_binding,
    validate: |binding, faults| validate_binding(binding, &["ClusterRole"], faults),
    validate_update: same_role,
    ..Rules::NONE
};

fn rules(role: &Value, namespaced: bool, faults: &mut Faults) {
    for (index, rule) in items(role, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        if items(rule, "verbs").is_empty() {
            faults.push(FieldError::required(format!("{path}.verbs"), "verbs must contain at least one value"));
        }
        let urls = items(rule, "nonResourceURLs");
        if !urls.is_empty() {
            if namespaced {
                let why = "namespaced rules cannot apply to non-resource URLs";
                faults.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls.to_vec(), why));
            }
            let more = ["apiGroups", "resources", "resourceNames"].iter().any(|name| !items(rule, name).is_empty());
            if more {
                let why = "rules cannot apply to both regular resources and non-resource URLs";
                faults.push(FieldError::invalid(format!("{path}.nonResourceURLs"), urls.to_vec(), why));
            }
            continue;
        }
        if items(rule, "apiGroups").is_empty() {
            faults.push(FieldError::required(
                format!("{path}.apiGroups"),
                "resource rules must supply at least one api group",
            ));
        }
        if items(rule, "resources").is_empty() {
            faults.push(FieldError::required(
                format!("{path}.resources"),
                "resource rules must supply at least one resource",
            ));
        }
    }
}

fn default_binding(binding: &mut Value) {
    if let Some(role) = binding.get_mut("roleRef")
        && text(role, "apiGroup").is_empty()
    {
        set(role, "apiGroup", RBAC);
    }
    for subject in items_mut(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            fill(subject, "apiGroup", RBAC);
        }
    }
}

fn validate_binding(binding: &Value, kinds: &[&str], faults: &mut Faults) {
    let role = at(binding, "roleRef");
    if text(role, "apiGroup") != RBAC {
        faults.push(FieldError::not_supported("roleRef.apiGroup", text(role, "apiGroup"), &[RBAC]));
    }
    if !kinds.contains(&text(role, "kind")) {
        faults.push(FieldError::not_supported("roleRef.kind", text(role, "kind"), kinds));
    }
    if text(role, "name").is_empty() {
        faults.push(FieldError::required("roleRef.name", ""));
    }
    for (index, subject) in items(binding, "subjects").iter().enumerate() {
        let path = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        }
        let group = text(subject, "apiGroup");
        match text(subject, "kind") {
            "ServiceAccount" => {
                if !group.is_empty() {
                    faults.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[""]));
                }
                if text(subject, "namespace").is_empty() && kinds.len() == 1 {
                    faults.push(FieldError::required(format!("{path}.namespace"), ""));
                }
            }
            "User" | "Group" => {
                if group != RBAC {
                    faults.push(FieldError::not_supported(format!("{path}.apiGroup"), group, &[RBAC]));
                }
            }
            other => {
                let known = ["ServiceAccount", "User", "Group"];
                faults.push(FieldError::not_supported(format!("{path}.kind"), other, &known));
            }
        }
    }
}

fn same_role(new: &Value, old: &Value, faults: &mut Faults) {
    let role = at(new, "roleRef");
    if role != at(old, "roleRef") {
        let shown = json!({"APIGroup": text(role, "apiGroup"), "Kind": text(role, "kind"), "Name": text(role, "name")});
        faults.push(FieldError::invalid("roleRef", shown, "cannot change roleRef"));
    }
}

/// Columns of RoleBindings and ClusterRoleBindings.
pub fn binding_columns() -> Columns {
    make(
        &[
            NAME,
            ("Role", "string", 0, Doc::Head("rbac.v1.RoleBinding", "roleRef", " This field is immutable")),
            AGE,
            ("Users", "string", 1, Doc::Own("Users in the roleBinding")),
            ("Groups", "string", 1, Doc::Own("Groups in the roleBinding")),
            ("ServiceAccounts", "string", 1, Doc::Own("ServiceAccounts in the roleBinding")),
        ],
        |binding, now| {
            let subjects = |kind: &str| {
                let all = items(binding, "subjects").iter().filter(|subject| text(subject, "kind") == kind);
                let names: Vec<String> = all
                    .map(|subject| match text(subject, "namespace") {
                        "" => text(subject, "name").to_string(),
                        namespace => format!("{namespace}/{}", text(subject, "name")),
                    })
                    .collect();
                json!(names.join(", "))
            };
            vec![
                json!(text(binding, "metadata.name")),
                json!(format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name"))),
                age(binding, now),
                subjects("User"),
                subjects("Group"),
                subjects("ServiceAccount"),
            ]
        },
    )
}

/// Columns of Roles and ClusterRoles.
pub fn role_columns() -> Columns {
    make(&[NAME, ("Created At", "date", 0, Doc::AGE)], |role, _| {
        vec![json!(text(role, "metadata.name")), at(role, "metadata.creationTimestamp").clone()]
    })
}

pub const MUTATING_WEBHOOKS: Rules = Rules {
    default: |configuration| {
        default_webhooks(configuration);
        for webhook in items_mut(configuration, "webhooks") {
            fill(webhook, "reinvocationPolicy", "Never");
        }
    },
    validate: validate_webhooks,
    ..Rules::NONE
};

pub const VALIDATING_WEBHOOKS: Rules = Rules { default: default_webhooks, validate: validate_webhooks, ..Rules::NONE };

fn default_webhooks(configuration: &mut Value) {
    for webhook in items_mut(configuration, "webhooks") {
        fill(webhook, "failurePolicy", "Fail");
        fill(webhook, "matchPolicy", "Equivalent");
        fill(webhook, "namespaceSelector", json!({}));
        fill(webhook, "objectSelector", json!({}));
        fill(webhook, "timeoutSeconds", 10);
        if let Some(service) = super::json::value_mut(webhook, "clientConfig.service") {
            fill(service, "port", 443);
        }
        for rule in items_mut(webhook, "rules") {
            fill(rule, "scope", "*");
        }
    }
}

fn validate_webhooks(configuration: &Value, faults: &mut Faults) {
    for (index, webhook) in items(configuration, "webhooks").iter().enumerate() {
        let path = format!("webhooks[{index}]");
        let name = text(webhook, "name");
        if name.split('.').count() < 3 {
            let why = "should be a domain with at least three segments separated by dots";
            faults.push(FieldError::invalid(format!("{path}.name"), name, why));
        }
        let versions = items(webhook, "admissionReviewVersions");
        if versions.is_empty() {
            faults.push(FieldError::required(
                format!("{path}.admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            ));
        }
        let effects = text(webhook, "sideEffects");
        if !matches!(effects, "None" | "NoneOnDryRun") {
            faults.push(FieldError::not_supported(format!("{path}.sideEffects"), effects, &["None", "NoneOnDryRun"]));
        }
        let seconds = number(webhook, "timeoutSeconds").unwrap_or(10);
        if !(1..=30).contains(&seconds) {
            let why = "the timeout value must be between 1 and 30 seconds";
            faults.push(FieldError::invalid(format!("{path}.timeoutSeconds"), seconds, why));
        }
        webhook_client(at(webhook, "clientConfig"), &format!("{path}.clientConfig"), faults);
        for (index, rule) in items(webhook, "rules").iter().enumerate() {
            webhook_rule(rule, &format!("{path}.rules[{index}]"), faults);
        }
    }
}

fn webhook_client(client: &Value, path: &str, faults: &mut Faults) {
    let (url, service) = (at(client, "url"), at(client, "service"));
    match (url.as_str(), service.is_null()) {
        (None, true) | (Some(_), false) => {
            faults.push(FieldError::required(path, "exactly one of url or service is required"));
        }
        (Some(url), true) => {
            let scheme = url.split("://").next().unwrap_or_default();
            if scheme != "https" {
                let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                faults.push(FieldError::invalid(format!("{path}.url"), scheme, why));
            }
        }
        (None, false) => {}
    }
}

fn webhook_rule(rule: &Value, path: &str, faults: &mut Faults) {
    let many_with = |name: &str, star: &str| {
        let list = items(rule, name);
        list.len() > 1 && list.iter().any(|item| item == star)
    };
    for (name, star, what) in [
        ("operations", "*", "operations"),
        ("apiGroups", "*", "API groups"),
        ("apiVersions", "*", "API versions"),
        ("resources", "*/*", "resources"),
    ] {
        let list = items(rule, name);
        if list.is_empty() {
            faults.push(FieldError::required(format!("{path}.{name}"), ""));
        } else if many_with(name, star) {
            let why = format!("if '{star}' is present, must not specify other {what}");
            faults.push(FieldError::invalid(format!("{path}.{name}"), list.to_vec(), why));
        }
    }
    for (index, operation) in items(rule, "operations").iter().enumerate() {
        let operation = operation.as_str().unwrap_or_default();
        let known = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if !known.contains(&operation) {
            faults.push(FieldError::not_supported(format!("{path}.operations[{index}]"), operation, &known));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(check: fn(&Value, &mut Faults), object: Value) -> Vec<String> {
        let mut faults = Vec::new();
        check(&object, &mut faults);
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_read_as_the_reference_prints_them() {
        assert_eq!(
            texts(LEASES.validate, json!({"spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1}})),
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
        assert_eq!(
            texts(BUDGETS.validate, json!({"spec": {"minAvailable": "150%"}})),
            ["spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%"]
        );
        assert_eq!(
            texts(
                INGRESSES.validate,
                json!({"spec": {"rules": [{"http": {"paths": [{"path": "nope", "pathType": "Exact", "backend": {}}]}}]}})
            ),
            [
                "spec.rules[0].http.paths[0].path: Invalid value: \"nope\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ]
        );
        assert_eq!(
            texts(POLICIES.validate, json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "nope"}}]}]}})),
            [
                "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"nope\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            ]
        );
        assert_eq!(
            texts(ROLES.validate, json!({"rules": [{"apiGroups": [""], "resources": ["pods"]}]})),
            ["rules[0].verbs: Required value: verbs must contain at least one value"]
        );
    }

    #[test]
    fn autoscalers_of_version_1_come_back_as_they_went() {
        let given = json!({"metadata": {}, "spec": {"maxReplicas": 5, "minReplicas": 1,
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "targetCPUUtilizationPercentage": 50}});
        let mut scaler = given.clone();
        old_autoscaler_to_stored(&mut scaler);
        assert_eq!(scaler["spec"]["metrics"], json!([cpu_metric(50)]));
        stored_to_old_autoscaler(&mut scaler);
        assert_eq!(scaler["spec"], given["spec"]);
    }
}
