//! Decodes request bodies in `application/vnd.kubernetes.protobuf` into JSON.
//!
//! Typed client libraries send built-in kinds in this form by default; answers stay JSON, which they take as well.
//! The message layouts are those of [`crate::kinds::schema`]. Zeros that the sender always writes are dropped again
//! by [`conform::normalise`].
//!
//! Bodies are untrusted: depth and number of values are bounded, and no input makes the decoder panic.

mod wire;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::schema::{self, Field, Shape, Type, conform};
use wire::{Fields, Wire};

/// What every body starts with.
pub const MAGIC: [u8; 4] = *b"k8s\0";
/// Deepest nesting of messages.
const DEPTH_LIMIT: usize = 64;
/// Most values in one body.
const VALUE_LIMIT: usize = 200_000;

/// Why a body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The body does not start with [`MAGIC`].
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// The message ends in the middle of a field.
    #[error("unexpected EOF")]
    Cut,
    /// A field has a wire type that its number does not have, or none that exists.
    #[error("proto: wrong wireType = {wire} for field {field}")]
    WireType {
        /// Name of the field.
        field: &'static str,
        /// The wire type that was found.
        wire: u64,
    },
    /// A number has more than ten bytes.
    #[error("proto: integer overflow")]
    Overflow,
    /// A text is not UTF-8.
    #[error("proto: field {field} contains invalid UTF-8")]
    Text {
        /// Name of the field.
        field: &'static str,
    },
    /// JSON inside the message is not valid.
    #[error("json in field {field} is not valid: {reason}")]
    Json {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The kind is not a built-in one.
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind {
        /// The kind.
        kind: String,
        /// Its group and version.
        version: String,
    },
    /// The message nests deeper than 64 levels.
    #[error("the message is nested too deeply (more than {DEPTH_LIMIT} levels)")]
    Depth,
    /// The message holds more than 200,000 values.
    #[error("the message holds too many values (more than {VALUE_LIMIT})")]
    Size,
}

