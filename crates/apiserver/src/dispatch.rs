//! From a request to the part of the server that answers it.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::json;

use crate::ApiServer;
use crate::auth::User;
use crate::body::{self, BODY_LIMIT_BYTES, Request, Response};
use crate::error::{ApiError, ApiResult};
use crate::request::{Query, Target, verb};
use crate::verbs::Call;

impl ApiServer {
    /// Answers a request of an identified user.
    pub fn handle(self: &Arc<Self>, user: User, request: Request) -> BoxFuture<'static, Response> {
        let server = self.clone();
        Box::pin(async move {
            let head = request.method() == Method::HEAD;
            let mut response = match server.route(user, request).await {
                Ok(response) => response,
                Err(error) => error.response(),
            };
            if head {
                *response.body_mut() = body::empty();
            }
            let headers = response.headers_mut();
            headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-cache, private"));
            response
        })
    }

    async fn route(self: &Arc<Self>, user: User, request: Request) -> ApiResult<Response> {
        let path = request.uri().path().to_string();
        let user = self.impersonate(user, request.headers())?;
        if let Some(extension) = self.extension(&path) {
            self.authorize_path(&user, request.method(), &path)?;
            return Ok(extension.handle(user, request).await);
        }
        if let Some(target) = Target::parse(&path) {
            return self.resource(user, target, request).await;
        }
        self.authorize_path(&user, request.method(), &path)?;
        self.page_of_server(&path, request.method(), &request)
    }

    fn page_of_server(&self, path: &str, method: &Method, request: &Request) -> ApiResult<Response> {
        let trimmed = path.trim_end_matches('/');
        let plain = |text: &str| {
            let mut response = http::Response::new(body::full(text.to_string()));
            let value = HeaderValue::from_static("text/plain; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, value);
            response
        };
        if !matches!(*method, Method::GET | Method::HEAD) {
            let known = matches!(trimmed, "/version" | "/healthz" | "/livez" | "/readyz");
            if known || self.discovery(path, request.headers()).is_some() {
                return Err(ApiError::method_not_allowed());
            }
        }
        match trimmed {
            "/healthz" | "/livez" | "/readyz" => {
                let query = Query::parse(request.uri().query());
                let name = trimmed.trim_start_matches('/');
                if query.has("verbose") {
                    return Ok(plain(&format!("[+]ping ok\n[+]log ok\n[+]etcd ok\n{name} check passed\n")));
                }
                return Ok(plain("ok"));
            }
            "/version" => return Ok(body::json(StatusCode::OK, &crate::version::version())),
            "" => {
                let mut paths: Vec<String> = vec![
                    "/api".into(),
                    "/api/v1".into(),
                    "/apis".into(),
                    "/healthz".into(),
                    "/livez".into(),
                    "/openapi/v2".into(),
                    "/openapi/v3".into(),
                    "/readyz".into(),
                    "/version".into(),
                ];
                for (group, version, _) in self.registry.all().keys().filter(|(g, _, _)| !g.is_empty()) {
                    for path in [format!("/apis/{group}"), format!("/apis/{group}/{version}")] {
                        if !paths.contains(&path) {
                            paths.push(path);
                        }
                    }
                }
                paths.sort();
                return Ok(body::json(StatusCode::OK, &json!({"paths": paths})));
            }
            _ => {}
        }
        for probe in ["/healthz/", "/livez/", "/readyz/"] {
            if let Some(check) = path.strip_prefix(probe)
                && matches!(check, "ping" | "log" | "etcd")
            {
                return Ok(plain("ok"));
            }
        }
        if let Some(response) = self.openapi(path, request.headers()) {
            return Ok(response);
        }
        self.discovery(path, request.headers()).ok_or_else(ApiError::no_such_page)
    }

    async fn resource(self: &Arc<Self>, user: User, target: Target, request: Request) -> ApiResult<Response> {
        let query = Query::parse(request.uri().query());
        let is_watch = target.watch_path || (query.flag("watch") && request.method() == Method::GET);
        let verb = verb(request.method(), target.name.is_empty(), is_watch && target.subresource.is_empty());
        let verb = match verb {
            // A watch by path of one object is a watch.
            Some("get") if target.watch_path => Some("watch"),
            other => other,
        };
        let mut asked = target.clone();
        if asked.name.is_empty() && matches!(verb, Some("list" | "watch" | "deletecollection")) {
            // A list of exactly one name is judged by that name.
            let fields = crate::selector::FieldSelector::parse(query.get("fieldSelector")).unwrap_or_default();
            asked.name = fields.name().unwrap_or_default().to_string();
        }
        self.authorize(&user, &asked, verb.unwrap_or(""))?;
        let served = match self.registry.get(&target.group, &target.version, &target.resource) {
            Some(served) => served,
            None if target.group.is_empty() || self.registry.has_group(&target.group, None) => {
                return Err(ApiError::no_such_resource());
            }
            None => return Err(ApiError::no_such_page()),
        };
        if target.group.is_empty()
            && target.resource == "nodes"
            && target.subresource.split('/').next() == Some("proxy")
        {
            return self.proxy_node(&target, request).await;
        }
        let (parts, body) = request.into_parts();
        let accepted = match target.subresource.split('/').next() {
            // These answer with whatever they have.
            Some("log" | "exec" | "attach" | "portforward" | "proxy") => crate::negotiate::Accepted::JSON,
            _ => crate::negotiate::accepted(&parts.headers, served.crd.is_some())?,
        };
        let body = body::read(body, BODY_LIMIT_BYTES).await?;
        let call = Call {
            user,
            target,
            query,
            headers: parts.headers,
            body,
            is_put: parts.method == Method::PUT,
            served,
            accepted,
            warnings: parking_lot::Mutex::default(),
            applied: parking_lot::Mutex::default(),
        };
        if call.served.def.namespaced && call.target.namespace.is_empty() && !call.target.name.is_empty() {
            return Err(ApiError::no_such_resource());
        }
        if !call.served.def.namespaced && !call.target.namespace.is_empty() {
            return Err(ApiError::no_such_resource());
        }
        if !call.target.subresource.is_empty() {
            return self.subresource(call, &parts.method).await;
        }
        let Some(verb) = verb.filter(|_| parts.method != Method::HEAD) else {
            return Err(ApiError::method_not_allowed());
        };
        let fits = match (verb, call.target.name.is_empty()) {
            ("create", named_not) => named_not,
            ("update" | "patch", unnamed) => !unnamed,
            _ => true,
        };
        if !fits || !call.served.def.has_verb(verb) {
            return Err(ApiError::method_not_allowed());
        }
        let result = match verb {
            "get" | "list" if call.served.def.group == crate::usage::GROUP => self.usage(&call).await,
            "get" => self.get(&call),
            "list" => self.list(&call),
            "watch" => return self.watch(call),
            "create" => self.create_or_review(&call).await,
            "update" => self.put(&call).await,
            "patch" => self.patch(&call).await,
            "delete" => self.delete(&call).await,
            "deletecollection" => self.delete_collection(&call).await,
            _ => Err(ApiError::method_not_allowed()),
        };
        finish(&call, result)
    }
}

/// Adds the warnings to an answer.
pub(crate) fn finish(call: &Call, result: ApiResult<Response>) -> ApiResult<Response> {
    let mut response = match result {
        Ok(response) => response,
        Err(error) => error.response(),
    };
    for warning in call.warnings.lock().iter() {
        let text = format!("299 - {}", crate::quote::quoted(warning));
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    Ok(response)
}
