//! Which node a pod fits on: pure.
//!
//! Checked, in the order of Kubernetes' filters: unschedulable, readiness, node selector, taints, resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::quantity::Quantity;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::ResourceExt;

/// CPU in thousandths, memory in bytes, pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amount {
    cpu_milli: i128,
    memory_bytes: i128,
    pods: i128,
}

/// The node for `pod`, or the text that tells why there is none.
pub(super) fn choose(pod: &Pod, nodes: &[Arc<Node>], pods: &[Arc<Pod>]) -> Result<String, String> {
    let mut reasons = BTreeMap::<String, usize>::new();
    let mut best: Option<(Amount, String)> = None;
    for node in nodes {
        let name = node.name_any();
        match room_after(pod, node, pods) {
            Ok(room) => {
                let better = best
                    .as_ref()
                    .is_none_or(|(most, _)| (room.memory_bytes, room.cpu_milli) > (most.memory_bytes, most.cpu_milli));
                if better {
                    best = Some((room, name));
                }
            }
            Err(why) => *reasons.entry(why).or_default() += 1,
        }
    }
    match best {
        Some((_, name)) => Ok(name),
        None if nodes.is_empty() => Err("no nodes available to schedule pods".to_owned()),
        None => {
            let reasons: Vec<String> = reasons.iter().map(|(why, count)| format!("{count} {why}")).collect();
            Err(format!("0/{} nodes are available: {}.", nodes.len(), reasons.join(", ")))
        }
    }
}

/// Whether the node's own condition says that it takes pods.
pub(super) fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether all of the pod's containers have ended for good.
pub(super) fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What is left on the node once the pod is there, or why it does not fit.
fn room_after(pod: &Pod, node: &Node, pods: &[Arc<Pod>]) -> Result<Amount, String> {
    let spec = node.spec.clone().unwrap_or_default();
    if spec.unschedulable.unwrap_or(false) {
        return Err("node(s) were unschedulable".to_owned());
    }
    if !is_ready(node) {
        return Err("node(s) were not ready".to_owned());
    }
    let pod_spec = pod.spec.as_ref();
    let selector = pod_spec.and_then(|spec| spec.node_selector.as_ref());
    let labels = node.labels();
    if selector.is_some_and(|wanted| wanted.iter().any(|(key, value)| labels.get(key) != Some(value))) {
        return Err("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    let tolerations = pod_spec.and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    if let Some(taint) = spec.taints.unwrap_or_default().iter().find(|taint| !is_tolerated(taint, tolerations)) {
        let value = taint.value.as_deref().unwrap_or_default();
        return Err(format!("node(s) had untolerated taint {{{}: {value}}}", taint.key));
    }
    let here = pods.iter().filter(|other| {
        other.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node.name_any()) && !is_finished(other)
    });
    let used = here.map(|other| requests(other)).fold(Amount::default(), add);
    let (total, wanted) = (allocatable(node), requests(pod));
    if used.pods + wanted.pods > total.pods {
        return Err("Too many pods".to_owned());
    }
    if wanted.cpu_milli > 0 && used.cpu_milli + wanted.cpu_milli > total.cpu_milli {
        return Err("Insufficient cpu".to_owned());
    }
    if wanted.memory_bytes > 0 && used.memory_bytes + wanted.memory_bytes > total.memory_bytes {
        return Err("Insufficient memory".to_owned());
    }
    Ok(Amount {
        cpu_milli: total.cpu_milli - used.cpu_milli - wanted.cpu_milli,
        memory_bytes: total.memory_bytes - used.memory_bytes - wanted.memory_bytes,
        pods: total.pods - used.pods - wanted.pods,
    })
}

fn add(a: Amount, b: Amount) -> Amount {
    Amount {
        cpu_milli: a.cpu_milli + b.cpu_milli,
        memory_bytes: a.memory_bytes + b.memory_bytes,
        pods: a.pods + b.pods,
    }
}

fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    // The API server puts this taint on every new node; whether the node is ready was looked at already.
    if taint.key == "node.kubernetes.io/not-ready" && taint.effect == "NoSchedule" {
        return true;
    }
    if !matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute") {
        return true;
    }
    tolerations.iter().any(|toleration| {
        let effect = toleration.effect.as_deref().is_none_or(|effect| effect.is_empty() || effect == taint.effect);
        let key = toleration.key.as_deref().unwrap_or_default();
        match toleration.operator.as_deref().unwrap_or("Equal") {
            "Exists" => effect && (key.is_empty() || key == taint.key),
            _ => {
                let value = toleration.value.as_deref().unwrap_or_default();
                effect && key == taint.key && value == taint.value.as_deref().unwrap_or_default()
            }
        }
    })
}

