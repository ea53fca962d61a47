//! Defaults.

use serde_json::{Map, Value, json};

use super::{Kind, Settings, text};
use crate::serving::annotations::{CREATOR_ANNOTATION, LAST_MODIFIER_ANNOTATION, USER_CONTAINER};

/// Fills in what the user left out.
///
/// `old` is the stored object on an update; `user` is who asks.
pub fn default(kind: Kind, object: &mut Value, old: Option<&Value>, user: &str, settings: &Settings) {
    match kind {
        Kind::Service => {
            template(object, old, settings);
            traffic(object, true);
        }
        Kind::Configuration => template(object, old, settings),
        Kind::Route => traffic(object, false),
        // A Revision is defaulted once; what was stored stays as it is.
        Kind::Revision if old.is_none() => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                revision_spec(spec, settings);
            }
        }
        Kind::Revision => {}
    }
    if kind != Kind::Revision {
        users(object, old, user);
    }
}

/// Who made the object and who changed its spec last. What a controller made bears its owner's annotations.
fn users(object: &mut Value, old: Option<&Value>, user: &str) {
    let owned = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    if owned || user.is_empty() || old.is_some_and(|old| old["spec"] == object["spec"]) {
        return;
    }
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    if !annotations.is_object() {
        *annotations = json!({});
    }
    if old.is_none() {
        annotations[CREATOR_ANNOTATION] = json!(user);
    }
    annotations[LAST_MODIFIER_ANNOTATION] = json!(user);
}

fn template(object: &mut Value, old: Option<&Value>, settings: &Settings) {
    // A Revision that the user named himself is not changed under its name.
    let name = object["spec"]["template"]["metadata"]["name"].as_str().unwrap_or_default();
    let same = |old: &Value| old["spec"]["template"]["metadata"]["name"].as_str() == Some(name);
    if !name.is_empty() && old.is_some_and(same) {
        return;
    }
    let Some(template) = object.pointer_mut("/spec/template").and_then(Value::as_object_mut) else { return };
    let spec = template.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        revision_spec(spec, settings);
    }
}

fn revision_spec(spec: &mut Map<String, Value>, settings: &Settings) {
    fill(spec, "containerConcurrency", json!(settings.container_concurrency));
    if spec.get("timeoutSeconds").is_none_or(|value| value.is_null() || value == 0) {
        spec.insert("timeoutSeconds".to_owned(), json!(settings.timeout_seconds));
    }
    // The first byte may take as long as all by default, so only a longer whole needs this one written down.
    if spec.get("timeoutSeconds").and_then(Value::as_i64).is_some_and(|timeout| timeout > settings.timeout_seconds) {
        fill(spec, "responseStartTimeoutSeconds", json!(settings.timeout_seconds));
    }
    fill(spec, "enableServiceLinks", json!(false));
    let writable = writable_volumes(spec);
    let serving = serving_container(spec);
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    container_names(containers, USER_CONTAINER);
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    for (index, container) in containers.into_iter().flatten().enumerate() {
        if let Some(container) = container.as_object_mut() {
            self::container(container, Some(index) == serving, &writable);
        }
    }
    let init = spec.get_mut("initContainers").and_then(Value::as_array_mut);
    container_names(init, "init-container");
    let init = spec.get_mut("initContainers").and_then(Value::as_array_mut);
    for container in init.into_iter().flatten().filter_map(Value::as_object_mut) {
        fill(container, "resources", json!({}));
        mounts(container, &writable);
        for name in ["readinessProbe", "livenessProbe", "startupProbe"] {
            if let Some(probe) = container.get_mut(name) {
                handlers(probe);
            }
        }
    }
}

/// The container that requests go to: the only one, or the one with a port.
fn serving_container(spec: &Map<String, Value>) -> Option<usize> {
    let containers = spec.get("containers")?.as_array()?;
    if containers.len() == 1 {
        return Some(0);
    }
    containers.iter().position(|container| container["ports"].as_array().is_some_and(|ports| !ports.is_empty()))
}

