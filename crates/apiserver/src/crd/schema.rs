//! Structural schemas: pruning, defaulting and validation of custom resources.
//!
//! Source: the Kubernetes documentation on structural schemas; messages as `kube-openapi`'s validator gives them.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Number, Value};

use crate::place::Place;
use crate::resource::{FieldError, ListType, Text};

/// Size of a compiled pattern; larger ones are not checked.
const PATTERN_LIMIT_BYTES: usize = 1 << 20;

/// One node of a schema.
#[derive(Debug, Default)]
pub struct Schema {
    type_: Option<String>,
    nullable: bool,
    format: Option<String>,
    properties: BTreeMap<String, Schema>,
    additional: Additional,
    items: Option<Box<Schema>>,
    required: Vec<String>,
    enumeration: Vec<Value>,
    pattern: Option<(String, Regex)>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    minimum: Option<Number>,
    maximum: Option<Number>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<Number>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
    default: Option<Value>,
    /// Whether there is a default at or below this node.
    has_defaults: bool,
    preserve_unknown: bool,
    int_or_string: bool,
    embedded_resource: bool,
    list: List,
    /// `x-kubernetes-map-type: atomic`.
    pub(super) atomic_map: bool,
}

#[derive(Debug, Default)]
enum Additional {
    #[default]
    Unsaid,
    Allowed,
    Forbidden,
    Schema(Box<Schema>),
}

#[derive(Debug, Default)]
enum List {
    #[default]
    Atomic,
    Set,
    Map(Vec<Text>),
}

