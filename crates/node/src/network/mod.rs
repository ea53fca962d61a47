//! The pod network of machine mode: addresses, links, rules, DNS, virtual addresses.
//!
//! A platform has one /20, one bridge, and its own nf_tables tables, all named after its data
//! directory, so platforms run side by side. A pod gets one IPv4 address of 32 bits on `eth0` and
//! the bridge as its gateway: whatever it sends passes the host's rules (see [`rules`]).
//!
//! Invariants:
//! - A pod's start changes no rule: the rules for all addresses stand before the first pod.
//! - No program is started; everything goes through netlink.
//! - Nothing is left after [`Network::stop`]; what a killed platform left, its next start removes.
//!
//! Surprises: pods have no IPv6 yet. Pods of all namespaces reach each other.

mod addresses;
mod cidr;
mod dns;
mod doctor;
mod error;
mod host;
mod links;
mod names;
mod netlink;
mod netns;
mod nft;
mod rules;
mod services;
mod worker;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use addresses::{Addresses, MAX_PODS};
use dns::{DnsServer, Upstreams};
use host::{Host, HostConfig};

pub use cidr::{Cidr, CidrError};
pub use dns::Resolve;
pub use doctor::{Check, Outcome, doctor};
pub use error::NetworkError;
pub use services::{MAX_BACKENDS, MAX_SERVICES, Protocol, VirtualIp};

/// How the pod network is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// The platform's data directory: names everything, holds the state file.
    pub data_dir: PathBuf,
    /// Addresses of pods that still run from before; their links are kept.
    pub live: Vec<Ipv4Addr>,
    /// Namespaces kept ready for [`Network::take`], at most 64; default 0.
    pub prepared: usize,
    /// Ranges that pods must not have, such as the Services'; default 10.96.0.0/12.
    pub avoid: Vec<Cidr>,
    /// TCP ports of the bridge address that pods may reach besides DNS; default 80 (the gateway)
    /// and 443 (the API server).
    pub open_ports: Vec<u16>,
    /// Domains whose names the platform answers; default `cluster.local`. The first is the
    /// cluster's.
    pub zones: Vec<String>,
    /// Resolvers for all other names; `None` (default): those of `/etc/resolv.conf`, followed as
    /// it changes.
    pub upstreams: Option<Vec<SocketAddr>>,
}

impl Config {
    /// The defaults for a data directory.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            live: Vec::new(),
            prepared: 0,
            avoid: vec![Cidr::new(Ipv4Addr::new(10, 96, 0, 0), 12)],
            open_ports: vec![80, 443],
            zones: vec!["cluster.local".to_owned()],
            upstreams: None,
        }
    }
}

/// A pod's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// The pod's address; give it back with [`Network::release`].
    pub address: Ipv4Addr,
    /// Its gateway and resolver: the bridge's address.
    pub gateway: Ipv4Addr,
    /// The hardware address of its `eth0`.
    pub hardware_address: [u8; 6],
    /// The host's end of its link.
    pub host_link: String,
    /// The largest packet.
    pub mtu: u32,
}

/// A namespace that is connected already.
#[derive(Debug)]
pub struct PreparedPod {
    /// The namespace; it lasts while a descriptor or a process holds it.
    pub netns: OwnedFd,
    /// Its connection.
    pub network: PodNetwork,
}

/// A running pod network. Clones are the same network.
#[derive(Clone, Debug)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: Host,
    data_dir: PathBuf,
    zone: String,
    addresses: Arc<Mutex<Addresses>>,
    threads: Mutex<Option<Threads>>,
    ready: Mutex<VecDeque<PreparedPod>>,
    wanted: usize,
    taken: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The threads and the ways to them; gone once the network is stopped.
#[derive(Debug)]
struct Threads {
    worker: worker::Handle,
    removals: SyncSender<u32>,
    joins: [JoinHandle<()>; 2],
}

