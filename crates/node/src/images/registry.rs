//! Asks registries, over the OCI distribution protocol.
//!
//! A client keeps credentials and tokens, so each pair of registry and credentials has its own: nothing that one
//! tenant was granted serves another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use client::images::{ImageError, RegistryAuth};
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth as Credentials;
use parking_lot::Mutex;
use store::cas::{Cas, CasError, Digest};
use tokio_util::io::StreamReader;

use super::config::Config;
use super::error::chain;
use super::reference::{Reference, Version, normal_registry};

/// Manifests and indexes, of OCI and of Docker.
const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
/// Clients that are kept; when there are more, all are dropped and made again.
const CLIENTS: usize = 64;

/// Registry clients.
pub(crate) struct Registries {
    config: Arc<Config>,
    clients: Mutex<HashMap<Login, oci_client::Client>>,
}

/// A registry and what is shown to it. The password is kept as a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Login {
    registry: String,
    user: Option<(String, Digest)>,
}

/// What a registry gave, and to whom.
pub(crate) struct Granted<T> {
    pub(crate) value: T,
    pub(crate) access: Access,
}

/// Credentials that a registry accepted, to be used for the rest of a pull.
#[derive(Clone)]
pub(crate) struct Access {
    pub(crate) login: Login,
    credentials: Credentials,
}

impl Access {
    pub(crate) fn is_public(&self) -> bool {
        self.login.user.is_none()
    }
}

impl Registries {
    pub(crate) fn new(config: Arc<Config>) -> Self {
        Self { config, clients: Mutex::default() }
    }

    /// The digest that a reference stands for now.
    pub(crate) async fn digest(&self, image: &Reference, auth: &[RegistryAuth]) -> Result<Granted<Digest>, ImageError> {
        self.first_granted(image, auth, async |client, target, credentials| {
            client.fetch_manifest_digest(target, credentials).await
        })
        .await
        .and_then(|granted| {
            let value = granted.value.parse().map_err(|error| {
                ImageError::Refused(format!(
                    "registry {} answered for {} with a bad digest: {error}",
                    image.registry(),
                    image.repository()
                ))
            })?;
            Ok(Granted { value, access: granted.access })
        })
    }

    /// A manifest's bytes, verified against the reference's digest.
    pub(crate) async fn manifest(
        &self,
        image: &Reference,
        digest: Digest,
        auth: &[RegistryAuth],
    ) -> Result<Granted<Bytes>, ImageError> {
        let image = image.at(digest);
        let granted = self
            .first_granted(&image, auth, async |client, target, credentials| {
                client.pull_manifest_raw(target, credentials, &ACCEPTED).await.map(|(bytes, _)| bytes)
            })
            .await?;
        let found = Digest::of(&granted.value);
        if found != digest {
            return Err(wrong_content(&image, &digest, &found.to_string()));
        }
        if granted.value.len() as u64 > self.config.manifest_bytes {
            let (registry, repository) = (image.registry(), image.repository());
            let limit = self.config.manifest_bytes;
            return Err(ImageError::Refused(format!(
                "registry {registry}: the manifest of {repository} is larger than {limit} bytes"
            )));
        }
        Ok(granted)
    }

    /// Streams a blob into the content store.
    pub(crate) async fn blob(
        &self,
        image: &Reference,
        access: &Access,
        cas: &Cas,
        digest: Digest,
        size: u64,
    ) -> Result<(), ImageError> {
        let target = self.target(image);
        let client = self.client(&access.login, &target)?;
        client.store_auth_if_needed(target.resolve_registry(), &access.credentials).await;
        // No other place than the registry is asked, whatever the manifest lists.
        let layer = OciDescriptor {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            ..OciDescriptor::default()
        };
        let asked = tokio::time::timeout(self.config.question_timeout, client.pull_blob_stream(&target, &layer)).await;
        let stream = asked
            .map_err(|_| timeout_error(image, self.config.question_timeout))?
            .map_err(|error| self.explain(image, &access.login, error))?;
        match cas.put_async(StreamReader::new(stream.stream), size, Some(digest)).await {
            Ok(stored) if stored.size == size => Ok(()),
            Ok(stored) => {
                Err(wrong_content(image, &digest, &format!("{} bytes where the manifest says {size}", stored.size)))
            }
            Err(CasError::WrongDigest { found, .. }) => Err(wrong_content(image, &digest, &found.to_string())),
            Err(CasError::TooLarge { .. }) => {
                Err(wrong_content(image, &digest, &format!("more than the {size} bytes of the manifest")))
            }
            Err(CasError::Source(error)) => Err(broken_stream(image, &digest, &error)),
            Err(error) => Err(ImageError::Unreachable(chain(&error))),
        }
    }

