//! Certificates of mapped domains, from Secrets of the type `kubernetes.io/tls`.
//!
//! Chosen by the name that the client asks for (SNI), exactly. A Secret that changes counts for the next handshake; one
//! that cannot be used leaves the certificate before it, and without any the listener's own is shown.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Secret;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Field selector of the Secrets that can hold a certificate.
pub const SECRETS: &str = "type=kubernetes.io/tls";

/// Why a Secret holds no certificate that can be shown.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A key of the Secret is missing, or holds none.
    #[error("{key} holds no {wanted} in PEM form")]
    Pem {
        /// The key.
        key: &'static str,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The two do not belong together, or the key is of an unknown kind.
    #[error("tls.key is not the key of tls.crt: {cause}")]
    Key {
        /// What the library says.
        cause: String,
    },
}

/// Reads `tls.crt` and `tls.key`.
///
/// # Errors
///
/// What is wrong with them.
pub fn read(secret: &Secret) -> Result<CertifiedKey, CertificateError> {
    let text = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map_or(&[][..], |text| &text.0);
    let no_chain = CertificateError::Pem { key: "tls.crt", wanted: "certificate" };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text("tls.crt")).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(no_chain)?;
    let key = PrivateKeyDer::from_pem_slice(text("tls.key"));
    let key = key.map_err(|_| CertificateError::Pem { key: "tls.key", wanted: "private key" })?;
    let cause = |error: rustls::Error| CertificateError::Key { cause: error.to_string() };
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(cause)
}

/// Certificates by host.
#[derive(Debug, Default)]
pub struct Certificates(ArcSwap<HashMap<String, Arc<CertifiedKey>>>);

impl Certificates {
    /// Shows `certificate` for a host, or none of its own any more.
    pub fn set(&self, host: &str, certificate: Option<Arc<CertifiedKey>>) {
        if certificate.is_none() && !self.has(host) {
            return;
        }
        self.0.rcu(|all| {
            let mut all = all.as_ref().clone();
            match &certificate {
                Some(certificate) => all.insert(host.to_owned(), certificate.clone()),
                None => all.remove(host),
            };
            all
        });
    }

    /// Whether the host has one of its own.
    pub fn has(&self, host: &str) -> bool {
        self.0.load().contains_key(host)
    }
}

/// Shows a host's own certificate, or what a listener shows without one.
#[derive(Debug)]
struct Chosen {
    certificates: Arc<Certificates>,
    otherwise: Arc<dyn ResolvesServerCert>,
}

impl ResolvesServerCert for Chosen {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        let own = name.and_then(|name| self.certificates.0.load().get(&name).cloned());
        own.or_else(|| self.otherwise.resolve(hello))
    }
}

/// The same TLS, which shows the hosts' own certificates first.
pub fn with(config: &rustls::ServerConfig, certificates: Arc<Certificates>) -> Arc<rustls::ServerConfig> {
    let mut config = config.clone();
    config.cert_resolver = Arc::new(Chosen { certificates, otherwise: config.cert_resolver.clone() });
    Arc::new(config)
}
