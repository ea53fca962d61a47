//! `colibri deploy`.

pub mod dev;
mod folder;
mod ignore;
mod manifest;
mod progress;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::functions::{Archive, Function, Source, admission};
use api::serving::Service;
use clap::Args;
use kube::api::{Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use self::manifest::Document;
use self::progress::Stages;
use super::access::{Access, Target};
use super::error::{CliError, causes};
use super::output::{Format, OutputArgs};
use super::uploads::Stores;
use super::workload::Workload;
use super::{invoke, output, traffic};

/// Who owns the fields that this command wrote.
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

/// What was written.
struct Sent {
    /// To the namespace that it went to.
    access: Access,
    /// `function` or `service`.
    kind: &'static str,
    name: String,
    /// `created`, `changed` or `unchanged`.
    change: &'static str,
}

/// Uploads and writes one.
async fn send(target: &Target, access: &Access, prepared: Prepared, stages: &mut Stages) -> Result<Sent, CliError> {
    let (name, own_namespace) = match &prepared.document {
        Document::Function(function) => (function.name_any(), function.namespace()),
        Document::Service(service) => {
            let text = |field: &str| service["metadata"][field].as_str().map(str::to_owned);
            (text("name").unwrap_or_default(), text("namespace"))
        }
    };
    let namespace = target.namespace.clone().or(own_namespace).unwrap_or_else(|| access.namespace.clone());
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
            ("service", apply::<Service>(&access, &name, &service).await?)
        }
    };
    Ok(Sent { access, kind, name, change })
}

/// Deploys one; the object as it is then.
async fn deploy(args: &DeployArgs, access: &Access, prepared: Prepared) -> Result<Value, CliError> {
    let mut stages = Stages::start();
    let Sent { access, kind, name, change } = send(&args.target, access, prepared, &mut stages).await?;
    stages.say(&format!("{kind} {name} {change}"));
    let name = format!("{kind}/{name}");
    if args.no_wait {
        return Ok(Workload::find(&access, &name).await?.object());
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

/// Creates or changes a Function or a Service, by server-side apply: what others set stays.
async fn apply<K>(access: &Access, name: &str, object: &Value) -> Result<&'static str, CliError>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<K> = Api::namespaced(access.client.clone(), &access.namespace);
    let failed = |error| CliError::api(&format!("write {name}"), &error);
    let before = api.get_opt(name).await.map_err(failed)?.and_then(|found| found.meta().generation);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let after = api.patch(name, &params, &Patch::Apply(object)).await.map_err(failed)?.meta().generation;
    Ok(match before {
        None => "created",
        Some(before) if after == Some(before) => "unchanged",
        Some(_) => "changed",
    })
}

/// Creates or changes a Function.
async fn write(access: &Access, function: &Function) -> Result<&'static str, CliError> {
    let api: Api<Function> = Api::namespaced(access.client.clone(), &access.namespace);
    let name = function.name_any();
    let present = api.get_opt(&name).await.map_err(|error| CliError::api(&format!("read {name}"), &error))?;
    let applied = applied(function, present.as_ref());
    let others = present.map(|present| sources_of_others(&present, &applied)).unwrap_or_default();
    if !others.is_empty() {
        // Only one source may be there, and applying takes nothing away that somebody else wrote.
        let mut source = applied["spec"]["source"].clone();
        others.into_iter().for_each(|other| source[other] = Value::Null);
        let patch = Patch::Merge(serde_json::json!({ "spec": { "source": source } }));
        let patched = api.patch(&name, &PatchParams::default(), &patch).await;
        patched.map_err(|error| CliError::api(&format!("write {name}"), &error))?;
    }
    apply::<Function>(access, &name, &applied).await
}

/// Sources of the Function as it is that this command did not write and does not want.
fn sources_of_others(present: &Function, wanted: &Value) -> Vec<String> {
    let entries = present.metadata.managed_fields.iter().flatten();
    let own = entries
        .filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER) && entry.operation.as_deref() == Some("Apply"))
        .find_map(|entry| entry.fields_v1.as_ref())
        .and_then(|fields| fields.0.get("f:spec")?.get("f:source"));
    let source = serde_json::to_value(&present.spec.source).unwrap_or_default();
    let names = source.as_object().into_iter().flatten().map(|(name, _)| name.clone());
    names
        .filter(|name| wanted["spec"]["source"].get(name).is_none())
        .filter(|name| own.is_none_or(|own| own.get(format!("f:{name}")).is_none()))
        .collect()
}

/// What is applied of a Function. Where it does not speak of traffic, the newest version gets all that was split, and
/// tags stay.
fn applied(function: &Function, present: Option<&Function>) -> Value {
    let mut function = function.clone();
    if function.spec.traffic.is_empty() {
        function.spec.traffic = present.map(|present| traffic::to_latest(&present.spec.traffic)).unwrap_or_default();
    }
    Workload::Function(Box::new(function)).object()
}

/// A folder's name as a function's: what does not fit becomes `-`.
pub fn folder_name(dir: &Path) -> String {
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
    fn a_change_serves_at_once_and_keeps_tags() {
        let object = |traffic: serde_json::Value| -> Function {
            let function = serde_json::json!({"metadata": {}, "spec": {"runtime": "python", "traffic": traffic}});
            serde_json::from_value(function).unwrap()
        };
        let none = serde_json::json!([]);
        let pinned = serde_json::json!([{"revisionName": "a-00001", "latestRevision": false, "percent": 100}]);
        let tagged = serde_json::json!([
            {"revisionName": "a-00001", "latestRevision": false, "percent": 100, "tag": "old"},
            {"latestRevision": true, "tag": "new"},
        ]);
        let after = serde_json::json!([
            {"latestRevision": true, "percent": 100},
            {"revisionName": "a-00001", "latestRevision": false, "tag": "old"},
            {"latestRevision": true, "tag": "new"},
        ]);
        let latest = serde_json::json!([{"latestRevision": true, "percent": 100}]);
        for (present, wanted, expected) in
            [(&none, &none, &none), (&pinned, &none, &latest), (&none, &pinned, &pinned), (&tagged, &none, &after)]
        {
            let found = applied(&object(wanted.clone()), Some(&object(present.clone())));
            let found = found["spec"].get("traffic").cloned().unwrap_or_else(|| none.clone());
            assert_eq!(&found, expected, "{present} {wanted}");
        }
    }

    #[test]
    fn a_source_that_somebody_else_wrote_is_taken_away() {
        let present = |managed: serde_json::Value| -> Function {
            let function = serde_json::json!({"metadata": {"managedFields": managed},
                "spec": {"runtime": "python", "source": {"inline": {"main.py": ""}}}});
            serde_json::from_value(function).unwrap()
        };
        let by = |manager: &str, operation: &str| {
            let fields = serde_json::json!({"f:spec": {"f:source": {"f:inline": {"f:main.py": {}}}}});
            serde_json::json!([{"manager": manager, "operation": operation, "fieldsV1": fields}])
        };
        let archive = serde_json::json!({"spec": {"source": {"archive": {"digest": "sha256:1"}}}});
        let inline = serde_json::json!({"spec": {"source": {"inline": {"main.py": "1"}}}});
        let none: [&str; 0] = [];
        assert_eq!(sources_of_others(&present(by("kubectl", "Apply")), &archive), ["inline"]);
        assert_eq!(sources_of_others(&present(by("colibri", "Update")), &archive), ["inline"]);
        assert_eq!(sources_of_others(&present(by("colibri", "Apply")), &archive), none);
        assert_eq!(sources_of_others(&present(by("kubectl", "Apply")), &inline), none);
    }
}
