//! ConfigMaps, Secrets, Nodes, volumes, Events and other small kinds of the core group.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core`.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::columns::{AGE, Doc, NAME, age, columns as make, since};
use super::json::{at, entries, fill, is_true, items, object_mut, set, text, value_mut};
use super::{Faults, Rules, names, quantity, remove};
use crate::resource::{Columns, FieldError};

const IMMUTABLE_SET: &str = "field is immutable when `immutable` is set";
/// Largest sum of the values of a ConfigMap or Secret.
const DATA_LIMIT: usize = 1 << 20;

pub const CONFIG_MAPS: Rules = Rules {
    validate: |map, faults| {
        let mut size = 0;
        for name in ["data", "binaryData"] {
            for (key, value) in entries(map, name) {
                let path = format!("{name}[{key}]");
                faults.extend(
                    names::config_key(key).into_iter().map(|why| FieldError::invalid(&*path, key.as_str(), why)),
                );
                size += value.as_str().unwrap_or_default().len();
                if name == "binaryData" && at(map, "data").get(key).is_some() {
                    let why = format!("duplicate of key present in data: {key}");
                    faults.push(FieldError::invalid(path, key.as_str(), why));
                }
            }
        }
        if size > DATA_LIMIT {
            faults.push(FieldError::too_long("", DATA_LIMIT));
        }
    },
    validate_update: |new, old, faults| frozen(new, old, &["data", "binaryData"], faults),
    ..Rules::NONE
};

pub const SECRETS: Rules = Rules {
    default: default_secret,
    validate: validate_secret,
    validate_update: |new, old, faults| {
        if text(new, "type") != text(old, "type") {
            faults.push(FieldError::invalid("type", text(new, "type"), "field is immutable"));
        }
        frozen(new, old, &["data"], faults);
    },
    warnings: |secret| {
        let certificate = text(secret, "type") == "kubernetes.io/tls";
        let decoded =
            at(secret, "data").get("tls.crt").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
        let has_pem = decoded.is_some_and(|bytes| bytes.windows(11).any(|window| window == b"-----BEGIN "));
        if certificate && !has_pem {
            return vec!["tls: failed to find any PEM data in certificate input".to_string()];
        }
        Vec::new()
    },
    ..Rules::NONE
};

fn frozen(new: &Value, old: &Value, fields: &[&str], faults: &mut Faults) {
    if !is_true(old, "immutable") {
        return;
    }
    if !is_true(new, "immutable") {
        faults.push(FieldError::forbidden("immutable", IMMUTABLE_SET));
    }
    for field in fields {
        if at(new, field) != at(old, field) {
            faults.push(FieldError::forbidden(*field, IMMUTABLE_SET));
        }
    }
}

/// `stringData` is only written: it goes into `data`.
fn default_secret(secret: &mut Value) {
    fill(secret, "type", "Opaque");
    let plain: Vec<(String, String)> = entries(secret, "stringData")
        .map(|(key, value)| (key.clone(), STANDARD.encode(value.as_str().unwrap_or_default())))
        .collect();
    remove(secret, "stringData");
    if !plain.is_empty() {
        fill(secret, "data", json!({}));
        if let Some(data) = object_mut(secret, "data") {
            data.extend(plain.into_iter().map(|(key, value)| (key, Value::String(value))));
        }
    }
}

fn validate_secret(secret: &Value, faults: &mut Faults) {
    let mut size = 0;
    for (key, value) in entries(secret, "data") {
        faults.extend(
            names::config_key(key)
                .into_iter()
                .map(|why| FieldError::invalid(format!("data[{key}]"), key.as_str(), why)),
        );
        size += value.as_str().unwrap_or_default().len() / 4 * 3;
    }
    if size > DATA_LIMIT {
        faults.push(FieldError::too_long("data", DATA_LIMIT));
    }
    let data = at(secret, "data");
    let mut need = |key: &str| {
        if data.get(key).is_none() {
            faults.push(FieldError::required(format!("data[{key}]"), ""));
        }
    };
    match text(secret, "type") {
        "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
        "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
        "kubernetes.io/basic-auth" if data.get("username").is_none() && data.get("password").is_none() => {
            ["username", "password"].into_iter().for_each(need);
        }
        "kubernetes.io/dockerconfigjson" => registry_login(secret, ".dockerconfigjson", faults),
        "kubernetes.io/dockercfg" => registry_login(secret, ".dockercfg", faults),
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            if at(secret, "metadata.annotations").get(ACCOUNT).and_then(Value::as_str).unwrap_or_default().is_empty() {
                faults.push(FieldError::required(format!("metadata.annotations[{ACCOUNT}]"), ""));
            }
        }
        _ => {}
    }
}

