//! The CLI against a running platform.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Layout, Options, Platform, binary, cannot_run, layout, run};
use serde_json::Value;

use crate::{SOON, hello_service, host};

fn json(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| text.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_works_in_every_form() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    let images = platform.colibri(&["image", "list"]).await?.ok()?;
    assert!(images.contains("hello:latest"), "{images}");
    let names = platform.colibri(&["image", "list", "-o", "name"]).await?.ok()?;
    assert!(names.lines().any(|line| line.ends_with("hello:latest")), "{names}");

    deploy_tells_its_stages(&platform).await?;
    let list = platform.colibri(&["list"]).await?.ok()?;
    assert!(list.contains("hello") && list.contains("http://hello.default.localhost"), "{list}");
    let names = platform.colibri(&["list", "-o", "name"]).await?.ok()?;
    assert_eq!(names, "service.serving.knative.dev/hello\n");
    platform.kubectl(&["get", names.trim()]).await?.ok()?;
    let all = json(&platform.colibri(&["list", "-A", "-o", "json"]).await?.ok()?)?;
    assert_eq!((&all["kind"], &all["items"][0]["kind"]), (&"List".into(), &"Service".into()));
    let described = platform.colibri(&["describe", "hello"]).await?.ok()?;
    assert!(described.contains("hello-00001") && !described.contains("Not ready"), "{described}");
    let described = platform.colibri(&["describe", "hello", "-o", "yaml"]).await?.ok()?;
    assert!(described.contains("advice: null") && described.contains("kind: Service"), "{described}");

    let invoked = platform.colibri(&["invoke", "hello", "-X", "POST", "-H", "X-Test: 1", "-d", "body"]).await?.ok()?;
    assert!(invoked.contains("200"), "{invoked}");
    let invoked = json(&platform.colibri(&["invoke", "hello", "-o", "json"]).await?.ok()?)?;
    assert_eq!((&invoked["status"], &invoked["coldStart"]), (&200.into(), &false.into()), "{invoked}");
    assert!(invoked["body"].as_str().unwrap_or_default().starts_with("Hello World"), "{invoked}");
    let quiet = platform.colibri(&["invoke", "hello", "-q"]).await?.ok()?;
    assert!(quiet.starts_with("Hello World"), "{quiet}");

    let kubeconfig = platform.colibri(&["kubeconfig"]).await?.ok()?;
    assert!(kubeconfig.contains("clusters:"), "{kubeconfig}");
    let version = platform.colibri(&["version"]).await?.ok()?;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    the_doctor_looks_at_everything(&platform).await?;
    a_kubeconfig_may_be_several_files(&platform).await?;

    a_function_without_the_name_hides_no_service(&platform).await?;

    platform.colibri(&["delete", "hello"]).await?.ok()?;
    let list = platform.colibri(&["list"]).await?.ok()?;
    assert!(!list.contains("hello.default"), "{list}");
    let ready = if layout() == Layout::One { "ready took=" } else { "The node is ready." };
    assert!(platform.log().contains(ready), "{}", platform.log());
    platform.stop().await
}

async fn deploy_tells_its_stages(platform: &Platform) -> Result<()> {
    let file = platform.scratch().join("hello.yml");
    std::fs::write(&file, hello_service("hello", &[], ""))?;
    let file = file.to_string_lossy();
    let deployed = platform.colibri(&["deploy", "-f", &file, "-o", "name"]).await?;
    let (stdout, stderr) = (deployed.clone().ok()?, deployed.stderr);
    assert!(stdout.starts_with("http://hello.default.localhost"), "a script gets the URL alone: {stdout}");
    let mut rest = stderr.as_str();
    for stage in ["service hello created", "revision", "scheduled", "image", "started", "probe", "route", "ready in"] {
        let at = rest.find(stage).with_context(|| format!("{stage} is missing, or not in order:\n{stderr}"))?;
        rest = &rest[at..];
    }
    assert!(!stderr.contains('\x1b'), "no colours without a terminal: {stderr:?}");
    let again = platform.colibri(&["deploy", "-f", &file]).await?;
    assert!(again.stderr.contains("service hello unchanged"), "{}", again.text());
    again.ok()?;
    Ok(())
}

