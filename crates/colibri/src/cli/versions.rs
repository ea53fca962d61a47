//! `colibri versions` and `colibri diff`: what was deployed, and what one version changed against another.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Read;

use api::conditions::READY;
use api::functions::CODE_DIGEST;
use api::serving::{Revision, TrafficTarget};
use clap::Args;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};
use similar::TextDiff;

use super::access::{Access, Target};
use super::error::CliError;
use super::output::{OutputArgs, list_of, tidy};
use super::seen::{self, Seen};
use super::style::Style;
use super::traffic;
use super::uploads::Stores;
use super::workload::status_text;
use super::{error, table};

/// Longest file of which the lines are compared.
const LONGEST_FILE: usize = 1 << 20;

/// Arguments of `colibri versions`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri versions hello
  colibri versions hello -o name        revision.serving.knative.dev/hello-00002, as kubectl takes it")]
pub struct VersionsArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    target: Target,
}

/// Arguments of `colibri diff`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:
  colibri diff hello                    what the newest version changed
  colibri diff hello 2 5                from hello-00002 to hello-00005")]
pub struct DiffArgs {
    /// Function or service; function/NAME and service/NAME say which
    name: String,
    /// Version: its name or its number [default: the one before the newer one]
    #[arg(value_name = "OLD")]
    old: Option<String>,
    /// Version to compare with [default: the newest]
    #[arg(value_name = "NEW")]
    new: Option<String>,
    #[command(flatten)]
    target: Target,
}

/// Lists the versions, newest first.
pub async fn run(args: VersionsArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let seen = seen::look(&access, &args.name).await?;
    if seen.revisions.is_empty() {
        eprintln!("{} has no version yet; colibri describe {} tells why", args.name, args.name);
    }
    let object = |revision: &Revision| tidy(serde_json::to_value(revision).unwrap_or_default());
    let all = list_of(seen.revisions.iter().map(object).collect());
    let name = |revision: &Revision| format!("revision.serving.knative.dev/{}\n", revision.name_any());
    args.output.show(&all, || seen.revisions.iter().map(name).collect(), || render(&seen, Timestamp::now()));
    Ok(())
}

/// The table of the versions.
pub fn render(seen: &Seen, now: Timestamp) -> String {
    let row = |revision: &Revision| {
        let name = revision.name_any();
        let targets: Vec<&TrafficTarget> =
            seen.traffic().iter().filter(|target| target.revision_name.as_deref() == Some(&name)).collect();
        let share: i64 = targets.iter().filter_map(|target| target.percent).sum();
        let tags: Vec<&str> = targets.iter().filter_map(|target| target.tag.as_deref()).collect();
        let conditions = revision.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = conditions.iter().find(|condition| condition.kind == READY);
        vec![
            name,
            if share > 0 { format!("{share}%") } else { String::new() },
            tags.join(","),
            ready.map_or("Unknown", |ready| status_text(ready.status)).to_owned(),
            seen.pods_of(revision).len().to_string(),
            content(revision),
            table::age(revision.creation_timestamp().map(|time| time.0), now),
            ready.and_then(|ready| ready.reason.clone()).unwrap_or_default(),
        ]
    };
    let header = ["NAME", "TRAFFIC", "TAGS", "READY", "INSTANCES", "CONTENT", "AGE", "REASON"];
    table::render(&header, &seen.revisions.iter().map(row).collect::<Vec<_>>())
}

/// What it runs: the code's digest, shortened as Git does, else the image.
fn content(revision: &Revision) -> String {
    if let Some(digest) = code(revision) {
        return format!("code {}", digest.trim_start_matches("sha256:").chars().take(12).collect::<String>());
    }
    revision.spec.pod.containers.first().and_then(|container| container.image.clone()).unwrap_or_default()
}

/// Digest of a function's code.
fn code(revision: &Revision) -> Option<&str> {
    let csi = revision.spec.pod.volumes.iter().flatten().filter_map(|volume| volume.csi.as_ref());
    csi.filter_map(|csi| csi.volume_attributes.as_ref()?.get(CODE_DIGEST)).map(String::as_str).next()
}

