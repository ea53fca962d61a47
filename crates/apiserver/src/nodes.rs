//! What the server asks of nodes: containers' logs, and whatever `nodes/NAME/proxy` passes on.
//!
//! A node says where it listens (`status.daemonEndpoints.kubeletEndpoint` and its internal address). The server shows a
//! certificate of its own authority, and trusts nodes whose certificate that authority signed for their address.

use std::sync::Arc;
use std::time::Duration;

use client::https::{self, CallError};
use http::{HeaderName, StatusCode, header};
use rustls::ClientConfig;
use serde_json::Value;

use crate::ApiServer;
use crate::body::{Request, Response};
use crate::error::{ApiError, ApiResult};
use crate::pki::PkiError;
use crate::request::Target;

/// Who the server is to a node; the same as in a cluster made by kubeadm.
const KUBELET_CLIENT: &str = "kube-apiserver-kubelet-client";
/// Time until a node's answer begins.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Headers that concern one connection, or the client's own credentials.
const OWN_HEADERS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
];

/// TLS towards nodes.
pub(crate) fn tls(authority: &crate::Authority) -> Result<Arc<ClientConfig>, PkiError> {
    let identity = authority.identity(KUBELET_CLIENT, Some(crate::auth::MASTERS), &[KUBELET_CLIENT.to_owned()])?;
    let config = https::client_tls(authority.roots()?, Some(identity));
    config.map(Arc::new).map_err(|error| PkiError::Tls(rustls::Error::General(error.to_string())))
}

impl ApiServer {
    /// `host` and port of the node's own server; `None` where it has none.
    pub(crate) fn node_endpoint(&self, name: &str) -> ApiResult<Option<(String, u16)>> {
        let entry = self.store.table("nodes").get(name);
        let entry = entry.ok_or_else(|| ApiError::not_found_in("", "nodes", name))?;
        Ok(endpoint(&entry.record.value()))
    }

    /// Asks the node's own server.
    pub(crate) async fn ask_node(&self, (host, port): (String, u16), request: Request) -> ApiResult<Response> {
        let address = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        https::send(&address, &host, self.kubelet_tls.clone(), request, ANSWER_LIMIT).await.map_err(|error| {
            let code = if matches!(error, CallError::Timeout { .. }) { 504 } else { 503 };
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            ApiError::new(code, "ServiceUnavailable", format!("the node does not answer: {error}{cause}"))
        })
    }

    /// `nodes/NAME/proxy/PATH`: the node's own server answers. NAME may be `https:NAME:PORT` as in the reference; the
    /// port is the node's own in any case.
    pub(crate) async fn proxy_node(&self, target: &Target, request: Request) -> ApiResult<Response> {
        let name = node_name(&target.name);
        let no_server = || ApiError::new(503, "ServiceUnavailable", format!("node {name} has no server of its own"));
        let endpoint = self.node_endpoint(name)?.ok_or_else(no_server)?;
        let path = raw_path(request.uri().path());
        self.forward_to_node(endpoint, path, request).await
    }

    async fn forward_to_node(&self, endpoint: (String, u16), path: String, request: Request) -> ApiResult<Response> {
        let (mut parts, body) = request.into_parts();
        let query = parts.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        parts.uri = format!("{path}{query}")
            .parse()
            .map_err(|_| ApiError::bad_request(format!("{path:?} is no path that can be passed on")))?;
        parts.version = http::Version::HTTP_11;
        for name in &OWN_HEADERS {
            parts.headers.remove(name);
        }
        let mut response = self.ask_node(endpoint, Request::from_parts(parts, body)).await?;
        for name in &OWN_HEADERS {
            response.headers_mut().remove(name);
        }
        Ok(response)
    }
}

/// Where a node's own server is, as the node says.
fn endpoint(node: &Value) -> Option<(String, u16)> {
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port")?.as_u64()?;
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    Some((internal["address"].as_str()?.to_owned(), u16::try_from(port).ok().filter(|port| *port > 0)?))
}

/// The node in `NAME`, `NAME:PORT`, `https:NAME:PORT` and `https:NAME:`.
fn node_name(text: &str) -> &str {
    let text = text.strip_prefix("https:").or_else(|| text.strip_prefix("http:")).unwrap_or(text);
    text.split(':').next().unwrap_or(text)
}

/// What follows `/proxy`, as it was sent.
fn raw_path(path: &str) -> String {
    let rest = path.split_once("/proxy").map(|(_, rest)| rest).unwrap_or_default();
    if rest.is_empty() { "/".to_owned() } else { rest.to_owned() }
}

/// What a node's refusal becomes.
pub(crate) async fn refusal(response: Response) -> ApiError {
    let status = response.status();
    let text = match crate::body::read(response.into_body(), 64 << 10).await {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => error.message,
    };
    match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => ApiError::new(404, "NotFound", text),
        _ => ApiError::internal_error(format!("the node answered {status}: {text}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_says_where_it_listens() {
        let node = |port: i64| {
            json!({"status": {
                "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.1.2.3"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            }})
        };
        assert_eq!(endpoint(&node(10_250)), Some(("10.1.2.3".to_owned(), 10_250)));
        assert_eq!(endpoint(&node(0)), None);
        assert_eq!(endpoint(&node(70_000)), None);
        assert_eq!(endpoint(&json!({})), None);
    }

    #[test]
    fn a_path_is_passed_on_as_it_was_sent() {
        for (path, expected) in [
            ("/api/v1/nodes/n/proxy", "/"),
            ("/api/v1/nodes/n/proxy/", "/"),
            ("/api/v1/nodes/n/proxy/a%2Fb/proxy/c", "/a%2Fb/proxy/c"),
        ] {
            assert_eq!(raw_path(path), expected, "{path}");
        }
        for text in ["n", "n:10250", "https:n:10250", "https:n:"] {
            assert_eq!(node_name(text), "n", "{text}");
        }
    }
}
