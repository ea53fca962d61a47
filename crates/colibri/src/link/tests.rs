//! Both sides over real sockets and certificates, with a real API server for the Lease.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, Authority, User};
use base::{MappingId, PodId, RevisionId, RouteId};
use client::https::{self, client_tls, names, server_tls};
use client::lease::{self, LeaseConfig};
use client::link::{AutoscalerLink, GatewayLink, Late, Stat};
use futures::FutureExt;
use futures::future::BoxFuture;
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::{Dialer, LocalGateway, Way};
use super::serve::{Gateways, Hub};
use super::{ADDRESS, GATEWAY_HEADER, LEASE, PATH};

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// What a controller was told.
#[derive(Clone, Debug, PartialEq)]
enum Told {
    Report(String, f64),
    Poke(String),
    Released(String),
}

struct Autoscaler(mpsc::UnboundedSender<Told>);

impl AutoscalerLink for Autoscaler {
    fn report(&self, stats: &[Stat]) {
        for stat in stats {
            let _ = self.0.send(Told::Report(stat.revision.to_string(), stat.concurrency));
        }
    }

    fn poke(&self, revision: &RevisionId) {
        let _ = self.0.send(Told::Poke(revision.to_string()));
    }

    fn released(&self, pods: &[PodId]) {
        for pod in pods {
            let _ = self.0.send(Told::Released(pod.to_string()));
        }
    }
}

/// A gateway whose instances drain when the test says so.
#[derive(Default)]
struct Instances {
    loads: Mutex<BTreeMap<RevisionId, (usize, bool)>>,
    pods: Mutex<VecDeque<PodId>>,
    asked: Mutex<usize>,
    drained: Arc<Notify>,
}

impl GatewayLink for Instances {
    fn programmed(&self, route: RouteId, _generation: i64) -> BoxFuture<'static, ()> {
        if &*route.name == "never" { std::future::pending().boxed() } else { std::future::ready(()).boxed() }
    }

    fn mapped(&self, mapping: MappingId, _generation: i64) -> BoxFuture<'static, ()> {
        if &*mapping.name == "never.com" { std::future::pending().boxed() } else { std::future::ready(()).boxed() }
    }

    fn retire(&self, _revision: RevisionId, count: usize, _limit: Duration) -> BoxFuture<'static, Vec<PodId>> {
        *self.asked.lock() += count;
        let pods: Vec<PodId> = self.pods.lock().drain(..count).collect();
        let drained = self.drained.clone();
        async move {
            drained.notified().await;
            pods
        }
        .boxed()
    }

    fn load(&self, revision: &RevisionId) -> usize {
        self.loads.lock().get(revision).map_or(0, |(load, _)| *load)
    }
}

impl LocalGateway for Instances {
    fn loads(&self) -> Vec<(RevisionId, usize, bool)> {
        self.loads.lock().iter().map(|(id, (load, waits))| (id.clone(), *load, *waits)).collect()
    }

    fn retire_pods(&self, _revision: RevisionId, _pods: Vec<PodId>, _limit: Duration) -> BoxFuture<'static, ()> {
        std::future::ready(()).boxed()
    }
}

/// An API server in memory, whose authority signs for both sides.
struct World {
    server: Arc<ApiServer>,
    client: kube::Client,
}

impl World {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = ApiServer::open(apiserver::Config::default()).await.unwrap();
        let client = server.client(User::master("test"));
        let name = serde_json::json!({"metadata": {"name": api::SYSTEM_NAMESPACE}});
        let namespace: Namespace = serde_json::from_value(name).unwrap();
        Api::<Namespace>::all(client.clone()).create(&kube::api::PostParams::default(), &namespace).await.unwrap();
        Self { server, client }
    }

    fn authority(&self) -> &Authority {
        self.server.pki().authority()
    }

    fn lease(&self, holder: &str, address: &str) -> LeaseConfig {
        LeaseConfig {
            namespace: api::SYSTEM_NAMESPACE.to_owned(),
            name: LEASE.to_owned(),
            holder: holder.to_owned(),
            annotations: BTreeMap::from([(ADDRESS.to_owned(), address.to_owned())]),
            duration: Duration::from_secs(3),
        }
    }

    /// A controller that leads.
    async fn controller(&self, holder: &str) -> Controller {
        let (sender, told) = mpsc::unbounded_channel();
        let autoscaler = Late::<dyn AutoscalerLink>::new();
        autoscaler.set(Arc::new(Autoscaler(sender)));
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let hub = Hub::new(autoscaler, tasks.clone(), stop.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let identity = self.authority().identity(names::CONTROLLER, None, &[names::CONTROLLER.to_owned()]).unwrap();
        let tls = server_tls(identity, Some(self.authority().roots().unwrap())).unwrap();
        let answering = hub.clone();
        tasks.spawn(https::serve(listener, tls, tasks.clone(), stop.clone(), move |peer, request| {
            let answer = answering.handle(&peer, request);
            async move { answer }
        }));
        let held = lease::acquire(&self.client, self.lease(holder, &address), &stop).await.unwrap();
        Controller { hub: hub.clone(), gateways: Gateways(hub), told, address, stop, held }
    }

    fn gateway(&self, instances: &Arc<Instances>) -> Arc<Dialer> {
        let identity = self.authority().identity(names::GATEWAY, None, &[names::GATEWAY.to_owned()]).unwrap();
        let tls = client_tls(self.authority().roots().unwrap(), Some(identity)).unwrap();
        let dialer = Dialer::new("gateway-1".to_owned(), TaskTracker::new());
        let way = Way { client: self.client.clone(), tls };
        tokio::spawn(dialer.clone().run(instances.clone(), way, CancellationToken::new()));
        dialer
    }
}

