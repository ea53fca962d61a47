//! A function in each language: deployed from a directory, failing with a clear text, from zero and back.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::{Options, Platform, cannot_run};

use crate::{NO_GRACE, SOON, host, service_selector};

/// A function that greets, in one language.
struct Language {
    runtime: &'static str,
    file: &'static str,
    /// Answers `hello NAME from version one`, and says `greeting` in its log.
    code: &'static str,
    /// What does not load, and what is said of it.
    broken: [(&'static str, &'static str); 2],
}

const PYTHON: Language = Language {
    runtime: "python",
    file: "main.py",
    code: "import os


def handle(request):
    print('greeting', request.query.get('name', 'world'), flush=True)
    return f\"hello {request.query.get('name', 'world')} from version one\\n\"
",
    broken: [
        ("def handle(request):\n    return (1 +\n\n\ndef broken(:\n", "main.py:5: SyntaxError: "),
        ("\nimport nowhere\n", "main.py:2: ModuleNotFoundError: No module named 'nowhere' (put it beside the code"),
    ],
};

const JAVASCRIPT: Language = Language {
    runtime: "nodejs",
    file: "index.mjs",
    code: "import { Response } from 'colibri-runtime';

export async function handle(request) {
  const { name = 'world' } = request.query;
  console.log('greeting', name);
  return new Response(`hello ${name} from version one\\n`);
}
",
    broken: [
        ("export function handle(request) {\n  return (1 +;\n}\n", "index.mjs:2: SyntaxError: Unexpected token ';'"),
        ("\nimport 'nowhere';\n", "index.mjs:2: Error: Cannot find package 'nowhere' (put it beside the code"),
    ],
};

#[tokio::test(flavor = "multi_thread")]
async fn a_python_function_lives_fails_clearly_and_wakes_from_zero() -> Result<()> {
    if cannot_run(&["kubectl", "python3"]).is_some() {
        return Ok(());
    }
    a_function_lives_fails_clearly_and_wakes_from_zero(&PYTHON).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_javascript_function_lives_fails_clearly_and_wakes_from_zero() -> Result<()> {
    if cannot_run(&["kubectl", "node"]).is_some() {
        return Ok(());
    }
    a_function_lives_fails_clearly_and_wakes_from_zero(&JAVASCRIPT).await
}

async fn a_function_lives_fails_clearly_and_wakes_from_zero(language: &Language) -> Result<()> {
    let mut platform = Platform::start(Options::default()).await?;
    platform.apply(NO_GRACE).await?;
    let dir = platform.scratch().join("greet");
    language.write(&dir, language.code)?;
    let deployed = platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    assert!(deployed.contains("greet.default.localhost"), "{deployed}");
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version one\n"));

    for (code, message) in language.broken {
        language.write(&dir, code)?;
        code_that_does_not_load_is_told_and_the_old_version_serves(&platform, &dir, message).await?;
    }
    language.write(&dir, &language.code.replace("version one", "version two"))?;
    a_repaired_function_takes_over(&platform, &dir).await?;

    let invoked = platform.colibri(&["invoke", "greet", "-d", "ignored"]).await?.ok()?;
    assert!(invoked.contains("version two"), "{invoked}");
    platform.wait_for_logs(&["greet"], "greeting", SOON).await?;

    // The version that never loaded keeps its pod, backing off; the one that serves goes to zero.
    let version = platform.object("function", "greet").await?["status"]["version"].clone();
    let serving = format!("serving.knative.dev/revision={}", version.as_str().context("a version")?);
    platform.wait_for_pods(&serving, 0, SOON).await?;
    let answer = platform.get(&host("greet"), "/?name=again").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello again from version two\n"));

    let table = platform.kubectl(&["get", "functions"]).await?.ok()?;
    assert!(table.contains("greet") && table.contains(language.runtime) && table.contains("True"), "{table}");
    platform.colibri(&["delete", "greet"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("greet"), 0, SOON).await?;
    assert_eq!(platform.get(&host("greet"), "/").await?.status, 404);
    platform.stop().await
}

impl Language {
    fn write(&self, dir: &Path, code: &str) -> Result<()> {
        let function = format!(
            "apiVersion: functions.colibri.dev/v1\nkind: Function\nmetadata: {{ name: greet }}\nspec:\n  runtime: {}\n  scaling: {{ idle: 6s }}\n",
            self.runtime
        );
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("function.yml"), function)?;
        std::fs::write(dir.join(self.file), code)?;
        Ok(())
    }
}

async fn code_that_does_not_load_is_told_and_the_old_version_serves(
    platform: &Platform,
    dir: &Path,
    message: &str,
) -> Result<()> {
    let failed = platform.colibri(&["deploy", &dir.to_string_lossy()]).await?;
    assert_eq!(failed.code, 1, "{}", failed.text());
    assert!(failed.text().contains(message), "{}\ndoes not contain {message}", failed.text());
    let function = platform.object("function", "greet").await?;
    let conditions = function["status"]["conditions"].as_array().context("conditions")?.clone();
    let revision = conditions.iter().find(|condition| condition["type"] == "RevisionReady").context("RevisionReady")?;
    assert_eq!(revision["status"], "False", "{revision}");
    assert!(revision["message"].as_str().unwrap_or_default().contains(message), "{revision}");
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version one\n"));
    Ok(())
}

async fn a_repaired_function_takes_over(platform: &Platform, dir: &Path) -> Result<()> {
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    let answer = platform.get(&host("greet"), "/?name=you").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello you from version two\n"));
    Ok(())
}
