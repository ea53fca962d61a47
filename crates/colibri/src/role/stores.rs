//! What the controller asks of nodes: which images were loaded there, and whether they have a function's code. It asks
//! through the API server (`nodes/NAME/proxy`), which any Kubernetes API server passes on.

use std::sync::Arc;

use ::node::images::Images;
use client::images::{ImageError, ImageResolver, RegistryAuth};
use client::{Cache, Caches};
use functions::{CodeError, CodeStore};
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use kube::{Client, ResourceExt};
use serde_json::Value;

/// Label of nodes that are Colibri's.
pub const RUNTIME_LABEL: &str = "node.colibri.dev/runtime";
/// Longest answer of a node.
const ANSWER_LIMIT_BYTES: usize = 1 << 20;

/// Whether a node takes pods.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The stores of all of Colibri's nodes.
#[derive(Clone)]
pub struct NodeStores {
    client: Client,
    nodes: Arc<Cache<Node>>,
    /// Asks registries.
    images: Images,
}

impl NodeStores {
    /// The stores of the nodes in `caches`; registries are asked by `images`.
    pub fn new(caches: &Caches, images: Images) -> Self {
        Self { client: caches.client().clone(), nodes: caches.of(), images }
    }

    /// Names of the nodes that are Colibri's and ready.
    fn ready(&self) -> Vec<String> {
        let nodes = self.nodes.list();
        let ours = nodes.iter().filter(|node| node.labels().contains_key(RUNTIME_LABEL) && is_ready(node));
        ours.map(|node| node.name_any()).collect()
    }

    /// One request to one node; status and JSON of its answer.
    async fn ask(&self, node: &str, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Value), String> {
        let failed = |why: String| format!("node {node}: {why}");
        let path = format!("/api/v1/nodes/{node}/proxy/colibri/v1/{path}");
        let request = Request::builder().method(method).uri(&path).header("content-type", "application/x-tar");
        let request = request.body(Body::from(body)).map_err(|error| failed(error.to_string()))?;
        let answer = self.client.send(request).await.map_err(|error| failed(error.to_string()))?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), ANSWER_LIMIT_BYTES).collect().await;
        let bytes = bytes.map_err(|error| failed(error.to_string()))?.to_bytes();
        Ok((status, serde_json::from_slice(&bytes).unwrap_or_default()))
    }

    async fn resolve_loaded(&self, reference: &str) -> Result<Option<String>, ImageError> {
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("reference", reference).finish();
        for node in self.ready() {
            let path = format!("images/digest?{query}");
            match self.ask(&node, Method::GET, &path, Vec::new()).await {
                Ok((StatusCode::OK, answer)) => return Ok(answer["image"].as_str().map(str::to_owned)),
                Ok((StatusCode::NOT_FOUND, answer)) if answer["kind"] == "Status" => {}
                // A registry could say that it does not exist although this node has it.
                Ok((status, answer)) => {
                    return Err(ImageError::Unreachable(format!(
                        "node {node} answered {status}: {}",
                        message(&answer)
                    )));
                }
                Err(why) => return Err(ImageError::Unreachable(why)),
            }
        }
        Ok(None)
    }
}

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

impl ImageResolver for NodeStores {
    fn resolve(&self, reference: String, auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>> {
        let stores = self.clone();
        Box::pin(async move {
            match stores.resolve_loaded(&reference).await? {
                Some(image) => Ok(image),
                None => stores.images.resolve(&reference, &auth).await,
            }
        })
    }
}

impl CodeStore for NodeStores {
    fn put(&self, namespace: &str, archive: Vec<u8>) -> BoxFuture<'static, Result<String, CodeError>> {
        let (stores, path) = (self.clone(), format!("namespaces/{namespace}/archives"));
        Box::pin(async move {
            let mut digest = None;
            for node in stores.ready() {
                let (status, answer) =
                    stores.ask(&node, Method::POST, &path, archive.clone()).await.map_err(CodeError)?;
                let Some(stored) = answer["digest"].as_str().filter(|_| status.is_success()) else {
                    return Err(CodeError(format!("node {node} answered {status}: {}", message(&answer))));
                };
                digest = Some(stored.to_owned());
            }
            digest.ok_or_else(|| CodeError("no node of Colibri is ready; start one with: colibri node".to_owned()))
        })
    }

    fn contains(&self, namespace: &str, digest: &str) -> BoxFuture<'static, Result<bool, CodeError>> {
        let (stores, path) = (self.clone(), format!("namespaces/{namespace}/archives/{digest}"));
        Box::pin(async move {
            let nodes = stores.ready();
            if nodes.is_empty() {
                return Err(CodeError("no node of Colibri is ready; start one with: colibri node".to_owned()));
            }
            for node in nodes {
                match stores.ask(&node, Method::GET, &path, Vec::new()).await.map_err(CodeError)? {
                    (StatusCode::OK, _) => {}
                    (StatusCode::NOT_FOUND, answer) if answer["kind"] == "Status" => return Ok(false),
                    (status, answer) => {
                        return Err(CodeError(format!("node {node} answered {status}: {}", message(&answer))));
                    }
                }
            }
            Ok(true)
        })
    }
}
