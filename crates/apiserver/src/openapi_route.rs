//! `/openapi/v2` and `/openapi/v3`.

use http::HeaderMap;

use crate::ApiServer;
use crate::body::Response;

impl ApiServer {
    pub(crate) fn openapi(&self, _path: &str, _headers: &HeaderMap) -> Option<Response> {
        None
    }
}
