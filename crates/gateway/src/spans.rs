//! The spans of one request, as a collector takes them: `opentelemetry.proto.trace.v1`, in protobuf's encoding. Pure.
//!
//! | Span | Of | From | To |
//! |---|---|---|---|
//! | the method | | arrival | end of the response |
//! | `route` | the method | arrival | its revision is known |
//! | `queue` | the method | its revision is known | its slot, where it waited for one |
//! | `start` | `queue` | arrival | its instance is ready, where that was started meanwhile |
//! | `start: schedule`, `start: container`, `start: probe` | `start` | | as in `Server-Timing` |
//! | `connect` | the method | each try to connect | |
//! | `first byte` | the method | handed to a connection | the response's head |
//!
//! Sources: `opentelemetry-proto`, `trace/v1/trace.proto`; OpenTelemetry's semantic conventions for HTTP servers.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Method, Version};
use tokio::time::Instant;

use crate::access_log::PATH_LIMIT_BYTES;
use crate::metrics::Via;
use crate::random::Random;
use crate::record::Ended;

/// `ExportTraceServiceRequest.resource_spans`.
const RESOURCE_SPANS: u32 = 1;
/// `ScopeSpans.spans`.
const SPANS: u32 = 2;
const INTERNAL: u64 = 1;
const SERVER: u64 = 2;
const ERROR: u64 = 2;
/// Bits of `Span.flags`: it is known whether the parent is another process's, and it is.
const PARENT_IS_REMOTE: u32 = 0x300;
const PARENT_IS_LOCAL: u32 = 0x100;

/// Writes the spans of a request that ended at `wall`; how many they are.
pub fn write(into: &mut Vec<u8>, request: &Ended<'_>, wall: SystemTime) -> u64 {
    let mut writer = Writer { into, request, wall, ids: Random::new(request.detail.trace.span), count: 0 };
    let (detail, root) = (request.detail, request.detail.trace.span);
    writer.server();
    if let Some(routed) = detail.routed {
        writer.child(root, "route", request.arrived, routed, None);
        if let Some(granted) = detail.granted {
            let queue = writer.child(root, "queue", routed, granted, None);
            if let Some(cold) = &detail.cold {
                let stages = [cold.schedule, cold.start, cold.probe];
                let all = stages.into_iter().sum();
                let start = writer.child(queue, "start", request.arrived, request.arrived + all, None);
                let mut from = request.arrived;
                for (name, took) in ["start: schedule", "start: container", "start: probe"].into_iter().zip(stages) {
                    writer.child(start, name, from, from + took, None);
                    from += took;
                }
            }
        }
    }
    for tried in &detail.tries {
        writer.child(root, "connect", tried.began, tried.ended, tried.cause.map(|cause| cause.name()));
    }
    if let Some((sent, answered)) = detail.exchange {
        let error = if answered.is_none() { request.cause.map(|cause| cause.name()) } else { None };
        writer.child(root, "first byte", sent, answered.unwrap_or(request.ended), error);
    }
    writer.count
}

/// Makes the message that is sent of the spans that [`write()`] wrote.
pub fn envelope(spans: &[u8]) -> Vec<u8> {
    let mut into = Vec::with_capacity(spans.len() + 256);
    message(&mut into, RESOURCE_SPANS, |resource_spans| {
        message(resource_spans, 1, |resource| {
            attribute(resource, 1, "service.name", Value::Text("colibri-gateway"));
            attribute(resource, 1, "service.version", Value::Text(env!("CARGO_PKG_VERSION")));
        });
        message(resource_spans, 2, |scope_spans| {
            message(scope_spans, 1, |scope| bytes(scope, 1, b"colibri.gateway"));
            scope_spans.extend_from_slice(spans);
        });
    });
    into
}

struct Writer<'w> {
    into: &'w mut Vec<u8>,
    request: &'w Ended<'w>,
    wall: SystemTime,
    ids: Random,
    count: u64,
}

impl Writer<'_> {
    fn nanoseconds(&self, at: Instant) -> u64 {
        let wall = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = wall.saturating_sub(self.request.ended.saturating_duration_since(at));
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    fn server(&mut self) {
        let (request, detail) = (self.request, self.request.detail);
        let trace = detail.trace;
        let times = [request.arrived, request.ended].map(|at| self.nanoseconds(at));
        self.count += 1;
        message(self.into, SPANS, |span| {
            bytes(span, 1, &trace.id.to_be_bytes());
            bytes(span, 2, &trace.span.to_be_bytes());
            if let Some(state) = &detail.state {
                bytes(span, 3, text(state).as_bytes());
            }
            if trace.parent != 0 {
                bytes(span, 4, &trace.parent.to_be_bytes());
            }
            let method = detail.asked.as_ref().map_or("HTTP", |asked| method(&asked.method));
            bytes(span, 5, method.as_bytes());
            integer(span, 6, SERVER);
            fixed(span, 7, times[0]);
            fixed(span, 8, times[1]);
            attributes(span, request);
            if request.status >= 500 {
                message(span, 15, |status| integer(status, 3, ERROR));
            }
            fixed_32(span, 16, 1 | if trace.parent == 0 { 0 } else { PARENT_IS_REMOTE });
        });
    }

    /// Writes a span below `parent`; its id.
    fn child(&mut self, parent: u64, name: &str, from: Instant, to: Instant, error: Option<&str>) -> u64 {
        let id = self.ids.next() | 1;
        let trace = self.request.detail.trace.id.to_be_bytes();
        let times = [from, to].map(|at| self.nanoseconds(at));
        self.count += 1;
        message(self.into, SPANS, |span| {
            bytes(span, 1, &trace);
            bytes(span, 2, &id.to_be_bytes());
            bytes(span, 4, &parent.to_be_bytes());
            bytes(span, 5, name.as_bytes());
            integer(span, 6, INTERNAL);
            fixed(span, 7, times[0]);
            fixed(span, 8, times[1].max(times[0]));
            if let Some(error) = error {
                attribute(span, 9, "error.type", Value::Text(error));
                message(span, 15, |status| integer(status, 3, ERROR));
            }
            fixed_32(span, 16, 1 | PARENT_IS_LOCAL);
        });
        id
    }
}

