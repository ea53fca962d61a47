//! `/openapi/v2` and `/openapi/v3`.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;

use crate::ApiServer;
use crate::body::{self, Response};
use crate::crd;
use crate::openapi::{self, Resource};
use crate::registry::Served;

impl ApiServer {
    /// The answer for a path of OpenAPI; `None` for other paths.
    pub(crate) fn openapi(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        let rest = path.strip_prefix("/openapi/")?;
        let all = self.registry.all();
        let served: Vec<&Served> = all.values().collect();
        let schemas: Vec<Option<Value>> = served.iter().map(|served| self.schema_of(served)).collect();
        let resources: Vec<Resource<'_>> = served
            .iter()
            .zip(&schemas)
            .map(|(served, schema)| Resource { def: &served.def, schema: schema.as_ref() })
            .collect();
        match rest.trim_end_matches('/') {
            "v3" => {
                let mut response = body::json(StatusCode::OK, &openapi::index(&resources));
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
                Some(response)
            }
            "v2" => {
                let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
                let json = accept.is_empty() || accept.contains("json") || accept.contains("*/*");
                if !json {
                    let mut response = http::Response::new(body::empty());
                    *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
                    return Some(response);
                }
                Some(body::json(StatusCode::OK, &openapi::document_v2(&resources)))
            }
            other => {
                let document = openapi::document(&resources, other.strip_prefix("v3/")?)?;
                Some(body::json(StatusCode::OK, &document))
            }
        }
    }

    /// Schema of a custom resource.
    fn schema_of(&self, served: &Served) -> Option<Value> {
        let table = self.store.table(&format!("{}/{}", crd::GROUP, crd::PLURAL));
        let definition = table.get(served.crd.as_deref()?)?.record.value();
        let versions = definition["spec"]["versions"].as_array()?;
        let version = versions.iter().find(|version| version["name"] == *served.def.version)?;
        version.pointer("/schema/openAPIV3Schema").cloned()
    }
}
