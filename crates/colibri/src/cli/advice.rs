//! Why a workload is not ready, in words, and what to do about it. Pure.
//!
//! Causes come from the conditions and pods, whose reasons and texts are Knative's and Kubernetes'; the cures are ours.

use api::conditions::{Condition, ConditionStatus, READY};
use api::serving::Revision;
use k8s_openapi::api::core::v1::{Container, ContainerStateTerminated, Pod};
use kube::ResourceExt;

use super::seen::Seen;
use super::workload::Workload;

/// One thing that is wrong, or that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Where it is wrong: a stage of the deployment.
    pub stage: &'static str,
    /// What is wrong.
    pub cause: String,
    /// What to do; empty when the cause says it.
    pub cure: String,
    /// Whether it has failed, and waiting alone will not help.
    pub failed: bool,
}

impl std::fmt::Display for Advice {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.stage, self.cause)?;
        if self.cure.is_empty() { Ok(()) } else { write!(out, "\n  cure: {}", self.cure) }
    }
}

/// What is wrong with a workload that is not ready; `None` when it is ready, or nothing is known to be wrong.
pub fn of(seen: &Seen) -> Option<Advice> {
    let name = seen.workload.name();
    let mut verdict = None;
    if let Workload::Function(function) = &seen.workload {
        let status = function.status.as_ref().filter(|s| s.observed_generation == function.metadata.generation)?;
        if let Some(failed) = failed(&status.conditions, "SourceReady") {
            return Some(advice("source", failed, "", true));
        }
        if let Some(failed) = failed(&status.conditions, "RouteReady")
            .filter(|failed| failed.reason.as_deref() == Some("ServiceNotOwned"))
        {
            return Some(advice("route", failed, "", true));
        }
        // Until it speaks of the new code, the newest version may still be that of before.
        verdict = Some(failed(&status.conditions, "RevisionReady").is_some());
    }
    let revision = seen.newest().and_then(|revision| of_revision(revision, &seen.pods_of(revision), &name));
    if let Some(found) = revision.filter(|found| verdict.is_none_or(|failed| failed == found.failed)) {
        return Some(found);
    }
    let conditions = seen.service.as_ref().and_then(|service| service.status.as_ref());
    let routes = failed(conditions.map(|status| status.conditions.as_slice()).unwrap_or_default(), "RoutesReady")?;
    let cure = match routes.reason.as_deref() {
        // Without a name in spec.traffic it is only not there yet.
        Some("RevisionMissing" | "ConfigurationMissing") if !names_revisions(seen) => return None,
        Some("RevisionMissing" | "ConfigurationMissing") => {
            format!("name a version that exists in spec.traffic: colibri describe {name} lists them")
        }
        // The version's own failure says more.
        Some("RevisionFailed") => return None,
        _ => "look at kubectl describe route, and at spec.traffic".to_owned(),
    };
    Some(advice("route", routes, &cure, true))
}

/// Whether the traffic is asked for by Revisions' names.
fn names_revisions(seen: &Seen) -> bool {
    let traffic = seen.service.iter().flat_map(|service| &service.spec.traffic);
    traffic.into_iter().any(|target| target.revision_name.is_some())
}

