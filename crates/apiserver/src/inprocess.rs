//! A `kube::Client` straight into the server: no socket, no TLS, no authentication.

use std::convert::Infallible;
use std::sync::Arc;

use http::HeaderValue;
use http_body_util::BodyExt;

use crate::ApiServer;
use crate::auth::User;
use crate::body::BoxError;

impl ApiServer {
    /// A client that acts as `user` and gets no managed fields; default namespace `default`.
    pub fn client(self: &Arc<Self>, user: User) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (server, user) = (server.clone(), user.clone());
            async move {
                let mut request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
                request.headers_mut().insert(client::WITHOUT_MANAGED_FIELDS, HeaderValue::from_static("true"));
                Ok::<_, Infallible>(server.handle(user, request).await)
            }
        });
        kube::Client::new(service, "default")
    }
}
