//! A function whose code is an archive at a URL.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, cannot_run};

use crate::{host, service_selector};

fn sh(script: &str, dir: &std::path::Path) -> Result<String> {
    let done = Command::new("sh").args(["-ec", script]).current_dir(dir).output()?;
    ensure!(done.status.success(), "{script}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?.trim().to_owned())
}

fn function(name: &str, url: &str, sha256: &str) -> String {
    format!(
        "apiVersion: functions.colibri.dev/v1\nkind: Function\nmetadata: {{ name: {name} }}\nspec:\n  runtime: python\n  \
         source: {{ archive: {{ url: {url:?}, sha256: {sha256:?} }} }}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn code_at_a_url_is_fetched_checked_and_run() -> Result<()> {
    if cannot_run(&["kubectl", "python3", "tar", "gzip"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    // A function is the server.
    let dir = platform.scratch().join("files");
    std::fs::create_dir_all(dir.join("code"))?;
    std::fs::write(dir.join("code/main.py"), "def handle(request):\n    return 'from afar'\n")?;
    let sha256 = sh("tar -C code -czf code.tar.gz main.py; rm -r code; sha256sum code.tar.gz | cut -d' ' -f1", &dir)?;
    std::fs::write(dir.join("function.yml"), "spec: { runtime: python, scaling: { min: 1 } }\n")?;
    let server = "def handle(request):\n    return open(__file__[:-7] + 'code.tar.gz', 'rb').read()\n";
    std::fs::write(dir.join("main.py"), server)?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;
    let pod = platform.pods(&service_selector("files")).await?.pop().context("a pod serves")?;
    let pod = pod.trim_start_matches("pod/").to_owned();
    let address = platform.object("pod", &pod).await?["status"]["podIP"].as_str().context("an address")?.to_owned();
    let url = format!("http://{address}:8080/code.tar.gz");

    platform.apply(&function("afar", &url, &sha256)).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "function/afar", "--timeout=60s"]).await?.ok()?;
    let answer = platform.get(&host("afar"), "/").await?;
    assert_eq!((answer.status, answer.body.as_str()), (200, "from afar"));

    let port = platform.endpoint("gateway").rsplit(':').next().context("a port")?.to_owned();
    for (name, url, sha256, expected) in [
        ("wrong", url.clone(), "0".repeat(64), format!("has the SHA-256 {sha256}, not 0000")),
        ("gone", format!("http://{address}:8081/"), "1".repeat(64), "cannot be fetched".to_owned()),
        ("mine", format!("http://127.0.0.1:{port}/"), "2".repeat(64), "is an address of this machine".to_owned()),
    ] {
        platform.apply(&function(name, &url, &sha256)).await?;
        let resource = format!("function/{name}");
        let wait = ["wait", "--for=condition=SourceReady=false", &resource, "--timeout=60s"];
        platform.kubectl(&wait).await?.ok()?;
        let told = platform.object("function", name).await?["status"]["conditions"].to_string();
        assert!(told.contains(&expected) && told.contains("FetchFailed"), "{told}");
        let described = platform.colibri(&["describe", name]).await?.ok()?;
        assert!(described.contains("Not ready, failed at source"), "{described}");
    }
    platform.stop().await
}
