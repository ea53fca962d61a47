//! Keys and certificates: an authority of our own, the server's certificate, the administrator's.
//!
//! Everything is made once and kept in one folder; keys are readable by the owner only. The server's certificate is
//! made anew when its names change or its time runs out.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::https::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Names that the server's certificate always has.
const NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
/// How long certificates hold.
const YEARS: i32 = 10;

/// Why keys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("the file {path} cannot be used")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A key or certificate could not be made or understood.
    #[error("a key or certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// TLS refused the certificate.
    #[error("the certificate cannot be used for TLS")]
    Tls(#[from] rustls::Error),
    /// The key for tokens is no P-256 key.
    #[error("the key tokens.key cannot sign tokens; remove the file and start again")]
    TokenKey,
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
}

/// Keys, certificates and the administrator's token.
pub struct Pki {
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    /// The administrator's certificate (group `system:masters`), PEM.
    pub admin_certificate_pem: String,
    /// The administrator's key, PEM.
    pub admin_key_pem: String,
    /// The administrator's bearer token.
    pub admin_token: String,
    /// Key that signs service accounts' tokens, PKCS#8 DER (ECDSA P-256).
    pub(crate) token_key: Vec<u8>,
    server_chain: Vec<CertificateDer<'static>>,
    server_key: Vec<u8>,
    authority: Arc<Authority>,
    folder: Option<PathBuf>,
}

/// A certificate authority: signs certificates for the platform's servers and roles.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority whose `ca.crt` and `ca.key` an API server of this machine keeps in `folder`.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file.
    pub fn read(folder: &Path) -> Result<Self, PkiError> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|source| PkiError::File { path, source })
        };
        let (pem, key) = (text("ca.crt")?, KeyPair::from_pem(&text("ca.key")?)?);
        Ok(Self { der: pem_der(&pem), pem, key })
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificates that trust it.
    ///
    /// # Errors
    ///
    /// [`PkiError::Tls`] when its own certificate cannot be used.
    pub fn roots(&self) -> Result<rustls::RootCertStore, PkiError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone())?;
        Ok(roots)
    }

    /// A fresh key and certificate for a TLS server of these names.
    ///
    /// # Errors
    ///
    /// [`PkiError::Certificate`] if a name cannot be in a certificate.
    pub fn issue(&self, names: &[String]) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        self.sign(server_params(names)?)
    }

    /// A fresh key and certificate for a role of the platform, which is server and client to other roles.
    ///
    /// # Errors
    ///
    /// [`PkiError::Certificate`] if a name cannot be in a certificate.
    pub fn identity(
        &self,
        common_name: &str,
        organisation: Option<&str>,
        names: &[String],
    ) -> Result<Identity, PkiError> {
        let mut params = server_params(names)?;
        params.distinguished_name = named(common_name, organisation);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (chain, key) = self.sign(params)?;
        Ok(Identity { chain, key })
    }

    fn sign(
        &self,
        params: CertificateParams,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let key = KeyPair::generate()?;
        let ca_params = ca_params();
        let certificate = params.signed_by(&key, &Issuer::from_params(&ca_params, &self.key))?;
        Ok((vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into())))
    }
}

impl std::fmt::Debug for Pki {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pki").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Pki {
    /// Reads the keys in `folder`, or makes them; in memory without a folder. `names` are added to the server's
    /// certificate.
    ///
    /// # Errors
    ///
    /// [`PkiError`] names the file.
    pub fn open(folder: Option<PathBuf>, names: &[String]) -> Result<Self, PkiError> {
        if let Some(folder) = &folder {
            std::fs::create_dir_all(folder).map_err(|source| PkiError::File { path: folder.clone(), source })?;
        }
        let files = Files { folder: folder.clone() };
        let ca_key = KeyPair::from_pem(&files.keep("ca.key", || Ok(KeyPair::generate()?.serialize_pem()))?)?;
        let ca_params = ca_params();
        let ca_pem = files.keep("ca.crt", || Ok(ca_params.self_signed(&ca_key)?.pem()))?;
        let ca_der = pem_der(&ca_pem);
        let issuer = Issuer::from_params(&ca_params, &ca_key);
        let admin_key_pem = files.keep("admin.key", || Ok(KeyPair::generate()?.serialize_pem()))?;
        let admin_key = KeyPair::from_pem(&admin_key_pem)?;
        let admin_certificate_pem =
            files.keep("admin.crt", || Ok(admin_params().signed_by(&admin_key, &issuer)?.pem()))?;
        let mut all: Vec<String> = NAMES.iter().map(ToString::to_string).collect();
        all.extend(names.iter().filter(|name| !NAMES.contains(&name.as_str())).cloned());
        let server_key = KeyPair::from_pem(&files.keep("server.key", || Ok(KeyPair::generate()?.serialize_pem()))?)?;
        let server_pem = server_params(&all)?.signed_by(&server_key, &issuer)?.pem();
        files.write("server.crt", &server_pem)?;
        let admin_token = files.keep("admin.token", random_token)?.trim().to_string();
        let token_key = KeyPair::from_pem(&files.keep("tokens.key", || Ok(KeyPair::generate()?.serialize_pem()))?)?;
        Ok(Self {
            server_chain: vec![pem_der(&server_pem)],
            server_key: server_key.serialize_der(),
            token_key: token_key.serialize_der(),
            authority: Arc::new(Authority { pem: ca_pem.clone(), der: ca_der, key: ca_key }),
            ca_pem,
            admin_certificate_pem,
            admin_key_pem,
            admin_token,
            folder,
        })
    }

