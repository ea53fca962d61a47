//! Who sent a request.

use http::{HeaderMap, header};
use sha2::{Digest, Sha256};

use super::User;
use crate::ApiServer;
use crate::error::{ApiError, ApiResult};

impl ApiServer {
    /// The user of a request: by certificate, by bearer token, or nobody.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, by_certificate: Option<&User>) -> ApiResult<User> {
        if let Some(user) = by_certificate {
            return Ok(user.clone());
        }
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(User::anonymous()) };
        let text = value.to_str().unwrap_or_default().trim();
        let Some((scheme, token)) = text.split_once(' ') else { return Ok(User::anonymous()) };
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Ok(User::anonymous());
        }
        self.user_of_token(token.trim()).ok_or_else(ApiError::unauthorized)
    }

    /// The user whom a token stands for.
    pub(crate) fn user_of_token(&self, token: &str) -> Option<User> {
        let audiences = [super::tokens::AUDIENCE.to_string()];
        self.admin_of_token(token).or_else(|| self.account_of_token(token, &audiences).ok().map(|(user, _)| user))
    }

    /// The administrator, if the token is his.
    pub(crate) fn admin_of_token(&self, token: &str) -> Option<User> {
        // Digests of equal length are compared, so that time tells nothing about the token.
        let is_admin = Sha256::digest(token) == Sha256::digest(&self.pki.admin_token);
        is_admin.then(|| User::master("kubernetes-admin"))
    }
}
