//! Deployments, ReplicaSets, StatefulSets, DaemonSets, ReplicationControllers.
//!
//! Source: `k8s.io/kubernetes/pkg/apis/apps/v1/defaults.go` and `pkg/apis/apps/validation`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::columns::{AGE, Doc, NAME, age, columns as make, labels, selector as selector_text};
use super::json::{at, child, fill, items, items_mut, number, object_mut, set, text, value_mut};
use super::pod::defaults as pod_defaults;
use super::pod::validate::{label_selector, selects, template_always};
use super::{Faults, Rules};
use crate::resource::{Columns, FieldError};

const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
const IMMUTABLE: &str = "field is immutable";

pub const DEPLOYMENTS: Rules = Rules {
    default: default_deployment,
    validate: validate_deployment,
    validate_update: |new, old, faults| {
        labels_of_update(new, faults);
        immutable_selector(new, old, faults);
    },
    spec_changed: Some(|new, old| {
        at(new, "spec") != at(old, "spec") || at(new, "metadata.annotations") != at(old, "metadata.annotations")
    }),
    ..Rules::NONE
};

pub const REPLICA_SETS: Rules = Rules {
    default: |set| {
        pod_defaults::template(set);
        if let Some(spec) = set.get_mut("spec") {
            fill(spec, "replicas", 1);
        }
    },
    validate: |set, faults| {
        not_negative(set, &["replicas", "minReadySeconds"], faults);
        selector(set, "deployment", faults);
        template_always(set, "ReplicaSet", faults);
    },
    validate_update: |new, old, faults| {
        labels_of_update(new, faults);
        immutable_selector(new, old, faults);
    },
    ..Rules::NONE
};

pub const STATEFUL_SETS: Rules = Rules {
    default: default_stateful_set,
    validate: |set, faults| {
        not_negative(set, &["replicas", "minReadySeconds", "revisionHistoryLimit"], faults);
        selector(set, "statefulset", faults);
        template_always(set, "StatefulSet", faults);
        let policy = text(set, "spec.podManagementPolicy");
        if !matches!(policy, "OrderedReady" | "Parallel") {
            faults.push(FieldError::invalid(
                "spec.podManagementPolicy",
                policy,
                "must be 'OrderedReady' or 'Parallel'",
            ));
        }
    },
    validate_update: stateful_set_update,
    ..Rules::NONE
};

pub const DAEMON_SETS: Rules = Rules {
    default: default_daemon_set,
    prepare_create: |set| template_generation(set, 1),
    prepare_update: |new, old| {
        let before = generation_of(old).unwrap_or(1);
        let changed = at(new, "spec.template") != at(old, "spec.template");
        template_generation(new, before + i64::from(changed));
    },
    validate: |set, faults| {
        not_negative(set, &["minReadySeconds", "revisionHistoryLimit"], faults);
        selector(set, "daemonset", faults);
        template_always(set, "DaemonSet", faults);
    },
    validate_update: immutable_selector,
    ..Rules::NONE
};

pub const CONTROLLERS: Rules = Rules {
    default: default_controller,
    validate: |controller, faults| {
        not_negative(controller, &["replicas", "minReadySeconds"], faults);
        if at(controller, "spec.selector").as_object().is_none_or(serde_json::Map::is_empty) {
            faults.push(FieldError::required("spec.selector", ""));
        }
        template_always(controller, "ReplicationController", faults);
    },
    ..Rules::NONE
};

pub const TEMPLATES: Rules = Rules {
    default: |template| {
        if let Some(spec) = value_mut(template, "template.spec") {
            pod_defaults::spec(spec);
        }
    },
    ..Rules::NONE
};

pub const CONTROLLER_REVISIONS: Rules = Rules {
    validate_update: |new, old, faults| {
        if at(new, "data") != at(old, "data") {
            faults.push(FieldError::invalid("data", at(new, "data").clone(), IMMUTABLE));
        }
    },
    ..Rules::NONE
};

const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn generation_of(set: &Value) -> Option<i64> {
    at(set, "metadata.annotations").get(TEMPLATE_GENERATION)?.as_str()?.parse().ok()
}

fn template_generation(set: &mut Value, generation: i64) {
    if let Some(metadata) = set.get_mut("metadata")
        && let Some(annotations) = child(metadata, "annotations")
    {
        self::set(annotations, TEMPLATE_GENERATION, generation.to_string());
    }
}

fn default_deployment(deployment: &mut Value) {
    pod_defaults::template(deployment);
    let Some(spec) = deployment.get_mut("spec") else { return };
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = child(spec, "strategy") {
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", "25%");
            fill(rolling, "maxSurge", "25%");
        }
    }
}

