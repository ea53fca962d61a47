//! Identifiers and small pure helpers that every other crate may use.
//!
//! No sockets, no files, no tasks, no clock: what needs the time is given it.

pub mod backoff;
pub mod duration;
pub mod ids;
pub mod names;
pub mod nearest;
pub mod quantity;

pub use backoff::Backoff;
pub use ids::{MappingId, PodId, RevisionId, RouteId};
pub use nearest::nearest;
