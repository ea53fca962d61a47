//! Names of the built-in kinds, without rules: for kinds that `kinds` does not describe.

use std::sync::Arc;

use crate::resource::{Columns, Durability, NameRule, NoRules, ResourceDef, ScalePaths, Subresource, Text};

/// Group/version, plural, kind, short names, flags: `n`amespaced, `s`tatus, s`c`ale, `a`ll, `l`azy, `p`ath names,
/// create-`o`nly, `r`ead-only.
const KINDS: &[(&str, &str, &str, &str, &str)] = &[
    ("v1", "namespaces", "Namespace", "ns", "s"),
    ("v1", "pods", "Pod", "po", "nsa"),
    ("v1", "services", "Service", "svc", "nsa"),
    ("v1", "endpoints", "Endpoints", "ep", "n"),
    ("v1", "configmaps", "ConfigMap", "cm", "n"),
    ("v1", "secrets", "Secret", "", "n"),
    ("v1", "serviceaccounts", "ServiceAccount", "sa", "n"),
    ("v1", "events", "Event", "ev", "nl"),
    ("v1", "nodes", "Node", "no", "s"),
    ("v1", "persistentvolumes", "PersistentVolume", "pv", "s"),
    ("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc", "ns"),
    ("v1", "limitranges", "LimitRange", "limits", "n"),
    ("v1", "resourcequotas", "ResourceQuota", "quota", "ns"),
    ("apps/v1", "deployments", "Deployment", "deploy", "nsca"),
    ("apps/v1", "replicasets", "ReplicaSet", "rs", "nsca"),
    ("apps/v1", "statefulsets", "StatefulSet", "sts", "nsca"),
    ("apps/v1", "daemonsets", "DaemonSet", "ds", "nsa"),
    ("batch/v1", "jobs", "Job", "", "nsa"),
    ("batch/v1", "cronjobs", "CronJob", "cj", "nsa"),
    ("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "", "n"),
    ("coordination.k8s.io/v1", "leases", "Lease", "", "nl"),
    ("events.k8s.io/v1", "events", "Event", "ev", "nl"),
    ("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa", "nsa"),
    ("networking.k8s.io/v1", "ingresses", "Ingress", "ing", "ns"),
    ("networking.k8s.io/v1", "ingressclasses", "IngressClass", "", ""),
    ("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", "netpol", "n"),
    ("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb", "ns"),
    ("rbac.authorization.k8s.io/v1", "roles", "Role", "", "np"),
    ("rbac.authorization.k8s.io/v1", "rolebindings", "RoleBinding", "", "np"),
    ("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole", "", "p"),
    ("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding", "", "p"),
    ("storage.k8s.io/v1", "storageclasses", "StorageClass", "sc", ""),
    ("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "pc", ""),
    ("node.k8s.io/v1", "runtimeclasses", "RuntimeClass", "", ""),
    ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", "", ""),
    ("admissionregistration.k8s.io/v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", "", ""),
    ("apiextensions.k8s.io/v1", "customresourcedefinitions", "CustomResourceDefinition", "crd,crds", "s"),
    ("authentication.k8s.io/v1", "tokenreviews", "TokenReview", "", "o"),
    ("authentication.k8s.io/v1", "selfsubjectreviews", "SelfSubjectReview", "", "o"),
    ("authorization.k8s.io/v1", "subjectaccessreviews", "SubjectAccessReview", "", "o"),
    ("authorization.k8s.io/v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", "", "o"),
    ("metrics.k8s.io/v1beta1", "nodes", "NodeMetrics", "", "r"),
    ("metrics.k8s.io/v1beta1", "pods", "PodMetrics", "", "nr"),
];

/// The kinds of the table that `known` does not hold.
pub(crate) fn missing(known: &[ResourceDef]) -> Vec<ResourceDef> {
    let is_known = |group: &str, version: &str, plural: &str| {
        known.iter().any(|def| def.group == group && def.version == version && def.plural == plural)
    };
    KINDS
        .iter()
        .filter(|(group_version, plural, ..)| {
            let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
            !is_known(group, version, plural)
        })
        .map(definition)
        .collect()
}

fn definition(
    (group_version, plural, kind, short, flags): &(
        &'static str,
        &'static str,
        &'static str,
        &'static str,
        &'static str,
    ),
) -> ResourceDef {
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let flag = |f: char| flags.contains(f);
    let verbs: Vec<Text> = if flag('o') {
        vec!["create".into()]
    } else if flag('r') {
        vec!["get".into(), "list".into()]
    } else {
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"].map(Text::from).to_vec()
    };
    let sub = |name: &'static str, kind: &'static str, verbs: &[&'static str]| Subresource {
        name: name.into(),
        kind: kind.into(),
        group_version: (name == "scale").then(|| ("autoscaling".into(), "v1".into())),
        verbs: verbs.iter().map(|v| Text::from(*v)).collect(),
    };
    let rw = ["get", "patch", "update"];
    let mut subresources = Vec::new();
    if *plural == "pods" && group.is_empty() {
        subresources.push(sub("binding", "Binding", &["create"]));
        subresources.push(sub("eviction", "Eviction", &["create"]));
        subresources.push(sub("log", "Pod", &["get"]));
    }
    if *plural == "namespaces" {
        subresources.push(sub("finalize", "Namespace", &["update"]));
    }
    if flag('c') {
        subresources.push(sub("scale", "Scale", &rw));
    }
    if flag('s') {
        subresources.push(sub("status", kind, &rw));
    }
    let storage_group = if *plural == "events" { "" } else { group };
    ResourceDef {
        group: group.into(),
        version: version.into(),
        plural: (*plural).into(),
        singular: kind.to_lowercase().into(),
        kind: (*kind).into(),
        list_kind: format!("{kind}List").into(),
        short_names: short.split(',').filter(|s| !s.is_empty()).map(Text::from).collect(),
        categories: if flag('a') { vec!["all".into()] } else { Vec::new() },
        namespaced: flag('n'),
        verbs,
        subresources,
        scale: flag('c').then(|| ScalePaths {
            spec_replicas: ".spec.replicas".into(),
            status_replicas: ".status.replicas".into(),
            selector: Some(".spec.selector".into()),
        }),
        generation: flag('s') && *plural != "namespaces" && *plural != "nodes",
        durability: if flag('l') { Durability::Lazy } else { Durability::Sync },
        storage: (storage_group.into(), (*plural).into()),
        name_rule: match *plural {
            "namespaces" => NameRule::Label,
            "services" => NameRule::Label1035,
            _ if flag('p') => NameRule::PathSegment,
            _ => NameRule::Subdomain,
        },
        unconditional_update: *plural != "customresourcedefinitions",
        create_on_update: flag('l'),
        columns: Columns { definitions: Vec::new(), cells: Arc::new(|_, _| Vec::new()) },
        selectable_fields: Vec::new(),
        strategy: Arc::new(NoRules),
    }
}
