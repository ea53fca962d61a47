//! Revision specs: their own fields, and the pod spec as far as Knative lets users set it.

use serde_json::Value;

use super::Settings;
use super::errors::Errors;
use super::text;

/// Fields of a pod spec that a user may set; the reference's feature flags, all off, would allow more.
const POD_FIELDS: [&str; 10] = [
    "containerConcurrency",
    "timeoutSeconds",
    "responseStartTimeoutSeconds",
    "idleTimeoutSeconds",
    "containers",
    "volumes",
    "serviceAccountName",
    "imagePullSecrets",
    "enableServiceLinks",
    "automountServiceAccountToken",
];
/// Fields of a pod's security context whose own names are not printed beside its own.
const POD_SECURITY_FIELDS: [&str; 6] =
    ["runAsUser", "runAsGroup", "fsGroup", "supplementalGroups", "seccompProfile", "runAsNonRoot"];
/// Fields of a container that nobody may set.
const CONTAINER_FIELDS_FORBIDDEN: [&str; 8] =
    ["lifecycle", "stdin", "stdinOnce", "tty", "volumeDevices", "resizePolicy", "restartPolicy", "restartPolicyRules"];
/// Ports that the reference keeps for its sidecar.
const RESERVED_PORTS: [i64; 6] = [8008, 8012, 8013, 8022, 9090, 9091];
const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];
const RESERVED_PATHS: [&str; 3] = ["/", "/dev", "/dev/log"];
/// Where functions' code is mounted from; each namespace has its own.
const CODE_REGISTRY: &str = "code.colibri.local";

/// Checks a Revision's spec at `path`.
pub(super) fn validate(spec: &Value, path: &str, namespace: &str, settings: &Settings, errors: &mut Errors) {
    for key in spec.as_object().into_iter().flatten().filter(|(_, value)| is_set(value)).map(|(key, _)| key) {
        if !POD_FIELDS.contains(&key.as_str()) {
            errors.disallowed(format!("{path}.{key}"));
        }
    }
    if spec["hostUsers"].is_boolean() {
        errors.disallowed(format!("{path}.hostUsers"));
    }
    for (key, value) in spec["securityContext"].as_object().into_iter().flatten().filter(|(_, value)| !value.is_null())
    {
        // Of the fields that the flag would allow, only the pod itself is named.
        if !POD_SECURITY_FIELDS.contains(&key.as_str()) || (key == "runAsNonRoot" && value.is_boolean()) {
            errors.disallowed(format!("{path}.securityContext.{key}"));
        }
    }
    bounds(spec, path, settings, errors);
    let account = text(spec, "serviceAccountName");
    if !account.is_empty() && !base::names::is_dns1123_subdomain(account) {
        errors.add_detailed(
            format!("invalid value: {account}"),
            format!("{path}.serviceAccountName"),
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        );
    }
    volumes(spec, path, namespace, errors);
    let containers = spec["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if containers.is_empty() {
        return errors.missing(format!("{path}.containers"));
    }
    ports_of_all(containers, path, errors);
    for (index, container) in containers.iter().enumerate() {
        self::container(
            container,
            &format!("{path}.containers[{index}]"),
            containers.len() == 1 || has_port(container),
            errors,
        );
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => true,
    }
}

fn bounds(spec: &Value, path: &str, settings: &Settings, errors: &mut Errors) {
    let limit = settings.container_concurrency_max;
    if let Some(value) = spec["containerConcurrency"].as_i64().filter(|value| !(0..=limit).contains(value)) {
        errors.out_of_bounds(value, 0, limit, format!("{path}.containerConcurrency"));
    }
    let limit = settings.max_timeout_seconds;
    if let Some(value) = spec["timeoutSeconds"].as_i64().filter(|value| !(0..=limit).contains(value)) {
        errors.out_of_bounds(value, 0, limit, format!("{path}.timeoutSeconds"));
    }
}