struct Controller {
    hub: Arc<Hub>,
    gateways: Gateways,
    told: mpsc::UnboundedReceiver<Told>,
    address: String,
    stop: CancellationToken,
    held: lease::Held,
}

impl Controller {
    async fn linked(&self) {
        until(|| self.hub.gateways() == 1).await;
    }

    async fn next(&mut self) -> Told {
        timeout(SOON, self.told.recv()).await.unwrap().unwrap()
    }

    /// Ends as a process does that stops.
    async fn end(self) {
        self.stop.cancel();
        self.held.release().await;
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    timeout(SOON, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes to hold");
}

fn revision(name: &str) -> RevisionId {
    RevisionId::new("default", name)
}

fn stat(name: &str, concurrency: f64) -> Stat {
    Stat { revision: revision(name), concurrency, requests: 1.0 }
}

#[tokio::test(flavor = "multi_thread")]
async fn statistics_pokes_and_rotation_cross_the_wire() {
    let world = World::new().await;
    let mut controller = world.controller("a").await;
    let instances = Arc::new(Instances::default());
    let dialer = world.gateway(&instances);
    controller.linked().await;

    instances.loads.lock().insert(revision("r"), (7, true));
    dialer.poke(&revision("r"));
    assert_eq!(controller.next().await, Told::Poke("default/r".into()));
    assert_eq!(controller.gateways.load(&revision("r")), 7, "a poke tells the load");
    instances.loads.lock().insert(revision("r"), (200, true));
    until(|| controller.gateways.load(&revision("r")) == 200).await;
    dialer.report(&[stat("r", 1.5)]);
    assert_eq!(controller.next().await, Told::Report("default/r".into(), 1.5));
    instances.loads.lock().clear();
    dialer.report(&[stat("r", 0.0)]);
    assert_eq!(controller.next().await, Told::Report("default/r".into(), 0.0));
    assert_eq!(controller.gateways.load(&revision("r")), 0);

    let route = |name: &str| RouteId::new("default", name);
    timeout(SOON, controller.gateways.programmed(route("r"), 1)).await.unwrap();
    let never = controller.gateways.programmed(route("never"), 1);
    assert!(timeout(Duration::from_millis(100), never).await.is_err());
    let mapping = |name: &str| MappingId::new("default", name);
    timeout(SOON, controller.gateways.mapped(mapping("a.com"), 1)).await.unwrap();
    let never = controller.gateways.mapped(mapping("never.com"), 1);
    assert!(timeout(Duration::from_millis(100), never).await.is_err());

    instances.pods.lock().push_back(PodId::new("default", "p"));
    let retired = tokio::spawn(controller.gateways.retire(revision("r"), 1, SOON));
    until(|| *instances.asked.lock() == 1).await;
    instances.drained.notify_waiters();
    // The notification may come before the wait.
    instances.drained.notify_one();
    assert_eq!(timeout(SOON, retired).await.unwrap().unwrap(), [PodId::new("default", "p")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_controller_learns_what_the_one_before_left() {
    let world = World::new().await;
    let first = world.controller("a").await;
    let instances = Arc::new(Instances::default());
    let dialer = world.gateway(&instances);
    first.linked().await;
    for name in ["p1", "p2"] {
        instances.pods.lock().push_back(PodId::new("default", name));
    }
    let asked = tokio::spawn(first.gateways.retire(revision("r"), 1, SOON));
    until(|| *instances.asked.lock() == 1).await;
    first.end().await;
    asked.abort();
    until(|| !dialer.is_connected()).await;

    // Nobody leads: a request waits, a second passes.
    instances.loads.lock().insert(revision("held"), (1, true));
    dialer.poke(&revision("held"));
    dialer.report(&[stat("held", 1.0)]);

    let mut second = world.controller("b").await;
    assert_eq!(second.next().await, Told::Poke("default/held".into()), "a held request is poked for again");
    assert_eq!(second.next().await, Told::Report("default/held".into(), 1.0), "a report is kept");
    // What already drains is taken before another instance is.
    let retired = tokio::spawn(second.gateways.retire(revision("r"), 2, SOON));
    until(|| *instances.asked.lock() == 2).await;
    instances.drained.notify_waiters();
    instances.drained.notify_one();
    instances.drained.notify_one();
    let mut pods = timeout(SOON, async {
        while !retired.is_finished() {
            instances.drained.notify_one();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        retired.await.unwrap()
    })
    .await
    .unwrap();
    pods.sort();
    assert_eq!(pods, [PodId::new("default", "p1"), PodId::new("default", "p2")]);
    assert_eq!(*instances.asked.lock(), 2, "the one that drained was not asked for twice");

    // The second goes too; it may not have deleted what it was given.
    second.end().await;
    until(|| !dialer.is_connected()).await;
    let mut third = world.controller("c").await;
    assert_eq!(third.next().await, Told::Poke("default/held".into()));
    let mut released = vec![third.next().await, third.next().await];
    released.sort_by_key(|told| format!("{told:?}"));
    assert_eq!(released, [Told::Released("default/p1".into()), Told::Released("default/p2".into())]);
    // The report was acknowledged: it comes only once.
    dialer.report(&[stat("held", 2.0)]);
    assert_eq!(third.next().await, Told::Report("default/held".into(), 2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_gateways_are_let_in() {
    let world = World::new().await;
    let controller = world.controller("a").await;
    let roots = || world.authority().roots().unwrap();
    let ask = async |tls| {
        let request = Request::post(PATH).header(GATEWAY_HEADER, "x").body(https::full("")).unwrap();
        https::send(&controller.address, names::CONTROLLER, Arc::new(tls), request, SOON).await
    };
    // A user of the cluster, whose certificate the same authority signed.
    let user = world.authority().identity("jane", None, &["jane".to_owned()]).unwrap();
    let answer = ask(client_tls(roots(), Some(user)).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
    // Nobody at all, and somebody of another authority with the right name.
    assert!(ask(client_tls(roots(), None).unwrap()).await.is_err());
    let other = ApiServer::open(apiserver::Config::default()).await.unwrap();
    let forged = other.pki().authority().identity(names::GATEWAY, None, &[names::GATEWAY.to_owned()]).unwrap();
    assert!(ask(client_tls(roots(), Some(forged)).unwrap()).await.is_err());
    // A server that is no controller.
    let gateway = world.authority().identity(names::GATEWAY, None, &[names::GATEWAY.to_owned()]).unwrap();
    let tls = Arc::new(client_tls(roots(), Some(gateway)).unwrap());
    let request = || Request::post(PATH).body(https::full("")).unwrap();
    let wrong = https::send(&controller.address, names::NODE, tls.clone(), request(), SOON).await;
    assert!(wrong.is_err(), "the controller does not carry the node's name");
    assert_eq!(https::send(&controller.address, names::CONTROLLER, tls, request(), SOON).await.unwrap().status(), 400);
    assert_eq!(controller.hub.gateways(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_another_takes_over_when_it_dies() {
    let world = World::new().await;
    let stop = CancellationToken::new();
    let mut first = lease::acquire(&world.client, world.lease("a", "a:1"), &stop).await.unwrap();
    let waiting = {
        let (client, lease, stop) = (world.client.clone(), world.lease("b", "b:1"), stop.clone());
        tokio::spawn(async move { lease::acquire(&client, lease, &stop).await })
    };
    // Longer than the Lease's duration: renewals keep the other out.
    let renewing = CancellationToken::new();
    tokio::select! {
        () = first.keep(&renewing) => panic!("the lead was lost"),
        () = tokio::time::sleep(Duration::from_secs(5)) => {}
    }
    assert!(!waiting.is_finished());
    // It dies: no renewal, nothing given back.
    drop(first);
    let second = timeout(SOON, waiting).await.unwrap().unwrap().unwrap();
    // The first, were it only stuck, notices.
    let mut late = lease::acquire(&world.client, world.lease("b", "b:1"), &stop).await.unwrap();
    second.release().await;
    let third = timeout(SOON, lease::acquire(&world.client, world.lease("c", "c:1"), &stop)).await.unwrap().unwrap();
    timeout(SOON, late.keep(&stop)).await.expect("who has lost the lead stops");
    drop(third);
}
