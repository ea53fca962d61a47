//! What to write for a DomainMapping. Pure.
//!
//! Source of conditions, reasons and messages: `knative/serving/pkg/apis/serving/v1beta1/domainmapping_lifecycle.go`,
//! `pkg/reconciler/domainmapping/reconciler.go`.

use api::conditions::Conditions;
use api::config::network::Network;
use api::serving::Addressable;
use api::serving::annotations::{AUTOCREATED_LABEL, TARGET_ANNOTATION};
use api::serving::domain::{
    ClusterDomainClaim, ClusterDomainClaimSpec, DOMAIN_MAPPING_DEPENDENTS, DomainMapping, DomainMappingStatus,
    Reference,
};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Observed, Referent};
use crate::config::Addresses;
use crate::meta::is_deleted;
use crate::write::Write;

const DOMAIN_CLAIMED: &str = "DomainClaimed";
const REFERENCE_RESOLVED: &str = "ReferenceResolved";
const INGRESS_READY: &str = "IngressReady";
const CERTIFICATE_PROVISIONED: &str = "CertificateProvisioned";

/// What to write, and whether the gateway is to serve the domain then.
pub(super) struct Plan {
    pub(super) writes: Vec<Write>,
    pub(super) routed: bool,
}

/// The kinds that a mapping may lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Service,
    Route,
    CoreService,
}

impl Kind {
    pub(super) fn of(reference: &Reference) -> Option<Self> {
        match (reference.api_version.as_str(), reference.kind.as_str()) {
            ("serving.knative.dev/v1", "Service") => Some(Self::Service),
            ("serving.knative.dev/v1", "Route") => Some(Self::Route),
            ("v1", "Service") => Some(Self::CoreService),
            _ => None,
        }
    }

    /// As the API server names it in errors.
    fn resource(self) -> &'static str {
        match self {
            Self::Service => "services.serving.knative.dev",
            Self::Route => "routes.serving.knative.dev",
            Self::CoreService => "services",
        }
    }
}

/// Whose a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    Others,
    Missing,
}

/// The writes that bring claim and status up to date.
pub(super) fn plan(observed: &Observed, addresses: &Addresses, network: &Network, now: Timestamp) -> Plan {
    let mapping = observed.mapping.as_ref();
    if is_deleted(mapping) {
        return Plan { writes: Vec::new(), routed: false };
    }
    let namespace = mapping.namespace().unwrap_or_default();
    let claim = match &observed.claim {
        Some(claim) if claim.spec.namespace == namespace => Claim::Ours,
        Some(_) => Claim::Others,
        None => Claim::Missing,
    };
    let (status, routed) = status(observed, claim, addresses, network, now);
    let mut writes = Vec::new();
    if mapping.status.as_ref() != Some(&status) {
        writes.push(Write::Status(DomainMapping { status: Some(status), ..mapping.clone() }.into()));
    }
    if claim == Claim::Missing && network.autocreate_claims {
        let mut claim = ClusterDomainClaim::new(&mapping.name_any(), ClusterDomainClaimSpec { namespace });
        claim.labels_mut().insert(AUTOCREATED_LABEL.to_owned(), "true".to_owned());
        writes.push(Write::Create(claim.into()));
    }
    Plan { writes, routed }
}

fn status(
    observed: &Observed,
    claim: Claim,
    addresses: &Addresses,
    network: &Network,
    now: Timestamp,
) -> (DomainMappingStatus, bool) {
    let mapping = observed.mapping.as_ref();
    let domain = mapping.name_any();
    let mut status = mapping.status.clone().unwrap_or_default();
    let is_new = status.observed_generation != mapping.metadata.generation;
    let mut conditions = Conditions::resume(DOMAIN_MAPPING_DEPENDENTS, std::mem::take(&mut status.conditions), now);
    status.observed_generation = mapping.metadata.generation;
    status.url = Some(match mapping.spec.tls {
        Some(_) => format!("https://{domain}"),
        None => url(&domain, addresses, network),
    });
    status.address = Some(Addressable { url: status.url.clone() });
    let not_configured = |conditions: &mut Conditions| {
        conditions.mark_unknown(INGRESS_READY, "IngressNotConfigured", "Ingress has not yet been reconciled.");
    };
    let mut routed = false;
    match claim {
        Claim::Ours => conditions.mark_true(DOMAIN_CLAIMED),
        Claim::Others => {
            let message = "The domain name is already in use by another DomainMapping";
            conditions.mark_false(DOMAIN_CLAIMED, "DomainAlreadyClaimed", message);
        }
        // It is about to be made.
        Claim::Missing if network.autocreate_claims => conditions.mark_unknown(DOMAIN_CLAIMED, "", ""),
        Claim::Missing => {
            let message = format!(
                "no ClusterDomainClaim found for domain {domain:?} (and autocreate-cluster-domain-claims property is \
                 not true)"
            );
            conditions.mark_false(DOMAIN_CLAIMED, "DomainAlreadyClaimed", &message);
        }
    }
    if claim != Claim::Ours {
        status.annotations.remove(TARGET_ANNOTATION);
        not_configured(&mut conditions);
        status.conditions = conditions.into_list();
        return (status, false);
    }
    match (&mapping.spec.tls, &observed.certificate) {
        (None, _) => {
            conditions.mark_true_with(CERTIFICATE_PROVISIONED, "TLSNotEnabled", "external-domain-tls is not enabled");
        }
        (Some(_), Ok(())) => {
            let message = "TLS certificate was provided externally";
            conditions.mark_true_with(CERTIFICATE_PROVISIONED, "CertificateExternallyProvided", message);
        }
        (Some(_), Err(lacks)) => {
            let message =
                format!("{lacks}; spec.tls.secretName names a Secret of type kubernetes.io/tls beside the mapping");
            conditions.mark_false(CERTIFICATE_PROVISIONED, "CertificateNotUsable", &message);
        }
    }
    match resolve(observed, addresses) {
        Err(why) => {
            conditions.mark_false(REFERENCE_RESOLVED, "ResolveFailed", &why);
            not_configured(&mut conditions);
        }
        Ok(target) => {
            conditions.mark_true(REFERENCE_RESOLVED);
            let before = match target.routed {
                true => status.annotations.insert(TARGET_ANNOTATION.to_owned(), target.name.to_owned()),
                false => status.annotations.remove(TARGET_ANNOTATION),
            };
            let is_moved = before.as_deref() != Some(target.name);
            if !target.routed {
                let name = target.name;
                let message = format!(
                    "Service {name:?} has no Route behind it, and the gateway serves Routes only: map the domain to a \
                     Service or Route of serving.knative.dev/v1"
                );
                conditions.mark_false(INGRESS_READY, "NotARoute", &message);
            } else if let Some(occupant) = &observed.occupant {
                conditions.mark_false(INGRESS_READY, "HostInUse", &in_use(occupant, mapping));
            } else {
                routed = true;
                if observed.served && !is_moved {
                    conditions.mark_true(INGRESS_READY);
                } else if is_new || is_moved || !conditions.is_true(INGRESS_READY) {
                    not_configured(&mut conditions);
                }
            }
        }
    }
    status.conditions = conditions.into_list();
    (status, routed)
}

