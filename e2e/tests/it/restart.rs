//! A platform that is killed, or told to leave its pods, and started again on the same data directory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Leftovers, Machine, Options, Platform, cannot_run, is_of_our_control_plane, role_dir};
use serde_json::Value;

use crate::{SOON, host, service_selector, start_with_hello};

/// Counts on its output, and ends by itself where `end` says so.
fn counter(name: &str, end: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: runtime.colibri.local/binary
    command: [\"/bin/sh\", \"-c\", \"n=0; while :; do echo line $n; n=$((n+1)); sleep 0.1; {end} done\"]
"
    )
}

/// What must be the same after a restart: container, its start, its restarts, the pod's address.
async fn identity(platform: &Platform, pod: &str) -> Result<Vec<Value>> {
    let pod = platform.object("pod", pod).await?;
    let status = &pod["status"]["containerStatuses"][0];
    Ok(vec![
        pod["metadata"]["uid"].clone(),
        status["state"]["running"].clone(),
        status["restartCount"].clone(),
        pod["status"]["podIP"].clone(),
    ])
}

async fn wait_until_running(platform: &Platform, pod: &str) -> Result<()> {
    platform.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_platform_takes_its_pods_over_again() -> Result<()> {
    if cannot_run(&["kubectl", "nft"]).is_some() {
        return Ok(());
    }
    let machine = Machine::alone().await?;
    let data_dir = machine.data_dir();
    let mut platform = start_with_hello(machine.options(), "hello").await?;
    platform.apply(&counter("steady", "")).await?;
    platform.apply(&counter("brief", "[ $n -lt 15 ] || exit 7;")).await?;
    assert_eq!(platform.get(&host("hello"), "/").await?.status, 200);
    wait_until_running(&platform, "steady").await?;
    let hello = platform.pods(&service_selector("hello")).await?.pop().context("a pod of hello")?;
    let hello = hello.trim_start_matches("pod/").to_owned();
    let (hello_was, steady_was) = (identity(&platform, &hello).await?, identity(&platform, "steady").await?);
    let made = platform.kubectl(&["create", "configmap", "last", "--from-literal=a=b"]).await?;
    platform.kill();
    made.ok()?;

    let away = machine.changes();
    ensure!(!away.links.is_empty() && !away.cgroups.is_empty(), "pods outlive the platform: {away:?}");
    let (_, ran) = e2e::pods(&data_dir);
    let brief_log = role_dir(&data_dir, "node").join("logs");
    wait_for_line(&brief_log, "brief", "line 14").await?;

    let start = Instant::now();
    let mut platform = Platform::start(machine.options()).await?;
    let ready = start.elapsed();
    let answer = platform.get(&host("hello"), "/").await?;
    println!("restart: ready after {ready:?}, first answer after {:?}", start.elapsed());
    assert_eq!(answer.status, 200, "{answer:?}");
    let timing = answer.headers.get("server-timing").context("Server-Timing")?.to_str()?.to_owned();
    assert!(answer.body.contains(&hello), "the same pod answers: {answer:?} {timing}");

    let (_, runs) = e2e::pods(&data_dir);
    assert!(runs.iter().filter(|pid| ran.contains(pid)).count() >= 2, "the same processes: {ran:?}, now {runs:?}");
    assert_eq!(identity(&platform, &hello).await?, hello_was);
    assert_eq!(identity(&platform, "steady").await?, steady_was);
    platform.kubectl(&["get", "configmap", "last"]).await?.ok()?;
    let failed = ["wait", "--for=jsonpath={.status.phase}=Failed", "pod/brief", "--timeout=20s"];
    platform.kubectl(&failed).await?.ok()?;
    let brief = platform.object("pod", "brief").await?;
    assert_eq!(brief["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 7, "{brief}");
    let logs = platform.kubectl(&["logs", "brief"]).await?.ok()?;
    assert_eq!(logs.lines().last(), Some("line 14"), "what was written while nobody looked is there");
    let logs = platform.kubectl(&["logs", "steady"]).await?.ok()?;
    let expected: Vec<String> = (0..logs.lines().count()).map(|n| format!("line {n}")).collect();
    assert_eq!(logs.lines().collect::<Vec<_>>(), expected, "no line is missing or double");

    // What runs is the platform's own again: it goes as it came.
    platform.kubectl(&["delete", "pod", "steady", "brief", "--timeout=60s"]).await?.ok()?;
    platform.kubectl(&["delete", "ksvc", "hello", "--timeout=60s"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("hello"), 0, SOON).await?;
    platform.stop().await?;
    let after = machine.changes();
    assert_eq!(after, Leftovers::default(), "nothing is left; the platform said:\n{}", platform.log());
    Ok(())
}

/// Waits until a log of a pod below `logs` has that line.
async fn wait_for_line(logs: &Path, pod: &str, line: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let folders = std::fs::read_dir(logs)?
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("default_{pod}_")));
        let texts = folders.filter_map(|entry| std::fs::read_to_string(entry.path().join("main/0.log")).ok());
        if texts.into_iter().any(|text| text.lines().any(|each| each.ends_with(line))) {
            return Ok(());
        }
        ensure!(start.elapsed() < SOON, "{pod} did not write {line:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_that_are_kept_go_on_and_others_start_again() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data_dir = dir.path().join("data");
    let options = |arguments: &[&str]| Options {
        data_dir: Some(data_dir.clone()),
        arguments: arguments.iter().map(ToString::to_string).collect(),
        ..Options::default()
    };
    let mut platform = Platform::start(options(&["--keep-pods"])).await?;
    platform.apply(&counter("kept", "").replace("Never", "Always")).await?;
    wait_until_running(&platform, "kept").await?;
    let was = identity(&platform, "kept").await?;
    platform.stop().await?;
    assert!(platform.log().contains("pods go on"), "{}", platform.log());

    let mut platform = Platform::start(options(&[])).await?;
    wait_until_running(&platform, "kept").await?;
    assert_eq!(identity(&platform, "kept").await?, was);
    platform.stop().await?;

    // Without the flag containers end; their pods start again.
    let mut platform = Platform::start(options(&[])).await?;
    wait_until_running(&platform, "kept").await?;
    let pod = platform.object("pod", "kept").await?;
    assert_eq!(pod["metadata"]["uid"], was[0]);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 1);
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_named_at_the_start() -> Result<()> {
    if cannot_run(&[]).is_some() || is_of_our_control_plane("it is about its store") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data_dir = dir.path().join("data");
    let options = || Options { data_dir: Some(data_dir.clone()), ..Options::default() };
    Platform::start(options()).await?.stop().await?;
    let files = std::fs::read_dir(role_dir(&data_dir, "apiserver").join("store"))?.flatten().map(|entry| entry.path());
    let log = files.into_iter().find(|path| path.extension().is_some_and(|kind| kind == "log")).context("a log")?;
    let mut bytes = std::fs::read(&log)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&log, &bytes)?;
    let Err(error) = Platform::start(options()).await else { anyhow::bail!("the damage is not seen") };
    let text = error.to_string();
    ensure!(text.contains(&*log.to_string_lossy()) && text.contains("damaged at byte"), "{text}");
    // As it was, it is read again.
    bytes[middle] ^= 1;
    std::fs::write(&log, &bytes)?;
    Platform::start(options()).await?.stop().await
}
