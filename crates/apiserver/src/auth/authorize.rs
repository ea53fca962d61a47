//! Whether a user may do what a request asks for.

use http::{HeaderMap, Method};

use super::User;
use crate::ApiServer;
use crate::error::{ApiError, ApiResult};
use crate::request::Target;

/// Paths that everyone may read.
const PUBLIC: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/openapi/v2/none"];

impl ApiServer {
    /// Checks a request to a resource.
    pub(crate) fn authorize(&self, user: &User, target: &Target, verb: &str) -> ApiResult<()> {
        if user.is_master() {
            return Ok(());
        }
        let resource = if target.subresource.is_empty() { target.resource.clone() } else { format!("{}/{}", target.resource, target.subresource) };
        Err(ApiError::new(403, "Forbidden", format!("User \"{}\" cannot {verb} resource \"{resource}\"", user.name)))
    }

    /// Checks a request to any other path.
    pub(crate) fn authorize_path(&self, user: &User, _method: &Method, path: &str) -> ApiResult<()> {
        if user.is_master() || PUBLIC.contains(&path) {
            return Ok(());
        }
        Err(ApiError::new(403, "Forbidden", format!("User \"{}\" cannot get path \"{path}\"", user.name)))
    }

    /// The user that the headers ask to act as.
    pub(crate) fn impersonate(&self, user: User, headers: &HeaderMap) -> ApiResult<User> {
        let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_string();
        let Some(name) = headers.get("impersonate-user").map(text) else { return Ok(user) };
        if !user.is_master() {
            return Err(ApiError::new(403, "Forbidden", format!("User \"{}\" cannot impersonate resource \"users\"", user.name)));
        }
        let mut groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
        groups.push(super::AUTHENTICATED.into());
        Ok(User { name, groups, ..User::default() })
    }
}