fn has_port(container: &Value) -> bool {
    container["ports"].as_array().is_some_and(|ports| !ports.is_empty())
}

fn ports_of_all(containers: &[Value], path: &str, errors: &mut Errors) {
    let ports: usize =
        containers.iter().map(|container| container["ports"].as_array().map(Vec::len).unwrap_or_default()).sum();
    if containers.len() > 1 && ports == 0 {
        errors.missing(format!("{path}.containers[*].ports"));
    } else if ports > 1 {
        errors.add_detailed(
            "more than one container port is set",
            format!("{path}.containers[*].ports"),
            "Only a single port is allowed across all containers",
        );
    }
}

fn container(container: &Value, path: &str, serving: bool, errors: &mut Errors) {
    let name = text(container, "name");
    if name == "queue-proxy" {
        errors.add(format!("{name:?} is a reserved container name"), format!("{path}.name"));
    }
    image(container, path, errors);
    for key in CONTAINER_FIELDS_FORBIDDEN {
        if is_set(&container[key]) {
            errors.disallowed(format!("{path}.{key}"));
        }
    }
    if is_set(&container["resources"]["claims"]) {
        errors.disallowed(format!("{path}.resources.claims"));
    }
    let policy = text(container, "terminationMessagePolicy");
    if !policy.is_empty() && policy != "File" && policy != "FallbackToLogsOnError" {
        errors.invalid(policy, format!("{path}.terminationMessagePolicy"));
    }
    for port in container["ports"].as_array().into_iter().flatten() {
        self::port(port, &format!("{path}.ports"), errors);
    }
    environment(container, path, serving, errors);
    security(&container["securityContext"], &format!("{path}.securityContext"), errors);
    if serving {
        probe(&container["readinessProbe"], &format!("{path}.readinessProbe"), errors);
    } else if container["readinessProbe"].is_object() {
        errors.disallowed(format!("{path}.readinessProbe"));
        errors.disallowed(format!("{path}.readinessProbe.successThreshold"));
    }
    mounts(container, path, errors);
}

fn image(container: &Value, path: &str, errors: &mut Errors) {
    let image = text(container, "image");
    if image.is_empty() {
        return errors.missing(format!("{path}.image"));
    }
    if !is_reference(image) {
        errors.add_detailed(
            "Failed to parse image reference",
            format!("{path}.image"),
            format!("image: {image:?}, error: could not parse reference: {image}"),
        );
    }
}

