//! Revision specs: their own fields, and the pod spec as far as Knative lets users set it.
//!
//! Where the reference puts paths together in an odd way, so does this: its texts are what users find when they search.
//!
//! Source: `knative/serving/pkg/apis/serving/{k8s_validation,fieldmask}.go`.

use std::collections::{BTreeMap, BTreeSet};

use base::quantity::Quantity;
use serde_json::{Map, Value};

use super::errors::Errors;
use super::{go, image, names, text};
use crate::config::{Features, Flag, Settings};
use crate::functions::CODE_DRIVER;

/// Fields of a Revision's spec that are not its pod's.
const REVISION_FIELDS: [&str; 4] =
    ["containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds"];
const CONTAINER_FIELDS: [&str; 17] = [
    "name",
    "args",
    "command",
    "env",
    "workingDir",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
];
const PROBE_FIELDS: [&str; 10] = [
    "exec",
    "httpGet",
    "tcpSocket",
    "grpc",
    "initialDelaySeconds",
    "timeoutSeconds",
    "periodSeconds",
    "successThreshold",
    "failureThreshold",
    "terminationGracePeriodSeconds",
];
const PROBE_HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
/// Ports that the reference keeps for its sidecar.
const RESERVED_PORTS: [i64; 6] = [8008, 8012, 8013, 8022, 9090, 9091];
const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
const RESERVED_PATHS: [&str; 3] = ["/", "/dev", "/dev/log"];

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Serving,
    Sidecar,
    Init,
}

/// The serving port, with the defaults that probes are compared with.
struct Port {
    name: String,
}

/// What all containers of a pod are checked against.
struct Context<'a> {
    features: &'a Features,
    volumes: BTreeMap<&'a str, &'a Value>,
}