/// What is wrong with one version.
fn of_revision(revision: &Revision, pods: &[&Pod], name: &str) -> Option<Advice> {
    let conditions = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.kind == READY)?;
    let (reason, message) = (ready.reason.as_deref().unwrap_or_default(), text_of(ready));
    let is_failed = match ready.status {
        ConditionStatus::True => return None,
        ConditionStatus::False => true,
        ConditionStatus::Unknown => false,
    };
    if !is_failed && ready.message.is_none() {
        return None;
    }
    let container = revision.spec.pod.containers.first();
    let (stage, cure) = match reason {
        "ContainerMissing" | "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
            ("image", image_cure(&message))
        }
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            ("container", config_cure(&message, revision.namespace().as_deref().unwrap_or("default")))
        }
        "Unschedulable" => ("pod", scheduling_cure(&message)),
        "FailedCreate" => ("pod", "correct the field that the text names, and deploy again".to_owned()),
        "Deploying" => ("probe", String::new()),
        "ProgressDeadlineExceeded" => {
            let cure = "let the program answer sooner, or raise the annotation serving.knative.dev/progress-deadline";
            let known = message.split_once(": ").is_some();
            ("probe", if known { String::new() } else { format!("{cure}; colibri logs {name} tells what it does") })
        }
        reason if reason.starts_with("ExitCode") => {
            let ended = pods.iter().find_map(|pod| last_end(pod));
            ("container", exit_cure(reason, &message, ended, container, name))
        }
        _ => {
            ("version", format!("colibri logs {name} and kubectl describe revision {} tell more", revision.name_any()))
        }
    };
    let cause = message.strip_prefix("Container failed with: ").unwrap_or(&message).trim().to_owned();
    let cause = match reason.strip_prefix("ExitCode") {
        Some(code) if !cause.contains("exec: ") => format!("the container ended with exit code {code}: {cause}"),
        _ => cause,
    };
    Some(Advice { stage, cause, cure, failed: is_failed })
}

/// What to do about an image that cannot be had, by what the node or the registry said.
pub fn image_cure(message: &str) -> String {
    let text = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let cure = if has(&["unauthorized", "denied", "401", "403", "credentials"]) {
        "look at the name; where the registry wants a password: kubectl create secret docker-registry NAME --docker-server=HOST --docker-username=USER --docker-password=PASSWORD, and name it in imagePullSecrets"
    } else if has(&["has nothing for", "made for"]) {
        "build the image for this machine's processor, as docker build --platform does, and push it again"
    } else if has(&["not found", "unknown", "no such", "404", "not in the image store"]) {
        "look at the spelling and the tag; an image that was built here is loaded by: docker save IMAGE | colibri image load -"
    } else if has(&["not valid", "invalid"]) {
        "write it as REGISTRY/NAME:TAG, in lower case"
    } else {
        "see whether this machine reaches the registry; without it load the image: docker save IMAGE | colibri image load -"
    };
    cure.to_owned()
}

