//! Certificates of the gateway's HTTPS port: one per host, made when it is first asked for, signed by the platform's CA.
//!
//! A wildcard covers one label only, and hosts have two below the domain: hence one certificate for each.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use apiserver::Authority;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Certificates that are kept; when more hosts are asked for, all are made anew.
const MOST_CERTIFICATES: usize = 1024;

struct ByHost {
    authority: Arc<Authority>,
    domain: String,
    fallback: Arc<CertifiedKey>,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for ByHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByHost").field("domain", &self.domain).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ByHost {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let Some(host) = hello.server_name().map(str::to_ascii_lowercase) else { return Some(self.fallback.clone()) };
        if host.strip_suffix(&self.domain).is_none_or(|rest| !rest.ends_with('.')) {
            return Some(self.fallback.clone());
        }
        if let Some(made) = self.made.lock().get(&host) {
            return Some(made.clone());
        }
        let made = match issue(&self.authority, &host) {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, host, "cannot make a certificate");
                return Some(self.fallback.clone());
            }
        };
        let mut all = self.made.lock();
        if all.len() >= MOST_CERTIFICATES {
            all.clear();
        }
        all.insert(host, made.clone());
        Some(made)
    }
}

fn issue(authority: &Authority, host: &str) -> Result<Arc<CertifiedKey>> {
    let (chain, key) = authority.issue(&[host.to_owned()])?;
    let key = ring::sign::any_supported_type(&key).context("the key of a certificate")?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// TLS for the gateway: HTTP/1.1 and HTTP/2.
///
/// # Errors
///
/// When no certificate can be made.
pub fn gateway(authority: &Arc<Authority>, domain: &str) -> Result<Arc<ServerConfig>> {
    let resolver = ByHost {
        authority: authority.clone(),
        domain: domain.to_ascii_lowercase(),
        fallback: issue(authority, domain)?,
        made: Mutex::default(),
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_no_client_auth();
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
