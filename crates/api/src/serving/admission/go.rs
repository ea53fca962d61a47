//! Numbers as Go reads and writes them.

/// `strconv.ParseFloat`, without hexadecimal numbers.
pub(super) fn float(text: &str) -> Option<f64> {
    let number: f64 = text.parse().ok()?;
    // A number that is too large is an error, infinity itself is not.
    let named = text.contains(['i', 'I']);
    (number.is_finite() || number.is_nan() || named).then_some(number)
}

/// A whole number of any size that `strconv.ParseInt` would read or call out of range.
pub(super) fn integer(text: &str) -> Option<i128> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(if text.starts_with('-') { i128::MIN } else { i128::MAX }))
}

/// `path.Clean`.
pub(super) fn clean_path(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match (part, parts.last()) {
            ("..", Some(last)) if *last != ".." => {
                parts.pop();
            }
            ("..", _) if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_paths_are_gos() {
        assert_eq!(float("1e3"), Some(1000.0));
        assert_eq!(float("1e999"), None);
        assert_eq!(float("x"), None);
        assert!(float("NaN").is_some_and(f64::is_nan));
        assert_eq!(integer("+5"), Some(5));
        assert_eq!(integer("-"), None);
        assert!(integer("99999999999999999999999999999999999999999").is_some());
        for (path, clean) in [("/", "/"), ("//dev/", "/dev"), ("/dev/../x", "/x"), ("a/..", "."), ("/..", "/")] {
            assert_eq!(clean_path(path), clean, "{path}");
        }
    }
}
