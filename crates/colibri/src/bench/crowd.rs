//! Many at once: WebSockets that say nothing, requests that wait, and more requests than an instance can take.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::pace::{Asked, Sender};
use super::peers::memory_mib;

/// Connections that are opened at the same time.
const OPENED_AT_ONCE: usize = 64;
/// Longest time until a connection is open.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
/// Memory is read when it has changed by less than this share in a while.
const SETTLED: f64 = 0.005;
const SETTLE_LOOK: Duration = Duration::from_millis(300);
/// Connections of the overload; each has many requests.
const OVERLOAD_CONNECTIONS: usize = 64;
/// The overload's requests come in so many portions a second.
const PORTIONS: u32 = 100;

/// Memory of a proxy with many connections.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// The proxy.
    pub proxy: String,
    /// Connections.
    pub connections: usize,
    /// Resident before them, in MiB.
    pub before_mib: f64,
    /// Resident with them.
    pub with_mib: f64,
}

impl Memory {
    /// KiB for each connection.
    pub fn each_kib(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a number of connections")]
        let connections = self.connections.max(1) as f64;
        (self.with_mib - self.before_mib) * 1024.0 / connections
    }
}

/// Lets this process have as many files open as the system allows.
pub fn allow_files() {
    let limit = getrlimit(Resource::Nofile);
    // Too few show when a connection fails.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Opens so many WebSockets and says nothing on them.
///
/// # Errors
///
/// When one is refused.
pub async fn idle_websockets(proxy: &str, pids: &[u32], to: SocketAddr, host: &str, count: usize) -> Result<Memory> {
    let handshake = format!(
        "GET / HTTP/1.1\r\nhost: {host}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    );
    hold(proxy, pids, to, &handshake, "HTTP/1.1 101", count).await
}

/// Sends so many requests that are not answered.
///
/// # Errors
///
/// When one cannot be sent.
pub async fn waiting(proxy: &str, pids: &[u32], to: SocketAddr, host: &str, count: usize) -> Result<Memory> {
    hold(proxy, pids, to, &format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n"), "", count).await
}

/// Opens connections, sends `text` on each and reads an answer that starts with `wanted`, if any.
async fn hold(
    proxy: &str,
    pids: &[u32],
    to: SocketAddr,
    text: &str,
    wanted: &str,
    connections: usize,
) -> Result<Memory> {
    let before_mib = settled(pids).await?;
    let open = |_| async {
        let open = async {
            let mut stream = TcpStream::connect(to).await?;
            stream.write_all(text.as_bytes()).await?;
            let mut answer = Vec::new();
            while !wanted.is_empty() && !answer.ends_with(b"\r\n\r\n") {
                answer.push(stream.read_u8().await?);
            }
            let answer = String::from_utf8_lossy(&answer).into_owned();
            ensure!(answer.starts_with(wanted), "{proxy} answered {answer}");
            Ok(stream)
        };
        timeout(OPEN_LIMIT, open).await.with_context(|| format!("{proxy} gave no answer"))?
    };
    let held: Vec<TcpStream> =
        stream::iter(0..connections).map(open).buffer_unordered(OPENED_AT_ONCE).try_collect().await?;
    let with_mib = settled(pids).await?;
    drop(held);
    Ok(Memory { proxy: proxy.to_owned(), connections, before_mib, with_mib })
}

/// Memory, once it stays as it is.
async fn settled(pids: &[u32]) -> Result<f64> {
    let mut last = memory_mib(pids)?;
    loop {
        tokio::time::sleep(SETTLE_LOOK).await;
        let now = memory_mib(pids)?;
        if (now - last).abs() <= last * SETTLED {
            return Ok(now);
        }
        last = now;
    }
}

/// More requests than the instance can take.
#[derive(Clone, Debug, Serialize)]
pub struct Overload {
    /// Most that the instance answers a second, with as many requests at once as it has slots.
    pub peak_per_second: f64,
    /// Requests a second that were sent.
    pub offered_per_second: f64,
    /// For so long.
    pub seconds: u64,
    /// Of them, answered with 200 a second.
    pub goodput_per_second: f64,
    /// Answers by status; 0 is none at all.
    pub statuses: BTreeMap<u16, usize>,
}

impl Overload {
    /// Share of the peak that was still answered.
    pub fn share(&self) -> f64 {
        self.goodput_per_second / self.peak_per_second
    }
}

/// Sends `times` as many requests as the instance with `slots` slots can answer.
///
/// # Errors
///
/// When no connection can be opened.
pub async fn overload(asked: &Asked, slots: usize, times: u32, seconds: u64) -> Result<Overload> {
    let calm = Duration::from_secs(seconds.min(5));
    let peak_per_second = answered_in(asked, slots, calm).await?;
    let mut senders = Vec::new();
    for _ in 0..OVERLOAD_CONNECTIONS {
        senders.push(asked.open().await?);
    }
    let statuses = Arc::new(Mutex::new(BTreeMap::new()));
    let over = Arc::new(AtomicBool::new(false));
    let mut portions = interval(Duration::from_secs(1) / PORTIONS);
    portions.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, mut due) = (0_u64, 0.0);
    let start = Instant::now();
    let mut requests = tokio::task::JoinSet::new();
    while start.elapsed() < Duration::from_secs(seconds) {
        portions.tick().await;
        due += peak_per_second * f64::from(times) / f64::from(PORTIONS);
        #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
        while (sent as f64) < due {
            let Sender::Two(sender) = &senders[usize::try_from(sent)? % senders.len()] else {
                anyhow::bail!("the overload comes by HTTP/2")
            };
            let (asked, mut sender) = (asked.clone(), Sender::Two(sender.clone()));
            let (statuses, over) = (statuses.clone(), over.clone());
            requests.spawn(async move {
                let status = asked.send(&mut sender).await.unwrap_or_default();
                if !over.load(Ordering::Relaxed) {
                    *statuses.lock().entry(status).or_default() += 1;
                }
            });
            sent += 1;
        }
        while requests.try_join_next().is_some() {}
    }
    over.store(true, Ordering::Relaxed);
    let took = start.elapsed().as_secs_f64();
    let statuses: BTreeMap<u16, usize> = statuses.lock().clone();
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    let (good, sent) = (statuses.get(&200).copied().unwrap_or_default() as f64, sent as f64);
    Ok(Overload {
        peak_per_second,
        offered_per_second: sent / took,
        seconds,
        goodput_per_second: good / took,
        statuses,
    })
}

/// Answers a second where each of `clients` sends its next request when the last one is answered.
async fn answered_in(asked: &Asked, clients: usize, length: Duration) -> Result<f64> {
    let until = Instant::now() + length;
    let clients = (0..clients).map(|_| async {
        let (mut sender, mut answered) = (asked.open().await?, 0_u32);
        while Instant::now() < until {
            ensure!(asked.send(&mut sender).await? == 200, "{} is not well before the overload", asked.host);
            answered += 1;
        }
        Ok(answered)
    });
    let answered: u32 = futures::future::try_join_all(clients).await?.into_iter().sum();
    Ok(f64::from(answered) / length.as_secs_f64())
}
