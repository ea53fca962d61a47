//! A container's environment, command and arguments.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

/// Values that the environment may name, fetched beforehand. Keys: kind (`ConfigMap`, `Secret`), name.
pub type Sources = BTreeMap<(&'static str, String), Option<BTreeMap<String, String>>>;

/// What is named but not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The object is not there.
    #[error("{kind} {name:?} not found")]
    Object {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The key is not in it.
    #[error("couldn't find key {key} in {kind} {name}")]
    Key {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// The field of the pod cannot be referred to.
    #[error("field {0:?} cannot be referred to")]
    Field(String),
}

/// Where a pod finds the API server, by the names that Kubernetes' clients read. A name and not an address, because the
/// server's certificate is for names.
const API_SERVER: [(&str, &str); 3] = [
    ("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc"),
    ("KUBERNETES_SERVICE_PORT", "443"),
    ("KUBERNETES_SERVICE_PORT_HTTPS", "443"),
];

/// What the pod's own fields are answered from, beside the pod.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// The pod's address.
    pub pod_ip: String,
    /// The node's address.
    pub host_ip: String,
    /// The node's name.
    pub node: String,
}

/// Objects that a container's environment names: kind, name.
pub fn wanted(container: &Container) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for from in container.env_from.iter().flatten() {
        found.extend(from.config_map_ref.iter().map(|source| ("ConfigMap", source.name.clone())));
        found.extend(from.secret_ref.iter().map(|source| ("Secret", source.name.clone())));
    }
    for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        found.extend(source.config_map_key_ref.iter().map(|source| ("ConfigMap", source.name.clone())));
        found.extend(source.secret_key_ref.iter().map(|source| ("Secret", source.name.clone())));
    }
    found
}

/// The environment in order: the image's, then what comes from whole objects, then the container's own.
///
/// # Errors
///
/// [`EnvError`] names what is missing and not optional.
pub fn make(
    pod: &Pod,
    container: &Container,
    image: &[String],
    sources: &Sources,
    own: &Own,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env: Vec<(String, String)> = Vec::new();
    let set = |env: &mut Vec<(String, String)>, name: String, value: String| {
        env.retain(|(other, _)| *other != name);
        env.push((name, value));
    };
    for entry in image {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(&mut env, name.to_string(), value.to_string());
    }
    set(&mut env, "HOSTNAME".into(), super::spec::hostname(pod));
    for (name, value) in API_SERVER {
        set(&mut env, name.to_string(), value.to_string());
    }
    for from in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(source), _) => ("ConfigMap", &source.name, source.optional),
            (_, Some(source)) => ("Secret", &source.name, source.optional),
            _ => continue,
        };
        match sources.get(&(kind, name.clone())).and_then(Option::as_ref) {
            Some(data) => {
                let prefix = from.prefix.as_deref().unwrap_or_default();
                for (key, value) in data {
                    set(&mut env, format!("{prefix}{key}"), value.clone());
                }
            }
            None if optional == Some(true) => {}
            None => return Err(EnvError::Object { kind, name: name.clone() }),
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(pod, container, variable, sources, own, &env)? {
            set(&mut env, variable.name.clone(), value);
        }
    }
    Ok(env)
}

fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    sources: &Sources,
    own: &Own,
    before: &[(String, String)],
) -> Result<Option<String>, EnvError> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), before)));
    };
    let keyed = from.config_map_key_ref.as_ref().map(|s| ("ConfigMap", &s.name, &s.key, s.optional));
    let keyed = keyed.or(from.secret_key_ref.as_ref().map(|s| ("Secret", &s.name, &s.key, s.optional)));
    if let Some((kind, name, key, optional)) = keyed {
        let data = sources.get(&(kind, name.clone())).and_then(Option::as_ref);
        return match data.map(|data| data.get(key)) {
            Some(Some(value)) => Ok(Some(value.clone())),
            _ if optional == Some(true) => Ok(None),
            Some(None) => Err(EnvError::Key { kind, name: name.clone(), key: key.clone() }),
            None => Err(EnvError::Object { kind, name: name.clone() }),
        };
    }
    if let Some(field) = &from.field_ref {
        return pod_field(pod, &field.field_path, own).map(Some);
    }
    if let Some(resource) = &from.resource_field_ref {
        return resource_field(container, &resource.resource, resource.divisor.as_ref().map(|q| q.0.as_str()))
            .map(Some);
    }
    Ok(Some(String::new()))
}

