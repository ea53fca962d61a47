//! Flags of `colibri up`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Start the platform on this machine: API server, node, gateway, controllers.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Where state is kept [default: /var/lib/colibri for root, else the XDG state folder]
    #[arg(long, env = "COLIBRI_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address that the ports are opened on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub bind: IpAddr,
    /// Port of the API server; 0 picks a free one
    #[arg(long, default_value_t = 6443)]
    pub api_port: u16,
    /// Port of the gateway for HTTP; 0 picks a free one
    #[arg(long, default_value_t = 8080)]
    pub gateway_port: u16,
    /// Port of the gateway for HTTPS; 0 picks a free one
    #[arg(long, default_value_t = 8443)]
    pub gateway_tls_port: u16,
    /// Port of metrics and health; 0 picks a free one
    #[arg(long, default_value_t = 9090)]
    pub metrics_port: u16,
    /// Domain under which services are reached: NAME.NAMESPACE.DOMAIN
    #[arg(long, default_value = "localhost")]
    pub domain: String,
    /// Seconds that requests in flight get to end after Ctrl-C or SIGTERM
    #[arg(long, default_value_t = 30)]
    pub grace_seconds: u64,
    /// On a stop, leave the pods running for the next start on the same data directory to take over
    #[arg(long)]
    pub keep_pods: bool,
    /// Deploy the examples, call each from zero and warm, and show what was measured
    #[arg(long)]
    pub demo: bool,
    /// What is logged, in the syntax of tracing's EnvFilter
    #[arg(long, env = "COLIBRI_LOG", default_value = "warn,colibri=info")]
    pub log: String,
}

impl UpArgs {
    /// The grace time of a stop.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds)
    }
}
