//! An API server as small as the node needs: objects in memory, lists, watches, merge patches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

#[derive(Default)]
struct State {
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(String, Value)>,
}

/// The server.
pub struct FakeApi {
    state: Mutex<State>,
    changed: watch::Sender<usize>,
}

impl FakeApi {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: watch::Sender::new(0) })
    }

    pub fn client(self: &Arc<Self>) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                Ok::<_, Infallible>(api.answer(&parts.method, &parts.uri, body))
            }
        });
        kube::Client::new(service, "default")
    }

    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.state.lock();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (path.to_owned(), name);
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.write(&mut state, path, kind, object.clone());
        state.objects.insert(key, object);
    }

    pub fn remove(&self, path: &str, name: &str) {
        let mut state = self.state.lock();
        if let Some(object) = state.objects.remove(&(path.to_owned(), name.to_owned())) {
            self.write(&mut state, path, "DELETED", object);
        }
    }

    pub fn get(&self, path: &str, name: &str) -> Option<Value> {
        self.state.lock().objects.get(&(path.to_owned(), name.to_owned())).cloned()
    }

    /// Waits until the object is as wanted (`Null`: it is gone).
    pub async fn wait(&self, path: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut changed = self.changed.subscribe();
        let look = async {
            loop {
                changed.borrow_and_update();
                let object = self.get(path, name).unwrap_or(Value::Null);
                if wanted(&object) {
                    return object;
                }
                changed.changed().await.unwrap();
            }
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(60), look).await;
        found.unwrap_or_else(|_| panic!("{path}/{name} stays {:#}", self.get(path, name).unwrap_or(Value::Null)))
    }

    fn write(&self, state: &mut State, path: &str, kind: &str, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!((state.log.len() + 1).to_string());
        state.log.push((path.to_owned(), json!({"type": kind, "object": object})));
        self.changed.send_replace(state.log.len());
    }

    fn answer(self: &Arc<Self>, method: &Method, uri: &http::Uri, body: Value) -> Response<Answer> {
        let (path, query) = (uri.path(), uri.query().unwrap_or_default());
        if query.contains("watch=true") {
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
            let from = from.and_then(|n| n.parse().ok()).unwrap_or(0);
            return Response::new(self.watch(path.to_owned(), from));
        }
        let path = path.strip_suffix("/status").unwrap_or(path);
        let (collection, name) = path.rsplit_once('/').unwrap();
        match method.as_str() {
            "POST" => {
                let mut object = body;
                if object["metadata"]["name"].is_null() {
                    object["metadata"]["name"] = json!(format!("n{}", self.state.lock().log.len()));
                }
                self.put(path, object.clone());
                reply(StatusCode::CREATED, object)
            }
            "PATCH" => match self.get(collection, name) {
                Some(mut object) => {
                    merge(&mut object, &body);
                    self.put(collection, object.clone());
                    reply(StatusCode::OK, object)
                }
                None => missing(),
            },
            "DELETE" => {
                let mut state = self.state.lock();
                match state.objects.remove(&(collection.to_owned(), name.to_owned())) {
                    Some(object) => {
                        self.write(&mut state, collection, "DELETED", object.clone());
                        reply(StatusCode::OK, object)
                    }
                    None => missing(),
                }
            }
            _ => match self.get(collection, name) {
                Some(object) => reply(StatusCode::OK, object),
                None if self.is_collection(path) => reply(StatusCode::OK, self.list(path)),
                None => missing(),
            },
        }
    }

    fn is_collection(&self, path: &str) -> bool {
        path.matches('/').count() == 3 && path.starts_with("/api/v1/")
    }

    fn list(&self, path: &str) -> Value {
        let state = self.state.lock();
        let items: Vec<&Value> = state.objects.iter().filter(|((at, _), _)| is_in(at, path)).map(|(_, o)| o).collect();
        let version = state.log.len().to_string();
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items})
    }

    fn watch(self: &Arc<Self>, path: String, from: usize) -> Answer {
        let changed = self.changed.subscribe();
        let state = (self.clone(), changed, path, from);
        let stream = futures::stream::unfold(state, |(api, mut changed, path, mut at)| async move {
            loop {
                let next = api.state.lock().log.get(at).cloned();
                match next {
                    Some((of, event)) => {
                        at += 1;
                        if is_in(&of, &path) {
                            let line = Bytes::from(format!("{event}\n"));
                            return Some((Ok(Frame::data(line)), (api, changed, path, at)));
                        }
                    }
                    None => {
                        changed.wait_for(|length| *length > at).await.ok()?;
                    }
                }
            }
        });
        StreamBody::new(stream).boxed_unsync()
    }
}

/// Whether a collection in a namespace belongs to the one over all namespaces.
fn is_in(at: &str, path: &str) -> bool {
    let plural = path.rsplit('/').next().unwrap();
    at == path || (at.contains("/namespaces/") && at.ends_with(&format!("/{plural}")))
}

fn reply(status: StatusCode, object: Value) -> Response<Answer> {
    let body = Full::new(Bytes::from(object.to_string())).boxed_unsync();
    Response::builder().status(status).body(body).unwrap()
}

fn missing() -> Response<Answer> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "message": "not found", "code": 404});
    reply(StatusCode::NOT_FOUND, status)
}

fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(object), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    object.remove(key);
                } else {
                    merge(object.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}
