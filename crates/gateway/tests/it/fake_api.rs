//! An API server as small as the caches need: lists and watches from memory.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
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
            let answer = api.answer(&request);
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        });
        kube::Client::new(service, "default")
    }

    /// Creates or replaces an object of the collection at `path`.
    pub fn put(&self, path: &str, object: Value) {
        let mut state = self.state.lock();
        let key = (path.to_owned(), name_of(&object));
        let kind = if state.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.write(&mut state, path, kind, &object);
        state.objects.insert(key, object);
    }

    pub fn delete(&self, path: &str, name: &str) {
        let mut state = self.state.lock();
        let Some(object) = state.objects.remove(&(path.to_owned(), name.to_owned())) else { return };
        self.write(&mut state, path, "DELETED", &object);
    }

    fn write(&self, state: &mut State, path: &str, kind: &str, object: &Value) {
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!((state.log.len() + 1).to_string());
        state.log.push((path.to_owned(), json!({"type": kind, "object": object})));
        self.changed.send_replace(state.log.len());
    }

    fn answer(self: &Arc<Self>, request: &Request<Body>) -> Answer {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if !query.contains("watch=true") {
            return self.list(path);
        }
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
        self.watch(path.to_owned(), from.and_then(|n| n.parse().ok()).unwrap_or(0))
    }

    fn list(&self, path: &str) -> Answer {
        let state = self.state.lock();
        let items: Vec<&Value> = state.objects.iter().filter(|((at, _), _)| at == path).map(|(_, o)| o).collect();
        let version = state.log.len().to_string();
        let list =
            json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items});
        Full::new(Bytes::from(list.to_string())).boxed_unsync()
    }

    fn watch(self: &Arc<Self>, path: String, from: usize) -> Answer {
        let changed = self.changed.subscribe();
        let stream = futures::stream::unfold(
            (self.clone(), changed, path, from),
            |(api, mut changed, path, mut at)| async move {
                loop {
                    let next = api.state.lock().log.get(at).cloned();
                    match next {
                        Some((of, event)) => {
                            at += 1;
                            if of == path {
                                let line = Bytes::from(format!("{event}\n"));
                                return Some((Ok(Frame::data(line)), (api, changed, path, at)));
                            }
                        }
                        None => {
                            changed.wait_for(|length| *length > at).await.ok()?;
                        }
                    }
                }
            },
        );
        StreamBody::new(stream).boxed_unsync()
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("an object has a name").to_owned()
}
