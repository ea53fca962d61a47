//! The whole network against the real kernel, as root.
//!
//! Each test plays the machine in a network namespace of its own, so the machine that runs the
//! tests is not changed, and tests run side by side.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio_util::sync::CancellationToken;

use super::names::Names;
use super::nft::{Family, list_tables};
use super::*;

/// Names that lead to the bridge.
struct ToBridge(Ipv4Addr);

impl Resolve for ToBridge {
    fn lookup(&self, name: &str) -> Option<Vec<IpAddr>> {
        (name == "hello.default.svc.cluster.local").then(|| vec![IpAddr::V4(self.0)])
    }
}

/// Runs `test` as root on a machine with one outside neighbour, all made of namespaces.
fn on_a_machine(test: impl FnOnce(Machine) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for network namespaces");
        return;
    }
    let thread = std::thread::spawn(move || {
        let first = netns::current().unwrap();
        let outside = netns::create(first.as_fd()).unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let machine = Machine { outside, home: netns::current().unwrap() };
        machine.connect_outside();
        test(machine);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The machine under test: the thread's own namespace, and a neighbour on its network.
struct Machine {
    outside: OwnedFd,
    home: OwnedFd,
}

const MACHINE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);

impl Machine {
    /// A link between machine and neighbour, addressed by the same requests as a pod's.
    fn connect_outside(&self) {
        let mut names = Names::new(Path::new("/"));
        names.link_prefix = "uplink-".to_owned();
        names.group = 0;
        let mut route = netlink::Netlink::route().unwrap();
        let link =
            links::PodLink { names: &names, bridge: 0, offset: 1, address: OUTSIDE, gateway: MACHINE, mtu: 1500 };
        route.run(&link.host_requests(self.outside.as_fd())[..1]).unwrap();
        let mut inside = netns::inside(self.home.as_fd(), self.outside.as_fd(), netlink::Netlink::route).unwrap();
        let far = links::get_link(&mut inside, "eth0").unwrap().index;
        let near = links::get_link(&mut route, "uplink-001").unwrap().index;
        let net = Cidr::new(MACHINE, 24);
        inside.run(&[links::start_link(far), links::address_bridge(far, OUTSIDE, net)]).unwrap();
        route.run(&[links::address_bridge(near, MACHINE, net), links::start_loopback()]).unwrap();
    }

    /// Starts a platform's network with its runtime on this thread's namespace.
    fn platform(&self, config: Config) -> Platform {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let data_dir = config.data_dir.clone();
        let resolve = Arc::new(ToBridge(Ipv4Addr::new(10, 200, 0, 1)));
        let network = runtime.block_on(Network::start(config, resolve, CancellationToken::new())).unwrap();
        Platform { runtime, network, data_dir }
    }

    fn inside<T>(&self, netns: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        netns::inside(self.home.as_fd(), netns, work)
    }
}

struct Platform {
    runtime: tokio::runtime::Runtime,
    network: Network,
    data_dir: PathBuf,
}

impl Platform {
    fn pod(&self) -> PreparedPod {
        self.runtime.block_on(self.network.take()).unwrap()
    }

    fn stop(self) {
        self.runtime.block_on(self.network.stop()).unwrap();
        self.runtime.block_on(self.network.stop()).unwrap();
        assert_eq!(left_over(&self.data_dir).unwrap(), Vec::<String>::new());
    }
}

fn config(directory: &Path) -> Config {
    Config { upstreams: Some(Vec::new()), ..Config::new(directory) }
}

/// A server that answers each connection with one byte.
fn serve(address: (Ipv4Addr, u16)) -> io::Result<u16> {
    let listener = TcpListener::bind(address)?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.and_then(|mut s| s.write_all(b"k"));
        }
    });
    Ok(port)
}

const NEVER: Duration = Duration::from_millis(300);

/// Whether a server answers at this address.
fn reaches(address: Ipv4Addr, port: u16) -> bool {
    let target = SocketAddr::from((address, port));
    let Ok(mut stream) = TcpStream::connect_timeout(&target, NEVER) else { return false };
    stream.set_read_timeout(Some(NEVER)).unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).is_ok()
}

fn ask(server: Ipv4Addr, name: &str) -> io::Result<Message> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(&message.to_vec().unwrap(), (server, 53))?;
    let mut buffer = [0; 2048];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(Message::from_vec(&buffer[..length]).unwrap())
}

