//! The same program without a platform: started as a plain process, timed to its first answer.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::http;
use super::target::Workload;

/// Longest time until the first answer.
const LIMIT: Duration = Duration::from_secs(20);
/// Time between two tries to connect.
const LOOK: Duration = Duration::from_micros(500);

/// A process that is ended when dropped.
pub struct Bare {
    child: Child,
    /// From the start of the process to its first answer.
    pub took: Duration,
    _dir: Option<tempfile::TempDir>,
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the workload's program on a free port of loopback and waits for its first answer.
///
/// # Errors
///
/// When it does not start or does not answer.
pub async fn start(workload: Workload, hello: &Path, runtimes: &Path) -> Result<Bare> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut dir = None;
    let mut command = match workload.function() {
        None => Command::new(hello),
        Some(example) => {
            let code = tempfile::tempdir()?;
            std::fs::write(code.path().join(example.file), example.code)?;
            // The interpreter that the sandbox uses, not whichever comes first on the PATH.
            let program = functions::runtimes::interpreter(example.program);
            let mut command = Command::new(program.with_context(|| format!("{} is needed", example.program))?);
            let words = functions::runtimes::command(example.runtime).context("a built-in runtime")?;
            let inside = |word: String| word.replace(api::functions::RUNTIME_PATH, &runtimes.to_string_lossy());
            command.args(words.into_iter().skip(1).map(inside));
            dir = Some(code);
            command
        }
    };
    // As in the sandbox: nothing of this shell's environment makes the interpreter load more.
    command.env_clear();
    if let Some(code) = &dir {
        command.env("COLIBRI_CODE", code.path());
    }
    command.env("PORT", port.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let mut bare = Bare { child, took: Duration::ZERO, _dir: dir };
    while start.elapsed() < LIMIT {
        if http::get(address, "bare", "/").await.is_ok() {
            bare.took = start.elapsed();
            return Ok(bare);
        }
        if let Some(status) = bare.child.try_wait()? {
            bail!("{command:?} ended with {status}");
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("{command:?} did not answer within {LIMIT:?}")
}
