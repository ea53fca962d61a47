//! What controllers ask of the image store.

use futures::future::BoxFuture;

/// Why an image reference could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The reference itself is wrong.
    #[error("image reference {reference:?} is not valid: {why}")]
    Reference { reference: String, why: String },
    /// The registry answered that it does not have the image or does not give it to us.
    #[error("{0}")]
    Refused(String),
    /// The registry could not be reached or did not answer in time; trying again can help.
    #[error("{0}")]
    Unreachable(String),
}

impl ImageError {
    /// Whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unreachable(_))
    }
}

/// Credentials for one registry, taken from a pull secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryAuth {
    /// Registry host, with port if there is one.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

/// Turns references into digests.
pub trait ImageResolver: Send + Sync + 'static {
    /// `repository@sha256:...` for a reference. An image that was loaded locally is used without asking a registry.
    fn resolve(&self, reference: String, auth: Vec<RegistryAuth>) -> BoxFuture<'static, Result<String, ImageError>>;
}
