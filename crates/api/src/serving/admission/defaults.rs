//! Defaults.
//!
//! Source: `knative/serving/pkg/apis/serving/v1/*_defaults.go`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Kind, Settings, text};
use crate::config::template::Template;
use crate::config::{Defaults, Features, Flag};
use crate::serving::annotations::{CREATOR_ANNOTATION, LAST_MODIFIER_ANNOTATION};

/// Fills in what the user left out of a normalised object. `old` is the stored object on an update.
pub(super) fn default(kind: Kind, object: &mut Value, old: Option<&Value>, user: &str, settings: &Settings) {
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
                revision_spec(spec, &Value::Null, true, settings);
            }
        }
        Kind::Revision => {}
        Kind::DomainMapping => {
            let namespace = object["metadata"]["namespace"].clone();
            if let Some(reference) = object.pointer_mut("/spec/ref").and_then(Value::as_object_mut)
                && namespace.is_string()
            {
                fill(reference, "namespace", namespace);
            }
        }
    }
    users(kind, object, old, user);
}

/// Who made the object and who changed its spec last. What a controller made bears its owner's annotations.
fn users(kind: Kind, object: &mut Value, old: Option<&Value>, user: &str) {
    let owned = object["metadata"]["ownerReferences"].is_array();
    let skipped = match kind {
        Kind::Revision => true,
        Kind::Configuration | Kind::Route => owned,
        Kind::Service | Kind::DomainMapping => false,
    };
    if skipped || user.is_empty() || old.is_some_and(|old| old["spec"] == object["spec"]) {
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
    let parent = object["metadata"].clone();
    if let Some(spec) = object.pointer_mut("/spec/template/spec").and_then(Value::as_object_mut) {
        revision_spec(spec, &parent, old.is_none(), settings);
    }
}

fn revision_spec(spec: &mut Map<String, Value>, parent: &Value, creates: bool, settings: &Settings) {
    times(spec, &settings.defaults);
    fill(spec, "containerConcurrency", json!(settings.defaults.container_concurrency));
    container_names(spec, parent, &settings.defaults);
    let writable = writable_volumes(spec);
    let pod_security = spec.get("securityContext").cloned().unwrap_or_default();
    let containers = spec.get_mut("containers").and_then(Value::as_array_mut);
    let count = containers.as_ref().map_or(0, |containers| containers.len());
    for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
        self::container(container, count == 1, &writable, &settings.defaults);
        security(container, &pod_security, &settings.features);
    }
    let init = spec.get_mut("initContainers").and_then(Value::as_array_mut);
    for container in init.into_iter().flatten().filter_map(Value::as_object_mut) {
        security(container, &pod_security, &settings.features);
    }
    if let Some(links) = settings.defaults.enable_service_links.filter(|_| creates && count > 0) {
        fill(spec, "enableServiceLinks", json!(links));
    }
}

fn times(spec: &mut Map<String, Value>, defaults: &Defaults) {
    let timeout = spec.get("timeoutSeconds").and_then(Value::as_i64).filter(|timeout| *timeout != 0);
    let timeout = timeout.unwrap_or(defaults.timeout_seconds);
    spec.insert("timeoutSeconds".to_owned(), json!(timeout));
    // Limits that the whole time makes void are not written down.
    for (key, default) in [
        ("idleTimeoutSeconds", defaults.idle_timeout_seconds),
        ("responseStartTimeoutSeconds", defaults.response_start_timeout_seconds),
    ] {
        if default != 0 && default < timeout {
            fill(spec, key, json!(default));
        }
    }
}

/// Names for containers without one, none of which anybody else has.
fn container_names(spec: &mut Map<String, Value>, parent: &Value, defaults: &Defaults) {
    const LISTS: [&str; 2] = ["containers", "initContainers"];
    let all = LISTS.iter().filter_map(|key| spec.get(*key)?.as_array()).flatten();
    let taken: Vec<String> = all.map(|container| text(container, "name").to_owned()).collect();
    for (key, template) in LISTS.into_iter().zip([&defaults.container_name, &defaults.init_container_name]) {
        let Some(containers) = spec.get_mut(key).and_then(Value::as_array_mut) else { continue };
        let name = render(template, parent);
        let numbered = containers.len() > 1 || taken.contains(&name);
        let mut next = 0_usize;
        for container in containers.iter_mut().filter(|container| text(container, "name").is_empty()) {
            let own = if numbered {
                let mut names = (next..).map(|number| (number, base::names::child_name(&name, &format!("-{number}"))));
                let free = names.find(|(_, name)| !taken.contains(name));
                let (number, name) = free.expect("there is a number that nobody has");
                next = number + 1;
                name
            } else {
                name.clone()
            };
            if let Some(container) = container.as_object_mut() {
                container.insert("name".to_owned(), json!(own));
            }
        }
    }
}

