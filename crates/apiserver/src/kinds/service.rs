//! Services, Endpoints and EndpointSlices.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/core/v1/defaults.go`, `pkg/registry/core/service`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::columns::{AGE, Doc, NAME, age, columns as make};
use super::json::{at, child, entries, fill, items, items_mut, number, set, text};
use super::{Faults, Rules, names, remove};
use crate::resource::{Columns, FieldError};

pub const RULES: Rules = Rules {
    default,
    prepare_create: |service| {
        if let Some(spec) = service.get_mut("spec") {
            complete(spec);
        }
    },
    prepare_update,
    validate,
    validate_update,
    validate_status: |new, _, faults| {
        if !items(new, "status.loadBalancer.ingress").is_empty() && text(new, "spec.type") != "LoadBalancer" {
            let why = "may only be used when `spec.type` is 'LoadBalancer'";
            faults.push(FieldError::forbidden("status.loadBalancer.ingress", why));
        }
    },
    ..Rules::NONE
};

pub const ENDPOINTS: Rules = Rules {
    default: |endpoints| {
        for subset in items_mut(endpoints, "subsets") {
            for port in items_mut(subset, "ports") {
                fill(port, "protocol", "TCP");
            }
        }
    },
    ..Rules::NONE
};

pub const SLICES: Rules = Rules {
    default: |slice| {
        for port in items_mut(slice, "ports") {
            fill(port, "name", "");
            fill(port, "protocol", "TCP");
        }
    },
    validate: validate_slice,
    validate_update: |new, old, faults| {
        if text(new, "addressType") != text(old, "addressType") {
            faults.push(FieldError::invalid("addressType", text(new, "addressType"), "field is immutable"));
        }
    },
    ..Rules::NONE
};

/// First and last port that a node opens for a service.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

fn opens_node_ports(spec: &Value) -> bool {
    match text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => at(spec, "allocateLoadBalancerNodePorts") != &json!(false),
        _ => false,
    }
}

fn is_external(spec: &Value) -> bool {
    matches!(text(spec, "type"), "NodePort" | "LoadBalancer")
}

fn default(service: &mut Value) {
    let Some(spec) = service.get_mut("spec") else { return };
    fill(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "ClientIP" => {
            if let Some(config) = child(spec, "sessionAffinityConfig")
                && let Some(client) = child(config, "clientIP")
            {
                fill(client, "timeoutSeconds", 10800);
            }
        }
        _ => remove(spec, "sessionAffinityConfig"),
    }
    fill(spec, "type", "ClusterIP");
    for port in items_mut(spec, "ports") {
        fill(port, "protocol", "TCP");
        if matches!(at(port, "targetPort"), Value::Null)
            || at(port, "targetPort") == &json!(0)
            || at(port, "targetPort") == &json!("")
        {
            let target = at(port, "port").clone();
            set(port, "targetPort", target);
        }
    }
    if is_external(spec) {
        fill(spec, "externalTrafficPolicy", "Cluster");
    }
    if text(spec, "type") == "LoadBalancer" {
        fill(spec, "allocateLoadBalancerNodePorts", true);
    }
    if text(spec, "type") != "ExternalName" {
        fill(spec, "internalTrafficPolicy", "Cluster");
    }
}