fn allocatable(node: &Node) -> Amount {
    let list = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let milli = |name: &str| list.get(name).and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |q| q.milli());
    Amount { cpu_milli: milli("cpu"), memory_bytes: milli("memory") / 1000, pods: milli("pods") / 1000 }
}

/// The larger of the init containers' largest and the containers' sum, and one pod.
fn requests(pod: &Pod) -> Amount {
    let Some(spec) = &pod.spec else { return Amount { pods: 1, ..Amount::default() } };
    let of = |container: &k8s_openapi::api::core::v1::Container, name: &str| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let text = requests.and_then(|requests| requests.get(name));
        text.and_then(|text| Quantity::parse(&text.0).ok()).map_or(0, |quantity| quantity.milli())
    };
    let total = |name: &str| {
        let sum: i128 = spec.containers.iter().map(|container| of(container, name)).sum();
        let init = spec.init_containers.iter().flatten().map(|container| of(container, name)).max().unwrap_or(0);
        sum.max(init)
    };
    Amount { cpu_milli: total("cpu"), memory_bytes: total("memory") / 1000, pods: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, cpu: &str, memory: &str) -> Arc<Node> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"disk": "ssd"}},
                "spec": {},
                "status": {
                    "allocatable": {"cpu": cpu, "memory": memory, "pods": "2"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }))
            .unwrap(),
        )
    }

    fn pod(cpu: &str, memory: &str, on: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"nodeName": on, "containers": [{
                "name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}},
            }]},
        }))
        .unwrap()
    }

    #[test]
    fn the_node_with_the_most_memory_left_is_chosen() {
        let nodes = [node("a", "2", "1Gi"), node("b", "2", "4Gi")];
        assert_eq!(choose(&pod("100m", "64Mi", None), &nodes, &[]).unwrap(), "b");
        let full = Arc::new(pod("2", "64Mi", Some("b")));
        assert_eq!(choose(&pod("100m", "64Mi", None), &nodes, &[full]).unwrap(), "a");
    }

    #[test]
    fn each_refusal_is_named_and_counted() {
        let nodes = [node("a", "1", "1Gi"), node("b", "4", "1Gi")];
        let check = |pod: &Pod, expected: &str| assert_eq!(choose(pod, &nodes, &[]).unwrap_err(), expected);
        check(&pod("8", "1Mi", None), "0/2 nodes are available: 2 Insufficient cpu.");
        check(&pod("2", "2Gi", None), "0/2 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.");
        let mut picky = pod("1m", "1Mi", None);
        picky.spec.as_mut().unwrap().node_selector = Some([("disk".to_owned(), "tape".to_owned())].into());
        check(&picky, "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
        assert_eq!(choose(&picky, &[], &[]).unwrap_err(), "no nodes available to schedule pods");
    }

    #[test]
    fn a_taint_needs_a_toleration() {
        let mut tainted = node("a", "1", "1Gi").as_ref().clone();
        tainted.spec.as_mut().unwrap().taints =
            Some(vec![Taint { key: "k".into(), effect: "NoSchedule".into(), ..Taint::default() }]);
        let nodes = [Arc::new(tainted)];
        let mut pod = pod("1m", "1Mi", None);
        assert!(choose(&pod, &nodes, &[]).unwrap_err().contains("untolerated taint {k: }"));
        pod.spec.as_mut().unwrap().tolerations =
            Some(vec![Toleration { operator: Some("Exists".into()), ..Toleration::default() }]);
        assert_eq!(choose(&pod, &nodes, &[]).unwrap(), "a");
    }

    #[test]
    fn a_node_takes_no_more_pods_than_it_says() {
        let nodes = [node("a", "4", "4Gi")];
        let there: Vec<Arc<Pod>> = (0..2).map(|_| Arc::new(pod("1m", "1Mi", Some("a")))).collect();
        assert_eq!(
            choose(&pod("1m", "1Mi", None), &nodes, &there).unwrap_err(),
            "0/1 nodes are available: 1 Too many pods."
        );
    }
}