/// Whose host a domain is. What others have is not told.
fn in_use(occupant: &client::ObjectKey, mapping: &DomainMapping) -> String {
    if Some(&occupant.namespace) == mapping.metadata.namespace.as_ref() {
        format!("The domain name is the host of Route {:?}", occupant.name)
    } else {
        "The domain name is the host of a Route in another namespace".to_owned()
    }
}

fn url(domain: &str, addresses: &Addresses, network: &Network) -> String {
    let scheme = network.external_scheme;
    match addresses.public_port {
        Some(port) if port != 80 && scheme == "http" => format!("http://{domain}:{port}"),
        _ => format!("{scheme}://{domain}"),
    }
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target<'a> {
    /// The name inside the namespace.
    name: &'a str,
    /// Whether the gateway has a Route for it.
    routed: bool,
}

/// Follows the reference, or says why it cannot be, in the words of the reference implementation.
fn resolve<'a>(observed: &'a Observed, addresses: &Addresses) -> Result<Target<'a>, String> {
    let reference = &observed.mapping.spec.reference;
    let own = observed.mapping.metadata.namespace.as_deref().unwrap_or_default();
    let suffix = format!(".svc.{}", addresses.cluster_domain);
    let Reference { api_version, kind, name, namespace, address } = reference;
    let Some(known) = Kind::of(reference) else {
        let plural = format!("{}s", kind.to_lowercase());
        return Err(format!(
            "failed to get lister for {api_version}, Resource={plural}: a domain leads to a Service or Route of \
             serving.knative.dev/v1, or to a Service of v1"
        ));
    };
    // Whether something of that name exists there is nobody's business here.
    if !namespace.is_empty() && namespace != own {
        return Err(elsewhere(&format!("http://{name}.{namespace}{suffix}")));
    }
    let Referent::Found { address: url, routed } = &observed.referent else {
        return Err(format!("failed to get object {own}/{name}: {} {name:?} not found", known.resource()));
    };
    if let Some(address) = address.as_deref().filter(|address| !address.is_empty() && known != Kind::CoreService) {
        return Err(format!("address with name {address:?} not found for {reference}"));
    }
    let url = url.as_deref().ok_or_else(|| format!("address not set for {reference}"))?;
    let host = host_of(url).ok_or_else(|| format!("hostname missing in address of {reference}"))?;
    let path = url.split_once("://").map_or(url, |(_, rest)| rest).split_once('/').map_or("", |(_, path)| path);
    if !path.trim_end_matches('/').is_empty() {
        return Err(format!("resolved URI {url:?} contains a path"));
    }
    let parts = host.strip_suffix(&suffix).and_then(|name| name.split_once('.'));
    let Some((name, namespace)) = parts.filter(|(_, namespace)| !namespace.contains('.')) else {
        return Err(format!("resolved URI {url:?} must be of the form {{name}}.{{namespace}}{suffix}"));
    };
    if namespace != own {
        return Err(elsewhere(url));
    }
    Ok(Target { name, routed: *routed })
}

fn elsewhere(url: &str) -> String {
    format!("resolved URI {url:?} must be in same namespace as DomainMapping")
}

/// The host of a URL.
pub(super) fn host_of(url: &str) -> Option<&str> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.split(':').next()?;
    (!host.is_empty()).then_some(host)
}
