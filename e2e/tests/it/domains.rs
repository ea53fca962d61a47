//! Mapped domains: who may have one, where it leads, and that it ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use e2e::{Options, Platform, cannot_run};
use serde_json::{Value, json};

use crate::{SOON, hello_service, until};

const CLAIM: &str = "apiVersion: networking.internal.knative.dev/v1alpha1
kind: ClusterDomainClaim
metadata: {name: app.example.com}
spec: {namespace: default}
";

fn mapping(domain: &str, namespace: &str, service: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {{name: {domain}, namespace: {namespace}}}
spec: {{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: {service}}}}}
"
    )
}

/// Which service answers for a host; the status if none does.
async fn answered_by(platform: &Platform, host: &str) -> Result<String> {
    let answer = platform.get(host, "/").await?;
    let pod = answer.body.split(" from ").nth(1).and_then(|pod| pod.split("-00001").next());
    Ok(match (answer.status, pod) {
        (200, Some(service)) => service.to_owned(),
        (status, _) => status.to_string(),
    })
}

async fn until_answered_by(platform: &Platform, host: &str, wanted: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let answered = answered_by(platform, host).await?;
        if answered == wanted {
            return Ok(());
        }
        if start.elapsed() > SOON {
            bail!("{host} is still answered by {answered}, not by {wanted}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the mapping's Ready is False for that reason; what it says then.
async fn refused(platform: &Platform, namespace: &str, domain: &str, reason: &str) -> Result<String> {
    let start = Instant::now();
    loop {
        let object = platform.kubectl(&["-n", namespace, "get", "dm", domain, "-o", "json"]).await?.ok()?;
        let object: Value = serde_json::from_str(&object)?;
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.find(|condition| condition["type"] == "Ready").cloned().unwrap_or_default();
        if ready["status"] == "False" && ready["reason"] == reason {
            return Ok(ready["message"].as_str().unwrap_or_default().to_owned());
        }
        if start.elapsed() > SOON {
            bail!("{namespace}/{domain} is not refused for {reason}: {object:#}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn ready(platform: &Platform, namespace: &str, domain: &str) -> Result<()> {
    let dm = format!("dm/{domain}");
    platform.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", &dm, "--timeout=60s"]).await?.ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_domain_leads_where_its_owner_wants() -> Result<()> {
    if cannot_run(&["kubectl", "curl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    platform.kubectl(&["create", "namespace", "other"]).await?.ok()?;
    let front = hello_service("front", &[], "");
    platform.apply(&front).await?;
    platform.apply(&hello_service("back", &[], "")).await?;
    platform.kubectl_with(&["-n", "other", "apply", "-f", "-"], Some(&hello_service("thief", &[], ""))).await?.ok()?;
    for (namespace, name) in [("default", "front"), ("default", "back"), ("other", "thief")] {
        let service = format!("ksvc/{name}");
        platform.kubectl(&["-n", namespace, "wait", "--for=condition=Ready", &service, "--timeout=60s"]).await?.ok()?;
    }

    // Nobody has claimed it yet.
    platform.apply(&mapping("app.example.com", "default", "front")).await?;
    let message = refused(&platform, "default", "app.example.com", "DomainAlreadyClaimed").await?;
    ensure!(message.contains("no ClusterDomainClaim found for domain \"app.example.com\""), "{message}");
    ensure!(answered_by(&platform, "app.example.com").await? == "404");
    platform.apply(CLAIM).await?;
    ready(&platform, "default", "app.example.com").await?;
    ensure!(answered_by(&platform, "app.example.com").await? == "front", "ready means that it answers");
    let table = platform.kubectl(&["get", "dm"]).await?.ok()?;
    let words: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    ensure!(words[0] == ["NAME", "URL", "READY", "REASON"], "{table}");
    ensure!(words[1][0] == "app.example.com" && words[1][1].starts_with("http://app.example.com"), "{table}");

    // What a claim says it says for good.
    let moved = platform.kubectl_with(&["apply", "-f", "-"], Some(&CLAIM.replace(": default", ": other"))).await?;
    ensure!(moved.code != 0 && moved.stderr.contains("Immutable fields changed"), "{}", moved.text());
    let empty =
        platform.kubectl_with(&["create", "-f", "-"], Some(&CLAIM.replace("spec: {namespace: default}\n", ""))).await?;
    ensure!(empty.code != 0 && empty.stderr.contains("missing field(s): spec.namespace"), "{}", empty.text());

    // A second namespace gets nothing, and changes nothing.
    platform.apply(&mapping("app.example.com", "other", "thief")).await?;
    let message = refused(&platform, "other", "app.example.com", "DomainAlreadyClaimed").await?;
    ensure!(message.contains("already in use by another DomainMapping") && !message.contains("default"), "{message}");
    ensure!(answered_by(&platform, "app.example.com").await? == "front");

    // It moves, and it ends; the claim was the administrator's.
    platform.apply(&mapping("app.example.com", "default", "back")).await?;
    until_answered_by(&platform, "app.example.com", "back").await?;
    ready(&platform, "default", "app.example.com").await?;
    platform.kubectl(&["delete", "dm", "app.example.com"]).await?.ok()?;
    until_answered_by(&platform, "app.example.com", "404").await?;
    platform.kubectl(&["get", "cdc", "app.example.com"]).await?.ok()?;

    claims_by_themselves(&platform).await?;
    by_the_command_line(&platform).await?;
    with_a_certificate_of_its_own(&platform).await?;
    platform.stop().await
}

/// With `autocreate-cluster-domain-claims`, changed while it runs.
async fn claims_by_themselves(platform: &Platform) -> Result<()> {
    platform.apply(&mapping("auto.example.com", "other", "thief")).await?;
    refused(platform, "other", "auto.example.com", "DomainAlreadyClaimed").await?;
    let patch = r#"{"data":{"autocreate-cluster-domain-claims":"true"}}"#;
    let system = ["-n", "colibri-system", "patch", "configmap", "config-network", "--type", "merge", "-p", patch];
    platform.kubectl(&system).await?.ok()?;
    ready(platform, "other", "auto.example.com").await?;
    ensure!(answered_by(platform, "auto.example.com").await? == "thief");
    let claimed = platform.object("cdc", "auto.example.com").await?;
    ensure!(claimed["spec"]["namespace"] == "other", "{claimed}");
    platform.kubectl(&["-n", "other", "delete", "dm", "auto.example.com"]).await?.ok()?;
    until_answered_by(platform, "auto.example.com", "404").await?;
    platform.kubectl(&["wait", "--for=delete", "cdc/auto.example.com", "--timeout=60s"]).await?.ok()?;
    Ok(())
}

async fn by_the_command_line(platform: &Platform) -> Result<()> {
    let taken = platform.colibri(&["domain", "create", "back.default.localhost", "--ref", "front"]).await?;
    ensure!(taken.code == 1 && taken.stderr.contains("is the host of Route \"back\""), "{}", taken.text());
    let made = platform.colibri(&["domain", "create", "cli.example.com", "--ref", "kroute:front"]).await?;
    ensure!(
        made.code == 0 && made.stderr.contains("cli.example.com leads to kroute:front: http://"),
        "{}",
        made.text()
    );
    ensure!(answered_by(platform, "cli.example.com").await? == "front");
    let moved = platform.colibri(&["domain", "update", "cli.example.com", "--ref", "back"]).await?;
    ensure!(moved.code == 0, "{}", moved.text());
    ensure!(answered_by(platform, "cli.example.com").await? == "back");
    let listed = platform.colibri(&["domain", "list"]).await?.ok()?;
    ensure!(listed.contains("cli.example.com") && listed.contains("HostInUse"), "{listed}");
    let described = platform.colibri(&["describe", "back"]).await?.ok()?;
    ensure!(described.contains("cli.example.com"), "{described}");
    let deleted = platform.colibri(&["domain", "delete", "cli.example.com", "back.default.localhost"]).await?;
    ensure!(deleted.code == 0, "{}", deleted.text());
    until_answered_by(platform, "cli.example.com", "404").await
}

/// By HTTPS, with the certificate that a Secret holds now.
async fn with_a_certificate_of_its_own(platform: &Platform) -> Result<()> {
    const DOMAIN: &str = "secure.example.com";
    let secured = mapping(DOMAIN, "default", "front").replace("spec: {", "spec: {tls: {secretName: secure}, ");
    platform.apply(&secured).await?;
    let url = async || {
        let object = platform.object("dm", DOMAIN).await?;
        Ok(object["status"]["url"].as_str().unwrap_or_default().to_owned())
    };
    until(SOON, url, |url| url.starts_with("https://")).await?;
    let mut last = None;
    for _ in 0..2 {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new([DOMAIN.to_owned()])?.self_signed(&key)?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secure"}, "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": certificate.pem(), "tls.key": key.serialize_pem()},
        });
        platform.apply(&secret.to_string()).await?;
        ready(platform, "default", DOMAIN).await?;
        let answer =
            async || Ok(by_https(platform, DOMAIN, &certificate.pem()).await.unwrap_or_else(|error| error.to_string()));
        until(SOON, answer, |answer| answer.contains(" from front-00001")).await?;
        // Nobody who trusts the last one alone is answered any more.
        if let Some(last) = last.replace(certificate.pem()) {
            ensure!(by_https(platform, DOMAIN, &last).await.is_err());
        }
    }
    Ok(())
}

/// What a client gets that trusts nothing but that certificate.
async fn by_https(platform: &Platform, domain: &str, trusted: &str) -> Result<String> {
    let gateway = platform.endpoint("gateway_tls");
    let address: SocketAddr = gateway.trim_start_matches("https://").parse()?;
    let file = platform.scratch().join("trusted.pem");
    tokio::fs::write(&file, trusted).await?;
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "20", "--cacert"])
        .arg(&file)
        .arg("--resolve")
        .arg(format!("{domain}:{}:{}", address.port(), address.ip()))
        .arg(format!("https://{domain}:{}/", address.port()))
        .output()
        .await?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
