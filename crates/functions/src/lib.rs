//! Functions: from source code to a Knative Service of the same name.
//!
//! - [`pack`]: source files to a reproducible archive, and the archive's digest.
//! - [`code`]: where archives are kept.
//! - [`fetch`]: archives at a URL, on their way there.
//! - [`runtimes`]: the files of the built-in runtimes, embedded here and written to the data directory.
//! - [`controller`]: keeps one Service for each Function and tells what became of it.
//!
//! Invariants: the controller reads caches only and decides in a pure plan; it never writes to a Service that does not
//! belong to the Function; a version that fails takes nothing from the one that serves.

pub mod code;
pub mod controller;
pub mod fetch;
pub mod pack;
pub mod runtimes;

pub use code::{CodeError, CodeStore};
pub use controller::{Config, Functions};
pub use fetch::Fetch;
