//! Connections that left HTTP: WebSockets and other upgrades, copied both ways.
//!
//! A tunnel holds its slot, so it counts as a request in flight. The revision's timeout ends it; the timeouts for the
//! first byte and for silence do not concern it. Each direction ends by itself.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::revision::{Shared, Slot};

/// Copies until both sides have ended or one breaks, the deadline passes, or the gateway stops at once.
pub async fn run(client: OnUpgrade, workload: OnUpgrade, slot: Slot, shared: Arc<Shared>, deadline: Instant) {
    let copy = async {
        match futures::try_join!(client, workload) {
            // A side that breaks off is an end like any other.
            Ok((client, workload)) => {
                drop(copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(workload)).await);
            }
            Err(error) => debug!(%error, "upgrade failed"),
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