fn attributes(span: &mut Vec<u8>, request: &Ended<'_>) {
    let detail = request.detail;
    let mut put = |key: &str, value: Value<'_>| attribute(span, 9, key, value);
    if let (Some(asked), Some((host, path))) = (&detail.asked, request.host_and_path()) {
        put("http.request.method", Value::Text(method(&asked.method)));
        put("url.scheme", Value::Text(detail.scheme));
        let path = path.split('?').next().unwrap_or_default();
        put("url.path", Value::Text(cut(path, PATH_LIMIT_BYTES)));
        put("server.address", Value::Text(cut(&String::from_utf8_lossy(host), 255)));
        put("network.protocol.version", Value::Text(if asked.version == Version::HTTP_2 { "2" } else { "1.1" }));
        if request.via == Via::Grpc {
            put("rpc.system", Value::Text("grpc"));
        }
    }
    put("client.address", Value::Text(&text(&detail.client)));
    put("http.response.status_code", Value::Number(request.status.into()));
    if let Some(cause) = request.cause {
        put("error.type", Value::Text(cause.name()));
    }
    if let Some((revision, settings)) = &detail.revision {
        put("k8s.namespace.name", Value::Text(&revision.id.namespace));
        put("kn.revision.name", Value::Text(&revision.id.name));
        put("kn.service.name", Value::Text(&settings.service));
        put("kn.configuration.name", Value::Text(&settings.configuration));
        put("faas.coldstart", Value::Truth(detail.cold.is_some()));
    }
    if let Some(route) = request.route {
        put("kn.route.name", Value::Text(route));
    }
    if let Some(upstream) = &detail.upstream {
        put("k8s.pod.name", Value::Text(&upstream.pod.name));
    }
}

/// Methods that a client invents are all the same.
fn method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::CONNECT,
        Method::OPTIONS,
        Method::TRACE,
        Method::PATCH,
    ];
    if known.contains(method) { method.as_str() } else { "_OTHER" }
}

fn text(value: &HeaderValue) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

enum Value<'v> {
    Text(&'v str),
    Truth(bool),
    Number(u64),
}

/// A `KeyValue`.
fn attribute(into: &mut Vec<u8>, field: u32, key: &str, value: Value<'_>) {
    message(into, field, |pair| {
        bytes(pair, 1, key.as_bytes());
        message(pair, 2, |any| match value {
            Value::Text(text) => bytes(any, 1, text.as_bytes()),
            Value::Truth(truth) => integer(any, 2, truth.into()),
            Value::Number(number) => integer(any, 3, number),
        });
    });
}

fn tag(into: &mut Vec<u8>, field: u32, wire: u8) {
    varint(into, u64::from(field) << 3 | u64::from(wire));
}

fn varint(into: &mut Vec<u8>, mut number: u64) {
    while number > 0x7f {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn integer(into: &mut Vec<u8>, field: u32, number: u64) {
    tag(into, field, 0);
    varint(into, number);
}

fn fixed(into: &mut Vec<u8>, field: u32, number: u64) {
    tag(into, field, 1);
    into.extend_from_slice(&number.to_le_bytes());
}

fn fixed_32(into: &mut Vec<u8>, field: u32, number: u32) {
    tag(into, field, 5);
    into.extend_from_slice(&number.to_le_bytes());
}

fn bytes(into: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    tag(into, field, 2);
    varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

/// A message within: its length, which comes first, is known last.
fn message(into: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    tag(into, field, 2);
    let start = into.len();
    write(into);
    let length = into.len() - start;
    varint(into, length as u64);
    let digits = into.len() - start - length;
    into[start..].rotate_right(digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lengths_are_encoded_as_protobuf_does() {
        // The examples of protobuf's own documentation, "Encoding".
        let mut into = Vec::new();
        integer(&mut into, 1, 150);
        bytes(&mut into, 2, b"testing");
        message(&mut into, 3, |inner| integer(inner, 1, 150));
        fixed_32(&mut into, 16, 1);
        let want = b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01\x85\x01\x01\0\0\0";
        assert_eq!(into, want);
        let mut long = Vec::new();
        message(&mut long, 1, |inner| inner.extend_from_slice(&[7; 300]));
        assert_eq!(long[..4], [0x0a, 0xac, 0x02, 7]);
        assert_eq!(long.len(), 303);
    }

    #[test]
    fn a_path_is_cut_between_characters() {
        assert_eq!(cut("aü", 2), "a");
        assert_eq!(cut("aü", 3), "aü");
    }

    #[test]
    fn methods_of_a_clients_own_are_one() {
        assert_eq!(method(&Method::GET), "GET");
        assert_eq!(method(&Method::from_bytes(b"EVIL").unwrap()), "_OTHER");
    }
}