fn registry_login(secret: &Value, key: &str, faults: &mut Faults) {
    let path = format!("data[{key}]");
    let Some(given) = at(secret, "data").get(key).and_then(Value::as_str) else {
        faults.push(FieldError::required(path, ""));
        return;
    };
    let bytes = STANDARD.decode(given).unwrap_or_default();
    if !matches!(serde_json::from_slice::<Value>(&bytes), Ok(Value::Object(_))) {
        faults.push(FieldError::invalid(path, "<secret contents redacted>", json_complaint(&bytes)));
    }
}

/// Why bytes are no JSON object, in words close to Go's decoder.
fn json_complaint(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_start();
    for literal in ["null", "true", "false"] {
        if text.is_empty() || !text.starts_with(literal.chars().next().unwrap_or_default()) {
            continue;
        }
        for (wanted, given) in literal.chars().zip(text.chars()).skip(1) {
            if wanted != given {
                return format!("invalid character '{given}' in literal {literal} (expecting '{wanted}')");
            }
        }
    }
    match text.chars().next() {
        None => "unexpected end of JSON input".into(),
        Some(first) => format!("invalid character '{first}' looking for beginning of value"),
    }
}

pub const NODES: Rules = Rules {
    default: |node| {
        let capacity = at(node, "status.capacity").clone();
        if let Some(status) = node.get_mut("status")
            && capacity.is_object()
        {
            fill(status, "allocatable", capacity);
        }
    },
    prepare_create: |node| {
        const NOT_READY: &str = "node.kubernetes.io/not-ready";
        let known = items(node, "spec.taints").iter().any(|taint| text(taint, "key") == NOT_READY);
        fill(node, "spec", json!({}));
        if !known {
            let mut taints = items(node, "spec.taints").to_vec();
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
            if let Some(spec) = node.get_mut("spec") {
                set(spec, "taints", taints);
            }
        }
    },
    prepare_status: |node, _| (NODES.default)(node),
    validate: taints,
    validate_update: |new, old, faults| {
        taints(new, faults);
        for (name, path) in [("podCIDR", "spec.podCIDRs"), ("providerID", "spec.providerID")] {
            let (before, after) = (text(at(old, "spec"), name), text(at(new, "spec"), name));
            if !before.is_empty() && before != after {
                let why = format!("node updates may not change {name} except from \"\" to valid");
                faults.push(FieldError::forbidden(path, why));
            }
        }
    },
    keeps_status: true,
    ..Rules::NONE
};

fn taints(node: &Value, faults: &mut Faults) {
    let mut seen = BTreeSet::new();
    for (index, taint) in items(node, "spec.taints").iter().enumerate() {
        let path = format!("metadata.taints[{index}]");
        let (key, value, effect) = (text(taint, "key"), text(taint, "value"), text(taint, "effect"));
        faults
            .extend(names::qualified(key).into_iter().map(|why| FieldError::invalid(format!("{path}.key"), key, why)));
        faults.extend(
            names::label_value(value).into_iter().map(|why| FieldError::invalid(format!("{path}.value"), value, why)),
        );
        match effect {
            "" => faults.push(FieldError::required(format!("{path}.effect"), "")),
            "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
            other => {
                let known = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
                faults.push(FieldError::not_supported(format!("{path}.effect"), other, &known));
            }
        }
        if !seen.insert((key, effect)) {
            let shown = json!({"Key": key, "Value": value, "Effect": effect, "TimeAdded": null});
            let mut fault = FieldError::duplicate(path, shown);
            fault.detail = "taints must be unique by key and effect pair".into();
            faults.push(fault);
        }
    }
}

const ACCESS_MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

