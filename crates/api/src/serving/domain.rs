//! `serving.knative.dev/v1beta1` DomainMapping and `networking.internal.knative.dev/v1alpha1` ClusterDomainClaim.
//!
//! Source: `knative/serving/pkg/apis/serving/v1beta1`, `knative/networking/pkg/apis/networking/v1alpha1`.

use std::collections::BTreeMap;
use std::fmt;

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use super::Addressable;
use crate::conditions::Condition;

/// Conditions that a DomainMapping's `Ready` depends on.
pub const DOMAIN_MAPPING_DEPENDENTS: &[&str] =
    &["DomainClaimed", "ReferenceResolved", "IngressReady", "CertificateProvisioned"];

/// What a DomainMapping asks for: the domain that is its name leads to `ref`.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(group = "serving.knative.dev", version = "v1beta1", kind = "DomainMapping", plural = "domainmappings")]
#[kube(status = "DomainMappingStatus", schema = "disabled", derive = "Default", derive = "PartialEq", namespaced)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainMappingSpec {
    /// Where requests for the domain go: a Service or Route of `serving.knative.dev/v1`, or a Service of `v1`.
    #[serde(rename = "ref")]
    pub reference: Reference,
    /// A certificate for the domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<SecretTls>,
}

/// An object that a DomainMapping leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reference {
    /// Its API version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace: the DomainMapping's own, which admission fills in.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which of its addresses is meant.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl fmt::Display for Reference {
    /// As the reference implementation prints one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { api_version, kind, namespace, name, address } = self;
        let address = address.as_deref().unwrap_or_default();
        write!(f, "Kind = {kind}, Namespace = {namespace}, Name = {name}, ")?;
        write!(f, "APIVersion = {api_version}, Group = , Address = {address}")
    }
}

/// A Secret with a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretTls {
    /// Name of the Secret.
    pub secret_name: String,
}

/// What is known of a DomainMapping.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainMappingStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready` and [`DOMAIN_MAPPING_DEPENDENTS`].
    pub conditions: Vec<Condition>,
    /// The target, which the gateway routes by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Public URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The same URL, for whoever sends events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Addressable>,
}

/// Which namespace may map the domain that is the claim's name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(group = "networking.internal.knative.dev", version = "v1alpha1", kind = "ClusterDomainClaim")]
#[kube(plural = "clusterdomainclaims", schema = "disabled", derive = "Default", derive = "PartialEq")]
#[serde(rename_all = "camelCase", default)]
pub struct ClusterDomainClaimSpec {
    /// The namespace.
    pub namespace: String,
}
