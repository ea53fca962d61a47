//! What pods use, as `metrics.k8s.io` tells: our own API server's, or that of metrics-server on another cluster.
//!
//! One list covers the pods of all Revisions. Nothing is asked while no Revision is scaled by use.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use autoscale::usage::{PodSeen, Sample};
use base::quantity::Quantity;
use client::ObjectKey;
use client::kubelet::USAGE_WINDOW;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::Notify;

use crate::context::Context;
use crate::meta::is_deleted;

/// Time between two lists.
const PERIOD: Duration = USAGE_WINDOW;
/// Time for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The pods of Revisions.
const PATH: &str = "/apis/metrics.k8s.io/v1beta1/pods?labelSelector=serving.knative.dev%2Frevision";

/// The last list.
#[derive(Default)]
pub(crate) struct UsageFeed {
    latest: Mutex<Option<Arc<Reading>>>,
    wanted: Notify,
}

/// What was read once.
pub(super) struct Reading {
    /// Rises with each.
    number: u64,
    /// What each pod uses; else why nobody knows: cause and cure.
    pods: Result<HashMap<ObjectKey, Measurement>, String>,
}

struct Measurement {
    at: Timestamp,
    window: Duration,
    cpu_millis: u64,
    memory_bytes: u64,
}

#[derive(Deserialize)]
struct PodMetricsList {
    #[serde(default)]
    items: Vec<PodMetrics>,
}

/// Of `metrics.k8s.io/v1beta1`.
#[derive(Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

impl UsageFeed {
    /// The last reading, unless it is the one of that number.
    pub(super) fn after(&self, number: u64) -> Option<Arc<Reading>> {
        self.latest.lock().clone().filter(|reading| reading.number != number)
    }

    /// A Revision is scaled by use.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }
}

impl Reading {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The pods as the decision sees them; else why it cannot be made.
    pub(super) fn see(&self, pods: &[Arc<Pod>], now: Timestamp) -> Result<Vec<PodSeen>, &str> {
        let measured = self.pods.as_ref().map_err(String::as_str)?;
        let live = pods.iter().filter(|pod| !is_deleted(pod.as_ref()) && !has_ended(pod));
        let seen = |pod: &Arc<Pod>| {
            let key = ObjectKey::new(pod.namespace().unwrap_or_default(), pod.name_any());
            pod_seen(pod, measured.get(&key), now)
        };
        Ok(live.map(seen).collect())
    }
}

/// Reads again and again while a Revision is scaled by use, until the controllers stop.
pub(crate) async fn follow(context: Arc<Context>) {
    let feed = &context.autoscaler.usage;
    for number in 1.. {
        let keys = context.autoscaler.scaled_by_usage();
        let pause = async {
            if keys.is_empty() {
                feed.wanted.notified().await;
                return;
            }
            let pods = read(&context.client).await;
            if let Err(why) = &pods {
                tracing::debug!(why, "nothing is known of what pods use");
            }
            *feed.latest.lock() = Some(Arc::new(Reading { number, pods }));
            keys.into_iter().for_each(|key| context.queues.autoscalers.add(key));
            tokio::time::sleep(PERIOD).await;
        };
        if context.stop.run_until_cancelled(pause).await.is_none() {
            return;
        }
    }
}

async fn read(client: &kube::Client) -> Result<HashMap<ObjectKey, Measurement>, String> {
    let request = http::Request::get(PATH).body(Vec::new()).map_err(|error| error.to_string())?;
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.request::<PodMetricsList>(request)).await;
    match answer {
        Ok(Ok(list)) => Ok(list.items.iter().filter_map(measurement).collect()),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => {
            Err(format!("metrics.k8s.io does not answer within {ANSWER_LIMIT:?}: look at the pods of metrics-server"))
        }
    }
}

/// Cause and cure.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if status.code == 404 => {
            "this cluster does not serve metrics.k8s.io: install metrics-server".to_owned()
        }
        kube::Error::Api(status) if status.code == 403 => format!(
            "the controller may not list pods.metrics.k8s.io: apply what `colibri install --rbac` prints ({})",
            status.message
        ),
        kube::Error::Api(status) => {
            format!("metrics.k8s.io does not answer: look at the pods of metrics-server ({})", status.message)
        }
        other => format!("metrics.k8s.io does not answer: look at the pods of metrics-server ({other})"),
    }
}

