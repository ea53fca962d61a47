//! Which resources there are: names, scope, verbs, subresources.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;

use super::columns;
use super::json::{at, text};
use super::{Builtin, Rules};
use super::{batch, core as plain_kinds, limits, others, pod, service, workloads};
use crate::resource::{
    Columns, Durability, NameRule, ResourceDef, ScalePaths, SelectableField, Strategy, Subresource, Text,
};

const ALL_VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Path of a field that selectors may name, and how it is read.
type FieldReader = (&'static str, fn(&Value) -> String);

/// One row of the list, with the usual values filled in.
struct Row {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    /// Only created, never kept: reviews and bindings.
    transient: bool,
    status: bool,
    scale: bool,
    generation: bool,
    lazy: bool,
    name_rule: NameRule,
    unconditional_update: bool,
    create_on_update: bool,
    storage_group: Option<&'static str>,
    subresources: &'static [(&'static str, &'static str, &'static [&'static str])],
    fields: &'static [FieldReader],
    columns: fn() -> Columns,
    rules: Rules,
}

const fn row(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Row {
    Row {
        group,
        version,
        kind,
        plural,
        short_names: &[],
        categories: &[],
        namespaced: true,
        transient: false,
        status: false,
        scale: false,
        generation: false,
        lazy: false,
        name_rule: NameRule::Subdomain,
        unconditional_update: true,
        create_on_update: false,
        storage_group: None,
        subresources: &[],
        fields: &[],
        columns: columns::plain,
        rules: Rules::NONE,
    }
}

const fn review(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Row {
    Row { namespaced, transient: true, ..row(group, "v1", kind, plural) }
}

fn dotted(object: &Value, path: &str) -> String {
    match at(object, path) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

macro_rules! field {
    ($path:literal) => {
        ($path, |object: &Value| dotted(object, $path))
    };
    ($path:literal, $default:literal) => {
        ($path, |object: &Value| {
            let found = dotted(object, $path);
            if found.is_empty() { $default.to_string() } else { found }
        })
    };
}

const EVENT_FIELDS: &[FieldReader] = &[
    field!("involvedObject.kind"),
    field!("involvedObject.namespace"),
    field!("involvedObject.name"),
    field!("involvedObject.uid"),
    field!("involvedObject.apiVersion"),
    field!("involvedObject.resourceVersion"),
    field!("involvedObject.fieldPath"),
    field!("reason"),
    ("reportingComponent", |event| {
        let component = text(event, "reportingComponent");
        if component.is_empty() { text(event, "source.component").to_string() } else { component.to_string() }
    }),
    ("source", |event| {
        let component = text(event, "source.component");
        if component.is_empty() { text(event, "reportingComponent").to_string() } else { component.to_string() }
    }),
    field!("type"),
];

const NEW_EVENT_FIELDS: &[FieldReader] = &[
    field!("regarding.kind"),
    field!("regarding.namespace"),
    field!("regarding.name"),
    field!("regarding.uid"),
    field!("regarding.apiVersion"),
    field!("regarding.resourceVersion"),
    field!("regarding.fieldPath"),
    field!("reason"),
    field!("reportingController"),
    field!("type"),
];

const POD_FIELDS: &[FieldReader] = &[
    field!("spec.nodeName"),
    field!("spec.restartPolicy"),
    field!("spec.schedulerName"),
    field!("spec.serviceAccountName"),
    field!("spec.hostNetwork", "false"),
    field!("status.phase"),
    field!("status.podIP"),
    field!("status.nominatedNodeName"),
];

/// Every built-in resource.
pub fn all() -> Vec<ResourceDef> {
    rows().into_iter().map(define).collect()
}

fn rows() -> Vec<Row> {
    let mut rows = core();
    rows.extend(apps_and_batch());
    rows.extend(others());
    rows.extend(reviews());
    rows
}

fn core() -> Vec<Row> {
    let core = |kind, plural| row("", "v1", kind, plural);
    const ALL: &[&str] = &["all"];
    vec![
        Row { transient: true, ..core("Binding", "bindings") },
        Row {
            short_names: &["cm"],
            columns: plain_kinds::config_map_columns,
            rules: plain_kinds::CONFIG_MAPS,
            ..core("ConfigMap", "configmaps")
        },
        Row {
            short_names: &["ep"],
            create_on_update: true,
            columns: service::endpoints_columns,
            rules: service::ENDPOINTS,
            ..core("Endpoints", "endpoints")
        },
        Row {
            short_names: &["ev"],
            lazy: true,
            create_on_update: true,
            fields: EVENT_FIELDS,
            columns: plain_kinds::event_columns,
            rules: plain_kinds::EVENTS,
            ..core("Event", "events")
        },
        Row {
            short_names: &["limits"],
            create_on_update: true,
            rules: limits::RANGES,
            ..core("LimitRange", "limitranges")
        },
        Row {
            short_names: &["ns"],
            namespaced: false,
            status: true,
            name_rule: NameRule::Label,
            subresources: &[("finalize", "", &["update"])],
            fields: &[field!("status.phase")],
            columns: plain_kinds::namespace_columns,
            ..core("Namespace", "namespaces")
        },
        Row {
            short_names: &["no"],
            namespaced: false,
            status: true,
            subresources: &[("proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"])],
            fields: &[field!("spec.unschedulable", "false")],
            columns: plain_kinds::node_columns,
            rules: plain_kinds::NODES,
            ..core("Node", "nodes")
        },
        Row {
            short_names: &["pvc"],
            status: true,
            columns: plain_kinds::claim_columns,
            rules: plain_kinds::CLAIMS,
            ..core("PersistentVolumeClaim", "persistentvolumeclaims")
        },
        Row {
            short_names: &["pv"],
            namespaced: false,
            status: true,
            columns: plain_kinds::volume_columns,
            rules: plain_kinds::VOLUMES,
            ..core("PersistentVolume", "persistentvolumes")
        },
        Row {
            short_names: &["po"],
            categories: ALL,
            status: true,
            generation: true,
            subresources: &[
                ("attach", "PodAttachOptions", &["create", "get"]),
                ("binding", "Binding", &["create"]),
                ("ephemeralcontainers", "", &["get", "patch", "update"]),
                ("eviction", "policy/v1/Eviction", &["create"]),
                ("exec", "PodExecOptions", &["create", "get"]),
                ("log", "", &["get"]),
                ("portforward", "PodPortForwardOptions", &["create", "get"]),
                ("resize", "", &["get", "patch", "update"]),
            ],
            fields: POD_FIELDS,
            columns: pod::columns,
            rules: pod::RULES,
            ..core("Pod", "pods")
        },
        Row { rules: workloads::TEMPLATES, ..core("PodTemplate", "podtemplates") },
        Row {
            short_names: &["rc"],
            categories: ALL,
            status: true,
            scale: true,
            generation: true,
            fields: &[field!("status.replicas", "0")],
            columns: workloads::controller_columns,
            rules: workloads::CONTROLLERS,
            ..core("ReplicationController", "replicationcontrollers")
        },
        Row { short_names: &["quota"], status: true, rules: limits::QUOTAS, ..core("ResourceQuota", "resourcequotas") },
        Row {
            fields: &[field!("type")],
            columns: plain_kinds::secret_columns,
            rules: plain_kinds::SECRETS,
            ..core("Secret", "secrets")
        },
        Row {
            short_names: &["sa"],
            subresources: &[("token", "authentication.k8s.io/v1/TokenRequest", &["create"])],
            ..core("ServiceAccount", "serviceaccounts")
        },
        Row {
            short_names: &["svc"],
            categories: ALL,
            status: true,
            create_on_update: true,
            name_rule: NameRule::Label1035,
            fields: &[field!("spec.clusterIP"), field!("spec.type")],
            columns: service::columns,
            rules: service::RULES,
            ..core("Service", "services")
        },
    ]
}

fn apps_and_batch() -> Vec<Row> {
    let apps =
        |kind, plural| Row { status: true, generation: true, categories: &["all"], ..row("apps", "v1", kind, plural) };
    let batch_row = |kind, plural| Row { group: "batch", ..apps(kind, plural) };
    vec![
        Row {
            rules: workloads::CONTROLLER_REVISIONS,
            ..row("apps", "v1", "ControllerRevision", "controllerrevisions")
        },
        Row {
            short_names: &["ds"],
            columns: workloads::daemon_set_columns,
            rules: workloads::DAEMON_SETS,
            ..apps("DaemonSet", "daemonsets")
        },
        Row {
            short_names: &["deploy"],
            scale: true,
            columns: workloads::deployment_columns,
            rules: workloads::DEPLOYMENTS,
            ..apps("Deployment", "deployments")
        },
        Row {
            short_names: &["rs"],
            scale: true,
            fields: &[field!("status.replicas", "0")],
            columns: workloads::replica_set_columns,
            rules: workloads::REPLICA_SETS,
            ..apps("ReplicaSet", "replicasets")
        },
        Row {
            short_names: &["sts"],
            scale: true,
            columns: workloads::stateful_set_columns,
            rules: workloads::STATEFUL_SETS,
            ..apps("StatefulSet", "statefulsets")
        },
        Row {
            short_names: &["cj"],
            columns: batch::cron_job_columns,
            rules: batch::CRON_JOBS,
            ..batch_row("CronJob", "cronjobs")
        },
        Row {
            fields: &[field!("status.successful", "0")],
            columns: batch::job_columns,
            rules: batch::JOBS,
            ..batch_row("Job", "jobs")
        },
    ]
}

fn others() -> Vec<Row> {
    let hpa = |version, rules| Row {
        rules,
        columns: others::autoscaler_columns,
        short_names: &["hpa"],
        categories: &["all"],
        status: true,
        ..row("autoscaling", version, "HorizontalPodAutoscaler", "horizontalpodautoscalers")
    };
    let binding_columns: fn() -> Columns = others::binding_columns;
    let role_columns: fn() -> Columns = others::role_columns;
    let rbac = |kind, plural, namespaced, rules, columns| Row {
        rules,
        columns,
        namespaced,
        create_on_update: true,
        name_rule: NameRule::PathSegment,
        ..row("rbac.authorization.k8s.io", "v1", kind, plural)
    };
    let cluster = |group, kind, plural| Row { namespaced: false, ..row(group, "v1", kind, plural) };
    let webhooks = |kind, plural, rules| Row {
        rules,
        namespaced: false,
        generation: true,
        unconditional_update: false,
        categories: &["api-extensions"],
        ..row("admissionregistration.k8s.io", "v1", kind, plural)
    };
    vec![
        webhooks("MutatingWebhookConfiguration", "mutatingwebhookconfigurations", others::MUTATING_WEBHOOKS),
        webhooks("ValidatingWebhookConfiguration", "validatingwebhookconfigurations", others::VALIDATING_WEBHOOKS),
        Row {
            short_names: &["crd", "crds"],
            categories: &["api-extensions"],
            status: true,
            generation: true,
            unconditional_update: false,
            ..cluster("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions")
        },
        hpa("v2", others::AUTOSCALERS),
        hpa("v1", others::OLD_AUTOSCALERS),
        Row {
            lazy: true,
            unconditional_update: false,
            create_on_update: true,
            columns: others::lease_columns,
            rules: others::LEASES,
            ..row("coordination.k8s.io", "v1", "Lease", "leases")
        },
        Row {
            generation: true,
            columns: service::slice_columns,
            rules: service::SLICES,
            ..row("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices")
        },
        Row {
            short_names: &["ev"],
            lazy: true,
            create_on_update: true,
            storage_group: Some(""),
            fields: NEW_EVENT_FIELDS,
            columns: plain_kinds::event_columns,
            rules: plain_kinds::NEW_EVENTS,
            ..row("events.k8s.io", "v1", "Event", "events")
        },
        Row { generation: true, ..cluster("networking.k8s.io", "IngressClass", "ingressclasses") },
        Row {
            short_names: &["ing"],
            status: true,
            generation: true,
            columns: others::ingress_columns,
            rules: others::INGRESSES,
            ..row("networking.k8s.io", "v1", "Ingress", "ingresses")
        },
        Row {
            short_names: &["netpol"],
            generation: true,
            rules: others::POLICIES,
            ..row("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
        },
        Row { unconditional_update: false, ..cluster("node.k8s.io", "RuntimeClass", "runtimeclasses") },
        Row {
            short_names: &["pdb"],
            status: true,
            generation: true,
            unconditional_update: false,
            columns: others::budget_columns,
            rules: others::BUDGETS,
            ..row("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
        },
        rbac("ClusterRoleBinding", "clusterrolebindings", false, others::CLUSTER_BINDINGS, binding_columns),
        rbac("ClusterRole", "clusterroles", false, others::CLUSTER_ROLES, role_columns),
        rbac("RoleBinding", "rolebindings", true, others::BINDINGS, binding_columns),
        rbac("Role", "roles", true, others::ROLES, role_columns),
        Row {
            short_names: &["pc"],
            generation: true,
            rules: others::PRIORITY_CLASSES,
            ..cluster("scheduling.k8s.io", "PriorityClass", "priorityclasses")
        },
        Row { generation: true, unconditional_update: false, ..cluster("storage.k8s.io", "CSIDriver", "csidrivers") },
        Row { unconditional_update: false, ..cluster("storage.k8s.io", "CSINode", "csinodes") },
        Row {
            short_names: &["sc"],
            rules: others::STORAGE_CLASSES,
            ..cluster("storage.k8s.io", "StorageClass", "storageclasses")
        },
        Row {
            status: true,
            unconditional_update: false,
            ..cluster("storage.k8s.io", "VolumeAttachment", "volumeattachments")
        },
    ]
}

fn reviews() -> Vec<Row> {
    const AUTHN: &str = "authentication.k8s.io";
    const AUTHZ: &str = "authorization.k8s.io";
    vec![
        review(AUTHN, "SelfSubjectReview", "selfsubjectreviews", false),
        review(AUTHN, "TokenReview", "tokenreviews", false),
        review(AUTHZ, "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
        review(AUTHZ, "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
        review(AUTHZ, "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
        review(AUTHZ, "SubjectAccessReview", "subjectaccessreviews", false),
    ]
}

fn texts(list: &[&'static str]) -> Vec<Text> {
    list.iter().map(|text| Cow::Borrowed(*text)).collect()
}

fn define(row: Row) -> ResourceDef {
    let verbs = match (row.transient, row.kind) {
        (true, _) => texts(&["create"]),
        // Namespaces cannot be deleted as a collection.
        (_, "Namespace") => texts(&["create", "delete", "get", "list", "patch", "update", "watch"]),
        _ => texts(&ALL_VERBS),
    };
    ResourceDef {
        group: Cow::Borrowed(row.group),
        version: Cow::Borrowed(row.version),
        plural: Cow::Borrowed(row.plural),
        singular: Cow::Owned(row.kind.to_lowercase()),
        kind: Cow::Borrowed(row.kind),
        list_kind: Cow::Owned(format!("{}List", row.kind)),
        short_names: texts(row.short_names),
        categories: texts(row.categories),
        namespaced: row.namespaced,
        verbs,
        subresources: subresources(&row),
        scale: row.scale.then(scale_paths),
        generation: row.generation,
        durability: if row.lazy { Durability::Lazy } else { Durability::Sync },
        storage: (Cow::Borrowed(row.storage_group.unwrap_or(row.group)), Cow::Borrowed(row.plural)),
        name_rule: row.name_rule,
        unconditional_update: row.unconditional_update,
        create_on_update: row.create_on_update,
        columns: (row.columns)(),
        selectable_fields: selectable(&row),
        strategy: strategy(&row),
    }
}

fn strategy(row: &Row) -> Arc<dyn Strategy> {
    let api_version =
        if row.group.is_empty() { row.version.to_string() } else { format!("{}/{}", row.group, row.version) };
    let root = super::schema_name(&api_version, row.kind).unwrap_or_default();
    Builtin::strategy(root, row.status, row.rules)
}

fn selectable(row: &Row) -> Vec<SelectableField> {
    row.fields
        .iter()
        .map(|(label, value)| SelectableField { label: Cow::Borrowed(label), value: Arc::new(*value) })
        .collect()
}

fn scale_paths() -> ScalePaths {
    ScalePaths {
        spec_replicas: ".spec.replicas".into(),
        status_replicas: ".status.replicas".into(),
        selector: Some(".spec.selector".into()),
    }
}

fn subresources(row: &Row) -> Vec<Subresource> {
    let mut found: Vec<Subresource> = Vec::new();
    for (name, kind, verbs) in row.subresources {
        let (group_version, kind) = match kind.rsplit_once('/') {
            Some((group_version, kind)) => {
                let parts = group_version.split_once('/').map(|(g, v)| (Cow::Borrowed(g), Cow::Borrowed(v)));
                (parts, kind)
            }
            None if kind.is_empty() => (None, row.kind),
            None => (None, *kind),
        };
        found.push(Subresource {
            name: Cow::Borrowed(name),
            kind: Cow::Borrowed(kind),
            group_version,
            verbs: texts(verbs),
        });
    }
    let read_write = || texts(&["get", "patch", "update"]);
    if row.scale {
        found.push(Subresource {
            name: "scale".into(),
            kind: "Scale".into(),
            group_version: Some(("autoscaling".into(), "v1".into())),
            verbs: read_write(),
        });
    }
    if row.status {
        found.push(Subresource {
            name: "status".into(),
            kind: Cow::Borrowed(row.kind),
            group_version: None,
            verbs: read_write(),
        });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_schema_and_a_name_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for row in rows() {
            let api_version =
                if row.group.is_empty() { row.version.to_string() } else { format!("{}/{}", row.group, row.version) };
            assert!(super::super::schema_name(&api_version, row.kind).is_some(), "{api_version} {}", row.kind);
            assert!(seen.insert((row.group, row.version, row.plural)), "{} twice", row.plural);
        }
    }
}
