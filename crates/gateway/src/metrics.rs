//! Metrics of the gateway, in Prometheus' text form (OpenMetrics).
//!
//! Names that start with `kn_` are Knative's, so that its dashboards find them; the others start with `gateway_`. Labels
//! come from the Revisions and Routes that exist and from fixed sets, never from a client: how many series there can be
//! is known ([`SERIES_OF_REVISION`], [`SERIES_OF_ROUTE`]), and those of a Revision or Route go with it. Whoever still has
//! a request of one that is gone counts into numbers that nobody sees.
//!
//! No lock is taken to count.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{RevisionId, RouteId};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::cause::Cause;
use crate::settings::Settings;
use crate::timing::ColdStart;

/// Upper bounds in seconds, from a cached answer to the longest timeout.
const BOUNDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const STAGES: [&str; 3] = ["schedule", "start", "probe"];
/// Lines of one histogram.
const SERIES_OF_HISTOGRAM: usize = BOUNDS.len() + 3;
/// Most lines that one Revision has.
pub const SERIES_OF_REVISION: usize =
    CLASSES.len() * Via::ALL.len() + Cause::ALL.len() + 7 + (3 + STAGES.len()) * SERIES_OF_HISTOGRAM;
/// Most lines that one Route has.
pub const SERIES_OF_ROUTE: usize = CLASSES.len() + SERIES_OF_HISTOGRAM;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC, over any version.
    Grpc,
    /// A WebSocket or another protocol that HTTP was left for.
    Upgrade,
}

impl Via {
    const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::Grpc, Self::Upgrade];

    fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Upgrade => "upgrade",
        }
    }
}

/// A histogram of durations.
#[derive(Default)]
struct Durations {
    /// How many lie in each bucket; the last one has no upper bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Durations {
    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn encode(&self, mut into: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let seconds = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        into.encode_histogram::<NoLabelSet>(seconds, count, &buckets, None)
    }
}

