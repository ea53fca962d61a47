//! Stored objects: JSON text in the storage version, with what selectors need parsed out of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use parking_lot::Mutex;
use serde_json::{Map, Value};

/// One object as it is stored and shared by all readers.
///
/// The text begins with `{"kind":..,"apiVersion":..`, so that both can be cut off without parsing.
#[derive(Debug)]
pub struct Object {
    bytes: Bytes,
    head: usize,
    /// Where the text of `metadata` lies.
    metadata: Range<usize>,
    /// Where `managedFields` lies in it, with one comma, so that both can be cut out; empty if there are none.
    managed: Range<usize>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// What the text says, while it is likely to be asked for; see [`Recent`].
    parsed: Mutex<Option<Value>>,
}

impl Object {
    /// Encodes an object.
    pub fn encode(value: &Value) -> Self {
        let Encoded { bytes, head, metadata, managed } = encode(value);
        let labels = value.pointer("/metadata/labels").and_then(Value::as_object);
        let pair = |(k, v): (&String, &Value)| (k.as_str().into(), v.as_str().unwrap_or_default().into());
        let labels = labels.map(|labels| labels.iter().map(pair).collect()).unwrap_or_default();
        Self { bytes, head, metadata, managed, labels, parsed: Mutex::default() }
    }

    /// Encodes an object that is to be remembered in [`Recent`], with what it was made of.
    pub fn encode_and_keep(value: Value) -> Self {
        let object = Self::encode(&value);
        *object.parsed.lock() = (object.bytes.len() <= Recent::LONGEST).then_some(value);
        object
    }

    /// The whole text.
    pub fn text(&self) -> &Bytes {
        &self.bytes
    }

    /// The text from the first field after kind and apiVersion: `..."}` (without the opening brace).
    pub fn tail(&self) -> &[u8] {
        let tail = &self.bytes[self.head..];
        tail.strip_prefix(b",").unwrap_or(tail)
    }

    /// The text of `metadata`; empty if there is none.
    pub fn metadata(&self) -> &[u8] {
        &self.bytes[self.metadata.clone()]
    }

    /// The whole text without `metadata.managedFields`, in two parts.
    pub fn bare_text(&self) -> [&[u8]; 2] {
        [&self.bytes[..self.managed.start], &self.bytes[self.managed.end..]]
    }

    /// [`Object::tail`] without `metadata.managedFields`, in two parts.
    pub fn bare_tail(&self) -> [&[u8]; 2] {
        let start = self.bytes.len() - self.tail().len();
        [&self.bytes[start..self.managed.start], &self.bytes[self.managed.end..]]
    }

    /// [`Object::metadata`] without `managedFields`, in two parts.
    pub fn bare_metadata(&self) -> [&[u8]; 2] {
        let Range { start, end } = self.metadata.clone();
        if start == end {
            return [&[], &[]];
        }
        [&self.bytes[start..self.managed.start], &self.bytes[self.managed.end..end]]
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    /// The object, parsed.
    pub fn value(&self) -> Value {
        let kept = self.parsed.lock().clone();
        kept.unwrap_or_else(|| self.parse())
    }

    /// The object, parsed, by one who is about to replace it: what was kept of it is given away.
    pub fn take_value(&self) -> Value {
        let kept = self.parsed.lock().take();
        kept.unwrap_or_else(|| self.parse())
    }

    fn parse(&self) -> Value {
        serde_json::from_slice(&self.bytes).expect("stored objects were encoded by us")
    }

    /// `apiVersion`, read without parsing the rest.
    pub fn api_version(&self) -> &str {
        let head = std::str::from_utf8(&self.bytes[..self.head]).unwrap_or_default();
        head.split('"').nth(7).unwrap_or_default()
    }
}

/// The objects written last. Whoever writes an object soon writes it again, and a parsed one need not be parsed for that.
#[derive(Default)]
pub struct Recent(Mutex<VecDeque<Arc<Object>>>);

impl Recent {
    /// How many objects.
    const OBJECTS: usize = 256;
    /// Longest text of an object that is kept parsed; parsed it takes a few times as much.
    const LONGEST: usize = 16 * 1024;

