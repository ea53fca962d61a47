//! What the binary decides for the serving controllers; the ConfigMaps decide the rest while it runs.

use std::time::Duration;

use jiff::Timestamp;

/// Under which names Routes are reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Domain of public URLs where `config-domain` names none. Default `localhost`.
    pub domain: String,
    /// Port of public URLs; `None` and 80 are not written. Default `None`.
    pub public_port: Option<u16>,
    /// Domain of the cluster. Default `cluster.local`.
    pub cluster_domain: String,
    /// Name that placeholder Services lead to. Default `gateway.colibri-system.svc.cluster.local`.
    pub gateway_host: String,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            domain: "localhost".to_owned(),
            public_port: None,
            cluster_domain: "cluster.local".to_owned(),
            gateway_host: format!("gateway.{}.svc.cluster.local", api::SYSTEM_NAMESPACE),
        }
    }
}

/// Configuration of the serving controllers.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names of Routes.
    pub addresses: Addresses,
    /// Node that every pod is bound to at its creation; `None` leaves that to a scheduler. Default `None`.
    pub node_name: Option<String>,
    /// Workers of each controller. Default 4.
    pub workers: usize,
    /// How long a change that nobody acts upon, such as one of scale, waits for further ones before a status shows it.
    /// Default 250 ms.
    pub status_delay: Duration,
    /// The wall clock, for conditions and annotations.
    pub clock: fn() -> Timestamp,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addresses: Addresses::default(),
            node_name: None,
            workers: 4,
            status_delay: Duration::from_millis(250),
            clock: Timestamp::now,
        }
    }
}
