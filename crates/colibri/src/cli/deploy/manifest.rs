//! Reading `function.yml`, and files with Functions and Knative Services.

use std::path::{Path, PathBuf};

use api::fields;
use api::functions::Function;
use api::functions::admission::Problem;
use serde::Deserialize;
use serde_json::Value;

/// The project's group and version.
const API_VERSION: &str = "functions.colibri.dev/v1";
/// Knative's.
const SERVING_VERSION: &str = "serving.knative.dev/v1";
/// Names that are looked for in a folder.
const NAMES: [&str; 2] = ["function.yml", "function.yaml"];

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The folder itself is not there.
    #[error("there is no folder {0}; name the one with function.yml and the code")]
    NoFolder(PathBuf),
    /// A file where a folder should be.
    #[error("{0} is a file, not a folder; a file of Functions or Services is named with -f {0}")]
    NotFolder(PathBuf),
    /// The folder has none.
    #[error(
        "{0} has no function.yml. Write one; this is enough:\n\n  apiVersion: functions.colibri.dev/v1\n  kind: Function\n  metadata: {{ name: hello }}\n  spec: {{ runtime: python }}\n"
    )]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("{path} cannot be read: {source}; name a file that is there")]
    Read { path: PathBuf, source: std::io::Error },
    /// It is no YAML.
    #[error("{path} is not valid YAML: {source}. Look at the indentation and the brackets there")]
    Yaml { path: PathBuf, source: serde_yaml_ng::Error },
    /// A field has the wrong type in a way that its schema does not tell.
    #[error("{path}: {source}")]
    Shape { path: PathBuf, source: serde_json::Error },
    /// Fields that do not exist or have another type.
    #[error("{path} is not valid:{}", problems.iter().map(|problem| format!("\n  {problem}")).collect::<String>())]
    Fields { path: PathBuf, problems: Vec<Problem> },
    /// Another kind of object.
    #[error(
        "{path}: holds a {kind}, not a Function of {API_VERSION} or a Service of {SERVING_VERSION}{meant}; use kubectl apply -f for other kinds"
    )]
    Kind { path: PathBuf, kind: String, meant: String },
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A Function.
    Function(Box<Function>),
    /// A Knative Service, as it was written.
    Service(Value),
}

/// The manifest file of a folder.
pub fn find(folder: &Path) -> Result<PathBuf, ManifestError> {
    match std::fs::metadata(folder) {
        Err(_) => return Err(ManifestError::NoFolder(folder.to_path_buf())),
        Ok(found) if !found.is_dir() => return Err(ManifestError::NotFolder(folder.to_path_buf())),
        Ok(_) => {}
    }
    let mut files = NAMES.iter().map(|name| folder.join(name));
    files.find(|file| file.is_file()).ok_or_else(|| ManifestError::Missing(folder.to_path_buf()))
}

/// What a file holds; a Function without a name gets `default_name`. `-` is standard input.
pub fn read(path: &Path, default_name: &str) -> Result<Vec<Document>, ManifestError> {
    let text =
        if path.as_os_str() == "-" { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|source| ManifestError::Read { path: path.to_path_buf(), source })?;
    parse(&text, path, default_name)
}

fn parse(text: &str, path: &Path, default_name: &str) -> Result<Vec<Document>, ManifestError> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let object =
            Value::deserialize(document).map_err(|source| ManifestError::Yaml { path: path.to_path_buf(), source })?;
        if !object.is_null() {
            documents.push(self::document(object, path, default_name)?);
        }
    }
    Ok(documents)
}

fn document(object: Value, path: &Path, default_name: &str) -> Result<Document, ManifestError> {
    let text = |field: &str, default: &str| object.get(field).and_then(Value::as_str).unwrap_or(default).to_owned();
    let (kind, version) = (text("kind", "Function"), text("apiVersion", API_VERSION));
    match (kind.as_str(), version.as_str()) {
        ("Function", API_VERSION) => function(object, path, default_name),
        ("Service", SERVING_VERSION) => service(object, path),
        _ => {
            let kinds = [("Function", API_VERSION), ("Service", SERVING_VERSION)];
            let near = kinds.iter().find(|(known, own)| {
                (base::nearest(&kind, [*known]).is_some() && base::nearest(&version, [*own]).is_some())
                    || (kind == *known && version.split('/').next() == own.split('/').next())
            });
            let meant = near.map(|(kind, version)| format!("; did you mean {kind} of {version}?")).unwrap_or_default();
            Err(ManifestError::Kind { path: path.to_path_buf(), kind: format!("{kind} of {version}"), meant })
        }
    }
}

fn function(mut object: Value, path: &Path, default_name: &str) -> Result<Document, ManifestError> {
    let path = path.to_path_buf();
    let problems = fields::of_function(&object);
    if !problems.is_empty() {
        return Err(ManifestError::Fields { path, problems });
    }
    if let Some(fields) = object.as_object_mut() {
        for part in ["metadata", "spec"] {
            let entry = fields.entry(part).or_insert(Value::Null);
            if entry.is_null() {
                *entry = serde_json::json!({});
            }
        }
        fields.remove("status");
        fields.insert("kind".to_owned(), "Function".into());
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
    }
    let mut function: Function =
        serde_json::from_value(object).map_err(|source| ManifestError::Shape { path, source })?;
    if function.metadata.name.as_deref().unwrap_or_default().is_empty() {
        function.metadata.name = Some(default_name.to_owned());
    }
    Ok(Document::Function(Box::new(function)))
}

fn service(mut object: Value, path: &Path) -> Result<Document, ManifestError> {
    let path = path.to_path_buf();
    let mut problems = fields::of_service(&object);
    if object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().is_empty() {
        problems.push(Problem {
            field: "metadata.name".to_owned(),
            message: "is missing; give the service a name".to_owned(),
        });
    }
    if !problems.is_empty() {
        return Err(ManifestError::Fields { path, problems });
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    Ok(Document::Service(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[&str], &str>) {
        let found = parse(text, Path::new("function.yml"), "folder");
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                let name = |document: &Document| match document {
                    Document::Function(function) => function.metadata.name.clone().unwrap(),
                    Document::Service(service) => format!("service {}", service["metadata"]["name"].as_str().unwrap()),
                };
                assert_eq!(found.iter().map(name).collect::<Vec<_>>(), expected, "{text}");
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
        check(
            "kind: Service\napiVersion: serving.knative.dev/v1\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{image: a}]}}}",
            Ok(&["service web"]),
        );
        check("spec: {runtme: python}", Err("spec.runtme: unknown field; did you mean runtime?"));
        check("spec: {runtime: python, env: [{name: A, valeu: b}]}", Err("spec.env[0].valeu: unknown field"));
        check("spec: {runtme: a, handlr: b}", Err("spec.handlr: unknown field; did you mean handler?"));
        check("spec: {runtime: [python]}", Err("spec.runtime: is a list, but must be a text"));
        check("spec: {runtime: python", Err("not valid YAML"));
        check("kind: Service\napiVersion: serving.knative.dev/v1\nspec: {}", Err("metadata.name: is missing"));
        check(
            "kind: Servce\napiVersion: serving.knative.dev/v1\nspec: {}",
            Err("did you mean Service of serving.knative.dev/v1?"),
        );
        check(
            "kind: Function\napiVersion: functions.colibri.dev/v2\nspec: {}",
            Err("did you mean Function of functions.colibri.dev/v1?"),
        );
        check("kind: Deployment\napiVersion: apps/v1\nspec: {}", Err("kubectl apply -f"));
    }
}