/// Whether `image` has the shape of a reference: a repository in lower case, a tag or a whole digest.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = image.split_once('@').map_or((image, None), |(rest, digest)| (rest, Some(digest)));
    let whole = |digest: &str| {
        digest.strip_prefix("sha256:").is_some_and(|sum| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let (host, repository) = match rest.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", rest),
    };
    let (repository, tag) = repository.split_once(':').map_or((repository, None), |(name, tag)| (name, Some(tag)));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/".contains(c);
    let tag_valid = |tag: &str| {
        !tag.is_empty() && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    !repository.is_empty()
        && repository.chars().all(plain)
        && host.chars().all(|c| c.is_ascii_alphanumeric() || ".:-[]".contains(c))
        && tag.is_none_or(tag_valid)
        && digest.is_none_or(whole)
}

fn port(port: &Value, path: &str, errors: &mut Errors) {
    for key in ["hostIP", "hostPort"] {
        if is_set(&port[key]) && port[key] != 0 {
            errors.disallowed(format!("{path}.{key}"));
        }
    }
    let number = port["containerPort"].as_i64().unwrap_or_default();
    if RESERVED_PORTS.contains(&number) {
        errors.add_detailed(
            format!("invalid value: {number} is a reserved port"),
            format!("{path}.containerPort"),
            format!("{number} is a reserved port, please use a different value"),
        );
    } else if !(0..=65_535).contains(&number) {
        errors.out_of_bounds(number, 0, 65_535, format!("{path}.containerPort"));
    }
    let protocol = text(port, "protocol");
    if !protocol.is_empty() && protocol != "TCP" {
        errors.invalid(protocol, format!("{path}.protocol"));
    }
    let name = text(port, "name");
    if !["", "h2c", "http1"].contains(&name) {
        errors.add_detailed(
            format!("Port name {name} is not allowed"),
            path,
            "Name must be empty, or one of: 'h2c', 'http1'",
        );
    }
}

fn environment(container: &Value, path: &str, serving: bool, errors: &mut Errors) {
    for (index, variable) in container["env"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.env[{index}]");
        let name = text(variable, "name");
        let reserved = RESERVED_ENV.contains(&name) && (serving || name != "PORT");
        if name.is_empty() {
            errors.missing(format!("{path}.name"));
        } else if reserved {
            errors.add(format!("{name:?} is a reserved environment variable"), format!("{path}.name"));
        }
        for key in ["fieldRef", "resourceFieldRef"] {
            if is_set(&variable["valueFrom"][key]) {
                errors.disallowed(format!("{path}.valueFrom.{key}"));
            }
        }
    }
    for source in container["envFrom"].as_array().into_iter().flatten() {
        let found = ["configMapRef", "secretRef"].iter().filter(|key| source[**key].is_object()).count();
        let message = match found {
            0 => "expected exactly one, got neither",
            1 => continue,
            _ => "expected exactly one, got both",
        };
        errors.add(message, format!("{path}.envFrom.configMapRef"));
        errors.add(message, format!("{path}.envFrom.secretRef"));
    }
}

fn security(context: &Value, path: &str, errors: &mut Errors) {
    if context["privileged"] == true {
        errors.disallowed(format!("{path}.privileged"));
    }
    for key in ["seLinuxOptions", "procMount", "windowsOptions"] {
        if is_set(&context[key]) {
            errors.disallowed(format!("{path}.{key}"));
        }
    }
    if is_set(&context["capabilities"]["add"]) {
        errors.disallowed(format!("{path}.capabilities.add"));
    }
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(value) = context[key].as_i64().filter(|value| !(0..=i64::from(i32::MAX)).contains(value)) {
            errors.out_of_bounds(value, 0, i32::MAX, format!("{path}.{key}"));
        }
    }
}

fn probe(probe: &Value, path: &str, errors: &mut Errors) {
    if !probe.is_object() {
        return;
    }
    let handlers: Vec<&str> =
        ["exec", "grpc", "httpGet", "tcpSocket"].into_iter().filter(|handler| probe[*handler].is_object()).collect();
    if handlers.len() > 1 {
        for handler in handlers {
            errors.add("expected exactly one, got both", format!("{path}.{handler}"));
        }
    }
    let number = |key: &str| probe[key].as_i64().unwrap_or_default();
    for (key, least) in [("periodSeconds", 0), ("initialDelaySeconds", 0)] {
        if number(key) < least {
            errors.out_of_bounds(number(key), least, i32::MAX, format!("{path}.{key}"));
        }
    }
    if number("successThreshold") < 1 && !probe["successThreshold"].is_null() {
        errors.out_of_bounds(number("successThreshold"), 1, i32::MAX, format!("{path}.successThreshold"));
    }
    if number("periodSeconds") == 0 {
        for key in ["failureThreshold", "timeoutSeconds"].into_iter().filter(|key| number(key) != 0) {
            errors.add(format!("{key} is disallowed when periodSeconds is zero"), format!("{path}.{key}"));
        }
    }
}

fn mounts(container: &Value, path: &str, errors: &mut Errors) {
    for (index, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.volumeMounts[{index}]");
        let target = text(mount, "mountPath");
        let clean = if target.len() > 1 { target.trim_end_matches('/') } else { target };
        if RESERVED_PATHS.contains(&clean) {
            errors.add(format!("mountPath {clean:?} is a reserved path"), format!("{path}.mountPath"));
        }
        if is_set(&mount["subPathExpr"]) {
            errors.disallowed(format!("{path}.subPathExpr"));
        }
        propagation(mount, &path, errors);
    }
}

