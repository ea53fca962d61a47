//! Kubernetes Services on the pod network: cluster addresses, names, and nobody behind them.

use anyhow::Result;
use e2e::{Options, Platform, cannot_run, is_of_our_control_plane};

use crate::{SOON, host};

const BACKENDS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec: {containers: [{name: web, image: "hello:latest", ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}}
spec: {containers: [{name: web, image: "hello:latest", ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"#;

const FUNCTION: &str = "apiVersion: functions.colibri.dev/v1
kind: Function
metadata:
  name: asker
spec:
  runtime: python
";

const CODE: &str = r#"
import urllib.request


def handle(request):
    try:
        with urllib.request.urlopen(request.query["url"], timeout=5) as answer:
            return f"{answer.status}"
    except OSError as error:
        return f"failed: {error}"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn pods_behind_a_service_answer_at_its_address_and_names() -> Result<()> {
    if cannot_run(&["kubectl", "python3"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let versions = platform.kubectl(&["api-versions"]).await?.ok()?;
    let has_slices = versions.lines().any(|version| version == "discovery.k8s.io/v1");
    if !has_slices && is_of_our_control_plane("before 1.21 there are no EndpointSlices") {
        return platform.stop().await;
    }
    platform.load_hello().await?;
    platform.apply(BACKENDS).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "pod/one", "pod/two", "--timeout=40s"]).await?.ok()?;
    let dir = platform.scratch().join("asker");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("function.yml"), FUNCTION)?;
    std::fs::write(dir.join("main.py"), CODE)?;
    platform.colibri(&["deploy", &dir.to_string_lossy()]).await?.ok()?;

    let ask =
        async |url: &str| -> Result<String> { Ok(platform.get(&host("asker"), &format!("/?url={url}")).await?.body) };
    let service = platform.object("service", "web").await?;
    let address = service["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    for name in [address.as_str(), "web.default.svc.cluster.local", "web.default.svc", "web"] {
        let begin = std::time::Instant::now();
        loop {
            let answer = ask(&format!("http://{name}/")).await?;
            if answer == "200" {
                break;
            }
            assert!(begin.elapsed() < SOON, "{name}: {answer}");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
    let nobody = ask("http://nobody.default.svc/").await?;
    assert!(nobody.contains("refused"), "{nobody}");

    let slices = platform.kubectl(&["get", "endpointslices", "-l", "kubernetes.io/service-name=web"]).await?.ok()?;
    assert!(slices.contains("web-0") && slices.contains("8080"), "{slices}");
    platform.kubectl(&["delete", "service", "web"]).await?.ok()?;
    let begin = std::time::Instant::now();
    while ask(&format!("http://{address}/")).await? == "200" {
        assert!(begin.elapsed() < SOON, "a deleted service still answers");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let gone = ["wait", "--for=delete", "endpointslice/web-0", "--timeout=40s"];
    platform.kubectl(&gone).await?.ok()?;
    platform.stop().await
}