    /// Remembers an object, and lets go of the oldest. A long one, of which nothing is kept parsed, is not held at all.
    pub fn push(&self, object: &Arc<Object>) {
        if object.bytes.len() > Self::LONGEST {
            return;
        }
        let mut objects = self.0.lock();
        let oldest = if objects.len() < Self::OBJECTS { None } else { objects.pop_front() };
        objects.push_back(object.clone());
        drop(objects);
        if let Some(oldest) = oldest {
            *oldest.parsed.lock() = None;
        }
    }
}

/// An object's text and where its parts lie.
struct Encoded {
    bytes: Bytes,
    head: usize,
    metadata: Range<usize>,
    managed: Range<usize>,
}

fn encode(value: &Value) -> Encoded {
    let mut out = Vec::with_capacity(4096);
    let empty = Map::new();
    let map = value.as_object().unwrap_or(&empty);
    let write = |out: &mut Vec<u8>, value: &Value| {
        serde_json::to_writer(&mut *out, value).expect("writing JSON into memory does not fail");
    };
    out.put_slice(b"{\"kind\":");
    write(&mut out, map.get("kind").unwrap_or(&Value::String(String::new())));
    out.put_slice(b",\"apiVersion\":");
    write(&mut out, map.get("apiVersion").unwrap_or(&Value::String(String::new())));
    let head = out.len();
    // Metadata comes next, as in the reference; the rest in the map's order.
    let rest = map.iter().filter(|(key, _)| !matches!(key.as_str(), "kind" | "apiVersion" | "metadata"));
    let first = map.get_key_value("metadata");
    let (mut metadata, mut managed) = (0..0, None);
    for (key, value) in first.into_iter().chain(rest) {
        out.put_u8(b',');
        serde_json::to_writer(&mut out, key).expect("writing JSON into memory does not fail");
        out.put_u8(b':');
        let start = out.len();
        match value.as_object().filter(|_| key == "metadata") {
            Some(fields) => {
                managed = Some(encode_metadata(&mut out, fields));
                metadata = start..out.len();
            }
            None => write(&mut out, value),
        }
    }
    out.put_u8(b'}');
    // Objects are kept, in history too: no spare room.
    let bytes = Bytes::from(out.into_boxed_slice());
    let managed = managed.unwrap_or(bytes.len()..bytes.len());
    Encoded { bytes, head, metadata, managed }
}

/// Writes `metadata`; where `managedFields` lies in what was written, with one comma.
fn encode_metadata(out: &mut Vec<u8>, fields: &Map<String, Value>) -> Range<usize> {
    out.put_u8(b'{');
    let first = out.len();
    let mut managed = first..first;
    for (key, value) in fields {
        let start = out.len();
        if start > first {
            out.put_u8(b',');
        }
        serde_json::to_writer(&mut *out, key).expect("writing JSON into memory does not fail");
        out.put_u8(b':');
        serde_json::to_writer(&mut *out, value).expect("writing JSON into memory does not fail");
        if key == "managedFields" {
            managed = start..out.len();
        }
    }
    // As the first field it has its comma behind it.
    if managed.start == first && managed.end > first && managed.end < out.len() {
        managed.end += 1;
    }
    out.put_u8(b'}');
    managed
}

impl store::Record for Object {
    fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    fn load(_: &str, _: &str, bytes: Bytes) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        if !value.is_object() {
            return Err("it is not a JSON object".into());
        }
        Ok(Self::encode(&value))
    }
}

/// A text in `metadata`.
pub fn meta<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// `metadata`, made if it is missing.
pub fn meta_mut(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let map = object.as_object_mut().expect("it was just made an object");
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    metadata.as_object_mut().expect("it was just made an object")
}

