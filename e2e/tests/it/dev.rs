//! `colibri dev`: a save is served, under load and without a lost request, and its errors are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::{Options, Platform, binary, cannot_run};
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::{SOON, host};

/// Saves that must work.
const SAVES: usize = 5;

/// A running `colibri dev`, and what it said.
struct Dev {
    process: Child,
    said: Arc<Mutex<String>>,
}

impl Dev {
    fn start(platform: &Platform, dir: &str) -> Result<Self> {
        let mut process = Command::new(binary("colibri"))
            .args(["dev", dir, "--rm", "--data-dir", &platform.data_dir().to_string_lossy()])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let said = Arc::new(Mutex::new(String::new()));
        let (out, err) = (process.stdout.take().context("stdout")?, process.stderr.take().context("stderr")?);
        tokio::spawn(keep(BufReader::new(out), said.clone()));
        tokio::spawn(keep(BufReader::new(err), said.clone()));
        Ok(Self { process, said })
    }

    async fn wait_for(&self, text: &str) -> Result<()> {
        let start = Instant::now();
        while !self.said.lock().contains(text) {
            ensure!(start.elapsed() < SOON, "{text:?} was not said:\n{}", self.said.lock());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

async fn keep(mut lines: BufReader<impl tokio::io::AsyncRead + Unpin>, said: Arc<Mutex<String>>) {
    let mut line = String::new();
    while lines.read_line(&mut line).await.is_ok_and(|read| read > 0) {
        said.lock().push_str(&line);
        line.clear();
    }
}

fn code(answer: &str) -> String {
    format!("def handle(request):\n    print('asked for {answer}', flush=True)\n    return {answer:?}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn saves_are_served_without_a_lost_request_and_errors_are_told() -> Result<()> {
    if cannot_run(&["python3"]).is_some() {
        return Ok(());
    }
    let platform = Arc::new(Platform::start(Options::default()).await?);
    let dir = platform.scratch().join("greet");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("function.yml"), "spec: { runtime: python }\n")?;
    std::fs::write(dir.join("main.py"), code("save 0"))?;
    let mut dev = Dev::start(&platform, &dir.to_string_lossy())?;
    dev.wait_for("greet-00001 in ").await?;

    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let load = tokio::spawn({
        let (platform, stop, asked) = (platform.clone(), stop.clone(), asked.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                let answer = platform.get(&host("greet"), "/").await?;
                ensure!(answer.status == 200, "request {}: {answer:?}", asked.load(Ordering::Relaxed));
                asked.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        }
    });
    for save in 1..=SAVES {
        let saved = Instant::now();
        std::fs::write(dir.join("main.py"), code(&format!("save {save}")))?;
        while platform.get(&host("greet"), "/").await?.body != format!("save {save}") {
            ensure!(saved.elapsed() < SOON, "save {save} is not served:\n{}", dev.said.lock());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        println!("save {save}: a new answer after {:?}", saved.elapsed());
        dev.wait_for(&format!("greet-{:05} in ", save + 1)).await?;
        dev.wait_for(&format!("asked for save {save}")).await?;
    }
    // What does not load is told, and the version before it goes on.
    std::fs::write(dir.join("main.py"), "def handle(request:\n")?;
    dev.wait_for("main.py:1: SyntaxError").await?;
    assert_eq!(platform.get(&host("greet"), "/").await?.body, format!("save {SAVES}"));
    std::fs::write(dir.join("function.yml"), "spec: { runtime: pyhton }\n")?;
    dev.wait_for("did you mean python?").await?;
    std::fs::write(dir.join("function.yml"), "spec: { runtime: python }\n")?;
    std::fs::write(dir.join("main.py"), code("repaired"))?;
    dev.wait_for("asked for repaired").await?;
    stop.store(true, Ordering::Relaxed);
    load.await??;
    println!("{} requests meanwhile, none lost", asked.load(Ordering::Relaxed));

    let pid = i32::try_from(dev.process.id().context("it runs")?)?;
    // SAFETY: a signal to a process of this test, which is waited for below.
    ensure!(unsafe { libc::kill(pid, libc::SIGINT) } == 0, "the signal is sent");
    let ended = tokio::time::timeout(SOON, dev.process.wait()).await??;
    assert!(ended.success(), "{}", dev.said.lock());
    dev.wait_for("function greet deleted").await?;
    let mut platform = Arc::into_inner(platform).context("the load has ended")?;
    platform.stop().await
}
