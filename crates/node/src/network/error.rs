//! What can go wrong with the pod network, each with its cure.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::netlink::Refused;

/// The pod network could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// CAP_NET_ADMIN (or CAP_SYS_ADMIN for namespaces) is missing.
    #[error(
        "no permission to {what}: the pod network needs the capabilities NET_ADMIN and SYS_ADMIN; start the platform as root (sudo)"
    )]
    Capability {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel lacks a part that the network needs.
    #[error(
        "this kernel has no {feature}, needed to {what}: load it (modprobe {module}) or use a kernel with {option}"
    )]
    Kernel {
        /// The missing part.
        feature: &'static str,
        /// What was tried.
        what: &'static str,
        /// The module to load.
        module: &'static str,
        /// The kernel's build option.
        option: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused for another reason.
    #[error("the kernel refused to {what}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No /20 is free in the private ranges that pods may use.
    #[error(
        "no free address range: routes of this machine cover 10.192.0.0/10 and 172.24.0.0/13; remove a route or stop another platform"
    )]
    NoRange,
    /// The bridge is full.
    #[error(
        "no free pod address: {limit} pods are running on this machine, the most that one bridge can hold; delete some"
    )]
    Full {
        /// The most pods at once.
        limit: usize,
    },
    /// Another platform started at the same moment and did not finish.
    #[error("another platform has been starting its network for over {seconds} s; stop it, or try again")]
    Locked {
        /// How long was waited.
        seconds: u64,
    },
    /// A file of the kernel or of the data directory could not be read or written.
    #[error("cannot {what} {}", path.display())]
    File {
        /// "read", "write" or "remove".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The DNS server cannot listen on the bridge.
    #[error(
        "cannot serve DNS on {address}:53: another program listens on port 53 of every address; let it listen on its own address only (dnsmasq: bind-interfaces, unbound: interface)"
    )]
    Dns {
        /// The bridge's address.
        address: Ipv4Addr,
        /// Why.
        source: io::Error,
    },
    /// Too much was asked at once.
    #[error("{limit} network changes are waiting already; try again")]
    Busy {
        /// The queue's length.
        limit: usize,
    },
    /// The network is being taken down.
    #[error("the pod network has stopped")]
    Stopped,
    /// A virtual address was given more often, or with more backends, than allowed.
    #[error("too many service ports: {count}, of at most {limit}")]
    TooManyServices {
        /// How many were given.
        count: usize,
        /// The most allowed.
        limit: usize,
    },
}

impl NetworkError {
    /// Whether trying again later can help.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Full { .. } | Self::Locked { .. })
    }

    /// Sorts a failed system call by its cause.
    pub(super) fn from_io(what: &'static str, source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Capability { what, source },
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT) => Self::Kernel {
                feature: "netlink family",
                what,
                module: "nfnetlink",
                option: "CONFIG_NETFILTER_NETLINK",
                source,
            },
            _ => Self::Refused { what, source },
        }
    }
}

impl From<Refused> for NetworkError {
    fn from(refused: Refused) -> Self {
        let Refused { what, source } = refused;
        let missing = matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
            || (what.starts_with("add ") && source.raw_os_error() == Some(libc::ENOENT));
        if !missing {
            return Self::from_io(what, source);
        }
        let (feature, module, option) = match what {
            "create the bridge" => ("bridge support", "bridge", "CONFIG_BRIDGE"),
            "create a pod's link" => ("veth support", "veth", "CONFIG_VETH"),
            "add the port rules" => ("nf_tables for bridges", "nft_meta_bridge", "CONFIG_NF_TABLES_BRIDGE"),
            "add the masquerade rule" => ("nf_tables masquerading", "nft_masq", "CONFIG_NFT_MASQ"),
            "add the service rules" => ("nf_tables address translation", "nft_nat", "CONFIG_NFT_NAT"),
            "add the reject rules" => ("nf_tables reject", "nft_reject_inet", "CONFIG_NFT_REJECT_INET"),
            "add the connection rules" => ("nf_tables connection tracking", "nft_ct", "CONFIG_NFT_CT"),
            _ => ("nf_tables", "nf_tables", "CONFIG_NF_TABLES_INET"),
        };
        Self::Kernel { feature, what, module, option, source }
    }
}
