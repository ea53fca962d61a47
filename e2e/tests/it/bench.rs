//! `colibri bench`: every part gives its figures as JSON.

use anyhow::{Context, Result};
use e2e::{Options, Platform, cannot_run, is_of_one_process};
use serde_json::Value;

use crate::NO_GRACE;

#[tokio::test(flavor = "multi_thread")]
async fn every_benchmark_gives_its_figures() -> Result<()> {
    if cannot_run(&["kubectl", "python3", "wrk", "h2load", "nginx", "haproxy"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.apply(NO_GRACE).await?;
    platform.load_hello().await?;
    let bench = async |arguments: &[&str]| -> Result<Value> {
        let all: Vec<&str> = ["bench"].iter().chain(arguments).chain(&["--json"]).copied().collect();
        let text = platform.colibri(&all).await?.ok()?;
        let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        assert!(report["machine"]["cores"].as_u64() > Some(0), "{report}");
        Ok(report)
    };
    let above_zero = |report: &Value, pointer: &str| {
        let figure = report.pointer(pointer).and_then(Value::as_f64);
        assert!(figure > Some(0.0), "{pointer}: {report}");
    };

    let report = bench(&["coldstart", "--count", "1"]).await?;
    for pointer in ["/coldstart/0/cold/p50_ms", "/coldstart/0/bare/p50_ms", "/coldstart/1/stages/probe/p50_ms"] {
        above_zero(&report, pointer);
    }
    let report = bench(&["burst", "--services", "3", "--requests", "2"]).await?;
    assert_eq!((&report["burst"][0]["failed"], &report["burst"][0]["cold"]["count"]), (&0.into(), &6.into()));
    if !is_of_one_process("bench control-plane and idle measure the process of colibri up") {
        let report = bench(&["control-plane", "--writes", "50", "--services", "2"]).await?;
        for pointer in ["/controlPlane/creates_per_second", "/controlPlane/ready/p50_ms"] {
            above_zero(&report, pointer);
        }
        let report = bench(&["idle", "--services", "2", "--seconds", "1"]).await?;
        above_zero(&report, "/idle/0/rss_mib");
        platform.load_echo().await?;
        let short =
            ["--rounds", "1", "--seconds", "1", "--sockets", "50", "--waiting", "50", "--overload-seconds", "2"];
        let report = bench(&[&["gateway"], &short[..]].concat()).await?;
        for load in 0..6 {
            for proxy in 0..3 {
                above_zero(&report, &format!("/gateway/loads/{load}/proxies/{proxy}/per_second/0"));
                above_zero(&report, &format!("/gateway/loads/{load}/proxies/{proxy}/cpu_us"));
            }
        }
        for pointer in
            ["/gateway/loads/0/proxies/2/half/p99_ms", "/gateway/sockets/2/with_mib", "/gateway/waiting/with_mib"]
        {
            above_zero(&report, pointer);
        }
        let statuses = report["gateway"]["overload"]["statuses"].as_object().context("statuses")?;
        assert!(statuses.keys().all(|status| matches!(status.as_str(), "200" | "429" | "503")), "{statuses:?}");
        above_zero(&report, "/gateway/overload/goodput_per_second");
    }
    let left = platform.kubectl(&["get", "ksvc,functions", "-o", "name"]).await?.ok()?;
    assert_eq!(left.trim(), "", "a benchmark left something");
    platform.stop().await
}