/// Decodes a whole body: the magic, the envelope, and the object in it.
///
/// # Errors
///
/// [`ProtoError`] says what is wrong with the body.
pub fn decode(body: &[u8]) -> Result<Value, ProtoError> {
    let envelope = body.strip_prefix(&MAGIC).ok_or(ProtoError::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Fields::new(envelope) {
        match field? {
            (1, Wire::Bytes(bytes)) => (version, kind) = type_meta(bytes)?,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let name = match (kind.as_str(), schema::find("meta.v1.DeleteOptions")) {
        // Clients send options under the version of the group they speak.
        ("DeleteOptions", Some(_)) => "meta.v1.DeleteOptions".to_string(),
        _ => crate::kinds::schema_name(&version, &kind)
            .ok_or_else(|| ProtoError::Kind { kind: kind.clone(), version: version.clone() })?,
    };
    let root = schema::find(&name).ok_or(ProtoError::Kind { kind: kind.clone(), version: version.clone() })?;
    let mut decoder = Decoder { depth: 0, values: 0 };
    let mut object = Value::Object(decoder.message(root, raw)?);
    conform::normalise(&name, &mut object);
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".into(), version.into());
        map.insert("kind".into(), kind.into());
    }
    Ok(object)
}

fn type_meta(bytes: &[u8]) -> Result<(String, String), ProtoError> {
    let (mut version, mut kind) = (String::new(), String::new());
    for field in Fields::new(bytes) {
        match field? {
            (1, Wire::Bytes(bytes)) => version = text(bytes, "apiVersion")?,
            (2, Wire::Bytes(bytes)) => kind = text(bytes, "kind")?,
            _ => {}
        }
    }
    Ok((version, kind))
}

fn text(bytes: &[u8], field: &'static str) -> Result<String, ProtoError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| ProtoError::Text { field })
}

struct Decoder {
    depth: usize,
    values: usize,
}

impl Decoder {
    fn count(&mut self) -> Result<(), ProtoError> {
        self.values += 1;
        if self.values > VALUE_LIMIT { Err(ProtoError::Size) } else { Ok(()) }
    }

    fn message(&mut self, kind: &'static Type, bytes: &[u8]) -> Result<Map<String, Value>, ProtoError> {
        let mut map = Map::new();
        self.deeper(|decoder| decoder.fields(kind, kind, bytes, &mut map))?;
        Ok(map)
    }

    fn deeper<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, ProtoError>) -> Result<T, ProtoError> {
        self.depth += 1;
        if self.depth > DEPTH_LIMIT {
            return Err(ProtoError::Depth);
        }
        let done = work(self)?;
        self.depth -= 1;
        Ok(done)
    }

    /// Decodes the fields of a message; `outer` is the type whose JSON they belong to, which differs from `kind` for
    /// messages that are inlined in JSON.
    fn fields(
        &mut self,
        kind: &Type,
        outer: &Type,
        bytes: &[u8],
        map: &mut Map<String, Value>,
    ) -> Result<(), ProtoError> {
        for field in Fields::new(bytes) {
            let (number, value) = field?;
            self.count()?;
            if let Some(field) = kind.numbered(number) {
                let field = match field.shape {
                    Shape::Inlined => match outer.field(field.name) {
                        Some(field) => field,
                        None => continue,
                    },
                    _ => field,
                };
                self.field(field, value, map)?;
            } else if let Some((_, target)) = kind.inlined.iter().find(|(n, _)| *n == number)
                && let (Some(target), Wire::Bytes(bytes)) = (schema::find(target), value)
            {
                self.deeper(|decoder| decoder.fields(target, outer, bytes, map))?;
            }
        }
        Ok(())
    }

    fn field(&mut self, field: &Field, value: Wire<'_>, map: &mut Map<String, Value>) -> Result<(), ProtoError> {
        match &field.shape {
            Shape::List(inner) => {
                let list = map.entry(field.name).or_insert_with(|| json!([]));
                let Some(list) = list.as_array_mut() else { return Ok(()) };
                match (&**inner, &value) {
                    // Numbers may be packed.
                    (Shape::Int | Shape::Long | Shape::Bool, Wire::Bytes(bytes)) => {
                        for number in wire::packed(bytes) {
                            self.count()?;
                            list.push(self.value(inner, Wire::Number(number?), field.name)?);
                        }
                    }
                    _ => list.push(self.value(inner, value, field.name)?),
                }
            }
            Shape::Map(inner) => {
                let Wire::Bytes(bytes) = value else { return Err(wrong(field.name, &value)) };
                let (key, item) = self.entry(inner, bytes, field.name)?;
                let entries = map.entry(field.name).or_insert_with(|| json!({}));
                if let Some(entries) = entries.as_object_mut() {
                    entries.insert(key, item);
                }
            }
            shape => {
                let mut item = self.value(shape, value, field.name)?;
                // The empty message that switches the status subresource on has no content at all.
                if item.is_null() && matches!(shape, Shape::Any) && field.name == "status" {
                    item = json!({});
                }
                map.insert(field.name.to_string(), item);
            }
        }
        Ok(())
    }

    fn entry(&mut self, shape: &Shape, bytes: &[u8], name: &'static str) -> Result<(String, Value), ProtoError> {
        let (mut key, mut found) = (String::new(), None);
        for field in Fields::new(bytes) {
            match field? {
                (1, Wire::Bytes(bytes)) => key = text(bytes, name)?,
                (2, value) => found = Some(value),
                _ => {}
            }
        }
        let item = match (shape, found) {
            // A list as a map's value is a message of its own.
            (Shape::List(inner), Some(Wire::Bytes(bytes))) => self.deeper(|decoder| {
                let mut list = Vec::new();
                for field in Fields::new(bytes) {
                    if let (1, value) = field? {
                        decoder.count()?;
                        list.push(decoder.value(inner, value, name)?);
                    }
                }
                Ok(Value::Array(list))
            })?,
            (Shape::List(_), _) => json!([]),
            (shape, Some(value)) => self.value(shape, value, name)?,
            (Shape::Text | Shape::Bytes, None) => json!(""),
            (Shape::Quantity, None) => json!("0"),
            (Shape::Object(_), None) => json!({}),
            (_, None) => Value::Null,
        };
        Ok((key, item))
    }

    fn value(&mut self, shape: &Shape, value: Wire<'_>, name: &'static str) -> Result<Value, ProtoError> {
        Ok(match (shape, value) {
            (Shape::Bool, Wire::Number(number)) => json!(number != 0),
            // Negative numbers are sign-extended to 64 bits on the wire.
            (Shape::Int, Wire::Number(number)) => json!(number as i64 as i32),
            (Shape::Long, Wire::Number(number)) => json!(number as i64),
            (Shape::Double, Wire::Fixed64(bits)) => json!(f64::from_bits(bits)),
            (Shape::Text, Wire::Bytes(bytes)) => json!(text(bytes, name)?),
            (Shape::Bytes, Wire::Bytes(bytes)) => json!(STANDARD.encode(bytes)),
            (Shape::Quantity, Wire::Bytes(bytes)) => json!(text(part(bytes, 1)?, name)?),
            (Shape::Time, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%SZ")?,
            (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, "%Y-%m-%dT%H:%M:%S%.6fZ")?,
            (Shape::IntOrString, Wire::Bytes(bytes)) => match number(bytes, 1)? {
                1 => json!(text(part(bytes, 3)?, name)?),
                _ => json!(number(bytes, 2)? as i64 as i32),
            },
            (Shape::Any, Wire::Bytes(bytes)) => any(part(bytes, 1)?, name)?,
            (Shape::Object(target), Wire::Bytes(bytes)) => match schema::find(target) {
                Some(kind) => Value::Object(self.message(kind, bytes)?),
                None => Value::Null,
            },
            (Shape::SchemaOrBool, Wire::Bytes(bytes)) => match self.schemas(bytes, 2)?.into_iter().next() {
                Some(schema) => schema,
                None => json!(number(bytes, 1)? != 0),
            },
            (Shape::SchemaOrArray, Wire::Bytes(bytes)) => match self.schemas(bytes, 1)?.into_iter().next() {
                Some(schema) => schema,
                None => Value::Array(self.schemas(bytes, 2)?),
            },
            (Shape::SchemaOrTexts, Wire::Bytes(bytes)) => match self.schemas(bytes, 1)?.into_iter().next() {
                Some(schema) => schema,
                None => Value::Array(texts(bytes, 2, name)?),
            },
            (Shape::Inlined | Shape::List(_) | Shape::Map(_), _) => Value::Null,
            (_, value) => return Err(wrong(name, &value)),
        })
    }

    /// The JSON schemas that lie in the fields with that number.
    fn schemas(&mut self, bytes: &[u8], wanted: u32) -> Result<Vec<Value>, ProtoError> {
        let Some(kind) = schema::find("apiextensions.v1.JSONSchemaProps") else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for field in Fields::new(bytes) {
            if let (number, Wire::Bytes(bytes)) = field?
                && number == wanted
            {
                self.count()?;
                found.push(Value::Object(self.message(kind, bytes)?));
            }
        }
        Ok(found)
    }
}

fn wrong(field: &'static str, value: &Wire<'_>) -> ProtoError {
    ProtoError::WireType { field, wire: value.kind() }
}

/// Bytes of the last field with that number; none if there is no such field.
fn part(bytes: &[u8], wanted: u32) -> Result<&[u8], ProtoError> {
    let mut found = &[][..];
    for field in Fields::new(bytes) {
        if let (number, Wire::Bytes(bytes)) = field?
            && number == wanted
        {
            found = bytes;
        }
    }
    Ok(found)
}

/// Number of the last field with that number; 0 if there is no such field.
fn number(bytes: &[u8], wanted: u32) -> Result<u64, ProtoError> {
    let mut found = 0;
    for field in Fields::new(bytes) {
        if let (number, Wire::Number(value)) = field?
            && number == wanted
        {
            found = value;
        }
    }
    Ok(found)
}

fn texts(bytes: &[u8], wanted: u32, name: &'static str) -> Result<Vec<Value>, ProtoError> {
    let mut found = Vec::new();
    for field in Fields::new(bytes) {
        if let (number, Wire::Bytes(bytes)) = field?
            && number == wanted
        {
            found.push(json!(text(bytes, name)?));
        }
    }
    Ok(found)
}

/// A time; all zero is none.
fn time(bytes: &[u8], format: &str) -> Result<Value, ProtoError> {
    let (seconds, nanos) = (number(bytes, 1)? as i64, number(bytes, 2)? as i64 as i32);
    if seconds == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    // The zero time of the sender's language is none either; what lies outside the calendar likewise.
    match Timestamp::new(seconds, nanos) {
        Ok(time) if seconds > -62_135_596_800 => Ok(json!(time.strftime(format).to_string())),
        _ => Ok(Value::Null),
    }
}

fn any(raw: &[u8], field: &'static str) -> Result<Value, ProtoError> {
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(raw).map_err(|error| ProtoError::Json { field, reason: error.to_string() })
}

#[cfg(test)]
mod tests;
