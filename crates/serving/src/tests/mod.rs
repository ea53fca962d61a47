//! The controllers together, over an API server in memory and on a paused clock.

mod conditions;
mod fake;
mod usage;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::RevisionId;
use client::Caches;
use client::link::{AutoscalerLink, Stat};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Addresses, Config, Serving};
use fake::{Api, Gateway, Pods, Registry};

const SERVICES: &str = "/apis/serving.knative.dev/v1/services";
const ROUTES: &str = "/apis/serving.knative.dev/v1/routes";
const AUTOSCALERS: &str = "/apis/autoscaling.internal.knative.dev/v1alpha1/podautoscalers";
const CONFIGURATIONS: &str = "/apis/serving.knative.dev/v1/configurations";
const CONFIG_MAPS: &str = "/api/v1/configmaps";
const REVISIONS: &str = "/apis/serving.knative.dev/v1/revisions";

struct Platform {
    api: Api,
    gateway: Arc<Gateway>,
    serving: Arc<Serving>,
    stop: CancellationToken,
}

impl Drop for Platform {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A wall clock that follows the test's.
fn now() -> jiff::Timestamp {
    thread_local! {
        static START: Instant = Instant::now();
    }
    let passed = START.with(Instant::elapsed);
    jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::try_from(passed).unwrap()
}

async fn platform(api: Api) -> Platform {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let caches = Caches::new(api.client(), tasks.clone(), stop.clone());
    let gateway = Arc::new(Gateway { api: api.clone(), load: AtomicUsize::new(0) });
    let addresses = Addresses { public_port: Some(8080), ..Addresses::default() };
    let config = Config { addresses, node_name: Some("node".to_owned()), clock: now, ..Config::default() };
    let serving = Serving::start(config, caches, gateway.clone(), Arc::new(Registry), tasks, stop.clone()).await;
    // Every watch is open then: this API server tells none of what was before.
    sleep(Duration::from_millis(1)).await;
    Platform { api, gateway, serving, stop }
}

/// A ConfigMap of the platform.
fn config_map(name: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": name, "namespace": "colibri-system", "uid": name},
    })
}

/// The controllers end and start again over the same API server.
async fn restart(present: Platform) -> Platform {
    let api = present.api.clone();
    drop(present);
    sleep(Duration::from_millis(100)).await;
    platform(api).await
}

fn service(image: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": { "name": "hello", "annotations": { "serving.knative.dev/creator": "tester" } },
        "spec": {
            "template": {
                "metadata": { "annotations": annotations },
                "spec": { "containers": [{ "name": "user-container", "image": image, "resources": {} }],
                    "containerConcurrency": 0, "timeoutSeconds": 300 },
            },
            "traffic": [{ "latestRevision": true, "percent": 100 }],
        },
    })
}

fn condition(object: &Value, kind: &str) -> (String, String, String) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = conditions.iter().find(|condition| condition["type"] == kind).cloned().unwrap_or_default();
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"), text("message"))
}