impl Network {
    /// Makes the network and serves DNS on it until [`Network::stop`]; `stop` ends the tasks early.
    ///
    /// # Errors
    ///
    /// Whatever [`NetworkError`] names, each with its cure. What was made by then is removed.
    pub async fn start(
        config: Config,
        resolve: Arc<dyn Resolve>,
        stop: CancellationToken,
    ) -> Result<Self, NetworkError> {
        let upstreams = match config.upstreams {
            Some(servers) => Upstreams::Fixed(servers),
            None => Upstreams::file("/etc/resolv.conf"),
        };
        let mut avoid = config.avoid;
        avoid.extend(upstreams.servers(Ipv4Addr::UNSPECIFIED).iter().filter_map(|server| match server {
            SocketAddr::V4(server) => Some(Cidr::new(*server.ip(), 32)),
            SocketAddr::V6(_) => None,
        }));
        let host_config =
            HostConfig { data_dir: config.data_dir.clone(), live: config.live, avoid, open_ports: config.open_ports };
        let host = blocking(move || host::make(&host_config)).await?;
        let started = async {
            let address = SocketAddr::from((host.gateway, 53));
            let sockets =
                dns::bind(address).await.map_err(|source| NetworkError::Dns { address: host.gateway, source })?;
            let zone = config.zones.first().cloned().unwrap_or_else(|| "cluster.local".to_owned());
            let inner = Inner::new(&host, &config.data_dir, zone, config.prepared, &stop)?;
            let server = DnsServer::new(host.gateway, host.pods, config.zones, resolve, upstreams);
            dns::serve(Arc::new(server), sockets, &inner.tasks, inner.stop.clone());
            Ok(Arc::new(inner))
        };
        let inner = match started.await {
            Ok(inner) => inner,
            Err(error) => {
                if host.live.is_empty() {
                    let _ = blocking(move || host::unmake(&config.data_dir)).await;
                }
                return Err(error);
            }
        };
        if inner.wanted > 0 {
            inner.tasks.spawn(keep_ready(inner.clone()));
        }
        Ok(Self { inner })
    }

    /// The bridge's address: pods' gateway, resolver, and where the platform's own listeners for
    /// pods belong.
    pub fn gateway_address(&self) -> Ipv4Addr {
        self.inner.host.gateway
    }

    /// The pods' range.
    pub fn pod_range(&self) -> Cidr {
        self.inner.host.pods
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.inner.host.names.bridge
    }

    /// Whether that address belonged to a pod in [`Config::live`] whose link was found again.
    pub fn is_live(&self, address: Ipv4Addr) -> bool {
        self.inner.host.pods.offset_of(address).is_some_and(|offset| self.inner.host.live.contains(&offset))
    }

    /// Pods connected now, with the prepared ones.
    pub fn pods(&self) -> usize {
        self.inner.addresses.lock().used()
    }

    /// The `resolv.conf` of a pod in `namespace`.
    pub fn resolv_conf(&self, namespace: &str) -> String {
        dns::pod_resolv_conf(self.inner.host.gateway, namespace, &self.inner.zone)
    }

    /// Connects a network namespace: `eth0` with a fresh address, loopback, default route.
    ///
    /// # Errors
    ///
    /// No address is free, or the kernel refused; nothing is left of it then.
    pub async fn attach(&self, netns: OwnedFd) -> Result<PodNetwork, NetworkError> {
        let offset = self.inner.take_address()?;
        let attached = self.inner.worker()?.run(move |w| w.attach(netns.as_fd(), offset)).await;
        attached.inspect_err(|_| self.inner.give_back(offset))
    }

    /// Connects the network namespace of a process.
    ///
    /// # Errors
    ///
    /// As [`Network::attach`]; also when there is no such process.
    pub async fn attach_process(&self, pid: u32) -> Result<PodNetwork, NetworkError> {
        let netns = netns::of_process(pid)
            .map_err(|source| NetworkError::from_io("open a process's network namespace", source))?;
        self.attach(netns).await
    }

    /// A connected namespace: a prepared one if there is one, else made now.
    ///
    /// # Errors
    ///
    /// As [`Network::attach`].
    pub async fn take(&self) -> Result<PreparedPod, NetworkError> {
        let ready = self.inner.ready.lock().pop_front();
        self.inner.taken.notify_one();
        match ready {
            Some(pod) => Ok(pod),
            None => self.inner.prepare().await,
        }
    }

    /// Disconnects the pod with this address and gives the address back once its link is gone.
    /// Unknown addresses are ignored. Does not wait.
    pub fn release(&self, address: Ipv4Addr) {
        let inner = &self.inner;
        let Some(offset) = inner.host.pods.offset_of(address) else { return };
        let threads = inner.threads.lock();
        let Some(threads) = threads.as_ref() else { return };
        // The queue holds four times as many as there can be pods, so it is full only if the
        // kernel hangs; the link then goes at the end.
        if threads.removals.try_send(offset).is_err() {
            warn!(%address, "a pod's link is left until the platform stops");
        }
    }

    /// Replaces all virtual addresses.
    ///
    /// # Errors
    ///
    /// More than [`MAX_SERVICES`], or the kernel refused; then nothing has changed.
    pub async fn set_services(&self, services: Vec<VirtualIp>) -> Result<(), NetworkError> {
        if services.len() > MAX_SERVICES {
            let count = services.len();
            return Err(NetworkError::TooManyServices { count, limit: MAX_SERVICES });
        }
        let names = self.inner.host.names.clone();
        blocking(move || {
            let batch = services::service_rules(&names, &services);
            Ok(batch.commit(&mut host::open_netfilter()?)?)
        })
        .await
    }

