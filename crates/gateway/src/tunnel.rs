//! Connections that left HTTP: WebSockets and other upgrades, copied both ways until one side ends.
//!
//! A tunnel holds its slot, so it counts as a request in flight. The revision's timeout ends it, and its idle timeout
//! when no byte flows in either direction.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::debug;

use crate::revision::{Shared, Slot};

/// Copies until one side ends, a timeout passes, or the gateway stops at once.
pub async fn run(
    client: OnUpgrade,
    workload: OnUpgrade,
    slot: Slot,
    shared: Arc<Shared>,
    deadline: Instant,
    idle_timeout: Option<Duration>,
) {
    let copy = async {
        let (client, workload) = match futures::try_join!(client, workload) {
            Ok(both) => both,
            Err(error) => return debug!(%error, "upgrade failed"),
        };
        let bytes = Arc::new(AtomicU64::new(0));
        let mut client = Counted { inner: TokioIo::new(client), bytes: bytes.clone() };
        let mut workload = Counted { inner: TokioIo::new(workload), bytes: bytes.clone() };
        tokio::select! {
            // A side that breaks off is an end like any other.
            _ = copy_bidirectional(&mut client, &mut workload) => {}
            () = silence(&bytes, idle_timeout) => debug!("tunnel was idle for too long"),
        }
    };
    tokio::select! {
        () = copy => {}
        () = sleep_until(deadline) => debug!("tunnel reached the revision's timeout"),
        () = shared.abort.cancelled() => {}
    }
    if let Some(metrics) = slot.revision.metrics.load().as_deref() {
        metrics.ended(101, slot.arrived.elapsed());
    }
}

/// Resolves once `limit` passes without a byte; never without a limit.
async fn silence(bytes: &AtomicU64, limit: Option<Duration>) {
    let Some(limit) = limit else {
        return std::future::pending().await;
    };
    let mut seen = bytes.load(Ordering::Relaxed);
    loop {
        sleep(limit).await;
        let now = bytes.load(Ordering::Relaxed);
        if now == seen {
            return;
        }
        seen = now;
    }
}

struct Counted<T> {
    inner: T,
    bytes: Arc<AtomicU64>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Counted<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.bytes.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Counted<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
