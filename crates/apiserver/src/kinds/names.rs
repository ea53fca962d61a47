//! The forms of names, and the complaints about names that do not have them.
//!
//! Source: `k8s.io/apimachinery/pkg/util/validation`.

/// Complaint about a text that is no DNS label (RFC 1123).
pub const LABEL_1123: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// Complaint about a text that is no DNS subdomain (RFC 1123).
pub const SUBDOMAIN_1123: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
/// Complaint about a text that is no key of a ConfigMap or Secret.
pub const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
/// Complaint about the name part of a qualified name.
pub const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// Complaint about a label's value.
pub const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn edges(text: &str, fits: fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| fits(*b)) && bytes.last().is_some_and(|b| fits(*b))
}

fn lower(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn any_case(b: u8) -> bool {
    b.is_ascii_alphanumeric()
}

fn is_label_text(text: &str) -> bool {
    edges(text, lower) && text.bytes().all(|b| lower(b) || b == b'-')
}

/// Complaints about a DNS label (RFC 1123).
pub fn label(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push("must be no more than 63 bytes".to_string());
    }
    if !is_label_text(text) {
        out.push(LABEL_1123.to_string());
    }
    out
}

/// Complaints about a DNS subdomain (RFC 1123).
pub fn subdomain(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push("must be no more than 253 bytes".to_string());
    }
    if !text.split('.').all(is_label_text) {
        out.push(SUBDOMAIN_1123.to_string());
    }
    out
}

/// Complaints about a key of a ConfigMap or Secret.
pub fn config_key(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 253 {
        out.push("must be no more than 253 bytes".to_string());
    }
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.')) {
        out.push(CONFIG_KEY.to_string());
    } else if text == "." {
        out.push("must not be '.'".to_string());
    } else if text == ".." {
        out.push("must not be '..'".to_string());
    } else if text.starts_with("..") {
        out.push("must not start with '..'".to_string());
    }
    out
}

/// Complaints about a qualified name such as `example.com/name`: keys of labels and annotations.
pub fn qualified(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let name = match text.split_once('/') {
        None => text,
        Some((_, rest)) if rest.contains('/') => {
            out.push(String::from("a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"));
            return out;
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_string());
            } else {
                out.extend(subdomain(prefix).into_iter().map(|text| format!("prefix part {text}")));
            }
            name
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_string());
    } else if name.len() > 63 {
        out.push("name part must be no more than 63 bytes".to_string());
    }
    if !(edges(name, any_case) && name.bytes().all(|b| any_case(b) || matches!(b, b'-' | b'_' | b'.'))) {
        out.push(QUALIFIED_NAME.to_string());
    }
    out
}

/// Complaints about a label's value.
pub fn label_value(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 63 {
        out.push("must be no more than 63 bytes".to_string());
    }
    let fine = text.is_empty()
        || edges(text, any_case) && text.bytes().all(|b| any_case(b) || matches!(b, b'-' | b'_' | b'.'));
    if !fine {
        out.push(LABEL_VALUE.to_string());
    }
    out
}

/// Complaints about a port's number.
pub fn port_number(port: i64) -> Option<&'static str> {
    (!(1..=65535).contains(&port)).then_some("must be between 1 and 65535, inclusive")
}

/// Complaints about a port's name (IANA service name).
pub fn port_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.len() > 15 {
        out.push("must be no more than 15 characters".to_string());
    }
    if text.is_empty() || !text.bytes().all(|b| lower(b) || b == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_string());
    }
    if !text.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_string());
    }
    if text.contains("--") {
        out.push("must not contain consecutive hyphens".to_string());
    }
    if text.starts_with('-') || text.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_string());
    }
    out
}

/// Complaints about the name of an environment variable.
pub fn env_name(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    if text.is_empty() || !text.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        out.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_string(),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged_as_the_reference_does() {
        assert!(label("a-1").is_empty());
        for bad in ["", "Bad_", "a.b", "-a", "a-"] {
            assert_eq!(label(bad), [LABEL_1123], "{bad}");
        }
        assert!(subdomain("a.b-c.d").is_empty());
        assert_eq!(subdomain("a..b"), [SUBDOMAIN_1123]);
        assert_eq!(config_key("a b"), [CONFIG_KEY]);
        assert!(config_key("a.b_c-d").is_empty());
        assert!(qualified("example.com/My.name").is_empty());
        assert_eq!(qualified("/x"), ["prefix part must be non-empty"]);
        assert!(port_name("http-1").is_empty());
        assert_eq!(port_name("80"), ["must contain at least one letter (a-z)"]);
    }
}