/// What all series of a Revision are labelled with.
#[derive(Debug, PartialEq, Eq)]
struct RevisionLabels([(&'static str, String); 4]);

impl RevisionLabels {
    fn new(id: &RevisionId, settings: &Settings) -> Self {
        Self([
            ("k8s_namespace_name", id.namespace.to_string()),
            ("kn_service_name", settings.service.to_string()),
            ("kn_configuration_name", settings.configuration.to_string()),
            ("kn_revision_name", id.name.to_string()),
        ])
    }
}

/// The numbers of one Revision.
pub struct RevisionMetrics {
    labels: RevisionLabels,
    duration: Durations,
    requests: [[AtomicU64; CLASSES.len()]; Via::ALL.len()],
    errors: [AtomicU64; Cause::ALL.len()],
    queued: AtomicU64,
    active: AtomicU64,
    /// As bits.
    concurrency: AtomicU64,
    waited: Durations,
    cold_waited: Durations,
    cold_starts: AtomicU64,
    stages: [Durations; STAGES.len()],
    rejected: AtomicU64,
    ejections: AtomicU64,
    ejected: AtomicU64,
}

impl RevisionMetrics {
    fn new(labels: RevisionLabels) -> Self {
        Self {
            labels,
            duration: Durations::default(),
            requests: Default::default(),
            errors: Default::default(),
            queued: AtomicU64::default(),
            active: AtomicU64::default(),
            concurrency: AtomicU64::default(),
            waited: Durations::default(),
            cold_waited: Durations::default(),
            cold_starts: AtomicU64::default(),
            stages: Default::default(),
            rejected: AtomicU64::default(),
            ejections: AtomicU64::default(),
            ejected: AtomicU64::default(),
        }
    }

    /// An instance was taken out of rotation because its requests failed.
    pub fn ejected(&self) {
        self.ejections.fetch_add(1, Ordering::Relaxed);
    }

    /// So many instances are.
    pub fn set_ejected(&self, count: usize) {
        self.ejected.store(count as u64, Ordering::Relaxed);
    }

    /// One request has ended.
    pub fn ended(&self, via: Via, status: u16, duration: Duration) {
        self.duration.observe(duration);
        self.requests[via as usize][class(status)].fetch_add(1, Ordering::Relaxed);
    }

    /// Something went wrong with a request, or with one try of it.
    pub fn error(&self, cause: Cause) {
        self.errors[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// One request was refused because too many wait.
    pub fn reject(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// One request got its slot after it had waited.
    pub fn waited(&self, waited: Duration) {
        self.waited.observe(waited);
    }

    /// One request got its slot on an instance that was started while it waited.
    pub fn waited_cold(&self, waited: Duration) {
        self.cold_waited.observe(waited);
    }

    /// An instance that requests waited for has started.
    pub fn started_cold(&self, cold: &ColdStart) {
        self.cold_starts.fetch_add(1, Ordering::Relaxed);
        let stages = [cold.schedule, cold.start, cold.probe];
        self.stages.iter().zip(stages).for_each(|(stage, took)| stage.observe(took));
    }

    /// What the last second was like: requests that wait now, those that instances have, and how many there were on
    /// average.
    pub fn load(&self, queued: usize, active: usize, concurrency: f64) {
        self.queued.store(queued as u64, Ordering::Relaxed);
        self.active.store(active as u64, Ordering::Relaxed);
        self.concurrency.store(concurrency.to_bits(), Ordering::Relaxed);
    }
}

/// The numbers of one Route.
pub struct RouteMetrics {
    /// The Route.
    pub id: RouteId,
    labels: [(&'static str, String); 2],
    duration: Durations,
    requests: [AtomicU64; CLASSES.len()],
}

impl RouteMetrics {
    fn new(id: &RouteId) -> Self {
        let labels = [("k8s_namespace_name", id.namespace.to_string()), ("kn_route_name", id.name.to_string())];
        Self { id: id.clone(), labels, duration: Durations::default(), requests: Default::default() }
    }

    /// One request has ended.
    pub fn ended(&self, status: u16, duration: Duration) {
        self.duration.observe(duration);
        self.requests[class(status)].fetch_add(1, Ordering::Relaxed);
    }
}

fn class(status: u16) -> usize {
    usize::from(status / 100).clamp(1, CLASSES.len()) - 1
}

/// Labels of a count of requests that were refused before they were read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    response_code: u16,
}

/// Those that exist.
#[derive(Default)]
struct Known {
    revisions: Mutex<BTreeMap<RevisionId, Arc<RevisionMetrics>>>,
    routes: Mutex<BTreeMap<RouteId, Arc<RouteMetrics>>>,
}

/// All metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    known: Arc<Known>,
    refused: Family<RefusedLabels, Counter>,
    /// Client connections that are open.
    pub connections: Gauge,
    /// Client connections that were opened.
    pub connections_opened: Counter,
    /// Connections to instances.
    pub upstream: UpstreamConnections,
    /// Requests for a host that no Route claims.
    pub unrouted: Counter,
    /// Lines that the access log did not take.
    pub lines_dropped: Counter,
    /// Spans that a collector has taken.
    pub spans_exported: Counter,
    /// Spans that no collector got.
    pub spans_dropped: Counter,
}

/// Connections to instances, probes apart.
#[derive(Clone, Debug, Default)]
pub struct UpstreamConnections {
    open: Gauge,
    opened: Counter,
}

impl UpstreamConnections {
    /// Counts one, until dropped.
    pub fn count(&self) -> UpstreamConnection {
        self.open.inc();
        self.opened.inc();
        UpstreamConnection(self.open.clone())
    }
}

/// One connection to an instance, counted until dropped.
#[derive(Debug)]
pub struct UpstreamConnection(Gauge);

impl Drop for UpstreamConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics with no Revision in them.
    pub fn new() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            known: Arc::default(),
            refused: Family::default(),
            connections: Gauge::default(),
            connections_opened: Counter::default(),
            upstream: UpstreamConnections::default(),
            unrouted: Counter::default(),
            lines_dropped: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
        };
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register_collector(Box::new(self.known.clone()));
        r.register("gateway_connections", "Client connections that are open", self.connections.clone());
        let opened = "Client connections that were opened";
        r.register("gateway_connections_opened", opened, self.connections_opened.clone());
        let open = "Connections to instances that are open, idle ones included";
        r.register("gateway_upstream_connections", open, self.upstream.open.clone());
        let opened = "Connections to instances that were opened";
        r.register("gateway_upstream_connections_opened", opened, self.upstream.opened.clone());
        r.register("gateway_unrouted", "Requests for a host that no Route claims", self.unrouted.clone());
        r.register("gateway_refused", "Requests that were malformed, too large or too slow", self.refused.clone());
        let dropped = "Lines of the access log that nobody took in time";
        r.register("gateway_access_log_dropped", dropped, self.lines_dropped.clone());
        r.register("gateway_spans_exported", "Spans that a collector has taken", self.spans_exported.clone());
        r.register("gateway_spans_dropped", "Spans that no collector took in time", self.spans_dropped.clone());
        self
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

    /// The numbers of one Revision; they go on where its labels stay.
    pub fn of(&self, id: &RevisionId, settings: &Settings) -> Arc<RevisionMetrics> {
        let labels = RevisionLabels::new(id, settings);
        let mut revisions = self.known.revisions.lock();
        match revisions.get(id).filter(|known| known.labels == labels) {
            Some(known) => known.clone(),
            None => {
                let metrics = Arc::new(RevisionMetrics::new(labels));
                revisions.insert(id.clone(), metrics.clone());
                metrics
            }
        }
    }

    /// Drops the series of a Revision that is gone.
    pub fn forget(&self, id: &RevisionId) {
        self.known.revisions.lock().remove(id);
    }

    /// The numbers of one Route.
    pub fn of_route(&self, id: &RouteId) -> Arc<RouteMetrics> {
        let mut routes = self.known.routes.lock();
        routes.entry(id.clone()).or_insert_with(|| Arc::new(RouteMetrics::new(id))).clone()
    }

    /// Drops the series of a Route that is gone.
    pub fn forget_route(&self, id: &RouteId) {
        self.known.routes.lock().remove(id);
    }
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Known").finish_non_exhaustive()
    }
}

impl Collector for Known {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let revisions: Vec<Arc<RevisionMetrics>> = self.revisions.lock().values().cloned().collect();
        let routes: Vec<Arc<RouteMetrics>> = self.routes.lock().values().cloned().collect();
        encode_revisions(&mut encoder, &revisions)?;
        encode_routes(&mut encoder, &routes)
    }
}

/// The labels, and one more.
fn with<'l>(
    labels: &'l [(&'static str, String)],
    more: impl IntoIterator<Item = (&'static str, &'l str)>,
) -> Vec<(&'static str, &'l str)> {
    labels.iter().map(|(name, value)| (*name, value.as_str())).chain(more).collect()
}

