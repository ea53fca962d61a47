//! `make demo` and `colibri up --demo`: what is said where something is missing on the machine.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, cannot_run, is_of_one_process, run, work_dir};

use crate::SOON;

/// Nobody in particular.
const NOBODY: u32 = 65_534;

#[tokio::test(flavor = "multi_thread")]
async fn an_example_without_its_interpreter_is_skipped_and_the_others_are_deployed() -> Result<()> {
    if cannot_run(&["kubectl", "python3", "node", "unshare"]).is_some()
        || is_of_one_process("it is a test of colibri up")
    {
        return Ok(());
    }
    let options = Options { arguments: vec!["--demo".to_owned()], hidden: Some("node"), ..Options::default() };
    let mut platform = Platform::start(options).await?;
    let start = Instant::now();
    let ready = loop {
        let ready = platform.kubectl(&["get", "ksvc", "hello", "hello-python", "-o", "name"]).await?;
        if ready.code == 0 {
            break ready.stdout;
        }
        ensure!(start.elapsed() < SOON, "{}\n{}", ready.text(), platform.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(ready.lines().count(), 2, "{ready}");
    assert!(platform.log().contains("nodejs functions are skipped: sudo apt-get install nodejs"), "{}", platform.log());
    let none = platform.kubectl(&["get", "function", "hello-node"]).await?;
    assert!(none.stderr.contains("not found"), "{}", none.text());
    platform.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn make_uses_sudo_where_it_must_and_names_tools_that_are_missing() -> Result<()> {
    if cannot_run(&["make", "bash"]).is_some() || is_of_one_process("it starts no platform") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    // Where anybody can read it.
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    std::fs::copy(work_dir().join("Makefile"), dir.path().join("Makefile"))?;
    let tools = dir.path().join("bin");
    std::fs::create_dir(&tools)?;
    for tool in ["bash", "id", "uname"] {
        symlink(find(tool)?, tools.join(tool))?;
    }
    let make = find("make")?;
    let make = |user: u32, arguments: &[&str]| {
        let mut command = Command::new(&make);
        command.args(arguments).current_dir(dir.path()).env("PATH", &tools).uid(user).gid(user);
        // This test may itself be run by make.
        command.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("MFLAGS");
        run(command, None)
    };
    // The build itself is left out: `make -n` would run it, since it calls make.
    let start = ["-n", "--old-file=build", "demo"];
    assert_eq!(make(0, &start).await?.ok()?.trim(), "target/release/colibri up --demo");
    assert_eq!(make(NOBODY, &start).await?.ok()?.trim(), "sudo target/release/colibri up --demo");

    let refused = make(0, &["demo"]).await?;
    assert_ne!(refused.code, 0);
    assert!(refused.stdout.contains("cargo is missing. Install it: see https://rustup.rs"), "{}", refused.text());
    symlink(find("true")?, tools.join("cargo"))?;
    for (user, cure) in [(0, ": apt-get install -y gcc"), (NOBODY, ": sudo apt-get install -y gcc")] {
        let refused = make(user, &["demo"]).await?;
        assert_ne!(refused.code, 0);
        let text = refused.stdout.replace(":  ", ": ");
        assert!(text.contains(&format!("gcc is missing. Install it{cure}")), "{}", refused.text());
    }
    Ok(())
}

/// A program on the path.
fn find(name: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
    found.find(|file| Path::is_file(file)).with_context(|| format!("{name} is not on the path"))
}