/// What the server chooses: address families and node ports. (The cluster address is the engine's to choose.)
fn complete(spec: &mut Value) {
    if text(spec, "type") == "ExternalName" {
        return;
    }
    let headless = text(spec, "clusterIP") == "None";
    if headless {
        fill(spec, "clusterIPs", json!(["None"]));
    }
    let both = headless && entries(spec, "selector").next().is_none();
    let (policy, families) = if both {
        ("RequireDualStack", json!(["IPv4", "IPv6"]))
    } else if text(spec, "clusterIP").contains(':') {
        ("SingleStack", json!(["IPv6"]))
    } else {
        ("SingleStack", json!(["IPv4"]))
    };
    fill(spec, "ipFamilyPolicy", policy);
    fill(spec, "ipFamilies", families);
    if opens_node_ports(spec) {
        let mut taken: BTreeSet<i64> =
            items(spec, "ports").iter().filter_map(|port| number(port, "nodePort")).collect();
        for port in items_mut(spec, "ports") {
            if number(port, "nodePort").unwrap_or(0) == 0 {
                set(port, "nodePort", free_port(&mut taken));
            }
        }
        let local = text(spec, "externalTrafficPolicy") == "Local" && text(spec, "type") == "LoadBalancer";
        if local && number(spec, "healthCheckNodePort").unwrap_or(0) == 0 {
            set(spec, "healthCheckNodePort", free_port(&mut taken));
        }
    } else if text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local" {
        fill(spec, "healthCheckNodePort", free_port(&mut BTreeSet::new()));
    }
}

/// A port that the service does not use yet. Another service may have it: nothing listens on node ports here.
fn free_port(taken: &mut BTreeSet<i64>) -> i64 {
    let span = u64::try_from(NODE_PORTS.end() - NODE_PORTS.start() + 1).unwrap_or(1);
    let start = getrandom::u64().unwrap_or(0) % span;
    let candidates = (0..span).map(|step| NODE_PORTS.start() + i64::try_from((start + step) % span).unwrap_or(0));
    let port = candidates.into_iter().find(|port| !taken.contains(port)).unwrap_or(*NODE_PORTS.start());
    taken.insert(port);
    port
}

fn prepare_update(new: &mut Value, old: &Value) {
    let old = at(old, "spec").clone();
    let Some(spec) = new.get_mut("spec") else { return };
    let external_name = |spec: &Value| text(spec, "type") == "ExternalName";
    if external_name(spec) && !external_name(&old) {
        for name in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            drop_unchanged(spec, &old, name);
        }
        // A client that changes to ExternalName cannot keep an address, even one that it repeats.
        if at(spec, "clusterIP").is_null() {
            remove(spec, "clusterIPs");
        }
    } else if !external_name(spec) && !external_name(&old) {
        keep_addresses(spec, &old);
    }
    if opens_node_ports(&old) && !opens_node_ports(spec) {
        let ports: Vec<Value> = items(&old, "ports").iter().map(|port| at(port, "nodePort").clone()).collect();
        for port in items_mut(spec, "ports") {
            if ports.contains(at(port, "nodePort")) {
                remove(port, "nodePort");
            }
        }
    } else if opens_node_ports(spec) {
        keep_node_ports(spec, &old);
    }
    if is_external(&old) && !is_external(spec) {
        for name in ["externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts"] {
            drop_unchanged(spec, &old, name);
        }
    }
    if text(&old, "type") == "LoadBalancer" && text(spec, "type") != "LoadBalancer" {
        drop_unchanged(spec, &old, "allocateLoadBalancerNodePorts");
        drop_unchanged(spec, &old, "healthCheckNodePort");
        drop_unchanged(spec, &old, "loadBalancerClass");
    }
    complete(spec);
}

fn drop_unchanged(spec: &mut Value, old: &Value, name: &str) {
    if at(spec, name) == at(old, name) {
        remove(spec, name);
    }
}

fn keep_addresses(spec: &mut Value, old: &Value) {
    let (new_ip, old_ip) = (text(spec, "clusterIP").to_string(), text(old, "clusterIP"));
    if new_ip.is_empty() && at(spec, "clusterIPs").is_null() {
        for name in ["clusterIP", "clusterIPs"] {
            super::carry(spec, old, name);
        }
    } else {
        let only_one_changed = new_ip != old_ip && at(spec, "clusterIPs") == at(old, "clusterIPs");
        if only_one_changed || at(spec, "clusterIPs").is_null() {
            set(spec, "clusterIPs", json!([new_ip]));
        }
    }
    for name in ["ipFamilies", "ipFamilyPolicy", "healthCheckNodePort"] {
        if at(spec, name).is_null() {
            super::carry(spec, old, name);
        }
    }
}

