//! `config-observability`: logs, metrics and traces.
//!
//! Source: `knative/serving/pkg/observability/config.go`.

use std::collections::BTreeMap;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-observability";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "logging.revision-url-template",
        default: "",
        about: "where a Revision's logs can be read, for its status; ${REVISION_UID} stands for its uid",
        in_force: true,
    },
    key("logging.enable-request-log", "false", "a line for each request"),
    key("logging.enable-probe-request-log", "false", "a line for each probe"),
    key("logging.request-log-template", "", "the form of those lines"),
    key("logging.enable-var-log-collection", "false", "of log collectors on the node"),
    key("metrics-protocol", "none", "metrics are always at /metrics"),
    key("metrics-endpoint", "", "where metrics are sent to"),
    key("metrics-export-interval", "", "how often they are sent"),
    key("request-metrics-protocol", "none", "as metrics-protocol, for metrics of requests"),
    key("request-metrics-endpoint", "", "where those are sent to"),
    key("request-metrics-export-interval", "", "how often they are sent"),
    key("tracing-protocol", "none", "how traces are sent"),
    key("tracing-endpoint", "", "where they are sent to"),
    key("tracing-sampling-rate", "", "share of requests that are traced"),
    key("runtime-profiling", "disabled", "profiles of the platform's own processes"),
    key("runtime-export-interval", "", "how often measurements of those processes are sent"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: false }
}

/// The values of `config-observability`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observability {
    /// `logging.revision-url-template`; empty is none. Default none.
    pub log_url_template: String,
}

impl Observability {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        for name in ["enable-request-log", "enable-probe-request-log", "enable-var-log-collection"] {
            read.truth(&format!("logging.{name}"), false)?;
        }
        let protocols = ["none", "prometheus", "http/protobuf", "grpc", "stdout"];
        for key in ["metrics-protocol", "request-metrics-protocol", "tracing-protocol"] {
            read.value(key, (), "none, prometheus, http/protobuf, grpc or stdout", |text| {
                protocols.contains(&text).then_some(())
            })?;
        }
        read.number("tracing-sampling-rate", 0.0, |rate| (0.0..=1.0).contains(&rate), "from 0 to 1")?;
        Ok(Self { log_url_template: data.get("logging.revision-url-template").cloned().unwrap_or_default() })
    }

    /// Where the logs of a Revision can be read.
    pub fn log_url(&self, uid: &str) -> Option<String> {
        let template = self.log_url_template.trim();
        (!template.is_empty()).then(|| template.replace("${REVISION_UID}", uid))
    }
}
