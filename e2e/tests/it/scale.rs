//! Hold and release: many requests at a service that has no pod.

use std::sync::Arc;

use anyhow::Result;
use e2e::{Options, Platform, cannot_run};

use crate::{NO_GRACE, SHORT_WINDOW, SOON, hello_service, host, service_selector};

const REQUESTS: usize = 200;
const LIMIT: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_requests_at_zero_pods_are_all_answered_within_the_limit() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let platform = Arc::new(Platform::start(Options::default()).await?);
    platform.load_hello().await?;
    platform.apply(NO_GRACE).await?;
    let spec = format!("      containerConcurrency: {LIMIT}\n");
    platform.apply(&hello_service("burst", &[SHORT_WINDOW], &spec)).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/burst", "--timeout=60s"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("burst"), 0, SOON).await?;

    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..REQUESTS {
        let platform = platform.clone();
        requests.spawn(async move { platform.get(&host("burst"), "/sleep?ms=50").await });
    }
    let (mut answered, mut most) = (0, 0);
    while let Some(answer) = requests.join_next().await {
        let answer = answer??;
        assert_eq!(answer.status, 200, "{answer:?}");
        answered += 1;
        // The server tells how many requests it had in flight, this one included.
        let in_flight = answer.headers.get("x-in-flight").and_then(|value| value.to_str().ok());
        most = most.max(in_flight.and_then(|text| text.parse::<usize>().ok()).unwrap_or(usize::MAX));
    }
    assert_eq!(answered, REQUESTS);
    assert!(most <= LIMIT, "{most} requests in flight in one pod, allowed are {LIMIT}");
    assert!(most > 1, "the limit was never tried");
    let mut platform = Arc::into_inner(platform).expect("every request has ended");
    platform.stop().await
}
