//! Checks of pods and pod templates.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core/validation`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::is_sidecar;
use crate::kinds::json::{at, entries, items, number, text};
use crate::kinds::{Faults, names, quantity};
use crate::resource::FieldError;

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

/// Checks a pod's spec that lies at `path`.
pub fn spec(spec: &Value, path: &str, faults: &mut Faults) {
    let volumes = volumes(spec, path, faults);
    containers(spec, path, &volumes, faults);
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], faults);
    one_of(spec, path, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], faults);
    one_of(spec, path, "preemptionPolicy", &["PreemptLowerPriority", "Never"], faults);
    if number(spec, "activeDeadlineSeconds").is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n)) {
        let value = at(spec, "activeDeadlineSeconds").clone();
        faults.push(FieldError::invalid(
            format!("{path}.activeDeadlineSeconds"),
            value,
            "must be between 1 and 2147483647, inclusive",
        ));
    }
    for (name, rule) in [
        ("serviceAccountName", names::subdomain as fn(&str) -> Vec<String>),
        ("nodeName", names::subdomain),
        ("runtimeClassName", names::subdomain),
        ("hostname", names::label),
        ("subdomain", names::label),
    ] {
        let given = text(spec, name);
        if !given.is_empty() {
            faults.extend(rule(given).into_iter().map(|why| FieldError::invalid(format!("{path}.{name}"), given, why)));
        }
    }
    for (index, gate) in items(spec, "schedulingGates").iter().enumerate() {
        let name = text(gate, "name");
        for why in names::qualified(name) {
            faults.push(FieldError::invalid(format!("{path}.schedulingGates[{index}]"), name, why));
        }
    }
    tolerations(spec, path, faults);
}

fn one_of(object: &Value, path: &str, name: &str, known: &[&str], faults: &mut Faults) {
    let given = text(object, name);
    if !given.is_empty() && !known.contains(&given) {
        faults.push(FieldError::not_supported(format!("{path}.{name}"), given, known));
    }
}

fn tolerations(spec: &Value, path: &str, faults: &mut Faults) {
    for (index, toleration) in items(spec, "tolerations").iter().enumerate() {
        let path = format!("{path}.tolerations[{index}]");
        let (key, operator) = (text(toleration, "key"), text(toleration, "operator"));
        if !key.is_empty() {
            for why in names::qualified(key) {
                faults.push(FieldError::invalid(format!("{path}.key"), key, why));
            }
        } else if operator != "Exists" {
            faults.push(FieldError::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        match operator {
            "" | "Equal" | "Exists" => {}
            other => faults.push(FieldError::not_supported(format!("{path}.operator"), other, &["Equal", "Exists"])),
        }
        one_of(toleration, &path, "effect", &["NoSchedule", "PreferNoSchedule", "NoExecute"], faults);
        if number(toleration, "tolerationSeconds").is_some() && text(toleration, "effect") != "NoExecute" {
            faults.push(FieldError::invalid(
                format!("{path}.effect"),
                text(toleration, "effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            ));
        }
    }
}

/// Checks volumes and returns their names.
fn volumes<'a>(spec: &'a Value, path: &str, faults: &mut Faults) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for (index, volume) in items(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if name.is_empty() {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            faults.extend(
                names::label(name).into_iter().map(|why| FieldError::invalid(format!("{path}.name"), name, why)),
            );
        }
        if !seen.insert(name) {
            faults.push(FieldError::duplicate(format!("{path}.name"), name));
        }
        source(volume, &path, faults);
    }
    seen
}

fn source(volume: &Value, path: &str, faults: &mut Faults) {
    let kinds = volume.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| *key != "name");
    for extra in kinds.skip(1) {
        faults.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 volume type"));
    }
    let required = [
        ("hostPath", "path"),
        ("secret", "secretName"),
        ("configMap", "name"),
        ("nfs", "server"),
        ("nfs", "path"),
        ("persistentVolumeClaim", "claimName"),
    ];
    for (kind, name) in required {
        if let Some(source) = volume.get(kind)
            && text(source, name).is_empty()
        {
            faults.push(FieldError::required(format!("{path}.{kind}.{name}"), ""));
        }
    }
}

fn containers(spec: &Value, path: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    if items(spec, "containers").is_empty() {
        faults.push(FieldError::required(format!("{path}.containers"), ""));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (index, container) in items(spec, list).iter().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            let name = text(container, "name");
            self::container(container, &path, list, volumes, faults);
            if !name.is_empty() && !seen.insert(name) {
                faults.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            if list == "ephemeralContainers" {
                ephemeral(container, spec, &path, faults);
            }
        }
    }
}

fn ephemeral(container: &Value, spec: &Value, path: &str, faults: &mut Faults) {
    for name in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"] {
        if !at(container, name).is_null() {
            faults.push(FieldError::forbidden(format!("{path}.{name}"), "cannot be set for an Ephemeral Container"));
        }
    }
    let target = text(container, "targetContainerName");
    let known =
        ["containers", "initContainers"].iter().any(|list| items(spec, list).iter().any(|c| text(c, "name") == target));
    if !target.is_empty() && !known {
        faults.push(FieldError::not_found(format!("{path}.targetContainerName"), target));
    }
}

fn container(container: &Value, path: &str, list: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let name = text(container, "name");
    if name.is_empty() {
        faults.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        faults.extend(names::label(name).into_iter().map(|why| FieldError::invalid(format!("{path}.name"), name, why)));
    }
    let image = text(container, "image");
    if image.is_empty() {
        faults.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        faults.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    ports(container, path, faults);
    environment(container, path, faults);
    mounts(container, path, volumes, faults);
    resources(at(container, "resources"), &format!("{path}.resources"), faults);
    one_of(container, path, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], faults);
    one_of(container, path, "terminationMessagePolicy", &["File", "FallbackToLogsOnError"], faults);
    let probes_allowed = list == "containers" || list == "initContainers" && is_sidecar(container);
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = at(container, name);
        if probe.is_null() {
            continue;
        }
        let path = format!("{path}.{name}");
        if probes_allowed {
            self::probe(probe, &path, name, faults);
        } else if list == "initContainers" {
            faults.push(FieldError::forbidden(path, "may not be set for init containers without restartPolicy=Always"));
        }
    }
}

