//! What a request asks for: parsed from its path, query and headers.

use http::Method;

use crate::error::{ApiError, ApiResult};

/// A request to a resource, as its path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// API group; empty for the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace; empty for cluster-wide resources and lists over all namespaces.
    pub namespace: String,
    /// Plural name of the resource.
    pub resource: String,
    /// Name of the object; empty for collections.
    pub name: String,
    /// Subresource; empty if none. May hold slashes (`proxy/a/b`).
    pub subresource: String,
    /// The path asks for a watch (`/api/v1/watch/...`).
    pub watch_path: bool,
}

impl Target {
    /// The target of a path under `/api/v1/` or `/apis/`; `None` for other paths.
    pub fn parse(path: &str) -> Option<Self> {
        let trimmed = path.trim_matches('/');
        let mut parts: Vec<String> = trimmed.split('/').map(percent_decode).collect();
        let (group, version) = match parts.first().map(String::as_str) {
            Some("api") if parts.len() > 2 => (String::new(), parts[1].clone()),
            Some("apis") if parts.len() > 3 => (parts[1].clone(), parts[2].clone()),
            _ => return None,
        };
        parts.drain(..if group.is_empty() && trimmed.starts_with("api/") { 2 } else { 3 });
        let mut target = Self { group, version, ..Self::default() };
        if parts.first().is_some_and(|p| p == "watch") && parts.len() > 1 {
            target.watch_path = true;
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            // `namespaces/x`, `namespaces/x/status` and `namespaces/x/finalize` are about the namespace itself.
            let own = parts.len() == 2 || (parts.len() == 3 && matches!(parts[2].as_str(), "status" | "finalize"));
            if !own {
                target.namespace = parts[1].clone();
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        target.resource = parts.next().unwrap_or_default();
        target.name = parts.next().unwrap_or_default();
        target.subresource = parts.collect::<Vec<_>>().join("/");
        Some(target)
    }
}

/// The query of a request.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the part after `?`.
    pub fn parse(text: Option<&str>) -> Self {
        Self(url::form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter; the empty text if it is not given.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default()
    }

    /// Whether the parameter is given at all.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a switch is on: given, and neither `false` nor `0`.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && !matches!(self.get(name), "false" | "0")
    }

    /// A number, if the parameter is given and not empty.
    ///
    /// # Errors
    ///
    /// 400 with the reference's text.
    pub fn number(&self, name: &str) -> ApiResult<Option<i64>> {
        let text = self.get(name);
        if text.is_empty() {
            return Ok(None);
        }
        let bad = |_| {
            ApiError::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", crate::quote::quoted(text)))
        };
        text.parse().map(Some).map_err(bad)
    }
}

/// What a request wants to do, as RBAC names it.
pub fn verb(method: &Method, collection: bool, watch: bool) -> Option<&'static str> {
    Some(match (method.as_str(), collection) {
        ("GET" | "HEAD", true) => {
            if watch {
                "watch"
            } else {
                "list"
            }
        }
        ("GET" | "HEAD", false) => {
            if watch {
                "watch"
            } else {
                "get"
            }
        }
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        _ => return None,
    })
}

fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_string();
    }
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(byte) if bytes[at] == b'%' => {
                out.push(byte);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> String {
        let Some(t) = Target::parse(path) else { return "none".into() };
        let watch = if t.watch_path { " watch" } else { "" };
        format!("{}/{} ns={} {} {} {}{watch}", t.group, t.version, t.namespace, t.resource, t.name, t.subresource)
    }

    #[test]
    fn paths_name_their_target() {
        let rows = [
            ("/api/v1/pods", "/v1 ns= pods  "),
            ("/api/v1/namespaces", "/v1 ns= namespaces  "),
            ("/api/v1/namespaces/a", "/v1 ns= namespaces a "),
            ("/api/v1/namespaces/a/finalize", "/v1 ns= namespaces a finalize"),
            ("/api/v1/namespaces/a/pods/p/log", "/v1 ns=a pods p log"),
            ("/api/v1/namespaces//configmaps", "/v1 ns= configmaps  "),
            ("/apis/apps/v1/namespaces/a/deployments/d/", "apps/v1 ns=a deployments d "),
            ("/api/v1/watch/namespaces/a/pods", "/v1 ns=a pods   watch"),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/a%3Ab",
                "rbac.authorization.k8s.io/v1 ns= clusterroles a:b ",
            ),
            ("/api/v1", "none"),
            ("/apis/apps/v1", "none"),
            ("/version", "none"),
        ];
        for (path, expected) in rows {
            assert_eq!(parsed(path), expected, "for {path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_path_makes_the_parser_panic(path in "[/a-z%0-9.]{0,60}") {
            let _ = Target::parse(&path);
            let _ = Target::parse(&format!("/api/v1/{path}"));
        }
    }
}