/// Finalizers of an object.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Whether a deletion was asked for.
pub fn is_deleting(object: &Value) -> bool {
    object.pointer("/metadata/deletionTimestamp").is_some_and(|t| !t.is_null())
}

/// Key in the store: `namespace/name`, or `name`.
pub fn key(namespaced: bool, namespace: &str, name: &str) -> String {
    if namespaced { format!("{namespace}/{name}") } else { name.to_string() }
}

/// A time as Kubernetes writes it: whole seconds, UTC.
pub fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kind_and_api_version_come_first_and_can_be_cut_off() {
        let value = json!({"apiVersion": "apps/v1", "data": {}, "kind": "X", "metadata": {"labels": {"a": "b"}}});
        let object = Object::encode(&value);
        assert_eq!(
            &object.text()[..],
            br#"{"kind":"X","apiVersion":"apps/v1","metadata":{"labels":{"a":"b"}},"data":{}}"#
        );
        assert_eq!(object.tail(), br#""metadata":{"labels":{"a":"b"}},"data":{}}"#);
        assert_eq!(object.api_version(), "apps/v1");
        assert_eq!((object.label("a"), object.label("b")), (Some("b"), None));
        assert_eq!(object.metadata(), br#"{"labels":{"a":"b"}}"#);
        assert_eq!(object.value(), value);
        assert_eq!(Object::encode(&json!({"kind": "X", "apiVersion": "v1"})).tail(), b"}");
    }

    #[test]
    fn of_the_objects_written_last_the_parsed_form_is_kept_until_it_is_taken() {
        let recent = Recent::default();
        let value = |data: &str| json!({"kind": "X", "apiVersion": "v1", "data": data});
        let write = |data: &str| {
            let object = Arc::new(Object::encode_and_keep(value(data)));
            recent.push(&object);
            object
        };
        let is_kept = |object: &Object| object.parsed.lock().is_some();
        let long = "x".repeat(Recent::LONGEST);
        let (first, second) = (write("first"), write(&long));
        assert!(is_kept(&first) && !is_kept(&second));
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 1));
        assert_eq!((first.value(), second.value()), (value("first"), value(&long)));
        assert!(is_kept(&first));
        assert_eq!((first.take_value(), is_kept(&first), first.take_value()), (value("first"), false, value("first")));
        let third = write("third");
        for _ in 1..Recent::OBJECTS {
            write("more");
        }
        assert!(is_kept(&third));
        write("one too many");
        assert!(!is_kept(&third));
        assert_eq!(third.value(), value("third"));
        assert_eq!(recent.0.lock().len(), Recent::OBJECTS);
    }

    #[test]
    fn managed_fields_can_be_cut_out() {
        let managed = json!([{"manager": "a", "fieldsV1": {"f:metadata": {}}}]);
        for (before, after) in [(false, false), (false, true), (true, false), (true, true)] {
            let mut bare = json!({"apiVersion": "v1", "kind": "X", "metadata": {}, "spec": {"managedFields": 1}});
            if before {
                bare["metadata"]["labels"] = json!({"a": "b"});
            }
            if after {
                bare["metadata"]["name"] = json!("x");
            }
            let mut whole = bare.clone();
            whole["metadata"]["managedFields"] = managed.clone();
            let wanted = Object::encode(&bare);
            for object in [Object::encode(&whole), Object::encode(&bare)] {
                assert_eq!(object.bare_text().concat(), &wanted.text()[..]);
                assert_eq!(object.bare_tail().concat(), wanted.tail());
                assert_eq!(object.bare_metadata().concat(), wanted.metadata());
            }
            assert_eq!(Object::encode(&whole).value(), whole);
        }
        let without = Object::encode(&json!({"kind": "X", "apiVersion": "v1"}));
        assert_eq!(without.bare_text().concat(), &without.text()[..]);
        assert_eq!(without.bare_metadata().concat(), without.metadata());
    }
}