    /// Asks with each fitting credential, then without any, until one is accepted.
    async fn first_granted<T>(
        &self,
        image: &Reference,
        auth: &[RegistryAuth],
        ask: impl AsyncFn(&oci_client::Client, &oci_client::Reference, &Credentials) -> Result<T, OciDistributionError>,
    ) -> Result<Granted<T>, ImageError> {
        let target = self.target(image);
        let mut refusal = None;
        for auth in fitting(image, auth) {
            let access = access(image, auth);
            let client = self.client(&access.login, &target)?;
            let asked =
                tokio::time::timeout(self.config.question_timeout, ask(&client, &target, &access.credentials)).await;
            match asked {
                Ok(Ok(value)) => return Ok(Granted { value, access }),
                Ok(Err(error)) if is_unauthorised(&error) => {
                    // A token that was accepted once may have ended.
                    self.clients.lock().remove(&access.login);
                    // The refusal of the best credentials is the one worth telling.
                    refusal.get_or_insert_with(|| self.explain(image, &access.login, error));
                }
                Ok(Err(error)) => return Err(self.explain(image, &access.login, error)),
                Err(_) => return Err(timeout_error(image, self.config.question_timeout)),
            }
        }
        Err(refusal.unwrap_or_else(|| ImageError::Refused(format!("no way to ask registry {}", image.registry()))))
    }

    fn target(&self, image: &Reference) -> oci_client::Reference {
        let (registry, repository) = (image.registry().to_owned(), image.repository().to_owned());
        match image.version() {
            Version::Tag(tag) => oci_client::Reference::with_tag(registry, repository, tag.clone()),
            Version::Digest(digest) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
        }
    }

    fn client(&self, login: &Login, target: &oci_client::Reference) -> Result<oci_client::Client, ImageError> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(login) {
            return Ok(client.clone());
        }
        let registry = target.resolve_registry();
        let insecure = self.config.is_insecure(registry);
        let certificate = |pem: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() };
        let config = ClientConfig {
            protocol: if insecure { ClientProtocol::Http } else { ClientProtocol::Https },
            extra_root_certificates: self.config.extra_certificates.iter().map(certificate).collect(),
            connect_timeout: Some(self.config.connect_timeout),
            read_timeout: Some(self.config.read_timeout),
            user_agent: concat!("colibri/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|error| {
            ImageError::Unreachable(format!("no client for registry {registry} can be made: {}", chain(&error)))
        })?;
        if clients.len() >= CLIENTS {
            clients.clear();
        }
        clients.insert(login.clone(), client.clone());
        Ok(client)
    }

    /// A registry's error in the words of [`ImageError`]: registry, repository and cause.
    fn explain(&self, image: &Reference, login: &Login, error: OciDistributionError) -> ImageError {
        let (registry, repository) = (image.registry(), image.repository());
        let asked = match image.version() {
            Version::Tag(tag) => format!("{repository}:{tag}"),
            Version::Digest(digest) => format!("{repository}@{digest}"),
        };
        if is_unauthorised(&error) {
            let who = match &login.user {
                Some((user, _)) => format!("the credentials of user {user:?} were not accepted for it"),
                None => {
                    "no credentials for this registry were given; name a pull secret in imagePullSecrets".to_owned()
                }
            };
            return ImageError::Refused(format!(
                "registry {registry} refused access to {repository}: unauthorised; {who}, or the image does not exist"
            ));
        }
        match &error {
            OciDistributionError::ServerError { code: 404, .. }
            | OciDistributionError::ImageManifestNotFoundError(_) => {
                ImageError::Refused(format!("registry {registry} has no image {asked}: not found"))
            }
            OciDistributionError::ServerError { code, .. } if *code == 429 || *code >= 500 => {
                ImageError::Unreachable(format!("registry {registry} cannot answer for {repository} now: HTTP {code}"))
            }
            OciDistributionError::ServerError { code, .. } => {
                ImageError::Refused(format!("registry {registry} refused {asked}: HTTP {code}"))
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes = envelope.errors.iter().map(|error| &error.code);
                let gone = |code: &OciErrorCode| {
                    matches!(
                        code,
                        OciErrorCode::ManifestUnknown
                            | OciErrorCode::NameUnknown
                            | OciErrorCode::NotFound
                            | OciErrorCode::BlobUnknown
                            | OciErrorCode::ManifestBlobUnknown
                    )
                };
                if codes.clone().any(gone) {
                    return ImageError::Refused(format!("registry {registry} has no image {asked}: not found"));
                }
                if codes.clone().any(|code| *code == OciErrorCode::Toomanyrequests) {
                    return ImageError::Unreachable(format!(
                        "registry {registry} cannot answer for {repository} now: too many requests"
                    ));
                }
                // The registry's own words may hold anything; its codes are enough.
                let codes: Vec<String> =
                    codes.take(3).map(|code| format!("{code:?}").chars().take(60).collect()).collect();
                ImageError::Refused(format!("registry {registry} refused {asked}: {}", codes.join(", ")))
            }
            OciDistributionError::RequestError(request) if request.is_timeout() => {
                timeout_error(image, self.config.read_timeout)
            }
            OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => ImageError::Unreachable(
                format!("registry {registry} could not be reached for {repository}: {}", chain(&error)),
            ),
            OciDistributionError::DigestError(_) => {
                ImageError::Refused(format!("registry {registry} sent wrong content for {asked}: {error}"))
            }
            _ => ImageError::Refused(format!(
                "registry {registry} did not answer for {asked} as a registry does: {error}"
            )),
        }
    }
}

