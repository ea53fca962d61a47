//! One lock per digest, made when it is wanted and gone when nobody holds it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use store::cas::Digest;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// The table is swept when it holds more entries than this.
const SWEEP_ABOVE: usize = 256;

/// Locks by digest.
#[derive(Default)]
pub(crate) struct Locks {
    table: Mutex<HashMap<Digest, Weak<AsyncMutex<()>>>>,
}

impl Locks {
    /// Waits until nobody else works on `digest`.
    pub(crate) async fn lock(&self, digest: Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut table = self.table.lock();
            if table.len() > SWEEP_ABOVE {
                table.retain(|_, lock| lock.strong_count() > 0);
            }
            match table.get(&digest).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(AsyncMutex::new(()));
                    table.insert(digest, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
