//! What clients may do, as the ConfigMap `config-gateway` says now, and how many connections each of them has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use api::config::Gateway as Limits;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// The clients of one gateway.
pub struct Clients {
    limits: ArcSwap<Limits>,
    places: Arc<Semaphore>,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection of a client, counted until dropped.
pub struct Counted<'c> {
    clients: &'c Clients,
    client: IpAddr,
}

impl Clients {
    /// No client yet; `places` has as many permits as `limits` says that there may be connections.
    pub fn new(limits: Limits, places: Arc<Semaphore>) -> Self {
        Self { limits: ArcSwap::from_pointee(limits), places, connections: Mutex::default() }
    }

    /// What clients may do now.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.load_full()
    }

    /// Most bytes of a request's body.
    pub fn body_limit_bytes(&self) -> Option<u64> {
        self.limits.load().body_bytes
    }

    /// How often a request is sent again.
    pub fn retries(&self) -> u32 {
        self.limits.load().retries
    }

    /// Takes over other limits; those of open connections stay, but for their number.
    pub fn set_limits(&self, limits: Limits) {
        let before = self.limits.swap(Arc::new(limits.clone())).connections;
        self.places.add_permits(limits.connections.saturating_sub(before));
        let fewer = u32::try_from(before.saturating_sub(limits.connections)).unwrap_or(u32::MAX);
        if fewer > 0 {
            let places = self.places.clone();
            // Those that are taken go as their connections end.
            tokio::spawn(async move { places.acquire_many_owned(fewer).await.map(|places| places.forget()) });
        }
    }

    /// Counts a connection; `None` where its client has too many.
    pub fn count(&self, address: IpAddr) -> Option<Counted<'_>> {
        let client = client_of(address);
        let limit = self.limits.load().connections_per_client;
        let mut connections = self.connections.lock();
        let count = connections.entry(client).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        drop(connections);
        Some(Counted { clients: self, client })
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let mut connections = self.clients.connections.lock();
        if let Some(count) = connections.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.client);
            }
        }
    }
}

/// Whose address that is: who has one IPv6 address has its whole /64.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(connections: usize, per_client: usize) -> Clients {
        let limits = Limits { connections, connections_per_client: per_client, ..Limits::default() };
        Clients::new(limits, Arc::new(Semaphore::new(connections)))
    }

    #[test]
    fn a_client_is_an_address_or_its_network() {
        let clients = clients(10, 2);
        let count = |address: &str| clients.count(address.parse().unwrap());
        let first = count("192.0.2.1");
        let second = count("::ffff:192.0.2.1");
        assert!(first.is_some() && second.is_some() && count("192.0.2.1").is_none() && count("192.0.2.2").is_some());
        drop(first);
        assert!(count("192.0.2.1").is_some());
        let network = [count("2001:db8::1"), count("2001:db8::2:0:0:1")];
        assert!(network.iter().all(Option::is_some) && count("2001:db8::3").is_none());
        assert!(count("2001:db8:0:1::").is_some());
        drop((second, network));
        assert!(clients.connections.lock().is_empty(), "who has no connection is forgotten");
    }

    #[tokio::test]
    async fn the_number_of_connections_follows_the_settings() {
        let clients = clients(3, 1);
        let taken = clients.places.clone().acquire_many_owned(2).await.unwrap();
        clients.set_limits(Limits { connections: 5, ..Limits::default() });
        assert_eq!(clients.places.available_permits(), 3);
        clients.set_limits(Limits { connections: 1, ..Limits::default() });
        tokio::task::yield_now().await;
        assert_eq!(clients.places.available_permits(), 0);
        drop(taken);
        tokio::task::yield_now().await;
        assert_eq!(clients.places.available_permits(), 1);
    }
}