fn encode_revisions(encoder: &mut DescriptorEncoder<'_>, revisions: &[Arc<RevisionMetrics>]) -> fmt::Result {
    type Of = fn(&RevisionMetrics) -> &Durations;
    type Number = fn(&RevisionMetrics) -> f64;
    type Count = fn(&RevisionMetrics) -> &AtomicU64;
    let gauges: [(&str, &str, Number); 4] = [
        ("gateway_ejected_instances", "Instances that are out of rotation because their requests failed.", |of| {
            of.ejected.load(Ordering::Relaxed) as f64
        }),
        ("kn_revision_request_queued", "Requests that wait for an instance.", |of| {
            of.queued.load(Ordering::Relaxed) as f64
        }),
        ("kn_revision_request_active", "Requests that an instance has.", |of| of.active.load(Ordering::Relaxed) as f64),
        ("kn_revision_request_concurrency", "Requests at once over the last second, waiting ones included.", |of| {
            f64::from_bits(of.concurrency.load(Ordering::Relaxed))
        }),
    ];
    for (name, help, of) in gauges {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for revision in revisions {
            family.encode_family(&with(&revision.labels.0, []))?.encode_gauge(&of(revision))?;
        }
    }
    let histograms: [(&str, &str, Of); 3] = [
        ("kn_serving_invocation_duration", "Time from a request's arrival to the end of its response.", |of| {
            &of.duration
        }),
        ("gateway_queue_duration", "Time that requests waited which got their slot later.", |of| &of.waited),
        (
            "gateway_cold_start_duration",
            "Time from a request's arrival to its slot on an instance that was started meanwhile.",
            |of| &of.cold_waited,
        ),
    ];
    for (name, help, of) in histograms {
        let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for revision in revisions {
            of(revision).encode(family.encode_family(&with(&revision.labels.0, []))?)?;
        }
    }
    let help = "What the starts of instances took that requests waited for, by stage.";
    let name = "gateway_cold_start_stage_duration";
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for revision in revisions.iter().filter(|revision| revision.cold_starts.load(Ordering::Relaxed) > 0) {
        for (name, stage) in STAGES.into_iter().zip(&revision.stages) {
            stage.encode(family.encode_family(&with(&revision.labels.0, [("stage", name)]))?)?;
        }
    }
    let counters: [(&str, &str, Count); 3] = [
        ("gateway_cold_starts", "Instances that were started while requests waited.", |of| &of.cold_starts),
        ("gateway_rejected", "Requests refused because too many waited.", |of| &of.rejected),
        ("gateway_ejections", "Times that an instance was out of rotation because its requests failed.", |of| {
            &of.ejections
        }),
    ];
    for (name, help, of) in counters {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for revision in revisions {
            count(family.encode_family(&with(&revision.labels.0, []))?, of(revision))?;
        }
    }
    let help = "Requests that ended, by class of their status and what the client speaks.";
    let mut family = encoder.encode_descriptor("gateway_requests", help, None, MetricType::Counter)?;
    for revision in revisions {
        for (via, classes) in Via::ALL.into_iter().zip(&revision.requests) {
            for (class, requests) in CLASSES.into_iter().zip(classes).filter(|(_, requests)| is_used(requests)) {
                let more = [("response_code_class", class), ("protocol", via.name())];
                count(family.encode_family(&with(&revision.labels.0, more))?, requests)?;
            }
        }
    }
    let help = "What went wrong with requests, by cause; each try of a request counts.";
    let mut family = encoder.encode_descriptor("gateway_errors", help, None, MetricType::Counter)?;
    for revision in revisions {
        for (cause, errors) in Cause::ALL.into_iter().zip(&revision.errors).filter(|(_, errors)| is_used(errors)) {
            count(family.encode_family(&with(&revision.labels.0, [("cause", cause.name())]))?, errors)?;
        }
    }
    Ok(())
}

