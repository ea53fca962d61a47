//! Accounts of the roles, and the least that each must be allowed. The end-to-end tests with the roles as processes of
//! their own run by these.

use serde_json::{Value, json};

use crate::link::LEASE;

/// Namespace in which nodes renew their Leases.
const NODE_LEASES: &str = "kube-node-lease";
const SERVING: &str = "serving.knative.dev";
const CLAIMS: &str = "networking.internal.knative.dev";
const AUTOSCALING: &str = "autoscaling.internal.knative.dev";
const FUNCTIONS: &str = "functions.colibri.dev";
const LEASES: &str = "coordination.k8s.io";

/// One role's account.
struct Account {
    name: &'static str,
    /// In every namespace.
    everywhere: Vec<Value>,
    /// In one namespace.
    within: (&'static str, Vec<Value>),
}

/// ServiceAccounts in the system namespace, roles and bindings of controller, gateway and node.
pub fn objects() -> Vec<Value> {
    [controller(), gateway(), node()].iter().flat_map(Account::objects).collect()
}

fn controller() -> Account {
    Account {
        name: "controller",
        everywhere: vec![
            rule(SERVING, &["configurations", "routes", "services"], &["get", "list", "watch", "create", "update"]),
            rule(SERVING, &["revisions"], &["get", "list", "watch", "create", "update", "delete"]),
            rule(AUTOSCALING, &["podautoscalers"], &["get", "list", "watch", "create", "update"]),
            rule(SERVING, &["domainmappings"], &["get", "list", "watch"]),
            rule(CLAIMS, &["clusterdomainclaims"], &["get", "list", "watch", "create", "delete"]),
            rule(FUNCTIONS, &["functions"], &["get", "list", "watch"]),
            rule(
                SERVING,
                &[
                    "configurations/status",
                    "domainmappings/status",
                    "revisions/status",
                    "routes/status",
                    "services/status",
                ],
                &["update"],
            ),
            rule(AUTOSCALING, &["podautoscalers/status"], &["update"]),
            rule(FUNCTIONS, &["functions/status"], &["update"]),
            rule("", &["pods"], &["list", "watch", "create", "delete"]),
            rule("", &["services"], &["list", "watch", "create", "update", "delete"]),
            rule("", &["nodes"], &["list", "watch"]),
            // Images and code that were uploaded to them.
            rule("", &["nodes/proxy"], &["get", "create"]),
            // What pods use, for those that are scaled by it.
            rule("metrics.k8s.io", &["pods"], &["list"]),
            // Credentials for registries.
            rule("", &["secrets"], &["get"]),
        ],
        within: (
            api::SYSTEM_NAMESPACE,
            vec![
                rule("", &["configmaps"], &["get", "list", "watch", "create", "update"]),
                rule(LEASES, &["leases"], &["create"]),
                only(LEASE, rule(LEASES, &["leases"], &["get", "update"])),
            ],
        ),
    }
}

fn gateway() -> Account {
    Account {
        name: "gateway",
        everywhere: vec![
            rule(SERVING, &["domainmappings", "revisions", "routes"], &["list", "watch"]),
            rule(CLAIMS, &["clusterdomainclaims"], &["list", "watch"]),
            rule("", &["pods"], &["list", "watch"]),
            // Certificates of mapped domains: it asks for those of the type kubernetes.io/tls.
            rule("", &["secrets"], &["list", "watch"]),
        ],
        within: (
            api::SYSTEM_NAMESPACE,
            vec![rule("", &["configmaps"], &["list", "watch"]), only(LEASE, rule(LEASES, &["leases"], &["get"]))],
        ),
    }
}

fn node() -> Account {
    Account {
        name: "node",
        everywhere: vec![
            rule("", &["nodes"], &["create", "patch", "delete"]),
            rule("", &["nodes/status", "pods/status"], &["patch"]),
            rule("", &["pods"], &["list", "watch", "delete"]),
            rule("", &["events"], &["create"]),
            // What pods mount and have in their environment, and their own tokens.
            rule("", &["configmaps", "secrets"], &["get"]),
            rule("", &["serviceaccounts/token"], &["create"]),
            // Names and virtual addresses on the pod network.
            rule("", &["services"], &["list", "watch"]),
            rule("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
            rule(SERVING, &["routes"], &["list", "watch"]),
            // Who may ask its server.
            rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
        ],
        within: (NODE_LEASES, vec![rule(LEASES, &["leases"], &["create", "patch", "delete"])]),
    }
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": [group], "resources": resources, "verbs": verbs})
}

/// The rule for the object of that name alone.
fn only(name: &str, mut rule: Value) -> Value {
    rule["resourceNames"] = json!([name]);
    rule
}

impl Account {
    fn objects(&self) -> Vec<Value> {
        let name = format!("colibri-{}", self.name);
        let (namespace, ref rules) = self.within;
        let subject = json!([{"kind": "ServiceAccount", "name": self.name, "namespace": api::SYSTEM_NAMESPACE}]);
        let object = |kind: &str, metadata: Value, rest: Value| {
            let mut object = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": metadata});
            object
                .as_object_mut()
                .into_iter()
                .for_each(|object| object.extend(rest.as_object().cloned().unwrap_or_default()));
            object
        };
        let reference = |kind: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
        let binding = |role: &str| json!({"roleRef": reference(role), "subjects": subject});
        let (wide, narrow) = (json!({"name": name}), json!({"name": name, "namespace": namespace}));
        vec![
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": self.name, "namespace": api::SYSTEM_NAMESPACE},
            }),
            object("ClusterRole", wide.clone(), json!({"rules": self.everywhere})),
            object("ClusterRoleBinding", wide, binding("ClusterRole")),
            object("Role", narrow.clone(), json!({"rules": rules})),
            object("RoleBinding", narrow, binding("Role")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_allowed_by_a_wildcard() {
        let objects = objects();
        for object in &objects {
            for rule in object["rules"].as_array().into_iter().flatten() {
                let words = ["apiGroups", "resources", "verbs"].map(|key| rule[key].as_array().unwrap().clone());
                assert!(words.iter().all(|words| !words.is_empty()), "{rule}");
                assert!(words.iter().flatten().all(|word| !word.as_str().unwrap().contains('*')), "{rule}");
            }
        }
        assert_eq!(objects.len(), 15);
    }

    #[test]
    fn the_controller_watches_every_kind() {
        let lists = |rule: &Value, group: &str, plural: &str| {
            let has = |key: &str, word: &str| rule[key].as_array().unwrap().iter().any(|each| each == word);
            has("apiGroups", group) && has("resources", plural) && has("verbs", "list") && has("verbs", "watch")
        };
        for definition in api::crds::all() {
            let (group, plural) = (definition.spec.group, definition.spec.names.plural);
            assert!(controller().everywhere.iter().any(|rule| lists(rule, &group, &plural)), "{plural}.{group}");
        }
    }

    #[test]
    fn each_binding_leads_from_its_account_to_its_role() {
        let objects = objects();
        let find = |kind: &str, name: &str| {
            objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        };
        for binding in objects.iter().filter(|object| object.get("roleRef").is_some()) {
            let role = &binding["roleRef"];
            let role = find(role["kind"].as_str().unwrap(), role["name"].as_str().unwrap()).unwrap();
            assert_eq!(role["metadata"], binding["metadata"]);
            let account = find("ServiceAccount", binding["subjects"][0]["name"].as_str().unwrap()).unwrap();
            assert_eq!(account["metadata"]["namespace"], binding["subjects"][0]["namespace"]);
        }
    }
}