impl Platform {
    /// Waits until `kind` of the Service has `status`.
    async fn until(&self, kind: &str, status: &str) -> Value {
        for _ in 0..2_000 {
            if let Some(object) = self.api.get(SERVICES, "hello")
                && object["status"]["observedGeneration"] == object["metadata"]["generation"]
                && condition(&object, kind).0 == status
            {
                return object;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{kind} is not {status}: {:#?}", self.api.get(SERVICES, "hello"));
    }

    async fn until_pods(&self, count: usize) -> Instant {
        for _ in 0..200_000 {
            if self.api.list("pods").len() == count {
                return Instant::now();
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{} pods instead of {count}", self.api.list("pods").len());
    }

    fn report(&self, concurrency: f64) {
        let revision = RevisionId::new("default", "hello-00001");
        self.serving.report(&[Stat { revision, concurrency, requests: concurrency }]);
    }

    /// Looks at every object again; what was written then.
    async fn look_again(&self) -> Vec<String> {
        self.api.take_writes();
        let queues = &self.serving.context.queues;
        let key = |name: &str| client::ObjectKey::new("default", name);
        for queue in [&queues.services, &queues.configurations, &queues.routes] {
            queue.add(key("hello"));
        }
        for queue in [&queues.revisions, &queues.autoscalers, &queues.instances] {
            queue.add(key("hello-00001"));
        }
        sleep(Duration::from_millis(500)).await;
        self.api.take_writes()
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_becomes_ready() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    let object = platform.until("Ready", "True").await;
    assert_eq!(object["status"]["url"], "http://hello.default.localhost:8080");
    assert_eq!(object["status"]["address"]["url"], "http://hello.default.svc.cluster.local");
    assert_eq!(object["status"]["latestReadyRevisionName"], "hello-00001");
    assert_eq!(
        object["status"]["traffic"],
        json!([{ "latestRevision": true, "percent": 100, "revisionName": "hello-00001" }])
    );
    let pods = platform.api.list("pods");
    assert_eq!(pods.len(), 1);
    let pod = &pods[0];
    assert!(pod["metadata"]["name"].as_str().unwrap().starts_with("hello-00001-deployment-"));
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Revision");
    assert_eq!(pod["spec"]["nodeName"], "node");
    assert_eq!(pod["spec"]["terminationGracePeriodSeconds"], 300);
    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["image"], json!(format!("r.example/hello@sha256:{}", "a".repeat(64))));
    assert_eq!(container["ports"], json!([{ "containerPort": 8080, "name": "user-port", "protocol": "TCP" }]));
    let placeholder = platform.api.get("/api/v1/services", "hello").unwrap();
    assert_eq!(placeholder["metadata"]["labels"]["serving.knative.dev/route"], "hello");
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    assert_eq!(revision["metadata"]["labels"]["serving.knative.dev/routingState"], "active");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(platform.look_again().await, Vec::<String>::new(), "planning again writes nothing");
}

#[tokio::test(start_paused = true)]
async fn the_last_pod_goes_a_window_and_a_grace_period_after_the_traffic() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        platform.report(1.0);
    }
    let stopped = Instant::now();
    sleep(Duration::from_secs(1)).await;
    platform.report(0.0);
    let gone = platform.until_pods(0).await;
    let waited = gone.duration_since(stopped).as_secs_f64();
    assert!((89.0..=90.1).contains(&waited), "the last pod went after {waited} s");
    sleep(Duration::from_secs(2)).await;
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    assert_eq!(condition(&revision, "Ready").0, "True", "ready at zero");
    assert_eq!(condition(&revision, "Active").1, "NoTraffic");
    assert_eq!(revision["status"]["actualReplicas"], 0);

    // From zero: the pod is made at once, and few writes follow.
    sleep(Duration::from_secs(300)).await;
    assert_eq!(platform.look_again().await, Vec::<String>::new());
    let poked = Instant::now();
    platform.serving.poke(&RevisionId::new("default", "hello-00001"));
    let made = platform.until_pods(1).await;
    assert!(made.duration_since(poked) <= Duration::from_millis(10));
    sleep(Duration::from_secs(1)).await;
    let writes = platform.api.take_writes();
    assert!(writes.len() <= 3, "{writes:#?}");
    assert!(writes[0].starts_with("create /api/v1/pods"), "{writes:#?}");
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    assert_eq!(condition(&revision, "Active").0, "True");
}

#[tokio::test(start_paused = true)]
async fn a_failed_new_revision_leaves_the_traffic_where_it_is() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    platform.api.set_pods(Pods::Crash);
    platform.api.put(SERVICES, service("r.example/hello:v2", json!({})));
    let object = platform.until("Ready", "False").await;
    let (_, reason, message) = condition(&object, "ConfigurationsReady");
    assert_eq!(reason, "RevisionFailed");
    assert_eq!(
        message,
        "Revision \"hello-00002\" failed with message: Container failed with: main.py:3: SyntaxError: invalid syntax."
    );
    assert_eq!(object["status"]["latestCreatedRevisionName"], "hello-00002");
    assert_eq!(object["status"]["latestReadyRevisionName"], "hello-00001");
    let route = platform.api.get(ROUTES, "hello").unwrap();
    assert_eq!(route["status"]["traffic"][0]["revisionName"], "hello-00001");
    assert_eq!(condition(&route, "Ready").0, "True");

    platform.api.set_pods(Pods::Start);
    platform.api.put(SERVICES, service("r.example/hello:v3", json!({})));
    let object = platform.until("Ready", "True").await;
    assert_eq!(object["status"]["traffic"][0]["revisionName"], "hello-00003");
}

/// Default progress deadline, and what an activation gets on top.
const GIVEN_UP: Duration = Duration::from_secs(630);

fn pods_of(platform: &Platform, revision: &str) -> usize {
    let of_revision = |pod: &Value| pod["metadata"]["labels"]["serving.knative.dev/revision"] == revision;
    platform.api.list("pods").into_iter().filter(of_revision).count()
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_never_gets_ready_is_given_up_at_its_deadline() {
    let platform = platform(Api::new()).await;
    platform.api.set_pods(Pods::Crash);
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "False").await;
    sleep(GIVEN_UP - Duration::from_secs(5)).await;
    assert_eq!(pods_of(&platform, "hello-00001"), 1, "it may still recover");
    sleep(Duration::from_secs(10)).await;
    assert_eq!(pods_of(&platform, "hello-00001"), 0);
    let autoscaler = platform.api.get(AUTOSCALERS, "hello-00001").unwrap();
    assert_eq!(condition(&autoscaler, "Active").1, "TimedOut");
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    assert_eq!(condition(&revision, "ContainerHealthy").0, "False", "what the container said stays");

    // Neither time nor a restart of the controllers tries it again.
    let again = restart(platform).await;
    sleep(2 * GIVEN_UP).await;
    assert_eq!(again.api.list("pods").len(), 0);
    assert_eq!(again.look_again().await, Vec::<String>::new());
    let autoscaler = again.api.get(AUTOSCALERS, "hello-00001").unwrap();
    assert_eq!(condition(&autoscaler, "Active").1, "TimedOut");
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_hangs_exceeds_its_progress_deadline() {
    let platform = platform(Api::new()).await;
    platform.api.set_pods(Pods::Hang);
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "Unknown").await;
    sleep(GIVEN_UP + Duration::from_secs(5)).await;
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    let (status, reason, message) = condition(&revision, "ResourcesAvailable");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ProgressDeadlineExceeded"));
    assert!(message.starts_with("Initial scale was never achieved"), "{message}");
    assert_eq!(pods_of(&platform, "hello-00001"), 0);
    sleep(2 * GIVEN_UP).await;
    assert_eq!(pods_of(&platform, "hello-00001"), 0, "nobody asked for another try");
}

#[tokio::test(start_paused = true)]
async fn restarts_do_not_put_the_deadline_off() {
    let mut platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    platform.api.set_pods(Pods::Crash);
    platform.api.put(SERVICES, service("r.example/hello:v2", json!({})));
    platform.until("Ready", "False").await;
    platform.api.set_pods(Pods::Start);
    platform.api.put(SERVICES, service("r.example/hello:v3", json!({})));
    platform.until("Ready", "True").await;
    assert_eq!(pods_of(&platform, "hello-00002"), 1);
    // No Route refers to it any more.
    for _ in 0..3 {
        sleep(GIVEN_UP / 3 - Duration::from_secs(2)).await;
        assert_eq!(pods_of(&platform, "hello-00002"), 1);
        platform = restart(platform).await;
    }
    sleep(Duration::from_secs(20)).await;
    assert_eq!(pods_of(&platform, "hello-00002"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_missing_is_named() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/missing:v1", json!({})));
    let object = platform.until("ConfigurationsReady", "False").await;
    let (_, _, message) = condition(&object, "ConfigurationsReady");
    let wanted = "Unable to fetch image \"r.example/missing:v1\": r.example/missing:v1: not found";
    assert_eq!(message, format!("Revision \"hello-00001\" failed with message: {wanted}."));
    assert_eq!(platform.api.list("pods").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn many_waiting_requests_bring_many_pods_and_their_end_takes_them_away() {
    let platform = platform(Api::new()).await;
    let annotations = json!({ "autoscaling.knative.dev/target": "10", "autoscaling.knative.dev/max-scale": "5" });
    platform.api.put(SERVICES, service("r.example/hello:v1", annotations));
    platform.until("Ready", "True").await;
    for _ in 0..10 {
        platform.report(200.0);
        sleep(Duration::from_secs(1)).await;
    }
    platform.until_pods(5).await;
    let stopped = Instant::now();
    let gone = platform.until_pods(0).await;
    assert!(gone.duration_since(stopped) < Duration::from_secs(140));
}

#[tokio::test(start_paused = true)]
async fn failed_writes_are_made_up_for() {
    for every in 2..7 {
        let api = Api::new();
        let platform = platform(api.clone()).await;
        api.fail_every(every);
        api.put(SERVICES, service("r.example/hello:v1", json!({})));
        platform.until("Ready", "True").await;
        api.fail_every(0);
        sleep(Duration::from_secs(40)).await;
        assert_eq!(api.list("pods").len(), 1, "one of {every} writes failed");
        assert_eq!(platform.look_again().await, Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_not_made_twice_because_an_answer_got_lost() {
    let platform = platform(Api::new()).await;
    platform.api.lose_answers(1);
    let annotations = json!({ "autoscaling.knative.dev/max-scale": "1" });
    platform.api.put(SERVICES, service("r.example/hello:v1", annotations));
    platform.until("Ready", "True").await;
    sleep(Duration::from_secs(40)).await;
    let made = platform.api.take_writes().into_iter().filter(|write| write.starts_with("create /api/v1/pods"));
    assert_eq!(made.count(), 1);
}

/// A watch that lags shows an object that is gone: what the collector takes from it must not be made again and again.
#[tokio::test(start_paused = true)]
async fn nothing_is_made_for_an_object_that_is_gone() {
    for (kind, name) in [(SERVICES, "hello"), (CONFIGURATIONS, "hello"), (ROUTES, "hello"), (REVISIONS, "hello-00001")]
    {
        let platform = platform(Api::new()).await;
        platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
        platform.until("Ready", "True").await;
        sleep(Duration::from_secs(1)).await;
        platform.api.take_writes();
        platform.api.hold(kind);
        platform.api.delete(kind, name);
        for step in 0..1_000 {
            if step % 100 == 0 {
                platform.report(1.0);
            }
            sleep(Duration::from_millis(10)).await;
            platform.api.collect();
        }
        let made = platform.api.take_writes().into_iter().filter(|write| write.starts_with("create"));
        assert_eq!(made.collect::<Vec<_>>(), Vec::<String>::new(), "after {kind} {name}");
    }
}

/// Nobody knows whether the pod was made, and it was not.
#[tokio::test(start_paused = true)]
async fn a_pod_that_never_comes_is_asked_for_again() {
    let platform = platform(Api::new()).await;
    platform.api.refuse_pods(Some((500, "InternalError")));
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(platform.api.list("pods").len(), 0);
    platform.api.refuse_pods(None);
    platform.until_pods(1).await;
    platform.until("Ready", "True").await;
}

/// Somebody deletes a pod of a Revision that is there: another stands in.
#[tokio::test(start_paused = true)]
async fn a_pod_that_somebody_deletes_is_replaced() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({ "autoscaling.knative.dev/min-scale": "1" })));
    platform.until("Ready", "True").await;
    let first = platform.api.list("pods")[0]["metadata"]["name"].clone();
    platform.api.delete("/api/v1/pods", first.as_str().unwrap());
    platform.until_pods(1).await;
    assert_ne!(platform.api.list("pods")[0]["metadata"]["name"], first);
}

#[tokio::test(start_paused = true)]
async fn a_tag_has_a_url_and_a_placeholder_of_its_own() {
    let platform = platform(Api::new()).await;
    let mut object = service("r.example/hello:v1", json!({}));
    object["spec"]["traffic"] = json!([
        { "latestRevision": true, "percent": 100 },
        { "revisionName": "hello-00001", "latestRevision": false, "tag": "old", "percent": 0 },
    ]);
    platform.api.put(SERVICES, object.clone());
    let ready = platform.until("Ready", "True").await;
    assert_eq!(ready["status"]["traffic"][1]["url"], "http://old-hello.default.localhost:8080");
    assert!(platform.api.get("/api/v1/services", "old-hello").is_some());
    object["spec"]["traffic"] = json!([{ "latestRevision": true, "percent": 100 }]);
    platform.api.put(SERVICES, object);
    platform.until("Ready", "True").await;
    sleep(Duration::from_secs(1)).await;
    assert!(platform.api.get("/api/v1/services", "old-hello").is_none());
}

/// Shares of the Service's traffic, by Revision.
fn traffic(platform: &Platform) -> Vec<(String, i64)> {
    let service = platform.api.get(SERVICES, "hello").unwrap();
    let targets = service["status"]["traffic"].as_array().cloned().unwrap_or_default();
    let share =
        |target: &Value| (target["revisionName"].as_str().unwrap().to_owned(), target["percent"].as_i64().unwrap());
    targets.iter().map(share).collect()
}

#[tokio::test(start_paused = true)]
async fn traffic_moves_gradually_and_goes_on_after_a_restart() {
    let mut platform = platform(Api::new()).await;
    let gradual = |image: &str| {
        let mut service = service(image, json!({}));
        service["metadata"]["annotations"]["serving.knative.dev/rollout-duration"] = "10s".into();
        service
    };
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    sleep(Duration::from_secs(5)).await;
    platform.api.put(SERVICES, gradual("r.example/hello:v2"));
    let mut seen = Vec::new();
    for step in 0..3_000 {
        let shares = traffic(&platform);
        assert_eq!(shares.iter().map(|(_, percent)| percent).sum::<i64>(), 100, "{shares:?}");
        let newest = shares.iter().find(|(name, _)| name == "hello-00002").map_or(0, |(_, percent)| *percent);
        if seen.last() != Some(&newest) {
            seen.push(newest);
        }
        if newest == 100 {
            break;
        }
        if newest > 0 {
            let route = platform.api.get(ROUTES, "hello").unwrap();
            let wanted = ("Unknown".to_owned(), "RolloutInProgress".to_owned());
            let ready = condition(&route, "Ready");
            assert_eq!((ready.0, ready.1), wanted, "{shares:?}");
        }
        if newest == 34 && step % 7 == 0 {
            platform = restart(platform).await;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(seen, [0, 1, 12, 23, 34, 45, 56, 67, 78, 89, 100]);
    platform.until("Ready", "True").await;
    assert_eq!(traffic(&platform), [("hello-00002".to_owned(), 100)]);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(platform.look_again().await, Vec::<String>::new(), "planning again writes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_goes_on_whatever_its_state_says() {
    let stuck = |params: Value| {
        let revisions = json!([
            {"revisionName": "hello-00001", "percent": 66}, {"revisionName": "hello-00002", "percent": 34},
        ]);
        let own = json!({"configurationName": "hello", "percent": 100, "revisions": revisions, "stepParams": params});
        json!({"configurations": [own]}).to_string()
    };
    let states = [
        None,
        Some("{".to_owned()),
        Some(stuck(json!({}))),
        Some(stuck(json!({"starttime": 1, "nextStepTime": 1, "stepDuration": 1}))),
        Some(stuck(json!({"starttime": i64::MIN, "nextStepTime": i64::MAX, "stepSize": 1}))),
    ];
    for state in states {
        let platform = platform(Api::new()).await;
        platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
        platform.until("Ready", "True").await;
        sleep(Duration::from_secs(5)).await;
        let mut next = service("r.example/hello:v2", json!({}));
        next["metadata"]["annotations"]["serving.knative.dev/rollout-duration"] = "10s".into();
        platform.api.put(SERVICES, next);
        let mut lost = false;
        for _ in 0..600 {
            let shares = traffic(&platform);
            assert_eq!(shares.iter().map(|(_, percent)| percent).sum::<i64>(), 100, "{shares:?}");
            if shares == [("hello-00001".to_owned(), 66), ("hello-00002".to_owned(), 34)] && !lost {
                let mut route = platform.api.get(ROUTES, "hello").unwrap();
                let annotations = route["status"]["annotations"].as_object_mut().unwrap();
                let key = api::serving::annotations::ROLLOUT_ANNOTATION;
                let was = match &state {
                    Some(state) => annotations.insert(key.to_owned(), state.as_str().into()),
                    None => annotations.remove(key),
                };
                assert!(was.is_some(), "the state is not where it was looked for");
                platform.api.put(ROUTES, route);
                lost = true;
            }
            if lost && shares == [("hello-00002".to_owned(), 100)] {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        assert!(lost, "the rollout was never seen at 34 %");
        assert_eq!(traffic(&platform), [("hello-00002".to_owned(), 100)], "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn revisions_that_nobody_uses_go_in_their_time() {
    let platform = platform(Api::new()).await;
    platform.api.put(
        CONFIG_MAPS,
        config_map(
            "config-gc",
            json!({
                "retain-since-create-time": "disabled", "retain-since-last-active-time": "1h",
                "min-non-active-revisions": "0",
            }),
        ),
    );
    let names = || {
        let revisions = platform.api.list("revisions");
        revisions.iter().map(|revision| revision["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for version in 1..=3 {
        platform.api.put(SERVICES, service(&format!("r.example/hello:v{version}"), json!({})));
        sleep(Duration::from_millis(100)).await;
        platform.until("Ready", "True").await;
    }
    sleep(Duration::from_secs(3_000)).await;
    assert_eq!(names(), ["hello-00001", "hello-00002", "hello-00003"]);
    sleep(Duration::from_secs(700)).await;
    assert_eq!(names(), ["hello-00003"]);
    platform.until("Ready", "True").await;
}

/// A Revision that is to be collected at once, whose pod goes to zero, or stays by its class or by the platform's word.
#[tokio::test(start_paused = true)]
async fn no_revision_is_collected_under_its_requests() {
    let none_kept = json!({"min-non-active-revisions": "0", "max-non-active-revisions": "0"});
    let rows = [("kpa", "true"), ("hpa", "true"), ("kpa", "false")];
    for (class, to_zero) in rows {
        let platform = platform(Api::new()).await;
        let class = json!({"autoscaling.knative.dev/class": format!("{class}.autoscaling.knative.dev")});
        platform.api.put(CONFIG_MAPS, config_map("config-gc", none_kept.clone()));
        platform.api.put(CONFIG_MAPS, config_map("config-autoscaler", json!({"enable-scale-to-zero": to_zero})));
        platform.api.put(SERVICES, service("r.example/hello:v1", class.clone()));
        platform.until("Ready", "True").await;
        platform.gateway.load.store(1, Ordering::SeqCst);
        platform.report(1.0);
        platform.api.put(SERVICES, service("r.example/hello:v2", class.clone()));
        platform.until("Ready", "True").await;
        sleep(Duration::from_secs(20)).await;
        assert_eq!(pods_of(&platform, "hello-00001"), 1, "{class} {to_zero}");
        assert!(platform.api.get(REVISIONS, "hello-00001").is_some(), "{class} {to_zero}");

        platform.gateway.load.store(0, Ordering::SeqCst);
        platform.report(0.0);
        sleep(Duration::from_secs(120)).await;
        assert!(platform.api.get(REVISIONS, "hello-00001").is_none(), "{class} {to_zero}");
        assert!(platform.api.get(REVISIONS, "hello-00002").is_some(), "{class} {to_zero}");
    }
}

#[tokio::test(start_paused = true)]
async fn urls_follow_the_config_maps() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    let url = || platform.api.get(SERVICES, "hello").unwrap()["status"]["url"].as_str().unwrap_or_default().to_owned();
    let rows = [
        ("config-domain", json!({"example.com": ""}), "http://hello.default.example.com:8080"),
        (
            "config-network",
            json!({"domain-template": "{{.Name}}-{{.Namespace}}.{{.Domain}}"}),
            "http://hello-default.example.com:8080",
        ),
        ("config-network", json!({"default-external-scheme": "https"}), "https://hello.default.example.com"),
        ("config-network", json!({"default-external-scheme": "gopher"}), "https://hello.default.example.com"),
        ("config-network", json!({}), "http://hello.default.example.com:8080"),
        ("config-domain", json!({"example.com": "selector: {app: other}"}), "http://hello.default.localhost:8080"),
    ];
    for (name, data, wanted) in rows {
        platform.api.put(CONFIG_MAPS, config_map(name, data.clone()));
        sleep(Duration::from_millis(500)).await;
        assert_eq!(url(), wanted, "{name} {data}");
    }
    let template = json!({"logging.revision-url-template": "http://logs.example/${REVISION_UID}"});
    platform.api.put(CONFIG_MAPS, config_map("config-observability", template));
    sleep(Duration::from_millis(500)).await;
    let revision = platform.api.get(REVISIONS, "hello-00001").unwrap();
    let uid = revision["metadata"]["uid"].as_str().unwrap();
    assert_eq!(revision["status"]["logUrl"], format!("http://logs.example/{uid}"));
}

const MAPPINGS: &str = "/apis/serving.knative.dev/v1beta1/domainmappings";
const CLAIMS: &str = "/apis/networking.internal.knative.dev/v1alpha1/clusterdomainclaims";

fn domain_mapping(domain: &str, namespace: &str, service: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1beta1", "kind": "DomainMapping",
        "metadata": {"name": domain, "namespace": namespace},
        "spec": {"ref": {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": service,
            "namespace": namespace}},
    })
}

impl Platform {
    /// Waits until the mapping's Ready has that status and reason.
    async fn until_mapped(&self, namespace: &str, domain: &str, status: &str, reason: &str) -> Value {
        let mut seen = Value::Null;
        for _ in 0..2_000 {
            let all = self.api.list("domainmappings");
            let own =
                |object: &&Value| object["metadata"]["name"] == domain && object["metadata"]["namespace"] == namespace;
            seen = all.iter().find(own).cloned().unwrap_or_default();
            let (now, why, _) = condition(&seen, "Ready");
            let observed = seen["status"]["observedGeneration"] == seen["metadata"]["generation"];
            if observed && (now.as_str(), why.as_str()) == (status, reason) {
                return seen;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("Ready of {namespace}/{domain} is not {status} {reason}: {seen:#?}");
    }

    async fn until_claims(&self, wanted: &[(&str, &str)]) {
        let mut seen = Vec::new();
        for _ in 0..2_000 {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let claim = |claim: &Value| (text(&claim["metadata"]["name"]), text(&claim["spec"]["namespace"]));
            seen = self.api.list("clusterdomainclaims").iter().map(claim).collect();
            if seen.iter().map(|(domain, namespace)| (domain.as_str(), namespace.as_str())).eq(wanted.iter().copied()) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("{wanted:?} is not what is claimed: {seen:?}");
    }

    fn autocreate(&self, on: bool) {
        let data = json!({"autocreate-cluster-domain-claims": on.to_string()});
        let map = config_map("config-network", data);
        self.api.put(CONFIG_MAPS, map);
    }
}

#[tokio::test(start_paused = true)]
async fn a_domain_is_mapped_while_it_is_claimed() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    platform.api.put(MAPPINGS, domain_mapping("a.example.com", "default", "hello"));
    platform.until_mapped("default", "a.example.com", "False", "DomainAlreadyClaimed").await;
    platform.until_claims(&[]).await;

    // The administrator allows it, live.
    platform.autocreate(true);
    let mapping = platform.until_mapped("default", "a.example.com", "True", "").await;
    assert_eq!(mapping["status"]["url"], "http://a.example.com:8080");
    assert_eq!(mapping["status"]["annotations"]["networking.internal.knative.dev/target"], "hello");
    platform.until_claims(&[("a.example.com", "default")]).await;
    sleep(Duration::from_secs(1)).await;
    platform.api.take_writes();
    platform.serving.context.queues.mappings.add(client::ObjectKey::new("default", "a.example.com"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(platform.api.take_writes(), Vec::<String>::new(), "planning again writes nothing");

    // The first wins, whatever the second refers to.
    platform.api.put(MAPPINGS, domain_mapping("a.example.com", "other", "hello"));
    let second = platform.until_mapped("other", "a.example.com", "False", "DomainAlreadyClaimed").await;
    assert_eq!(condition(&second, "DomainClaimed").2, "The domain name is already in use by another DomainMapping");
    assert!(!second.to_string().contains("default"), "the first one's namespace is not told: {second}");

    // What was made for the mapping goes with it, also after a restart and with the permission gone.
    platform.autocreate(false);
    platform.api.delete(MAPPINGS, "a.example.com");
    platform.until_claims(&[]).await;
    platform.until_mapped("other", "a.example.com", "False", "DomainAlreadyClaimed").await;
    platform.autocreate(true);
    platform.until_claims(&[("a.example.com", "other")]).await;
    platform.until_mapped("other", "a.example.com", "False", "ResolveFailed").await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_of_the_administrators_outlives_the_mapping_and_a_stray_one_does_not() {
    let platform = platform(Api::new()).await;
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    let claim = |domain: &str, labels: Value| {
        json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
            "metadata": {"name": domain, "namespace": "", "labels": labels}, "spec": {"namespace": "default"},
        })
    };
    platform.api.put(CLAIMS, claim("a.example.com", json!({})));
    platform.autocreate(true);
    for domain in ["a.example.com", "b.example.com"] {
        platform.api.put(MAPPINGS, domain_mapping(domain, "default", "hello"));
        platform.until_mapped("default", domain, "True", "").await;
    }
    // Deleted while no controller runs.
    let api = platform.api.clone();
    drop(platform);
    sleep(Duration::from_millis(100)).await;
    api.delete(MAPPINGS, "a.example.com");
    api.delete(MAPPINGS, "b.example.com");
    let platform = self::platform(api).await;
    platform.until_claims(&[("a.example.com", "default")]).await;
    sleep(Duration::from_secs(5)).await;
    platform.until_claims(&[("a.example.com", "default")]).await;
}

#[tokio::test(start_paused = true)]
async fn a_routes_own_host_is_not_mapped() {
    let platform = platform(Api::new()).await;
    platform.autocreate(true);
    platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
    platform.until("Ready", "True").await;
    // The second Service does not exist yet; then its Route takes the domain that was mapped.
    platform.api.put(MAPPINGS, domain_mapping("web.default.localhost", "default", "hello"));
    platform.until_mapped("default", "web.default.localhost", "True", "").await;
    let mut web = service("r.example/hello:v1", json!({}));
    web["metadata"]["name"] = json!("web");
    platform.api.put(SERVICES, web);
    let taken = platform.until_mapped("default", "web.default.localhost", "False", "HostInUse").await;
    assert_eq!(condition(&taken, "IngressReady").2, "The domain name is the host of Route \"web\"");
    platform.api.delete(SERVICES, "web");
    platform.until_mapped("default", "web.default.localhost", "True", "").await;
}

#[tokio::test(start_paused = true)]
async fn mappings_get_ready_whatever_write_fails() {
    for every in 2..6 {
        let platform = platform(Api::new()).await;
        platform.autocreate(true);
        platform.api.fail_every(every);
        platform.api.put(SERVICES, service("r.example/hello:v1", json!({})));
        platform.api.put(MAPPINGS, domain_mapping("a.example.com", "default", "hello"));
        platform.until_mapped("default", "a.example.com", "True", "").await;
        platform.api.delete(MAPPINGS, "a.example.com");
        platform.until_claims(&[]).await;
    }
}

/// The domain of a mapping that the cache does not show yet must not be given to others.
#[tokio::test(start_paused = true)]
async fn a_claim_is_not_given_up_because_the_cache_is_behind() {
    let platform = platform(Api::new()).await;
    platform.api.hold(MAPPINGS);
    platform.api.put(MAPPINGS, domain_mapping("a.example.com", "default", "hello"));
    let made_here = json!({"networking.internal.knative.dev/autocreated": "true"});
    let claim = |domain: &str| {
        json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "ClusterDomainClaim",
            "metadata": {"name": domain, "namespace": "", "labels": made_here}, "spec": {"namespace": "default"},
        })
    };
    platform.api.put(CLAIMS, claim("a.example.com"));
    platform.api.put(CLAIMS, claim("stray.example.com"));
    platform.until_claims(&[("a.example.com", "default")]).await;
    sleep(Duration::from_secs(5)).await;
    platform.until_claims(&[("a.example.com", "default")]).await;
}
