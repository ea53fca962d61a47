//! The README and the book: every command block is run, in order, as a reader would.
//!
//! A block of `sh` is run; `sh norun` is for what a test cannot do (build, install, start a second platform on the usual
//! ports), and only such commands may stand there. Each page is one shell in a directory of its own, where `colibri`,
//! `kubectl` and `curl` are the real ones and the usual ports are those of the test's platform.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, binary, cannot_run, run, work_dir};

/// What a page may show without its being run.
const NOT_RUN: [&str; 10] = [
    "make ",
    "sudo install ",
    "sudo colibri up",
    "sudo colibri node ",
    "sudo apt-get ",
    "git clone ",
    // The other roles, and what prepares an API server for them.
    "colibri apiserver ",
    "colibri controller ",
    "colibri gateway ",
    "colibri install ",
];

/// In front of every page: root needs no sudo, an HTTP error is a failure.
const PRELUDE: &str = r#"set -euo pipefail
sudo() { [ "$1" = -E ] && shift; "$@"; }
curl() { command curl --fail-with-body --show-error --max-time 60 "$@"; }
"#;

/// The README and the pages of the book, in the order in which they are read.
fn pages() -> Result<Vec<PathBuf>> {
    let root = work_dir();
    let summary = std::fs::read_to_string(root.join("docs/SUMMARY.md"))?;
    let links = summary.lines().filter_map(|line| line.trim().strip_suffix(')')?.split_once("]("));
    let mut pages = vec![root.join("README.md")];
    pages.extend(links.map(|(_, file)| root.join("docs").join(file)));
    Ok(pages)
}

/// The fenced blocks of a page: what stands behind the fence, and the text.
fn blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

fn script(page: &Path) -> Result<String> {
    let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let runnable: Vec<String> = blocks(&text).into_iter().filter(|(info, _)| info == "sh").map(|(_, t)| t).collect();
    Ok(runnable.concat())
}

#[test]
fn every_block_says_what_it_is() -> Result<()> {
    for page in pages()? {
        let name = page.display();
        for (info, text) in blocks(&std::fs::read_to_string(&page)?) {
            let known = ["sh", "sh norun", "text", "yaml", "json", "python", "js"].contains(&info.as_str());
            assert!(known, "{name}: a block of `{info}`:\n{text}");
            if info == "sh norun" {
                let odd = text.lines().find(|line| !NOT_RUN.iter().any(|start| line.starts_with(start)));
                assert_eq!(odd, None, "{name}: this line could be run");
            }
        }
    }
    Ok(())
}

#[test]
fn the_book_has_every_page_and_no_dead_link() -> Result<()> {
    let listed = pages()?;
    for entry in std::fs::read_dir(work_dir().join("docs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") && !path.ends_with("SUMMARY.md") {
            assert!(listed.contains(&path), "{} is not in SUMMARY.md", path.display());
        }
    }
    for page in listed.iter().chain([&work_dir().join("README.zh-CN.md")]) {
        let text = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let target = rest.split([')', '#']).next().unwrap_or_default();
            let file = page.with_file_name(target);
            let elsewhere = target.is_empty() || target.contains("://");
            assert!(elsewhere || file.exists(), "{}: {target} is not there", page.display());
        }
    }
    Ok(())
}

#[test]
fn the_chinese_readme_has_the_same_commands() -> Result<()> {
    let read = |name: &str| std::fs::read_to_string(work_dir().join(name));
    let (english, chinese) = (read("README.md")?, read("README.zh-CN.md")?);
    assert_eq!(blocks(&english), blocks(&chinese));
    let headings = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
    let rows = |text: &str| text.lines().filter(|line| line.starts_with('|')).count();
    assert_eq!(headings(&english), headings(&chinese), "headings");
    assert_eq!(rows(&english), rows(&chinese), "rows of tables");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_readme_and_the_book_works() -> Result<()> {
    if cannot_run(&["kubectl", "curl", "python3", "node"]).is_some() {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let port = |name: &str| platform.endpoint(name).rsplit(':').next().unwrap_or_default().to_owned();
    let ports = BTreeMap::from([(":8080", port("gateway")), (":9090", port("metrics"))]);
    platform.load_hello().await?;
    for page in pages()? {
        let mut script = script(&page)?;
        for (usual, real) in &ports {
            script = script.replace(usual, &format!(":{real}"));
        }
        let name = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = platform.scratch().join("pages").join(&name);
        std::fs::create_dir_all(dir.join("target/static"))?;
        std::fs::copy(e2e::hello_program(), dir.join("target/static/hello-container"))?;
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &format!("{PRELUDE}set -x\n{script}")]).current_dir(&dir);
        let bin = binary("colibri");
        let bin = bin.parent().context("the binary's directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", bin.display()));
        command.env("COLIBRI_DATA_DIR", platform.data_dir()).env_remove("KUBECONFIG");
        let output = run(command, None).await?;
        ensure!(output.code == 0, "{name}: exit code {}\n{}", output.code, output.text());
    }
    platform.stop().await
}

#[test]
fn blocks_are_found_with_their_kind() {
    let page = "a\n```sh\none\ntwo\n```\n```sh norun\nmake x\n```\n    indented\n";
    let expected = [("sh", "one\ntwo\n"), ("sh norun", "make x\n")];
    assert_eq!(blocks(page), expected.map(|(info, text)| (info.to_owned(), text.to_owned())));
}
