//! Answers: objects and lists in the shape and notation that was asked for.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use super::Call;
use super::list::Page;
use crate::ApiServer;
use crate::body::{self, Response};
use crate::error::ApiResult;
use crate::negotiate::{Notation, Shape};
use crate::object::Object;
use crate::table;

impl ApiServer {
    /// One object as the client wants it.
    pub(crate) fn respond(&self, call: &Call, code: StatusCode, object: &Object) -> ApiResult<Response> {
        match call.accepted.shape {
            Shape::Object if call.accepted.notation == Notation::Json => {
                Ok(body::raw_json(code, self.text_of(call, object)))
            }
            Shape::Object => Ok(respond_value(call, code, &self.view(&call.served, object))),
            Shape::Partial if call.accepted.notation == Notation::Json => {
                Ok(body::raw_json(code, self.partial_text(call, object)))
            }
            Shape::Partial => Ok(respond_value(call, code, &partial(&self.view(&call.served, object)))),
            Shape::Table => {
                let mut table = table::head(&call.served.def, &json!({"resourceVersion": revision_text(object)}));
                let row = table::row(&call.served.def, &self.view(&call.served, object), include(call)?);
                table["rows"] = json!([row]);
                Ok(respond_value(call, code, &table))
            }
        }
    }

    /// JSON text of an object in the version of the request.
    pub(crate) fn text_of(&self, call: &Call, object: &Object) -> Bytes {
        let bare = call.accepted.bare;
        let text = |object: &Object| if bare { object.bare_text().concat().into() } else { object.text().clone() };
        if object.api_version() == call.served.def.api_version() {
            return text(object);
        }
        text(&Object::encode(&self.view(&call.served, object)))
    }

    /// [`partial`] as text, cut out of the object's own where its version is the request's.
    pub(crate) fn partial_text(&self, call: &Call, object: &Object) -> Bytes {
        if object.metadata().is_empty() || object.api_version() != call.served.def.api_version() {
            return partial(&self.view(&call.served, object)).to_string().into();
        }
        let head: &[u8] = br#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":"#;
        let [metadata, rest] = if call.accepted.bare { object.bare_metadata() } else { [object.metadata(), &[]] };
        [head, metadata, rest, b"}"].concat().into()
    }

    /// A list as the client wants it.
    pub(crate) fn respond_list(&self, call: &Call, code: StatusCode, page: &Page) -> ApiResult<Response> {
        let def = &call.served.def;
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".into(), page.snapshot.revision.to_string().into());
        if let Some(token) = &page.continue_token {
            metadata.insert("continue".into(), token.as_str().into());
        } else if call.custom() {
            metadata.insert("continue".into(), "".into());
        }
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
        let metadata = Value::Object(metadata);
        let objects = page.snapshot.entries.iter().map(|(_, entry)| &entry.record);
        match call.accepted.shape {
            Shape::Object => {
                let head = json!({"kind": def.list_kind, "apiVersion": def.api_version(), "metadata": metadata});
                let mut out = BytesMut::with_capacity(objects.clone().map(|o| o.text().len() + 1).sum::<usize>() + 256);
                put_list(&mut out, &head, objects, |object, out| self.put_item(call, object, out));
                Ok(respond_text(call, code, out.freeze()))
            }
            Shape::Partial => {
                let mut metadata = metadata;
                if metadata["continue"] == ""
                    && let Some(map) = metadata.as_object_mut()
                {
                    map.remove("continue");
                }
                let mut head = json!({
                    "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                });
                if page.snapshot.entries.is_empty() {
                    head["items"] = Value::Null;
                    return Ok(respond_value(call, code, &head));
                }
                let mut out = BytesMut::new();
                put_list(&mut out, &head, objects, |object, out| out.put_slice(&self.partial_text(call, object)));
                Ok(respond_text(call, code, out.freeze()))
            }
            Shape::Table => {
                let mut metadata = metadata;
                if metadata["continue"] == ""
                    && let Some(map) = metadata.as_object_mut()
                {
                    map.remove("continue");
                }
                let mut table = table::head(def, &metadata);
                let include = include(call)?;
                table["rows"] =
                    objects.map(|object| table::row(def, &self.view(&call.served, object), include)).collect();
                Ok(respond_value(call, code, &table))
            }
        }
    }

    /// One item of a list: built-in kinds leave kind and apiVersion out there.
    fn put_item(&self, call: &Call, object: &Object, out: &mut BytesMut) {
        let put = |object: &Object, out: &mut BytesMut| {
            let parts = match (call.custom(), call.accepted.bare) {
                (true, true) => object.bare_text(),
                (true, false) => [&object.text()[..], &[]],
                (false, true) => object.bare_tail(),
                (false, false) => [object.tail(), &[]],
            };
            if !call.custom() {
                out.put_u8(b'{');
            }
            parts.into_iter().for_each(|part| out.put_slice(part));
        };
        if object.api_version() == call.served.def.api_version() {
            put(object, out);
        } else {
            put(&Object::encode(&self.view(&call.served, object)), out);
        }
    }
}

/// Which part of an object a Table's row carries.
pub(crate) fn include(call: &Call) -> ApiResult<table::Include> {
    match call.query.get("includeObject") {
        "" | "Metadata" => Ok(table::Include::Metadata),
        "Object" => Ok(table::Include::Object),
        "None" => Ok(table::Include::None),
        other => {
            let message = format!("unrecognized includeObject value: {}", crate::quote::quoted(other));
            Err(crate::error::ApiError::bad_request(message))
        }
    }
}

/// The metadata of an object alone.
pub(crate) fn partial(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

pub(crate) fn revision_text(object: &Object) -> String {
    object.value()["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_string()
}

/// Writes a list: what its head says, and its items.
fn put_list<T>(
    out: &mut BytesMut,
    head: &Value,
    items: impl Iterator<Item = T>,
    mut put_item: impl FnMut(T, &mut BytesMut),
) {
    let head = head.to_string();
    out.put_slice(&head.as_bytes()[..head.len() - 1]);
    out.put_slice(b",\"items\":[");
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        put_item(item, out);
    }
    out.put_slice(b"]}");
}

/// JSON text in the notation that was asked for.
fn respond_text(call: &Call, code: StatusCode, text: Bytes) -> Response {
    match call.accepted.notation {
        Notation::Json => body::raw_json(code, text),
        Notation::Yaml => respond_value(call, code, &serde_json::from_slice(&text).unwrap_or_default()),
    }
}

/// A value in the notation that was asked for.
pub(crate) fn respond_value(call: &Call, code: StatusCode, value: &Value) -> Response {
    match call.accepted.notation {
        Notation::Json => body::json(code, value),
        Notation::Yaml => {
            let text = serde_yaml_ng::to_string(value).unwrap_or_default();
            let mut response = http::Response::new(body::full(text));
            *response.status_mut() = code;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/yaml"));
            response
        }
    }
}