/// Shows what one version changed against another.
pub async fn diff(args: DiffArgs) -> Result<(), CliError> {
    let access = args.target.open().await?;
    let seen = seen::look(&access, &args.name).await?;
    let name = seen.workload.name();
    let place = |version: &str| -> Result<usize, CliError> {
        let version = traffic::resolve(version, &seen)?;
        // The newest that is ready.
        let found = seen.revisions.iter().position(|revision| match version.as_str() {
            "latest" => traffic::is_ready(revision),
            version => revision.name_any() == version,
        });
        found.ok_or_else(|| CliError::new(format!("no version of {name} is ready")))
    };
    let new = args.new.as_deref().map_or(Ok(0), place)?;
    let old = args.old.as_deref().map_or(Ok(new + 1), place)?;
    let (Some(old), Some(new)) = (seen.revisions.get(old), seen.revisions.get(new)) else {
        let count = seen.revisions.len();
        return Err(CliError::new(format!("{name} has {count} version(s): there is none to compare with"))
            .cured_by(&format!("colibri versions {name} lists them; colibri deploy makes one")));
    };
    let mut text = settings(old, new);
    if let (Some(before), Some(after)) = (code(old), code(new))
        && before != after
    {
        let (before, after) = tokio::try_join!(files(&access, before), files(&access, after))?;
        text.push_str(&of_files(&before, &after));
    }
    if text.is_empty() {
        eprintln!("{} and {} are the same", old.name_any(), new.name_any());
    }
    error::print(&coloured(&text, Style::stdout()));
    Ok(())
}

/// What differs in the settings.
fn settings(old: &Revision, new: &Revision) -> String {
    let yaml = |revision: &Revision| {
        let annotations: BTreeMap<_, _> = revision.annotations().iter().filter(|(name, _)| is_setting(name)).collect();
        let mut value = json!({ "annotations": annotations, "spec": revision.spec });
        drop_empty(&mut value);
        serde_yaml_ng::to_string(&value).unwrap_or_default()
    };
    unified(&yaml(old), &yaml(new), &old.name_any(), &new.name_any())
}

/// Annotations that people set; the others are notes of the platform.
fn is_setting(name: &str) -> bool {
    name.starts_with("autoscaling.knative.dev/") || name.starts_with("features.knative.dev/")
}

fn drop_empty(value: &mut Value) {
    let is_empty = |value: &Value| {
        value.is_null()
            || value.as_object().is_some_and(serde_json::Map::is_empty)
            || value.as_array().is_some_and(Vec::is_empty)
    };
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(drop_empty);
            fields.retain(|_, value| !is_empty(value));
        }
        Value::Array(items) => items.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

/// The files of a code archive.
async fn files(access: &Access, digest: &str) -> Result<BTreeMap<String, Vec<u8>>, CliError> {
    let path = format!("namespaces/{}/archives/{digest}/content", access.namespace);
    let archive = Stores::open(&access.client).await?.bytes(&path).await?;
    unpack(&archive).map_err(|error| CliError::new(format!("the archive {digest} cannot be read: {error}")))
}

fn unpack(archive: &[u8]) -> std::io::Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if entry.header().entry_type().is_file() {
            let name = entry.path()?.display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content)?;
            files.insert(name, content);
        }
    }
    Ok(files)
}

/// What differs in the files.
fn of_files(before: &BTreeMap<String, Vec<u8>>, after: &BTreeMap<String, Vec<u8>>) -> String {
    let names: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut text = String::new();
    for name in names {
        let (old, new) = (before.get(name), after.get(name));
        if old == new {
            continue;
        }
        let lines = |content: Option<&Vec<u8>>| match content {
            None => Some(String::new()),
            Some(content) if content.len() > LONGEST_FILE || content.contains(&0) => None,
            Some(content) => String::from_utf8(content.clone()).ok(),
        };
        let side = |side: &str, content: Option<&Vec<u8>>| {
            content.map_or("/dev/null".to_owned(), |_| format!("{side}/{name}"))
        };
        let (a, b) = (side("a", old), side("b", new));
        match (lines(old), lines(new)) {
            (Some(old), Some(new)) => text.push_str(&unified(&old, &new, &a, &b)),
            _ => {
                let size = |content: Option<&Vec<u8>>| table::size(content.map_or(0, |content| content.len() as u64));
                let _ = writeln!(text, "{name} differs: {} before, {} now", size(old), size(new));
            }
        }
    }
    text
}

fn unified(old: &str, new: &str, old_name: &str, new_name: &str) -> String {
    TextDiff::from_lines(old, new).unified_diff().header(old_name, new_name).to_string()
}