/// Checks a Revision's spec.
pub(super) fn validate(spec: &Value, settings: &Settings) -> Errors {
    let mut errors = Errors::default();
    let features = &settings.features;
    let defaults = &settings.defaults;
    pod(spec, features, &mut errors);
    let containers = list(spec, "containers");
    let init = list(spec, "initContainers");
    security_warnings(spec, "containers", features, &mut errors);
    security_warnings(spec, "initContainers", features, &mut errors);
    let mut context = Context { features, volumes: BTreeMap::new() };
    errors.also(volumes(spec, &mut context).via("volumes"));
    errors.also(init_containers(init, containers, &context));
    let (port, problems) = serving_port(containers);
    errors.also(problems.via("containers[*]"));
    match containers {
        [] => errors.missing("containers"),
        [only] => errors.also(container(only, Role::Serving, Some(&port), &context).via("containers[0]")),
        many => errors.also(self::containers(many, &port, &context)),
    }
    let account = text(spec, "serviceAccountName");
    if !account.is_empty() {
        for problem in names::dns1123_subdomain(account) {
            errors.invalid_detailed(account, "serviceAccountName", problem);
        }
    }
    let limit = defaults.max_timeout_seconds;
    if let Some(value) = spec["timeoutSeconds"].as_i64().filter(|value| !(0..=limit).contains(value)) {
        errors.out_of_bounds(value, 0, limit, "timeoutSeconds");
    }
    let (least, most) = (i64::from(!defaults.allow_container_concurrency_zero), defaults.container_concurrency_max);
    if let Some(value) = spec["containerConcurrency"].as_i64().filter(|value| !(least..=most).contains(value)) {
        errors.out_of_bounds(value, least, most, "containerConcurrency");
    }
    errors
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An error that names each field of `object` that is not allowed.
fn only(object: &Value, allowed: &[&str]) -> Errors {
    masked(object, |key, _| allowed.contains(&key))
}

fn masked(object: &Value, allowed: impl Fn(&str, &Value) -> bool) -> Errors {
    let mut errors = Errors::default();
    let fields = object.as_object().into_iter().flatten();
    let forbidden: Vec<&str> =
        fields.filter(|(key, value)| !value.is_null() && !allowed(key, value)).map(|(key, _)| key.as_str()).collect();
    if !forbidden.is_empty() {
        errors.add("must not set the field(s)", forbidden);
    }
    errors
}

fn pod(spec: &Value, features: &Features, errors: &mut Errors) {
    let on = |flag: Flag| flag != Flag::Disabled;
    errors.also(masked(spec, |key, value| match key {
        "serviceAccountName" | "containers" | "volumes" | "imagePullSecrets" | "enableServiceLinks" => true,
        "automountServiceAccountToken" => *value == false,
        "affinity" => on(features.pod_spec_affinity),
        "topologySpreadConstraints" => on(features.pod_spec_topology_spread_constraints),
        "hostAliases" => on(features.pod_spec_host_aliases),
        "nodeSelector" => on(features.pod_spec_node_selector),
        "runtimeClassName" => on(features.pod_spec_runtime_class_name),
        "tolerations" => on(features.pod_spec_tolerations),
        "securityContext" => on(features.pod_spec_security_context) || on(features.secure_pod_defaults),
        "shareProcessNamespace" => on(features.pod_spec_share_process_namespace),
        "priorityClassName" => on(features.pod_spec_priority_class_name),
        "schedulerName" => on(features.pod_spec_scheduler_name),
        "initContainers" => on(features.pod_spec_init_containers),
        "dnsPolicy" => on(features.pod_spec_dns_policy),
        "dnsConfig" => on(features.pod_spec_dns_config),
        "hostIPC" => on(features.pod_spec_host_ipc),
        "hostPID" => on(features.pod_spec_host_pid),
        "hostNetwork" => on(features.pod_spec_host_network),
        other => REVISION_FIELDS.contains(&other),
    }));
    if spec["securityContext"].is_object() {
        errors.also(pod_security(&spec["securityContext"], features).via("securityContext"));
    }
}

fn pod_security(context: &Value, features: &Features) -> Errors {
    let all = features.pod_spec_security_context != Flag::Disabled;
    let mut errors = masked(context, |key, value| match key {
        "seccompProfile" if !all => {
            let kind = text(value, "type");
            let plain = value["localhostProfile"].is_null();
            features.secure_pod_defaults.is_secure() && plain && ["RuntimeDefault", "Unconfined"].contains(&kind)
        }
        "runAsUser" | "runAsGroup" | "runAsNonRoot" | "fsGroup" | "supplementalGroups" | "seccompProfile" => all,
        _ => false,
    });
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context[key], key, &mut errors);
    }
    for (index, group) in list(context, "supplementalGroups").iter().enumerate() {
        id(group, &format!("supplementalGroups[{index}]"), &mut errors);
    }
    errors
}

/// A number of a user or a group.
fn id(value: &Value, path: &str, errors: &mut Errors) {
    if let Some(value) = value.as_i64().filter(|value| !(0..=i64::from(i32::MAX)).contains(value)) {
        errors.out_of_bounds(value, 0, i32::MAX, path);
    }
}

/// Warnings about what Kubernetes leaves open when nobody says otherwise.
fn security_warnings(spec: &Value, key: &str, features: &Features, errors: &mut Errors) {
    if features.secure_pod_defaults.is_secure() {
        return;
    }
    let pod = &spec["securityContext"];
    for (index, container) in list(spec, key).iter().enumerate() {
        let own = &container["securityContext"];
        let mut open = Vec::new();
        if pod["runAsNonRoot"].is_null() && own["runAsNonRoot"].is_null() {
            open.push("runAsNonRoot");
        }
        if own["allowPrivilegeEscalation"].is_null() {
            open.push("allowPrivilegeEscalation");
        }
        if own["seccompProfile"].is_null() && pod["seccompProfile"].is_null() {
            open.push("seccompProfile");
        } else if text(&own["seccompProfile"], "type").is_empty() && text(&pod["seccompProfile"], "type").is_empty() {
            open.push("seccompProfile.type");
        }
        let mut warnings = Errors::default();
        let drop = &own["capabilities"]["drop"];
        if own["capabilities"].is_null() {
            open.push("capabilities");
        } else if drop.is_null() {
            open.push("capabilities.drop");
        } else if drop[0] == "all" {
            warnings.warn("invalid value: all", "capabilities.drop", "Must be spelled as 'ALL'");
        }
        let message = "Kubernetes default value is insecure, Knative may default this to secure in a future release";
        open.into_iter().for_each(|path| warnings.warn(message, path, ""));
        errors.also(warnings.via(&format!("{key}[{index}].securityContext")));
    }
}