async fn a_function_without_the_name_hides_no_service(platform: &Platform) -> Result<()> {
    let dir = platform.scratch().join("hello");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("function.yml"), "spec: { runtime: python }\n")?;
    std::fs::write(dir.join("main.py"), "def handle(request):\n    return 'a function'\n")?;
    let refused = platform.colibri(&["deploy", &dir.to_string_lossy()]).await?;
    assert!(refused.code == 1 && refused.stderr.contains("does not belong to this function"), "{}", refused.text());
    let invoked = platform.colibri(&["invoke", "hello", "-q"]).await?.ok()?;
    assert!(invoked.starts_with("Hello World"), "{invoked}");
    let described = platform.colibri(&["describe", "hello"]).await?;
    assert!(described.stderr.contains("colibri describe function/hello tells why"), "{}", described.text());
    let described = described.ok()?;
    assert!(described.contains("hello-00001") && !described.contains("Not ready"), "{described}");
    let described = platform.colibri(&["describe", "function/hello"]).await?.ok()?;
    assert!(
        described.contains("does not belong to this function") && !described.contains("hello-00001"),
        "{described}"
    );
    let which = platform.colibri(&["delete", "hello"]).await?;
    assert!(which.code == 1 && which.stderr.contains("function/hello or service/hello"), "{}", which.text());
    let odd = platform.colibri(&["describe", "pod/hello"]).await?;
    assert!(odd.code == 1 && odd.stderr.contains("function/hello or service/hello"), "{}", odd.text());
    platform.colibri(&["delete", "function/hello"]).await?.ok()?;
    platform.kubectl(&["get", "ksvc", "hello"]).await?.ok()?;
    Ok(())
}

