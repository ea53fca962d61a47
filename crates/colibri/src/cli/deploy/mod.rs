//! `colibri deploy`.

mod folder;
mod ignore;
mod manifest;
mod progress;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::functions::{Archive, Function, Source, admission};
use clap::Args;
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use super::access::{Access, Target};
use super::error::{CliError, causes, print};
use super::{http, invoke};

/// Tries to write a Function that somebody else changes too.
const TRIES: usize = 5;

/// Arguments of `colibri deploy`.
#[derive(Args, Clone, Debug)]
pub struct DeployArgs {
    /// Folder with function.yml and the code
    #[arg(default_value = ".", conflicts_with = "file")]
    dir: PathBuf,
    /// File with one or more Functions; one without a source takes the code beside the file
    #[arg(long, short)]
    file: Option<PathBuf>,
    /// Name of the function [default: that in function.yml, else the folder's]
    #[arg(long)]
    name: Option<String>,
    /// Do not wait until the function is ready
    #[arg(long)]
    no_wait: bool,
    /// Longest wait, in seconds
    #[arg(long, default_value_t = 120)]
    timeout: u64,
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
    let mut functions = manifest::read(&file, &folder_name(&dir)).map_err(said)?;
    match (&args.name, functions.as_mut_slice()) {
        (_, []) => return Err(CliError::new(format!("{} holds no Function", file.display()))),
        (Some(name), [function]) => function.metadata.name = Some(name.clone()),
        (Some(_), _) => return Err(CliError::new("--name needs a file with one Function")),
        (None, _) => {}
    }
    // What can be wrong here is said before a platform is asked for.
    let prepared: Vec<Prepared> =
        functions.into_iter().map(|function| prepare(&dir, function)).collect::<Result<_, _>>()?;
    let access = args.target.open().await?;
    for prepared in prepared {
        deploy(&args, &access, prepared).await?;
    }
    Ok(())
}

/// A valid Function, and the archive that has to be uploaded first.
struct Prepared {
    function: Function,
    archive: Option<Vec<u8>>,
}

fn prepare(dir: &Path, mut function: Function) -> Result<Prepared, CliError> {
    let mut archive = None;
    if function.spec.source.is_none() {
        let packed = pack(dir)?;
        let digest = Some(functions::pack::digest(&packed));
        let uploaded = Archive { digest, ..Archive::default() };
        function.spec.source = Some(Source { archive: Some(uploaded), ..Source::default() });
        archive = Some(packed);
    }
    check(&function)?;
    Ok(Prepared { function, archive })
}

async fn deploy(args: &DeployArgs, access: &Access, prepared: Prepared) -> Result<(), CliError> {
    let Prepared { mut function, archive } = prepared;
    let name = function.name_any();
    let named = args.target.namespace.clone().or_else(|| function.namespace());
    let namespace = named.unwrap_or_else(|| access.namespace.clone());
    function.metadata.namespace = Some(namespace.clone());
    if let Some(archive) = archive {
        upload(access, &namespace, archive).await?;
    }
    let api: Api<Function> = Api::namespaced(access.client.clone(), &namespace);
    let change = write(&api, &function).await?;
    eprintln!("function {name} {change}");
    if args.no_wait {
        return Ok(());
    }
    let ready = progress::wait(&api, &name, Duration::from_secs(args.timeout)).await?;
    let url = ready.status.and_then(|status| status.url).unwrap_or_default();
    print(&format!("{url}\n"));
    eprintln!("try it: {}", invoke::curl_line(&url, access.gateway.as_deref()));
    Ok(())
}

fn pack(dir: &Path) -> Result<Vec<u8>, CliError> {
    let files = folder::read(dir).map_err(said)?;
    if files.is_empty() {
        return Err(CliError::new(format!("{} has no code beside function.yml; write main.py there", dir.display())));
    }
    functions::pack::pack(&files).map_err(said)
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

async fn upload(access: &Access, namespace: &str, archive: Vec<u8>) -> Result<(), CliError> {
    let path = format!("/colibri/v1/namespaces/{namespace}/archives");
    let expected = functions::pack::digest(&archive);
    let answer = http::post(&access.client, &path, "application/x-tar", archive.into()).await?;
    match answer.get("digest").and_then(serde_json::Value::as_str) {
        Some(digest) if digest == expected => Ok(()),
        found => Err(CliError::new(format!(
            "the upload was stored as {found:?}, not as {expected}: it was damaged on the way; try again"
        ))),
    }
}

/// Creates or changes the Function: `created`, `changed` or `unchanged`.
async fn write(api: &Api<Function>, wanted: &Function) -> Result<&'static str, CliError> {
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