fn keep_node_ports(spec: &mut Value, old: &Value) {
    for port in items_mut(spec, "ports") {
        if number(port, "nodePort").unwrap_or(0) == 0 {
            let same =
                |other: &&Value| at(other, "port") == at(port, "port") && at(other, "protocol") == at(port, "protocol");
            if let Some(before) = items(old, "ports").iter().find(same).and_then(|other| number(other, "nodePort")) {
                set(port, "nodePort", before);
            }
        }
    }
}

fn validate(service: &Value, faults: &mut Faults) {
    let spec = at(service, "spec");
    let kind = text(spec, "type");
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let known = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        faults.push(FieldError::not_supported("spec.type", kind, &known));
    }
    let cluster_ip = text(spec, "clusterIP");
    if kind == "ExternalName" {
        let name = text(spec, "externalName").trim_end_matches('.');
        if name.is_empty() {
            faults.push(FieldError::required("spec.externalName", ""));
        } else {
            faults.extend(
                names::subdomain(name).into_iter().map(|why| FieldError::invalid("spec.externalName", name, why)),
            );
        }
        if !cluster_ip.is_empty() {
            faults.push(FieldError::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
    } else if !matches!(cluster_ip, "" | "None") && cluster_ip.parse::<IpAddr>().is_err() {
        let why = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        faults.push(FieldError::invalid("spec.clusterIPs[0]", cluster_ip, why));
    }
    let affinity = text(spec, "sessionAffinity");
    if !matches!(affinity, "None" | "ClientIP") {
        faults.push(FieldError::not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]));
    }
    if items(spec, "ports").is_empty() && kind != "ExternalName" && cluster_ip != "None" {
        faults.push(FieldError::required("spec.ports", ""));
    }
    ports(spec, faults);
    for (key, value) in entries(spec, "selector") {
        faults.extend(
            names::qualified(key).into_iter().map(|why| FieldError::invalid("spec.selector", key.as_str(), why)),
        );
        let value = value.as_str().unwrap_or_default();
        faults
            .extend(names::label_value(value).into_iter().map(|why| FieldError::invalid("spec.selector", value, why)));
    }
}

