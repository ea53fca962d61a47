//! Fields that do not exist or have values of another type, each with what was probably meant.
//!
//! Works on the JSON itself, since what a type does not know is lost when it is read.

use std::fmt::Write;
use std::sync::LazyLock;

use base::nearest;
use base::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::functions::admission::Problem;
use crate::serving::annotations as keys;

/// Fields that a text lists at most.
const NAMED_FIELDS: usize = 12;
/// Problems that are told at most: a file that is something else altogether has one everywhere.
const PROBLEMS_LIMIT: usize = 20;
/// How deep a field is looked for that stands at the wrong place.
const SEARCH_DEPTH: usize = 6;

static FUNCTION: LazyLock<Value> = LazyLock::new(object::<crate::functions::FunctionSpec>);
static SERVICE: LazyLock<Value> = LazyLock::new(object::<crate::serving::ServiceSpec>);

/// Whether every wanted field is present with its value; the API server's defaults may stand beside them.
pub fn holds(present: &Value, wanted: &Value) -> bool {
    match (present, wanted) {
        (Value::Object(present), Value::Object(wanted)) => wanted.iter().all(|(name, value)| match present.get(name) {
            Some(found) => holds(found, value),
            None => is_empty(value),
        }),
        (Value::Array(present), Value::Array(wanted)) => {
            present.len() == wanted.len() && present.iter().zip(wanted).all(|(present, wanted)| holds(present, wanted))
        }
        (present, wanted) => present == wanted,
    }
}

/// Whether a value says as much as its absence.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Problems of a Function's fields; its `status` is not looked at.
pub fn of_function(object: &Value) -> Vec<Problem> {
    check(object, &FUNCTION)
}

/// Problems of a Knative Service's fields; its `status` is not looked at.
pub fn of_service(object: &Value) -> Vec<Problem> {
    check(object, &SERVICE)
}

/// Annotations of a Service's template that Knative's prefixes make look known, but that nobody reads.
pub fn ignored_annotations(service: &Value) -> Vec<Problem> {
    let annotations = service.pointer("/spec/template/metadata/annotations").and_then(Value::as_object);
    let names = annotations.into_iter().flatten().map(|(name, _)| name.as_str());
    let ours = names
        .filter(|name| name.starts_with(keys::AUTOSCALING_PREFIX) && !known_annotations().any(|known| known == *name));
    let tell = |name: &str| Problem {
        field: format!("spec.template.metadata.annotations.{name}"),
        message: format!("no such annotation, it is ignored{}", meant(nearest(name, known_annotations()))),
    };
    ours.map(tell).collect()
}

fn known_annotations() -> impl Iterator<Item = &'static str> {
    keys::AUTOSCALING.iter().copied().flatten().copied()
}

/// The schema of an object whose spec is `T`.
fn object<T: JsonSchema>() -> Value {
    let schema = |generate: fn(&mut schemars::SchemaGenerator) -> schemars::Schema| {
        let mut settings = SchemaSettings::draft2019_09();
        settings.inline_subschemas = true;
        settings.meta_schema = None;
        generate(&mut settings.into_generator()).to_value()
    };
    json!({ "type": "object", "properties": {
        "apiVersion": { "type": "string" }, "kind": { "type": "string" }, "status": true,
        "metadata": schema(ObjectMeta::json_schema), "spec": schema(T::json_schema),
    }})
}

fn check(object: &Value, schema: &Value) -> Vec<Problem> {
    let mut checker = Checker { root: schema, problems: Vec::new() };
    checker.value(object, schema, "");
    checker.problems.truncate(PROBLEMS_LIMIT);
    checker.problems
}

