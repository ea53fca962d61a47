//! The platform's ConfigMaps: their keys, defaults, and what is valid. Pure.
//!
//! Unknown keys have no effect; a value that cannot be used is an error that names key, value and what it should be.

pub mod autoscaler;
pub mod defaults;
pub mod deployment;
pub mod domain;
pub mod features;
pub mod gateway;
pub mod gc;
pub mod network;
pub mod observability;
mod reader;
pub mod template;

use std::collections::BTreeMap;
use std::fmt::Write;

use base::nearest;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use autoscaler::Autoscaler;
pub use defaults::Defaults;
pub use deployment::Deployment;
pub use domain::Domains;
pub use features::{Features, Flag};
pub use gateway::Gateway;
pub use gc::Gc;
pub use network::Network;
pub use observability::Observability;
pub use reader::{Key, SettingError};

/// Key of the documentation in each ConfigMap; it has no effect.
pub const EXAMPLE: &str = "_example";

/// The data of a ConfigMap.
pub type Data = BTreeMap<String, String>;

/// The values of all ConfigMaps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `config-autoscaler`.
    pub autoscaler: Autoscaler,
    /// `config-defaults`.
    pub defaults: Defaults,
    /// `config-deployment`.
    pub deployment: Deployment,
    /// `config-domain`.
    pub domains: Domains,
    /// `config-features`.
    pub features: Features,
    /// `config-gateway`.
    pub gateway: Gateway,
    /// `config-gc`.
    pub gc: Gc,
    /// `config-network`.
    pub network: Network,
    /// `config-observability`.
    pub observability: Observability,
}

/// One ConfigMap.
pub struct Map {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [Key],
    /// Earlier spellings, each with the present one.
    legacy: &'static [(&'static str, &'static str)],
    apply: fn(&mut Settings, &Data) -> Result<(), SettingError>,
}

/// All ConfigMaps, in the order of the documentation.
pub const MAPS: [Map; 9] = [
    Map {
        name: defaults::NAME,
        about: "what Revisions get that do not say otherwise, and the most they may ask for",
        keys: defaults::KEYS,
        legacy: &[],
        apply: |settings, data| Defaults::parse(data).map(|read| settings.defaults = read),
    },
    Map {
        name: features::NAME,
        about: "what users may ask for beyond the plain contract: Enabled, Allowed or Disabled",
        keys: features::KEYS,
        legacy: &[],
        apply: |settings, data| Features::parse(data).map(|read| settings.features = read),
    },
    Map {
        name: autoscaler::NAME,
        about: "how many instances there are, unless a Revision's annotations say otherwise",
        keys: autoscaler::KEYS,
        legacy: &[],
        apply: |settings, data| Autoscaler::parse(data).map(|read| settings.autoscaler = read),
    },
    Map {
        name: deployment::NAME,
        about: "how Revisions become pods",
        keys: deployment::KEYS,
        legacy: deployment::LEGACY,
        apply: |settings, data| Deployment::parse(data).map(|read| settings.deployment = read),
    },
    Map {
        name: network::NAME,
        about: "URLs, and how traffic moves",
        keys: network::KEYS,
        legacy: network::LEGACY,
        apply: |settings, data| Network::parse(data).map(|read| settings.network = read),
    },
    Map {
        name: domain::NAME,
        about: "domains of public URLs; each key is a domain",
        keys: domain::KEYS,
        legacy: &[],
        apply: |settings, data| Domains::parse(data).map(|read| settings.domains = read),
    },
    Map {
        name: gc::NAME,
        about: "which Revisions that nobody uses are kept",
        keys: gc::KEYS,
        legacy: &[],
        apply: |settings, data| Gc::parse(data).map(|read| settings.gc = read),
    },
    Map {
        name: gateway::NAME,
        about: "what clients of the gateway may send, and how long they may take",
        keys: gateway::KEYS,
        legacy: &[],
        apply: |settings, data| Gateway::parse(data).map(|read| settings.gateway = read),
    },
    Map {
        name: observability::NAME,
        about: "logs, metrics and traces",
        keys: observability::KEYS,
        legacy: &[],
        apply: |settings, data| Observability::parse(data).map(|read| settings.observability = read),
    },
];

