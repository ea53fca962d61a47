//! `config-gc`: which Revisions that nobody uses are kept.
//!
//! Source: `knative/serving/pkg/gc/config.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-gc";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("retain-since-create-time", "48h", "how long a Revision is kept after it was made; or disabled: for ever"),
    key("retain-since-last-active-time", "15h", "how long after traffic last went to it; or disabled: for ever"),
    key("min-non-active-revisions", "20", "so many Revisions without traffic are kept in any case"),
    key("max-non-active-revisions", "1000", "more than that are removed at once, oldest first; or disabled: no limit"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

/// The values of `config-gc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gc {
    /// `retain-since-create-time`; `None` is for ever. Default 48 h.
    pub retain_since_create: Option<Duration>,
    /// `retain-since-last-active-time`; `None` is for ever. Default 15 h.
    pub retain_since_active: Option<Duration>,
    /// `min-non-active-revisions`. Default 20.
    pub min_non_active: usize,
    /// `max-non-active-revisions`; `None` is no limit. Default 1000.
    pub max_non_active: Option<usize>,
}

impl Default for Gc {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Gc {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let time = |key: &str, default: u64| {
            let default = Some(Duration::from_secs(default * 3_600));
            read.value(key, default, "a duration such as 48h, or disabled", |text| {
                if text.eq_ignore_ascii_case("disabled") { Some(None) } else { base::duration::parse(text).map(Some) }
            })
        };
        let count = "a whole number of at least 0";
        let min_non_active = read.value("min-non-active-revisions", 20, count, |text| text.parse().ok())?;
        let max_non_active =
            read.value("max-non-active-revisions", Some(1_000), "a whole number of at least 0, or disabled", |text| {
                if text.eq_ignore_ascii_case("disabled") { Some(None) } else { text.parse().ok().map(Some) }
            })?;
        if let Some(most) = max_non_active.filter(|most| *most < min_non_active) {
            let wanted = format!("at most max-non-active-revisions ({most})");
            return Err(read.error("min-non-active-revisions", min_non_active, wanted));
        }
        Ok(Self {
            retain_since_create: time("retain-since-create-time", 48)?,
            retain_since_active: time("retain-since-last-active-time", 15)?,
            min_non_active,
            max_non_active,
        })
    }
}