fn volumes<'a>(spec: &'a Value, context: &mut Context<'a>) -> Errors {
    let mut errors = Errors::default();
    let containers = list(spec, "initContainers").iter().chain(list(spec, "containers"));
    let mounts = containers.flat_map(|container| list(container, "volumeMounts"));
    let mounted: BTreeSet<&str> = mounts.map(|mount| text(mount, "name")).collect();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let name = text(volume, "name");
        let mut own = Errors::default();
        if context.volumes.contains_key(name) {
            own.add(format!("duplicate volume name {name:?}"), ["name"]);
        }
        if !mounted.contains(name) {
            own.add(format!("volume with name {name:?} not mounted"), ["name"]);
        }
        own.also(self::volume(volume, name, context.features));
        errors.also(own.via(&format!("[{index}]")));
        context.volumes.insert(name, volume);
    }
    errors
}

/// Sources of volumes that are always there, and those that a flag lets in.
fn volume_sources(features: &Features) -> [(&'static str, &'static str, Flag); 9] {
    [
        ("secret", "", Flag::Enabled),
        ("configMap", "", Flag::Enabled),
        ("projected", "", Flag::Enabled),
        ("emptyDir", "EmptyDir", features.pod_spec_volumes_empty_dir),
        ("persistentVolumeClaim", "", features.pod_spec_persistent_volume_claim),
        ("hostPath", "HostPath", features.pod_spec_volumes_host_path),
        ("csi", "CSI", features.pod_spec_volumes_csi),
        ("ephemeral", "Ephemeral", features.pod_spec_volumes_ephemeral),
        ("image", "Image", features.pod_spec_volumes_image),
    ]
}

fn volume(volume: &Value, name: &str, features: &Features) -> Errors {
    let mut errors = Errors::default();
    // A function's code, which the node gives to pods of its own namespace only.
    if text(&volume["csi"], "driver") == CODE_DRIVER {
        return errors;
    }
    claim(&volume["persistentVolumeClaim"], features, &mut errors);
    let sources = volume_sources(features);
    for (key, label, flag) in sources.iter().filter(|(_, label, _)| !label.is_empty()) {
        if volume[*key].is_object() && *flag != Flag::Enabled {
            errors.add(format!("{label} volume support is disabled, but found {label} volume {name}"), []);
        }
    }
    if name.is_empty() {
        errors = Errors::default();
        errors.missing("name");
    } else if !names::dns1123_label(name).is_empty() {
        errors = Errors::default();
        errors.invalid(name, "name");
    }
    errors.also(masked(volume, |key, _| {
        key == "name" || sources.iter().any(|(source, _, flag)| *source == key && *flag != Flag::Disabled)
    }));
    errors.also(volume_content(volume));
    let found: Vec<&str> = sources.iter().map(|(key, ..)| *key).filter(|key| volume[*key].is_object()).collect();
    match found.len() {
        0 => errors
            .missing_one_of(sources.iter().filter(|(_, _, flag)| *flag == Flag::Enabled).map(|(source, ..)| *source)),
        1 => {}
        _ => errors.multiple_one_of(found),
    }
    errors
}

fn claim(claim: &Value, features: &Features, errors: &mut Errors) {
    if !claim.is_object() {
        return;
    }
    let name = text(claim, "claimName");
    if features.pod_spec_persistent_volume_claim != Flag::Enabled {
        let message = "Persistent volume claim support is disabled, but found persistent volume claim";
        errors.add(format!("{message} {name}"), []);
    }
    if claim["readOnly"] != true && features.pod_spec_persistent_volume_write != Flag::Enabled {
        let message = "Persistent volume write support is disabled, but found persistent volume claim";
        errors.add(format!("{message} {name} that is not read-only"), []);
    }
}