fn ports(container: &Value, path: &str, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (index, port) in items(container, "ports").iter().enumerate() {
        let path = format!("{path}.ports[{index}]");
        let name = text(port, "name");
        if !name.is_empty() {
            let complaints = names::port_name(name);
            if complaints.is_empty() && !seen.insert(name) {
                faults.push(FieldError::duplicate(format!("{path}.name"), name));
            }
            faults.extend(complaints.into_iter().map(|why| FieldError::invalid(format!("{path}.name"), name, why)));
        }
        let number_of = |name: &str| number(port, name).unwrap_or(0);
        if number_of("containerPort") == 0 {
            faults.push(FieldError::required(format!("{path}.containerPort"), ""));
        } else if let Some(why) = names::port_number(number_of("containerPort")) {
            faults.push(FieldError::invalid(format!("{path}.containerPort"), number_of("containerPort"), why));
        }
        if number_of("hostPort") != 0
            && let Some(why) = names::port_number(number_of("hostPort"))
        {
            faults.push(FieldError::invalid(format!("{path}.hostPort"), number_of("hostPort"), why));
        }
        match text(port, "protocol") {
            "" => faults.push(FieldError::required(format!("{path}.protocol"), "")),
            "TCP" | "UDP" | "SCTP" => {}
            other => faults.push(FieldError::not_supported(format!("{path}.protocol"), other, &["SCTP", "TCP", "UDP"])),
        }
    }
}

fn environment(container: &Value, path: &str, faults: &mut Faults) {
    for (index, variable) in items(container, "env").iter().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "name");
        if name.is_empty() {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        } else {
            faults.extend(
                names::env_name(name).into_iter().map(|why| FieldError::invalid(format!("{path}.name"), name, why)),
            );
        }
        let from = at(variable, "valueFrom");
        let Some(map) = from.as_object() else { continue };
        if map.is_empty() {
            let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
            faults.push(FieldError::invalid(format!("{path}.valueFrom"), "", why));
        } else if map.len() > 1 {
            faults.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                "",
                "may not have more than one field specified at a time",
            ));
        }
        if !text(variable, "value").is_empty() {
            faults.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
        for reference in ["configMapKeyRef", "secretKeyRef"] {
            if from.get(reference).is_some_and(|r| text(r, "name").is_empty()) {
                faults.push(FieldError::required(format!("{path}.valueFrom.{reference}.name"), ""));
            }
            if from.get(reference).is_some_and(|r| text(r, "key").is_empty()) {
                faults.push(FieldError::required(format!("{path}.valueFrom.{reference}.key"), ""));
            }
        }
    }
}

fn mounts(container: &Value, path: &str, volumes: &BTreeSet<&str>, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (index, mount) in items(container, "volumeMounts").iter().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let (name, target) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            faults.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            faults.push(FieldError::not_found(format!("{path}.name"), name));
        }
        if target.is_empty() {
            faults.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if !seen.insert(target) {
            faults.push(FieldError::invalid(format!("{path}.mountPath"), target, "must be unique"));
        }
        let sub_path = text(mount, "subPath");
        if sub_path.starts_with('/') {
            faults.push(FieldError::invalid(format!("{path}.subPath"), sub_path, "must be a relative path"));
        }
        if sub_path.split('/').any(|part| part == "..") {
            faults.push(FieldError::invalid(format!("{path}.subPath"), sub_path, "must not contain '..'"));
        }
    }
}

