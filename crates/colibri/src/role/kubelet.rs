//! The node's own server: what the API server asks it. HTTPS with client certificates, as a kubelet's.
//!
//! | Path | Answer |
//! |---|---|
//! | `GET /healthz` | `ok` |
//! | `GET /containerLogs/NAMESPACE/POD/CONTAINER` | the log; the query is that of `pods/log` |
//! | `GET /stats/summary` | what the machine and its pods use |
//! | `/colibri/v1/...` | see [`crate::extensions`] |
//!
//! A client must have a certificate of the trusted authority. One of the group `system:masters` may do everything;
//! whether another may is asked of the API server: `nodes/proxy`, as of a kubelet.

use std::sync::Arc;

use ::apiserver::User;
use ::apiserver::body;
use ::node::Node;
use client::https::{Body, Peer, full};
use client::kubelet::{Kubelet, KubeletError, LogOptions};
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use rustls_pki_types::CertificateDer;

use crate::extensions;

/// The node's server.
pub struct KubeletServer {
    node: Arc<Node>,
    client: Client,
}

impl KubeletServer {
    /// Answers for `node`; `client` asks what a user may do.
    pub fn new(node: Arc<Node>, client: Client) -> Arc<Self> {
        Arc::new(Self { node, client })
    }

    /// Answers one request.
    pub async fn handle(self: Arc<Self>, peer: Arc<Peer>, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/healthz" && request.method() == Method::GET {
            return Response::new(full("ok"));
        }
        let Some(user) = peer.certificate.as_ref().and_then(user_of) else {
            return text(StatusCode::UNAUTHORIZED, "the certificate names no user");
        };
        match self.allows(&user, request.method()).await {
            Ok(true) => {}
            Ok(false) => {
                let why = format!("user {:?} may not use nodes/proxy of node {}", user.name, self.node.name());
                return text(StatusCode::FORBIDDEN, &why);
            }
            Err(error) => {
                tracing::warn!(%error, user = user.name, "the API server does not say what a user may do");
                return text(StatusCode::INTERNAL_SERVER_ERROR, "the API server does not say what this user may do");
            }
        }
        let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match (request.method().clone(), segments.as_slice()) {
            (Method::GET, ["containerLogs", namespace, pod, container]) => {
                let options = options(container, request.uri().query().unwrap_or_default());
                self.logs(namespace, pod, options).await
            }
            (Method::GET, ["stats", "summary"]) => {
                body::json(StatusCode::OK, &serde_json::to_value(self.node.usage()).unwrap_or_default())
            }
            (_, ["colibri", "v1", ..]) => extensions::answer(&self.node.images(), request).await,
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /containerLogs, /stats/summary and /colibri/v1"),
        }
    }

    async fn allows(&self, user: &User, method: &Method) -> Result<bool, kube::Error> {
        if user.is_master() {
            return Ok(true);
        }
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let attributes = ResourceAttributes {
            verb: Some(verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some("nodes".to_owned()),
            subresource: Some("proxy".to_owned()),
            name: Some(self.node.name().to_owned()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews = Api::<SubjectAccessReview>::all(self.client.clone());
        let answer = reviews.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }

    async fn logs(&self, namespace: &str, pod: &str, options: LogOptions) -> Response<Body> {
        match self.node.logs(namespace, pod, options).await {
            Ok(stream) => Response::new(body::stream(stream.map(|chunk| chunk.map_err(Into::into)))),
            Err(KubeletError::BadRequest(why)) => text(StatusCode::BAD_REQUEST, &why),
            Err(error @ KubeletError::UnknownPod(_)) => text(StatusCode::NOT_FOUND, &error.to_string()),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

/// Common name and organisations, as the API server reads them.
fn user_of(certificate: &CertificateDer<'static>) -> Option<User> {
    ::apiserver::auth::user_of_certificate(certificate)
}

fn options(container: &str, query: &str) -> LogOptions {
    let pairs: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let get = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let flag = |name: &str| get(name).is_some_and(|value| !matches!(value, "false" | "0"));
    let number = |name: &str| get(name).and_then(|value| value.parse().ok());
    LogOptions {
        container: Some(container.to_owned()),
        follow: flag("follow"),
        previous: flag("previous"),
        timestamps: flag("timestamps"),
        tail_lines: number("tailLines"),
        since_seconds: number("sinceSeconds"),
        since_time: get("sinceTime").and_then(|value| value.parse().ok()),
        limit_bytes: number("limitBytes"),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full(text.to_owned()));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_which_part_of_the_log() {
        let asked = options("c", "follow=true&tailLines=5&sinceSeconds=60&timestamps=&previous=false&limitBytes=9");
        let expected = LogOptions {
            container: Some("c".into()),
            follow: true,
            previous: false,
            timestamps: true,
            tail_lines: Some(5),
            since_seconds: Some(60),
            since_time: None,
            limit_bytes: Some(9),
        };
        assert_eq!(asked, expected);
    }
}