fn volume_content(volume: &Value) -> Errors {
    let mut errors = Errors::default();
    for key in ["secret", "configMap"] {
        errors.also(items(&volume[key], path_of_key));
    }
    for (index, source) in list(&volume["projected"], "sources").iter().enumerate() {
        errors.also(projection(source).via(&format!("projected[{index}]")));
    }
    let directory = &volume["emptyDir"];
    let medium = text(directory, "medium");
    let mut own = Errors::default();
    if !["", "Memory"].contains(&medium) {
        own.invalid(medium, "medium");
    }
    let size = text(directory, "sizeLimit");
    if Quantity::parse(size).is_ok_and(|size| size.milli() < 0) {
        own.invalid(size, "sizeLimit");
    }
    errors.also(own.via("emptyDir"));
    if volume["image"].is_object() {
        let image = &volume["image"];
        let mut own = only(image, &["reference", "pullPolicy"]);
        if text(image, "reference").is_empty() {
            own.missing("reference");
        }
        let policy = text(image, "pullPolicy");
        if !["", "IfNotPresent", "Always", "Never"].contains(&policy) {
            own.invalid(policy, "pullPolicy");
        }
        errors.also(own.via("image"));
    }
    errors
}

fn items(source: &Value, check: fn(&Value) -> Errors) -> Errors {
    let mut errors = Errors::default();
    for (index, item) in list(source, "items").iter().enumerate() {
        errors.also(check(item).via(&format!("items[{index}]")));
    }
    errors
}

fn path_of_key(item: &Value) -> Errors {
    let mut errors = only(item, &["key", "path", "mode"]);
    for key in ["key", "path"] {
        if text(item, key).is_empty() {
            errors.missing(key);
        }
    }
    errors
}

fn projection(source: &Value) -> Errors {
    const SOURCES: [&str; 4] = ["secret", "configMap", "serviceAccountToken", "downwardAPI"];
    let mut errors = only(source, &SOURCES);
    let found: Vec<&str> = SOURCES.into_iter().filter(|key| source[*key].is_object()).collect();
    for key in &found {
        let source = &source[*key];
        let mut own = Errors::default();
        match *key {
            "serviceAccountToken" => {
                own.also(only(source, &["audience", "expirationSeconds", "path"]));
                if text(source, "path").is_empty() {
                    own.missing("path");
                }
            }
            "downwardAPI" => {
                own.also(only(source, &["items"]));
                own.also(items(source, downward_file));
            }
            _ => {
                own.also(only(source, &["name", "items", "optional"]));
                if text(source, "name").is_empty() {
                    own.missing("name");
                }
                own.also(items(source, path_of_key));
            }
        }
        errors.also(own.via(key));
    }
    match found.len() {
        0 => errors.missing_one_of(SOURCES),
        1 => {}
        _ => errors.multiple_one_of(found),
    }
    errors
}

fn downward_file(file: &Value) -> Errors {
    let mut errors = only(file, &["fieldRef", "resourceFieldRef", "path", "mode"]);
    match (file["fieldRef"].is_object(), file["resourceFieldRef"].is_object()) {
        (false, false) => errors.missing_one_of(["fieldRef", "resourceFieldRef"]),
        (true, true) => {
            errors.add("Within a single item, cannot set both", ["resourceFieldRef", "fieldRef"]);
        }
        _ => {}
    }
    if text(file, "path").is_empty() {
        errors.missing("path");
    }
    errors
}

fn init_containers(init: &[Value], others: &[Value], context: &Context<'_>) -> Errors {
    let mut errors = Errors::default();
    if init.is_empty() {
        return errors;
    }
    if context.features.pod_spec_init_containers != Flag::Enabled {
        let message = "pod spec support for init-containers is off, but found";
        errors.add(format!("{message} {} init containers", init.len()), []);
        return errors;
    }
    for (index, container) in init.iter().enumerate() {
        let (name, step) = (text(container, "name"), format!("containers[{index}]"));
        if others.iter().any(|other| text(other, "name") == name) {
            errors.add(format!("duplicate container name {name:?}"), ["name"]);
            errors = errors.via(&step);
        }
        errors.also(self::container(container, Role::Init, None, context).via(&step));
    }
    errors
}

