//! Rules for names, labels, annotations and finalizers, with the reference's texts.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation` and `pkg/api/validation`.

use base::names::{is_dns1035_label, is_dns1123_label, is_dns1123_subdomain};
use serde_json::Value;

use crate::resource::{FieldError, NameRule};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

/// Annotations of one object together.
const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;

/// Faults of a subdomain name.
pub fn subdomain_faults(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > 253 {
        faults.push("must be no more than 253 bytes".to_string());
    }
    if !is_dns1123_subdomain(&name.chars().take(253).collect::<String>()) {
        faults.push(SUBDOMAIN.to_string());
    }
    faults
}

/// Faults of an RFC 1123 label.
pub fn label_faults(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > 63 {
        faults.push("must be no more than 63 bytes".to_string());
    }
    let cut: String = name.chars().take(63).collect();
    if !is_dns1123_label(&cut) {
        let dotted = is_dns1123_subdomain(name);
        faults.push(if dotted { "must not contain dots".to_string() } else { LABEL.to_string() });
    }
    faults
}

/// Faults of an RFC 1035 label.
pub fn label_1035_faults(name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if name.len() > 63 {
        faults.push("must be no more than 63 bytes".to_string());
    }
    if !is_dns1035_label(&name.chars().take(63).collect::<String>()) {
        faults.push(LABEL_1035.to_string());
    }
    faults
}

/// Faults of a name that is one segment of a path.
pub fn path_segment_faults(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ['/', '%'].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// Faults of a name under a rule. A name to be generated from may end with `-`.
pub fn name_faults(rule: NameRule, name: &str, prefix: bool) -> Vec<String> {
    let masked;
    let name = match name.strip_suffix('-') {
        Some(cut) if prefix => {
            masked = format!("{cut}a");
            &masked
        }
        _ => name,
    };
    match rule {
        NameRule::Subdomain => subdomain_faults(name),
        NameRule::Label => label_faults(name),
        NameRule::Label1035 => label_1035_faults(name),
        NameRule::PathSegment => path_segment_faults(name),
    }
}

fn is_qualified_part(part: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    part.starts_with(edge) && part.ends_with(edge) && part.chars().all(inner)
}

/// Faults of `[prefix/]name`, the form of label keys.
pub fn qualified_name_faults(key: &str) -> Vec<String> {
    let parts: Vec<&str> = key.split('/').collect();
    let mut faults = Vec::new();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_string());
            } else {
                faults.extend(subdomain_faults(prefix).into_iter().map(|fault| format!("prefix part {fault}")));
            }
            name
        }
        _ => {
            let text = format!(
                "a valid label key {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            );
            return vec![text];
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        faults.push("name part must be no more than 63 bytes".to_string());
    }
    if !is_qualified_part(name) {
        faults.push(format!("name part {QUALIFIED}"));
    }
    faults
}

/// Fault of a label's value.
pub fn label_value_fault(value: &str) -> Option<String> {
    if value.len() > 63 {
        return Some("must be no more than 63 bytes".to_string());
    }
    (!value.is_empty() && !is_qualified_part(value)).then(|| LABEL_VALUE.to_string())
}

/// Faults of labels at `path`.
pub fn labels_faults(labels: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut faults = Vec::new();
    for (key, value) in labels.and_then(Value::as_object).into_iter().flatten() {
        faults.extend(qualified_name_faults(key).into_iter().map(|why| FieldError::invalid(path, key.as_str(), why)));
        let value = value.as_str().unwrap_or_default();
        faults.extend(label_value_fault(value).map(|why| FieldError::invalid(path, value, why)));
    }
    faults
}

/// Faults of annotations at `path`.
pub fn annotations_faults(annotations: Option<&Value>, path: &str) -> Vec<FieldError> {
    let mut faults = Vec::new();
    let mut size = 0;
    for (key, value) in annotations.and_then(Value::as_object).into_iter().flatten() {
        let lower = key.to_lowercase();
        faults
            .extend(qualified_name_faults(&lower).into_iter().map(|why| FieldError::invalid(path, key.as_str(), why)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT_BYTES {
        faults.push(FieldError::too_long(path, ANNOTATIONS_LIMIT_BYTES));
    }
    faults
}

/// Faults of one finalizer's name; `strict` asks for a qualified name or a standard one.
pub fn finalizer_faults(name: &str, path: &str, strict: bool) -> Vec<FieldError> {
    let mut faults: Vec<FieldError> =
        qualified_name_faults(name).into_iter().map(|why| FieldError::invalid(path, name, why)).collect();
    let standard = ["kubernetes", "orphan", "foregroundDeletion"];
    if strict && !name.contains('/') && !standard.contains(&name) {
        let why = "name is neither a standard finalizer name nor is it fully qualified";
        faults.insert(0, FieldError::invalid(path, name, why));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rule() {
        let rows = [
            (NameRule::Subdomain, "a.b", false, 0),
            (NameRule::Subdomain, "A", false, 1),
            (NameRule::Subdomain, "gen-", true, 0),
            (NameRule::Subdomain, "gen-", false, 1),
            (NameRule::Label, "a.b", false, 1),
            (NameRule::Label1035, "1a", false, 1),
            (NameRule::PathSegment, "system:node", false, 0),
            (NameRule::PathSegment, "a/b", false, 1),
        ];
        for (rule, name, prefix, count) in rows {
            assert_eq!(name_faults(rule, name, prefix).len(), count, "{rule:?} {name:?}");
        }
    }

    #[test]
    fn label_keys_and_values() {
        for good in ["a", "example.com/a", "A_b.c", "kubernetes.io/metadata.name"] {
            assert!(qualified_name_faults(good).is_empty(), "{good:?}");
        }
        for bad in ["", "a/b/c", "/a", "a/", "-a", "a b", "UP.com/a"] {
            assert!(!qualified_name_faults(bad).is_empty(), "{bad:?}");
        }
        assert!(label_value_fault("").is_none());
        assert!(label_value_fault("a b").is_some());
        assert!(label_value_fault(&"x".repeat(64)).is_some());
    }
}
