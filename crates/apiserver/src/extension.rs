//! Parts of the platform that answer under the server's address.

use futures::future::BoxFuture;

use crate::auth::User;
use crate::body::{Request, Response};

/// Answers requests below a path prefix, after authentication. Bodies stream both ways.
pub trait Extension: Send + Sync + 'static {
    /// Answers one request of `user`.
    fn handle(&self, user: User, request: Request) -> BoxFuture<'static, Response>;
}