    /// Takes everything down: links, bridge, tables, kernel settings, state file. May be called
    /// again.
    ///
    /// # Errors
    ///
    /// The kernel refused to remove something; the rest is gone.
    pub async fn stop(&self) -> Result<(), NetworkError> {
        let inner = &self.inner;
        self.halt().await;
        let data_dir = inner.data_dir.clone();
        blocking(move || host::unmake(&data_dir)).await
    }

    /// Ends DNS and the threads but leaves the pods connected, for a platform that is started
    /// again with their addresses as [`Config::live`].
    pub async fn detach_platform(&self) {
        self.halt().await;
    }

    async fn halt(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.tasks.close();
        inner.tasks.wait().await;
        let unused: Vec<PreparedPod> = inner.ready.lock().drain(..).collect();
        for pod in &unused {
            self.release(pod.network.address);
        }
        drop(unused);
        let threads = inner.threads.lock().take();
        if let Some(Threads { worker, removals, joins }) = threads {
            drop((worker, removals));
            let joined = tokio::task::spawn_blocking(|| joins.map(JoinHandle::join));
            if joined.await.is_ok_and(|all| all.iter().any(Result::is_err)) {
                warn!("a network thread had panicked");
            }
        }
    }
}

impl Inner {
    fn new(
        host: &Host,
        data_dir: &Path,
        zone: String,
        wanted: usize,
        stop: &CancellationToken,
    ) -> Result<Self, NetworkError> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let start = (seconds % u64::from(u32::MAX)) as u32;
        let addresses = Arc::new(Mutex::new(Addresses::new(host.pods, &host.live, start)));
        let (worker, attaching) = worker::start(host.clone())?;
        let given_back = addresses.clone();
        let done = move |offset| {
            given_back.lock().give_back(offset);
        };
        let (removals, removing) = worker::start_remover(host.clone(), done)?;
        Ok(Self {
            host: host.clone(),
            data_dir: data_dir.to_owned(),
            zone,
            addresses,
            threads: Mutex::new(Some(Threads { worker, removals, joins: [attaching, removing] })),
            ready: Mutex::new(VecDeque::new()),
            wanted: wanted.min(64),
            taken: Notify::new(),
            tasks: TaskTracker::new(),
            stop: stop.child_token(),
        })
    }

    fn worker(&self) -> Result<worker::Handle, NetworkError> {
        let threads = self.threads.lock();
        threads.as_ref().map(|t| t.worker.clone()).ok_or(NetworkError::Stopped)
    }

    fn take_address(&self) -> Result<u32, NetworkError> {
        self.addresses.lock().take().ok_or(NetworkError::Full { limit: MAX_PODS })
    }

    fn give_back(&self, offset: u32) {
        self.addresses.lock().give_back(offset);
    }

    async fn prepare(&self) -> Result<PreparedPod, NetworkError> {
        let offset = self.take_address()?;
        let made = self.worker()?.run(move |worker| worker.make_attached(offset)).await;
        made.map(|(netns, network)| PreparedPod { netns, network }).inspect_err(|_| self.give_back(offset))
    }
}

/// Keeps the wanted number of namespaces ready.
async fn keep_ready(inner: Arc<Inner>) {
    const PAUSE_AFTER_FAILURE: std::time::Duration = std::time::Duration::from_secs(1);
    while !inner.stop.is_cancelled() {
        if inner.ready.lock().len() >= inner.wanted {
            tokio::select! {
                () = inner.stop.cancelled() => return,
                () = inner.taken.notified() => continue,
            }
        }
        match inner.prepare().await {
            Ok(pod) => inner.ready.lock().push_back(pod),
            Err(error) => {
                warn!(%error, "cannot prepare a network namespace");
                tokio::select! {
                    () = inner.stop.cancelled() => return,
                    () = tokio::time::sleep(PAUSE_AFTER_FAILURE) => {}
                }
            }
        }
    }
}

/// Removes what a platform of this data directory left when it was killed, with all its pods'
/// links. A start with live addresses needs no such call.
///
/// # Errors
///
/// The kernel refused; the rest is gone.
pub fn cleanup_stale(data_dir: &Path) -> Result<(), NetworkError> {
    host::unmake(data_dir)
}

/// Links and tables of the platform of `data_dir` that exist now, by name.
///
/// # Errors
///
/// The kernel did not answer.
pub fn left_over(data_dir: &Path) -> Result<Vec<String>, NetworkError> {
    host::left_over(data_dir)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| NetworkError::Stopped)?
}
