//! What `colibri up` says when it cannot start: one clear error with its cure, exit code 1.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Result;
use e2e::{Options, Output, Platform, binary, cannot_run, is_of_one_process, run};

/// Why these tests need that layout.
const UP: &str = "it is a test of colibri up";

fn up(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("colibri"));
    command.arg("up").args(arguments);
    command
}

const FREE_PORTS: [&str; 4] = ["--api-port=0", "--gateway-port=0", "--gateway-tls-port=0", "--metrics-port=0"];

fn check(output: &Output, words: &[&str]) {
    assert_eq!(output.code, 1, "{}", output.text());
    for word in words {
        assert!(output.stderr.contains(word), "{word:?} is missing in:\n{}", output.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_names_its_cure() -> Result<()> {
    if cannot_run(&[]).is_some() || is_of_one_process(UP) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data").to_string_lossy().into_owned();

    // A taken port, with its owner and the flag.
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = format!("--gateway-port={}", taken.local_addr()?.port());
    let output =
        run(up(&["--data-dir", &data, "--api-port=0", &port, "--gateway-tls-port=0", "--metrics-port=0"]), None);
    check(&output.await?, &["is taken by", &std::process::id().to_string(), "--gateway-port"]);

    // A data directory that cannot be made.
    let file = dir.path().join("file");
    std::fs::write(&file, "")?;
    let below = file.join("data").to_string_lossy().into_owned();
    let mut arguments = vec!["--data-dir", below.as_str()];
    arguments.extend(FREE_PORTS);
    check(&run(up(&arguments), None).await?, &["cannot be written", "--data-dir"]);

    // Not root.
    let mut arguments = vec!["--data-dir", data.as_str()];
    arguments.extend(FREE_PORTS);
    let mut command = Command::new(copy_for_all(dir.path())?);
    command.arg("up").args(&arguments).uid(65_534).gid(65_534);
    check(&run(command, None).await?, &["needs root", "sudo"]);

    // Root without a capability.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]).arg(binary("colibri")).arg("up");
    command.args(&arguments);
    check(&run(command, None).await?, &["CAP_NET_ADMIN"]);
    Ok(())
}

/// The program where any user can read it.
fn copy_for_all(dir: &std::path::Path) -> Result<std::path::PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let copy = dir.join("colibri");
    std::fs::copy(binary("colibri"), &copy)?;
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    Ok(copy)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_platform_on_the_same_directory_is_refused_and_one_beside_it_runs() -> Result<()> {
    if cannot_run(&["kubectl"]).is_some() || is_of_one_process(UP) {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let data = platform.data_dir().to_string_lossy().into_owned();
    let mut arguments = vec!["--data-dir", data.as_str()];
    arguments.extend(FREE_PORTS);
    let output = run(up(&arguments), None).await?;
    check(&output, &["another colibri", &platform.pid().to_string(), "--data-dir"]);
    platform.kubectl(&["get", "nodes"]).await?.ok()?;

    let mut beside = Platform::start(Options::default()).await?;
    beside.kubectl(&["get", "nodes"]).await?.ok()?;
    platform.kubectl(&["get", "nodes"]).await?.ok()?;
    beside.stop().await?;
    platform.stop().await
}
