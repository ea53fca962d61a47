//! Reading one ConfigMap's values, each with what it should be.

use std::collections::BTreeMap;
use std::time::Duration;

use base::quantity::Quantity;

/// One key of a ConfigMap, for users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key; `<...>` stands for a part that users choose.
    pub name: &'static str,
    /// Its default as it would be written; empty: unset.
    pub default: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Whether the platform acts on it; else it is checked, and nothing more.
    pub in_force: bool,
}

/// A key whose value cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{map}: {key} = {value:?} is not {wanted}")]
pub struct SettingError {
    /// The ConfigMap.
    pub map: &'static str,
    /// The key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What it should be.
    pub wanted: String,
}

pub(super) struct Reader<'a> {
    pub(super) map: &'static str,
    pub(super) data: &'a BTreeMap<String, String>,
}

impl Reader<'_> {
    pub(super) fn error(&self, key: &str, value: impl ToString, wanted: impl Into<String>) -> SettingError {
        SettingError { map: self.map, key: key.to_owned(), value: value.to_string(), wanted: wanted.into() }
    }

    pub(super) fn value<T>(
        &self,
        key: &str,
        default: T,
        wanted: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, SettingError> {
        match self.data.get(key) {
            None => Ok(default),
            Some(value) => read(value.trim()).ok_or_else(|| self.error(key, value, wanted)),
        }
    }

    pub(super) fn number(
        &self,
        key: &str,
        default: f64,
        valid: impl Fn(f64) -> bool,
        wanted: &str,
    ) -> Result<f64, SettingError> {
        let wanted = format!("a number {wanted}");
        self.value(key, default, &wanted, |text| text.parse().ok().filter(|n: &f64| n.is_finite() && valid(*n)))
    }

    pub(super) fn integer(&self, key: &str, default: i64, least: i64) -> Result<i64, SettingError> {
        let wanted = format!("a whole number of at least {least}");
        self.value(key, default, &wanted, |text| text.parse().ok().filter(|n| *n >= least))
    }

    pub(super) fn count(&self, key: &str, default: i32) -> Result<i32, SettingError> {
        self.value(key, default, "a whole number of at least 0", |text| text.parse().ok().filter(|n| *n >= 0))
    }

    pub(super) fn truth(&self, key: &str, default: bool) -> Result<bool, SettingError> {
        self.value(key, default, "true or false", |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        })
    }

    /// A duration of whole seconds from `least` to `most`.
    pub(super) fn seconds(
        &self,
        key: &str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Result<Duration, SettingError> {
        let wanted = format!(
            "a duration from {}s to {}s in whole seconds, such as 90s or 1h",
            least.as_secs_f64(),
            most.as_secs()
        );
        let valid = |time: &Duration| (least..=most).contains(time) && time.subsec_nanos() == 0;
        self.value(key, default, &wanted, |text| base::duration::parse(text).filter(valid))
    }

    /// A duration from `least` to `most`.
    pub(super) fn time(
        &self,
        key: &str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Result<Duration, SettingError> {
        let wanted = format!("a duration from {}s to {}s, such as 90s or 1h", least.as_secs_f64(), most.as_secs());
        let valid = |time: &Duration| (least..=most).contains(time);
        self.value(key, default, &wanted, |text| base::duration::parse(text).filter(valid))
    }

    pub(super) fn quantity(&self, key: &str) -> Result<Option<String>, SettingError> {
        self.value(key, None, "a quantity, such as 250m or 64Mi", |text| {
            Quantity::parse(text).is_ok().then(|| Some(text.to_owned()))
        })
    }
}
