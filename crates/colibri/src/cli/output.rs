//! `-o`: the form of what is printed.

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::error::print;

/// The forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// Everything, as JSON
    Json,
    /// Everything, as YAML
    Yaml,
    /// Names alone, one a line, as kubectl takes them
    Name,
}

/// The flag.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// Form of the output
    #[arg(long, short, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub output: Format,
}

impl OutputArgs {
    /// Prints `value` in a form for programs, or what `table` and `name` make for people and scripts.
    pub fn show(self, value: &Value, name: impl FnOnce() -> String, table: impl FnOnce() -> String) {
        print(&match self.output {
            Format::Json => json(value),
            Format::Yaml => yaml(value),
            Format::Name => name(),
            Format::Table => table(),
        });
    }
}

/// JSON as people and programs read it.
pub fn json(value: &Value) -> String {
    format!("{value:#}\n")
}

fn yaml(value: &Value) -> String {
    // Every JSON value is a YAML value.
    serde_yaml_ng::to_string(value).unwrap_or_else(|_| json(value))
}

/// Objects in a list, as `kubectl get -o json` prints them.
pub fn list_of(items: Vec<Value>) -> Value {
    serde_json::json!({ "apiVersion": "v1", "kind": "List", "metadata": {}, "items": items })
}

/// An object without what only programs of the cluster read.
pub fn tidy(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_in_both_forms() {
        let value = list_of(vec![tidy(serde_json::json!({"metadata": {"name": "a", "managedFields": []}}))]);
        let from_yaml: Value = serde_yaml_ng::from_str(&yaml(&value)).unwrap();
        let from_json: Value = serde_json::from_str(&json(&value)).unwrap();
        assert_eq!((&from_yaml, &from_json), (&value, &value));
        assert!(!json(&value).contains("managedFields"));
    }
}
