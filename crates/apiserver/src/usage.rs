//! `metrics.k8s.io`: what pods and nodes use, asked of the nodes at each request; nothing of it is stored.
//!
//! Source: `kubernetes-sigs/metrics-server/pkg/api`.

use std::time::Duration;

use client::kubelet::{PodStats, Summary, USAGE_WINDOW, Usage};
use futures::future::join_all;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::ApiServer;
use crate::body::{self, Response};
use crate::error::{ApiError, ApiResult};
use crate::negotiate::Shape;
use crate::object::{key, meta, time_text};
use crate::selector::FieldSelector;
use crate::table;
use crate::verbs::{Call, Filter, include, partial, respond_value};

/// The API group.
pub(crate) const GROUP: &str = "metrics.k8s.io";
/// Time for a node to answer; the others' numbers are not to wait longer for it.
const NODE_LIMIT: Duration = Duration::from_secs(5);
/// Longest answer of a node.
const SUMMARY_LIMIT_BYTES: usize = 16 << 20;

impl ApiServer {
    /// `get` and `list` of PodMetrics and NodeMetrics.
    pub(crate) async fn usage(&self, call: &Call) -> ApiResult<Response> {
        let def = &call.served.def;
        let filter = Filter::of(call)?;
        let mut items = match &*def.plural {
            "pods" => self.pod_metrics(call, &filter).await,
            _ => self.node_metrics(call, &filter).await,
        };
        if call.target.name.is_empty() {
            items.sort_by(|a, b| place(a).cmp(&place(b)));
            return respond_list(call, &items);
        }
        // Selectors are no part of a get.
        let item = items.pop().ok_or_else(|| ApiError::not_found(def, &call.target.name))?;
        let value = match call.accepted.shape {
            Shape::Object => item,
            Shape::Partial => partial(&item),
            Shape::Table => table_of(call, &[item], &json!({}))?,
        };
        Ok(respond_value(call, StatusCode::OK, &value))
    }

    async fn pod_metrics(&self, call: &Call, filter: &Filter) -> Vec<Value> {
        let target = &call.target;
        let pods = self.store.table("pods");
        let summaries = self.summaries(&FieldSelector::default()).await;
        let stats = summaries.iter().flat_map(|summary| summary.pods.iter().map(|pod| (&summary.node.node_name, pod)));
        let wanted = stats.filter(|(_, stats)| {
            (target.namespace.is_empty() || stats.pod_ref.namespace == target.namespace)
                && (target.name.is_empty() || stats.pod_ref.name == target.name)
        });
        let measured = wanted.filter_map(|(node, stats)| {
            let key = key(true, &stats.pod_ref.namespace, &stats.pod_ref.name);
            let object = pods.get(&key)?.record;
            let pod = filter.matches(call, &key, &object).then(|| object.value())?;
            // Another pod of that name may have come since; and a node speaks for its own pods only.
            let is_its_own = meta(&pod, "uid") == stats.pod_ref.uid && pod["spec"]["nodeName"] == node.as_str();
            is_its_own.then(|| pod_metrics(&pod, stats))
        });
        measured.collect()
    }

    async fn node_metrics(&self, call: &Call, filter: &Filter) -> Vec<Value> {
        let name = &call.target.name;
        let named = if name.is_empty() { filter.fields.clone() } else { FieldSelector::of_name(name) };
        let nodes = self.store.table("nodes");
        let summaries = self.summaries(&named).await;
        let measured = summaries.iter().filter_map(|summary| {
            let stats = &summary.node;
            let object = nodes.get(&stats.node_name)?.record;
            let wanted = filter.matches(call, &stats.node_name, &object);
            wanted.then(|| metrics(&object.value(), "NodeMetrics", &stats.usage, "usage", amounts(&stats.usage)))
        });
        measured.collect()
    }

