//! DNS for pods: cluster names from the platform, everything else from this machine's resolvers.
//!
//! It listens on the bridge address only and answers nobody but pods and this machine, so it is no
//! open resolver. Cluster names never leave the machine.

mod cache;
mod resolv_conf;
mod server;
mod upstream;
mod zone;

pub use resolv_conf::{Upstreams, pod_resolv_conf};
pub use server::{DnsServer, bind, serve};
pub use zone::Resolve;
