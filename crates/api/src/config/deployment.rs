//! `config-deployment`: how Revisions become pods.
//!
//! Source: `knative/serving/pkg/deployment/config.go`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-deployment";
/// Registry of the built-in runtimes: there is nothing to resolve.
const RUNTIMES: &str = "runtime.colibri.local";
const MOST: Duration = Duration::from_secs(24 * 3_600);

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("progress-deadline", "600s", "time until a Revision that was never ready has failed"),
    key("digest-resolution-timeout", "10s", "longest time of one attempt to resolve an image's tag"),
    key(
        "registries-skipping-tag-resolving",
        "kind.local,ko.local,dev.local",
        "registries whose images are taken as they are named",
    ),
    idle("default-affinity-type", "prefer-spread-revision-over-nodes", "spreading of pods; or none"),
    idle("runtime-class-name", "", "RuntimeClass of pods, by their labels"),
    idle("pod-is-always-schedulable", "false", "of clusters that grow with their pods"),
    idle("queue-sidecar-image", "", SIDECAR),
    idle("queue-sidecar-cpu-request", "25m", SIDECAR),
    idle("queue-sidecar-cpu-limit", "", SIDECAR),
    idle("queue-sidecar-memory-request", "", SIDECAR),
    idle("queue-sidecar-memory-limit", "", SIDECAR),
    idle("queue-sidecar-ephemeral-storage-request", "", SIDECAR),
    idle("queue-sidecar-ephemeral-storage-limit", "", SIDECAR),
    idle("queue-sidecar-token-audiences", "", SIDECAR),
    idle("queue-sidecar-rootca", "", SIDECAR),
    idle("queue-sidecar-tls-min-version", "", SIDECAR),
    idle("queue-sidecar-tls-max-version", "", SIDECAR),
    idle("queue-sidecar-tls-cipher-suites", "", SIDECAR),
    idle("queue-sidecar-tls-curve-preferences", "", SIDECAR),
];
/// Earlier spellings.
pub const LEGACY: &[(&str, &str)] = &[
    ("progressDeadline", "progress-deadline"),
    ("digestResolutionTimeout", "digest-resolution-timeout"),
    ("registriesSkippingTagResolving", "registries-skipping-tag-resolving"),
    ("queueSidecarImage", "queue-sidecar-image"),
];
const SIDECAR: &str = "of the reference's sidecar; there is none";

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

const fn idle(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: false }
}

/// The values of `config-deployment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment {
    /// `progress-deadline`. Default 600 s.
    pub progress_deadline: Duration,
    /// `digest-resolution-timeout`. Default 10 s.
    pub digest_timeout: Duration,
    /// `registries-skipping-tag-resolving`, and the runtimes' own.
    pub unresolved_registries: Vec<String>,
}

impl Default for Deployment {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Deployment {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let second = Duration::from_secs(1);
        let list = |text: &str| text.split(',').map(|name| name.trim().to_owned()).filter(|n| !n.is_empty()).collect();
        let registries = "registries-skipping-tag-resolving";
        let mut unresolved_registries: Vec<String> =
            list(data.get(registries).map_or("kind.local,ko.local,dev.local", String::as_str));
        unresolved_registries.push(RUNTIMES.to_owned());
        for key in KEYS.iter().filter(|key| key.name.ends_with("-request") || key.name.ends_with("-limit")) {
            read.quantity(key.name)?;
        }
        read.truth("pod-is-always-schedulable", false)?;
        read.value("default-affinity-type", (), "none or prefer-spread-revision-over-nodes", |text| {
            ["none", "prefer-spread-revision-over-nodes"].contains(&text).then_some(())
        })?;
        Ok(Self {
            progress_deadline: read.seconds("progress-deadline", Duration::from_secs(600), second, MOST)?,
            digest_timeout: read.time(
                "digest-resolution-timeout",
                Duration::from_secs(10),
                Duration::from_millis(1),
                MOST,
            )?,
            unresolved_registries,
        })
    }
}