/// A field of the pod, as the downward API names it.
///
/// # Errors
///
/// [`EnvError::Field`] for one that it does not know.
pub fn pod_field(pod: &Pod, path: &str, own: &Own) -> Result<String, EnvError> {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(EnvError::Field(path.into())),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let each = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
        each.collect::<Vec<_>>().join("\n")
    };
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => own.node.clone(),
        "spec.serviceAccountName" => pod.spec.as_ref().map(|spec| text(&spec.service_account_name)).unwrap_or_default(),
        "status.podIP" | "status.podIPs" => own.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => own.host_ip.clone(),
        _ => return Err(EnvError::Field(path.into())),
    })
}

/// A request or limit of a container in units of `divisor`, rounded up.
///
/// # Errors
///
/// [`EnvError::Field`] for a resource that is not known.
pub fn resource_field(container: &Container, resource: &str, divisor: Option<&str>) -> Result<String, EnvError> {
    let unknown = || EnvError::Field(resource.to_string());
    let (which, name) = resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let map = match which {
        "limits" => resources.and_then(|resources| resources.limits.as_ref()),
        "requests" => resources.and_then(|resources| resources.requests.as_ref()),
        _ => return Err(unknown()),
    };
    let value =
        map.and_then(|map| map.get(name)).and_then(|quantity| super::spec::quantity(&quantity.0)).unwrap_or(0.0);
    let divisor = divisor.and_then(super::spec::quantity).filter(|divisor| *divisor > 0.0).unwrap_or(1.0);
    Ok(format!("{}", (value / divisor).ceil()))
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a dollar sign; unknown names stay as they are.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
            continue;
        }
        let name = rest.strip_prefix("$(").and_then(|inner| inner.split_once(')'));
        match name {
            Some((name, after)) => {
                match env.iter().find(|(known, _)| known == name) {
                    Some((_, value)) => out.push_str(value),
                    None => out.push_str(&rest[..name.len() + 3]),
                }
                rest = after;
            }
            None => {
                out.push('$');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let env = [("A".to_string(), "1".to_string()), ("B".to_string(), "$(A)".to_string())];
        for (text, expected) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$(C)-$", "$(C)-$"),
            ("$(", "$("),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn values_come_from_objects_and_fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"app": "x"}}
        }))
        .unwrap();
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c",
            "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}},
            "envFrom": [{"prefix": "S_", "secretRef": {"name": "s"}}, {"configMapRef": {"name": "no", "optional": true}}],
            "env": [
                {"name": "PATH", "value": "/x"},
                {"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
                {"name": "C", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
                {"name": "ALL", "value": "$(K)-$(IP)"}
            ]
        }))
        .unwrap();
        let data = BTreeMap::from([("k".to_string(), "v".to_string())]);
        let sources = Sources::from([(("Secret", "s".to_string()), Some(data)), (("ConfigMap", "no".into()), None)]);
        let own = Own { pod_ip: "10.0.0.9".into(), ..Own::default() };
        let env = make(&pod, &container, &["PATH=/bin".to_string()], &sources, &own).unwrap();
        let text: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "HOSTNAME=p",
            "KUBERNETES_SERVICE_HOST=kubernetes.default.svc",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_SERVICE_PORT_HTTPS=443",
            "S_k=v",
            "PATH=/x",
            "K=v",
            "IP=10.0.0.9",
            "L=x",
            "M=64",
            "C=2",
            "ALL=v-10.0.0.9",
        ];
        assert_eq!(text, expected);
        let missing = make(&pod, &container, &[], &Sources::new(), &own).unwrap_err();
        assert_eq!(missing.to_string(), "Secret \"s\" not found");
    }
}
