//! A collector of traces: takes OTLP over HTTP and over gRPC, and reads every byte of it by the schema.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::world::{Body, until};

/// One span, its attributes as a map.
#[derive(Clone, Debug)]
pub struct Span(pub Value);

impl Span {
    pub fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_default()
    }

    pub fn attribute(&self, key: &str) -> Value {
        let all = self.0["attributes"].as_array().cloned().unwrap_or_default();
        let mut of_key = all.iter().filter(|pair| pair["key"] == key);
        let value = of_key.next().map_or(Value::Null, |pair| pair["value"].clone());
        assert!(of_key.next().is_none(), "{key} is there once");
        ["string_value", "bool_value", "int_value"]
            .into_iter()
            .find_map(|kind| value.get(kind))
            .cloned()
            .unwrap_or_default()
    }

    pub fn time(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap()
    }
}

pub struct Collector {
    pub address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    /// Statuses of the next answers, last first; 200 where there is none.
    pub statuses: Arc<Mutex<Vec<u16>>>,
    /// Path and kind of each message.
    pub messages: Arc<Mutex<Vec<(String, String)>>>,
}

impl Collector {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let collector = Self { address, spans: Arc::default(), statuses: Arc::default(), messages: Arc::default() };
        let (spans, statuses, messages) =
            (collector.spans.clone(), collector.statuses.clone(), collector.messages.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (spans, statuses, messages) = (spans.clone(), statuses.clone(), messages.clone());
                let service = service_fn(move |request| {
                    let (spans, statuses, messages) = (spans.clone(), statuses.clone(), messages.clone());
                    async move { Ok::<_, Infallible>(take(request, &spans, &statuses, &messages).await) }
                });
                tokio::spawn(async move {
                    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        collector
    }

    /// What has come so far of one trace.
    pub fn of(&self, trace: &str) -> Vec<Span> {
        self.spans.lock().iter().filter(|span| span.text("trace_id") == trace).cloned().collect()
    }

    /// Waits for a span with that name in the trace; all of the trace then, as it comes in one message.
    pub async fn wait_for(&self, trace: &str) -> Vec<Span> {
        until(|| !self.of(trace).is_empty()).await;
        self.of(trace)
    }

    pub fn count(&self) -> usize {
        self.spans.lock().len()
    }
}

async fn take(
    request: Request<Incoming>,
    spans: &Mutex<Vec<Span>>,
    statuses: &Mutex<Vec<u16>>,
    messages: &Mutex<Vec<(String, String)>>,
) -> Response<Body> {
    let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
    messages.lock().push((request.uri().path().to_owned(), kind.clone()));
    let grpc = kind == "application/grpc";
    if grpc {
        assert_eq!(
            (request.version(), &request.headers()["te"]),
            (http::Version::HTTP_2, &"trailers".parse().unwrap())
        );
    }
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let status = statuses.lock().pop().unwrap_or(200);
    if status == 200 {
        let message = if grpc {
            assert_eq!((body[0], u32::from_be_bytes(body[1..5].try_into().unwrap()) as usize), (0, body.len() - 5));
            body.slice(5..)
        } else {
            body
        };
        spans.lock().extend(read_export(&message));
    }
    let mut response = if grpc {
        let code = if status == 200 { "0" } else { "14" };
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
        let parts = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(parts.map(Ok))).boxed_unsync());
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        response
    } else {
        Response::new(Full::new(Bytes::new()).boxed_unsync())
    };
    if !grpc {
        *response.status_mut() = status.try_into().unwrap();
    }
    response
}

