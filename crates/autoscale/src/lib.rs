//! Knative's pod autoscaler, and Kubernetes' horizontal one, as plain functions: what was seen in, how many pods are wanted out.
//!
//! - [`window`]: samples of the last seconds and their averages.
//! - [`decide`]: how many pods a Revision wants.
//! - [`usage`]: the same by what its pods use of processor or memory.
//! - [`rollout`]: how traffic moves to a new Revision.
//! - [`zero`]: when a wanted 0 becomes a real one.
//! - [`settings`]: the ConfigMap `config-autoscaler` and the annotations of a Revision.
//!
//! Invariants: nothing here reads a clock, a file or a socket; the time is a [`Duration`](std::time::Duration) since
//! an origin that the caller chose and keeps.
//!
//! Source: `knative/serving/pkg/autoscaler` and `pkg/reconciler/autoscaling/kpa`.

pub mod decide;
mod delay;
pub mod rollout;
pub mod settings;
pub mod usage;
pub mod window;
pub mod zero;

pub use decide::{DeciderSpec, DeciderState, Decision, Observed, decide};
pub use settings::{Scaling, Settings};
pub use window::{Aggregation, Window};
