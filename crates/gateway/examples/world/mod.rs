//! An API server that knows one Route with one instance, for the gateways that are measured.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use base::RevisionId;
use bytes::Bytes;
use client::link::{AutoscalerLink, Stat};
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

/// Takes statistics and makes nothing of them.
pub struct Nobody;

impl AutoscalerLink for Nobody {
    fn report(&self, _: &[Stat]) {}
    fn poke(&self, _: &RevisionId) {}
}

/// A client of an API server with a Route, host `hello.ns.localhost`, whose only instance is `backend`, and with what else
/// is listed below those paths.
pub fn client(backend: SocketAddr, more: Vec<(&'static str, Value)>) -> kube::Client {
    let mut objects = vec![
        ("/apis/serving.knative.dev/v1/revisions", revision(backend.port())),
        ("/apis/serving.knative.dev/v1/routes", route()),
        ("/api/v1/pods", pod(backend)),
    ];
    objects.extend(more);
    let objects = Arc::new(objects);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let objects = objects.clone();
        async move {
            if request.uri().query().unwrap_or_default().contains("watch=true") {
                return std::future::pending().await;
            }
            let items: Vec<&Value> =
                objects.iter().filter(|(path, _)| *path == request.uri().path()).map(|(_, object)| object).collect();
            let list =
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(list.to_string()))))
        }
    });
    kube::Client::new(service, "default")
}

/// The Revision.
pub fn revision(port: u16) -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
        "metadata": {"name": "hello-00001", "namespace": "ns"},
        "spec": {"containers": [{"name": "c", "ports": [{"containerPort": port}]}]}})
}

fn route() -> Value {
    json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route",
        "metadata": {"name": "hello", "namespace": "ns"}, "spec": {},
        "status": {"observedGeneration": 1, "url": "http://hello.ns.localhost",
            "traffic": [{"revisionName": "hello-00001", "percent": 100}]}})
}

fn pod(address: SocketAddr) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "hello", "namespace": "ns", "uid": "u",
            "labels": {"serving.knative.dev/revision": "hello-00001"}},
        "spec": {"containers": []}, "status": {"podIP": address.ip().to_string()}})
}
