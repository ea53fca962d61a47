//! Where images and code go: to every node of Colibri, through the API server's `nodes/NAME/proxy`, which any Kubernetes
//! API server has; where the platform is one process, to that process.

use bytes::Bytes;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde_json::Value;

use super::error::CliError;
use super::http;
use crate::role::{RUNTIME_LABEL, is_ready};

/// Where the stores are, at a node and in a platform of one process.
const STORES_PATH: &str = "/colibri/v1";

/// The stores of a platform.
pub struct Stores {
    client: Client,
    /// Paths of the stores at the API server.
    paths: Vec<String>,
}

impl Stores {
    /// Finds the stores.
    ///
    /// # Errors
    ///
    /// When the nodes cannot be listed, or none of them is ready.
    pub async fn open(client: &Client) -> Result<Self, CliError> {
        let nodes: Api<Node> = Api::all(client.clone());
        let listed = nodes.list(&ListParams::default().labels(RUNTIME_LABEL)).await;
        let nodes = listed.map_err(|error| CliError::api("list the nodes, which keep images and code", &error))?.items;
        let (ready, others): (Vec<&Node>, Vec<&Node>) =
            nodes.iter().filter(|node| has_server(node)).partition(|node| is_ready(node));
        if let (true, Some(other)) = (ready.is_empty(), others.first()) {
            let text = format!("no node can take it: node {} is not ready", other.name_any());
            return Err(CliError::new(text).cured_by("see why: kubectl describe node; start one: sudo colibri node"));
        }
        for other in others {
            eprintln!("warning: node {} is not ready and gets no copy; repeat this when it is", other.name_any());
        }
        let mut paths: Vec<String> = ready.iter().map(|node| node_path(&node.name_any())).collect();
        if paths.is_empty() {
            paths.push(STORES_PATH.to_owned());
        }
        Ok(Self { client: client.clone(), paths })
    }

    /// POSTs a tar to every store; the answer of the last one.
    ///
    /// # Errors
    ///
    /// What the first store says that refuses.
    pub async fn post(&self, path: &str, archive: impl Into<Bytes>) -> Result<Value, CliError> {
        let archive = archive.into();
        let mut answer = Value::Null;
        for store in &self.paths {
            let body = archive.clone().into();
            answer = http::post(&self.client, &format!("{store}/{path}"), "application/x-tar", body).await?;
        }
        Ok(answer)
    }

    /// GETs from the first store that has it.
    ///
    /// # Errors
    ///
    /// What the last store says when all refuse.
    pub async fn bytes(&self, path: &str) -> Result<Bytes, CliError> {
        let mut refusal = None;
        for store in &self.paths {
            match http::get_bytes(&self.client, &format!("{store}/{path}")).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => refusal = Some(error),
            }
        }
        Err(refusal.unwrap_or_else(|| CliError::new("no node keeps code")))
    }

    /// GETs from every store; the `items` of all, each once.
    ///
    /// # Errors
    ///
    /// What the first store says that refuses.
    pub async fn items(&self, path: &str) -> Result<Value, CliError> {
        let mut items: Vec<Value> = Vec::new();
        for store in &self.paths {
            let answer = http::get(&self.client, &format!("{store}/{path}")).await?;
            for item in answer["items"].as_array().into_iter().flatten() {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        Ok(serde_json::json!({"items": items}))
    }
}

fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}/proxy{STORES_PATH}")
}

/// Whether the node is a process of its own, which the API server reaches.
fn has_server(node: &Node) -> bool {
    let endpoints = node.status.as_ref().and_then(|status| status.daemon_endpoints.as_ref());
    endpoints.and_then(|endpoints| endpoints.kubelet_endpoint.as_ref()).is_some_and(|endpoint| endpoint.port > 0)
}
