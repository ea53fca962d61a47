//! `config-domain`: domains of public URLs; each key is a domain, its value the Routes that get it.
//!
//! Source: `knative/serving/pkg/reconciler/route/config/domain.go`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-domain";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[Key {
    name: "<domain>",
    default: "",
    about: "empty: the domain of all services; or `selector:` with labels, of those that have them. Without any: \
        the domain that the platform was started with",
    in_force: true,
}];

/// The values of `config-domain`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains(BTreeMap<String, BTreeMap<String, String>>);

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Entry {
    selector: BTreeMap<String, String>,
    #[serde(rename = "type")]
    _kind: String,
}

impl Domains {
    /// Reads the ConfigMap's data.
    ///
    /// # Errors
    ///
    /// The first domain that is none, or whose value cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let mut domains = BTreeMap::new();
        for (domain, value) in data.iter().filter(|(key, _)| !key.starts_with('_')) {
            if !base::names::is_dns1123_subdomain(domain) {
                return Err(read.error(domain, value, "the value of a domain: keys are domains, such as example.com"));
            }
            let entry = if value.trim().is_empty() { Ok(Entry::default()) } else { serde_yaml_ng::from_str(value) };
            let Ok(entry) = entry else {
                return Err(read.error(domain, value, "empty, or selector: with one label a line below it"));
            };
            domains.insert(domain.clone(), entry.selector);
        }
        Ok(Self(domains))
    }

    /// The domain of an object with these labels: of those whose selector matches the most specific, then the first.
    pub fn of(&self, labels: &BTreeMap<String, String>) -> Option<&str> {
        let matches =
            |selector: &BTreeMap<String, String>| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let fitting = self.0.iter().filter(|(_, selector)| matches(selector));
        // Of equals `max_by_key` takes the last.
        fitting.rev().max_by_key(|(_, selector)| selector.len()).map(|(domain, _)| domain.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_selector_decides() {
        let data = [
            ("_example", "whatever"),
            ("z.example.com", ""),
            ("a.example.com", ""),
            ("prod.example.com", "selector:\n  app: prod\n"),
            ("eu.example.com", "selector: {app: prod, region: eu}"),
        ];
        let data = data.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let domains = Domains::parse(&data).unwrap();
        let labels = |entries: &[(&str, &str)]| {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(domains.of(&labels(&[])), Some("a.example.com"));
        assert_eq!(domains.of(&labels(&[("app", "prod")])), Some("prod.example.com"));
        assert_eq!(domains.of(&labels(&[("app", "prod"), ("region", "eu")])), Some("eu.example.com"));
        assert_eq!(Domains::default().of(&labels(&[])), None);
    }

    #[test]
    fn what_is_no_domain_is_refused() {
        for (key, value) in [("Exa mple", ""), ("example.com", "selector: x"), ("example.com", "select: {a: b}")] {
            let data = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            assert!(Domains::parse(&data).is_err(), "{key}: {value}");
        }
    }
}
