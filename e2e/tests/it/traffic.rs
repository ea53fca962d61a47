//! Where a Route's requests go: by tag, by header, and bit by bit to a new Revision.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::{Options, Platform, cannot_run};
use serde_json::{Value, json};

use crate::{SOON, configure, host, until};

const TAG_HEADER: (&str, &str) = ("knative-serving-tag", "next");

/// The service, whose new Revision says hello to `target`; `metadata` and `traffic` are lines of YAML.
fn service(target: &str, metadata: &str, traffic: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: split\n{metadata}spec:\n  template:\n    \
         spec:\n      containers:\n      - image: hello:latest\n        env: [{{name: TARGET, value: {target}}}]\n{traffic}"
    )
}

/// Waits until a request is answered with that status and text.
async fn answers(platform: &Platform, host: &str, header: Option<(&str, &str)>, status: u16, text: &str) -> Result<()> {
    let ask = async || platform.get_with(host, "/", header).await;
    let answer = until(SOON, ask, |answer| answer.status == status && answer.body.contains(text)).await;
    answer.map(drop).with_context(|| format!("{host} {header:?}, wanted {status} {text:?}"))
}

async fn set(platform: &Platform, map: &str, key: &str, value: &str) -> Result<()> {
    configure(platform, map, json!({key: value})).await?.ok().map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_headers_and_gradual_rollouts_choose_the_revision() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    let split = host("split");
    platform.apply(&service("one", "", "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/split", "--timeout=60s"]).await?.ok()?;
    let tagged = "  traffic:\n  - {revisionName: split-00001, percent: 100}\n  - {latestRevision: true, percent: 0, tag: next}\n";
    platform.apply(&service("two", "", tagged)).await?;
    answers(&platform, &host("next-split"), None, 200, "Hello two").await?;
    answers(&platform, &split, None, 200, "Hello one").await?;

    // The header counts where it is switched on.
    answers(&platform, &split, Some(TAG_HEADER), 200, "Hello one").await?;
    set(&platform, "config-features", "tag-header-based-routing", "Enabled").await?;
    answers(&platform, &split, Some(TAG_HEADER), 200, "Hello two").await?;
    answers(&platform, &split, None, 200, "Hello one").await?;

    // Tags are named as the administrator likes.
    set(&platform, "config-network", "tag-template", "{{.Name}}-at-{{.Tag}}").await?;
    answers(&platform, &host("split-at-next"), None, 200, "Hello two").await?;
    answers(&platform, &host("next-split"), None, 404, "").await?;
    let status = platform.object("route", "split").await?["status"].clone();
    let url = status["traffic"][1]["url"].as_str().context("the tag's URL")?;
    ensure!(url.starts_with("http://split-at-next.default.localhost"), "{status}");
    platform.kubectl(&["get", "service", "split-at-next"]).await?.ok()?;

    // All to the newest, then bit by bit to the one after it.
    platform.apply(&service("two", "", "  traffic:\n  - {latestRevision: true, percent: 100}\n")).await?;
    answers(&platform, &split, None, 200, "Hello two").await?;
    let slowly = "  annotations: {serving.knative.dev/rollout-duration: 8s}\n";
    platform.apply(&service("three", slowly, "")).await?;
    let shares = rollout(&platform).await?;
    ensure!(shares.len() > 2 && shares.is_sorted(), "the share of the new Revision grows in steps: {shares:?}");
    answers(&platform, &split, None, 200, "Hello three").await?;
    platform.stop().await
}

/// The shares that `split-00003` had, one after the other, until all is its.
async fn rollout(platform: &Platform) -> Result<Vec<i64>> {
    let (start, mut shares) = (Instant::now(), vec![0]);
    loop {
        let status = platform.object("route", "split").await?["status"].clone();
        let percents = |of: &dyn Fn(&Value) -> bool| -> i64 {
            let targets = status["traffic"].as_array().into_iter().flatten();
            targets.filter(|target| of(target)).filter_map(|target| target["percent"].as_i64()).sum()
        };
        ensure!(percents(&|_| true) == 100, "the shares make up the whole: {status}");
        let share = percents(&|target| target["revisionName"] == "split-00003");
        if shares.last() != Some(&share) {
            shares.push(share);
        }
        if share == 100 {
            return Ok(shares);
        }
        ensure!(start.elapsed() < SOON, "the rollout does not end: {shares:?} {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
