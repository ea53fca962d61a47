//! Pods' sandboxes: prepared ahead, taken by a pod, destroyed after it.
//!
//! A sandbox is a supervisor process with the pod's namespaces and its network attached. Invariants: a sandbox serves
//! one pod; what a sandbox made on the host (folder, cgroups, address) is given back by [`Sandboxes::destroy`] alone or,
//! after a crash, by [`Sandboxes::start`]. A sandbox that has a pod outlives the platform and is [`found`] again.

mod cgroups;
pub mod found;
mod link;
mod pool;
mod process;
mod program;
mod usage;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use futures::future::BoxFuture;

pub use link::Link;
pub use pool::{Sandbox, Sandboxes};
pub use usage::Counters;

/// How sandboxes are made.
#[derive(Clone, Debug)]
pub struct SandboxConfig {
    /// Folder of the sandboxes; each has one below it.
    pub dir: PathBuf,
    /// Sandboxes that are kept prepared. Default 4.
    pub prepared: usize,
    /// Name of the platform's cgroup, unique on the host.
    pub cgroup: String,
    /// First host id of the range that pods' user namespaces map; `None` for no user namespaces.
    pub user_namespace: Option<u32>,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Something on the host failed.
    #[error("{step} failed")]
    Io {
        /// What was being done.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The supervisor could not make its sandbox.
    #[error("the supervisor could not make a sandbox: {0}")]
    Supervisor(String),
    /// The pod could not be connected.
    #[error("the sandbox could not be connected to the pod network: {0}")]
    Network(String),
    /// There is no cgroup controller that limits could be set by.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NoCgroups,
}

/// Names the step of an I/O error.
pub(crate) trait Step<T> {
    /// The step is `name`.
    fn step(self, name: impl Into<String>) -> Result<T, SandboxError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, name: impl Into<String>) -> Result<T, SandboxError> {
        self.map_err(|source| SandboxError::Io { step: name.into(), source })
    }
}

/// What the sandboxes need of the pod network.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the network namespace of that process; its address.
    fn attach(&self, pid: u32) -> BoxFuture<'_, Result<Ipv4Addr, String>>;
    /// Takes the address back; the namespace is gone or will be.
    fn release(&self, address: Ipv4Addr) -> BoxFuture<'_, ()>;
}