/// The port that requests go to, and what is wrong with the ports of all containers together.
fn serving_port(containers: &[Value]) -> (Port, Errors) {
    let mut errors = Errors::default();
    let ports = || containers.iter().map(|container| list(container, "ports")).filter(|ports| !ports.is_empty());
    let count: usize = ports().map(<[Value]>::len).sum();
    let name = ports().next_back().map_or("", |ports| text(&ports[0], "name"));
    let port = Port { name: if name.is_empty() { "http".to_owned() } else { name.to_owned() } };
    if count == 0 && containers.len() > 1 {
        errors.missing("ports");
    } else if count > 1 {
        errors.add_detailed(
            "more than one container port is set",
            ["ports"],
            "Only a single port is allowed across all containers",
        );
    }
    (port, errors)
}

fn containers(containers: &[Value], port: &Port, context: &Context<'_>) -> Errors {
    let mut errors = Errors::default();
    if context.features.multi_container != Flag::Enabled {
        errors.add(format!("multi-container is off, but found {} containers", containers.len()), []);
        return errors;
    }
    let mut seen = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let (name, step) = (text(container, "name"), format!("containers[{index}]"));
        if !seen.insert(name) {
            errors.add(format!("duplicate container name {name:?}"), ["name"]);
            errors = errors.via(&step);
        }
        let role = if list(container, "ports").is_empty() { Role::Sidecar } else { Role::Serving };
        let port = Some(port).filter(|_| role == Role::Serving);
        errors.also(self::container(container, role, port, context).via(&step));
    }
    errors
}

fn container(container: &Value, role: Role, port: Option<&Port>, context: &Context<'_>) -> Errors {
    let mut errors = probes(container, role, port, context.features);
    errors.also(only(container, &CONTAINER_FIELDS));
    let name = text(container, "name");
    if name == "queue-proxy" {
        errors.add(format!("{name:?} is a reserved container name"), ["name"]);
    }
    for (index, variable) in list(container, "env").iter().enumerate() {
        errors.also(self::variable(variable, role, context.features).via(&format!("env[{index}]")));
    }
    errors.also(environment_sources(list(container, "envFrom")).via("envFrom"));
    let image = text(container, "image");
    if image.is_empty() {
        errors.missing("image");
    } else if !image::is_reference(image) {
        let details = format!("image: {image:?}, error: could not parse reference: {image}");
        errors.add_detailed("Failed to parse image reference", ["image"], details);
    }
    errors.also(ports(list(container, "ports"), role).via("ports"));
    errors.also(only(&container["resources"], &["limits", "requests"]).via("resources"));
    errors.also(security(&container["securityContext"], context.features).via("securityContext"));
    let policy = text(container, "terminationMessagePolicy");
    if !["", "File", "FallbackToLogsOnError"].contains(&policy) {
        errors.invalid(policy, "terminationMessagePolicy");
    }
    errors.also(mounts(list(container, "volumeMounts"), context).via("volumeMounts"));
    errors
}

fn probes(container: &Value, role: Role, port: Option<&Port>, features: &Features) -> Errors {
    let mut errors = Errors::default();
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[key];
        if !probe.is_object() {
            continue;
        }
        match role {
            Role::Init => errors.add("field not allowed in an init container", [key]),
            Role::Sidecar if features.multi_container_probing != Flag::Enabled => {
                errors.also(unwanted_probe(probe).via(key));
            }
            _ if key == "readinessProbe" => errors.also(readiness(probe, port).via(key)),
            _ => errors.also(self::probe(probe, port).via(key)),
        }
    }
    if role == Role::Init && !container["lifecycle"].is_null() {
        errors.add("field not allowed in an init container", ["lifecycle"]);
    }
    errors
}

/// A probe where there must be none; its handler has no name of its own in the reference.
fn unwanted_probe(probe: &Value) -> Errors {
    let mut errors = Errors::default();
    let set = probe.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let name = |key: &'_ str| if PROBE_HANDLERS.contains(&key) { String::new() } else { key.to_owned() };
    let fields: BTreeSet<String> = set.map(|(key, _)| name(key)).collect();
    if !fields.is_empty() {
        errors.add("must not set the field(s)", fields.iter().map(String::as_str));
    }
    errors
}