/// What to do about a pod that no node takes, by what the scheduler said of each; Kubernetes' words of several versions.
fn scheduling_cure(message: &str) -> String {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    let is_away = has(&["not ready", "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]);
    let is_closed = has(&["unschedulable"]);
    let rows = [
        (
            has(&["Insufficient ", "Too many pods"]),
            "ask for less in resources.requests, or free the machine: kubectl describe node shows what is taken",
        ),
        (is_away, "get the node ready: kubectl describe node tells what is wrong with it, sudo colibri node starts it"),
        (is_closed, "open the node again: kubectl uncordon NODE"),
        (
            !is_away && !is_closed && has(&[" taint"]),
            "take the taint away: kubectl taint node NODE KEY-, or tolerate it in spec.template.spec.tolerations",
        ),
        (
            has(&["affinity", "selector"]),
            "correct spec.template.spec.nodeSelector and affinity, or label a node: kubectl label node NODE KEY=VALUE",
        ),
        (has(&["no nodes available"]), "start a node: sudo colibri node"),
    ];
    let cures: Vec<&str> = rows.iter().filter(|(fits, _)| *fits).map(|(_, cure)| *cure).collect();
    if cures.is_empty() { "kubectl describe node tells more".to_owned() } else { cures.join("; or ") }
}

fn config_cure(message: &str, namespace: &str) -> String {
    let quoted = message.split('"').nth(1).unwrap_or("NAME");
    let last = message.rsplit(' ').next().unwrap_or("NAME");
    match message {
        text if text.contains("Secret") && text.contains("not found") => format!(
            "make it: kubectl create secret generic {quoted} -n {namespace} --from-literal=KEY=VALUE; or correct the name, or mark it optional: true"
        ),
        text if text.contains("ConfigMap") && text.contains("not found") => format!(
            "make it: kubectl create configmap {quoted} -n {namespace} --from-literal=KEY=VALUE; or correct the name, or mark it optional: true"
        ),
        text if text.contains("couldn't find key") => format!("add the key to {last}, or correct its name"),
        text if text.contains("apt-get install") => String::new(),
        text if text.contains("no command is given") => {
            "set command in the container, or ENTRYPOINT in the image".to_owned()
        }
        _ => "correct the container's settings and deploy again".to_owned(),
    }
}

/// What to do about a container that ended.
fn exit_cure(
    reason: &str,
    message: &str,
    ended: Option<&ContainerStateTerminated>,
    container: Option<&Container>,
    name: &str,
) -> String {
    let has = |word: &str| message.contains(word);
    let limit =
        container.and_then(|container| Some(container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone()));
    if has("OOMKilled") || ended.is_some_and(|ended| ended.reason.as_deref() == Some("OOMKilled")) {
        let now = limit.map(|limit| format!(" (now {limit})")).unwrap_or_default();
        return format!("raise resources.limits.memory{now}, or let the program use less");
    }
    if has("exec format error") {
        return format!(
            "build the program for this machine's processor ({}), or begin the script with #!/bin/sh",
            std::env::consts::ARCH
        );
    }
    if has("executable file not found") {
        return "look at the container's command and args: the image has no such program in $PATH".to_owned();
    }
    if has("exec: ") && has("no such file or directory") {
        return "look at the container's command: the image has no such file, or lacks the interpreter or libraries that it needs".to_owned();
    }
    if has("exec: ") && has("permission denied") {
        return "make the file executable, as chmod +x does, and build the image again".to_owned();
    }
    if has("Read-only file system") {
        return "write to /tmp, or to a volume of kind emptyDir".to_owned();
    }
    if has("Address already in use") || has("address already in use") {
        return "let only one program listen on a port, and leave the ports of other containers alone".to_owned();
    }
    let in_code = has("SyntaxError") || has("Error: ") || has("handler ") || has("pip install");
    match reason {
        "ExitCode0" => "a service must go on listening on the port in $PORT; a program that ends is a Job".to_owned(),
        _ if in_code => "correct the code and deploy again".to_owned(),
        _ => format!("the log before it ended tells more: colibri logs {name} --previous"),
    }
}

fn last_end(pod: &Pod) -> Option<&ContainerStateTerminated> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses.iter().find_map(|status| {
        let ended = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref()?.terminated.as_ref().map(|_| ())
        };
        if ended(&status.state).is_some() {
            return status.state.as_ref()?.terminated.as_ref();
        }
        status.last_state.as_ref()?.terminated.as_ref()
    })
}

fn failed<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind && condition.status == ConditionStatus::False)
}

fn text_of(condition: &Condition) -> String {
    condition.message.clone().or_else(|| condition.reason.clone()).unwrap_or_default()
}

fn advice(stage: &'static str, condition: &Condition, cure: &str, failed: bool) -> Advice {
    Advice { stage, cause: text_of(condition), cure: cure.to_owned(), failed }
}

