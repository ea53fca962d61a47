//! An API server in memory, a node and a gateway, all on the test's clock.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::{MappingId, PodId, RevisionId, RouteId};
use bytes::Bytes;
use client::images::{ImageError, ImageResolver, RegistryAuth};
use client::link::GatewayLink;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

const METRICS: &str = "/apis/metrics.k8s.io/v1beta1/pods";

type Chunk = Result<http_body::Frame<Bytes>, Infallible>;
type Answer = Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>;

/// Where an object lives: `/apis/GROUP/VERSION` and plural, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Place, Value>,
    version: u64,
    watches: Vec<(String, mpsc::UnboundedSender<Chunk>)>,
    writes: Vec<String>,
    /// Every so many writes one fails; 0 is never.
    fail_every: usize,
    attempts: usize,
    /// Answers to the creation of pods that will get lost.
    lost: usize,
    /// How every request for a pod fails.
    no_pods: Option<(u16, &'static str)>,
    /// Kind whose watches say nothing at present.
    held: Option<String>,
    /// Thousandths of a core that each pod uses; `None` where `metrics.k8s.io` is not served.
    used: Option<u64>,
}

/// What new pods do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pods {
    /// Become ready after 20 ms.
    Start,
    /// End with a message.
    Crash,
    /// Start, and never become ready.
    Hang,
}

/// The API server and its node.
#[derive(Clone)]
pub(super) struct Api {
    state: Arc<Mutex<State>>,
    pods: Arc<Mutex<Pods>>,
}

impl Api {
    pub(super) fn new() -> Self {
        Self { state: Arc::default(), pods: Arc::new(Mutex::new(Pods::Start)) }
    }

    pub(super) fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                Ok::<Answer, kube::Error>(api.handle(&head.method, &head.uri, &body))
            }
        });
        kube::Client::new(service, "default")
    }

    pub(super) fn set_pods(&self, pods: Pods) {
        *self.pods.lock() = pods;
    }

    pub(super) fn fail_every(&self, count: usize) {
        self.state.lock().fail_every = count;
    }

    /// The next answers to the creation of a pod get lost.
    pub(super) fn lose_answers(&self, count: usize) {
        self.state.lock().lost = count;
    }

    /// Watches of `kind` say nothing any more.
    pub(super) fn hold(&self, kind: &str) {
        self.state.lock().held = Some(kind.to_owned());
    }

    /// Deletes an object as a user would, then what it leaves behind, as the collector does.
    pub(super) fn delete(&self, kind: &str, name: &str) {
        let place = Place { kind: kind.to_owned(), namespace: "default".to_owned(), name: name.to_owned() };
        self.state.lock().delete(&place).unwrap();
        self.collect();
    }

    /// Deletes every object whose owner is gone.
    pub(super) fn collect(&self) {
        let mut state = self.state.lock();
        loop {
            let uids: Vec<Value> = state.objects.values().map(|object| object["metadata"]["uid"].clone()).collect();
            let lost = |object: &Value| {
                let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
                !owners.is_empty() && owners.iter().all(|owner| !uids.contains(&owner["uid"]))
            };
            let found = state.objects.iter().find(|(_, object)| lost(object)).map(|(place, _)| place.clone());
            let Some(place) = found else { return };
            state.delete(&place).unwrap();
        }
    }

    /// Every request for a pod fails that way, or none any more.
    pub(super) fn refuse_pods(&self, with: Option<(u16, &'static str)>) {
        self.state.lock().no_pods = with;
    }

    /// From now on `metrics.k8s.io` is served, and each pod uses so many thousandths of a core.
    pub(super) fn use_cpu(&self, millis: u64) {
        self.state.lock().used = Some(millis);
    }

    /// Writes since the last call.
    pub(super) fn take_writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().writes)
    }

    /// Objects of a plural, in the order of their names.
    pub(super) fn list(&self, plural: &str) -> Vec<Value> {
        let state = self.state.lock();
        let of_kind = state.objects.iter().filter(|(place, _)| place.kind.ends_with(&format!("/{plural}")));
        of_kind.map(|(_, object)| object.clone()).collect()
    }

    pub(super) fn get(&self, kind: &str, name: &str) -> Option<Value> {
        let place = Place { kind: kind.to_owned(), namespace: "default".to_owned(), name: name.to_owned() };
        self.state.lock().objects.get(&place).cloned()
    }

    /// Creates or replaces an object as a user would.
    pub(super) fn put(&self, kind: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        let place = Place { kind: kind.to_owned(), namespace, name };
        let present = self.state.lock().objects.contains_key(&place);
        if present {
            self.state.lock().replace(&place, object, false).unwrap();
        } else {
            self.state.lock().create(place, object).unwrap();
        }
    }

    /// Replaces an object's status.
    pub(super) fn put_status(&self, kind: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let place = Place { kind: kind.to_owned(), namespace: "default".to_owned(), name };
        self.state.lock().replace(&place, object, true).unwrap();
    }

    fn handle(&self, method: &Method, uri: &http::Uri, body: &[u8]) -> Answer {
        let query = uri.query().unwrap_or_default();
        let (place, status) = parse(uri.path());
        let object = || serde_json::from_slice::<Value>(body).unwrap();
        if *method == Method::GET && query.contains("watch=true") {
            return self.watch(&place.kind);
        }
        let mut state = self.state.lock();
        if *method != Method::GET
            && let Some(refused) = state.injected_failure()
        {
            return answer(Err(refused));
        }
        let of_a_pod = place.kind == "/api/v1/pods" && !(*method == Method::GET && place.name.is_empty());
        if let Some(refused) = state.no_pods.filter(|_| of_a_pod) {
            return answer(Err(refused));
        }
        let result = match *method {
            Method::GET if place.kind == METRICS => state.metrics().ok_or((404, "NotFound")),
            Method::GET if place.name.is_empty() => Ok(state.list(&place.kind)),
            Method::GET => state.objects.get(&place).cloned().ok_or((404, "NotFound")),
            Method::POST => {
                let object = object();
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                let place = Place { name, ..place };
                let place_is_pod = place.kind == "/api/v1/pods";
                let made = state.create(place.clone(), object);
                if made.is_ok() && place_is_pod {
                    tokio::spawn(run_pod(self.clone(), place));
                }
                if place_is_pod && state.lost > 0 {
                    state.lost -= 1;
                    return answer(Err((504, "Timeout")));
                }
                made
            }
            Method::PUT => state.replace(&place, object(), status),
            Method::DELETE => state.delete(&place),
            _ => Err((405, "MethodNotAllowed")),
        };
        answer(result)
    }

    fn watch(&self, kind: &str) -> Answer {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.state.lock().watches.push((kind.to_owned(), sender));
        let chunks = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|chunk| (chunk, receiver))
        });
        Response::new(StreamBody::new(chunks.boxed()).boxed_unsync())
    }
}