fn readiness(probe: &Value, port: Option<&Port>) -> Errors {
    let mut errors = self::probe(probe, port);
    let number = |key: &str| probe[key].as_i64().unwrap_or_default();
    let mut at_least = |key: &str, least: i64| {
        if number(key) < least {
            errors.out_of_bounds(number(key), least, i32::MAX, key);
        }
    };
    at_least("periodSeconds", 0);
    at_least("initialDelaySeconds", 0);
    at_least("successThreshold", 1);
    if number("periodSeconds") != 0 {
        at_least("timeoutSeconds", 1);
        at_least("failureThreshold", 1);
        return errors;
    }
    for key in ["failureThreshold", "timeoutSeconds"].into_iter().filter(|key| number(key) != 0) {
        errors.add(format!("{key} is disallowed when periodSeconds is zero"), [key]);
    }
    errors
}

fn probe(probe: &Value, port: Option<&Port>) -> Errors {
    let mut errors = only(probe, &PROBE_FIELDS);
    let mut handlers = Vec::new();
    let rows: [(&str, &[&str]); 4] = [
        ("httpGet", &["host", "path", "scheme", "httpHeaders", "port"]),
        ("tcpSocket", &["host", "port"]),
        ("exec", &["command"]),
        ("grpc", &["port", "service"]),
    ];
    for (key, allowed) in rows {
        let action = &probe[key];
        if !action.is_object() {
            continue;
        }
        handlers.push(if key == "grpc" { "gRPC" } else { key });
        if key == "grpc" {
            errors.also(only(action, allowed).via(key));
            continue;
        }
        errors.also(only(action, allowed));
        errors = errors.via(key);
        if key != "exec" {
            probe_port(&action["port"], &format!("{key}.port"), port, &mut errors);
        }
    }
    match handlers.len() {
        0 => errors.missing_one_of(["httpGet", "tcpSocket", "exec", "grpc"]),
        1 => {}
        _ => errors.multiple_one_of(handlers),
    }
    errors
}

/// A probe goes to the serving port, unless the container has none.
fn probe_port(value: &Value, path: &str, port: Option<&Port>, errors: &mut Errors) {
    let name = value.as_str().unwrap_or_default();
    match port {
        Some(port) if !name.is_empty() && name != port.name => {
            errors.invalid_detailed(name, path, "Probe port must match container port");
        }
        None if name.is_empty() && value.as_i64().unwrap_or_default() == 0 => {
            let shown = if value.is_string() { "" } else { "0" };
            errors.invalid_detailed(shown, path, "Probe port must be specified");
        }
        _ => {}
    }
}

fn variable(variable: &Value, role: Role, features: &Features) -> Errors {
    let mut errors = only(variable, &["name", "value", "valueFrom"]);
    let name = text(variable, "name");
    if name.is_empty() {
        errors.missing("name");
    } else if RESERVED_ENV.contains(&name) && (role == Role::Serving || name != "PORT") {
        errors.add(format!("{name:?} is a reserved environment variable"), ["name"]);
    }
    let fields = features.pod_spec_field_ref != Flag::Disabled;
    let source = masked(&variable["valueFrom"], |key, _| match key {
        "configMapKeyRef" | "secretKeyRef" => true,
        "fieldRef" | "resourceFieldRef" => fields,
        _ => false,
    });
    errors.also(source.via("valueFrom"));
    errors
}

fn environment_sources(sources: &[Value]) -> Errors {
    let mut errors = Errors::default();
    for (index, source) in sources.iter().enumerate() {
        let step = format!("[{index}]");
        errors.also(only(source, &["prefix", "configMapRef", "secretRef"]).via(&step));
        for key in ["secretRef", "configMapRef"].into_iter().filter(|key| source[*key].is_object()) {
            errors.also(only(&source[key], &["name", "optional"]).via(&step));
            errors = errors.via(&step).via(key);
        }
        match (source["configMapRef"].is_object(), source["secretRef"].is_object()) {
            (true, true) => errors.multiple_one_of(["configMapRef", "secretRef"]),
            (false, false) => errors.missing_one_of(["configMapRef", "secretRef"]),
            _ => {}
        }
    }
    errors
}

