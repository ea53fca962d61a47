//! The ports of the platform: opened before anything else starts, so that a taken one is said at once.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::net::{TcpListener, TcpSocket};

use super::args::UpArgs;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Why a port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Something else listens there.
    #[error("port {port} for the {purpose} is taken{owner}. Choose another with {flag}, or 0 for a free one")]
    Taken {
        /// The port.
        port: u16,
        /// What it is for.
        purpose: &'static str,
        /// The program that has it, if it can be told.
        owner: String,
        /// The flag that chooses another.
        flag: &'static str,
    },
    /// Something else listens on every address, the pod network's too.
    #[error(
        "port {port} of the pod network ({ip}), for the {purpose}, is taken{owner}. Stop that program, or let it listen on addresses of its own instead of on all"
    )]
    TakenFromPods {
        /// The gateway's address on the pod network.
        ip: Ipv4Addr,
        /// The port.
        port: u16,
        /// What it is for.
        purpose: &'static str,
        /// The program that has it, if it can be told.
        owner: String,
    },
    /// The system refused.
    #[error("cannot listen on {address} for the {purpose} ({flag}): {source}")]
    Refused {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// The flag that chooses another.
        flag: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// All listeners.
#[derive(Debug)]
pub struct Listeners {
    /// The API server.
    pub api: TcpListener,
    /// The gateway, HTTP.
    pub gateway: TcpListener,
    /// The gateway, HTTPS.
    pub gateway_tls: TcpListener,
    /// Metrics and health.
    pub metrics: TcpListener,
}

impl Listeners {
    /// Opens every port.
    ///
    /// # Errors
    ///
    /// [`ListenError`] names the port and the flag that chooses another.
    pub fn bind(args: &UpArgs) -> Result<Self, ListenError> {
        Ok(Self {
            api: listen(args.bind, args.api_port, "API server", "--api-port")?,
            gateway: listen(args.bind, args.gateway_port, "gateway", "--gateway-port")?,
            gateway_tls: listen(args.bind, args.gateway_tls_port, "gateway's HTTPS", "--gateway-tls-port")?,
            metrics: listen(args.bind, args.metrics_port, "metrics", "--metrics-port")?,
        })
    }
}

/// Opens one port.
///
/// # Errors
///
/// [`ListenError`] names the port and the flag that chooses another.
pub fn listen(ip: IpAddr, port: u16, purpose: &'static str, flag: &'static str) -> Result<TcpListener, ListenError> {
    let address = SocketAddr::new(ip, port);
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_nodelay(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    open().map_err(|source: std::io::Error| match source.kind() {
        ErrorKind::AddrInUse => ListenError::Taken { port, purpose, owner: owner(port), flag },
        _ => ListenError::Refused { address, purpose, flag, source },
    })
}

/// Opens one port on the pod network, where no flag chooses another.
///
/// # Errors
///
/// [`ListenError`] names the port and who has it.
pub fn listen_for_pods(ip: Ipv4Addr, port: u16, purpose: &'static str) -> Result<TcpListener, ListenError> {
    listen(ip.into(), port, purpose, "the pod network").map_err(|error| match error {
        ListenError::Taken { owner, .. } => ListenError::TakenFromPods { ip, port, purpose, owner },
        other => other,
    })
}

/// ` by NAME (process PID)`, if the owner of a listening TCP port can be found.
pub fn owner(port: u16) -> String {
    let find = || {
        let inode = ["/proc/net/tcp", "/proc/net/tcp6"].iter().find_map(|file| {
            let text = std::fs::read_to_string(file).ok()?;
            listening_inode(&text, port)
        })?;
        let wanted = format!("socket:[{inode}]");
        // Beside the numbers there are links to the reader's own entry.
        let is_process = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().parse::<u32>().is_ok();
        std::fs::read_dir("/proc").ok()?.flatten().filter(is_process).find_map(|process| {
            let holds = std::fs::read_dir(process.path().join("fd")).ok()?.flatten();
            let mut holds = holds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            holds.any(|link| link.to_string_lossy() == wanted).then(|| {
                let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                format!(" by {} (process {})", name.trim(), process.file_name().to_string_lossy())
            })
        })
    };
    find().unwrap_or_default()
}

/// The inode of the socket that listens on `port`, in the text of `/proc/net/tcp`.
fn listening_inode(text: &str, port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    text.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        (local.ends_with(&suffix) && state == "0A").then(|| inode.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_names_its_owner_and_the_flag() {
        let first = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), 0, "gateway", "--gateway-port").unwrap();
        let port = first.local_addr().unwrap().port();
        let error = listen(IpAddr::V4(Ipv4Addr::LOCALHOST), port, "gateway", "--gateway-port").unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("port {port} for the gateway is taken by ")), "{text}");
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        assert!(text.contains("--gateway-port"), "{text}");
    }
}
