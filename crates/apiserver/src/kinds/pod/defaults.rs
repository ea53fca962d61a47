//! Defaults of pods and pod templates.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core/v1/defaults.go`.

use serde_json::{Map, Value, json};

use super::host_network;
use crate::kinds::json::{at, child, fill, items_mut, object_mut, set, text, value_mut};

/// Mode of files in volumes: 0644.
const FILE_MODE: i64 = 0o644;

/// Defaults of a pod.
pub fn pod(pod: &mut Value) {
    super::sync_addresses(pod);
    let Some(spec) = pod.get_mut("spec") else { return };
    fill(spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
        }
    }
    self::spec(spec);
}

/// Defaults of the pod template under `spec.template`.
pub fn template(object: &mut Value) {
    if let Some(spec) = value_mut(object, "spec.template.spec") {
        self::spec(spec);
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits: Map<String, Value> = at(container, "resources.limits").as_object().cloned().unwrap_or_default();
    if limits.is_empty() {
        return;
    }
    let Some(resources) = container.get_mut("resources") else { return };
    if let Some(Value::Object(requests)) = child(resources, "requests") {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

/// Defaults of a pod's spec.
pub fn spec(spec: &mut Value) {
    fill(spec, "dnsPolicy", "ClusterFirst");
    fill(spec, "restartPolicy", "Always");
    fill(spec, "terminationGracePeriodSeconds", 30);
    fill(spec, "securityContext", json!({}));
    fill(spec, "schedulerName", "default-scheduler");
    sync_account(spec);
    let on_host = host_network(spec);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            self::container(container, on_host && list != "ephemeralContainers");
        }
    }
    for volume in items_mut(spec, "volumes") {
        self::volume(volume);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are written.
fn sync_account(spec: &mut Value) {
    let name = match text(spec, "serviceAccountName") {
        "" => text(spec, "serviceAccount"),
        name => name,
    }
    .to_string();
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.as_str());
        set(spec, "serviceAccount", name);
    }
}

fn container(container: &mut Value, on_host: bool) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        set(container, "imagePullPolicy", policy);
    }
    fill(container, "terminationMessagePath", "/dev/termination-log");
    fill(container, "terminationMessagePolicy", "File");
    for port in items_mut(container, "ports") {
        fill(port, "protocol", "TCP");
        if on_host && at(port, "hostPort").as_i64().unwrap_or(0) == 0 {
            let number = at(port, "containerPort").clone();
            set(port, "hostPort", number);
        }
    }
    for variable in items_mut(container, "env") {
        if let Some(field) = value_mut(variable, "valueFrom.fieldRef") {
            fill(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            self::probe(probe);
        }
    }
    for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
        if let Some(hook) = value_mut(container, hook) {
            http_get(hook);
        }
    }
}

/// `Always` for images without a tag or with `latest`, else `IfNotPresent`.
pub fn pull_policy(image: &str) -> &'static str {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains('@') {
        return "IfNotPresent";
    }
    match name.rsplit_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn probe(probe: &mut Value) {
    for (name, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        fill(probe, name, value);
    }
    http_get(probe);
    if let Some(grpc) = probe.get_mut("grpc") {
        fill(grpc, "service", "");
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        fill(get, "path", "/");
        fill(get, "scheme", "HTTP");
    }
}

fn volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |map| map.keys().filter(|key| *key != "name").count());
    if sources == 0 {
        set(volume, "emptyDir", json!({}));
    }
    for name in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(name) {
            fill(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = volume.get_mut("hostPath") {
        fill(path, "type", "");
    }
    if let Some(iscsi) = volume.get_mut("iscsi") {
        fill(iscsi, "iscsiInterface", "default");
    }
    if let Some(image) = object_mut(volume, "image") {
        let policy = pull_policy(image.get("reference").and_then(Value::as_str).unwrap_or_default());
        image.entry("pullPolicy").or_insert(json!(policy));
    }
    if let Some(claim) = value_mut(volume, "ephemeral.volumeClaimTemplate.spec") {
        fill(claim, "volumeMode", "Filesystem");
    }
    downward_items(volume);
    for source in items_mut(volume, "projected.sources") {
        if let Some(token) = source.get_mut("serviceAccountToken") {
            fill(token, "expirationSeconds", 3600);
        }
        downward_items(source);
    }
}

fn downward_items(source: &mut Value) {
    for item in items_mut(source, "downwardAPI.items") {
        if let Some(field) = item.get_mut("fieldRef") {
            fill(field, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, wanted) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("host:5000/a", "Always"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), wanted, "{image}");
        }
    }
}