    /// What the nodes say that answer; all of them, or the one of that name.
    async fn summaries(&self, nodes: &FieldSelector) -> Vec<Summary> {
        let table = self.store.table("nodes");
        let names: Vec<String> = match nodes.name() {
            Some(name) => vec![name.to_owned()],
            None => table.list("", None, usize::MAX, |_| true).entries.iter().map(|(key, _)| key.to_string()).collect(),
        };
        let asked = names.iter().map(|name| async move {
            let answer = tokio::time::timeout(NODE_LIMIT, self.summary(name)).await;
            let answer = answer.unwrap_or_else(|_| Err(ApiError::internal_error("the node takes too long")));
            match answer {
                Ok(summary) => summary,
                Err(error) => {
                    tracing::debug!(node = name, error = error.message, "a node does not say what it uses");
                    None
                }
            }
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// What one node says; `None` for one that is not ours to ask.
    async fn summary(&self, node: &str) -> ApiResult<Option<Summary>> {
        let Some(endpoint) = self.node_endpoint(node)? else {
            let kubelet = self.kubelet.read().clone();
            return Ok(kubelet.map(|kubelet| kubelet.usage()).filter(|summary| summary.node.node_name == node));
        };
        let request = http::Request::get("/stats/summary").body(body::empty());
        let request = request.map_err(|error| ApiError::internal_error(error.to_string()))?;
        let response = self.ask_node(endpoint, request).await?;
        if !response.status().is_success() {
            return Err(crate::nodes::refusal(response).await);
        }
        let text = body::read(response.into_body(), SUMMARY_LIMIT_BYTES).await?;
        let summary: Summary = serde_json::from_slice(&text).map_err(|error| {
            ApiError::internal_error(format!("the answer of node {node} to /stats/summary is none: {error}"))
        })?;
        // A node speaks for itself only.
        Ok(Some(summary).filter(|summary| summary.node.node_name == node))
    }
}

fn pod_metrics(pod: &Value, stats: &PodStats) -> Value {
    let containers: Value = stats
        .containers
        .iter()
        .map(|container| json!({"name": container.name, "usage": amounts(&container.usage)}))
        .collect();
    let oldest = stats.containers.iter().map(|container| &container.usage).min_by_key(|usage| usage.cpu.time);
    metrics(pod, "PodMetrics", oldest.unwrap_or(&Usage::default()), "containers", containers)
}

fn metrics(of: &Value, kind: &str, measured: &Usage, field: &str, value: Value) -> Value {
    let mut metadata = json!({"name": meta(of, "name"), "creationTimestamp": time_text(Timestamp::now())});
    for field in ["namespace", "labels"] {
        if !of["metadata"][field].is_null() {
            metadata[field] = of["metadata"][field].clone();
        }
    }
    json!({
        "kind": kind, "apiVersion": format!("{GROUP}/v1beta1"), "metadata": metadata,
        "timestamp": time_text(measured.cpu.time), "window": format!("{}s", USAGE_WINDOW.as_secs()),
        field: value,
    })
}

/// As quantities, in the units that metrics-server answers in.
fn amounts(usage: &Usage) -> Value {
    json!({
        "cpu": format!("{}n", usage.cpu.usage_nano_cores),
        "memory": format!("{}Ki", usage.memory.working_set_bytes / 1024),
    })
}

/// Namespace and name.
fn place(item: &Value) -> (&str, &str) {
    (meta(item, "namespace"), meta(item, "name"))
}

fn respond_list(call: &Call, items: &[Value]) -> ApiResult<Response> {
    let (def, metadata) = (&call.served.def, json!({}));
    let value = match call.accepted.shape {
        Shape::Object => {
            json!({"kind": def.list_kind, "apiVersion": def.api_version(), "metadata": metadata, "items": items})
        }
        Shape::Partial => json!({
            "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "items": items.iter().map(partial).collect::<Vec<_>>(),
        }),
        Shape::Table => table_of(call, items, &metadata)?,
    };
    Ok(respond_value(call, StatusCode::OK, &value))
}

fn table_of(call: &Call, items: &[Value], metadata: &Value) -> ApiResult<Value> {
    let mut table = table::head(&call.served.def, metadata);
    let include = include(call)?;
    table["rows"] = items.iter().map(|item| table::row(&call.served.def, item, include)).collect();
    Ok(table)
}

#[cfg(test)]
mod tests {
    use client::kubelet::{ContainerStats, CpuStats, MemoryStats, PodReference};

    use super::*;

    fn usage(second: i64, usage_nano_cores: u64, working_set_bytes: u64) -> Usage {
        let time = Timestamp::from_second(second).unwrap();
        Usage {
            cpu: CpuStats { time, usage_nano_cores, usage_core_nano_seconds: 0 },
            memory: MemoryStats { time, usage_bytes: 0, working_set_bytes },
        }
    }

    #[test]
    fn a_pod_is_described_as_metrics_server_does() {
        let pod = json!({"metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}, "uid": "u"}});
        let container = |name: &str, usage| ContainerStats { name: name.into(), usage };
        let stats = PodStats {
            pod_ref: PodReference { name: "p".into(), namespace: "n".into(), uid: "u".into() },
            containers: vec![
                container("one", usage(1_700_000_005, 1_500_000, 3 << 20)),
                container("two", usage(1_700_000_004, 7, 1023)),
            ],
        };
        let mut metrics = pod_metrics(&pod, &stats);
        assert!(metrics["metadata"]["creationTimestamp"].take().is_string());
        let expected = json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "b"}, "creationTimestamp": null},
            "timestamp": "2023-11-14T22:13:24Z", "window": "5s",
            "containers": [
                {"name": "one", "usage": {"cpu": "1500000n", "memory": "3072Ki"}},
                {"name": "two", "usage": {"cpu": "7n", "memory": "0Ki"}},
            ],
        });
        assert_eq!(metrics, expected);
    }
}
