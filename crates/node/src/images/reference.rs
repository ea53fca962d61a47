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
        let parsed = grammar::parse(text).map_err(|why| {
            let upper = text.split(['@', ':']).next().is_some_and(|name| name.bytes().any(|c| c.is_ascii_uppercase()));
            refuse(if upper { "repository names are lower case" } else { why }.to_owned())
        })?;
        let version = match (parsed.digest, parsed.tag) {
            // The grammar knows other algorithms.
            (Some(digest), _) => Version::Digest(digest.parse().map_err(|error| refuse(format!("{error}")))?),
            (None, tag) => Version::Tag(tag.unwrap_or("latest").to_owned()),
        };
        let registry = normal_registry(parsed.registry.unwrap_or_default());
        let mut repository = parsed.repository.to_owned();
        if registry == "docker.io" && !repository.contains('/') {
            repository.insert_str(0, "library/");
        }
        Ok(Self { registry, repository, version })
    }
}

/// The grammar of references.
///
/// Source: `github.com/distribution/reference`. By hand: its one regular expression takes 20 MB of memory.
mod grammar {
    const FORMAT: &str = "invalid reference format";

    /// The parts of a reference.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Parsed<'t> {
        pub(super) registry: Option<&'t str>,
        pub(super) repository: &'t str,
        pub(super) tag: Option<&'t str>,
        pub(super) digest: Option<&'t str>,
    }

    /// The parts, or what is wrong.
    pub(super) fn parse(text: &str) -> Result<Parsed<'_>, &'static str> {
        if text.is_empty() {
            return Err("repository name must have at least one component");
        }
        let (text, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let start = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[start..].find(':') {
            Some(colon) => (&text[..start + colon], Some(&text[start + colon + 1..])),
            None => (text, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
            _ => (None, name),
        };
        if repository.len() > 255 {
            return Err("repository name must not be more than 255 characters");
        }
        let fits = registry.is_none_or(is_registry)
            && repository.split('/').all(is_path_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        if fits { Ok(Parsed { registry, repository, tag, digest }) } else { Err(FORMAT) }
    }

    fn is_registry(text: &str) -> bool {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|c| c.is_ascii_digit());
        let is_label = |label: &str| {
            let inside = label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
            inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
        };
        let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(ipv6) => !ipv6.is_empty() && ipv6.bytes().all(|c| c.is_ascii_hexdigit() || c == b':'),
            None => host.split('.').all(is_label),
        };
        is_host && port.is_none_or(is_port)
    }

    /// Lower-case letters and digits, with single separators between them: a dot, one or two underscores, dashes.
    fn is_path_component(text: &str) -> bool {
        let is_word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
        let bytes = text.as_bytes();
        let ends = bytes.first().copied().is_some_and(is_word) && bytes.last().copied().is_some_and(is_word);
        let mut separators = bytes.split(|c| is_word(*c)).filter(|separator| !separator.is_empty());
        ends && separators
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|c| *c == b'-'))
    }

    fn is_tag(text: &str) -> bool {
        let is_word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        text.len() <= 128
            && text.bytes().next().is_some_and(is_word)
            && text.bytes().all(|c| is_word(c) || matches!(c, b'.' | b'-'))
    }

    fn is_digest(text: &str) -> bool {
        let Some((algorithm, hex)) = text.split_once(':') else { return false };
        let is_part = |part: &str| {
            part.bytes().next().is_some_and(|c| c.is_ascii_alphabetic())
                && part.bytes().all(|c| c.is_ascii_alphanumeric())
        };
        algorithm.split(['-', '_', '+', '.']).all(is_part)
            && hex.len() >= 32
            && hex.bytes().all(|c| c.is_ascii_hexdigit())
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
            ("[::1]:5000/app", "[::1]:5000/app:latest".to_owned()),
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
            ("A/b", "lower case"),
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

    /// The established crate's parser, says the same, save that it lacks IPv6 and takes `A/b`.
    fn agrees(text: &str) {
        let theirs = text.parse::<oci_client::Reference>();
        match grammar::parse(text) {
            Ok(ours) => {
                let theirs = theirs.unwrap_or_else(|error| panic!("{text:?}: {error}, but {ours:?}"));
                assert_eq!(theirs.tag(), ours.tag.or(ours.digest.is_none().then_some("latest")), "{text:?}");
                assert_eq!(theirs.digest(), ours.digest, "{text:?}");
                if let Some(registry) = ours.registry.filter(|registry| *registry != "index.docker.io") {
                    assert_eq!(theirs.registry(), registry, "{text:?}");
                    let library = format!("library/{}", ours.repository);
                    assert!([ours.repository, &library].contains(&theirs.repository()), "{text:?}");
                }
            }
            Err(_) => assert!(theirs.is_err(), "{text:?}: {theirs:?}"),
        }
    }

    #[test]
    fn the_grammar_is_the_established_one() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for text in [
            "a",
            "a/b",
            "a__b",
            "a___b",
            "a..b",
            "a-_b",
            "a--b",
            "-a",
            "a_",
            "a/",
            "/a",
            "a//b",
            "a.b/c",
            "a.b/",
            "a:1/b",
            "a:/b",
            "a:x/b",
            "A.b/c",
            "a.-b/c",
            "a:_x",
            "a:-x",
            "a:.x",
            "a@b",
            "a@sha256:",
            "localhost",
            "localhost/a",
            "a:b:c",
            "a@b@c",
            "a.b:5/c/d:e",
        ] {
            agrees(text);
            agrees(&format!("{text}@{digest}"));
        }
        agrees(&format!("a:{}", "b".repeat(128)));
        agrees(&format!("a:{}", "b".repeat(129)));
        agrees(&"a".repeat(247));
        agrees(&"a".repeat(256));
    }

    proptest! {
        #[test]
        fn any_text_is_judged_as_the_established_crate_does(text in "[a-c0-1./:@_-]{0,12}(:[A-B0-1._-]{0,4})?") {
            agrees(&text);
        }

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
