//! What `colibri init` writes passes its own test, deploys and answers.

use anyhow::{Context, Result};
use e2e::{Options, Platform, binary, cannot_run};
use tokio::process::Command;

/// Deploys what one template gives and calls it as the command itself says.
async fn check(platform: &Platform, name: &str, init: &[&str], test: &str, expected: &str) -> Result<()> {
    let dir = platform.scratch().join(name);
    let path = dir.to_string_lossy().into_owned();
    let said = Command::new(binary("colibri")).args(["init", &path]).args(init).output().await?;
    let text = String::from_utf8(said.stderr)?;
    assert!(said.status.success() && text.contains(&format!("&& {test})")), "{text}");
    let tested = Command::new("sh").args(["-c", test]).current_dir(&dir).output().await?;
    assert!(tested.status.success(), "{name}: {}", String::from_utf8_lossy(&tested.stderr));
    platform.colibri(&["deploy", &path]).await?.ok()?;
    let invoke = text.lines().rev().find_map(|line| line.trim().strip_prefix("colibri ")).context("what to type")?;
    let answer = platform.colibri(&invoke.split(' ').collect::<Vec<_>>()).await?.ok()?;
    assert!(answer.contains(expected), "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_init_writes_passes_its_test_deploys_and_answers() -> Result<()> {
    if cannot_run(&["python3", "node", "make", "gcc"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let python = "python3 -m unittest";
    check(&platform, "py-http", &["--runtime", "python"], python, "hello world\n").await?;
    let event = ["--runtime", "python", "--template", "cloudevent"];
    check(&platform, "py-event", &event, python, r#"{"greeting":"hello you"}"#).await?;
    check(&platform, "js-http", &["--runtime", "nodejs"], "node --test", "hello world\n").await?;
    let event = ["--runtime", "nodejs", "--template", "cloudevent"];
    check(&platform, "js-event", &event, "node --test", r#"{"greeting":"hello you"}"#).await?;
    check(&platform, "c-http", &["--runtime", "binary"], "make", "hello world\n").await?;
    platform.stop().await
}