/// Cures of what admission refuses in Knative's words, one for each kind of problem.
pub fn refusal_cures(message: &str) -> Vec<String> {
    let mut cures = Vec::new();
    let mut rule = |word: &str, cure: &str| {
        if message.contains(word) {
            cures.push(cure.to_owned());
        }
    };
    rule("must not set the field(s)", "remove the field: Knative does not let a service set it");
    rule("missing field(s)", "add the field");
    rule(
        "more than one container port is set",
        "keep one port: requests reach a service by one; HTTP/2 on it is named h2c",
    );
    rule("not a DNS 1035 label", "use lower-case letters, digits and -, beginning with a letter, at most 63");
    rule("RFC 1123", "use lower-case letters, digits and -, beginning and ending with a letter or digit");
    rule("autoscaling annotations must be put under", "move the annotation there");
    rule("ailed to parse image reference", "write it as REGISTRY/NAME:TAG, in lower case");
    rule("is less than min-scale", "raise max-scale or lower min-scale");
    rule("Traffic targets sum to", "let the percent of all targets add up to 100");
    rule("expected ", "choose a value in that range");
    rule("invalid value:", "look at the value and its unit");
    rule("quantities must match", "write it like 250m, 1, 64Mi or 1Gi");
    rule("unable to parse quantity", "write it like 250m, 1, 64Mi or 1Gi");
    cures
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn seen(reason: &str, status: &str, message: &str, container: Value) -> Seen {
        let template = json!({"containers": [container]});
        let object = |value| serde_json::from_value::<api::serving::Service>(value).unwrap();
        let service = object(json!({
            "metadata": {"name": "web", "namespace": "default", "generation": 1},
            "spec": {"template": {"spec": template}},
            "status": {"observedGeneration": 1, "latestCreatedRevisionName": "web-00001"},
        }));
        let revision = serde_json::from_value(json!({
            "metadata": {"name": "web-00001", "namespace": "default"}, "spec": template,
            "status": {"conditions": [{"type": "Ready", "status": status, "reason": reason, "message": message}]},
        }));
        Seen {
            workload: Workload::Service(Box::new(service.clone())),
            service: Some(service),
            revisions: vec![revision.unwrap()],
            pods: Vec::new(),
        }
    }

    fn check(reason: &str, message: &str, stage: &str, cause: &str, cure: &str) {
        let container = json!({"name": "c", "resources": {"limits": {"memory": "32Mi"}}});
        let found = of(&seen(reason, "False", message, container)).unwrap();
        assert_eq!(found.stage, stage, "{found}");
        assert!(found.cause.contains(cause) && found.cure.contains(cure) && found.failed, "{found:?}");
    }

    #[test]
    fn a_pod_that_no_node_takes_is_told_by_what_the_scheduler_said() {
        let none = |why: &str| format!("0/1 nodes are available: {why}.");
        let rows = [
            (none("1 Insufficient cpu"), "ask for less"),
            (none("1 Too many pods"), "ask for less"),
            (none("1 node(s) were not ready"), "get the node ready"),
            (
                none("1 node(s) had taint {node.kubernetes.io/not-ready: }, that the pod didn't tolerate"),
                "get the node ready",
            ),
            (none("1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }"), "get the node ready"),
            (none("1 node(s) were unschedulable"), "kubectl uncordon"),
            (none("1 node(s) had untolerated taint {gpu: only}"), "take the taint away"),
            (none("1 node(s) didn't match Pod's node affinity/selector"), "label a node"),
            ("no nodes available to schedule pods".to_owned(), "start a node"),
            ("something new".to_owned(), "tells more"),
        ];
        for (message, cure) in rows {
            let told = scheduling_cure(&message);
            assert!(told.contains(cure) && !told.contains("; or "), "{message}: {told}");
        }
        let both = scheduling_cure(&none("1 Insufficient memory, 1 node(s) were not ready"));
        assert!(both.contains("ask for less") && both.contains("; or get the node ready"), "{both}");
    }

    #[test]
    fn each_failure_has_a_stage_and_a_cure() {
        let rows = [
            ("ContainerMissing", "Unable to fetch image \"a\": manifest unknown", "image", "a", "spelling and the tag"),
            ("ContainerMissing", "Unable to fetch image \"a\": UNAUTHORIZED", "image", "a", "imagePullSecrets"),
            (
                "ContainerMissing",
                "Unable to fetch image \"a\": connection refused",
                "image",
                "a",
                "reaches the registry",
            ),
            (
                "ErrImagePull",
                "image a has nothing for linux/amd64; it is made for linux/arm64",
                "image",
                "arm64",
                "--platform",
            ),
            (
                "CreateContainerConfigError",
                "Secret \"s\" not found",
                "container",
                "Secret",
                "create secret generic s -n default",
            ),
            ("CreateContainerConfigError", "ConfigMap \"c\" not found", "container", "ConfigMap", "create configmap c"),
            ("CreateContainerConfigError", "couldn't find key k in Secret s", "container", "key k", "add the key to s"),
            (
                "ExitCode137",
                "Container failed with: OOMKilled: more memory",
                "container",
                "exit code 137",
                "(now 32Mi)",
            ),
            (
                "ExitCode128",
                "Container failed with: exec: \"x\": executable file not found in $PATH",
                "container",
                "exec",
                "command and args",
            ),
            ("ExitCode128", "Container failed with: exec: \"/x\": permission denied", "container", "exec", "chmod +x"),
            ("ExitCode128", "Container failed with: exec: \"/x\": exec format error", "container", "exec", "processor"),
            ("ExitCode0", "Container failed with: container exited with no error", "container", "exit code 0", "$PORT"),
            ("ExitCode3", "Container failed with: boom", "container", "exit code 3: boom", "--previous"),
            (
                "ExitCode1",
                "Container failed with: main.py:3: SyntaxError: x",
                "container",
                "main.py:3",
                "correct the code",
            ),
            (
                "ExitCode1",
                "Container failed with: OSError: [Errno 30] Read-only file system: '/x'",
                "container",
                "/x",
                "/tmp",
            ),
            ("FailedCreate", "pods is forbidden", "pod", "forbidden", "correct the field"),
            ("ProgressDeadlineExceeded", "Initial scale was never achieved", "probe", "never", "progress-deadline"),
            ("Surprise", "who knows", "version", "who knows", "kubectl describe revision web-00001"),
        ];
        for (reason, message, stage, cause, cure) in rows {
            check(reason, message, stage, cause, cure);
        }
    }

    #[test]
    fn what_is_waited_for_is_told_and_what_is_ready_is_not() {
        let container = json!({"name": "c"});
        let waiting = of(&seen("Deploying", "Unknown", "nothing listens on port 8080 yet", container.clone())).unwrap();
        assert!(!waiting.failed && waiting.stage == "probe", "{waiting:?}");
        assert_eq!(of(&seen("", "True", "", container)), None);
    }

    #[test]
    fn a_function_that_is_deployed_again_is_not_judged_by_the_version_of_before() {
        let mut found = seen("ExitCode1", "False", "Container failed with: boom", json!({"name": "c"}));
        let mut function = |status: &str| {
            let conditions = json!([{"type": "RevisionReady", "status": status}]);
            let object = json!({"metadata": {"name": "web", "generation": 2}, "spec": {"runtime": "python"},
                "status": {"observedGeneration": 2, "conditions": conditions}});
            found.workload = Workload::Function(serde_json::from_value(object).unwrap());
            of(&found)
        };
        assert_eq!(function("Unknown"), None);
        assert!(function("False").is_some_and(|advice| advice.failed));
    }

    #[test]
    fn a_route_to_a_missing_version_names_the_field() {
        let mut found = seen("", "True", "", json!({"name": "c"}));
        let routes = json!([{"type": "RoutesReady", "status": "False", "reason": "RevisionMissing",
            "message": "Revision \"web-9\" referenced in traffic not found."}]);
        let service = found.service.as_mut().unwrap();
        service.status.as_mut().unwrap().conditions = serde_json::from_value(routes).unwrap();
        assert_eq!(of(&found), None, "without a name in the traffic it is not there yet");
        let service = found.service.as_mut().unwrap();
        service.spec.traffic = serde_json::from_value(json!([{"revisionName": "web-9", "percent": 100}])).unwrap();
        let found = of(&found).unwrap();
        assert!(found.stage == "route" && found.cause.contains("web-9") && found.cure.contains("spec.traffic"));
    }
}