fn protect(object: &mut Value, finalizer: &str) {
    if let Some(metadata) = object.get_mut("metadata") {
        fill(metadata, "finalizers", json!([]));
        if let Some(list) = metadata.get_mut("finalizers").and_then(Value::as_array_mut)
            && !list.iter().any(|item| item == finalizer)
        {
            list.push(json!(finalizer));
        }
    }
}

pub const CLAIMS: Rules = Rules {
    default: |claim| {
        if let Some(spec) = claim.get_mut("spec") {
            fill(spec, "volumeMode", "Filesystem");
        }
        if let Some(status) = claim.get_mut("status") {
            fill(status, "phase", "Pending");
        }
    },
    prepare_create: |claim| {
        set(claim, "status", json!({"phase": "Pending"}));
        protect(claim, "kubernetes.io/pvc-protection");
    },
    validate: validate_claim,
    validate_update: |new, old, faults| {
        let fixed = |claim: &Value| {
            let mut spec = at(claim, "spec").clone();
            remove(&mut spec, "volumeAttributesClassName");
            if let Some(resources) = value_mut(&mut spec, "resources") {
                remove(resources, "requests");
            }
            spec
        };
        let unbound = text(old, "spec.volumeName").is_empty();
        let mut before = fixed(old);
        if unbound {
            // Binding fills the volume's name in.
            set(&mut before, "volumeName", at(new, "spec.volumeName").clone());
            if at(&before, "volumeName").is_null() {
                remove(&mut before, "volumeName");
            }
        }
        if fixed(new) != before {
            faults.push(FieldError::forbidden(
                "spec",
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
            ));
        }
    },
    ..Rules::NONE
};

