//! A container: from zero, back to zero, and everything kubectl shows of it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, cannot_run};

use crate::{NO_GRACE, SHORT_WINDOW, SOON, hello_service, host, service_selector, start_with_hello};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_answers_from_zero_goes_to_zero_and_wakes_again() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    platform.apply(NO_GRACE).await?;
    platform.apply(&hello_service("hello", &[SHORT_WINDOW], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"]).await?.ok()?;

    // Ready means that the URL answers, at once.
    let answer = platform.get(&host("hello"), "/").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.to_lowercase().contains("hello"), "{answer:?}");

    platform.wait_for_pods(&service_selector("hello"), 0, SOON).await?;
    let inactive = ["wait", "--for=condition=Active=False", "revision/hello-00001", "--timeout=20s"];
    platform.kubectl(&inactive).await?.ok()?;
    let revision = platform.object("revision", "hello-00001").await?;
    let condition = |kind: &str| {
        let conditions = revision["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|condition| condition["type"] == kind);
        found.map(|condition| (condition["status"].clone(), condition["reason"].clone()))
    };
    assert_eq!(condition("Ready").context("Ready")?.0, "True", "a revision at zero is ready");
    assert_eq!(condition("Active").context("Active")?, ("False".into(), "NoTraffic".into()));

    let answer = platform.get(&host("hello"), "/").await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let timing = answer.headers.get("server-timing").context("Server-Timing")?.to_str()?;
    assert!(timing.contains("cold"), "{timing}");
    let answer = platform.get(&host("hello"), "/").await?;
    let timing = answer.headers.get("server-timing").context("Server-Timing")?.to_str()?;
    assert!(!timing.contains("cold"), "the second request is warm: {timing}");

    kubectl_shows_it(&platform).await?;
    platform.kubectl(&["delete", "ksvc", "hello", "--timeout=60s"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("hello"), 0, SOON).await?;
    let left =
        platform.kubectl(&["get", "ksvc,configuration,revision,route,podautoscaler", "-o", "name"]).await?.ok()?;
    assert_eq!(left.trim(), "", "everything that the service owned is gone");
    assert_eq!(platform.get(&host("hello"), "/").await?.status, 404);
    platform.stop().await
}

async fn kubectl_shows_it(platform: &Platform) -> Result<()> {
    let table = platform.kubectl(&["get", "ksvc"]).await?.ok()?;
    for word in ["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON", "hello-00001", "True"] {
        assert!(table.contains(word), "{word} is missing in:\n{table}");
    }
    let url = platform.object("ksvc", "hello").await?["status"]["url"].clone();
    let port = platform.endpoint("gateway").rsplit(':').next().context("a port")?.to_owned();
    assert_eq!(url, format!("http://hello.default.localhost:{port}"));
    platform.kubectl(&["get", "revision,route,configuration,pods"]).await?.ok()?;
    let described = platform.kubectl(&["describe", "ksvc", "hello"]).await?.ok()?;
    assert!(described.contains("Latest Ready Revision Name"), "{described}");
    let pods = platform.pods(&service_selector("hello")).await?;
    let pod = pods.first().context("a pod")?;
    let described = platform.kubectl(&["describe", pod]).await?.ok()?;
    assert!(described.contains("user-container"), "{described}");
    platform.wait_for_logs(&["hello"], "listening", SOON).await?;
    let logs = platform.kubectl(&["logs", pod]).await?.ok()?;
    assert!(logs.contains("listening"), "{logs}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_follow_until_the_pod_ends() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = start_with_hello(Options::default(), "talker").await?;
    let pods = platform.pods(&service_selector("talker")).await?;
    let pod = pods.first().context("a pod")?.clone();
    let arguments = ["logs", "-f", pod.as_str()];
    let (follow, delete) = tokio::join!(platform.kubectl(&arguments), async {
        platform.get(&host("talker"), "/").await?;
        platform.kubectl(&["delete", "ksvc", "talker", "--timeout=60s"]).await
    });
    delete?.ok()?;
    let logs = follow?.ok()?;
    assert!(logs.contains("listening"), "{logs}");
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_defaults_the_last_pod_goes_after_90_seconds() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = start_with_hello(Options::default(), "slow").await?;
    assert_eq!(platform.get(&host("slow"), "/").await?.status, 200);
    // Stable window (60 s) and scale-to-zero grace period (30 s), to within 3 s. This is the product's promise, not a
    // speed: it is what the two settings add up to.
    let took = platform.wait_for_pods(&service_selector("slow"), 0, Duration::from_secs(120)).await?;
    ensure!((87.0..=93.0).contains(&took.as_secs_f64()), "the last pod went after {took:?}");
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_a_registry() -> Result<()> {
    if cannot_run(&["kubectl", "docker-registry", "skopeo"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let registry = Registry::start(platform.scratch()).await?;
    let layout = platform.scratch().join("image.tar");
    let layout = layout.to_string_lossy().into_owned();
    let program = e2e::hello_program();
    let program = program.to_string_lossy();
    platform.colibri(&["image", "pack", &program, "--tag", "hello:latest", "--output", &layout]).await?.ok()?;
    let image = format!("127.0.0.1:{}/team/hello", registry.port);
    let mut copy = Command::new("skopeo");
    copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
    copy.args([format!("oci-archive:{layout}"), format!("docker://{image}:v1")]);
    e2e::run(copy, None).await?.ok()?;

    let service = hello_service("pulled", &[], "").replace("hello:latest", &format!("{image}:v1"));
    platform.apply(&service).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/pulled", "--timeout=60s"]).await?.ok()?;
    assert_eq!(platform.get(&host("pulled"), "/").await?.status, 200);
    let revision = platform.object("revision", "pulled-00001").await?;
    let digest = revision["status"]["containerStatuses"][0]["imageDigest"].as_str().unwrap_or_default().to_owned();
    assert!(digest.starts_with(&format!("{image}@sha256:")), "{digest}");

    let missing = hello_service("missing", &[], "").replace("hello:latest", &format!("{image}:nope"));
    platform.apply(&missing).await?;
    platform.kubectl(&["wait", "--for=condition=Ready=False", "ksvc/missing", "--timeout=60s"]).await?.ok()?;
    let table = platform.kubectl(&["get", "ksvc", "missing", "-o", "yaml"]).await?.ok()?;
    assert!(table.contains("Unable to fetch image"), "{table}");
    platform.stop().await
}

/// Debian's `docker-registry` on a free port.
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    async fn start(dir: &std::path::Path) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = dir.join("registry.yml");
        let data = dir.join("registry");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
                data.display()
            ),
        )?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self { child, port };
        for _ in 0..500 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Ok(registry);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        anyhow::bail!("docker-registry did not start")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
