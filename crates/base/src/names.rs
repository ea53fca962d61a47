//! Names as Kubernetes writes and checks them.

/// Letters and digits that generated suffixes use: no vowels, no characters that look alike.
///
/// Source: `k8s.io/apimachinery/pkg/util/rand`.
pub const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A suffix of `length` characters, one for each byte that `random` supplies.
pub fn suffix(length: usize, mut random: impl FnMut() -> u8) -> String {
    (0..length).map(|_| char::from(SUFFIX_ALPHABET[usize::from(random()) % SUFFIX_ALPHABET.len()])).collect()
}

/// Most characters of a name that is also a DNS label.
const LONGEST_NAME: usize = 63;
/// Characters of an MD5 sum in hexadecimal.
const SUM_LENGTH: usize = 32;

/// Name of an object that belongs to `parent`: `parent` and `suffix`, where a name of more than 63 characters has its
/// middle replaced by a sum of what was cut.
///
/// Source: `knative.dev/pkg/kmeta`, ChildName.
pub fn child_name(parent: &str, suffix: &str) -> String {
    if parent.len() + suffix.len() <= LONGEST_NAME {
        return format!("{parent}{suffix}");
    }
    let head = LONGEST_NAME - SUM_LENGTH;
    if suffix.len() < head {
        return format!("{}{}{suffix}", cut(parent, head - suffix.len()), sum(parent));
    }
    // No room for the suffix beside a sum: both go into the sum, and what room is left is filled from the suffix.
    let mut name = format!("{}{}", cut(parent, head), sum(&format!("{parent}{suffix}")));
    let room = LONGEST_NAME - name.len();
    name.push_str(cut(suffix, room));
    let end = name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).len();
    name.truncate(end);
    name
}

/// The first `length` bytes of `text`, or fewer so as not to split a character.
fn cut(text: &str, length: usize) -> &str {
    let mut end = length.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn sum(text: &str) -> String {
    use md5::{Digest, Md5};
    Md5::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether `name` is a DNS label of RFC 1035 as Kubernetes checks it: a lower-case letter first,
/// then letters, digits and `-`, at most 63 characters, no `-` at the end.
pub fn is_dns1035_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase()) && is_dns1123_label(name)
}

/// Whether `name` is a DNS label of RFC 1123 as Kubernetes checks it.
pub fn is_dns1123_label(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.len() <= 63 && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

/// Whether `name` is a DNS subdomain of RFC 1123 as Kubernetes checks it: labels joined by dots, at most 253 characters.
pub fn is_dns1123_subdomain(name: &str) -> bool {
    let label = |part: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with('-') && !part.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains() {
        let rows = [
            ("hello", true, true, true),
            ("1hello", false, true, true),
            ("he.llo", false, false, true),
            ("-x", false, false, false),
            ("x-", false, false, false),
            ("", false, false, false),
            ("Hello", false, false, false),
            ("a..b", false, false, false),
        ];
        for (name, dns1035, dns1123, subdomain) in rows {
            assert_eq!(is_dns1035_label(name), dns1035, "{name:?} as RFC 1035 label");
            assert_eq!(is_dns1123_label(name), dns1123, "{name:?} as RFC 1123 label");
            assert_eq!(is_dns1123_subdomain(name), subdomain, "{name:?} as subdomain");
        }
        assert!(!is_dns1123_label(&"a".repeat(64)));
    }

    #[test]
    fn vectors_child_names() {
        let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
        let folder = std::env::var("COLIBRI_VECTORS").unwrap_or_else(|_| default.to_owned());
        let Ok(text) = std::fs::read_to_string(format!("{folder}/child_names.json")) else {
            println!("skipped: no child_names.json in {folder}");
            return;
        };
        let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(!rows.is_empty(), "child_names.json has no rows");
        for row in &rows {
            let field = |name: &str| row[name].as_str().unwrap();
            assert_eq!(child_name(field("parent"), field("suffix")), field("result"), "{row}");
        }
        println!("child_names.json: {} rows", rows.len());
    }

    #[test]
    fn a_suffix_uses_only_the_alphabet() {
        let mut byte = 0_u8;
        let text = suffix(300, || {
            byte = byte.wrapping_add(7);
            byte
        });
        assert!(text.bytes().all(|c| SUFFIX_ALPHABET.contains(&c)));
    }
}
