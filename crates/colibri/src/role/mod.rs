//! The platform's parts as processes of their own: `colibri apiserver|controller|gateway|node`.
//!
//! They meet in API objects, over any Kubernetes API server, and in the link between gateway and controller. What the
//! parts ask each other within one process goes over HTTP here:
//!
//! | Question | in one process | between processes |
//! |---|---|---|
//! | a container's log | `set_kubelet` | API server -> node, `/containerLogs/NAMESPACE/POD/CONTAINER` |
//! | what pods and nodes use | `set_kubelet` | API server -> node, `/stats/summary` |
//! | uploads of images and code | [`crate::extensions`] | CLI -> API server -> each node, the same paths |
//! | an image's digest | `ImageResolver` of the node | controller -> API server -> node ([`stores`]), else the registry |
//! | a function's code | `CodeStore` of the node | controller -> API server -> node ([`stores`]) |
//! | statistics, pokes, rotation | `client::link` | [`crate::link`] |
//! | gateway and API server on the pod network | listeners on the bridge | the node passes connections on ([`forward`]) |
//! | defaults and validation | `add_admission` | admission webhooks of the controller |

mod access;
mod apiserver;
mod controller;
mod forward;
mod gateway;
mod install;
mod kubelet;
mod node;
mod rbac;
mod stores;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Map, Value};

pub use self::apiserver::{ApiserverArgs, apiserver};
pub use self::controller::{ControllerArgs, controller};
pub use self::gateway::{GatewayArgs, gateway};
pub use self::install::{InstallArgs, install};
pub use self::node::{NodeArgs, node};
pub use self::stores::{RUNTIME_LABEL, is_ready};

use crate::data_dir::{DataDir, DataDirError, ENDPOINTS};

/// Longest wait for a role's tasks to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Says where a role listens: to the terminal, and into `endpoints.json` of its data directory.
fn announce(
    role: &str,
    data_dir: Option<&DataDir>,
    addresses: &[(&str, &str, SocketAddr)],
) -> Result<(), DataDirError> {
    let mut endpoints = Map::new();
    println!("The {role} is ready.");
    for (name, scheme, address) in addresses {
        let url = format!("{scheme}://{address}");
        println!("  {name:<12} {url}");
        endpoints.insert((*name).to_owned(), Value::String(url));
    }
    let Some(data_dir) = data_dir else { return Ok(()) };
    data_dir.write(ENDPOINTS, Value::Object(endpoints).to_string().as_bytes())
}

/// A name for this process that no other has: the host's, and a random part.
fn process_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), crate::platform::random_seed())
}