impl State {
    fn injected_failure(&mut self) -> Option<(u16, &'static str)> {
        self.attempts += 1;
        (self.fail_every > 0 && self.attempts.is_multiple_of(self.fail_every)).then_some((500, "InternalError"))
    }

    fn metrics(&self) -> Option<Value> {
        let cpu = format!("{}m", self.used?);
        let pods = self.objects.keys().filter(|place| place.kind == "/api/v1/pods");
        let items = pods.map(|pod| {
            json!({
                "metadata": {"name": pod.name, "namespace": pod.namespace}, "timestamp": super::now(), "window": "5s",
                "containers": [{"name": "user-container", "usage": {"cpu": cpu, "memory": "1Mi"}}],
            })
        });
        Some(json!({"items": items.collect::<Vec<_>>()}))
    }

    fn list(&self, kind: &str) -> Value {
        let items: Vec<&Value> =
            self.objects.iter().filter(|(place, _)| place.kind == kind).map(|(_, object)| object).collect();
        json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": self.version.to_string() }, "items": items })
    }

    fn create(&mut self, place: Place, mut object: Value) -> Result<Value, (u16, &'static str)> {
        if self.objects.contains_key(&place) {
            return Err((409, "AlreadyExists"));
        }
        object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        object["metadata"]["namespace"] = json!(place.namespace);
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        Ok(self.store("create", "ADDED", &place, object))
    }