/// Checks requests and limits.
pub fn resources(resources: &Value, path: &str, faults: &mut Faults) {
    for which in ["limits", "requests"] {
        for (name, amount) in entries(resources, which) {
            let path = format!("{path}.{which}[{name}]");
            for why in names::qualified(name) {
                faults.push(FieldError::invalid(&*path, name.as_str(), why));
            }
            if nanos(amount).is_some_and(|n| n < 0) {
                faults.push(FieldError::invalid(path, amount.clone(), NOT_NEGATIVE));
            }
        }
    }
    for (name, request) in entries(resources, "requests") {
        let Some(limit) = at(resources, "limits").get(name) else { continue };
        if let (Some(wanted), Some(most)) = (nanos(request), nanos(limit))
            && wanted > most
        {
            let why = format!("must be less than or equal to {name} limit of {}", limit.as_str().unwrap_or_default());
            faults.push(FieldError::invalid(format!("{path}.requests"), request.clone(), why));
        }
    }
}

fn nanos(amount: &Value) -> Option<i128> {
    quantity::nanos(amount.as_str()?).ok()
}

fn probe(probe: &Value, path: &str, kind: &str, faults: &mut Faults) {
    let handlers: Vec<&str> =
        ["exec", "httpGet", "tcpSocket", "grpc"].into_iter().filter(|name| !at(probe, name).is_null()).collect();
    if handlers.is_empty() {
        faults.push(FieldError::required(path, "must specify a handler type"));
    }
    for extra in handlers.iter().skip(1) {
        faults.push(FieldError::forbidden(format!("{path}.{extra}"), "may not specify more than 1 handler type"));
    }
    if let Some(exec) = probe.get("exec")
        && items(exec, "command").is_empty()
    {
        faults.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(handler_value) = probe.get(handler) {
            port_reference(at(handler_value, "port"), &format!("{path}.{handler}.port"), faults);
        }
    }
    for name in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        if let Some(value) = number(probe, name).filter(|n| *n < 0) {
            faults.push(FieldError::invalid(format!("{path}.{name}"), value, NOT_NEGATIVE));
        }
    }
    if kind != "readinessProbe"
        && let Some(value) = number(probe, "successThreshold").filter(|n| *n != 1)
    {
        faults.push(FieldError::invalid(format!("{path}.successThreshold"), value, "must be 1"));
    }
}

fn port_reference(port: &Value, path: &str, faults: &mut Faults) {
    match port {
        Value::String(name) => {
            faults.extend(names::port_name(name).into_iter().map(|why| FieldError::invalid(path, name.as_str(), why)));
        }
        other => {
            let number = other.as_i64().unwrap_or(0);
            if let Some(why) = names::port_number(number) {
                faults.push(FieldError::invalid(path, number, why));
            }
        }
    }
}

/// Checks the template of a controller whose pods must restart always (Deployment and its like).
pub fn template_always(object: &Value, kind: &str, faults: &mut Faults) {
    let template = at(object, "spec.template");
    spec(at(template, "spec"), "spec.template.spec", faults);
    let restart = text(template, "spec.restartPolicy");
    if !restart.is_empty() && restart != "Always" && matches!(restart, "OnFailure" | "Never") {
        faults.push(FieldError::not_supported("spec.template.spec.restartPolicy", restart, &["Always"]));
    }
    if !at(template, "spec.activeDeadlineSeconds").is_null() {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        faults.push(FieldError::forbidden("spec.template.spec.activeDeadlineSeconds", why));
    }
}

/// Checks a label selector that lies at `path`.
pub fn label_selector(selector: &Value, path: &str, faults: &mut Faults) {
    for (index, expression) in items(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = items(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => faults.push(FieldError::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if !values.is_empty() => faults.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                faults.push(FieldError::invalid(format!("{path}.operator"), other, "not a valid selector operator"))
            }
        }
        let key = text(expression, "key");
        faults
            .extend(names::qualified(key).into_iter().map(|why| FieldError::invalid(format!("{path}.key"), key, why)));
    }
    for (key, value) in entries(selector, "matchLabels") {
        let path = format!("{path}.matchLabels");
        faults.extend(names::qualified(key).into_iter().map(|why| FieldError::invalid(&*path, key.as_str(), why)));
        let value = value.as_str().unwrap_or_default();
        faults.extend(names::label_value(value).into_iter().map(|why| FieldError::invalid(&*path, value, why)));
    }
}

/// Whether a label selector matches labels. A selector that is absent matches nothing.
pub fn selects(selector: &Value, labels: &Value) -> bool {
    if !selector.is_object() {
        return false;
    }
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && items(selector, "matchExpressions").iter().all(|expression| {
            let found = label(text(expression, "key"));
            let listed = found.is_some_and(|found| items(expression, "values").contains(&json!(found)));
            match text(expression, "operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}
