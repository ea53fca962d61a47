//! How a node is set up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Configuration of the node.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the node keeps images, sandboxes and logs.
    pub data_dir: PathBuf,
    /// Folder of the built-in runtimes' own files, mounted read only at [`api::functions::RUNTIME_PATH`].
    pub runtimes_dir: PathBuf,
    /// Name of the Node object. Default: the host's name, in lower case.
    pub name: String,
    /// Address and port of the node's own server, where it has one: the API server asks it for logs. Default: none.
    pub server: Option<SocketAddr>,
    /// Sandboxes kept prepared. Default 4.
    pub prepared: usize,
    /// First host id of the range that pods' user namespaces map; `None` turns them off. Default 1,000,000.
    pub user_namespace: Option<u32>,
    /// Most pods. Default 1000.
    pub max_pods: usize,
    /// Time that pods have to end when the node shuts down. Default 3 s.
    pub shutdown_grace: Duration,
    /// Time between renewals of the node's Lease. Default 10 s.
    pub lease_period: Duration,
    /// The image store.
    pub images: crate::images::Config,
}

impl Config {
    /// The defaults below a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        let name = host.to_ascii_lowercase();
        Self {
            runtimes_dir: data_dir.join("runtimes"),
            data_dir,
            name: if base::names::is_dns1123_subdomain(&name) { name } else { "node".into() },
            server: None,
            prepared: 4,
            user_namespace: Some(1_000_000),
            max_pods: 1000,
            shutdown_grace: Duration::from_secs(3),
            lease_period: Duration::from_secs(10),
            images: crate::images::Config::default(),
        }
    }
}