/// `None` for numbers that are none.
fn measurement(pod: &PodMetrics) -> Option<(ObjectKey, Measurement)> {
    let sum = |resource: &str, number: fn(Quantity) -> i128| {
        pod.containers.iter().try_fold(0_u64, |sum, container| {
            let amount = number(Quantity::parse(container.usage.get(resource)?).ok()?);
            Some(sum.saturating_add(u64::try_from(amount).ok()?))
        })
    };
    let measurement = Measurement {
        at: pod.timestamp,
        window: base::duration::parse(&pod.window)?,
        cpu_millis: sum("cpu", Quantity::milli)?,
        memory_bytes: sum("memory", Quantity::whole)?,
    };
    let key = ObjectKey::new(&pod.metadata.namespace, &pod.metadata.name);
    (!pod.containers.is_empty()).then_some((key, measurement))
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

fn pod_seen(pod: &Pod, measured: Option<&Measurement>, now: Timestamp) -> PodSeen {
    let ago = |then: Timestamp| Duration::try_from(now.duration_since(then)).unwrap_or_default();
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready").and_then(|condition| {
        let since = ago(condition.last_transition_time.as_ref()?.0);
        Some((condition.status != "False", since))
    });
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    PodSeen {
        pending: status.and_then(|status| status.phase.as_deref()).is_none_or(|phase| phase == "Pending"),
        ready,
        age: status.and_then(|status| status.start_time.as_ref()).map(|start| ago(start.0)),
        cpu_request: containers.map(cpu_request).try_fold(0_u64, |sum, request| Some(sum.saturating_add(request?))),
        sample: measured.map(|measured| Sample {
            age: ago(measured.at),
            window: measured.window,
            cpu_millis: measured.cpu_millis,
            memory_bytes: measured.memory_bytes,
        }),
    }
}

/// Thousandths of a core; a limit alone is a request too.
fn cpu_request(container: &Container) -> Option<u64> {
    let resources = container.resources.as_ref()?;
    let of = |list: &Option<BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>| {
        let text = list.as_ref()?.get("cpu")?;
        u64::try_from(Quantity::parse(&text.0).ok()?.milli()).ok()
    };
    of(&resources.requests).or_else(|| of(&resources.limits))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> String {
        Timestamp::from_second(second).unwrap().to_string()
    }

    fn measured(metrics: Value) -> Option<(ObjectKey, Measurement)> {
        measurement(&serde_json::from_value(metrics).unwrap())
    }

    fn metrics(containers: &Value) -> Value {
        json!({
            "kind": "PodMetrics", "metadata": {"name": "p", "namespace": "n"}, "timestamp": at(100), "window": "15.5s",
            "containers": containers,
        })
    }

    #[test]
    fn containers_are_added_up_and_nonsense_is_passed_over() {
        let container = |cpu: &str, memory: &str| json!({"name": "c", "usage": {"cpu": cpu, "memory": memory}});
        let (key, sum) = measured(metrics(&json!([container("1500000n", "3Ki"), container("2", "1Mi")]))).unwrap();
        assert_eq!(key, ObjectKey::new("n", "p"));
        assert_eq!((sum.cpu_millis, sum.memory_bytes), (2002, (1 << 20) + 3072));
        assert_eq!(sum.window, Duration::from_millis(15_500));
        for wrong in
            [json!([]), json!([container("x", "1Mi")]), json!([container("-1", "1Mi")]), json!([{"name": "c"}])]
        {
            assert!(measured(metrics(&wrong)).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_pod_is_seen_with_its_requests_and_ages() {
        let resources = |kind: &str, cpu: &str| json!({"name": "c", "resources": {kind: {"cpu": cpu}}});
        let pod = |containers: Value| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": containers},
                    "status": {
                        "phase": "Running", "startTime": at(50),
                        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": at(60)}],
                    },
                }))
                .unwrap(),
            )
        };
        let usage = json!([{"name": "c", "usage": {"cpu": "30m", "memory": "2"}}]);
        let pods = HashMap::from_iter(measured(metrics(&usage)));
        let reading = Reading { number: 1, pods: Ok(pods) };
        let now = Timestamp::from_second(110).unwrap();
        let both = pod(json!([resources("requests", "100m"), resources("limits", "0.2")]));
        let seconds = Duration::from_secs;
        let expected = PodSeen {
            pending: false,
            ready: Some((true, seconds(50))),
            age: Some(seconds(60)),
            cpu_request: Some(300),
            sample: Some(Sample {
                age: seconds(10),
                window: Duration::from_millis(15_500),
                cpu_millis: 30,
                memory_bytes: 2,
            }),
        };
        assert_eq!(reading.see(&[both], now), Ok(vec![expected]));
        let one = pod(json!([resources("requests", "100m"), {"name": "d"}]));
        assert_eq!(reading.see(&[one], now).unwrap()[0].cpu_request, None);
        let lost = Reading { number: 2, pods: Err("why".into()) };
        assert_eq!(lost.see(&[], now), Err("why"));
    }

    #[test]
    fn a_cluster_without_the_api_is_told_with_its_cure() {
        let refused = |code: u16| {
            let status = json!({"code": code, "message": "the text"});
            explain(&kube::Error::Api(Box::new(serde_json::from_value(status).unwrap())))
        };
        assert!(refused(404).ends_with("install metrics-server"));
        assert!(refused(403).contains("colibri install --rbac"));
        assert!(refused(503).contains("the text"));
    }
}
