//! Who asks, and whether they may.

mod authenticate;
mod authorize;
mod escalation;
pub(crate) mod rbac;
mod reviews;
pub(crate) mod tokens;

use std::collections::BTreeMap;

/// Group whose members may do everything.
pub const MASTERS: &str = "system:masters";
/// Group of everyone who was identified.
pub const AUTHENTICATED: &str = "system:authenticated";

/// Who sent a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Identifier; empty if there is none.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// A user of that name in the group that may do everything: for the platform's own parts.
    pub fn master(name: impl Into<String>) -> Self {
        let groups = vec![MASTERS.to_string(), AUTHENTICATED.to_string()];
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Someone without credentials.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// Whether the user may do everything.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}
