//! `config-observability`: logs, metrics and traces.
//!
//! Source: `knative/serving/pkg/observability/config.go`.

use std::collections::BTreeMap;

use super::reader::{Key, Reader, SettingError};

/// Name of the ConfigMap.
pub const NAME: &str = "config-observability";

/// Keys, in the order of the documentation.
pub const KEYS: &[Key] = &[
    in_force(
        "logging.revision-url-template",
        "",
        "where a Revision's logs can be read, for its status; ${REVISION_UID} stands for its uid",
    ),
    in_force("logging.enable-request-log", "false", "a line of JSON for each request on the gateway's standard output"),
    in_force(
        "logging.request-log-sampling-rate",
        "1",
        "share of requests that have a line, from 0 to 1; Colibri's own",
    ),
    key("logging.enable-probe-request-log", "false", "a line for each probe"),
    key("logging.request-log-template", "", "the lines have fixed fields: docs/gateway.md lists them"),
    key("logging.enable-var-log-collection", "false", "of log collectors on the node"),
    key("metrics-protocol", "none", "metrics are always at /metrics"),
    key("metrics-endpoint", "", "where metrics are sent to"),
    key("metrics-export-interval", "", "how often they are sent"),
    key("request-metrics-protocol", "none", "as metrics-protocol, for metrics of requests"),
    key("request-metrics-endpoint", "", "where those are sent to"),
    key("request-metrics-export-interval", "", "how often they are sent"),
    in_force("tracing-protocol", "none", "how traces of requests are sent: none, http/protobuf or grpc (OTLP)"),
    in_force("tracing-endpoint", "", "URL of the collector; without a path /v1/traces is meant"),
    in_force(
        "tracing-sampling-rate",
        "0",
        "share of requests that are traced where the client has not decided, from 0 to 1",
    ),
    key("runtime-profiling", "disabled", "profiles of the platform's own processes"),
    key("runtime-export-interval", "", "how often measurements of those processes are sent"),
];

const fn key(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: false }
}

const fn in_force(name: &'static str, default: &'static str, about: &'static str) -> Key {
    Key { name, default, about, in_force: true }
}

/// The values of `config-observability`.
#[derive(Clone, Debug, PartialEq)]
pub struct Observability {
    /// `logging.revision-url-template`; empty is none. Default none.
    pub log_url_template: String,
    /// `logging.enable-request-log`. Default false.
    pub request_log: bool,
    /// `logging.request-log-sampling-rate`, from 0 to 1. Default 1.
    pub request_log_share: f64,
    /// `tracing-protocol`, `tracing-endpoint` and `tracing-sampling-rate`. Default none.
    pub traces: Option<Traces>,
}

/// Where traces are sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// How they are sent.
    pub protocol: TraceProtocol,
    /// URL of the collector.
    pub endpoint: String,
    /// Share of the traces that begin here, from 0 to 1.
    pub share: f64,
}

/// How traces are sent; both ways are OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceProtocol {
    /// `http/protobuf`.
    Http,
    /// `grpc`.
    Grpc,
}

impl Default for Observability {
    fn default() -> Self {
        Self::parse(&BTreeMap::new()).expect("the defaults are valid")
    }
}

impl Observability {
    /// Reads the ConfigMap's data; absent keys have their defaults.
    ///
    /// # Errors
    ///
    /// The first value that cannot be used.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, SettingError> {
        let read = Reader { map: NAME, data };
        for name in ["enable-probe-request-log", "enable-var-log-collection"] {
            read.truth(&format!("logging.{name}"), false)?;
        }
        let protocols = ["none", "prometheus", "http/protobuf", "grpc"];
        for key in ["metrics-protocol", "request-metrics-protocol"] {
            read.value(key, (), "none, prometheus, http/protobuf or grpc", |text| {
                protocols.contains(&text).then_some(())
            })?;
        }
        let share =
            |key: &str, default: f64| read.number(key, default, |share| (0.0..=1.0).contains(&share), "from 0 to 1");
        Ok(Self {
            log_url_template: data.get("logging.revision-url-template").cloned().unwrap_or_default(),
            request_log: read.truth("logging.enable-request-log", false)?,
            request_log_share: share("logging.request-log-sampling-rate", 1.0)?,
            traces: traces(&read, share("tracing-sampling-rate", 0.0)?)?,
        })
    }

    /// Where the logs of a Revision can be read.
    pub fn log_url(&self, uid: &str) -> Option<String> {
        let template = self.log_url_template.trim();
        (!template.is_empty()).then(|| template.replace("${REVISION_UID}", uid))
    }
}