impl Settings {
    /// Takes over one ConfigMap, or its absence; whether anything changed. Other ConfigMaps change nothing.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used; all stays as it was.
    pub fn apply(&mut self, name: &str, data: Option<&Data>) -> Result<bool, SettingError> {
        let Some(map) = Map::of(name) else { return Ok(false) };
        let mut next = self.clone();
        (map.apply)(&mut next, &map.present(data))?;
        let changed = next != *self;
        *self = next;
        Ok(changed)
    }
}

impl Map {
    /// The ConfigMap of that name.
    pub fn of(name: &str) -> Option<&'static Self> {
        static ALL: &[Map] = &MAPS;
        ALL.iter().find(|map| map.name == name)
    }

    /// Checks the ConfigMap's data; what its author should know.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn check(&self, data: &Data) -> Result<Vec<String>, SettingError> {
        (self.apply)(&mut Settings::default(), &self.present(Some(data)))?;
        Ok(data.keys().filter_map(|key| self.remark(key)).collect())
    }

    /// The data in today's spelling, which wins over an earlier one.
    fn present(&self, data: Option<&Data>) -> Data {
        let mut data = data.cloned().unwrap_or_default();
        for (earlier, present) in self.legacy {
            if let Some(value) = data.remove(*earlier)
                && !data.contains_key(*present)
            {
                data.insert((*present).to_owned(), value);
            }
        }
        data
    }

    /// What is to be said about a key: that nobody knows it, or that nobody acts on it.
    fn remark(&self, key: &str) -> Option<String> {
        if key.starts_with('_') || self.name == domain::NAME {
            return None;
        }
        let present = self.legacy.iter().find(|(earlier, _)| *earlier == key).map_or(key, |(_, present)| *present);
        match self.keys.iter().find(|known| known.name == present) {
            Some(known) if known.in_force => None,
            Some(known) => Some(format!("{}: {key} has no effect here ({})", self.name, known.about)),
            None => {
                let near = nearest(key, self.keys.iter().map(|known| known.name));
                let meant = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                Some(format!("{}: there is no key {key}, it has no effect{meant}", self.name))
            }
        }
    }

    /// The ConfigMap as it is installed: nothing but its documentation.
    pub fn initial(&self) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                namespace: Some(crate::SYSTEM_NAMESPACE.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(EXAMPLE.to_owned(), self.example())])),
            ..ConfigMap::default()
        }
    }

    fn example(&self) -> String {
        let mut text = format!(
            "# {}\n#\n# This block has no effect: it shows each key with its default. Copy what you change one level \
             up,\n# below data:; it counts from that moment on.\n",
            self.about
        );
        for key in self.keys {
            let idle = if key.in_force { "" } else { " (no effect here)" };
            let _ = write!(text, "\n# {}{idle}\n{}: \"{}\"\n", key.about, key.name, key.default); // to memory
        }
        text
    }
}

