//! The allocator, and giving memory back.

use std::time::Duration;

/// The control plane makes and drops many small objects on all cores: with the C library's allocator a third of its
/// time goes there (`colibri bench scale`). Without huge pages, which would hold 91 MiB at rest instead of 65.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Time between two looks. A look without anything to give back costs next to nothing.
const PERIOD: Duration = Duration::from_secs(2);

/// Returns free memory to the system, for ever. The allocator does so by itself only while it is used: after a load that
/// ends at once it would keep everything.
pub async fn give_back() {
    loop {
        tokio::time::sleep(PERIOD).await;
        // SAFETY: it takes no pointer and may be called from every thread.
        unsafe { libmimalloc_sys::mi_collect(false) };
    }
}