fn encode_routes(encoder: &mut DescriptorEncoder<'_>, routes: &[Arc<RouteMetrics>]) -> fmt::Result {
    let help = "Requests of a Route that ended, by class of their status.";
    let mut family = encoder.encode_descriptor("gateway_route_requests", help, None, MetricType::Counter)?;
    for route in routes {
        for (class, requests) in CLASSES.into_iter().zip(&route.requests).filter(|(_, requests)| is_used(requests)) {
            count(family.encode_family(&with(&route.labels, [("response_code_class", class)]))?, requests)?;
        }
    }
    let help = "Time from the arrival of a Route's request to the end of its response.";
    let name = "gateway_route_request_duration";
    let mut family = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
    for route in routes {
        route.duration.encode(family.encode_family(&with(&route.labels, []))?)?;
    }
    Ok(())
}

/// Whether it has ever counted: of the many that a Revision can have most never do.
fn is_used(counter: &AtomicU64) -> bool {
    counter.load(Ordering::Relaxed) > 0
}

fn count(mut into: MetricEncoder<'_>, counter: &AtomicU64) -> fmt::Result {
    into.encode_counter::<NoLabelSet, u64, u64>(&counter.load(Ordering::Relaxed), None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings() -> Settings {
        let revision = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "hello-00001"}, "spec": {}});
        Settings::of(&serde_json::from_value(revision).unwrap())
    }

    /// Lines that are no comment.
    fn series(text: &str) -> usize {
        text.lines().filter(|line| !line.starts_with('#')).count()
    }

    #[test]
    fn series_appear_under_knatives_names_and_go_with_the_revision() {
        let metrics = Metrics::new();
        let id = RevisionId::new("default", "hello-00001");
        let of = metrics.of(&id, &settings());
        of.ended(Via::Http2, 204, Duration::from_millis(3));
        of.waited_cold(Duration::from_millis(30));
        of.load(1, 2, 2.5);
        let text = metrics.text();
        let labels = "{k8s_namespace_name=\"default\",kn_service_name=\"\",kn_configuration_name=\"\",\
            kn_revision_name=\"hello-00001\"";
        for line in [
            format!("kn_serving_invocation_duration_seconds_sum{labels}}} 0.003"),
            format!("kn_serving_invocation_duration_seconds_bucket{{le=\"0.0025\",{}}} 0", &labels[1..]),
            format!("kn_serving_invocation_duration_seconds_bucket{{le=\"0.005\",{}}} 1", &labels[1..]),
            format!("kn_serving_invocation_duration_seconds_bucket{{le=\"+Inf\",{}}} 1", &labels[1..]),
            format!("gateway_requests_total{labels},response_code_class=\"2xx\",protocol=\"http2\"}} 1"),
            format!("kn_revision_request_concurrency{labels}}} 2.5"),
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        metrics.forget(&id);
        // A request that ends late brings nothing back.
        of.ended(Via::Http1, 200, Duration::ZERO);
        of.error(Cause::Reset);
        assert!(!metrics.text().contains("hello-00001"));
    }

    #[test]
    fn numbers_go_on_while_the_labels_stay() {
        let metrics = Metrics::new();
        let id = RevisionId::new("default", "hello-00001");
        metrics.of(&id, &settings()).reject();
        assert!(Arc::ptr_eq(&metrics.of(&id, &settings()), &metrics.of(&id, &settings())));
        let other = Settings { service: "s".into(), ..settings() };
        metrics.of(&id, &other);
        let text = metrics.text();
        assert!(text.contains("kn_service_name=\"s\"") && !text.contains("kn_service_name=\"\""), "{text}");
    }

    #[test]
    fn what_one_revision_and_one_route_may_have_is_all_that_they_have() {
        let metrics = Metrics::new();
        let before = series(&metrics.text());
        let of = metrics.of(&RevisionId::new("ns", "r"), &settings());
        for status in 0..1000 {
            Via::ALL.into_iter().for_each(|via| of.ended(via, status, Duration::from_millis(status.into())));
        }
        Cause::ALL.into_iter().for_each(|cause| of.error(cause));
        of.waited(Duration::ZERO);
        of.started_cold(&ColdStart { schedule: Duration::ZERO, start: Duration::ZERO, probe: Duration::MAX });
        let with_revision = series(&metrics.text());
        assert_eq!(with_revision - before, SERIES_OF_REVISION);
        let route = metrics.of_route(&RouteId::new("ns", "r"));
        (0..1000).for_each(|status| route.ended(status, Duration::from_secs(1000)));
        assert_eq!(series(&metrics.text()) - with_revision, SERIES_OF_ROUTE);
        metrics.forget(&RevisionId::new("ns", "r"));
        metrics.forget_route(&RouteId::new("ns", "r"));
        assert_eq!(series(&metrics.text()), before);
    }
}
