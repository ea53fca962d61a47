//! What is wrong with a name, in Kubernetes' words.
//!
//! Source: `k8s.io/apimachinery/pkg/api/validate/content`.

const LABEL_LENGTH: usize = 63;
const SUBDOMAIN_LENGTH: usize = 253;
const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
    must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
    '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation \
    is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
    alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn is_label(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !name.is_empty() && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

fn is_subdomain(name: &str) -> bool {
    name.split('.').all(is_label)
}

fn problems(name: &str, length: usize, is_valid: bool, shape: &'static str) -> Vec<String> {
    let mut problems = Vec::new();
    if name.len() > length {
        problems.push(format!("must be no more than {length} characters"));
    }
    if !is_valid {
        problems.push(shape.to_owned());
    }
    problems
}

/// Problems of `name` as a DNS-1035 label.
pub(super) fn dns1035_label(name: &str) -> Vec<String> {
    let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
    problems(name, LABEL_LENGTH, letter && is_label(name), DNS1035)
}

/// Problems of `prefix` as the beginning of generated names.
pub(super) fn dns1035_prefix(prefix: &str) -> Vec<String> {
    match prefix.strip_suffix('-') {
        // What follows makes an end out of the dash.
        Some(stem) if !stem.is_empty() => {
            let mut masked = stem.to_owned();
            masked.pop();
            dns1035_label(&format!("{masked}a"))
        }
        _ => dns1035_label(prefix),
    }
}

/// Problems of `name` as a DNS-1123 label.
pub(super) fn dns1123_label(name: &str) -> Vec<String> {
    let shape =
        if is_subdomain(name) && name.len() <= SUBDOMAIN_LENGTH { "must not contain dots" } else { DNS1123_LABEL };
    problems(name, LABEL_LENGTH, is_label(name), shape)
}

/// Problems of `name` as a DNS-1123 subdomain.
pub(super) fn dns1123_subdomain(name: &str) -> Vec<String> {
    problems(name, SUBDOMAIN_LENGTH, is_subdomain(name), DNS1123_SUBDOMAIN)
}

/// Problems of `name` as the key of a label.
pub(super) fn qualified(name: &str) -> Vec<String> {
    let parts: Vec<&str> = name.split('/').collect();
    let mut found = Vec::new();
    let name = match parts.as_slice() {
        [name] => name,
        ["", name] => {
            found.push("prefix part must be non-empty".to_owned());
            name
        }
        [prefix, name] => {
            found.extend(dns1123_subdomain(prefix).into_iter().map(|problem| format!("prefix part {problem}")));
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. \
                 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        found.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_LENGTH {
        found.push(format!("name part must be no more than {LABEL_LENGTH} characters"));
    }
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: char| c.is_ascii_alphanumeric();
    if !(name.chars().all(inner) && name.starts_with(ends) && name.ends_with(ends)) {
        found.push(format!("name part {QUALIFIED}"));
    }
    found
}

/// What is wrong with `name` as a fully qualified domain name at the field `name`.
pub(super) fn domain(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("name: Required value".to_owned());
    }
    let bare = name.strip_suffix('.').unwrap_or(name);
    let invalid = |value: &str, why: &str| format!("name: Invalid value: {value:?}: {why}");
    let wrong = dns1123_subdomain(bare);
    if !wrong.is_empty() {
        return Some(invalid(bare, &wrong.join(",")));
    }
    if !bare.contains('.') {
        return Some(invalid(bare, "should be a domain with at least two segments separated by dots"));
    }
    let mut found: Vec<String> = Vec::new();
    for label in bare.split('.') {
        let wrong = dns1123_label(label);
        let text = invalid(label, &wrong.join(","));
        if !wrong.is_empty() && !found.contains(&text) {
            found.push(text);
        }
    }
    match found.len() {
        0 => None,
        1 => found.pop(),
        _ => Some(format!("[{}]", found.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_kubernetes_own() {
        let long = "a".repeat(64);
        let rows: [(Vec<String>, &[&str]); 12] = [
            (dns1035_label("hello-1"), &[]),
            (dns1035_label("1hello"), &[DNS1035]),
            (dns1035_label(&long), &["must be no more than 63 characters"]),
            (dns1035_label(&format!("{long}-")), &["must be no more than 63 characters", DNS1035]),
            (dns1035_label(&format!("1{long}")), &["must be no more than 63 characters", DNS1035]),
            (dns1035_label(&format!("{long}_{long}")), &["must be no more than 63 characters", DNS1035]),
            (dns1035_prefix("hello-"), &[]),
            (dns1035_prefix("Hello-"), &[DNS1035]),
            (dns1123_label("a.b"), &["must not contain dots"]),
            (dns1123_subdomain("a.b-c.d"), &[]),
            (qualified("example.com/Name_1"), &[]),
            (qualified("/x"), &["prefix part must be non-empty"]),
        ];
        for (found, wanted) in rows {
            assert_eq!(found, wanted);
        }
    }
}
