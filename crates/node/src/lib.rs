//! The node: pods' life cycle, their sandboxes, network and images.
//!
//! - [`Node`]: registers, watches the pods that are bound to it, answers for their logs and what they use, and shuts down;
//! - [`pod`]: the life of one pod;
//! - [`sandbox`]: supervisors, prepared ahead;
//! - [`network`], [`images`]: what a sandbox is connected to and made from;
//! - [`runtimes`]: the host's allow-list that built-in runtimes see.
//!
//! Invariants: the platform's process never forks itself; what a pod holds on the host is given back by its sandbox
//! alone; a clean shutdown leaves nothing.

mod config;
mod events;
pub mod images;
mod logs;
pub mod network;
mod node;
pub mod pod;
mod registration;
pub mod runtimes;
pub mod sandbox;
mod services;
mod usage;

pub use config::Config;
pub use node::{Node, NodeError};
