//! Addresses of services.

use std::net::Ipv4Addr;

use parking_lot::Mutex;
use store::Store;

use crate::error::{ApiError, ApiResult};
use crate::object::Object;

/// Hands out addresses of a /16 network, the next free one after the last.
#[derive(Debug)]
pub(crate) struct Addresses {
    network: [u8; 2],
    last: Mutex<u16>,
}

impl Addresses {
    /// Addresses of `a.b.0.0/16`; the first ten are kept for the platform itself.
    pub(crate) fn new(network: [u8; 2]) -> Self {
        Self { network, last: Mutex::new(10) }
    }

    /// An address that no service has.
    pub(crate) fn take(&self, store: &Store<Object>) -> ApiResult<String> {
        let services = store.table("services").list("", None, usize::MAX, |_| true);
        let used: std::collections::HashSet<String> = services
            .entries
            .iter()
            .filter_map(|(_, entry)| entry.record.value().pointer("/spec/clusterIP")?.as_str().map(str::to_string))
            .collect();
        let mut last = self.last.lock();
        for _ in 0..u16::MAX {
            *last = if *last >= 0xfffe { 11 } else { *last + 1 };
            let [high, low] = last.to_be_bytes();
            let address = Ipv4Addr::new(self.network[0], self.network[1], high, low).to_string();
            if !used.contains(&address) {
                return Ok(address);
            }
        }
        Err(ApiError::internal_error("no address for a service is left"))
    }
}
