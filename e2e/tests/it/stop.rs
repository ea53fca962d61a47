//! A stop: requests in flight end first, and nothing stays behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Leftovers, Machine, Options, cannot_run};

use crate::{SOON, host, service_selector, start_with_hello};

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_drains_and_leaves_nothing_behind() -> Result<()> {
    if cannot_run(&["kubectl", "nft"]).is_some() {
        return Ok(());
    }
    let machine = Machine::alone().await?;
    let platform = Arc::new(start_with_hello(machine.options(), "drained").await?);
    assert_eq!(platform.pods(&service_selector("drained")).await?.len(), 1);
    let during = machine.changes();
    assert!(!during.links.is_empty() && !during.tables.is_empty() && !during.cgroups.is_empty(), "{during:?}");

    let in_flight = {
        let platform = platform.clone();
        tokio::spawn(async move { platform.get(&host("drained"), "/sleep?ms=2000").await })
    };
    platform.wait_for_metric("kn_revision_request_active").await?;
    platform.signal(libc::SIGINT);
    let answer = in_flight.await??;
    assert_eq!(answer.status, 200, "a request in flight is answered: {answer:?}");
    let mut platform = Arc::into_inner(platform).context("the request has ended")?;
    assert_eq!(platform.wait().await?, 0, "{}", platform.log());
    let after = machine.changes();
    assert_eq!(after, Leftovers::default(), "nothing is left; the platform said:\n{}", platform.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_ctrl_c_stops_at_once() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let platform = Arc::new(start_with_hello(Options::default(), "busy").await?);
    let in_flight = {
        let platform = platform.clone();
        tokio::spawn(async move { platform.get(&host("busy"), "/sleep?ms=25000").await })
    };
    platform.wait_for_metric("kn_revision_request_active").await?;
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
