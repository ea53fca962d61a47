//! `config-defaults`: what Revisions get that do not say otherwise, and the most they may ask for.
//!
//! Source: `knative/serving/pkg/apis/config/defaults.go`.

use std::collections::BTreeMap;

use super::reader::{Key, Reader, SettingError};
use super::template::Template;

/// Name of the ConfigMap.
pub const NAME: &str = "config-defaults";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    key("revision-timeout-seconds", "300", "longest time of a request, unless the Revision says otherwise"),
    key("max-revision-timeout-seconds", "600", "the most that a Revision may ask for"),
    key(
        "revision-response-start-timeout-seconds",
        "",
        "longest time until the first byte of the response; unset: as revision-timeout-seconds",
    ),
    key("revision-idle-timeout-seconds", "0", "longest time without a byte; 0: no limit"),
    key("revision-cpu-request", "", "CPU that a container asks for"),
    key("revision-memory-request", "", "memory that a container asks for"),
    key("revision-ephemeral-storage-request", "", "disk that a container asks for"),
    key("revision-cpu-limit", "", "most CPU of a container"),
    key("revision-memory-limit", "", "most memory of a container"),
    key("revision-ephemeral-storage-limit", "", "most disk of a container"),
    key("container-name-template", "user-container", "name of a container without one; may use {{.Name}} and the like"),
    key("init-container-name-template", "init-container", "name of an init container without one"),
    key("container-concurrency", "0", "most requests in flight for one instance; 0: no limit"),
    key("container-concurrency-max-limit", "1000", "the most that a Revision may ask for"),
    key("allow-container-concurrency-zero", "true", "whether a Revision may have no limit"),
    key("enable-service-links", "false", "environment variables for each Service: true, false, or default"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

/// The values of `config-defaults`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// `revision-timeout-seconds`. Default 300.
    pub timeout_seconds: i64,
    /// `max-revision-timeout-seconds`. Default 600.
    pub max_timeout_seconds: i64,
    /// `revision-response-start-timeout-seconds`. Default as `timeout_seconds`.
    pub response_start_timeout_seconds: i64,
    /// `revision-idle-timeout-seconds`; 0 is none. Default 0.
    pub idle_timeout_seconds: i64,
    /// `revision-{cpu,memory,ephemeral-storage}-request`, by resource.
    pub requests: BTreeMap<&'static str, String>,
    /// `revision-{cpu,memory,ephemeral-storage}-limit`, by resource.
    pub limits: BTreeMap<&'static str, String>,
    /// `container-name-template`. Default `user-container`.
    pub container_name: Template,
    /// `init-container-name-template`. Default `init-container`.
    pub init_container_name: Template,
    /// `container-concurrency`. Default 0.
    pub container_concurrency: i64,
    /// `container-concurrency-max-limit`. Default 1000.
    pub container_concurrency_max: i64,
    /// `allow-container-concurrency-zero`. Default true.
    pub allow_container_concurrency_zero: bool,
    /// `enable-service-links`; `None` leaves it to Kubernetes. Default false.
    pub enable_service_links: Option<bool>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Defaults {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        let max_timeout_seconds = read.integer("max-revision-timeout-seconds", 600, 1)?;
        let timeout_seconds = read.integer("revision-timeout-seconds", 300, 1)?;
        let at_most = |key: &str, value: i64, other: &str, most: i64| {
            if value <= most { Ok(value) } else { Err(read.error(key, value, format!("at most {other} ({most})"))) }
        };
        at_most("revision-timeout-seconds", timeout_seconds, "max-revision-timeout-seconds", max_timeout_seconds)?;
        let within = |key: &str, default: i64| {
            let value = read.integer(key, default, 0)?;
            at_most(key, value, "revision-timeout-seconds", timeout_seconds)
        };
        let container_concurrency_max = read.integer("container-concurrency-max-limit", 1_000, 1)?;
        let container_concurrency = read.integer("container-concurrency", 0, 0)?;
        let limit = "container-concurrency-max-limit";
        at_most("container-concurrency", container_concurrency, limit, container_concurrency_max)?;
        Ok(Self {
            timeout_seconds,
            max_timeout_seconds,
            response_start_timeout_seconds: within("revision-response-start-timeout-seconds", timeout_seconds)?,
            idle_timeout_seconds: within("revision-idle-timeout-seconds", 0)?,
            requests: quantities(&read, "request")?,
            limits: quantities(&read, "limit")?,
            container_name: name(&read, "container-name-template", "user-container")?,
            init_container_name: name(&read, "init-container-name-template", "init-container")?,
            container_concurrency,
            container_concurrency_max,
            allow_container_concurrency_zero: read.truth("allow-container-concurrency-zero", true)?,
            enable_service_links: read.value(
                "enable-service-links",
                Some(false),
                "true, false or default",
                |text| match text.to_ascii_lowercase().as_str() {
                    "true" => Some(Some(true)),
                    "false" => Some(Some(false)),
                    "default" => Some(None),
                    _ => None,
                },
            )?,
        })
    }
}

fn quantities(read: &Reader<'_>, kind: &str) -> Result<BTreeMap<&'static str, String>, SettingError> {
    let mut all = BTreeMap::new();
    for resource in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(quantity) = read.quantity(&format!("revision-{resource}-{kind}"))? {
            all.insert(resource, quantity);
        }
    }
    Ok(all)
}

fn name(read: &Reader<'_>, key: &str, default: &str) -> Result<Template, SettingError> {
    let parse = |text: &str| Template::parse(text, &["Name", "Namespace", "GenerateName"], &["Labels", "Annotations"]);
    let default = parse(default).expect("a plain text is a template");
    let wanted = "a name, in which {{.Name}}, {{.Namespace}}, {{.GenerateName}}, {{.Labels.KEY}} or \
        {{.Annotations.KEY}} may stand";
    read.value(key, default, wanted, parse)
}