struct Checker<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn add(&mut self, field: &str, message: String) {
        let field = if field.is_empty() { "the file" } else { field };
        self.problems.push(Problem { field: field.to_owned(), message });
    }

    fn value(&mut self, value: &Value, schema: &Value, path: &str) {
        let schema = present(schema);
        if value.is_null() || schema["x-kubernetes-int-or-string"] == true {
            return;
        }
        match type_of(schema) {
            Some("object") => match value {
                Value::Object(fields) => self.object(fields, schema, path),
                other => self.add(
                    path,
                    format!("is {}, but holds fields of its own: write them below it, indented", named(other)),
                ),
            },
            Some("array") => match value {
                Value::Array(items) => {
                    for (index, item) in items.iter().enumerate() {
                        self.value(item, &schema["items"], &format!("{path}[{index}]"));
                    }
                }
                other => self.add(path, format!("is {}, but must be a list: begin each entry with -", named(other))),
            },
            Some("string") if !value.is_string() => {
                let cure = if value.is_array() || value.is_object() {
                    "write one word or text".to_owned()
                } else {
                    format!("put it in quotes: \"{value}\"")
                };
                self.add(path, format!("is {}, but must be a text; {cure}", named(value)));
            }
            Some("integer") => self.integer(value, schema, path),
            Some("boolean") if !value.is_boolean() => {
                self.add(path, format!("is {}, but must be true or false, without quotes", named(value)));
            }
            _ => {}
        }
    }

    fn integer(&mut self, value: &Value, schema: &Value, path: &str) {
        let least = schema["minimum"].as_i64();
        match value.as_i64() {
            None => self.add(path, format!("is {}, but must be a whole number, without quotes", named(value))),
            Some(number) if least.is_some_and(|least| number < least) => {
                self.add(path, format!("{number} is less than {}, the least there is", least.unwrap_or_default()));
            }
            Some(_) => {}
        }
    }

    fn object(&mut self, fields: &Map<String, Value>, schema: &Value, path: &str) {
        let known = schema["properties"].as_object();
        let other = &schema["additionalProperties"];
        for (name, value) in fields {
            let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.value(value, schema, &below),
                None if other.is_object() => {
                    self.value(value, other, &below);
                    self.quantity(value, path, name, &below);
                }
                None if known.is_some() && *other != true => self.unknown(name, &below, known),
                None => {}
            }
        }
    }

    /// Requests and limits hold quantities, which their schema calls texts.
    fn quantity(&mut self, value: &Value, parent: &str, name: &str, path: &str) {
        let is_one = parent.ends_with("resources.limits") || parent.ends_with("resources.requests");
        if let Some(text) = value.as_str().filter(|text| is_one && Quantity::parse(text).is_err()) {
            let example = if name == "cpu" { "250m or 1" } else { "64Mi or 1Gi" };
            self.add(path, format!("{text:?} is not a quantity; write it like {example}"));
        }
    }

    fn unknown(&mut self, name: &str, path: &str, known: Option<&Map<String, Value>>) {
        let siblings = || known.into_iter().flatten().map(|(name, _)| name.as_str());
        let near = nearest(name, siblings());
        // A right name at a wrong place says more than a wrong name.
        let elsewhere = if near.is_some() { None } else { find(self.root, name) };
        let cure = match (near, elsewhere) {
            (Some(near), _) => meant(Some(near)),
            (None, Some(place)) => format!("; it belongs in {place}: look at the indentation"),
            (None, None) => {
                let mut list = siblings().take(NAMED_FIELDS).collect::<Vec<_>>().join(", ");
                if siblings().count() > NAMED_FIELDS {
                    list.push_str(", ...");
                }
                format!("; there are {list}")
            }
        };
        self.add(path, format!("unknown field{cure}"));
    }
}

fn meant(near: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(near) = near {
        let _ = write!(text, "; did you mean {near}?"); // to memory
    }
    text
}

/// The schema of a value that is there, where it might be absent.
fn present(schema: &Value) -> &Value {
    let options = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array());
    let mut options = options.into_iter().flatten();
    options.find(|option| option["type"] != "null").unwrap_or(schema)
}