fn access_modes(spec: &Value, faults: &mut Faults) {
    let modes = items(spec, "accessModes");
    if modes.is_empty() {
        faults.push(FieldError::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes.iter().filter_map(Value::as_str).filter(|mode| !ACCESS_MODES.contains(mode)) {
        faults.push(FieldError::not_supported("spec.accessModes", mode, &ACCESS_MODES));
    }
}

fn validate_claim(claim: &Value, faults: &mut Faults) {
    const SIZE: &str = "spec.resources[storage]";
    let spec = at(claim, "spec");
    access_modes(spec, faults);
    match at(spec, "resources.requests.storage").as_str() {
        None => faults.push(FieldError::required(SIZE, "")),
        Some(size) if quantity::nanos(size).is_ok_and(|size| size <= 0) => {
            faults.push(FieldError::invalid(SIZE, size, "must be greater than zero"));
        }
        Some(_) => {}
    }
}

pub const VOLUMES: Rules = Rules {
    default: |volume| {
        if let Some(spec) = volume.get_mut("spec") {
            fill(spec, "persistentVolumeReclaimPolicy", "Retain");
            fill(spec, "volumeMode", "Filesystem");
            if let Some(path) = spec.get_mut("hostPath") {
                fill(path, "type", "");
            }
        }
        if let Some(status) = volume.get_mut("status") {
            fill(status, "phase", "Pending");
        }
    },
    prepare_create: |volume| {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        set(volume, "status", json!({"phase": "Pending", "lastPhaseTransitionTime": now}));
        protect(volume, "kubernetes.io/pv-protection");
    },
    validate: |volume, faults| {
        const OTHER: [&str; 9] = [
            "accessModes",
            "capacity",
            "claimRef",
            "mountOptions",
            "nodeAffinity",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeAttributesClassName",
            "volumeMode",
        ];
        let spec = at(volume, "spec");
        access_modes(spec, faults);
        let capacity = at(spec, "capacity");
        if capacity.as_object().is_none_or(serde_json::Map::is_empty) {
            faults.push(FieldError::required("spec.capacity", ""));
        }
        if capacity.get("storage").is_none() || capacity.as_object().is_some_and(|map| map.len() != 1) {
            let shown = if capacity.is_null() { json!({}) } else { capacity.clone() };
            faults.push(FieldError::not_supported("spec.capacity", shown, &["storage"]));
        }
        let sources =
            spec.as_object().into_iter().flat_map(|map| map.keys()).filter(|name| !OTHER.contains(&name.as_str()));
        match sources.count() {
            0 => faults.push(FieldError::required("spec", "must specify a volume type")),
            1 => {}
            _ => faults.push(FieldError::forbidden("spec", "may not specify more than 1 volume type")),
        }
    },
    ..Rules::NONE
};

/// Columns of ConfigMaps.
pub fn config_map_columns() -> Columns {
    make(&[NAME, ("Data", "string", 0, Doc::Of("core.v1.ConfigMap", "data")), AGE], |map, now| {
        let count = entries(map, "data").count() + entries(map, "binaryData").count();
        vec![json!(text(map, "metadata.name")), json!(count), age(map, now)]
    })
}

/// Columns of Secrets.
pub fn secret_columns() -> Columns {
    const OF: &str = "core.v1.Secret";
    make(
        &[NAME, ("Type", "string", 0, Doc::Of(OF, "type")), ("Data", "string", 0, Doc::Of(OF, "data")), AGE],
        |secret, now| {
            let count = entries(secret, "data").count();
            vec![json!(text(secret, "metadata.name")), json!(text(secret, "type")), json!(count), age(secret, now)]
        },
    )
}

/// Columns of Namespaces.
pub fn namespace_columns() -> Columns {
    make(&[NAME, ("Status", "string", 0, Doc::Own("The status of the namespace")), AGE], |namespace, now| {
        vec![json!(text(namespace, "metadata.name")), json!(text(namespace, "status.phase")), age(namespace, now)]
    })
}

/// Columns of Nodes.
pub fn node_columns() -> Columns {
    const INFO: &str = "core.v1.NodeSystemInfo";
    const ADDRESSES: Doc = Doc::Of("core.v1.NodeStatus", "addresses");
    make(
        &[
            NAME,
            ("Status", "string", 0, Doc::Own("The status of the node")),
            ("Roles", "string", 0, Doc::Own("The roles of the node")),
            AGE,
            ("Version", "string", 0, Doc::Of(INFO, "kubeletVersion")),
            ("Internal-IP", "string", 1, ADDRESSES),
            ("External-IP", "string", 1, ADDRESSES),
            ("OS-Image", "string", 1, Doc::Of(INFO, "osImage")),
            ("Kernel-Version", "string", 1, Doc::Of(INFO, "kernelVersion")),
            ("Container-Runtime", "string", 1, Doc::Of(INFO, "containerRuntimeVersion")),
        ],
        |node, now| {
            let info = |name: &str| {
                let found = text(at(node, "status.nodeInfo"), name);
                json!(if found.is_empty() { "<unknown>" } else { found })
            };
            vec![
                json!(text(node, "metadata.name")),
                json!(node_status(node)),
                json!(node_roles(node)),
                age(node, now),
                json!(text(node, "status.nodeInfo.kubeletVersion")),
                node_address(node, "InternalIP"),
                node_address(node, "ExternalIP"),
                info("osImage"),
                info("kernelVersion"),
                info("containerRuntimeVersion"),
            ]
        },
    )
}

fn node_status(node: &Value) -> String {
    let ready = items(node, "status.conditions").iter().find(|condition| text(condition, "type") == "Ready");
    let status = match ready.map(|condition| text(condition, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if is_true(node, "spec.unschedulable") { format!("{status},SchedulingDisabled") } else { status.to_string() }
}

fn node_roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(node, "metadata.labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) if !role.is_empty() => Some(role),
            _ if key == "kubernetes.io/role" => value.as_str(),
            _ => None,
        })
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".into() } else { roles.join(",") }
}

fn node_address(node: &Value, kind: &str) -> Value {
    let found = items(node, "status.addresses").iter().find(|address| text(address, "type") == kind);
    json!(found.map_or("<none>", |address| text(address, "address")))
}

/// Columns of PersistentVolumeClaims.
pub fn claim_columns() -> Columns {
    const SPEC: &str = "core.v1.PersistentVolumeClaimSpec";
    const STATUS: &str = "core.v1.PersistentVolumeClaimStatus";
    make(
        &[
            NAME,
            ("Status", "string", 0, Doc::Of(STATUS, "phase")),
            ("Volume", "string", 0, Doc::Of(SPEC, "volumeName")),
            ("Capacity", "string", 0, Doc::Of(STATUS, "capacity")),
            ("Access Modes", "string", 0, Doc::Of(STATUS, "accessModes")),
            ("StorageClass", "string", 0, Doc::Own("StorageClass of the pvc")),
            ("VolumeAttributesClass", "string", 0, Doc::Own("VolumeAttributesClass of the pvc")),
            AGE,
            ("VolumeMode", "string", 1, Doc::Of(SPEC, "volumeMode")),
        ],
        |claim, now| {
            let deleting = !at(claim, "metadata.deletionTimestamp").is_null();
            let phase = if deleting { "Terminating" } else { text(claim, "status.phase") };
            let bound = !text(claim, "spec.volumeName").is_empty();
            let (capacity, modes) = if bound {
                (text(claim, "status.capacity.storage").to_string(), short_modes(at(claim, "status")))
            } else {
                (String::new(), String::new())
            };
            let class = match text(claim, "spec.volumeAttributesClassName") {
                "" => "<unset>",
                class => class,
            };
            vec![
                json!(text(claim, "metadata.name")),
                json!(phase),
                json!(text(claim, "spec.volumeName")),
                json!(capacity),
                json!(modes),
                json!(text(claim, "spec.storageClassName")),
                json!(class),
                age(claim, now),
                json!(text(claim, "spec.volumeMode")),
            ]
        },
    )
}

fn short_modes(object: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    items(object, "accessModes").iter().filter_map(Value::as_str).map(short).collect::<Vec<_>>().join(",")
}

/// Columns of PersistentVolumes.
pub fn volume_columns() -> Columns {
    make(
        &[
            NAME,
            ("Capacity", "string", 0, Doc::Own("Size of the volume.")),
            ("Access Modes", "string", 0, Doc::Own("Ways in which the volume can be mounted.")),
            ("Reclaim Policy", "string", 0, Doc::Own("What becomes of the volume after its release.")),
            ("Status", "string", 0, Doc::Own("Phase of the volume.")),
            ("Claim", "string", 0, Doc::Own("Claim that the volume is bound to.")),
            ("StorageClass", "string", 0, Doc::Own("StorageClass of the pv")),
            ("VolumeAttributesClass", "string", 0, Doc::Own("VolumeAttributesClass of the pv")),
            ("Reason", "string", 0, Doc::Own("Why the volume is in its phase.")),
            AGE,
            ("VolumeMode", "string", 1, Doc::Own("Kind of the volume: file system or block device.")),
        ],
        |volume, now| {
            let claim = at(volume, "spec.claimRef");
            let claim = if claim.is_null() {
                String::new()
            } else {
                format!("{}/{}", text(claim, "namespace"), text(claim, "name"))
            };
            let deleting = !at(volume, "metadata.deletionTimestamp").is_null();
            vec![
                json!(text(volume, "metadata.name")),
                json!(text(volume, "spec.capacity.storage")),
                json!(short_modes(at(volume, "spec"))),
                json!(text(volume, "spec.persistentVolumeReclaimPolicy")),
                json!(if deleting { "Terminating" } else { text(volume, "status.phase") }),
                json!(claim),
                json!(text(volume, "spec.storageClassName")),
                json!("<unset>"),
                json!(text(volume, "status.reason")),
                age(volume, now),
                json!(text(volume, "spec.volumeMode")),
            ]
        },
    )
}

/// Columns of Events of the core group.
pub fn event_columns() -> Columns {
    const OF: &str = "core.v1.Event";
    make(
        &[
            ("Last Seen", "string", 0, Doc::Of(OF, "lastTimestamp")),
            ("Type", "string", 0, Doc::Of(OF, "type")),
            ("Reason", "string", 0, Doc::Of(OF, "reason")),
            ("Object", "string", 0, Doc::Of(OF, "involvedObject")),
            ("Subobject", "string", 1, Doc::Of("core.v1.ObjectReference", "fieldPath")),
            ("Source", "string", 1, Doc::Of(OF, "source")),
            ("Message", "string", 0, Doc::Of(OF, "message")),
            ("First Seen", "string", 1, Doc::Of(OF, "firstTimestamp")),
            ("Count", "string", 1, Doc::Of(OF, "count")),
            ("Name", "string", 1, Doc::NAME),
        ],
        |event, now| {
            let either = |first: &str, second: &str| match text(event, first) {
                "" => text(event, second).to_string(),
                found => found.to_string(),
            };
            // Events of either API group are kept in this form.
            let moment = either("eventTime", "metadata.creationTimestamp");
            let first = either("firstTimestamp", "eventTime");
            let last = match text(event, "series.lastObservedTime") {
                "" => match text(event, "lastTimestamp") {
                    "" => moment.clone(),
                    time => time.to_string(),
                },
                time => time.to_string(),
            };
            let series = at(event, "series.count").as_i64();
            let count = series.or_else(|| at(event, "count").as_i64()).filter(|count| *count > 0).unwrap_or(1);
            let source = match (either("source.component", "reportingComponent"), text(event, "source.host")) {
                (component, "") => component,
                (component, host) => format!("{component}, {host}"),
            };
            let about = at(event, "involvedObject");
            vec![
                since(&last, now),
                json!(text(event, "type")),
                json!(text(event, "reason")),
                json!(format!("{}/{}", text(about, "kind").to_lowercase(), text(about, "name"))),
                json!(text(about, "fieldPath")),
                json!(source),
                json!(text(event, "message").trim()),
                since(&first, now),
                json!(count),
                json!(text(event, "metadata.name")),
            ]
        },
    )
}

pub const EVENTS: Rules = Rules {
    validate: |event, faults| {
        let (about, own) = (text(event, "involvedObject.namespace"), text(event, "metadata.namespace"));
        let cluster = about.is_empty() && own == "default";
        if about != own && !cluster {
            faults.push(FieldError::invalid("involvedObject.namespace", about, "does not match event.namespace"));
        }
    },
    ..Rules::NONE
};

/// Events of the new group are kept as events of the core group.
pub const NEW_EVENTS: Rules = Rules { convert: Some((new_event_to_stored, stored_to_new_event)), ..Rules::NONE };

const EVENT_NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(map) = object.as_object_mut()
        && let Some(value) = map.remove(from)
    {
        map.insert(to.to_string(), value);
    }
}

fn new_event_to_stored(event: &mut Value) {
    EVENT_NAMES.iter().for_each(|(new, old)| rename(event, new, old));
    super::schema::conform::normalise("core.v1.Event", event);
}

fn stored_to_new_event(event: &mut Value) {
    EVENT_NAMES.iter().for_each(|(new, old)| rename(event, old, new));
    super::schema::conform::normalise("events.v1.Event", event);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(faults: Faults) -> Vec<String> {
        faults.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn string_data_goes_into_data() {
        let mut secret = json!({"data": {"a": "YQ=="}, "stringData": {"b": "bee", "a": "over"}});
        default_secret(&mut secret);
        assert_eq!(secret, json!({"data": {"a": "b3Zlcg==", "b": "YmVl"}, "type": "Opaque"}));
    }

    #[test]
    fn secrets_hold_what_their_type_asks_for() {
        let check = |kind: &str, data: Value| {
            let mut faults = Vec::new();
            validate_secret(&json!({"type": kind, "data": data}), &mut faults);
            texts(faults)
        };
        assert_eq!(
            check("kubernetes.io/tls", json!({})),
            ["data[tls.crt]: Required value", "data[tls.key]: Required value"]
        );
        assert_eq!(check("kubernetes.io/basic-auth", json!({"username": "YQ=="})), Vec::<String>::new());
        assert_eq!(
            check("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "bm90anNvbg=="})),
            [
                "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": invalid character 'o' in literal null (expecting 'u')"
            ]
        );
        assert_eq!(check("example.com/own", json!({"any": "YQ=="})), Vec::<String>::new());
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"immutable": true, "data": {"k": "v"}});
        let check = |new: Value| {
            let mut faults = Vec::new();
            (CONFIG_MAPS.validate_update)(&new, &old, &mut faults);
            texts(faults)
        };
        assert_eq!(
            check(json!({"immutable": true, "data": {"k": "w"}})),
            ["data: Forbidden: field is immutable when `immutable` is set"]
        );
        assert_eq!(
            check(json!({"data": {"k": "v"}})),
            ["immutable: Forbidden: field is immutable when `immutable` is set"]
        );
    }

    #[test]
    fn events_of_both_groups_are_one() {
        let mut event = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Pod"}, "note": "n", "reason": "R"});
        new_event_to_stored(&mut event);
        assert_eq!(event["involvedObject"]["kind"], "Pod");
        stored_to_new_event(&mut event);
        assert_eq!(event["note"], "n");
    }
}
