//! The threads that change the kernel's network.
//!
//! One thread attaches pods: it enters their namespaces, which a thread of the async runtime must
//! not. Another removes links: the kernel takes milliseconds for that, so links that came together
//! go in one step, and nobody waits for it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tracing::warn;

use super::error::NetworkError;
use super::host::{self, Host};
use super::links::{self, PodLink};
use super::names;
use super::netlink::{Netlink, Refused, Request};
use super::{PodNetwork, netns};

/// Changes that may wait for a thread.
pub const MAX_WAITING: usize = 1024;
/// Links removed in one step at most.
const MAX_REMOVED_AT_ONCE: usize = 256;

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

/// Hands work to the attaching thread; dropping the last one ends it.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: SyncSender<Job>,
}

impl Handle {
    /// Runs `work` on the thread.
    ///
    /// # Errors
    ///
    /// Too much is waiting, the thread is gone, or what `work` answers.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, NetworkError> + Send + 'static,
    ) -> Result<T, NetworkError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            let _ = answer.send(work(worker));
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => NetworkError::Busy { limit: MAX_WAITING },
            TrySendError::Disconnected(_) => NetworkError::Stopped,
        })?;
        answered.await.map_err(|_| NetworkError::Stopped)?
    }
}

/// The attaching thread's own things.
#[derive(Debug)]
pub struct Worker {
    host: Host,
    home: OwnedFd,
    route: Netlink,
}

/// Starts the attaching thread in the caller's network namespace.
///
/// # Errors
///
/// No thread or socket could be made.
pub fn start(host: Host) -> Result<(Handle, JoinHandle<()>), NetworkError> {
    let fail = |source| NetworkError::from_io("start the network's thread", source);
    let mut worker = Worker { host, home: netns::current().map_err(fail)?, route: host::open_route()? };
    let (jobs, waiting) = sync_channel::<Job>(MAX_WAITING);
    let thread = std::thread::Builder::new()
        .name("network".to_owned())
        .spawn(move || waiting.into_iter().for_each(|job| job(&mut worker)))
        .map_err(fail)?;
    Ok((Handle { jobs }, thread))
}

impl Worker {
    /// Connects `netns` to the bridge as the pod at `offset`.
    ///
    /// # Errors
    ///
    /// The kernel refused; nothing of it is left then.
    pub fn attach(&mut self, netns: BorrowedFd<'_>, offset: u32) -> Result<PodNetwork, NetworkError> {
        let pod = pod_link(&self.host, offset);
        let requests = pod.host_requests(netns);
        let inside =
            self.route.run(&requests).map_err(NetworkError::from).and_then(|()| self.set_up_inside(&pod, netns));
        if let Err(error) = inside {
            let name = self.host.names.link(offset);
            let _ = self.route.run(&[links::delete_link(&name)]);
            return Err(error);
        }
        Ok(PodNetwork {
            address: pod.address,
            gateway: pod.gateway,
            hardware_address: names::hardware_address(pod.address),
            host_link: self.host.names.link(offset),
            mtu: pod.mtu,
        })
    }

    /// Makes a namespace and connects it.
    ///
    /// # Errors
    ///
    /// As [`Worker::attach`].
    pub fn make_attached(&mut self, offset: u32) -> Result<(OwnedFd, PodNetwork), NetworkError> {
        let made = netns::create(self.home.as_fd())
            .map_err(|source| NetworkError::from_io("make a network namespace", source))?;
        let network = self.attach(made.as_fd(), offset)?;
        Ok((made, network))
    }

    fn set_up_inside(&self, pod: &PodLink<'_>, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
        let mut socket = netns::inside(self.home.as_fd(), netns, Netlink::route)
            .map_err(|source| NetworkError::from_io("enter a pod's network namespace", source))?;
        let link = links::get_link(&mut socket, links::POD_LINK)?.index;
        socket.run(&pod.pod_requests(link))?;
        Ok(())
    }
}

/// The link of the pod at `offset`.
fn pod_link(host: &Host, offset: u32) -> PodLink<'_> {
    PodLink {
        names: &host.names,
        bridge: host.bridge,
        offset,
        address: host.pods.nth(offset).unwrap_or(Ipv4Addr::UNSPECIFIED),
        gateway: host.gateway,
        mtu: host.mtu,
    }
}

/// Starts the removing thread; `done` hears of each offset whose link is gone.
///
/// # Errors
///
/// No thread or socket could be made.
pub fn start_remover(
    host: Host,
    done: impl Fn(u32) + Send + 'static,
) -> Result<(SyncSender<u32>, JoinHandle<()>), NetworkError> {
    let mut route = host::open_route()?;
    let (offsets, waiting) = sync_channel::<u32>(4 * MAX_WAITING);
    let thread = std::thread::Builder::new()
        .name("network-remove".to_owned())
        .spawn(move || {
            while let Some(batch) = next_batch(&waiting) {
                if let Err(error) = remove(&mut route, &host, &batch) {
                    warn!(%error, source = %error.source, pods = batch.len(), "cannot remove links");
                }
                batch.into_iter().for_each(&done);
            }
        })
        .map_err(|source: io::Error| NetworkError::from_io("start the network's thread", source))?;
    Ok((offsets, thread))
}

fn next_batch(waiting: &Receiver<u32>) -> Option<Vec<u32>> {
    let mut batch = vec![waiting.recv().ok()?];
    batch.extend(waiting.try_iter().take(MAX_REMOVED_AT_ONCE - 1));
    Some(batch)
}

fn remove(route: &mut Netlink, host: &Host, offsets: &[u32]) -> Result<(), Refused> {
    let mut requests: Vec<Request> =
        offsets.iter().flat_map(|offset| pod_link(host, *offset).discard_requests()).collect();
    requests.push(links::delete_group(host.names.trash_group));
    route.run(&requests)
}
