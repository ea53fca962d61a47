//! nf_tables over netlink, without the `nft` program: an encoder for the few messages and
//! expressions that the pod network uses.
//!
//! Numbers are the kernel's: `include/uapi/linux/netfilter/nf_tables.h` and `nfnetlink.h`.

mod attributes;
mod rule;
mod table;

pub use rule::{Rule, Verdict};
pub use table::{Batch, Chain, Family, Hook, Set, list_tables};