fn ports(ports: &[Value], role: Role) -> Errors {
    let mut errors = Errors::default();
    let looked_at = if role == Role::Init { ports } else { &ports[..ports.len().min(1)] };
    for port in looked_at {
        errors.also(only(port, &["name", "containerPort", "protocol"]));
        let number = port["containerPort"].as_i64().unwrap_or_default();
        if RESERVED_PORTS.contains(&number) {
            let details = format!("{number} is a reserved port, please use a different value");
            errors.invalid_detailed(format!("{number} is a reserved port"), "containerPort", details);
        }
        if !(0..=65_535).contains(&number) {
            errors.out_of_bounds(number, 0, 65_535, "containerPort");
        }
        if role == Role::Init {
            continue;
        }
        let protocol = text(port, "protocol");
        if !["", "TCP"].contains(&protocol) {
            errors.invalid(protocol, "protocol");
        }
        let name = text(port, "name");
        if !["", "h2c", "http1"].contains(&name) {
            let details = "Name must be empty, or one of: 'h2c', 'http1'";
            errors.add_detailed(format!("Port name {name} is not allowed"), [""], details);
        }
    }
    errors
}

fn security(context: &Value, features: &Features) -> Errors {
    let mut errors = masked(context, |key, value| match key {
        "privileged" => *value == false,
        "capabilities" | "readOnlyRootFilesystem" | "runAsUser" | "runAsGroup" | "runAsNonRoot" => true,
        "allowPrivilegeEscalation" | "seccompProfile" => true,
        _ => false,
    });
    let add = masked(&context["capabilities"], |key, value| match key {
        "drop" => true,
        "add" if features.container_spec_add_capabilities == Flag::Enabled => true,
        "add" => features.secure_pod_defaults.is_secure() && *value == serde_json::json!(["NET_BIND_SERVICE"]),
        _ => false,
    });
    errors.also(add.via("capabilities"));
    for key in ["runAsUser", "runAsGroup"] {
        id(&context[key], key, &mut errors);
    }
    errors
}

fn mounts(mounts: &[Value], context: &Context<'_>) -> Errors {
    let mut errors = Errors::default();
    let mut seen = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        errors.also(self::mount(mount, &mut seen, context).via(&format!("[{index}]")));
    }
    errors
}

fn mount(mount: &Value, seen: &mut BTreeSet<String>, context: &Context<'_>) -> Errors {
    let empty = Value::Object(Map::new());
    let propagates = context.features.pod_spec_volumes_mount_propagation;
    let mut errors = masked(mount, |key, _| match key {
        "name" | "readOnly" | "mountPath" | "subPath" => true,
        "mountPropagation" => propagates != Flag::Disabled,
        _ => false,
    });
    let name = text(mount, "name");
    if !context.volumes.contains_key(name) {
        errors.add("volumeMount has no matching volume", ["name"]);
    }
    let volume = context.volumes.get(name).copied().unwrap_or(&empty);
    let target = text(mount, "mountPath");
    let clean = go::clean_path(target);
    if target.is_empty() {
        errors.missing("mountPath");
    } else if RESERVED_PATHS.contains(&clean.as_str()) {
        errors.add(format!("mountPath {clean:?} is a reserved path"), ["mountPath"]);
    } else if !target.starts_with('/') {
        errors.invalid(target, "mountPath");
    } else if seen.contains(&clean) {
        errors.invalid(format!("{target:?} must be unique"), "mountPath");
    }
    seen.insert(clean);
    let read_only = mount["readOnly"] == true;
    let writable = ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| volume[*kind].is_object());
    if !writable && !read_only {
        errors.add("volume mount should be readOnly for this type of volume", ["readOnly"]);
    }
    if let Some(mode) = mount["mountPropagation"].as_str() {
        if propagates != Flag::Enabled {
            let message = "Volume Mount Propagation support is disabled, but found volume mount";
            errors.add(format!("{message} {name} with mount propagation"), []);
        }
        if mode != "None" && mode != "HostToContainer" {
            errors.add("mount propagation should be set to None or HostToContainer", ["mountPropagation"]);
        }
    }
    if volume["persistentVolumeClaim"]["readOnly"] == true && !read_only {
        errors.add("volume is readOnly but volume mount is not", ["readOnly"]);
    }
    errors
}
