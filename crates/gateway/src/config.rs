//! What can be set about the gateway.

use std::sync::Arc;
use std::time::Duration;

use crate::access_log::{Sink, Stdout};
use crate::transport::{Dialer, Tcp};

/// Limits and times of the gateway. `Default` is the documented default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time that requests in flight get at shutdown. Default 30 s.
    pub grace: Duration,
    /// Most requests that may wait for one revision; one more is answered 503. Default 10,000.
    pub queue_limit: usize,
    /// What clients may send, and how long they may take, until the ConfigMap `config-gateway` says otherwise.
    pub clients: api::config::Gateway,
    /// Longest time to connect to an instance; then it is probed again before it gets another request. Default 3 s.
    pub connect_timeout: Duration,
    /// Most idle connections kept to one instance. Default 64.
    pub idle_connections: usize,
    /// Longest time that a connection to an instance is kept idle. Default 60 s.
    pub idle_connection_timeout: Duration,
    /// How often one request is tried on instances that cannot be reached. Default 8.
    pub attempts: u32,
    /// Whether responses carry `Server-Timing`. Default true.
    pub server_timing: bool,
    /// Where the access log goes while it is on. Default the process's standard output.
    pub access_log: Arc<dyn Sink>,
    /// Opens the connections to instances. Default TCP.
    pub dialer: Arc<dyn Dialer>,
    /// Seed of all random choices (traffic split, choice of instance, request ids). Default 0; the binary hands in
    /// real randomness.
    pub seed: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(30),
            queue_limit: 10_000,
            clients: api::config::Gateway::default(),
            connect_timeout: Duration::from_secs(3),
            idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(60),
            attempts: 8,
            server_timing: true,
            access_log: Arc::new(Stdout),
            dialer: Arc::new(Tcp),
            seed: 0,
        }
    }
}