/// Credentials whose registry and path fit, the longest path first, and none at the end.
fn fitting<'a>(image: &Reference, auth: &'a [RegistryAuth]) -> Vec<Option<&'a RegistryAuth>> {
    let mut fitting: Vec<(usize, &RegistryAuth)> =
        auth.iter().filter_map(|auth| Some((fits(image, &auth.registry)?, auth))).collect();
    fitting.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    fitting.into_iter().map(|(_, auth)| Some(auth)).chain([None]).collect()
}

/// How much of the image's path a pull secret's key (`host`, `host/path` or a URL) names; `None` if it is another's.
fn fits(image: &Reference, key: &str) -> Option<usize> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    // The keys of old Docker clients end in the protocol's version.
    let path = path.trim_end_matches('/');
    let path = if path == "v1" || path == "v2" { "" } else { path };
    let below = path.is_empty()
        || image.repository() == path
        || image.repository().strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    (normal_registry(host) == image.registry() && below).then_some(path.len())
}

fn access(image: &Reference, auth: Option<&RegistryAuth>) -> Access {
    let user = auth.map(|auth| (auth.username.clone(), Digest::of(auth.password.as_bytes())));
    let credentials = match auth {
        Some(auth) => Credentials::Basic(auth.username.clone(), auth.password.clone()),
        None => Credentials::Anonymous,
    };
    Access { login: Login { registry: image.registry().to_owned(), user }, credentials }
}

/// The logins that a request would try, for comparing them with what was granted before.
pub(crate) fn logins(image: &Reference, auth: &[RegistryAuth]) -> Vec<Login> {
    fitting(image, auth).into_iter().map(|auth| access(image, auth).login).collect()
}

fn is_unauthorised(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => true,
        OciDistributionError::ServerError { code, .. } => matches!(code, 401 | 403),
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|error| matches!(error.code, OciErrorCode::Unauthorized | OciErrorCode::Denied))
        }
        _ => false,
    }
}

fn timeout_error(image: &Reference, limit: Duration) -> ImageError {
    let (registry, repository) = (image.registry(), image.repository());
    ImageError::Unreachable(format!("registry {registry} gave no answer for {repository} within {limit:?}: timeout"))
}

fn wrong_content(image: &Reference, wanted: &Digest, found: &str) -> ImageError {
    let (registry, repository) = (image.registry(), image.repository());
    ImageError::Refused(format!("registry {registry} sent wrong content for {wanted} of {repository}: {found}"))
}

/// A stream that ended in an error: the client's own check of the digest, or the connection.
fn broken_stream(image: &Reference, digest: &Digest, error: &std::io::Error) -> ImageError {
    let text = chain(error);
    if error.get_ref().is_some_and(|inner| inner.is::<oci_client::errors::DigestError>()) {
        return wrong_content(image, digest, &text);
    }
    let (registry, repository) = (image.registry(), image.repository());
    ImageError::Unreachable(format!("registry {registry} broke off while it sent {digest} of {repository}: {text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_secrets_are_matched_by_registry_and_path() {
        let rows = [
            ("nginx", "https://index.docker.io/v1/", Some(0)),
            ("nginx", "docker.io", Some(0)),
            ("nginx", "ghcr.io", None),
            ("ghcr.io/team/app", "ghcr.io", Some(0)),
            ("ghcr.io/team/app", "ghcr.io/team", Some(4)),
            ("ghcr.io/team/app", "https://ghcr.io/team/app", Some(8)),
            ("ghcr.io/teams/app", "ghcr.io/team", None),
            ("127.0.0.1:5000/a", "127.0.0.1:5000", Some(0)),
            ("127.0.0.1:5000/a", "127.0.0.1", None),
        ];
        for (image, key, wanted) in rows {
            assert_eq!(fits(&image.parse().unwrap(), key), wanted, "{image} with {key}");
        }
    }

    #[test]
    fn the_most_exact_secret_is_tried_first_and_none_at_last() {
        let auth = |registry: &str| RegistryAuth {
            registry: registry.into(),
            username: registry.into(),
            password: "p".into(),
        };
        let all = [auth("ghcr.io"), auth("other"), auth("ghcr.io/team")];
        let tried: Vec<_> = fitting(&"ghcr.io/team/app".parse().unwrap(), &all)
            .into_iter()
            .map(|auth| auth.map(|auth| auth.registry.as_str()))
            .collect();
        assert_eq!(tried, [Some("ghcr.io/team"), Some("ghcr.io"), None]);
    }
}