/// The spans of an `ExportTraceServiceRequest`.
fn read_export(message: &[u8]) -> Vec<Span> {
    let request = read(message, "ExportTraceServiceRequest");
    let mut spans = Vec::new();
    for resource_spans in request["resource_spans"].as_array().unwrap() {
        let resource = &resource_spans["resource"]["attributes"][0];
        assert_eq!(resource, &json!({"key": "service.name", "value": {"string_value": "colibri-gateway"}}));
        for scope_spans in resource_spans["scope_spans"].as_array().unwrap() {
            assert_eq!(scope_spans["scope"]["name"], "colibri.gateway");
            spans.extend(scope_spans["spans"].as_array().unwrap().iter().cloned().map(Span));
        }
    }
    for span in &spans {
        assert_eq!((span.text("trace_id").len(), span.text("span_id").len()), (32, 16), "{span:?}");
        assert!(span.text("parent_span_id").is_empty() || span.text("parent_span_id").len() == 16, "{span:?}");
        assert!(!span.text("name").is_empty() && span.time("end_time_unix_nano") >= span.time("start_time_unix_nano"));
    }
    spans
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    /// Bytes, shown as hexadecimal digits.
    Bytes,
    Number,
    Truth,
    Fixed64,
    Fixed32,
    One(&'static str),
    Many(&'static str),
}

/// Source: `opentelemetry-proto` 1.9: `collector/trace/v1/trace_service.proto`, `trace/v1/trace.proto`,
/// `common/v1/common.proto`, `resource/v1/resource.proto`.
fn schema(message: &str) -> &'static [(u64, &'static str, Kind)] {
    match message {
        "ExportTraceServiceRequest" => &[(1, "resource_spans", Kind::Many("ResourceSpans"))],
        "ResourceSpans" => &[
            (1, "resource", Kind::One("Resource")),
            (2, "scope_spans", Kind::Many("ScopeSpans")),
            (3, "schema_url", Kind::Text),
        ],
        "Resource" => &[(1, "attributes", Kind::Many("KeyValue")), (2, "dropped_attributes_count", Kind::Number)],
        "ScopeSpans" => &[
            (1, "scope", Kind::One("InstrumentationScope")),
            (2, "spans", Kind::Many("Span")),
            (3, "schema_url", Kind::Text),
        ],
        "InstrumentationScope" => {
            &[(1, "name", Kind::Text), (2, "version", Kind::Text), (3, "attributes", Kind::Many("KeyValue"))]
        }
        "Span" => &[
            (1, "trace_id", Kind::Bytes),
            (2, "span_id", Kind::Bytes),
            (3, "trace_state", Kind::Text),
            (4, "parent_span_id", Kind::Bytes),
            (5, "name", Kind::Text),
            (6, "kind", Kind::Number),
            (7, "start_time_unix_nano", Kind::Fixed64),
            (8, "end_time_unix_nano", Kind::Fixed64),
            (9, "attributes", Kind::Many("KeyValue")),
            (15, "status", Kind::One("Status")),
            (16, "flags", Kind::Fixed32),
        ],
        "Status" => &[(2, "message", Kind::Text), (3, "code", Kind::Number)],
        "KeyValue" => &[(1, "key", Kind::Text), (2, "value", Kind::One("AnyValue"))],
        "AnyValue" => {
            &[(1, "string_value", Kind::Text), (2, "bool_value", Kind::Truth), (3, "int_value", Kind::Number)]
        }
        _ => panic!("there is no message {message}"),
    }
}

/// Reads a message; a field that the schema does not have, or has in another form, is a failure.
fn read(mut bytes: &[u8], message: &'static str) -> Value {
    let mut object = Map::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let (field, wire) = (tag >> 3, tag & 7);
        let known = schema(message).iter().find(|(number, ..)| *number == field);
        let (_, name, kind) = known.unwrap_or_else(|| panic!("{message} has no field {field}"));
        let want = match kind {
            Kind::Number | Kind::Truth => 0,
            Kind::Fixed64 => 1,
            Kind::Fixed32 => 5,
            _ => 2,
        };
        assert_eq!(wire, want, "the form of {message}.{name}");
        let value = match kind {
            Kind::Number => varint(&mut bytes).into(),
            Kind::Truth => (varint(&mut bytes) == 1).into(),
            Kind::Fixed64 => u64::from_le_bytes(part(&mut bytes, 8).try_into().unwrap()).into(),
            Kind::Fixed32 => u32::from_le_bytes(part(&mut bytes, 4).try_into().unwrap()).into(),
            Kind::Text | Kind::Bytes | Kind::One(_) | Kind::Many(_) => {
                let length = varint(&mut bytes) as usize;
                let part = part(&mut bytes, length);
                match kind {
                    Kind::Text => std::str::from_utf8(part).expect("a string is UTF-8").into(),
                    Kind::One(inner) | Kind::Many(inner) => read(part, inner),
                    _ => part.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into(),
                }
            }
        };
        if let Kind::Many(_) = kind {
            let list = object.entry(*name).or_insert_with(|| json!([]));
            list.as_array_mut().unwrap().push(value);
        } else {
            assert!(object.insert((*name).to_owned(), value).is_none(), "{message}.{name} is there once");
        }
    }
    object.into()
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = part(bytes, 1)[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return number;
        }
    }
    panic!("a number does not end");
}

fn part<'b>(bytes: &mut &'b [u8], length: usize) -> &'b [u8] {
    let (part, rest) = bytes.split_at(length);
    *bytes = rest;
    part
}