fn ports(spec: &Value, faults: &mut Faults) {
    let all = items(spec, "ports");
    let (mut seen_names, mut seen_ports) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() {
            if all.len() > 1 {
                faults.push(FieldError::required(format!("{path}.name"), ""));
            }
        } else {
            faults.extend(
                names::label(name).into_iter().map(|why| FieldError::invalid(format!("{path}.name"), name, why)),
            );
            if !seen_names.insert(name) {
                faults.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        let value = number(port, "port").unwrap_or(0);
        if let Some(why) = names::port_number(value) {
            faults.push(FieldError::invalid(format!("{path}.port"), value, why));
        }
        let protocol = text(port, "protocol");
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            faults.push(FieldError::not_supported(format!("{path}.protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
        match at(port, "targetPort") {
            Value::String(name) => {
                faults.extend(
                    names::port_name(name)
                        .into_iter()
                        .map(|why| FieldError::invalid(format!("{path}.targetPort"), name.as_str(), why)),
                );
            }
            other => {
                let value = other.as_i64().unwrap_or(0);
                if let Some(why) = names::port_number(value) {
                    faults.push(FieldError::invalid(format!("{path}.targetPort"), value, why));
                }
            }
        }
        if !seen_ports.insert((protocol, value)) {
            faults.push(FieldError::duplicate(path, json!({"Name": "", "Protocol": protocol, "AppProtocol": null, "Port": value, "TargetPort": 0, "NodePort": 0})));
        }
    }
}

fn validate_update(new: &Value, old: &Value, faults: &mut Faults) {
    let external_name = |service: &Value| text(service, "spec.type") == "ExternalName";
    let before = at(old, "spec.clusterIPs");
    if external_name(new) || external_name(old) || !before.is_array() {
        return;
    }
    let after = at(new, "spec.clusterIPs");
    if before.get(0) != after.get(0) {
        faults.clear();
        faults.push(FieldError::invalid("spec.clusterIPs[0]", after.clone(), "may not change once set"));
    }
}

fn validate_slice(slice: &Value, faults: &mut Faults) {
    let kind = text(slice, "addressType");
    match kind {
        "" => faults.push(FieldError::required("addressType", "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => faults.push(FieldError::not_supported("addressType", other, &["FQDN", "IPv4", "IPv6"])),
    }
    for (index, endpoint) in items(slice, "endpoints").iter().enumerate() {
        let path = format!("endpoints[{index}].addresses");
        if items(endpoint, "addresses").is_empty() {
            faults.push(FieldError::required(&*path, "must contain at least 1 address"));
        }
        for (index, address) in items(endpoint, "addresses").iter().enumerate() {
            let address = address.as_str().unwrap_or_default();
            let path = format!("{path}[{index}]");
            let parsed = address.parse::<IpAddr>();
            let why = match (kind, parsed) {
                ("IPv4" | "IPv6", Err(_)) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ("IPv4", Ok(IpAddr::V6(_))) => "must be an IPv4 address",
                ("IPv6", Ok(IpAddr::V4(_))) => "must be an IPv6 address",
                _ => continue,
            };
            faults.push(FieldError::invalid(path, address, why));
        }
    }
}

/// Columns of Services.
pub fn columns() -> Columns {
    make(
        &[
            NAME,
            ("Type", "string", 0, Doc::Of("core.v1.ServiceSpec", "type")),
            ("Cluster-IP", "string", 0, Doc::Of("core.v1.ServiceSpec", "clusterIP")),
            ("External-IP", "string", 0, Doc::Of("core.v1.ServiceSpec", "externalIPs")),
            ("Port(s)", "string", 0, Doc::Of("core.v1.ServiceSpec", "ports")),
            AGE,
            ("Selector", "string", 1, Doc::Of("core.v1.ServiceSpec", "selector")),
        ],
        cells,
    )
}

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = at(service, "spec");
    let or_none = |text: String| json!(if text.is_empty() { "<none>".to_string() } else { text });
    let ports: Vec<String> = items(spec, "ports")
        .iter()
        .map(|port| match number(port, "nodePort") {
            Some(node) if node > 0 => {
                format!("{}:{node}/{}", number(port, "port").unwrap_or(0), text(port, "protocol"))
            }
            _ => format!("{}/{}", number(port, "port").unwrap_or(0), text(port, "protocol")),
        })
        .collect();
    let cluster_ip = items(spec, "clusterIPs").first().and_then(Value::as_str).unwrap_or(text(spec, "clusterIP"));
    vec![
        json!(text(service, "metadata.name")),
        json!(text(spec, "type")),
        or_none(cluster_ip.to_string()),
        json!(external(service)),
        or_none(ports.join(",")),
        age(service, now),
        or_none(super::columns::labels(at(spec, "selector"))),
    ]
}

fn external(service: &Value) -> String {
    let spec = at(service, "spec");
    let mut addresses: Vec<&str> = items(spec, "externalIPs").iter().filter_map(Value::as_str).collect();
    match text(spec, "type") {
        "ExternalName" => text(spec, "externalName").to_string(),
        "LoadBalancer" => {
            for ingress in items(service, "status.loadBalancer.ingress") {
                let ip = text(ingress, "ip");
                addresses.insert(0, if ip.is_empty() { text(ingress, "hostname") } else { ip });
            }
            if addresses.is_empty() { "<pending>".into() } else { addresses.join(",") }
        }
        _ if addresses.is_empty() => "<none>".into(),
        _ => addresses.join(","),
    }
}

/// Columns of EndpointSlices.
pub fn slice_columns() -> Columns {
    const OF: &str = "discovery.v1.EndpointSlice";
    make(
        &[
            NAME,
            ("AddressType", "string", 0, Doc::Head(OF, "addressType", " (Deprecated)")),
            ("Ports", "string", 0, Doc::Head(OF, "ports", " Services always")),
            ("Endpoints", "string", 0, Doc::Of(OF, "endpoints")),
            AGE,
        ],
        |slice, now| {
            let ports = items(slice, "ports").iter().map(|port| match number(port, "port") {
                Some(number) => number.to_string(),
                None => "*".to_string(),
            });
            let addresses = items(slice, "endpoints").iter().flat_map(|endpoint| items(endpoint, "addresses"));
            vec![
                json!(text(slice, "metadata.name")),
                json!(text(slice, "addressType")),
                json!(shortened(ports.collect(), "<unset>")),
                json!(shortened(addresses.filter_map(Value::as_str).map(str::to_string).collect(), "<unset>")),
                age(slice, now),
            ]
        },
    )
}

/// Columns of Endpoints.
pub fn endpoints_columns() -> Columns {
    make(
        &[NAME, ("Endpoints", "string", 0, Doc::Own("Addresses and ports behind the service.")), AGE],
        |endpoints, now| {
            let mut all = Vec::new();
            for subset in items(endpoints, "subsets") {
                for address in items(subset, "addresses") {
                    let ip = text(address, "ip");
                    let ports = items(subset, "ports");
                    if ports.is_empty() {
                        all.push(ip.to_string());
                    }
                    all.extend(ports.iter().map(|port| format!("{ip}:{}", number(port, "port").unwrap_or(0))));
                }
            }
            vec![json!(text(endpoints, "metadata.name")), json!(shortened(all, "<none>")), age(endpoints, now)]
        },
    )
}

/// At most three items, then how many more there are.
fn shortened(items: Vec<String>, none: &str) -> String {
    match items.len() {
        0 => none.to_string(),
        1..=3 => items.join(","),
        many => format!("{} + {} more...", items[..3].join(","), many - 3),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
        default(&mut service);
        (RULES.prepare_create)(&mut service);
        service
    }

    #[test]
    fn defaults_follow_the_type() {
        let plain = created(json!({"ports": [{"port": 80}], "selector": {"app": "x"}}));
        assert_eq!(
            plain["spec"],
            json!({"ports": [{"protocol": "TCP", "port": 80, "targetPort": 80}], "selector": {"app": "x"},
                "type": "ClusterIP", "sessionAffinity": "None", "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster"})
        );
        let headless = created(json!({"ports": [{"port": 1}], "clusterIP": "None"}));
        assert_eq!(headless["spec"]["ipFamilyPolicy"], "RequireDualStack");
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let named = created(json!({"type": "ExternalName", "externalName": "x.example.com"}));
        assert_eq!(
            named["spec"],
            json!({"type": "ExternalName", "externalName": "x.example.com", "sessionAffinity": "None"})
        );
        let node = created(json!({"ports": [{"port": 80}], "selector": {"a": "b"}, "type": "NodePort"}));
        assert!(NODE_PORTS.contains(&node["spec"]["ports"][0]["nodePort"].as_i64().expect("a port")));
    }

    #[test]
    fn an_address_is_kept_and_cannot_change() {
        let mut old = created(json!({"ports": [{"port": 80}], "selector": {"app": "x"}}));
        old["spec"]["clusterIP"] = json!("10.0.0.1");
        old["spec"]["clusterIPs"] = json!(["10.0.0.1"]);
        let mut new = created(json!({"ports": [{"port": 81}], "selector": {"app": "x"}}));
        prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
        let mut other = old.clone();
        other["spec"]["clusterIP"] = json!("10.0.0.2");
        prepare_update(&mut other, &old);
        let mut faults = Vec::new();
        validate_update(&other, &old, &mut faults);
        assert_eq!(
            faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"]
        );
    }

    #[test]
    fn node_ports_come_and_go_with_the_type() {
        let old = created(json!({"ports": [{"port": 80}], "selector": {"a": "b"}, "type": "NodePort"}));
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        prepare_update(&mut new, &old);
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        assert!(new["spec"].get("externalTrafficPolicy").is_none());
    }
}
