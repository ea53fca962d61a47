//! A stop: requests in flight end first, and nothing stays behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Leftovers, Options, Platform, cannot_run};

use crate::{SOON, hello_service, host, service_selector};

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_drains_and_leaves_nothing_behind() -> Result<()> {
    if cannot_run(&["kubectl", "nft"]).is_some() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data_dir = dir.path().join("data");
    let _alone = e2e::alone().await?;
    let before = Leftovers::look(&data_dir);
    let options = Options { data_dir: Some(data_dir.clone()), alone: true, ..Options::default() };
    let platform = Arc::new(Platform::start(options).await?);
    platform.load_hello().await?;
    platform.apply(&hello_service("drained", &[], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/drained", "--timeout=60s"]).await?.ok()?;
    assert_eq!(platform.pods(&service_selector("drained")).await?.len(), 1);
    let during = Leftovers::look(&data_dir).since(&before);
    assert!(!during.links.is_empty() && !during.tables.is_empty() && !during.cgroups.is_empty(), "{during:?}");

    let in_flight = {
        let platform = platform.clone();
        tokio::spawn(async move { platform.get(&host("drained"), "/sleep?ms=2000").await })
    };
    wait_until_active(&platform).await?;
    platform.signal(libc::SIGINT);
    let answer = in_flight.await??;
    assert_eq!(answer.status, 200, "a request in flight is answered: {answer:?}");
    let mut platform = Arc::into_inner(platform).context("the request has ended")?;
    assert_eq!(platform.wait().await?, 0, "{}", platform.log());
    let after = Leftovers::look(&data_dir).since(&before);
    assert_eq!(after, Leftovers::default(), "nothing is left; the platform said:\n{}", platform.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_stops_at_once() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let platform = Arc::new(Platform::start(Options::default()).await?);
    platform.load_hello().await?;
    platform.apply(&hello_service("busy", &[], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/busy", "--timeout=60s"]).await?.ok()?;
    let in_flight = {
        let platform = platform.clone();
        tokio::spawn(async move { platform.get(&host("busy"), "/sleep?ms=25000").await })
    };
    wait_until_active(&platform).await?;
    platform.signal(libc::SIGINT);
    let start = Instant::now();
    while !platform.log().contains("stopping") {
        ensure!(start.elapsed() < SOON, "the first signal was not seen:\n{}", platform.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = Instant::now();
    platform.signal(libc::SIGINT);
    assert!(in_flight.await?.is_err(), "the request was cut");
    let mut platform = Arc::into_inner(platform).context("the request has ended")?;
    platform.wait().await?;
    // Far below the 25 s that the request would have taken.
    assert!(second.elapsed() < Duration::from_secs(15), "{:?}", second.elapsed());
    Ok(())
}

/// Waits until the gateway counts a request in flight at an instance.
async fn wait_until_active(platform: &Platform) -> Result<()> {
    let url = format!("{}/metrics", platform.endpoint("metrics"));
    let start = Instant::now();
    loop {
        let metrics = platform.get_url(&url).await?.body;
        let mut active = metrics.lines().filter(|line| line.starts_with("kn_revision_request_active"));
        if active.any(|line| line.split_whitespace().last().is_some_and(|value| value != "0")) {
            return Ok(());
        }
        ensure!(start.elapsed() < SOON, "no request is in flight:\n{metrics}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
