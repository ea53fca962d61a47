//! `colibri deploy`.

mod folder;
mod ignore;
mod manifest;
mod progress;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::functions::{Archive, Function, Source, admission};
use api::serving::Service;
use clap::Args;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::Value;
use tokio::time::Instant;

use self::manifest::Document;
use self::progress::Stages;
use super::access::{Access, Target};
use super::error::{CliError, causes};
use super::output::{Format, OutputArgs};
use super::uploads::Stores;
use super::{invoke, output};

/// Tries to write a Function that somebody else changes too.
const TRIES: usize = 5;
/// Who owns the fields of a Service that this command wrote.
const FIELD_MANAGER: &str = "colibri";

/// Arguments of `colibri deploy`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri deploy                        the function in this folder
  colibri deploy hello --name hi        the folder hello, as function hi
  colibri deploy -f functions.yml       all Functions and Knative Services of a file
  url=$(colibri deploy hello -o name)   for scripts; -o json gives the whole object")]
pub struct DeployArgs {
    /// Folder with function.yml and the code
    #[arg(default_value = ".", conflicts_with = "file")]
    dir: PathBuf,
    /// File with Functions and Knative Services; - is standard input. A Function without a source takes the code beside the file
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Name of the function [default: that in function.yml, else the folder's]
    #[arg(long)]
    name: Option<String>,
    /// Do not wait until it is ready
    #[arg(long)]
    no_wait: bool,
    /// Longest wait, such as 90s or 5m
    #[arg(long, default_value = "2m", value_parser = super::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Packs, uploads, writes and waits.
pub async fn run(args: DeployArgs) -> Result<(), CliError> {
    let (file, dir) = match &args.file {
        Some(file) => (file.clone(), file.parent().map(Path::to_path_buf).unwrap_or_default()),
        None => (manifest::find(&args.dir).map_err(said)?, args.dir.clone()),
    };
    let dir = if dir.as_os_str().is_empty() { PathBuf::from(".") } else { dir };
    let mut documents = manifest::read(&file, &folder_name(&dir)).map_err(said)?;
    match (&args.name, documents.as_mut_slice()) {
        (_, []) => return Err(CliError::new(format!("{} holds no Function or Service", file.display()))),
        (Some(name), [Document::Function(function)]) => function.metadata.name = Some(name.clone()),
        (Some(_), _) => return Err(CliError::new("--name needs a file with one Function")),
        (None, _) => {}
    }
    // What can be wrong here is said before a platform is asked for.
    let prepared: Vec<Prepared> =
        documents.into_iter().map(|document| prepare(&dir, document)).collect::<Result<_, _>>()?;
    let access = args.target.open().await?;
    let mut objects = Vec::new();
    for prepared in prepared {
        objects.push(deploy(&args, &access, prepared).await?);
    }
    let value = if objects.len() == 1 { objects[0].clone() } else { output::list_of(objects.clone()) };
    let urls = || {
        let url = |object: &Value| object.pointer("/status/url").and_then(Value::as_str).map(|url| format!("{url}\n"));
        objects.iter().filter_map(url).collect::<String>()
    };
    args.output.show(&value, urls, urls);
    Ok(())
}

/// What is to be written, and the archive that has to be uploaded first.
struct Prepared {
    document: Document,
    archive: Option<Packed>,
}

/// The code of a function.
struct Packed {
    bytes: Vec<u8>,
    files: usize,
}

fn prepare(dir: &Path, document: Document) -> Result<Prepared, CliError> {
    let Document::Function(mut function) = document else { return Ok(Prepared { document, archive: None }) };
    let mut archive = None;
    if function.spec.source.is_none() {
        let packed = pack(dir)?;
        let digest = Some(functions::pack::digest(&packed.bytes));
        let uploaded = Archive { digest, ..Archive::default() };
        function.spec.source = Some(Source { archive: Some(uploaded), ..Source::default() });
        archive = Some(packed);
    }
    check(&function)?;
    Ok(Prepared { document: Document::Function(function), archive })
}

/// Deploys one; the object as it is then.
async fn deploy(args: &DeployArgs, access: &Access, prepared: Prepared) -> Result<Value, CliError> {
    let mut stages = Stages::start();
    let (name, own_namespace) = match &prepared.document {
        Document::Function(function) => (function.name_any(), function.namespace()),
        Document::Service(service) => {
            let text = |field: &str| service["metadata"][field].as_str().map(str::to_owned);
            (text("name").unwrap_or_default(), text("namespace"))
        }
    };
    let namespace = args.target.namespace.clone().or(own_namespace).unwrap_or_else(|| access.namespace.clone());
    let access = Access { namespace, ..access.clone() };
    let (kind, change) = match prepared.document {
        Document::Function(mut function) => {
            function.metadata.namespace = Some(access.namespace.clone());
            if let Some(archive) = prepared.archive {
                let detail = upload(&access, archive).await?;
                stages.reached("upload", &detail);
            }
            ("function", write(&access, &function).await?)
        }
        Document::Service(mut service) => {
            for ignored in api::fields::ignored_annotations(&service) {
                eprintln!("warning: {ignored}");
            }
            service["metadata"]["namespace"] = access.namespace.clone().into();
            ("service", apply(&access, &name, &service).await?)
        }
    };
    stages.say(&format!("{kind} {name} {change}"));
    let name = format!("{kind}/{name}");
    if args.no_wait {
        return Ok(super::workload::Workload::find(&access, &name).await?.object());
    }
    let ready = progress::wait(&access, &name, Instant::now() + args.timeout, &mut stages).await?;
    if args.output.output == Format::Table {
        let url = ready.url().unwrap_or_default();
        stages.say(&format!("try it: {}", invoke::curl_line(url, access.gateway.as_deref())));
    }
    Ok(ready.object())
}

fn pack(dir: &Path) -> Result<Packed, CliError> {
    let files = folder::read(dir).map_err(said)?;
    if files.is_empty() {
        return Err(CliError::new(format!("{} has no code beside function.yml; write main.py there", dir.display())));
    }
    let bytes = functions::pack::pack(&files).map_err(said)?;
    Ok(Packed { bytes, files: files.len() })
}

/// Every problem at once, before anything is sent.
fn check(function: &Function) -> Result<(), CliError> {
    let problems = admission::validate(function);
    if problems.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
    Err(CliError::new(format!("function {} is not valid:\n{}", function.name_any(), lines.join("\n"))))
}

/// Uploads the code; what to say of it.
async fn upload(access: &Access, archive: Packed) -> Result<String, CliError> {
    let path = format!("namespaces/{}/archives", access.namespace);
    let expected = functions::pack::digest(&archive.bytes);
    let files = if archive.files == 1 { "1 file".to_owned() } else { format!("{} files", archive.files) };
    let size = super::table::size(archive.bytes.len() as u64);
    let answer = Stores::open(&access.client).await?.post(&path, archive.bytes).await?;
    match answer.get("digest").and_then(Value::as_str) {
        Some(digest) if digest == expected => Ok(format!("{files}, {size}")),
        found => Err(CliError::new(format!(
            "the upload was stored as {found:?}, not as {expected}: it was damaged on the way; try again"
        ))),
    }
}

/// Creates or changes the Service, by server-side apply: what others set stays.
async fn apply(access: &Access, name: &str, service: &Value) -> Result<&'static str, CliError> {
    let api: Api<Service> = Api::namespaced(access.client.clone(), &access.namespace);
    let failed = |error| CliError::api(&format!("write service {name}"), &error);
    let before = api.get_opt(name).await.map_err(failed)?.and_then(|found| found.metadata.generation);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let after = api.patch(name, &params, &Patch::Apply(service)).await.map_err(failed)?.metadata.generation;
    Ok(match before {
        None => "created",
        Some(before) if after == Some(before) => "unchanged",
        Some(_) => "changed",
    })
}

/// Creates or changes the Function: `created`, `changed` or `unchanged`.
async fn write(access: &Access, wanted: &Function) -> Result<&'static str, CliError> {
    let api: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
    let name = wanted.name_any();
    let params = PostParams::default();
    let mut tries = 0;
    loop {
        tries += 1;
        let present = api.get_opt(&name).await.map_err(|error| CliError::api(&format!("read {name}"), &error))?;
        let (result, word) = match present {
            None => (api.create(&params, wanted).await, "created"),
            Some(present) => {
                let merged = merge(&present, wanted);
                if merged == present {
                    return Ok("unchanged");
                }
                (api.replace(&name, &params, &merged).await, "changed")
            }
        };
        match result {
            Ok(_) => return Ok(word),
            Err(kube::Error::Api(status)) if status.code == 409 && tries < TRIES => {}
            Err(error) => return Err(CliError::api(&format!("write {name}"), &error)),
        }
    }
}