    fn replace(&mut self, place: &Place, new: Value, status: bool) -> Result<Value, (u16, &'static str)> {
        let old = self.objects.get(place).cloned().ok_or((404, "NotFound"))?;
        let version = &new["metadata"]["resourceVersion"];
        if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
            return Err((409, "Conflict"));
        }
        let mut next = if status { old.clone() } else { new.clone() };
        if status {
            next["status"] = new["status"].clone();
        } else {
            next["status"] = old["status"].clone();
            for key in ["uid", "generation", "creationTimestamp", "namespace"] {
                next["metadata"][key] = old["metadata"][key].clone();
            }
            if next["spec"] != old["spec"] {
                next["metadata"]["generation"] = json!(old["metadata"]["generation"].as_i64().unwrap() + 1);
            }
        }
        Ok(self.store(if status { "status" } else { "update" }, "MODIFIED", place, next))
    }

    fn delete(&mut self, place: &Place) -> Result<Value, (u16, &'static str)> {
        let object = self.objects.remove(place).ok_or((404, "NotFound"))?;
        self.writes.push(format!("delete {} {}", place.kind, place.name));
        self.version += 1;
        self.notify("DELETED", place, &object);
        Ok(object)
    }

    fn store(&mut self, verb: &str, event: &str, place: &Place, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(place.clone(), object.clone());
        self.writes.push(format!("{verb} {} {}", place.kind, place.name));
        self.notify(event, place, &object);
        object
    }

    fn notify(&mut self, event: &str, place: &Place, object: &Value) {
        if self.held.as_ref() == Some(&place.kind) {
            return;
        }
        let line = format!("{}\n", json!({ "type": event, "object": object }));
        self.watches.retain(|(kind, sender)| {
            *kind != place.kind || sender.send(Ok(http_body::Frame::data(Bytes::from(line.clone())))).is_ok()
        });
    }
}

fn parse(path: &str) -> (Place, bool) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let prefix = if parts[0] == "api" { 2 } else { 3 };
    let (base, rest) = parts.split_at(prefix);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    let place = Place {
        kind: format!("/{}/{}", base.join("/"), rest[0]),
        namespace: namespace.to_owned(),
        name: rest.get(1).map(|name| (*name).to_owned()).unwrap_or_default(),
    };
    (place, rest.get(2) == Some(&"status"))
}

fn answer(result: Result<Value, (u16, &'static str)>) -> Answer {
    let (code, body) = match result {
        Ok(body) => (200, body),
        Err((code, reason)) => {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": reason,
                "reason": reason, "code": code });
            (code, status)
        }
    };
    let frame: Chunk = Ok(http_body::Frame::data(Bytes::from(body.to_string())));
    let body = StreamBody::new(futures::stream::iter([frame])).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}

/// What a node does with a pod. Its writes are not counted: they are lazy.
async fn run_pod(api: Api, place: Place) {
    let pods = *api.pods.lock();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let status = match pods {
        Pods::Start => json!({ "phase": "Running", "podIP": "10.0.0.1", "startTime": super::now(),
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": super::now() }] }),
        Pods::Hang => json!({ "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{
            "name": "user-container", "ready": false, "restartCount": 0, "image": "", "imageID": "",
            "state": { "running": {} } }] }),
        Pods::Crash => json!({ "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [{
            "name": "user-container", "ready": false, "restartCount": 1, "image": "", "imageID": "",
            "state": { "terminated": { "exitCode": 1, "message": "main.py:3: SyntaxError: invalid syntax" } } }] }),
    };
    let mut state = api.state.lock();
    if let Some(mut pod) = state.objects.get(&place).cloned() {
        pod["status"] = status;
        state.store("node", "MODIFIED", &place, pod);
        state.writes.pop();
    }
}

/// A gateway that serves every Route at once and gives up any pod that is asked for.
pub(super) struct Gateway {
    pub(super) api: Api,
    pub(super) load: AtomicUsize,
}

impl GatewayLink for Gateway {
    fn programmed(&self, _: RouteId, _: i64) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }

    fn mapped(&self, _: MappingId, _: i64) -> BoxFuture<'static, ()> {
        futures::future::ready(()).boxed()
    }

    fn retire(&self, revision: RevisionId, count: usize, _: Duration) -> BoxFuture<'static, Vec<PodId>> {
        let pods = self
            .api
            .list("pods")
            .into_iter()
            .filter(|pod| pod["metadata"]["labels"]["serving.knative.dev/revision"] == json!(&*revision.name));
        let chosen = pods.take(count).map(|pod| PodId::new("default", pod["metadata"]["name"].as_str().unwrap()));
        futures::future::ready(chosen.collect()).boxed()
    }

    fn load(&self, _: &RevisionId) -> usize {
        self.load.load(Ordering::SeqCst)
    }
}

/// A registry that has every image but one, and does not answer about another.
pub(super) struct Registry;

impl ImageResolver for Registry {
    fn resolve(&self, reference: String, _: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        if reference.contains("silent") {
            return futures::future::pending().boxed();
        }
        let answer = if reference.contains("missing") {
            Err(ImageError::Refused(format!("{reference}: not found")))
        } else {
            let repository = reference.split(':').next().unwrap_or_default();
            Ok(format!("{repository}@sha256:{}", "a".repeat(64)))
        };
        futures::future::ready(answer).boxed()
    }
}
