//! What a platform's network is called: everything follows from its data directory.
//!
//! A restart finds what the run before it left, and two platforms never touch each other's parts.
//! A pod's link name and hardware address follow from its address, so the rule set that ties a port
//! to an address is written once, at start, and a pod's start changes no firewall rule.

use std::net::Ipv4Addr;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::cidr::Cidr;

/// How every platform's bridge name begins.
pub const BRIDGE_PREFIX: &str = "colibri";

/// The offset of the bridge's own address in the pod range.
pub const GATEWAY_OFFSET: u32 = 1;

/// The names of one platform's network objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    id: String,
    /// The bridge: 15 characters, the most a link name can have.
    pub bridge: String,
    /// How the host's end of each pod's link begins.
    pub link_prefix: String,
    /// The table of the base rules (families `inet` and `bridge`).
    pub table: String,
    /// The table of the services' virtual addresses (family `inet`).
    pub services_table: String,
    /// The link group of the pods' links, so that all go in one step.
    pub group: u32,
    /// The link group of links on their way out.
    pub trash_group: u32,
}

impl Names {
    /// The names for the platform whose state lies in `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        let path = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
        let path = path.canonicalize().unwrap_or(path);
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let id = hex::encode(&digest[..4]);
        let seed = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        // Groups 0 and 1 are what administrators use; ours have the top bit set.
        let group = (seed | 0x8000_0000) & !1;
        Self {
            bridge: format!("{BRIDGE_PREFIX}{id}"),
            link_prefix: format!("cb{id}-"),
            table: format!("colibri-{id}"),
            services_table: format!("colibri-{id}-services"),
            group,
            trash_group: group | 1,
            id,
        }
    }

    /// A number that differs from platform to platform.
    pub fn seed(&self) -> u32 {
        u32::from_str_radix(&self.id, 16).unwrap_or_default()
    }

    /// The host's end of the link of the pod at `offset` in the pod range.
    pub fn link(&self, offset: u32) -> String {
        format!("{}{offset:03x}", self.link_prefix)
    }

    /// The offset that a link's name tells; `None` for a link that is not ours.
    pub fn offset_of_link(&self, link: &str) -> Option<u32> {
        let digits = link.strip_prefix(&self.link_prefix)?;
        (digits.len() == 3).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
    }
}

/// The hardware address that belongs to a pod or bridge address: locally administered.
pub fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0xcb, a, b, c, d]
}

/// The bridge's address in `pods`.
pub fn gateway_address(pods: Cidr) -> Ipv4Addr {
    pods.nth(GATEWAY_OFFSET).expect("a pod range has more than two addresses")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ_by_directory() {
        let a = Names::new(Path::new("/tmp/colibri-names-a"));
        let b = Names::new(Path::new("/tmp/colibri-names-b"));
        assert_ne!(a, b);
        assert_eq!(a, Names::new(Path::new("/tmp/./colibri-names-a")));
        assert_eq!(a.bridge.len(), 15);
        assert_eq!(a.link(0xfff).len(), 14);
        assert_ne!(a.group, a.trash_group);
    }

    #[test]
    fn a_link_name_tells_its_offset_and_platform() {
        let a = Names::new(Path::new("/tmp/colibri-names-a"));
        let b = Names::new(Path::new("/tmp/colibri-names-b"));
        assert_eq!(a.offset_of_link(&a.link(0x2a)), Some(0x2a));
        assert_eq!(a.offset_of_link(&b.link(0x2a)), None);
        assert_eq!(a.offset_of_link("eth0"), None);
        assert_eq!(a.offset_of_link(&format!("{}zzz", a.link_prefix)), None);
    }
}