/// The present object with the wanted spec, and with the wanted labels and annotations beside its own.
fn merge(present: &Function, wanted: &Function) -> Function {
    let mut merged = present.clone();
    merged.spec = wanted.spec.clone();
    if let Some(labels) = &wanted.metadata.labels {
        merged.labels_mut().extend(labels.clone());
    }
    if let Some(annotations) = &wanted.metadata.annotations {
        merged.annotations_mut().extend(annotations.clone());
    }
    merged
}

/// A folder's name as a function's: what does not fit becomes `-`.
fn folder_name(dir: &Path) -> String {
    let real = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_path_buf());
    let name = real.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let fit = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    name.chars().map(fit).take(63).collect::<String>().trim_matches('-').to_owned()
}

fn said(error: impl std::error::Error) -> CliError {
    CliError::new(causes(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_gives_its_name() {
        for (folder, expected) in [("/x/hello", "hello"), ("/x/My Func_1", "my-func-1"), ("/x/-a-", "a")] {
            assert_eq!(folder_name(Path::new(folder)), expected);
        }
    }

    #[test]
    fn a_change_keeps_what_others_wrote() {
        let object = |labels: serde_json::Value, runtime: &str| -> Function {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a", "resourceVersion": "7", "labels": labels}, "spec": {"runtime": runtime},
            }))
            .unwrap()
        };
        let merged = merge(
            &object(serde_json::json!({"by": "others"}), "python"),
            &object(serde_json::json!({"mine": "1"}), "binary"),
        );
        assert_eq!(merged, object(serde_json::json!({"by": "others", "mine": "1"}), "binary"));
    }
}