/// On a terminal each stage is a line, and below them one line says what is waited for, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_deploy_has_a_live_line_and_colours() -> Result<()> {
    if cannot_run(&["kubectl", "python3", "script"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let slow = |name: &str| {
        let code = "import http.server as h, time; time.sleep(1.5); h.HTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()";
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{ name: {name} }}\nspec:\n  template:\n    spec:\n      containers:\n      - {{ image: runtime.colibri.local/python, command: [python3, -c, \"{code}\"] }}\n"
        )
    };
    let deploy = async |name: &str, no_color: &str| -> Result<String> {
        let file = platform.scratch().join(format!("{name}.yml"));
        std::fs::write(&file, slow(name))?;
        let line = format!(
            "{} deploy -f {} --data-dir {}",
            binary("colibri").display(),
            file.display(),
            platform.data_dir().display()
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        script.env("TERM", "xterm").env("NO_COLOR", no_color).env_remove("CLICOLOR_FORCE").env_remove("KUBECONFIG");
        Ok(run(script, None).await?.ok()?.replace("\r\n", "\n"))
    };
    let raw = deploy("live", "").await?;
    let (live, screen) = on_screen(&raw);
    assert!(live.len() >= 3, "the line of what is waited for is written again and again: {raw:?}");
    for line in &live {
        assert!(line.starts_with("  \x1b[33m-\x1b[0m waiting "), "{line:?}");
        assert!(has_time(line), "how long it is waited already: {line:?}");
    }
    assert!(live.iter().any(|line| line.contains("nothing listens on port 8080")), "{live:?}");
    assert!(live.windows(2).any(|two| two[0] != two[1]), "the time goes on: {live:?}");
    let stages: Vec<&str> =
        screen.iter().filter(|line| line.contains("\x1b[32m+\x1b[0m")).map(String::as_str).collect();
    let names: Vec<&str> = stages.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, ["revision", "scheduled", "image", "started", "probe", "route"], "{screen:#?}");
    assert!(stages.iter().all(|line| has_time(line)), "each stage has its time: {stages:#?}");
    let last = screen.iter().find(|line| line.starts_with("\x1b[32mready\x1b[0m in ")).context("the end")?;
    assert!(has_time(last), "{last}");
    assert!(!screen.concat().contains("waiting"), "nothing of it stays on the screen: {screen:#?}");

    let raw = deploy("plain", "1").await?;
    let (live, screen) = on_screen(&raw);
    assert!(!live.is_empty() && !raw.contains("\x1b[3") && !raw.contains("\x1b[0m"), "no colours: {raw:?}");
    assert!(screen.iter().any(|line| line.starts_with("ready in ")), "{screen:#?}");
    platform.stop().await
}

/// The lines that were written over by others, and what a terminal shows at the end.
fn on_screen(raw: &str) -> (Vec<String>, Vec<String>) {
    let (mut over, mut screen) = (Vec::new(), Vec::new());
    for line in raw.lines() {
        let mut written: Vec<&str> = line.split("\r\x1b[K").collect();
        screen.extend(written.pop().map(str::to_owned));
        over.extend(written.into_iter().filter(|text| !text.is_empty()).map(str::to_owned));
    }
    (over, screen)
}

/// Whether a line has a time such as `12 ms` or `1.5 s`.
fn has_time(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.windows(2).any(|two| two[0].parse::<f64>().is_ok() && matches!(two[1], "ms" | "s"))
}

async fn the_doctor_looks_at_everything(platform: &Platform) -> Result<()> {
    let doctor = platform.colibri(&["doctor", "-o", "json"]).await?;
    let report = json(&doctor.stdout)?;
    let checks = report["checks"].as_array().context("checks")?;
    let names: Vec<&str> = checks.iter().filter_map(|check| check["name"].as_str()).collect();
    let wanted = [
        "user",
        "kernel",
        "namespaces",
        "mounts",
        "overlayfs",
        "seccomp",
        "cgroups",
        "capabilities",
        "nftables",
        "resolvers",
        "ports",
        "names",
        "open files",
        "python",
        "node",
        "disk",
        "inodes",
        "api server",
        "gateway",
        "nodes",
    ];
    for name in wanted {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
    for check in checks {
        assert_eq!(check["cure"] == "", check["verdict"] == "ok", "a cure where something is wrong: {check}");
    }
    let failed = checks.iter().filter(|check| check["verdict"] == "fail").count();
    assert_eq!((report["ok"].clone(), doctor.code), (Value::from(failed == 0), i32::from(failed > 0)), "{report}");
    for name in ["user", "cgroups", "nftables", "api server", "gateway", "nodes"] {
        let check = checks.iter().find(|check| check["name"] == name).context(name)?;
        assert_eq!(check["verdict"], "ok", "{check}");
    }
    let mut coloured = Command::new(binary("colibri"));
    coloured.args(["doctor", "--data-dir"]).arg(platform.data_dir()).env("CLICOLOR_FORCE", "1");
    assert!(run(coloured, None).await?.stdout.contains("\x1b[32mok"));
    Ok(())
}

async fn a_kubeconfig_may_be_several_files(platform: &Platform) -> Result<()> {
    let own = platform.data_dir().join("kubeconfig");
    let other = platform.scratch().join("other");
    std::fs::write(
        &other,
        "apiVersion: v1\nkind: Config\ncurrent-context: elsewhere\nclusters: [{name: e, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: e, user: {token: t}}]\ncontexts: [{name: elsewhere, context: {cluster: e, user: e}}]\n",
    )?;
    let list = std::env::join_paths([&platform.scratch().join("nowhere"), &other, &own])?;
    let colibri = |words: &[&str]| {
        let mut command = Command::new(binary("colibri"));
        command.args(words).env("KUBECONFIG", &list).env_remove("COLIBRI_DATA_DIR");
        run(command, None)
    };
    let elsewhere = colibri(&["list"]).await?;
    assert_eq!(elsewhere.code, 3, "the current context is that of the first file: {}", elsewhere.text());
    let text = std::fs::read_to_string(&own)?;
    let context = text.lines().find_map(|line| line.strip_prefix("current-context: ")).context("a context")?;
    let listed =
        colibri(&["list", "--context", context.trim_matches('"'), "-n", "default", "-o", "name"]).await?.ok()?;
    assert_eq!(listed, "service.serving.knative.dev/hello\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_cut_as_asked_and_reach_behind_a_restart() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    platform.load_hello().await?;
    let file = platform.scratch().join("talker.yml");
    std::fs::write(&file, hello_service("talker", &[], ""))?;
    platform.colibri(&["deploy", "-f", &file.to_string_lossy()]).await?.ok()?;
    let logs = |words: &[&str]| {
        let words: Vec<String> = ["logs", "talker"].iter().chain(words).map(|word| (*word).to_owned()).collect();
        let platform = &platform;
        async move { platform.colibri(&words.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let none = logs(&["--previous"]).await?;
    assert_eq!(none.code, 1, "{}", none.text());
    assert!(none.stderr.contains("previous terminated container"), "{}", none.text());

    // Its end is its answer: the connection breaks.
    platform.get(&host("talker"), "/exit?code=3").await?;
    let start = Instant::now();
    let before = loop {
        let before = logs(&["--previous"]).await?;
        if before.code == 0 {
            break before.stdout;
        }
        ensure!(start.elapsed() < SOON, "no restart: {}", before.text());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(before.contains("listening on port 8080"), "{before}");

    platform.wait_for_logs(&["talker", "--since", "1h"], "listening", SOON).await?;
    assert!(logs(&["--since-time", "2000-01-01T00:00:00Z"]).await?.ok()?.contains("listening"));
    assert_eq!(logs(&["--since-time", "2999-01-01T00:00:00Z"]).await?.ok()?, "");
    assert_eq!(logs(&["--tail", "0"]).await?.ok()?, "");
    let timed = logs(&["--tail", "1", "--timestamps"]).await?.ok()?;
    let year = timed.split('-').next().and_then(|year| year.parse::<u32>().ok());
    assert!(timed.lines().count() == 1 && year.is_some_and(|year| year >= 2024), "{timed}");
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_commands_and_flags() -> Result<()> {
    if cannot_run(&["bash"]).is_some() {
        return Ok(());
    }
    let completed = |words: &str| {
        let last = words.split(' ').count();
        let (program, words) = (binary("colibri"), words.to_owned());
        let script = format!(
            "source <({} completion bash); COMP_WORDS=(colibri {words}); COMP_CWORD={last}; _colibri colibri \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\"",
            program.display()
        );
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]);
        run(bash, None)
    };
    assert_eq!(completed("dep").await?.ok()?.trim(), "deploy");
    assert!(completed("logs --prev").await?.ok()?.contains("--previous"));
    for shell in ["zsh", "fish"] {
        let mut command = Command::new(binary("colibri"));
        command.args(["completion", shell]);
        let script = run(command, None).await?.ok()?;
        assert!(script.contains("deploy") && script.contains("since-time"), "{shell}");
    }
    Ok(())
}
