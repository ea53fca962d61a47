//! Reading `function.yml`.

use std::path::{Path, PathBuf};

use api::functions::Function;
use serde::Deserialize;
use serde_json::Value;

/// The project's group and version.
const API_VERSION: &str = "functions.colibri.dev/v1";
/// Names that are looked for in a folder.
const NAMES: [&str; 2] = ["function.yml", "function.yaml"];

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The folder has none.
    #[error(
        "{0} has no function.yml. Write one; this is enough:\n\n  apiVersion: functions.colibri.dev/v1\n  kind: Function\n  metadata: {{ name: hello }}\n  spec: {{ runtime: python }}\n"
    )]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    /// It is no YAML.
    #[error("{path} is not valid YAML: {source}")]
    Yaml { path: PathBuf, source: serde_yaml_ng::Error },
    /// A field has the wrong type.
    #[error("{path}: {source}")]
    Shape { path: PathBuf, source: serde_json::Error },
    /// A field that a Function does not have.
    #[error("{path}: unknown field {field}; look at its spelling and its place")]
    Unknown { path: PathBuf, field: String },
    /// Another kind of object.
    #[error("{path}: holds a {kind}, not a Function of {API_VERSION}; use kubectl apply -f for it")]
    Kind { path: PathBuf, kind: String },
}

/// The manifest file of a folder.
pub fn find(folder: &Path) -> Result<PathBuf, ManifestError> {
    let mut files = NAMES.iter().map(|name| folder.join(name));
    files.find(|file| file.is_file()).ok_or_else(|| ManifestError::Missing(folder.to_path_buf()))
}

/// The Functions of a file; one without a name gets `default_name`.
pub fn read(path: &Path, default_name: &str) -> Result<Vec<Function>, ManifestError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ManifestError::Read { path: path.to_path_buf(), source })?;
    parse(&text, path, default_name)
}

fn parse(text: &str, path: &Path, default_name: &str) -> Result<Vec<Function>, ManifestError> {
    let mut functions = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let object =
            Value::deserialize(document).map_err(|source| ManifestError::Yaml { path: path.to_path_buf(), source })?;
        if !object.is_null() {
            functions.push(function(object, path, default_name)?);
        }
    }
    Ok(functions)
}

fn function(mut object: Value, path: &Path, default_name: &str) -> Result<Function, ManifestError> {
    let path = path.to_path_buf();
    let text = |object: &Value, field: &str| object.get(field).and_then(Value::as_str).map(str::to_owned);
    let kind = text(&object, "kind").unwrap_or_else(|| "Function".to_owned());
    let version = text(&object, "apiVersion").unwrap_or_else(|| API_VERSION.to_owned());
    if kind != "Function" || version != API_VERSION {
        return Err(ManifestError::Kind { path, kind: format!("{kind} of {version}") });
    }
    if let Some(fields) = object.as_object_mut() {
        fields.entry("metadata").or_insert_with(|| serde_json::json!({}));
        fields.entry("spec").or_insert_with(|| serde_json::json!({}));
        fields.remove("status");
        fields.insert("kind".to_owned(), kind.into());
        fields.insert("apiVersion".to_owned(), version.into());
    }
    let mut function: Function =
        serde_json::from_value(object.clone()).map_err(|source| ManifestError::Shape { path: path.clone(), source })?;
    let understood = serde_json::to_value(&function).unwrap_or_default();
    if let Some(field) = unknown(&object, &understood, "") {
        return Err(ManifestError::Unknown { path, field });
    }
    if function.metadata.name.as_deref().unwrap_or_default().is_empty() {
        function.metadata.name = Some(default_name.to_owned());
    }
    Ok(function)
}

/// The first field of `given` that was dropped on the way to `understood`.
fn unknown(given: &Value, understood: &Value, path: &str) -> Option<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => given.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match understood.get(name) {
                Some(found) => unknown(value, found, &path),
                None => (!is_empty(value)).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(understood)) => {
            let mut pairs = given.iter().zip(understood).enumerate();
            pairs.find_map(|(index, (given, understood))| unknown(given, understood, &format!("{path}[{index}]")))
        }
        _ => None,
    }
}

/// Empty values are dropped on the way without a loss.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[&str], &str>) {
        let found = parse(text, Path::new("function.yml"), "folder");
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let names: Vec<_> = found.iter().map(|function| function.metadata.name.clone().unwrap()).collect();
                assert_eq!(names, expected, "{text}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{error} does not contain {expected:?}");
            }
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn manifests() {
        check("spec: {runtime: python}", Ok(&["folder"]));
        check(
            "kind: Function\nmetadata: {name: a}\nspec: {runtime: python}\n---\nmetadata: {name: b}\n",
            Ok(&["a", "b"]),
        );
        check("spec: {runtime: python, volumes: [], delivery: null}", Ok(&["folder"]));
        check("spec: {runtime: python, env: [{name: A, value: b}], triggers: [{http: {path: /x}}]}", Ok(&["folder"]));
        check("spec: {runtme: python}", Err("unknown field spec.runtme"));
        check("spec: {runtime: python, scaling: {maximum: 3}}", Err("unknown field spec.scaling.maximum"));
        check("spec: {runtime: python, env: [{name: A, valeu: b}]}", Err("unknown field spec.env[0].valeu"));
        check("spec: {runtime: [python]}", Err("invalid type"));
        check("spec: {runtime: python", Err("not valid YAML"));
        check("kind: Service\napiVersion: serving.knative.dev/v1\nspec: {}", Err("kubectl apply -f"));
    }
}