/// Source: `knative/pkg/observability/tracing/config.go`; `stdout`, which it knows for debugging, is not there.
fn traces(read: &Reader<'_>, share: f64) -> Result<Option<Traces>, SettingError> {
    let protocol = read.value("tracing-protocol", None, "none, http/protobuf or grpc", |text| match text {
        "none" => Some(None),
        "http/protobuf" => Some(Some(TraceProtocol::Http)),
        "grpc" => Some(Some(TraceProtocol::Grpc)),
        _ => None,
    })?;
    let key = "tracing-endpoint";
    let endpoint = read.data.get(key).map_or("", |text| text.trim());
    match protocol {
        None if endpoint.is_empty() => Ok(None),
        None => {
            Err(read.error(key, endpoint, "used while tracing-protocol is none: set that to http/protobuf or grpc"))
        }
        Some(_) if !is_url(endpoint) => {
            let wanted = "the URL of a collector, such as http://collector.example.com:4318/v1/traces";
            Err(read.error(key, endpoint, wanted))
        }
        Some(protocol) => Ok(Some(Traces { protocol, endpoint: endpoint.to_owned(), share })),
    }
}

/// Whether it is `http://` or `https://`, a host, perhaps a port, and a path.
fn is_url(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://").or(text.strip_prefix("https://")) else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':').filter(|_| !authority.ends_with(']')) {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    !host.is_empty()
        && host.bytes().all(plain)
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
        && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &[(&str, &str)]) -> Result<Observability, SettingError> {
        Observability::parse(&data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        for Key { name, default, .. } in KEYS.iter().filter(|key| key.in_force) {
            assert_eq!(parse(&[(name, default)]).unwrap(), Observability::default(), "{name}");
        }
    }

    #[test]
    fn the_request_log_is_on_for_all_or_a_share() {
        let of = |data: &[(&str, &str)]| parse(data).map(|read| (read.request_log, read.request_log_share)).unwrap();
        assert_eq!(of(&[]), (false, 1.0));
        let on = ("logging.enable-request-log", "true");
        assert_eq!(of(&[on]), (true, 1.0));
        assert_eq!(of(&[on, ("logging.request-log-sampling-rate", "0.25")]), (true, 0.25));
        assert!(parse(&[("logging.request-log-sampling-rate", "2")]).is_err());
    }

    #[test]
    fn traces_need_a_protocol_and_the_url_of_a_collector() {
        let of = |protocol: &str, endpoint: &str| {
            let data =
                [("tracing-protocol", protocol), ("tracing-endpoint", endpoint), ("tracing-sampling-rate", "0.1")];
            parse(&data).map(|read| read.traces).map_err(|error| error.to_string())
        };
        let traces =
            |protocol, endpoint: &str| Ok(Some(Traces { protocol, endpoint: endpoint.to_owned(), share: 0.1 }));
        for url in ["http://c:4318/v1/traces", "https://c.example.com", "http://[::1]:4317", "http://[::1]/x?y"] {
            assert_eq!(of("http/protobuf", url), traces(TraceProtocol::Http, url), "{url}");
            assert_eq!(of("grpc", url), traces(TraceProtocol::Grpc, url), "{url}");
        }
        for bad in
            ["", "c:4317", "ftp://c", "http://", "http://:80", "http://c:0", "http://c:x", "http://c/a b", "http://u@c"]
        {
            assert!(of("grpc", bad).is_err(), "{bad}");
        }
        assert_eq!(of("none", ""), Ok(None));
        let error = of("none", "http://c").unwrap_err();
        let want = "config-observability: tracing-endpoint = \"http://c\" is not used while tracing-protocol is none: \
            set that to http/protobuf or grpc";
        assert_eq!(error, want);
        assert!(of("stdout", "").unwrap_err().ends_with("is not none, http/protobuf or grpc"));
        assert!(of("prometheus", "").is_err());
    }
}