fn render(template: &Template, parent: &Value) -> String {
    template.render(|field, key| {
        let mut name = field.to_owned();
        name[..1].make_ascii_lowercase();
        let value = &parent[name];
        key.map_or(value, |key| &value[key]).as_str().unwrap_or_default().to_owned()
    })
}

fn container(container: &mut Map<String, Value>, only: bool, writable: &[String], defaults: &Defaults) {
    let resources = container.entry("resources").or_insert_with(|| json!({}));
    amounts(resources, "requests", &defaults.requests);
    amounts(resources, "limits", &defaults.limits);
    if only || container.get("ports").and_then(Value::as_array).is_some_and(|ports| !ports.is_empty()) {
        let probe = container.entry("readinessProbe").or_insert_with(|| json!({}));
        let known = ["tcpSocket", "httpGet", "exec", "grpc"];
        if let Some(probe) = probe.as_object_mut()
            && !known.iter().any(|handler| probe.get(*handler).is_some_and(Value::is_object))
        {
            probe.insert("tcpSocket".to_owned(), json!({ "port": 0 }));
        }
    }
    if let Some(probe) = container.get_mut("readinessProbe").and_then(Value::as_object_mut) {
        fill(probe, "successThreshold", json!(1));
        if probe.contains_key("periodSeconds") {
            fill(probe, "failureThreshold", json!(3));
            fill(probe, "timeoutSeconds", json!(1));
        }
    }
    for name in ["readinessProbe", "livenessProbe", "startupProbe"] {
        let grpc = container.get_mut(name).and_then(|probe| probe.get_mut("grpc")).and_then(Value::as_object_mut);
        if let Some(grpc) = grpc {
            fill(grpc, "service", json!(""));
        }
    }
    let mounts = container.get_mut("volumeMounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        let name = text(mount, "name").to_owned();
        if let Some(mount) = mount.as_object_mut().filter(|_| !writable.contains(&name)) {
            mount.insert("readOnly".to_owned(), json!(true));
        }
    }
}

fn amounts(resources: &mut Value, kind: &str, defaults: &BTreeMap<&'static str, String>) {
    let Some(resources) = resources.as_object_mut().filter(|_| !defaults.is_empty()) else { return };
    let amounts = resources.entry(kind).or_insert_with(|| json!({}));
    if let Some(amounts) = amounts.as_object_mut() {
        defaults.iter().for_each(|(name, amount)| fill(amounts, name, json!(amount)));
    }
}

/// Settings that the profile `restricted` asks for, where neither pod nor container say anything.
fn security(container: &mut Map<String, Value>, pod: &Value, features: &Features) {
    if !features.secure_pod_defaults.is_secure() {
        return;
    }
    let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
    let low_port = ports.filter_map(|port| port["containerPort"].as_i64()).any(|port| port < 1024);
    let context = container.entry("securityContext").or_insert_with(|| json!({}));
    let Some(context) = context.as_object_mut() else { return };
    fill(context, "allowPrivilegeEscalation", json!(false));
    if text(&pod["seccompProfile"], "type").is_empty() {
        let profile = context.entry("seccompProfile").or_insert_with(|| json!({}));
        if text(profile, "type").is_empty() {
            profile["type"] = json!("RuntimeDefault");
        }
    }
    if !context.contains_key("capabilities") {
        let mut capabilities = json!({ "drop": ["ALL"] });
        if low_port {
            capabilities["add"] = json!(["NET_BIND_SERVICE"]);
        }
        context.insert("capabilities".to_owned(), capabilities);
    }
    if features.secure_pod_defaults == Flag::Enabled && pod["runAsNonRoot"].is_null() {
        fill(context, "runAsNonRoot", json!(true));
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

fn traffic(object: &mut Value, is_service: bool) {
    let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if is_service && !spec.contains_key("traffic") {
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
