//! Every write fails once in every way: the work is done again, and does no harm.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use api::functions::Function;
use api::serving::Service;
use bytes::Bytes;
use client::queue::Outcome;
use client::{Caches, ObjectKey, Queue};
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{Functions, ReconcileError, STALE_PAUSE};
use crate::code::CodeStore;
use crate::code::memory::{BrokenStore, MemoryStore};
use crate::fetch::{Fetch, Fetches};

/// An API server with one Function and at most one Service, which answers writes as it is told.
#[derive(Default)]
struct Server {
    function: Value,
    service: Option<Value>,
    /// Codes of the next writes' answers; 200, and carried out, when there are no more.
    answers: VecDeque<u16>,
    writes: Vec<String>,
}

type Shared = Arc<Mutex<Server>>;

fn server(answers: &[u16]) -> Shared {
    let function = json!({
        "metadata": {"name": "greet", "namespace": "default", "uid": "u1", "generation": 1, "resourceVersion": "7"},
        "spec": {"runtime": "python", "source": {"inline": {"main.py": "def handle(request): return 1\n"}}},
    });
    Arc::new(Mutex::new(Server { function, answers: answers.iter().copied().collect(), ..Server::default() }))
}

impl Server {
    fn answer(&mut self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        if *method == Method::GET && path.ends_with("/greet") {
            return (200, self.function.clone());
        }
        if *method == Method::GET {
            let items: Vec<&Value> = match path.rsplit('/').next() {
                Some("functions") => vec![&self.function],
                Some("services") => self.service.iter().collect(),
                _ => Vec::new(),
            };
            return (200, json!({"metadata": {"resourceVersion": "9"}, "items": items}));
        }
        let last = path.rsplit('/').next().unwrap_or_default();
        let code = self.answers.pop_front().unwrap_or(200);
        self.writes.push(format!("{method} {last} {code}"));
        if code != 200 {
            return (code, json!({"kind": "Status", "status": "Failure", "reason": "No", "code": code}));
        }
        let object: Value = serde_json::from_slice(body).unwrap();
        match last {
            "status" => self.function["status"] = object["status"].clone(),
            _ => self.service = Some(object.clone()),
        }
        (200, object)
    }
}

fn client(server: &Shared) -> kube::Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let server = server.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let watch = head.uri.query().unwrap_or_default().contains("watch=true");
            let (code, body) = server.lock().answer(&head.method, head.uri.path(), &body);
            let frame = Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(body.to_string())));
            let frames =
                if watch { futures::stream::pending().boxed() } else { futures::stream::iter([frame]).boxed() };
            Ok::<_, kube::Error>(Response::builder().status(code).body(StreamBody::new(frames)).unwrap())
        }
    });
    kube::Client::new(service, "default")
}

/// No URL answers.
struct Nowhere;

impl Fetch for Nowhere {
    fn fetch(&self, url: &str) -> BoxFuture<'static, Result<Vec<u8>, String>> {
        let message = format!("{url} does not answer");
        Box::pin(async { Err(message) })
    }
}

/// One pass of a controller that has just started, so that its caches hold what the server holds.
async fn pass(server: &Shared, code: Arc<dyn CodeStore>) -> Result<Outcome, ReconcileError> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let functions = Functions {
        caches: Caches::new(client(server), tasks.clone(), stop.clone()),
        fetches: Fetches::new(Arc::new(Nowhere), code.clone(), tasks.clone()),
        code,
        queue: Queue::new(),
    };
    functions.synced().await;
    let outcome = functions.reconcile(ObjectKey::new("default", "greet")).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    outcome
}

/// Passes until nothing is left to do; answers what each said.
async fn settle(server: &Shared) -> Vec<String> {
    let code = Arc::new(MemoryStore::default());
    let mut said = Vec::new();
    for _ in 0..8 {
        let before = server.lock().writes.len();
        let outcome = pass(server, code.clone()).await;
        if outcome.is_ok() && server.lock().writes.len() == before {
            return said;
        }
        said.push(match outcome {
            Ok(Outcome::Done) => "done".to_owned(),
            Ok(Outcome::Again) => "again".to_owned(),
            Ok(Outcome::After(pause)) if pause == STALE_PAUSE => "stale".to_owned(),
            Ok(Outcome::After(pause)) => format!("again in {pause:?}"),
            Err(error) => error.to_string(),
        });
    }
    panic!("never at rest: {said:?}");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_fails_is_done_again_quietly_when_the_picture_was_old() {
    // Answers, what each pass says, what is written.
    let service = "cannot write the Service";
    let status = "cannot write the status of the Function";
    let rows: &[(&[u16], &[&str], &[&str])] = &[
        (&[], &["done", "done"], &["POST services 200", "PUT status 200", "PUT status 200"]),
        (&[409], &["stale", "done", "done"], &["POST services 409", "POST services 200", "PUT status 200"]),
        (&[500], &[service, "done", "done"], &["POST services 500", "POST services 200", "PUT status 200"]),
        (&[200, 409], &["stale", "done"], &["POST services 200", "PUT status 409", "PUT status 200"]),
        (&[200, 500], &[status, "done"], &["POST services 200", "PUT status 500", "PUT status 200"]),
        (&[200, 503, 409], &[status, "stale", "done"], &["POST services 200", "PUT status 503", "PUT status 409"]),
        (&[200, 404], &["done", "done"], &["POST services 200", "PUT status 404", "PUT status 200"]),
    ];
    for (answers, said, writes) in rows {
        let server = server(answers);
        assert_eq!(settle(&server).await, *said, "{answers:?}");
        let server = server.lock();
        assert_eq!(server.writes[..writes.len().min(server.writes.len())], **writes, "{answers:?}");
        let service: Service = serde_json::from_value(server.service.clone().unwrap()).unwrap();
        assert_eq!(service.spec.template.spec.pod.containers[0].image.as_deref(), Some("runtime.colibri.local/python"));
        let function: Function = serde_json::from_value(server.function.clone()).unwrap();
        let conditions = function.status.unwrap().conditions;
        assert!(conditions.iter().any(|condition| condition.kind == "SourceReady"), "{answers:?}: {conditions:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_went_meanwhile_is_made_again() {
    let server = server(&[]);
    settle(&server).await;
    server.lock().function["spec"]["env"] = json!([{"name": "A", "value": "b"}]);
    server.lock().answers.push_back(404);
    server.lock().writes.clear();
    let code = Arc::new(MemoryStore::default());
    assert_eq!(pass(&server, code.clone()).await.unwrap(), Outcome::After(STALE_PAUSE));
    assert_eq!(server.lock().writes, ["PUT greet 404"], "no status is written from an old picture");
    server.lock().service = None;
    pass(&server, code).await.unwrap();
    assert_eq!(server.lock().writes[1], "POST services 200");
}

#[tokio::test(start_paused = true)]
async fn without_a_code_store_nothing_is_written() {
    let server = server(&[]);
    let error = pass(&server, Arc::new(BrokenStore)).await.unwrap_err();
    assert_eq!(error.to_string(), "the code store cannot be used: the disk is full");
    assert_eq!(server.lock().writes, [""; 0]);
}
