//! A Python function: deployed from a directory, failing with a clear text, from zero and back.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::{Options, Platform, cannot_run};

use crate::{NO_GRACE, SOON, host, service_selector};

const FUNCTION: &str = "apiVersion: functions.colibri.dev/v1
kind: Function
metadata:
  name: greet
spec:
  runtime: python
  scaling: { idle: 6s }
";

const CODE: &str = "import os


def handle(request):
    print('greeting', request.query.get('name', 'world'), flush=True)
    return f\"hello {request.query.get('name', 'world')} from version one\\n\"
";

#[tokio::test(flavor = "multi_thread")]
async fn a_function_lives_fails_clearly_and_wakes_from_zero() -> Result<()> {
    if cannot_run(&["kubectl", "python3"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.apply(NO_GRACE).await?;
    let dir = platform.scratch().join("greet");
    write_function(&dir, CODE)?;
    let deployed = platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    assert!(deployed.contains("greet.default.localhost"), "{deployed}");
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version one\n"));

    a_syntax_error_is_told_and_the_old_version_serves(&platform, &dir).await?;
    a_repaired_function_takes_over(&platform, &dir).await?;

    let invoked = platform.colibri(&["invoke", "greet", "-d", "ignored"]).await?.ok()?;
    assert!(invoked.contains("version two"), "{invoked}");
    let logs = platform.colibri(&["logs", "greet"]).await?.ok()?;
    assert!(logs.contains("greeting"), "{logs}");

    // The version that never loaded keeps its pod, backing off; the one that serves goes to zero.
    let version = platform.object("function", "greet").await?["status"]["version"].clone();
    let serving = format!("serving.knative.dev/revision={}", version.as_str().context("a version")?);
    platform.wait_for_pods(&serving, 0, SOON).await?;
    let answer = platform.get(&host("greet"), "/?name=again").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello again from version two\n"));

    let table = platform.kubectl(&["get", "functions"]).await?.ok()?;
    assert!(table.contains("greet") && table.contains("python") && table.contains("True"), "{table}");
    platform.colibri(&["delete", "greet"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("greet"), 0, SOON).await?;
    assert_eq!(platform.get(&host("greet"), "/").await?.status, 404);
    platform.stop().await
}

fn write_function(dir: &Path, code: &str) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("function.yml"), FUNCTION)?;
    std::fs::write(dir.join("main.py"), code)?;
    Ok(())
}

async fn a_syntax_error_is_told_and_the_old_version_serves(platform: &Platform, dir: &Path) -> Result<()> {
    write_function(dir, "def handle(request):\n    return (1 +\n\n\ndef broken(:\n")?;
    let failed = platform.colibri(&["deploy", &dir.to_string_lossy()]).await?;
    assert_eq!(failed.code, 1, "{}", failed.text());
    let text = failed.text();
    assert!(text.contains("main.py") && text.contains("SyntaxError"), "{text}");
    assert!(text.contains("line ") || text.contains("main.py:"), "the line is named: {text}");
    let function = platform.object("function", "greet").await?;
    let conditions = function["status"]["conditions"].as_array().context("conditions")?.clone();
    let revision = conditions.iter().find(|condition| condition["type"] == "RevisionReady").context("RevisionReady")?;
    assert_eq!(revision["status"], "False", "{revision}");
    assert!(revision["message"].as_str().unwrap_or_default().contains("SyntaxError"), "{revision}");
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version one\n"));
    Ok(())
}

async fn a_repaired_function_takes_over(platform: &Platform, dir: &Path) -> Result<()> {
    write_function(dir, &CODE.replace("version one", "version two"))?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version two\n"));
    Ok(())
}
