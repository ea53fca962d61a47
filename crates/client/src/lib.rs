//! What every role shares when it talks to the API server or to another role.
//!
//! - [`accept`]: the loop that takes connections.
//! - [`cache`]: one shared, watched copy of a kind per process.
//! - [`live`]: what is asked of the API server itself, because a cache may be behind.
//! - [`queue`]: the work queue that controllers take keys from.
//! - [`link`]: the wire between gateway, autoscaler and controllers, apart from API objects.
//! - [`kubelet`]: what the API server asks of a node (logs, exec).
//! - [`images`]: what controllers ask of the image store.
//! - [`https`]: TLS with certificates on both sides, between processes.
//! - [`lease`]: which of several processes acts.
//! - [`settings`]: the platform's ConfigMaps.
//!
//! Invariants: a cache never writes; a queue never holds a key twice; nothing here decides.

pub mod accept;
pub mod cache;
pub mod https;
pub mod images;
pub mod kubelet;
pub mod lease;
pub mod link;
pub mod live;
pub mod queue;
pub mod settings;

/// Header by which a client tells our API server that it has no use for `metadata.managedFields`, which can be as large
/// as the rest of an object. Other API servers pass it over. What such a client writes keeps its managed fields.
pub const WITHOUT_MANAGED_FIELDS: &str = "x-colibri-without-managed-fields";

pub use cache::{Cache, Caches, Change, Index, ObjectKey};
pub use live::is_there;
pub use queue::{Queue, run_workers, run_workers_after};
pub use settings::Live;
