//! Checks and defaults that other parts of the platform add to the server.

use serde_json::Value;

use crate::auth::User;

/// What is being done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The object is new.
    Create,
    /// The object changes.
    Update,
    /// The object goes.
    Delete,
}

/// One admission decision to be made.
#[derive(Clone, Debug)]
pub struct AdmissionRequest<'a> {
    /// What is being done.
    pub operation: Operation,
    /// API group of the resource; empty for the core group.
    pub group: &'a str,
    /// Version of the request.
    pub version: &'a str,
    /// Plural name of the resource.
    pub resource: &'a str,
    /// Kind of the object.
    pub kind: &'a str,
    /// Subresource; empty for the object itself.
    pub subresource: &'a str,
    /// Namespace; empty for cluster-wide kinds.
    pub namespace: &'a str,
    /// Name; may be empty while a name is still to be generated.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a User,
    /// Nothing will be stored.
    pub dry_run: bool,
    /// The object before, for updates and deletions.
    pub old: Option<&'a Value>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AdmissionError {
    /// HTTP status.
    pub code: u16,
    /// Text for the user, as a whole.
    pub message: String,
}

/// A check that may also fill in defaults. Runs before validation, on every write; must be quick and must not block.
pub trait Admission: Send + Sync + 'static {
    /// Changes `object` or refuses it; returns texts for `Warning` headers.
    ///
    /// # Errors
    ///
    /// [`AdmissionError`] refuses the request.
    fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> Result<Vec<String>, AdmissionError>;
}
