//! The types of the built-in kinds, as data: JSON names, protobuf numbers, list types, merge keys.
//!
//! `types.txt` is generated (see `generate.py`) and parsed once, at first use; a few hundred kilobytes stay in
//! memory. Everything that must know a built-in kind's fields reads this table: decoding ([`conform`]), protobuf,
//! strategic merge, server-side apply.

pub mod conform;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use crate::resource::{PatchMerge, Text};

const TABLE: &str = include_str!("types.txt");

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A text.
    Text,
    /// A truth value.
    Bool,
    /// A whole number of 32 bits.
    Int,
    /// A whole number of 64 bits.
    Long,
    /// A floating-point number.
    Double,
    /// Bytes, base64 in JSON.
    Bytes,
    /// A resource quantity such as `500m`.
    Quantity,
    /// A time with seconds.
    Time,
    /// A time with microseconds.
    MicroTime,
    /// A number or a text, such as a port.
    IntOrString,
    /// Any JSON.
    Any,
    /// A JSON schema or a truth value.
    SchemaOrBool,
    /// A JSON schema or a list of them.
    SchemaOrArray,
    /// A JSON schema or a list of texts.
    SchemaOrTexts,
    /// Whatever the type that the message is inlined into says.
    Inlined,
    /// An object of the type with that name.
    Object(&'static str),
    /// A list.
    List(Box<Shape>),
    /// A map with texts as keys.
    Map(Box<Shape>),
}

/// One field of a type.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in JSON.
    pub name: &'static str,
    /// Number in protobuf; 0 if it has none in this message.
    pub number: u32,
    /// What it holds.
    pub shape: Shape,
    /// Whether it is written even when it is zero: required fields and a few others.
    pub always: bool,
    /// Whether an absent value is written as null rather than as an empty object.
    pub nullable: bool,
    /// Whether a zero that was given is kept.
    pub pointer: bool,
    /// Keys of a list of objects for server-side apply; empty for other lists.
    pub keys: Vec<Text>,
    /// Whether a list is a set for server-side apply.
    pub set: bool,
    /// Whether a map or object is owned as a whole by server-side apply.
    pub atomic: bool,
    /// Rule for strategic merge, if there is one.
    pub patch: Option<PatchMerge>,
}

/// One type.
#[derive(Debug, Default)]
pub struct Type {
    /// Whether objects of this type are owned as a whole by server-side apply.
    pub atomic: bool,
    /// Messages inlined into this one in JSON: protobuf number and type name.
    pub inlined: Vec<(u32, &'static str)>,
    /// Fields, sorted by name.
    pub fields: Vec<Field>,
}

impl Type {
    /// The field with that JSON name.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|at| &self.fields[at])
    }

    /// The field with that protobuf number.
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|field| field.number == number)
    }
}

static TYPES: LazyLock<HashMap<&'static str, Type>> = LazyLock::new(|| parse(TABLE));

/// The type with that name, such as `core.v1.Pod`.
pub fn find(name: &str) -> Option<&'static Type> {
    TYPES.get(name)
}

/// The field that a path of names leads to from a type; lists and maps are passed through (a map's key is a name).
pub fn field_at(root: &str, path: &[&str]) -> Option<&'static Field> {
    let mut current = find(root)?;
    let mut found = None;
    let mut names = path.iter();
    while let Some(name) = names.next() {
        let field = current.field(name)?;
        found = Some(field);
        let mut shape = &field.shape;
        loop {
            match shape {
                Shape::List(inner) => shape = inner,
                Shape::Map(inner) => {
                    if names.len() == 0 {
                        return found;
                    }
                    names.next();
                    found = None;
                    shape = inner;
                }
                _ => break,
            }
        }
        match shape {
            Shape::Object(name) => current = find(name)?,
            _ if names.len() == 0 => return found,
            _ => return None,
        }
    }
    found
}

