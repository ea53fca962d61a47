//! Image references in one normal form.

use std::fmt;
use std::str::FromStr;

use store::cas::Digest;

/// Registry of images that the platform itself supplies; the node knows them by name and no registry is asked.
pub const RUNTIME_REGISTRY: &str = "runtime.colibri.local";

/// Registry under which images appear that were loaded without a name; it does not exist.
pub(crate) const LOCAL_REGISTRY: &str = "image.colibri.local";

/// A reference as container tools write it, in full: `docker.io/library/nginx:latest`.
///
/// Without a registry it is Docker Hub's, without a namespace there `library`, without tag and digest `latest`; a tag
/// beside a digest says nothing and is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    version: Version,
}

/// What follows the repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// A name that can move.
    Tag(String),
    /// The content itself.
    Digest(Digest),
}

/// A text that is no image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("image reference {reference:?} is not valid: {why}")]
pub struct ParseReferenceError {
    /// The text, shortened.
    pub reference: String,
    /// What is wrong with it.
    pub why: String,
}

impl Reference {
    /// Host and port of the registry; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Tag or digest.
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// The digest, if that is what names the version.
    pub fn digest(&self) -> Option<Digest> {
        match &self.version {
            Version::Digest(digest) => Some(*digest),
            Version::Tag(_) => None,
        }
    }

    /// Registry and repository, without a version.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository at a digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self { version: Version::Digest(digest), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |why: String| ParseReferenceError { reference: text.chars().take(300).collect(), why };
        if text.len() > 1024 {
            return Err(refuse("it is longer than 1024 bytes".to_owned()));
        }
        // The grammar is the established crate's; its digests may be of other algorithms, ours may not.
        let parsed: oci_client::Reference = text.parse().map_err(|error: oci_client::ParseError| {
            let upper = text.split(['@', ':']).next().is_some_and(|name| name.bytes().any(|c| c.is_ascii_uppercase()));
            refuse(if upper { "repository names are lower case".to_owned() } else { error.to_string() })
        })?;
        let version = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) => Version::Digest(digest.parse().map_err(|error| refuse(format!("{error}")))?),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        let registry = normal_registry(parsed.registry());
        let mut repository = parsed.repository().to_owned();
        if registry == "docker.io" && !repository.contains('/') {
            repository.insert_str(0, "library/");
        }
        Ok(Self { registry, repository, version })
    }
}

/// Docker Hub has several names; pull secrets use them all, some as URLs.
pub(crate) fn normal_registry(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" | "" => "docker.io".to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn references_have_one_form() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let rows = [
            ("nginx", "docker.io/library/nginx:latest".to_owned()),
            ("nginx:1.27", "docker.io/library/nginx:1.27".to_owned()),
            ("library/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("index.docker.io/library/nginx:a", "docker.io/library/nginx:a".to_owned()),
            ("registry-1.docker.io/nginx", "docker.io/library/nginx:latest".to_owned()),
            ("user/app", "docker.io/user/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".to_owned()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".to_owned()),
            ("ghcr.io/o/r/app", "ghcr.io/o/r/app:latest".to_owned()),
            ("dev.local/app", "dev.local/app:latest".to_owned()),
            (&format!("nginx@{digest}"), format!("docker.io/library/nginx@{digest}")),
            (&format!("nginx:1.27@{digest}"), format!("docker.io/library/nginx@{digest}")),
        ];
        for (text, wanted) in rows {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), wanted, "{text}");
            assert_eq!(wanted.parse::<Reference>().unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_a_reason() {
        let rows = [
            ("", "component"),
            ("Nginx", "lower case"),
            ("nginx:", "format"),
            ("nginx@sha256:abc", "format"),
            ("http://nginx", "format"),
            ("a b", "format"),
            ("../etc", "format"),
            (&format!("nginx@sha512:{}", "ab".repeat(64)), "sha256"),
        ];
        for (text, why) in rows {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.why.contains(why), "{text}: {}", error.why);
        }
        assert!("a".repeat(2000).parse::<Reference>().is_err());
    }

    proptest! {
        #[test]
        fn what_parses_parses_again_to_the_same(text in "[a-z0-9./:@_-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }

        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = text.parse::<Reference>();
        }
    }
}
