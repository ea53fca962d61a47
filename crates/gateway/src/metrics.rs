//! Metrics of the gateway, in Prometheus' text form.
//!
//! Labels come from the Revisions that exist and from fixed sets; a Revision's series go when it does. Names that
//! start with `kn_` are Knative's, so that its dashboards find them.

use std::sync::Arc;
use std::time::Duration;

use base::RevisionId;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::settings::Settings;

/// Upper bounds in seconds, from a cached answer to the longest timeout.
const DURATION_BUCKETS: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];

/// Labels of everything that belongs to one Revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RevisionLabels {
    k8s_namespace_name: String,
    kn_service_name: String,
    kn_configuration_name: String,
    kn_revision_name: String,
}

impl RevisionLabels {
    fn new(id: &RevisionId, settings: &Settings) -> Self {
        Self {
            k8s_namespace_name: id.namespace.to_string(),
            kn_service_name: settings.service.to_string(),
            kn_configuration_name: settings.configuration.to_string(),
            kn_revision_name: id.name.to_string(),
        }
    }
}

/// Labels of a count of responses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    k8s_namespace_name: String,
    kn_service_name: String,
    kn_configuration_name: String,
    kn_revision_name: String,
    response_code_class: &'static str,
}

/// Labels of a count of requests that were refused before they were read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    response_code: u16,
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// All metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    duration: Family<RevisionLabels, Histogram, fn() -> Histogram>,
    responses: Family<ResponseLabels, Counter>,
    queued: Family<RevisionLabels, Gauge>,
    active: Family<RevisionLabels, Gauge>,
    cold_start: Family<RevisionLabels, Histogram, fn() -> Histogram>,
    rejected: Family<RevisionLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Requests for a host that no Route claims.
    pub unrouted: Counter,
}

fn histogram() -> Histogram {
    Histogram::new(DURATION_BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics with no Revision in them.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let duration = Family::new_with_constructor(histogram as fn() -> Histogram);
        let cold_start = Family::new_with_constructor(histogram as fn() -> Histogram);
        let (responses, rejected, refused) = (Family::default(), Family::default(), Family::default());
        let (queued, active) = (Family::default(), Family::default());
        let (connections, unrouted) = (Gauge::default(), Counter::default());
        let r = &mut registry;
        let invocation = "Time from a request's arrival to the end of its response";
        r.register_with_unit("kn_serving_invocation_duration", invocation, Unit::Seconds, duration.clone());
        r.register("kn_revision_request_queued", "Requests that wait for an instance", queued.clone());
        r.register("kn_revision_request_active", "Requests that an instance has", active.clone());
        r.register("gateway_responses", "Responses by class of their status", responses.clone());
        let cold = "Time from a request's arrival to its slot on an instance that was started meanwhile";
        r.register_with_unit("gateway_cold_start_duration", cold, Unit::Seconds, cold_start.clone());
        r.register("gateway_rejected", "Requests refused because too many waited", rejected.clone());
        r.register("gateway_connections", "Client connections that are open", connections.clone());
        r.register("gateway_unrouted", "Requests for a host that no Route claims", unrouted.clone());
        r.register("gateway_refused", "Requests that were malformed, too large or too slow", refused.clone());
        Self { registry, duration, responses, queued, active, cold_start, rejected, refused, connections, unrouted }
    }

    /// The exposition text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// A request was refused with that status before it was read.
    pub fn refused(&self, status: http::StatusCode) {
        self.refused.get_or_create(&RefusedLabels { response_code: status.as_u16() }).inc();
    }

    /// The series of one Revision.
    pub fn of(&self, id: &RevisionId, settings: &Settings) -> Arc<RevisionMetrics> {
        let labels = RevisionLabels::new(id, settings);
        let responses = CLASSES.map(|class| self.responses.get_or_create_owned(&with_class(&labels, class)));
        Arc::new(RevisionMetrics {
            duration: self.duration.get_or_create_owned(&labels),
            queued: self.queued.get_or_create_owned(&labels),
            active: self.active.get_or_create_owned(&labels),
            cold_start: self.cold_start.get_or_create_owned(&labels),
            rejected: self.rejected.get_or_create_owned(&labels),
            responses,
            labels,
        })
    }

    /// Drops the series of a Revision that is gone.
    pub fn forget(&self, metrics: &RevisionMetrics) {
        let labels = &metrics.labels;
        self.duration.remove(labels);
        self.queued.remove(labels);
        self.active.remove(labels);
        self.cold_start.remove(labels);
        self.rejected.remove(labels);
        for class in CLASSES {
            self.responses.remove(&with_class(labels, class));
        }
    }
}

fn with_class(labels: &RevisionLabels, class: &'static str) -> ResponseLabels {
    let RevisionLabels { k8s_namespace_name, kn_service_name, kn_configuration_name, kn_revision_name } =
        labels.clone();
    ResponseLabels {
        k8s_namespace_name,
        kn_service_name,
        kn_configuration_name,
        kn_revision_name,
        response_code_class: class,
    }
}

/// The series of one Revision, looked up once.
pub struct RevisionMetrics {
    labels: RevisionLabels,
    duration: Histogram,
    responses: [Counter; 5],
    /// Requests that wait.
    pub queued: Gauge,
    /// Requests that an instance has.
    pub active: Gauge,
    cold_start: Histogram,
    /// Requests refused.
    pub rejected: Counter,
}

impl RevisionMetrics {
    /// One response has ended.
    pub fn ended(&self, status: u16, duration: Duration) {
        self.duration.observe(duration.as_secs_f64());
        let class = usize::from(status / 100).clamp(1, 5) - 1;
        self.responses[class].inc();
    }

    /// One request got its slot on an instance that was started while it waited.
    pub fn started_cold(&self, waited: Duration) {
        self.cold_start.observe(waited.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn series_appear_under_knative_names_and_go_with_the_revision() {
        let revision = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "hello-00001"}, "spec": {}});
        let settings = Settings::of(&serde_json::from_value(revision).unwrap());
        let metrics = Metrics::new();
        let of = metrics.of(&RevisionId::new("default", "hello-00001"), &settings);
        of.ended(204, Duration::from_millis(3));
        of.started_cold(Duration::from_millis(30));
        let text = metrics.text();
        assert!(text.contains("kn_serving_invocation_duration_seconds_count{k8s_namespace_name=\"default\""), "{text}");
        assert!(text.contains("response_code_class=\"2xx\"} 1"), "{text}");
        metrics.forget(&of);
        assert!(!metrics.text().contains("hello-00001"));
    }
}
