//! Connections that left HTTP: WebSockets and other upgrades, copied both ways.
//!
//! A tunnel holds its slot, so it counts as a request in flight. The revision's timeout ends it; the timeouts for the
//! first byte and for silence do not concern it. Each direction ends by itself.

use std::sync::atomic::Ordering;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::cause::Cause;
use crate::record::Record;
use crate::revision::Slot;

/// Copies until both sides have ended or one breaks, the deadline passes, or the gateway stops at once.
pub async fn run(client: OnUpgrade, workload: OnUpgrade, slot: Slot, mut record: Record, deadline: Instant) {
    let shared = record.shared().clone();
    let copy = async {
        match futures::try_join!(client, workload) {
            // A side that breaks off is an end like any other.
            Ok((client, workload)) => {
                copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(workload)).await.ok()
            }
            Err(error) => {
                debug!(%error, "upgrade failed");
                None
            }
        }
    };
    tokio::select! {
        copied = copy => if let Some((received, sent)) = copied {
            record.note(|detail| {
                detail.received.store(received, Ordering::Relaxed);
                detail.sent = Some(sent);
            });
        },
        () = sleep_until(deadline) => {
            debug!("tunnel reached the revision's timeout");
            record.error(Cause::ResponseTimeout);
        }
        () = shared.abort.cancelled() => {}
    }
    // Told of before the slot is given back.
    drop(record);
    drop(slot);
}