#[test]
fn a_pod_reaches_dns_and_the_gateway_and_nothing_else_of_the_machine() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let gateway = platform.network.gateway_address();
        let pod = platform.pod();
        serve((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        let other = serve((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let loopback = serve((Ipv4Addr::LOCALHOST, 0)).unwrap();
        machine
            .inside(pod.netns.as_fd(), || {
                let answer = ask(gateway, "hello.default.svc.cluster.local.")?;
                assert_eq!(answer.answers.len(), 1);
                let answer = ask(gateway, "nobody.default.svc.cluster.local.")?;
                assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
                assert!(reaches(gateway, 80), "the gateway");
                assert!(!reaches(gateway, other), "another port of the bridge");
                assert!(!reaches(MACHINE, 80), "the machine's own address");
                assert!(!reaches(MACHINE, other), "the machine's own address, another port");
                assert!(!reaches(Ipv4Addr::LOCALHOST, loopback), "the machine's loopback");
                assert!(!reaches(Ipv4Addr::new(169, 254, 169, 254), 80), "link-local");
                Ok(())
            })
            .unwrap();
        assert!(reaches(MACHINE, other), "the test's server was there all the time");
        platform.stop();
    });
}

#[test]
fn pods_reach_outside_with_the_machines_address_and_outside_does_not_reach_pods() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let gateway = platform.network.gateway_address();
        let pod = platform.pod();
        let listener = machine.inside(machine.outside.as_fd(), || TcpListener::bind((OUTSIDE, 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = machine.inside(pod.netns.as_fd(), || TcpStream::connect((OUTSIDE, port))).unwrap();
        let (_, from) = listener.accept().unwrap();
        assert_eq!(from.ip(), IpAddr::V4(MACHINE), "the pod's address stays inside");
        drop(stream);

        let inner = machine.inside(pod.netns.as_fd(), || serve((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        serve((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        assert!(reaches(pod.network.address, inner), "the machine reaches the pod");
        // The neighbour routes the pods' range to this machine.
        machine
            .inside(machine.outside.as_fd(), || {
                let mut route = netlink::Netlink::route()?;
                let link = links::get_link(&mut route, "eth0").map_err(|e| e.source)?.index;
                route.run(&[links::default_route(link, MACHINE)]).map_err(|e| e.source)?;
                assert!(!reaches(pod.network.address, inner), "a neighbour reaches the pod");
                assert!(!reaches(gateway, 80), "a neighbour reaches the bridge address");
                assert!(ask(gateway, "hello.default.svc.cluster.local.").is_err());
                Ok(())
            })
            .unwrap();
        platform.stop();
    });
}

#[test]
fn a_pod_cannot_speak_for_another() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let (honest, liar) = (platform.pod(), platform.pod());
        let gateway = platform.network.gateway_address();
        // Pods reach each other, through the machine.
        let port = machine.inside(honest.netns.as_fd(), || serve((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        machine
            .inside(liar.netns.as_fd(), || {
                assert!(reaches(honest.network.address, port), "pod to pod");
                let mut route = netlink::Netlink::route()?;
                let link = links::get_link(&mut route, "eth0").map_err(|e| e.source)?.index;
                let stolen = Cidr::new(honest.network.address, 32);
                let requests = [links::address_bridge(link, honest.network.address, stolen)];
                route.run(&requests).map_err(|e| e.source)?;
                let socket = UdpSocket::bind((honest.network.address, 0))?;
                socket.set_read_timeout(Some(NEVER))?;
                let mut message = Message::query();
                let name = Name::from_ascii("hello.default.svc.cluster.local.").unwrap();
                message.add_query(Query::query(name, RecordType::A));
                socket.send_to(&message.to_vec().unwrap(), (gateway, 53))?;
                assert!(socket.recv_from(&mut [0; 512]).is_err(), "a forged question is answered");
                Ok(())
            })
            .unwrap();
        // The owner of the address is still reached, and not the liar.
        assert!(reaches(honest.network.address, port));
        let socket = machine.inside(honest.netns.as_fd(), || UdpSocket::bind((honest.network.address, 0))).unwrap();
        socket.set_read_timeout(Some(NEVER)).unwrap();
        assert!(socket.recv_from(&mut [0; 512]).is_err(), "the forged question's answer came here");
        platform.stop();
    });
}

#[test]
fn two_platforms_run_side_by_side_and_leave_nothing() {
    on_a_machine(|machine| {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let routes = || links::list_ranges(&mut netlink::Netlink::route().unwrap()).unwrap();
        let before = routes();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let forward = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        let first = machine.platform(config(one.path()));
        let second = machine.platform(config(two.path()));
        assert!(!first.network.pod_range().overlaps(&second.network.pod_range()));
        let (a, b) = (first.pod(), second.pod());
        let port = machine.inside(b.netns.as_fd(), || serve((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        machine
            .inside(a.netns.as_fd(), || {
                assert!(!reaches(b.network.address, port), "another platform's pod");
                Ok(())
            })
            .unwrap();
        first.stop();
        assert_eq!(forward().trim(), "1", "the second platform still forwards");
        assert!(reaches(b.network.address, port), "the second platform lost a pod");
        second.stop();
        assert_eq!(forward().trim(), "0", "forwarding is as before");
        assert_eq!(routes(), before);
        let mut socket = host::open_netfilter().unwrap();
        assert_eq!(list_tables(&mut socket, Family::Inet).unwrap(), Vec::<String>::new());
        assert_eq!(list_tables(&mut socket, Family::Bridge).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn a_restart_keeps_live_pods_and_removes_the_others() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let (alive, dead) = (platform.pod(), platform.pod());
        let range = platform.network.pod_range();
        platform.runtime.block_on(platform.network.detach_platform());
        drop(platform);
        let live = vec![alive.network.address];
        let platform = machine.platform(Config { live, ..config(directory.path()) });
        assert_eq!(platform.network.pod_range(), range);
        assert_eq!(platform.network.pods(), 1);
        let links = left_over(directory.path()).unwrap();
        assert!(links.contains(&alive.network.host_link), "{links:?}");
        assert!(!links.contains(&dead.network.host_link), "{links:?}");
        let gateway = platform.network.gateway_address();
        let asked = machine.inside(alive.netns.as_fd(), || ask(gateway, "hello.default.svc.cluster.local."));
        assert_eq!(asked.unwrap().answers.len(), 1);
        platform.stop();
    });
}

#[test]
fn what_a_killed_platform_left_is_removed_by_the_next_start() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let pod = platform.pod();
        platform.runtime.block_on(platform.network.detach_platform());
        drop(platform);
        let platform = machine.platform(config(directory.path()));
        let links = left_over(directory.path()).unwrap();
        assert!(!links.contains(&pod.network.host_link), "{links:?}");
        platform.stop();
        cleanup_stale(directory.path()).unwrap();
    });
}

#[test]
fn a_virtual_address_leads_to_its_backends() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(config(directory.path()));
        let (server, asker) = (platform.pod(), platform.pod());
        let port = machine.inside(server.netns.as_fd(), || serve((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        let ip = Ipv4Addr::new(10, 96, 7, 7);
        let backend = std::net::SocketAddrV4::new(server.network.address, port);
        let service = |port, backends| VirtualIp { ip, port, protocol: Protocol::Tcp, backends };
        let set = |services| {
            platform.runtime.block_on(platform.network.set_services(services)).unwrap();
        };
        set(vec![service(80, vec![backend]), service(81, vec![]), service(82, vec![backend; 3])]);
        let reached = |pod: &PreparedPod, port| machine.inside(pod.netns.as_fd(), || Ok(reaches(ip, port))).unwrap();
        assert!(reached(&asker, 80));
        assert!(reached(&asker, 82), "several backends");
        assert!(reached(&server, 80), "a pod by way of its own service");
        assert!(!reached(&asker, 81), "no backend");
        set(vec![]);
        assert!(!reached(&asker, 80), "the service is gone");
        platform.stop();
    });
}

#[test]
fn prepared_namespaces_are_taken_and_released_addresses_rest() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let platform = machine.platform(Config { prepared: 3, ..config(directory.path()) });
        let mut seen = std::collections::HashSet::new();
        for _ in 0..20 {
            let pod = platform.pod();
            assert!(seen.insert(pod.network.address), "{} again", pod.network.address);
            platform.network.release(pod.network.address);
        }
        platform.stop();
    });
}

#[test]
fn this_machine_passes_its_own_checks() {
    on_a_machine(|_| {
        let checks = doctor();
        let bad: Vec<&Check> = checks.iter().filter(|c| matches!(c.outcome, Outcome::Bad(_))).collect();
        assert!(bad.is_empty(), "{bad:?}");
    });
}

/// Figures, not a test: `cargo nextest run -p node --run-ignored only figures --no-capture`.
#[test]
#[ignore = "prints figures"]
fn figures() {
    on_a_machine(|machine| {
        let directory = tempfile::tempdir().unwrap();
        let begin = Instant::now();
        let platform = machine.platform(config(directory.path()));
        println!("start: {:?}", begin.elapsed());
        let attach = |count: usize| {
            let mut times = Vec::new();
            for _ in 0..count {
                let netns = netns::create(machine.home.as_fd()).unwrap();
                let kept = netns.try_clone().unwrap();
                let begin = Instant::now();
                let network = platform.runtime.block_on(platform.network.attach(netns)).unwrap();
                times.push((begin.elapsed(), network, kept));
            }
            times
        };
        let show = |what: &str, mut times: Vec<Duration>| {
            times.sort();
            println!(
                "{what}: p50 {:?} p99 {:?} of {}",
                times[times.len() / 2],
                times[times.len() * 99 / 100],
                times.len()
            );
        };
        let kept = attach(100);
        show("attach, pods kept", kept.iter().map(|(time, ..)| *time).collect());
        let mut times = Vec::new();
        for _ in 0..100 {
            let mut one = attach(1);
            let (time, network, netns) = one.remove(0);
            times.push(time);
            platform.network.release(network.address);
            drop(netns);
        }
        show("attach, each released at once", times);
        let begin = Instant::now();
        for (_, network, _) in &kept {
            platform.network.release(network.address);
        }
        while platform.network.pods() > 0 {
            std::thread::yield_now();
        }
        println!("release of the 100 and what was waiting: {:?}", begin.elapsed());
        let begin = Instant::now();
        platform.stop();
        println!("stop: {:?}", begin.elapsed());
    });
}