fn default_stateful_set(set: &mut Value) {
    pod_defaults::template(set);
    let Some(spec) = set.get_mut("spec") else { return };
    fill(spec, "podManagementPolicy", "OrderedReady");
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            fill(rolling, "partition", 0);
        }
    }
    if let Some(policy) = child(spec, "persistentVolumeClaimRetentionPolicy") {
        fill(policy, "whenDeleted", "Retain");
        fill(policy, "whenScaled", "Retain");
    }
    for claim in items_mut(spec, "volumeClaimTemplates") {
        fill(claim, "apiVersion", "v1");
        fill(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = claim.get_mut("spec") {
            fill(spec, "volumeMode", "Filesystem");
        }
        if let Some(status) = claim.get_mut("status") {
            fill(status, "phase", "Pending");
        }
    }
}

fn default_daemon_set(set: &mut Value) {
    pod_defaults::template(set);
    let Some(spec) = set.get_mut("spec") else { return };
    fill(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = child(spec, "updateStrategy") {
        fill(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = child(strategy, "rollingUpdate")
        {
            fill(rolling, "maxUnavailable", 1);
            fill(rolling, "maxSurge", 0);
        }
    }
}

fn default_controller(controller: &mut Value) {
    let labels = at(controller, "spec.template.metadata.labels").clone();
    pod_defaults::template(controller);
    let Some(spec) = controller.get_mut("spec") else { return };
    fill(spec, "replicas", 1);
    if labels.is_object() {
        fill(spec, "selector", labels.clone());
        if let Some(metadata) = object_mut(controller, "metadata") {
            metadata.entry("labels").or_insert(labels);
        }
    }
}

fn not_negative(object: &Value, names: &[&str], faults: &mut Faults) {
    for name in names {
        if let Some(value) = number(at(object, "spec"), name).filter(|value| *value < 0) {
            faults.push(FieldError::invalid(format!("spec.{name}"), value, NOT_NEGATIVE));
        }
    }
}

/// The selector must be there, be valid, and match the template's labels.
fn selector(object: &Value, owner: &str, faults: &mut Faults) {
    let selector = at(object, "spec.selector");
    let labels = at(object, "spec.template.metadata.labels");
    let empty = items(selector, "matchExpressions").is_empty()
        && at(selector, "matchLabels").as_object().is_none_or(serde_json::Map::is_empty);
    if selector.is_null() {
        faults.push(FieldError::required("spec.selector", ""));
    } else {
        let before = faults.len();
        label_selector(selector, "spec.selector", faults);
        if faults.len() > before {
            faults.push(FieldError::invalid("spec.selector", selector.clone(), "invalid label selector"));
            return;
        }
        if empty {
            faults.push(FieldError::invalid(
                "spec.selector",
                selector.clone(),
                format!("empty selector is invalid for {owner}"),
            ));
            return;
        }
    }
    if !selects(selector, labels) {
        faults.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.clone(),
            "`selector` does not match template `labels`",
        ));
    }
}

/// After an update, labels that are gone are an empty map, not an absent one.
fn labels_of_update(new: &Value, faults: &mut Faults) {
    if at(new, "spec.template.metadata.labels").is_null() {
        for fault in faults.iter_mut().filter(|fault| fault.path == "spec.template.metadata.labels") {
            fault.value = json!({});
        }
    }
}

fn immutable_selector(new: &Value, old: &Value, faults: &mut Faults) {
    let selector = at(new, "spec.selector");
    if selector != at(old, "spec.selector") {
        faults.push(FieldError::invalid("spec.selector", selector.clone(), IMMUTABLE));
    }
}

