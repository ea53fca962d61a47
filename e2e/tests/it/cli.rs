//! The CLI against a running platform.

use anyhow::Result;
use e2e::{Options, Platform, cannot_run};

use crate::hello_service;

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_and_errors_say_what_to_do() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    let images = platform.colibri(&["image", "list"]).await?.ok()?;
    assert!(images.contains("hello:latest"), "{images}");
    platform.apply(&hello_service("hello", &[], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"]).await?.ok()?;

    let list = platform.colibri(&["list"]).await?.ok()?;
    assert!(list.contains("hello") && list.contains("http://hello.default.localhost"), "{list}");
    let described = platform.colibri(&["describe", "hello"]).await?.ok()?;
    assert!(described.contains("hello-00001"), "{described}");
    let invoked = platform.colibri(&["invoke", "hello", "-X", "POST", "-H", "X-Test: 1", "-d", "body"]).await?.ok()?;
    assert!(invoked.contains("200"), "{invoked}");
    let logs = platform.colibri(&["logs", "hello"]).await?.ok()?;
    assert!(logs.contains("listening"), "{logs}");
    let kubeconfig = platform.colibri(&["kubeconfig"]).await?.ok()?;
    assert!(kubeconfig.contains("clusters:"), "{kubeconfig}");
    let version = platform.colibri(&["version"]).await?.ok()?;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    let doctor = platform.colibri(&["doctor"]).await?.ok()?;
    for check in ["user", "namespaces", "cgroups", "python", "platform"] {
        let line = doctor.lines().find(|line| line.split_whitespace().nth(1) == Some(check));
        assert!(line.is_some_and(|line| line.starts_with("ok")), "{check}:\n{doctor}");
    }

    let missing = platform.colibri(&["invoke", "nobody"]).await?;
    assert_eq!(missing.code, 1, "{}", missing.text());
    assert!(missing.stderr.contains("nobody"), "{}", missing.text());
    platform.colibri(&["delete", "hello"]).await?.ok()?;
    let list = platform.colibri(&["list"]).await?.ok()?;
    assert!(!list.contains("hello.default"), "{list}");
    assert!(platform.log().contains("ready took="), "{}", platform.log());
    platform.stop().await
}