fn propagation(mount: &Value, path: &str, errors: &mut Errors) {
    let mode = text(mount, "mountPropagation");
    if mode.is_empty() {
        return;
    }
    let (name, path) = (text(mount, "name"), format!("{path}.mountPropagation"));
    let message = "Volume Mount Propagation support is disabled, but found volume mount";
    errors.add(format!("{message} {name} with mount propagation"), "");
    if mode != "None" && mode != "HostToContainer" {
        errors.add("mount propagation should be set to None or HostToContainer", path.clone());
    }
    errors.disallowed(path);
}

fn volumes(spec: &Value, path: &str, namespace: &str, errors: &mut Errors) {
    let volumes = spec["volumes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let containers = ["containers", "initContainers"].iter().flat_map(|key| spec[*key].as_array()).flatten();
    let mounted: Vec<&str> = containers
        .flat_map(|container| container["volumeMounts"].as_array())
        .flatten()
        .map(|mount| text(mount, "name"))
        .collect();
    for (index, volume) in volumes.iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        let name = text(volume, "name");
        if !mounted.contains(&name) {
            errors.add(format!("volume with name {name:?} not mounted"), format!("{path}.name"));
        }
        source(volume, name, &path, namespace, errors);
    }
    for (list, key) in ["containers", "initContainers"].iter().filter_map(|key| Some((spec[*key].as_array()?, key))) {
        for (container, index) in list.iter().zip(0..) {
            for (mount, position) in container["volumeMounts"].as_array().into_iter().flatten().zip(0..) {
                let name = text(mount, "name");
                if !volumes.iter().any(|volume| text(volume, "name") == name) {
                    let place = format!("{path}.{key}[{index}].volumeMounts[{position}].name");
                    errors.add("volumeMount has no matching volume", place);
                }
            }
        }
    }
}

fn source(volume: &Value, name: &str, path: &str, namespace: &str, errors: &mut Errors) {
    const ALLOWED: [&str; 4] = ["configMap", "emptyDir", "projected", "secret"];
    const GATED: [(&str, &str); 4] =
        [("hostPath", "HostPath"), ("csi", "CSI"), ("ephemeral", "Ephemeral"), ("image", "Image")];
    let found: Vec<&str> = ALLOWED.into_iter().filter(|kind| volume[*kind].is_object()).collect();
    let medium = text(&volume["emptyDir"], "medium");
    if !["", "Memory"].contains(&medium) {
        errors.invalid(medium, format!("{path}.emptyDir.medium"));
    }
    // A function's code, from its own namespace.
    let code = format!("{CODE_REGISTRY}/{namespace}/");
    if text(&volume["image"], "reference").starts_with(&code) {
        return;
    }
    let mut gated = false;
    for (key, label) in GATED.into_iter().filter(|(key, _)| volume[*key].is_object()) {
        gated = true;
        errors.add(format!("{label} volume support is disabled, but found {label} volume {name}"), "");
        errors.disallowed(format!("{path}.{key}"));
    }
    let own = |key: &str| key == "name" || ALLOWED.contains(&key) || GATED.iter().any(|(gated, _)| *gated == key);
    for key in volume.as_object().into_iter().flat_map(|map| map.keys()).filter(|key| !own(key)) {
        errors.disallowed(format!("{path}.{key}"));
    }
    let message = match found.len() {
        1 => return,
        0 if gated => return,
        0 => "expected exactly one, got neither",
        _ => "expected exactly one, got both",
    };
    let paths = if found.is_empty() { ALLOWED.to_vec() } else { found };
    for kind in paths {
        errors.add(message, format!("{path}.{kind}"));
    }
}