impl Schema {
    /// Compiles the JSON form.
    pub fn compile(value: &Value) -> Self {
        let number = |field: &str| value[field].as_u64();
        let flag = |field: &str| value[field] == true;
        let many =
            |field: &str| -> Vec<Schema> { value[field].as_array().into_iter().flatten().map(Self::compile).collect() };
        let texts = |field: &str| -> Vec<String> {
            value[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect()
        };
        let exact = |field: &str| match &value[field] {
            Value::Number(number) => Some(number.clone()),
            _ => None,
        };
        let pattern = value["pattern"].as_str().and_then(|pattern| {
            let regex = regex::RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT_BYTES).build().ok()?;
            Some((pattern.to_string(), regex))
        });
        let additional = match &value["additionalProperties"] {
            Value::Bool(true) => Additional::Allowed,
            Value::Bool(false) => Additional::Forbidden,
            schema @ Value::Object(_) => Additional::Schema(Box::new(Self::compile(schema))),
            _ => Additional::Unsaid,
        };
        let list = match value["x-kubernetes-list-type"].as_str() {
            Some("set") => List::Set,
            Some("map") => List::Map(texts("x-kubernetes-list-map-keys").into_iter().map(Text::from).collect()),
            _ => List::Atomic,
        };
        let mut schema = Self {
            type_: value["type"].as_str().filter(|t| !t.is_empty()).map(str::to_string),
            nullable: flag("nullable"),
            format: value["format"].as_str().map(str::to_string),
            properties: value["properties"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), Self::compile(v)))
                .collect(),
            additional,
            items: value["items"].is_object().then(|| Box::new(Self::compile(&value["items"]))),
            required: texts("required"),
            enumeration: value["enum"].as_array().cloned().unwrap_or_default(),
            pattern,
            min_length: number("minLength"),
            max_length: number("maxLength"),
            minimum: exact("minimum"),
            maximum: exact("maximum"),
            exclusive_minimum: flag("exclusiveMinimum"),
            exclusive_maximum: flag("exclusiveMaximum"),
            multiple_of: exact("multipleOf"),
            min_items: number("minItems"),
            max_items: number("maxItems"),
            unique_items: flag("uniqueItems"),
            min_properties: number("minProperties"),
            max_properties: number("maxProperties"),
            all_of: many("allOf"),
            any_of: many("anyOf"),
            one_of: many("oneOf"),
            not: value["not"].is_object().then(|| Box::new(Self::compile(&value["not"]))),
            default: value.get("default").cloned(),
            has_defaults: false,
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            embedded_resource: flag("x-kubernetes-embedded-resource"),
            list,
            atomic_map: value["x-kubernetes-map-type"] == "atomic",
        };
        let below = |schema: &Schema| schema.has_defaults;
        schema.has_defaults = schema.default.is_some()
            || schema.properties.values().any(below)
            || schema.items.as_deref().is_some_and(below)
            || matches!(&schema.additional, Additional::Schema(s) if s.has_defaults);
        schema
    }

    /// The schema at a path of field names.
    pub(super) fn at(&self, path: &[&str]) -> Option<&Schema> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        let here = if let (true, Some(items)) = (self.properties.is_empty(), &self.items) { items } else { self };
        match (here.properties.get(*first), &here.additional) {
            (Some(schema), _) => schema.at(rest),
            (None, Additional::Schema(schema)) => schema.at(rest),
            _ => None,
        }
    }

    /// How server-side apply merges this list.
    pub(super) fn list_type(&self) -> ListType<'_> {
        match &self.list {
            List::Atomic => ListType::Atomic,
            List::Set => ListType::Set,
            List::Map(keys) => ListType::Map(keys),
        }
    }

    /// Fills defaults in.
    pub fn default(&self, value: &mut Value) {
        if !self.has_defaults {
            return;
        }
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    let default = schema.default.as_ref();
                    match (map.get_mut(name), default) {
                        (None, Some(default)) => {
                            map.insert(name.clone(), default.clone());
                        }
                        // A null where null may not be takes the default as well.
                        (Some(value), Some(default)) if value.is_null() && !schema.nullable => *value = default.clone(),
                        _ => {}
                    }
                    if let Some(value) = map.get_mut(name) {
                        schema.default(value);
                    }
                }
                if let Additional::Schema(schema) = &self.additional {
                    let names = map.iter_mut().filter(|(name, _)| !self.properties.contains_key(*name));
                    for (_, value) in names {
                        if value.is_null()
                            && !schema.nullable
                            && let Some(default) = &schema.default
                        {
                            *value = default.clone();
                        }
                        schema.default(value);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for item in list {
                        if item.is_null()
                            && !items.nullable
                            && let Some(default) = &items.default
                        {
                            *item = default.clone();
                        }
                        items.default(item);
                    }
                }
            }
            _ => {}
        }
    }

    /// Removes what the schema does not know from an object; kind, apiVersion and metadata stay.
    pub fn prune_root(&self, object: &mut Value) {
        self.walk_unknown_mut(object, true);
    }

    fn walk_unknown_mut(&self, value: &mut Value, resource: bool) {
        match value {
            Value::Object(map) => {
                let kept = |name: &String| {
                    self.knows(name) || (resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata"))
                };
                map.retain(|name, _| kept(name));
                for (name, value) in map.iter_mut() {
                    if resource && name == "metadata" {
                        continue;
                    }
                    if let Some(schema) = self.child(name) {
                        schema.walk_unknown_mut(value, schema.embedded_resource);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|item| items.walk_unknown_mut(item, items.embedded_resource));
                }
            }
            _ => {}
        }
    }

    fn knows(&self, name: &str) -> bool {
        self.preserve_unknown
            || self.properties.contains_key(name)
            || matches!(self.additional, Additional::Allowed | Additional::Schema(_))
    }

    fn child(&self, name: &str) -> Option<&Schema> {
        match (self.properties.get(name), &self.additional) {
            (Some(schema), _) => Some(schema),
            (None, Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// Paths of fields that pruning removes.
    pub fn unknown_root(&self, object: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.find_unknown(object, true, &Place::Root, &mut found);
        found.sort();
        found
    }

    fn find_unknown(&self, value: &Value, resource: bool, place: &Place<'_>, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    if resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                        continue;
                    }
                    let place = Place::Field(place, name);
                    match self.child(name) {
                        Some(schema) => schema.find_unknown(value, schema.embedded_resource, &place, found),
                        None if self.knows(name) => {}
                        None => found.push(place.to_string()),
                    }
                }
            }
            Value::Array(list) => {
                for (index, item) in list.iter().enumerate() {
                    if let Some(items) = &self.items {
                        items.find_unknown(item, items.embedded_resource, &Place::Item(place, index), found);
                    }
                }
            }
            _ => {}
        }
    }

    /// Faults of a whole object.
    pub fn validate_root(&self, object: &Value) -> Vec<FieldError> {
        let mut faults = Vec::new();
        self.validate(object, &Place::Root, &mut faults);
        faults
    }

    fn validate(&self, value: &Value, place: &Place<'_>, faults: &mut Vec<FieldError>) {
        if value.is_null() && self.nullable {
            return;
        }
        if let Some(fault) = self.type_fault(value, place) {
            faults.push(fault);
            return;
        }
        self.validate_value(value, place, faults);
        match value {
            Value::Object(map) => self.validate_object(map, place, faults),
            Value::Array(list) => self.validate_list(list, place, faults),
            _ => {}
        }
        self.validate_combined(value, place, faults);
    }

    fn type_fault(&self, value: &Value, place: &Place<'_>) -> Option<FieldError> {
        let is_integer = value.is_i64() || value.is_u64();
        let (fits, wanted) = match self.type_.as_deref() {
            _ if self.int_or_string => (value.is_string() || is_integer, "integer,string"),
            Some("integer") => (is_integer || value.as_f64().is_some_and(|f| f.fract() == 0.0), "integer"),
            Some("number") => (value.is_number(), "number"),
            Some(other) => (type_name(value) == other, other),
            None => return None,
        };
        (!fits).then(|| {
            let found = type_name(value);
            let why = format!("{place} in body must be of type {wanted}: \"{found}\"");
            FieldError::type_invalid(place, found, why)
        })
    }

    fn validate_value(&self, value: &Value, place: &Place<'_>, faults: &mut Vec<FieldError>) {
        if !self.enumeration.is_empty() && !self.enumeration.contains(value) {
            let supported: Vec<String> =
                self.enumeration.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string)).collect();
            let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
            faults.push(FieldError::not_supported(place, value.clone(), &supported));
        }
        if let Some(text) = value.as_str() {
            let length = text.chars().count() as u64;
            if let Some(max) = self.max_length.filter(|max| length > *max) {
                faults.push(FieldError {
                    detail: format!("may not be more than {max} bytes"),
                    ..FieldError::too_long(place, 0)
                });
            }
            if let Some(min) = self.min_length.filter(|min| length < *min) {
                let why = format!("{place} in body should be at least {min} chars long");
                faults.push(FieldError::invalid(place, text, why));
            }
            if let Some((pattern, _)) = self.pattern.as_ref().filter(|(_, regex)| !regex.is_match(text)) {
                let why = format!("{place} in body should match '{pattern}'");
                faults.push(FieldError::invalid(place, text, why));
            }
            if let Some(format) = self.format.as_deref().filter(|format| !format_holds(format, text)) {
                let why = format!("{place} in body must be of type {format}: {}", crate::quote::quoted(text));
                faults.push(FieldError::invalid(place, text, why));
            }
        }
        if value.is_number() {
            self.validate_number(value, place, faults);
        }
    }

    fn validate_number(&self, value: &Value, place: &Place<'_>, faults: &mut Vec<FieldError>) {
        let Some(number) = value.as_f64() else { return };
        let as_f64 = |n: &Number| n.as_f64().unwrap_or(0.0);
        if let Some(max) = &self.maximum {
            let (limit, strict) = (as_f64(max), self.exclusive_maximum);
            if number > limit || (strict && number >= limit) {
                let word = if strict { "less than" } else { "less than or equal to" };
                faults.push(FieldError::invalid(
                    place,
                    value.clone(),
                    format!("{place} in body should be {word} {max}"),
                ));
            }
        }
        if let Some(min) = &self.minimum {
            let (limit, strict) = (as_f64(min), self.exclusive_minimum);
            if number < limit || (strict && number <= limit) {
                let word = if strict { "greater than" } else { "greater than or equal to" };
                faults.push(FieldError::invalid(
                    place,
                    value.clone(),
                    format!("{place} in body should be {word} {min}"),
                ));
            }
        }
        if let Some(factor) = &self.multiple_of {
            let quotient = number / as_f64(factor);
            if (quotient - quotient.round()).abs() > 1e-9 {
                faults.push(FieldError::invalid(
                    place,
                    value.clone(),
                    format!("{place} in body should be a multiple of {factor}"),
                ));
            }
        }
        if let Some(format) = self.format.as_deref() {
            let fits = match format {
                "int32" => value.as_i64().is_none_or(|n| i32::try_from(n).is_ok()),
                _ => true,
            };
            if !fits {
                let why = format!("{place} in body must be of type {format}: \"{value}\"");
                faults.push(FieldError::invalid(place, value.clone(), why));
            }
        }
    }

    fn validate_object(&self, map: &Map<String, Value>, place: &Place<'_>, faults: &mut Vec<FieldError>) {
        // Metadata is checked by the engine, but for what the schema says of it.
        let is_ours = |name: &str| !place.is_root() || name != "metadata" || self.properties.contains_key(name);
        let count = map.keys().filter(|name| is_ours(name)).count() as u64;
        if let Some(max) = self.max_properties.filter(|max| count > *max) {
            faults.push(too_many(place, count, max));
        }
        if let Some(min) = self.min_properties.filter(|min| count < *min) {
            let why = format!("{place} in body should have at least {min} properties");
            faults.push(FieldError::invalid(place, Value::Object(map.clone()), why));
        }
        for (name, value) in map.iter().filter(|(name, _)| is_ours(name)) {
            if let Some(schema) = self.child(name) {
                schema.validate(value, &Place::Field(place, name), faults);
            } else if matches!(self.additional, Additional::Forbidden) {
                let why = format!("{} in body is a forbidden property", Place::Field(place, name));
                faults.push(FieldError::invalid(place, name.as_str(), why));
            }
        }
        for name in self.required.iter().filter(|name| !map.contains_key(*name)) {
            faults.push(FieldError::required(&Place::Field(place, name), ""));
        }
    }

    fn validate_list(&self, list: &[Value], place: &Place<'_>, faults: &mut Vec<FieldError>) {
        let count = list.len() as u64;
        if let Some(max) = self.max_items.filter(|max| count > *max) {
            faults.push(too_many(place, count, max));
        }
        if let Some(min) = self.min_items.filter(|min| count < *min) {
            let why = format!("{place} in body should have at least {min} items");
            faults.push(FieldError::invalid(place, count, why));
        }
        if self.unique_items && (1..list.len()).any(|at| list[..at].contains(&list[at])) {
            let why = format!("{place} in body shouldn't contain duplicates");
            faults.push(FieldError::invalid(place, "", why));
        }
        self.validate_keys(list, place, faults);
        if let Some(items) = &self.items {
            for (index, item) in list.iter().enumerate() {
                items.validate(item, &Place::Item(place, index), faults);
            }
        }
    }

    /// Items of sets and maps must differ.
    fn validate_keys(&self, list: &[Value], place: &Place<'_>, faults: &mut Vec<FieldError>) {
        match &self.list {
            List::Atomic => {}
            List::Set => {
                for at in 1..list.len() {
                    if list[..at].contains(&list[at]) {
                        faults.push(FieldError::duplicate(&Place::Item(place, at), list[at].clone()));
                    }
                }
            }
            List::Map(keys) => {
                let id = |item: &Value| -> Value {
                    let pair = |key: &Text| Some((key.to_string(), item.get(&**key)?.clone()));
                    Value::Object(keys.iter().filter_map(pair).collect())
                };
                let ids: Vec<Value> = list.iter().map(id).collect();
                for at in 1..ids.len() {
                    if ids[..at].contains(&ids[at]) {
                        faults.push(FieldError::duplicate(&Place::Item(place, at), ids[at].clone()));
                    }
                }
            }
        }
    }

    fn validate_combined(&self, value: &Value, place: &Place<'_>, faults: &mut Vec<FieldError>) {
        let holds = |schema: &Schema| {
            let mut found = Vec::new();
            schema.validate(value, place, &mut found);
            found
        };
        for schema in &self.all_of {
            let found = holds(schema);
            if !found.is_empty() {
                faults.extend(found);
                faults.push(FieldError::invalid(
                    place,
                    shown_value(value, place),
                    format!("{place} in body must validate all the schemas (allOf)"),
                ));
            }
        }
        if !self.any_of.is_empty() {
            let all: Vec<Vec<FieldError>> = self.any_of.iter().map(holds).collect();
            if !all.iter().any(Vec::is_empty) {
                faults.push(FieldError::invalid(
                    place,
                    shown_value(value, place),
                    format!("{place} in body must validate at least one schema (anyOf)"),
                ));
                faults.extend(all.into_iter().next().unwrap_or_default());
            }
        }
        if !self.one_of.is_empty() {
            let matching = self.one_of.iter().filter(|schema| holds(schema).is_empty()).count();
            if matching != 1 {
                let found = if matching == 0 {
                    "Found none valid".to_string()
                } else {
                    format!("Found {matching} valid alternatives")
                };
                let why = format!("{place} in body must validate one and only one schema (oneOf). {found}");
                faults.push(FieldError::invalid(place, shown_value(value, place), why));
            }
        }
        if self.not.as_deref().is_some_and(|schema| holds(schema).is_empty()) {
            let why = format!("{place} in body must not validate the schema (not)");
            faults.push(FieldError::invalid(place, shown_value(value, place), why));
        }
    }
}

