//! The platform's ConfigMaps: what is written counts without a restart, and what cannot be used is refused.

use anyhow::{Result, ensure};
use e2e::{Options, Platform, cannot_run};
use serde_json::{Value, json};

use crate::{SOON, configure, hello_service, host, service_selector, until};

/// A Service as the API server would store it now.
async fn dry_run(platform: &Platform, manifest: &str) -> Result<e2e::Output> {
    platform.kubectl_with(&["create", "--dry-run=server", "-o", "json", "-f", "-"], Some(manifest)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_count_without_a_restart_and_bad_ones_are_refused() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    let listed = async || platform.kubectl(&["-n", "colibri-system", "get", "configmaps", "-o", "name"]).await?.ok();
    until(SOON, listed, |names| names.matches("/config-").count() == 9).await?;
    refusals(&platform).await?;

    // A service made by the defaults of the platform.
    platform.apply(&hello_service("before", &[], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/before", "--timeout=60s"]).await?.ok()?;
    let template = platform.object("ksvc", "before").await?["spec"]["template"]["spec"].clone();
    ensure!(template["timeoutSeconds"] == 300 && template["containerConcurrency"] == 0, "{template}");

    // Admission: defaults, limits, and a feature.
    let aliased = hello_service("aliased", &[], "      hostAliases: [{ip: 192.0.2.1, hostnames: [far.test]}]\n");
    let refused = dry_run(&platform, &aliased).await?;
    ensure!(refused.stderr.contains("must not set the field(s): spec.template.spec.hostAliases"), "{}", refused.text());
    let defaults = json!({"revision-timeout-seconds": "40", "container-concurrency": "3"});
    configure(&platform, "config-defaults", defaults).await?.ok()?;
    configure(&platform, "config-features", json!({"kubernetes.podspec-hostaliases": "enabled"})).await?.ok()?;
    until(SOON, async || dry_run(&platform, &aliased).await, |answer| answer.code == 0).await?;
    let sample = hello_service("sample", &[], "");
    let shown = async || Ok(serde_json::from_str::<Value>(&dry_run(&platform, &sample).await?.ok()?)?);
    until(SOON, shown, |service| {
        let spec = &service["spec"]["template"]["spec"];
        spec["timeoutSeconds"] == 40 && spec["containerConcurrency"] == 3
    })
    .await?;
    platform.apply(&hello_service("after", &[], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/after", "--timeout=60s"]).await?.ok()?;

    // The autoscaler: by the defaults both would stay for a minute and a half.
    let autoscaler = json!({"stable-window": "6s", "scale-to-zero-grace-period": "1ms"});
    configure(&platform, "config-autoscaler", autoscaler).await?.ok()?;
    for name in ["before", "after"] {
        platform.wait_for_pods(&service_selector(name), 0, SOON).await?;
    }

    // Routes and the gateway: the new domain answers, the old one does not.
    ensure!(platform.get(&host("before"), "/").await?.status == 200);
    configure(&platform, "config-domain", json!({"example.test": ""})).await?.ok()?;
    let url = |service: &Value| service["status"]["url"].as_str().unwrap_or_default().to_owned();
    let moved = |service: &Value| url(service).starts_with("http://before.default.example.test:");
    until(SOON, async || platform.object("ksvc", "before").await, moved).await?;
    let answers = async |name: &str| Ok(platform.get(name, "/").await?.status);
    until(SOON, async || answers("before.default.example.test").await, |status| *status == 200).await?;
    until(SOON, async || answers(&host("before")).await, |status| *status == 404).await?;

    // What is taken away falls back to its default.
    configure(&platform, "config-domain", json!({"example.test": null})).await?.ok()?;
    until(SOON, async || answers(&host("before")).await, |status| *status == 200).await?;
    platform.kubectl(&["-n", "colibri-system", "delete", "configmap", "config-defaults"]).await?.ok()?;
    until(SOON, shown, |service| service["spec"]["template"]["spec"]["timeoutSeconds"] == 300).await?;
    platform.stop().await?;
    each_change_is_told_once(&platform.log())
}

/// No process tells twice of the same version of a ConfigMap.
fn each_change_is_told_once(log: &str) -> Result<()> {
    let of_process = |log: &str| {
        let mut told: Vec<String> = log
            .lines()
            .filter_map(|line| line.split_once("settings changed"))
            .map(|(_, which)| which.to_owned())
            .collect();
        told.sort();
        told
    };
    let processes: Vec<Vec<String>> = log.split("--- ").map(of_process).collect();
    ensure!(processes.iter().any(|told| !told.is_empty()), "no change is told:\n{log}");
    let twice = processes.iter().flat_map(|told| told.windows(2)).find(|pair| pair[0] == pair[1]);
    ensure!(twice.is_none(), "told twice: {twice:?}\n{log}");
    Ok(())
}

/// Each bad value is refused with key, value and what is allowed; unknown keys pass with a warning.
async fn refusals(platform: &Platform) -> Result<()> {
    let rows = [
        ("config-defaults", json!({"revision-timeout-seconds": "abc"}), "is not a whole number of at least 1"),
        ("config-features", json!({"multi-container": "on"}), "is not Enabled, Allowed or Disabled"),
        ("config-autoscaler", json!({"stable-window": "5s"}), "is not a duration from 6s to 3600s"),
        ("config-domain", json!({"Example.test": ""}), "keys are domains, such as example.com"),
        ("config-gc", json!({"max-non-active-revisions": "few"}), "is not a whole number of at least 0, or disabled"),
    ];
    for (name, data, wanted) in rows {
        let refused = configure(platform, name, data.clone()).await?;
        let key = data.as_object().and_then(|data| data.keys().next()).cloned().unwrap_or_default();
        let whole = refused.code != 0 && [name, &key, wanted].iter().all(|part| refused.stderr.contains(part));
        ensure!(whole, "{name} {data}: {}", refused.text());
    }
    let warned = configure(platform, "config-autoscaler", json!({"stable-windw": "60s"})).await?;
    let meant = "there is no key stable-windw, it has no effect; did you mean stable-window?";
    ensure!(warned.code == 0 && warned.stderr.contains(meant), "{}", warned.text());
    configure(platform, "config-autoscaler", json!({"stable-windw": null})).await?.ok()?;
    Ok(())
}
