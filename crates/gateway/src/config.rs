//! What can be set about the gateway.

use std::sync::Arc;
use std::time::Duration;

use crate::transport::{Dialer, Tcp};

/// Limits and times of the gateway. `Default` is the documented default.
#[derive(Clone, Debug)]
pub struct Config {
    /// Time that requests in flight get at shutdown. Default 30 s.
    pub grace: Duration,
    /// Most requests that may wait for one revision; one more is answered 503. Default 10,000.
    pub queue_limit: usize,
    /// Most client connections at once; further ones wait in the listener's backlog. Default 50,000.
    pub connection_limit: usize,
    /// Most bytes of a request's head; more is answered 431. Default 64 KiB, at least 8 KiB.
    pub header_limit_bytes: usize,
    /// Most header lines of a request; more is answered 431. Default 128.
    pub header_count_limit: usize,
    /// Longest time that a client may take to send a request's head, and longest time that a connection may idle
    /// before its next request. Default 60 s.
    pub header_timeout: Duration,
    /// Most bytes of a request's body; more is answered 413, or the request is broken off where the length was not
    /// announced. Bodies are streamed, never held, so the default is no limit.
    pub request_body_limit_bytes: Option<u64>,
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
            connection_limit: 50_000,
            header_limit_bytes: 64 * 1024,
            header_count_limit: 128,
            header_timeout: Duration::from_secs(60),
            request_body_limit_bytes: None,
            connect_timeout: Duration::from_secs(3),
            idle_connections: 64,
            idle_connection_timeout: Duration::from_secs(60),
            attempts: 8,
            server_timing: true,
            dialer: Arc::new(Tcp),
            seed: 0,
        }
    }
}