/// All keys as Markdown, for the documentation.
pub fn markdown() -> String {
    let mut text = String::new();
    for map in &MAPS {
        // To memory.
        let _ =
            write!(text, "### {}\n\n{}.\n\n| Key | Default | | In force |\n|---|---|---|---|\n", map.name, map.about);
        for key in map.keys {
            let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
            let force = if key.in_force { "yes" } else { "no" };
            let _ = writeln!(text, "| `{}` | {default} | {} | {force} |", key.name, key.about);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(entries: &[(&str, &str)]) -> Data {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        for map in MAPS.iter().filter(|map| map.name != domain::NAME) {
            let all: Data = map
                .keys
                .iter()
                .filter(|key| !key.default.is_empty())
                .map(|key| (key.name.into(), key.default.into()))
                .collect();
            let mut settings = Settings::default();
            assert_eq!(settings.apply(map.name, Some(&all)), Ok(false), "{}", map.name);
        }
    }

    #[test]
    fn wrong_values_are_refused_with_key_value_and_cure() {
        let rows = [
            ("config-defaults", "revision-timeout-seconds", "abc", "a whole number of at least 1"),
            ("config-defaults", "revision-timeout-seconds", "601", "at most max-revision-timeout-seconds (600)"),
            ("config-defaults", "revision-cpu-limit", "lots", "a quantity, such as 250m or 64Mi"),
            ("config-defaults", "container-concurrency", "1001", "at most container-concurrency-max-limit (1000)"),
            ("config-defaults", "enable-service-links", "maybe", "true, false or default"),
            ("config-features", "multi-container", "on", "Enabled, Allowed or Disabled"),
            ("config-features", "secure-pod-defaults", "Allowed", "Enabled, AllowRootBounded or Disabled"),
            (
                "config-deployment",
                "progressDeadline",
                "0s",
                "a duration from 1s to 86400s in whole seconds, such as 90s or 1h",
            ),
            ("config-network", "default-external-scheme", "ftp", "http or https"),
            ("config-network", "http-protocol", "perhaps", "Enabled, Redirected or Disabled"),
            ("config-gc", "retain-since-create-time", "two days", "a duration such as 48h, or disabled"),
            ("config-gc", "min-non-active-revisions", "1001", "at most max-non-active-revisions (1000)"),
            ("config-observability", "tracing-sampling-rate", "2", "a number from 0 to 1"),
        ];
        for (map, key, value, wanted) in rows {
            let error = Map::of(map).unwrap().check(&data(&[(key, value)])).unwrap_err().to_string();
            let key = if key == "progressDeadline" { "progress-deadline" } else { key };
            assert_eq!(error, format!("{map}: {key} = {value:?} is not {wanted}"));
        }
        let template = Map::of("config-network").unwrap().check(&data(&[("domain-template", "{{.Nam}}.x")]));
        assert!(template.unwrap_err().to_string().contains("{{.Name}}"));
    }

    #[test]
    fn unknown_and_idle_keys_are_remarked_on() {
        let map = Map::of("config-autoscaler").unwrap();
        let remarks = map.check(&data(&[("stable-windw", "60s"), ("activator-capacity", "5"), ("_example", "x")]));
        let wanted = [
            "config-autoscaler: activator-capacity has no effect here (of the reference's activator; there is none)",
            "config-autoscaler: there is no key stable-windw, it has no effect; did you mean stable-window?",
        ];
        assert_eq!(remarks.unwrap(), wanted);
    }

    #[test]
    fn what_is_installed_documents_every_key_and_changes_nothing() {
        for map in &MAPS {
            let initial = map.initial();
            let data = initial.data.unwrap();
            assert!(map.keys.iter().all(|key| data[EXAMPLE].contains(key.name)), "{}", map.name);
            assert_eq!(map.check(&data), Ok(Vec::new()));
            assert_eq!(Settings::default().apply(map.name, Some(&data)), Ok(false));
        }
    }

    #[test]
    fn the_book_lists_every_key() {
        const MARKS: [&str; 2] =
            ["<!-- keys: written by `UPDATE_EXPECT=1 cargo test -p api the_book` -->\n", "<!-- end of keys -->"];
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let text = std::fs::read_to_string(file).unwrap();
        let (before, rest) = text.split_once(MARKS[0]).expect("the page has the mark");
        let (present, after) = rest.split_once(MARKS[1]).expect("the page has the end mark");
        let wanted = format!("\n{}", markdown());
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(file, format!("{before}{}{wanted}{}{after}", MARKS[0], MARKS[1])).unwrap();
        } else {
            assert_eq!(present, wanted, "write it anew: UPDATE_EXPECT=1 cargo test -p api the_book");
        }
    }
}
