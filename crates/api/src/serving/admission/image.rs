//! The shape of image references.
//!
//! Source: `github.com/google/go-containerregistry/pkg/name`, weak validation.

/// Whether `image` is a repository with an optional tag, or with a digest.
pub(super) fn is_reference(image: &str) -> bool {
    is_tagged(image) || is_digested(image)
}

fn is_tagged(image: &str) -> bool {
    let (base, tag) = match image.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, tag),
        // The colon stands before a registry's port.
        _ => (image, ""),
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    tag.len() <= 128 && tag.chars().all(allowed) && is_repository(base)
}

fn is_digested(image: &str) -> bool {
    let Some((base, digest)) = image.split_once('@') else { return false };
    let is_sum = |sum: &str| sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    digest.strip_prefix("sha256:").is_some_and(is_sum) && (is_tagged(base) || is_repository(base))
}

fn is_repository(name: &str) -> bool {
    let (registry, repository) = match name.split_once('/') {
        Some((registry, rest)) if registry.contains(['.', ':']) => (registry, rest),
        _ => ("", name),
    };
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c);
    (2..=255).contains(&repository.chars().count()) && repository.chars().all(allowed) && is_authority(registry)
}

fn is_authority(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return false;
            }
            host
        }
        _ => registry,
    };
    host.chars().all(|c| c.is_ascii_alphanumeric() || "-._~!$&'()*+,;=:[]".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_of_the_reference() {
        let sum = "a".repeat(64);
        for image in [
            "ab",
            "nginx:1.27",
            "localhost:5000/a/b",
            "registry.example/app@sha256:SUM",
            "registry.example:443/app:v1@sha256:SUM",
        ] {
            assert!(is_reference(&image.replace("SUM", &sum)), "{image}");
        }
        for image in ["", "a", "UPPER/img", "img@sha256:deadbeef", "img:", "a b", "img:t g", "host:port/x/y"] {
            assert_eq!(is_reference(image), image == "img:", "{image}");
        }
    }
}