fn type_of(schema: &Value) -> Option<&str> {
    match &schema["type"] {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

fn named(value: &Value) -> String {
    match value {
        Value::Null => "empty".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("{value}"),
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a group of fields".to_owned(),
    }
}

/// The place of a field of that name that is nearest to the top; metadata apart.
fn find(schema: &Value, name: &str) -> Option<String> {
    let mut level = vec![(String::new(), present(schema))];
    for _ in 0..SEARCH_DEPTH {
        let mut next = Vec::new();
        for (path, schema) in level {
            let below = |field: &str| if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") };
            for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
                if field == name {
                    return Some(below(field));
                }
                if field != "metadata" && field != "status" {
                    let schema = present(schema);
                    next.push((below(field), schema));
                    if schema["items"].is_object() {
                        next.push((format!("{}[]", below(field)), present(&schema["items"])));
                    }
                }
            }
        }
        level = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn fields_of_functions() {
        let rows = [
            (json!({"spec": {"runtime": "python", "scaling": {"max": 3}, "volumes": []}}), None),
            (json!({"spec": {"runtime": "python", "delivery": null, "triggers": [{"http": {"path": "/x"}}]}}), None),
            (json!({"spec": {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}}), None),
            (json!({"spec": {"resources": {"limits": {"memory": "64Mi"}}}}), None),
            (json!({"spec": {"runtme": "python"}}), Some("spec.runtme: unknown field; did you mean runtime?")),
            (
                json!({"spec": {"scaling": {"maximum": 3}}}),
                Some("spec.scaling.maximum: unknown field; did you mean max?"),
            ),
            (
                json!({"spec": {"env": [{"name": "A", "valeu": "b"}]}}),
                Some("spec.env[0].valeu: unknown field; did you mean value?"),
            ),
            (
                json!({"runtime": "python"}),
                Some("runtime: unknown field; it belongs in spec.runtime: look at the indentation"),
            ),
            (
                json!({"spec": {"idle": "6s"}}),
                Some("spec.idle: unknown field; it belongs in spec.scaling.idle: look at the indentation"),
            ),
            (json!({"spec": {"colour": "red"}}), Some("spec.colour: unknown field; there are build, delivery, env")),
            (json!({"spec": {"runtime": ["python"]}}), Some("spec.runtime: is a list, but must be a text")),
            (
                json!({"spec": {"scaling": {"max": "3"}}}),
                Some("spec.scaling.max: is the text \"3\", but must be a whole number, without quotes"),
            ),
            (json!({"spec": {"scaling": {"min": -1}}}), Some("spec.scaling.min: -1 is less than 0")),
            (json!({"spec": {"env": {"A": "b"}}}), Some("spec.env: is a group of fields, but must be a list")),
            (
                json!({"spec": {"env": [{"name": "A", "value": 1}]}}),
                Some("spec.env[0].value: is 1, but must be a text; put it in quotes: \"1\""),
            ),
            (json!({"spec": "python"}), Some("spec: is the text \"python\", but holds fields")),
            (json!(["a"]), Some("the file: is a list")),
        ];
        for (object, wanted) in rows {
            let found = texts(&of_function(&object));
            assert_eq!(found.len(), usize::from(wanted.is_some()), "{object}: {found:?}");
            assert!(found.concat().starts_with(wanted.unwrap_or_default()), "{object}: {found:?}");
        }
    }

    #[test]
    fn fields_of_services() {
        let service = |spec: Value| json!({"metadata": {"name": "a"}, "spec": {"template": {"spec": spec}}});
        let good = json!({
            "containerConcurrency": 1, "timeoutSeconds": 9, "serviceAccountName": "a",
            "containers": [{"image": "a", "ports": [{"containerPort": 80}], "securityContext": {"runAsUser": 1},
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}},
                "resources": {"requests": {"cpu": "1"}}}],
        });
        assert_eq!(of_service(&service(good)), []);
        let rows = [
            (json!({"contaners": []}), "spec.template.spec.contaners: unknown field; did you mean containers?"),
            (
                json!({"containers": [{"imgae": "a"}]}),
                "spec.template.spec.containers[0].imgae: unknown field; did you mean image?",
            ),
            (
                json!({"containers": [{"ports": [{"containerPorts": 1}]}]}),
                "spec.template.spec.containers[0].ports[0].containerPorts: unknown field; did you mean containerPort?",
            ),
            (
                json!({"containers": [{"resources": {"limits": {"memory": "lots"}}}]}),
                "spec.template.spec.containers[0].resources.limits.memory: \"lots\" is not a quantity; write it like 64Mi",
            ),
            (
                json!({"containers": {"image": "a"}}),
                "spec.template.spec.containers: is a group of fields, but must be a list",
            ),
        ];
        for (spec, wanted) in rows {
            let found = texts(&of_service(&service(spec.clone())));
            assert!(found.len() == 1 && found[0].starts_with(wanted), "{spec}: {found:?}");
        }
        let misplaced = json!({"spec": {"containers": []}});
        assert_eq!(
            texts(&of_service(&misplaced)),
            ["spec.containers: unknown field; it belongs in spec.template.spec.containers: look at the indentation"]
        );
    }

    #[test]
    fn annotations_that_nobody_reads_are_told() {
        let service = |name: &str| json!({"spec": {"template": {"metadata": {"annotations": {name: "1"}}}}});
        assert_eq!(ignored_annotations(&service("autoscaling.knative.dev/minScale")), []);
        assert_eq!(ignored_annotations(&service("example.com/minscal")), []);
        let found = texts(&ignored_annotations(&service("autoscaling.knative.dev/min-scal")));
        assert!(found[0].ends_with("it is ignored; did you mean autoscaling.knative.dev/min-scale?"), "{found:?}");
    }

    proptest::proptest! {
        #[test]
        fn no_json_breaks_it(text in "[\\[\\]{}:,\"a-z0-9]{0,60}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                let _ = (of_function(&value), of_service(&value));
                let _ = of_function(&json!({"spec": value}));
            }
        }
    }

    #[test]
    fn defaults_may_stand_beside_what_is_wanted() {
        let wanted = json!({"containers": [{"image": "a", "env": []}], "timeoutSeconds": null});
        for (present, expected) in [
            (json!({"containers": [{"image": "a", "name": "user-container"}], "enableServiceLinks": false}), true),
            (json!({"containers": [{"image": "b"}]}), false),
            (json!({"containers": [{"image": "a"}, {"image": "c"}]}), false),
            (json!({}), false),
        ] {
            assert_eq!(holds(&present, &wanted), expected, "{present}");
        }
    }
}