fn parse(table: &'static str) -> HashMap<&'static str, Type> {
    let mut types = HashMap::new();
    let mut name = "";
    let mut current = Type::default();
    for line in table.lines() {
        let mut words = line.split(' ');
        let first = words.next().unwrap_or_default();
        match first {
            "T" => {
                finish(&mut types, name, std::mem::take(&mut current));
                name = words.next().unwrap_or_default();
                current.atomic = words.next().is_some();
            }
            "+" => {
                let number = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
                current.inlined.push((number, words.next().unwrap_or_default()));
            }
            _ => current.fields.extend(parse_field(first, words)),
        }
    }
    finish(&mut types, name, current);
    types
}

fn finish(types: &mut HashMap<&'static str, Type>, name: &'static str, mut done: Type) {
    if !name.is_empty() {
        done.fields.sort_by_key(|field| field.name);
        types.insert(name, done);
    }
}

fn parse_field(name: &'static str, mut words: std::str::Split<'static, char>) -> Option<Field> {
    let number = words.next()?.parse().ok()?;
    let shape = parse_shape(words.next()?)?;
    let mut field = Field {
        name,
        number,
        shape,
        always: false,
        nullable: false,
        pointer: false,
        keys: Vec::new(),
        set: false,
        atomic: false,
        patch: None,
    };
    for flag in words {
        match flag {
            "!" | "e" | "z" => field.always = true,
            "n" => field.nullable = true,
            "p" => field.pointer = true,
            "S" => field.set = true,
            "A" => field.atomic = true,
            "M" => field.patch.get_or_insert_default().merge = true,
            "R" => field.patch.get_or_insert_default().retain_keys = true,
            _ => {
                if let Some(keys) = flag.strip_prefix("k=") {
                    field.keys = keys.split(',').map(Cow::Borrowed).collect();
                } else if let Some(key) = flag.strip_prefix("P=") {
                    let patch = field.patch.get_or_insert_default();
                    patch.key = Some(Cow::Borrowed(key));
                    patch.merge = true;
                }
            }
        }
    }
    Some(field)
}

fn parse_shape(code: &'static str) -> Option<Shape> {
    Some(match code.as_bytes().first()? {
        b'[' => Shape::List(Box::new(parse_shape(&code[1..])?)),
        b'{' => Shape::Map(Box::new(parse_shape(&code[1..])?)),
        b'@' => Shape::Object(&code[1..]),
        b's' => Shape::Text,
        b'b' => Shape::Bool,
        b'i' => Shape::Int,
        b'l' => Shape::Long,
        b'd' => Shape::Double,
        b'y' => Shape::Bytes,
        b'q' => Shape::Quantity,
        b't' => Shape::Time,
        b'm' => Shape::MicroTime,
        b'x' => Shape::IntOrString,
        b'?' => Shape::Inlined,
        _ => match code {
            "*B" => Shape::SchemaOrBool,
            "*A" => Shape::SchemaOrArray,
            "*S" => Shape::SchemaOrTexts,
            _ => Shape::Any,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_in_the_table_resolves() {
        fn names(shape: &Shape) -> Option<&'static str> {
            match shape {
                Shape::Object(name) => Some(name),
                Shape::List(inner) | Shape::Map(inner) => names(inner),
                _ => None,
            }
        }
        for (name, kind) in TYPES.iter() {
            for field in &kind.fields {
                if let Some(target) = names(&field.shape) {
                    assert!(find(target).is_some(), "{name}.{} refers to {target}", field.name);
                }
            }
            for (_, target) in &kind.inlined {
                assert!(find(target).is_some(), "{name} inlines {target}");
            }
        }
    }

    #[test]
    fn paths_lead_through_lists_and_maps() {
        let keys = |root, path: &[&str]| field_at(root, path).map(|f| f.keys.join(","));
        assert_eq!(keys("core.v1.Pod", &["spec", "containers", "ports"]).as_deref(), Some("containerPort,protocol"));
        assert_eq!(keys("core.v1.Service", &["spec", "ports"]).as_deref(), Some("port,protocol"));
        assert!(keys("core.v1.Pod", &["spec", "nope"]).is_none());
        assert!(field_at("core.v1.Pod", &["metadata", "labels"]).is_some());
        let patch = field_at("core.v1.Service", &["spec", "ports"]).and_then(|f| f.patch.clone()).expect("a rule");
        assert_eq!((patch.key.as_deref(), patch.merge), (Some("port"), true));
    }
}