/// Escape sequences in somebody's code are shown, not obeyed.
fn coloured(diff: &str, style: Style) -> String {
    let line = |line: &str| {
        let shown: String = line
            .chars()
            .flat_map(|c| if c.is_control() && c != '\t' { c.escape_default().collect() } else { vec![c] })
            .collect();
        match line.as_bytes().first() {
            Some(b'+') => style.good(&shown),
            Some(b'-') => style.bad(&shown),
            _ => shown,
        }
    };
    diff.lines().map(|text| format!("{}\n", line(text))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::workload::Workload;

    fn revision(name: &str, spec: Value) -> Revision {
        let value = json!({"metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"autoscaling.knative.dev/max-scale": "3", "serving.knative.dev/creator": "a"}},
            "spec": spec, "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        serde_json::from_value(value).unwrap()
    }

    fn function(name: &str, digest: &str, size: &str) -> Revision {
        let volume =
            json!({"name": "code", "csi": {"driver": "code.colibri.dev", "volumeAttributes": {"digest": digest}}});
        let container = json!({"image": "runtime.colibri.local/python", "env": [{"name": "SIZE", "value": size}]});
        revision(name, json!({"containers": [container], "volumes": [volume]}))
    }

    #[test]
    fn versions_stand_with_their_traffic_tags_and_content() {
        let service: api::serving::Service = serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {},
            "status": {"traffic": [
                {"revisionName": "a-00001", "percent": 90},
                {"revisionName": "a-00002", "percent": 10},
                {"revisionName": "a-00001", "tag": "old"}, {"revisionName": "a-00001", "tag": "safe"}]}}))
        .unwrap();
        let seen = Seen {
            workload: Workload::Service(Box::new(service.clone())),
            service: Some(service),
            revisions: vec![
                revision("a-00003", json!({"containers": [{"image": "example.com/a:3"}]})),
                function("a-00002", "sha256:0123456789abcdef", "1"),
                revision("a-00001", json!({"containers": [{"image": "example.com/a:1"}]})),
            ],
            pods: Vec::new(),
        };
        expect_test::expect![[r#"
            NAME      TRAFFIC   TAGS       READY   INSTANCES   CONTENT             AGE   REASON
            a-00003                        True    0           example.com/a:3     60s
            a-00002   10%                  True    0           code 0123456789ab   60s
            a-00001   90%       old,safe   True    0           example.com/a:1     60s
        "#]]
        .assert_eq(&render(&seen, "2026-01-01T00:01:00Z".parse().unwrap()));
    }

    #[test]
    fn settings_and_files_are_compared_by_line() {
        let (old, new) = (function("a-00001", "sha256:1", "64"), function("a-00002", "sha256:2", "128"));
        let files = |pairs: &[(&str, &[u8])]| {
            pairs.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect::<BTreeMap<_, _>>()
        };
        let before =
            files(&[("main.py", b"a\nb\n"), ("gone.py", b"x\n"), ("same.py", b"s\n"), ("logo.png", b"\0\x01")]);
        let after =
            files(&[("main.py", b"a\nc\n"), ("new.py", b"\x1b[31m\n"), ("same.py", b"s\n"), ("logo.png", b"\0")]);
        let text = settings(&old, &new) + &of_files(&before, &after);
        expect_test::expect![[r#"
            --- a-00001
            +++ a-00002
            @@ -4,12 +4,12 @@
               containers:
               - env:
                 - name: SIZE
            -      value: '64'
            +      value: '128'
                 image: runtime.colibri.local/python
                 name: ''
               volumes:
               - csi:
                   driver: code.colibri.dev
                   volumeAttributes:
            -        digest: sha256:1
            +        digest: sha256:2
                 name: code
            --- a/gone.py
            +++ /dev/null
            @@ -1 +0,0 @@
            -x
            logo.png differs: 2 B before, 1 B now
            --- a/main.py
            +++ b/main.py
            @@ -1,2 +1,2 @@
             a
            -b
            +c
            --- /dev/null
            +++ b/new.py
            @@ -0,0 +1 @@
            +\u{1b}[31m
        "#]]
        .assert_eq(&coloured(&text, Style::plain()));
        assert_eq!(settings(&old, &function("a-00002", "sha256:1", "64")), "");
    }
}
