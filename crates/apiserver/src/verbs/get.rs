//! Reading one object.

use http::StatusCode;

use super::Call;
use crate::ApiServer;
use crate::body::Response;
use crate::error::{ApiError, ApiResult};
use crate::quote::quoted;

impl ApiServer {
    pub(crate) fn get(&self, call: &Call) -> ApiResult<Response> {
        let asked = call.query.get("resourceVersion");
        if !asked.is_empty() && asked.parse::<u64>().is_err() {
            return Err(ApiError::internal(bad_revision(asked)));
        }
        let entry = self.existing(call)?;
        self.respond(call, StatusCode::OK, &entry.record)
    }
}

/// The complaint about a resource version that is no number.
pub(crate) fn bad_revision(asked: &str) -> String {
    let asked = quoted(asked);
    format!("resourceVersion: Invalid value: {asked}: strconv.ParseUint: parsing {asked}: invalid syntax")
}