    /// A kubeconfig for the administrator, with everything inside.
    pub fn kubeconfig(&self, server_url: &str) -> String {
        let encode = |text: &str| STANDARD.encode(text);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: colibri\n  cluster:\n    server: {server_url}\n    certificate-authority-data: {}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: colibri\n  context:\n    cluster: colibri\n    user: admin\ncurrent-context: colibri\n",
            encode(&self.ca_pem),
            encode(&self.admin_certificate_pem),
            encode(&self.admin_key_pem),
        )
    }

    /// The authority that signs all certificates.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// TLS for the server; with `client_certificates` clients may show certificates of our authority.
    ///
    /// # Errors
    ///
    /// [`PkiError::Tls`] if the certificate is refused.
    pub fn tls(&self, client_certificates: bool) -> Result<Arc<rustls::ServerConfig>, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder =
            rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let builder = if client_certificates {
            let roots = Arc::new(self.authority.roots()?);
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::Pkcs8(self.server_key.clone().into());
        let mut config = builder.with_single_cert(self.server_chain.clone(), key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

struct Files {
    folder: Option<PathBuf>,
}

impl Files {
    /// The text in a file; made and written if it is not there.
    fn keep(&self, name: &str, make: impl FnOnce() -> Result<String, PkiError>) -> Result<String, PkiError> {
        if let Some(folder) = &self.folder {
            let path = folder.join(name);
            match std::fs::read_to_string(&path) {
                Ok(text) => return Ok(text),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(PkiError::File { path, source }),
            }
        }
        let text = make()?;
        self.write(name, &text)?;
        Ok(text)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), PkiError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let path = folder.join(name);
        write_private(&path, text).map_err(|source| PkiError::File { path, source })
    }
}

/// Writes beside the file and renames: a crash leaves the old or the new text.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn valid(params: &mut CertificateParams) {
    let year = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year();
    params.not_before = rcgen::date_time_ymd(i32::from(year) - 1, 1, 1);
    params.not_after = rcgen::date_time_ymd(i32::from(year) + YEARS, 1, 1);
}

fn named(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("colibri-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid(&mut params);
    params
}

fn admin_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named("kubernetes-admin", Some(crate::auth::MASTERS));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params);
    params
}

fn server_params(names: &[String]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = named("colibri-apiserver", None);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    valid(&mut params);
    Ok(params)
}

fn random_token() -> Result<String, PkiError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| PkiError::Random(error.to_string()))?;
    Ok(hex::encode(bytes))
}

fn pem_der(pem: &str) -> CertificateDer<'static> {
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    CertificateDer::from(STANDARD.decode(body).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let first = Pki::open(Some(folder.path().join("pki")), &["10.1.2.3".into()]).unwrap();
        let again = Pki::open(Some(folder.path().join("pki")), &[]).unwrap();
        assert_eq!((&first.ca_pem, &first.admin_token), (&again.ca_pem, &again.admin_token));
        assert!(first.tls(true).is_ok());
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(folder.path().join("pki/ca.key")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        assert!(first.kubeconfig("https://127.0.0.1:1").contains("server: https://127.0.0.1:1\n"));
        let authority = Authority::read(&folder.path().join("pki")).unwrap();
        assert_eq!(authority.pem(), first.ca_pem);
        let error = Authority::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("ca.crt"), "{error}");
    }
}
