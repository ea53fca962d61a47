//! What load took is given back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::{Options, Platform, is_of_one_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Connections at the same time.
const CONNECTIONS: usize = 3_000;
/// How soon most of it is given back; it takes seconds, more on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

fn resident_kib(pid: u32) -> Result<usize> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// As many open files as this process may have.
fn raise_open_files() -> Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a value of this frame.
    anyhow::ensure!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    anyhow::ensure!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0, "setrlimit");
    Ok(usize::try_from(limit.rlim_max).unwrap_or(usize::MAX))
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_that_connections_took_is_given_back_when_they_go() -> Result<()> {
    if is_of_one_process("one process is measured") {
        return Ok(());
    }
    let mut platform = Platform::start(Options::default()).await?;
    let pid = platform.pid();
    let before = resident_kib(pid)?;
    let count = CONNECTIONS.min(raise_open_files()?.saturating_sub(200));
    let gateway = platform.endpoint("gateway").trim_start_matches("http://").to_owned();
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = TcpStream::connect(&gateway).await?;
        connection.write_all(b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\n\r\n").await?;
        anyhow::ensure!(connection.read_u8().await? == b'H', "an answer");
        connections.push(connection);
    }
    let peak = resident_kib(pid)?;
    assert!(peak > before + 5 * count, "{count} connections took from {before} to {peak} KiB: too little to tell");
    drop(connections);
    let start = Instant::now();
    let mut after = peak;
    while after > before + (peak - before) / 3 {
        assert!(start.elapsed() < LIMIT, "from {before} to {peak} KiB, and back to no less than {after} KiB");
        tokio::time::sleep(Duration::from_millis(100)).await;
        after = resident_kib(pid)?;
    }
    println!("{count} connections: from {before} to {peak} KiB, back to {after} KiB");
    platform.stop().await
}