fn shown_value(value: &Value, place: &Place<'_>) -> Value {
    if place.is_root() && value.is_object() { "".into() } else { value.clone() }
}

fn too_many(place: &Place<'_>, count: u64, max: u64) -> FieldError {
    FieldError::too_many(
        place,
        usize::try_from(count).unwrap_or(usize::MAX),
        usize::try_from(max).unwrap_or(usize::MAX),
    )
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn format_holds(format: &str, text: &str) -> bool {
    match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok() && text.len() == 10,
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" | "uuid4" => uuid::Uuid::parse_str(text).is_ok(),
        "byte" => {
            use base64::Engine;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "uri" => url::Url::parse(text).is_ok() || text.starts_with('/'),
        "email" => text.contains('@') && !text.starts_with('@') && !text.ends_with('@'),
        "hostname" => !text.is_empty() && text.len() <= 255,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::compile(&json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object", "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "minLength": 2, "pattern": "^[a-z]+$"},
                        "size": {"type": "integer", "minimum": 1, "default": 3},
                        "port": {"x-kubernetes-int-or-string": true},
                        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                        "mode": {"type": "string", "enum": ["A", "B"]},
                        "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                    },
                },
            },
        }))
    }

    #[test]
    fn unknown_fields_are_found_and_pruned() {
        let mut object =
            json!({"kind": "X", "metadata": {"any": 1}, "spec": {"name": "ab", "x": 1, "free": {"y": 1}}, "z": 2});
        assert_eq!(schema().unknown_root(&object), ["spec.x", "z"]);
        schema().prune_root(&mut object);
        assert_eq!(object, json!({"kind": "X", "metadata": {"any": 1}, "spec": {"name": "ab", "free": {"y": 1}}}));
    }

    #[test]
    fn defaults_fill_in_what_is_missing() {
        let mut object = json!({"spec": {"name": "ab"}});
        schema().default(&mut object);
        assert_eq!(object, json!({"spec": {"name": "ab", "size": 3}}));
        let mut without_spec = json!({});
        schema().default(&mut without_spec);
        assert_eq!(without_spec, json!({}));
    }

    #[test]
    fn faults_have_the_reference_texts() {
        let rows = [
            (json!({"spec": {}}), "spec.name: Required value"),
            (
                json!({"spec": {"name": 5}}),
                "spec.name: Invalid value: \"integer\": spec.name in body must be of type string: \"integer\"",
            ),
            (
                json!({"spec": {"name": "a"}}),
                "spec.name: Invalid value: \"a\": spec.name in body should be at least 2 chars long",
            ),
            (
                json!({"spec": {"name": "ABC"}}),
                "spec.name: Invalid value: \"ABC\": spec.name in body should match '^[a-z]+$'",
            ),
            (
                json!({"spec": {"name": "ab", "size": 0}}),
                "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1",
            ),
            (
                json!({"spec": {"name": "ab", "mode": "C"}}),
                "spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\"",
            ),
            (json!({"spec": {"name": "ab", "tags": ["x", "x"]}}), "spec.tags[1]: Duplicate value: \"x\""),
        ];
        for (object, expected) in rows {
            let faults: Vec<String> = schema().validate_root(&object).iter().map(ToString::to_string).collect();
            assert_eq!(faults, [expected], "for {object}");
        }
        assert!(schema().validate_root(&json!({"spec": {"name": "ab", "port": "http"}})).is_empty());
    }
}