fn validate_deployment(deployment: &Value, faults: &mut Faults) {
    let spec = at(deployment, "spec");
    not_negative(
        deployment,
        &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        faults,
    );
    selector(deployment, "deployment", faults);
    template_always(deployment, "ReplicaSet", faults);
    strategy(at(spec, "strategy"), faults);
    let (deadline, ready) = (number(spec, "progressDeadlineSeconds"), number(spec, "minReadySeconds").unwrap_or(0));
    if let Some(deadline) = deadline.filter(|deadline| *deadline <= ready) {
        faults.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

fn strategy(strategy: &Value, faults: &mut Faults) {
    const PATH: &str = "spec.strategy.rollingUpdate";
    let rolling = at(strategy, "rollingUpdate");
    match text(strategy, "type") {
        "Recreate" => {
            if !rolling.is_null() {
                faults.push(FieldError::forbidden(PATH, "may not be specified when strategy `type` is 'Recreate'"));
            }
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (at(rolling, "maxUnavailable"), at(rolling, "maxSurge"));
            int_or_percent(unavailable, &format!("{PATH}.maxUnavailable"), faults);
            int_or_percent(surge, &format!("{PATH}.maxSurge"), faults);
            if is_zero(unavailable) && is_zero(surge) {
                let path = format!("{PATH}.maxUnavailable");
                faults.push(FieldError::invalid(path, unavailable.clone(), "may not be 0 when `maxSurge` is 0"));
            }
            at_most_all(unavailable, &format!("{PATH}.maxUnavailable"), faults);
        }
        other => {
            let value = json!({"Type": other, "RollingUpdate": null});
            faults.push(FieldError::not_supported("spec.strategy", value, &["Recreate", "RollingUpdate"]));
        }
    }
}

fn percent(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

fn is_zero(value: &Value) -> bool {
    value.as_i64() == Some(0) || percent(value) == Some(0)
}

/// Checks a number or a percentage.
pub fn int_or_percent(value: &Value, path: &str, faults: &mut Faults) {
    match value {
        Value::String(given) => {
            let digits = given.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                faults.push(FieldError::invalid(path, given.as_str(), why));
            }
        }
        other => {
            if let Some(value) = other.as_i64().filter(|value| *value < 0) {
                faults.push(FieldError::invalid(path, value, NOT_NEGATIVE));
            }
        }
    }
}

/// Checks that a percentage is at most 100 %.
pub fn at_most_all(value: &Value, path: &str, faults: &mut Faults) {
    if percent(value).is_some_and(|percent| percent > 100) {
        faults.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

fn stateful_set_update(new: &Value, old: &Value, faults: &mut Faults) {
    const FREE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    labels_of_update(new, faults);
    let fixed = |object: &Value| {
        let mut spec = at(object, "spec").clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|name, _| !FREE.contains(&name.as_str()));
        }
        spec
    };
    if fixed(new) != fixed(old) {
        faults.push(FieldError::forbidden("spec", "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"));
    }
}

const CONTAINERS: super::columns::Head =
    ("Containers", "string", 1, Doc::Own("Names of each container in the template."));
const IMAGES: super::columns::Head =
    ("Images", "string", 1, Doc::Own("Images referenced by each container in the template."));

/// Names and images of a template's containers.
pub fn containers(object: &Value, path: &str) -> [Value; 2] {
    let list = |name: &str| {
        let texts: Vec<&str> = items(at(object, path), "containers").iter().map(|c| text(c, name)).collect();
        json!(texts.join(","))
    };
    [list("name"), list("image")]
}

/// Columns of Deployments.
pub fn deployment_columns() -> Columns {
    make(
        &[
            NAME,
            ("Ready", "string", 0, Doc::Own("Number of the pod with ready state")),
            ("Up-to-date", "string", 0, Doc::Of("apps.v1.DeploymentStatus", "updatedReplicas")),
            ("Available", "string", 0, Doc::Of("apps.v1.DeploymentStatus", "availableReplicas")),
            AGE,
            CONTAINERS,
            IMAGES,
            ("Selector", "string", 1, Doc::Head("apps.v1.DeploymentSpec", "selector", " It must match")),
        ],
        |deployment, now| {
            let count = |path: &str| number(deployment, path).unwrap_or(0);
            let [names, images] = containers(deployment, "spec.template.spec");
            vec![
                json!(text(deployment, "metadata.name")),
                json!(format!("{}/{}", count("status.readyReplicas"), count("spec.replicas"))),
                json!(count("status.updatedReplicas")),
                json!(count("status.availableReplicas")),
                age(deployment, now),
                names,
                images,
                json!(selector_text(at(deployment, "spec.selector"))),
            ]
        },
    )
}

/// Columns of ReplicaSets.
pub fn replica_set_columns() -> Columns {
    make(
        &[
            NAME,
            ("Desired", "integer", 0, Doc::Of("apps.v1.ReplicaSetSpec", "replicas")),
            ("Current", "integer", 0, Doc::Of("apps.v1.ReplicaSetStatus", "replicas")),
            ("Ready", "integer", 0, Doc::Of("apps.v1.ReplicaSetStatus", "readyReplicas")),
            AGE,
            CONTAINERS,
            IMAGES,
            ("Selector", "string", 1, Doc::Of("apps.v1.ReplicaSetSpec", "selector")),
        ],
        |set, now| replica_cells(set, now, selector_text(at(set, "spec.selector"))),
    )
}

/// Columns of ReplicationControllers.
pub fn controller_columns() -> Columns {
    make(
        &[
            NAME,
            ("Desired", "integer", 0, Doc::Own("Number of desired pods.")),
            ("Current", "integer", 0, Doc::Own("Number of pods that exist.")),
            ("Ready", "integer", 0, Doc::Own("Number of pods that are ready.")),
            AGE,
            CONTAINERS,
            IMAGES,
            ("Selector", "string", 1, Doc::Own("Labels of the pods.")),
        ],
        |controller, now| replica_cells(controller, now, labels(at(controller, "spec.selector"))),
    )
}

fn replica_cells(set: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let count = |path: &str| json!(number(set, path).unwrap_or(0));
    let [names, images] = containers(set, "spec.template.spec");
    vec![
        json!(text(set, "metadata.name")),
        count("spec.replicas"),
        count("status.replicas"),
        count("status.readyReplicas"),
        age(set, now),
        names,
        images,
        json!(selector),
    ]
}

/// Columns of StatefulSets.
pub fn stateful_set_columns() -> Columns {
    make(
        &[NAME, ("Ready", "string", 0, Doc::Own("Number of the pod with ready state")), AGE, CONTAINERS, IMAGES],
        |set, now| {
            let count = |path: &str| number(set, path).unwrap_or(0);
            let [names, images] = containers(set, "spec.template.spec");
            vec![
                json!(text(set, "metadata.name")),
                json!(format!("{}/{}", count("status.readyReplicas"), count("spec.replicas"))),
                age(set, now),
                names,
                images,
            ]
        },
    )
}

/// Columns of DaemonSets.
pub fn daemon_set_columns() -> Columns {
    make(
        &[
            NAME,
            ("Desired", "integer", 0, Doc::Own("Number of nodes that should run the pod.")),
            ("Current", "integer", 0, Doc::Own("Number of nodes that run at least one of its pods.")),
            ("Ready", "integer", 0, Doc::Own("Number of nodes on which the pod is ready.")),
            ("Up-to-date", "integer", 0, Doc::Own("Number of nodes that run the latest template.")),
            ("Available", "integer", 0, Doc::Own("Number of nodes on which the pod is available.")),
            ("Node Selector", "string", 0, Doc::Own("Labels of the nodes.")),
            AGE,
            CONTAINERS,
            IMAGES,
            ("Selector", "string", 1, Doc::Own("Labels of the pods.")),
        ],
        |set, now| {
            let count = |name: &str| json!(number(at(set, "status"), name).unwrap_or(0));
            let [names, images] = containers(set, "spec.template.spec");
            let nodes = labels(at(set, "spec.template.spec.nodeSelector"));
            vec![
                json!(text(set, "metadata.name")),
                count("desiredNumberScheduled"),
                count("currentNumberScheduled"),
                count("numberReady"),
                count("updatedNumberScheduled"),
                count("numberAvailable"),
                json!(if nodes.is_empty() { "<none>".to_string() } else { nodes }),
                age(set, now),
                names,
                images,
                json!(selector_text(at(set, "spec.selector"))),
            ]
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::schema::conform;

    fn faults(mut deployment: Value) -> Vec<String> {
        conform::normalise("apps.v1.Deployment", &mut deployment);
        default_deployment(&mut deployment);
        let mut faults = Vec::new();
        validate_deployment(&deployment, &mut faults);
        faults.sort_by(|a, b| a.path.cmp(&b.path));
        faults.iter().map(ToString::to_string).collect()
    }

    fn with(change: fn(&mut Value)) -> Vec<String> {
        let mut deployment = json!({"metadata": {"name": "x"}, "spec": {
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        change(&mut deployment);
        faults(deployment)
    }

    #[test]
    fn faults_of_deployments_read_as_the_reference_prints_them() {
        assert_eq!(with(|_| {}), Vec::<String>::new());
        assert_eq!(
            faults(json!({"metadata": {"name": "x"}})),
            [
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`",
                "spec.template.spec.containers: Required value",
            ]
        );
        assert_eq!(
            with(|d| d["spec"]["selector"] = json!({})),
            ["spec.selector: Invalid value: {}: empty selector is invalid for deployment"]
        );
        assert_eq!(
            with(|d| d["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}})),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"]
        );
        assert_eq!(
            with(|d| d["spec"]["strategy"] = json!({"rollingUpdate": {"maxUnavailable": "101%"}})),
            ["spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"]
        );
        assert_eq!(
            with(|d| d["spec"]["template"]["spec"]["restartPolicy"] = json!("Never")),
            ["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""]
        );
        assert_eq!(
            with(|d| d["spec"]["minReadySeconds"] = json!(700)),
            ["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"]
        );
    }
}
