//! Who asks, and whether they may.

mod authenticate;
mod authorize;
mod escalation;
pub(crate) mod rbac;
mod reviews;
pub(crate) mod tokens;

use std::collections::BTreeMap;

pub(crate) use reviews::user_info;

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

/// The user that a certificate names: the common name, and the organisations as groups.
pub fn user_of_certificate(certificate: &rustls_pki_types::CertificateDer<'_>) -> Option<User> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_string();
    let mut groups: Vec<String> =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_string).collect();
    groups.push(AUTHENTICATED.into());
    Some(User { name, groups, ..User::default() })
}
