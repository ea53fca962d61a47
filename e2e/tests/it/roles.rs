//! The roles as processes of their own: what holds when one of them goes, and what each says when it cannot start.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Layout, Leftovers, Machine, Options, Platform, binary, cannot_run, is_of_one_process, layout, run};

use crate::{NO_GRACE, SHORT_WINDOW, SOON, hello_service, host, service_selector, start_with_hello};

/// Why these tests run once only.
const OWN_LAYOUT: &str = "it chooses that layout by itself, and has run with the others";

/// Whether a test of the roles has run already with a layout that is the same to it.
fn has_run() -> bool {
    layout() == Layout::Processes && is_of_one_process(OWN_LAYOUT)
}

fn processes() -> Options {
    let layout = if layout() == Layout::One { Layout::Processes } else { layout() };
    Options { layout: Some(layout), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_killed_and_comes_back_while_the_others_go_on() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() || has_run() {
        return Ok(());
    }
    let mut platform = start_with_hello(processes(), "steady").await?;
    let pods = platform.pods(&service_selector("steady")).await?;
    let pod = pods.first().context("a pod")?.trim_start_matches("pod/").to_owned();
    for role in ["apiserver", "controller", "node", "gateway"] {
        platform.process(role)?.kill()?;
        if role != "gateway" {
            let answer = platform.get(&host("steady"), "/").await?;
            assert_eq!(answer.status, 200, "without the {role}: {answer:?}");
            assert!(answer.body.contains(&pod), "without the {role} the same pod answers: {answer:?}");
        }
        let process = platform.process(role)?;
        process.start_again()?;
        process.ready(SOON).await?;
        let answer = platform.get(&host("steady"), "/").await?;
        assert_eq!(answer.status, 200, "after the {role} came back: {answer:?}");
        assert!(answer.body.contains(&pod), "after the {role} came back the same pod answers: {answer:?}");
        // All four still work together: the webhook, the controller, the node, the gateway. A webhook that came back
        // is asked again at once, one that is held for dead is not.
        let name = format!("after-{role}");
        let start = Instant::now();
        loop {
            let applied = platform.kubectl_with(&["apply", "-f", "-"], Some(&hello_service(&name, &[], ""))).await?;
            if applied.code == 0 {
                break;
            }
            ensure!(start.elapsed() < SOON, "{}", applied.text());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let ready = ["wait", "--for=condition=Ready", &format!("ksvc/{name}"), "--timeout=60s"];
        platform.kubectl(&ready).await?.ok().with_context(|| platform.log())?;
        assert_eq!(platform.get(&host(&name), "/").await?.status, 200, "a new service after the {role} came back");
    }
    let now = platform.object("pod", &pod).await?;
    assert_eq!(now["status"]["containerStatuses"][0]["restartCount"], 0, "{now}");
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_controllers_acts_and_requests_wait_while_none_does() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() || has_run() {
        return Ok(());
    }
    let mut platform = Platform::start(processes()).await?;
    let first = metrics_url(&platform, "controller")?;
    wait_until_leads(&platform, &first).await?;
    let ports = ["--link-port=0", "--metrics-port=0", "--webhook-port=0", "--lease-seconds=3"];
    let mut second = platform.roles().start("controller-2", &ports)?;
    second.ready(SOON).await?;
    let standing_by = metrics_url(&platform, "controller-2")?;

    platform.load_hello().await?;
    platform.apply(NO_GRACE).await?;
    platform.apply(&hello_service("held", &[SHORT_WINDOW], "")).await?;
    platform.kubectl(&["wait", "--for=condition=Ready", "ksvc/held", "--timeout=60s"]).await?.ok()?;
    platform.wait_for_pods(&service_selector("held"), 0, SOON).await?;
    assert!(leads(&platform, &first).await? && !leads(&platform, &standing_by).await?, "exactly one leads");

    // The leader dies and leaves the lease behind; the request waits until the other has taken over.
    platform.process("controller")?.kill()?;
    let answer = platform.get(&host("held"), "/").await?;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", second.log());
    assert!(leads(&platform, &standing_by).await?);

    // Nobody is there at all: a request waits for the next that starts.
    platform.wait_for_pods(&service_selector("held"), 0, SOON).await?;
    second.signal(libc::SIGTERM);
    assert_eq!(second.wait(SOON).await?, 0, "{}", second.log());
    let platform = Arc::new(platform);
    let waiting = {
        let platform = platform.clone();
        tokio::spawn(async move { platform.get(&host("held"), "/").await })
    };
    platform.wait_for_metric("kn_revision_request_queued").await?;
    assert!(!waiting.is_finished());
    second.start_again()?;
    let answer = waiting.await??;
    assert_eq!(answer.status, 200, "{answer:?}\n{}", second.log());

    // The first comes back and stands by; what it says about writes counts again.
    let mut platform = Arc::into_inner(platform).context("the request has ended")?;
    let controller = platform.process("controller")?;
    controller.start_again()?;
    controller.ready(SOON).await?;
    let refused = platform.kubectl_with(&["apply", "-f", "-"], Some(&hello_service("UPPER", &[], ""))).await?;
    assert_ne!(refused.code, 0);
    let wrong = hello_service("wrong", &[], "      containerConcurrency: -1\n");
    let refused = platform.kubectl_with(&["apply", "-f", "-"], Some(&wrong)).await?;
    let text = "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: \
                expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency";
    assert!(refused.stderr.contains(text), "{}", refused.text());
    second.signal(libc::SIGTERM);
    second.wait(SOON).await?;
    platform.stop().await
}

fn metrics_url(platform: &Platform, role: &str) -> Result<String> {
    let text = std::fs::read(platform.roles().file(role, "endpoints.json"))?;
    let endpoints: serde_json::Value = serde_json::from_slice(&text)?;
    Ok(format!("{}/metrics", endpoints["metrics"].as_str().context("an address")?))
}

async fn leads(platform: &Platform, url: &str) -> Result<bool> {
    Ok(platform.get_url(url).await?.body.contains("\ncolibri_controller_leads 1"))
}

async fn wait_until_leads(platform: &Platform, url: &str) -> Result<()> {
    let start = Instant::now();
    while !leads(platform, url).await? {
        ensure!(start.elapsed() < SOON, "nobody leads:\n{}", platform.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Another program has the pod network's port: the start fails after the network was made.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_late_names_the_cause_and_leaves_nothing() -> Result<()> {
    if cannot_run(&["kubectl", "nft"]).is_some() || is_of_one_process(OWN_LAYOUT) {
        return Ok(());
    }
    for layout in [Layout::One, Layout::Processes] {
        let machine = Machine::alone().await?;
        let options = || Options { layout: Some(layout), ..machine.options() };
        let mut platform = Platform::start(options()).await?;
        let nodes = platform.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].spec.podCIDR}"]).await?.ok()?;
        platform.stop().await?;
        // The next start on the directory takes the same range; its first address is the bridge's.
        let range: Ipv4Addr = nodes.split('/').next().unwrap_or_default().parse()?;
        let bridge = Ipv4Addr::from(u32::from(range) + 1);
        let taken = e2e::listen_early(bridge, 443)?;
        let Err(error) = Platform::start(options()).await else { anyhow::bail!("the port is not missed") };
        let text = format!("{error:#}");
        for word in ["port 443 of the pod network", &bridge.to_string(), "is taken", "addresses of its own"] {
            assert!(text.contains(word), "{word:?} is missing in:\n{text}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{text}");
        assert_eq!(machine.changes(), Leftovers::default(), "{layout:?}: nothing is left; it said:\n{text}");
        drop(taken);
        Platform::start(options()).await?.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_says_what_keeps_it_from_starting() -> Result<()> {
    if cannot_run(&[]).is_some() || is_of_one_process(OWN_LAYOUT) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (missing, garbage, empty, data) = (path("missing"), path("garbage"), path("empty"), path("data"));
    std::fs::write(&garbage, "clusters: 7")?;
    std::fs::create_dir(&empty)?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.port().to_string();
    type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);
    let rows: [Row; 9] = [
        ("gateway", &[], &["--link-cert", "--pki"]),
        ("gateway", &["--pki", &empty], &["ca.crt", "--pki"]),
        (
            "controller",
            &["--link-cert", &garbage, "--link-key", &garbage, "--link-ca", &garbage],
            &["garbage", "certificate"],
        ),
        ("controller", &[], &["--link-cert", "--pki"]),
        ("node", &["--data-dir", &data], &["--kubelet-cert", "--pki"]),
        ("node", &["--data-dir", &data, "--gateway", "nowhere"], &["--gateway", "HOST:PORT"]),
        ("apiserver", &["--api-port", &taken], &["is taken by", "--api-port"]),
        ("install", &[], &["--crds", "--rbac", "--webhooks"]),
        ("install", &["--webhooks", "--ca", &missing], &["--ca", "missing"]),
    ];
    for (role, arguments, words) in rows {
        let mut command = Command::new(binary("colibri"));
        command.arg(role).args(arguments).env_remove("KUBECONFIG");
        if role == "node" {
            command.args(["--kubelet-port=0", "--metrics-port=0"]);
        }
        check(&run(command, None).await?, role, words);
    }

    // With certificates: what is wrong with the way to the API server. Its keys are made by starting one.
    let server = path("server");
    let mut apiserver =
        e2e::Process::start(dir.path(), "apiserver", &dir.path().join("server"), &["--api-port=0".into()])?;
    apiserver.ready(SOON).await?;
    let pki = format!("{server}/pki");
    let ours = std::fs::read_to_string(format!("{server}/kubeconfig"))?;
    // A token that nobody has.
    let line = |text: &str, name: &str| text.lines().find(|line| line.contains(name)).map(str::to_owned);
    let mut tokened = ours.clone();
    for name in ["client-certificate-data", "client-key-data"] {
        let from = line(&ours, name).context("a line")?;
        let to = if name.ends_with("key-data") { String::new() } else { "    token: wrong".to_owned() };
        tokened = tokened.replace(&from, &to);
    }
    std::fs::write(path("tokened"), tokened)?;
    let rows: [Row; 4] = [
        ("gateway", &["--kubeconfig", &missing], &["missing", "--kubeconfig"]),
        ("gateway", &["--kubeconfig", &garbage], &["garbage", "cannot be read"]),
        ("controller", &["--kubeconfig", &path("tokened")], &["refuses the credentials", "tokened"]),
        ("gateway", &["--kubeconfig", &format!("{server}/kubeconfig"), "--context", "nope"], &["nope"]),
    ];
    for (role, arguments, words) in rows {
        let mut command = Command::new(binary("colibri"));
        command.arg(role).args(arguments).args(["--pki", &pki, "--metrics-port=0"]).env_remove("KUBECONFIG");
        match role {
            "gateway" => command.args(["--gateway-port=0", "--gateway-tls-port=0", "--pod-port=0"]),
            _ => command.args(["--link-port=0", "--webhook-port=0"]),
        };
        check(&run(command, None).await?, role, words);
    }
    Ok(())
}

fn check(output: &e2e::Output, role: &str, words: &[&str]) {
    assert_eq!(output.code, 1, "{role}: {}", output.text());
    assert_eq!(output.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", output.text());
    for word in words {
        assert!(output.stderr.contains(word), "{role}: {word:?} is missing in:\n{}", output.text());
    }
}