fn container_names(containers: Option<&mut Vec<Value>>, name: &str) {
    let Some(containers) = containers else { return };
    let mut taken: Vec<String> = containers.iter().map(|container| text(container, "name").to_owned()).collect();
    let many = containers.len() > 1;
    let mut next = 0;
    for container in containers.iter_mut().filter(|container| container["name"].as_str().is_none_or(str::is_empty)) {
        let mut own = name.to_owned();
        if many {
            own = format!("{name}-{next}");
            while taken.contains(&own) {
                next += 1;
                own = format!("{name}-{next}");
            }
            taken.push(own.clone());
        }
        if let Some(container) = container.as_object_mut() {
            container.insert("name".to_owned(), json!(own));
        }
    }
}

fn container(container: &mut Map<String, Value>, serving: bool, writable: &[String]) {
    fill(container, "resources", json!({}));
    mounts(container, writable);
    if serving {
        container.entry("readinessProbe").or_insert_with(|| json!({}));
    }
    if let Some(probe) = container.get_mut("readinessProbe") {
        readiness(probe);
    }
    for name in ["livenessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(name) {
            handlers(probe);
        }
    }
}

fn readiness(probe: &mut Value) {
    let Some(probe_map) = probe.as_object_mut() else { return };
    let known = ["tcpSocket", "httpGet", "exec", "grpc"];
    if !known.iter().any(|handler| probe_map.get(*handler).is_some_and(Value::is_object)) {
        probe_map.insert("tcpSocket".to_owned(), json!({ "port": 0 }));
    }
    if probe_map.get("successThreshold").is_none_or(|value| value.is_null() || value == 0) {
        probe_map.insert("successThreshold".to_owned(), json!(1));
    }
    if probe_map.get("periodSeconds").and_then(Value::as_i64).is_some_and(|period| period != 0) {
        fill(probe_map, "timeoutSeconds", json!(1));
        fill(probe_map, "failureThreshold", json!(3));
    }
    handlers(probe);
}

/// Port 0 is the container's; a period of 0 is none.
fn handlers(probe: &mut Value) {
    for handler in ["httpGet", "tcpSocket", "grpc"] {
        if let Some(action) = probe.get_mut(handler).and_then(Value::as_object_mut) {
            fill(action, "port", json!(0));
        }
    }
    if let Some(probe) = probe.as_object_mut().filter(|probe| probe.get("periodSeconds").is_some_and(|p| *p == 0)) {
        probe.remove("periodSeconds");
    }
    if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
        fill(grpc, "service", json!(""));
    }
}

/// Names of the volumes that may be mounted writable.
fn writable_volumes(spec: &Map<String, Value>) -> Vec<String> {
    let volumes = spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let writable = volumes.filter(|volume| {
        ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| volume[*kind].is_object())
    });
    writable.map(|volume| text(volume, "name").to_owned()).collect()
}

fn mounts(container: &mut Map<String, Value>, writable: &[String]) {
    let mounts = container.get_mut("volumeMounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let name = text(mount, "name").to_owned();
        if let Some(mount) = mount.as_object_mut().filter(|_| !writable.contains(&name)) {
            mount.insert("readOnly".to_owned(), json!(true));
        }
    }
}

fn traffic(object: &mut Value, is_service: bool) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let empty = spec.get("traffic").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if empty && is_service {
        spec.insert("traffic".to_owned(), json!([{ "percent": 100, "latestRevision": true }]));
        return;
    }
    let targets = spec.get_mut("traffic").and_then(Value::as_array_mut);
    for target in targets.into_iter().flatten() {
        let latest = text(target, "revisionName").is_empty();
        if let Some(target) = target.as_object_mut() {
            fill(target, "latestRevision", json!(latest));
            fill(target, "percent", json!(0));
        }
    }
}

fn fill(map: &mut Map<String, Value>, key: &str, value: Value) {
    let present = map.entry(key.to_owned()).or_insert(Value::Null);
    if present.is_null() {
        *present = value;
    }
}
