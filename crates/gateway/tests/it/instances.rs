//! Which instance gets a request, and which gets none for a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use base::RevisionId;
use bytes::Bytes;
use gateway::Config;
use http::{Request, StatusCode};
use http_body_util::Empty;
use serde_json::json;
use tokio::sync::Notify;

use crate::seeded;
use crate::world::{PODS, REVISIONS, Workload, World, full, http2, pod, revision, send, text, until};

/// A workload that answers with the status that is set, and its name.
async fn answering(ip: u8, port: u16, name: &'static str, status: &Arc<AtomicU16>) -> Workload {
    let status = status.clone();
    Workload::start(ip, port, move |_| {
        let status = StatusCode::from_u16(status.load(Ordering::SeqCst)).unwrap();
        async move {
            let mut response = full(name);
            *response.status_mut() = status;
            response
        }
    })
    .await
}

fn config() -> Config {
    let mut config = seeded(1);
    // The clock of these tests goes on whenever nothing is to be done.
    config.clients.ejection.time = Duration::from_secs(100_000);
    config.clients.ejection.max_time = Duration::from_secs(1_000_000);
    config
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_fails_is_left_alone_for_a_time() {
    let world = World::start(config()).await;
    let status = Arc::new(AtomicU16::new(503));
    let bad = answering(171, 0, "bad", &status).await;
    let good = answering(172, bad.port, "good", &Arc::new(AtomicU16::new(200))).await;
    world.service("two", bad.port, json!({})).await;
    world.api.put(PODS, pod("two-1", "a", Some(bad.ip)));
    world.api.put(PODS, pod("two-1", "b", Some(good.ip)));
    while world.get("two.ns.localhost").await.1 != "good" {}
    for _ in 0..200 {
        world.get("two.ns.localhost").await;
    }
    let failed = bad.served.load(Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(world.get("two.ns.localhost").await, (200, "good".to_owned()));
    }
    assert_eq!(bad.served.load(Ordering::SeqCst), failed, "it gets none");
    let count = |name: &str| {
        let metrics = world.gateway.metrics();
        metrics.lines().find(|line| line.starts_with(name)).unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!(count("gateway_ejections_total"), "1");
    until(|| count("gateway_ejected_instances") == "1.0").await;

    status.store(200, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    while world.get("two.ns.localhost").await.1 != "bad" {}
}

#[tokio::test(start_paused = true)]
async fn the_only_instance_and_those_that_all_fail_stay() {
    let world = World::start(config()).await;
    let status = Arc::new(AtomicU16::new(500));
    let one = answering(173, 0, "one", &status).await;
    let two = answering(174, one.port, "two", &status).await;
    world.service("all", one.port, json!({})).await;
    world.api.put(PODS, pod("all-1", "a", Some(one.ip)));
    for _ in 0..20 {
        assert_eq!(world.get("all.ns.localhost").await.0, 500);
    }
    world.api.put(PODS, pod("all-1", "b", Some(two.ip)));
    while world.get("all.ns.localhost").await.1 != "two" {}
    for _ in 0..100 {
        assert_eq!(world.get("all.ns.localhost").await.0, 500);
    }
    // Both get requests still.
    while world.get("all.ns.localhost").await.1 != "one" {}
    while world.get("all.ns.localhost").await.1 != "two" {}
}

#[tokio::test]
async fn a_flood_of_one_service_does_not_keep_another_one_waiting() {
    let world = World::start(Config { queue_limit: 2_000, ..seeded(1) }).await;
    world.service("flood", 1, json!({})).await;
    let calm = Workload::start(175, 0, |_| async { full("calm") }).await;
    world.service("calm", calm.port, json!({})).await;
    world.api.put(PODS, pod("calm-1", "p", Some(calm.ip)));
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let sender = http2(world.public).await;
        for _ in 0..250 {
            let mut sender = sender.clone();
            let request = Request::get("http://flood.ns.localhost/").body(Empty::<Bytes>::new()).unwrap();
            flood.spawn(async move {
                let response = sender.send_request(request).await.unwrap();
                (response.status().as_u16(), response.headers().contains_key("retry-after"))
            });
        }
    }
    // Those beyond the queue are told at once, and when to come again; the others wait.
    for _ in 0..500 {
        assert_eq!(flood.join_next().await.unwrap().unwrap(), (503, true));
    }
    assert_eq!(world.load("flood-1"), 2_000);
    for _ in 0..50 {
        assert_eq!(world.get("calm.ns.localhost").await, (200, "calm".to_owned()));
    }
    assert_eq!(world.load("flood-1"), 2_000);
    assert!(flood.try_join_next().is_none());
}

/// A Service whose clients stay where they were.
async fn sticky(world: &World, name: &str, port: u16) {
    let mut object = revision(&format!("{name}-1"), port, json!({"containerConcurrency": 1}));
    object["metadata"]["annotations"] = json!({"gateway.colibri.dev/session-affinity": "cookie"});
    world.api.put(REVISIONS, object);
    let traffic = json!([{"revisionName": format!("{name}-1"), "percent": 100}]);
    world.route(name, 1, traffic, json!({})).await;
}

/// Who answers a request with that cookie, and the cookie that it sets.
async fn visit(world: &World, name: &str, cookie: Option<&str>) -> (String, Option<String>) {
    let mut request = crate::world::request("GET", &format!("{name}.ns.localhost"), "/", "");
    if let Some(cookie) = cookie {
        request.headers_mut().insert("cookie", format!("theme=dark; {cookie}").parse().unwrap());
    }
    let response = send(world.public, request).await;
    let set = response.headers().get("set-cookie").map(|set| set.to_str().unwrap().to_owned());
    (text(response).await, set.map(|set| set.split(';').next().unwrap().to_owned()))
}

#[tokio::test]
async fn a_client_with_a_cookie_stays_with_its_instance_while_that_is_there() {
    let world = World::start(seeded(1)).await;
    let fine = Arc::new(AtomicU16::new(200));
    let one = answering(176, 0, "one", &fine).await;
    let two = answering(177, one.port, "two", &fine).await;
    let other = answering(178, one.port, "other", &fine).await;
    sticky(&world, "sticky", one.port).await;
    sticky(&world, "other", one.port).await;
    world.api.put(PODS, pod("other-1", "o", Some(other.ip)));
    world.api.put(PODS, pod("sticky-1", "a", Some(one.ip)));
    let (who, cookie) = visit(&world, "sticky", None).await;
    let cookie = cookie.unwrap();
    assert!(who == "one" && !cookie.contains("127."), "{who} {cookie}");
    world.api.put(PODS, pod("sticky-1", "b", Some(two.ip)));
    while visit(&world, "sticky", None).await.0 != "two" {}
    for _ in 0..20 {
        assert_eq!(visit(&world, "sticky", Some(&cookie)).await, ("one".to_owned(), None));
    }

    // What names an instance of another service names none here.
    let (_, strange) = visit(&world, "other", None).await;
    let strange = strange.unwrap();
    let forged = format!("{}={}", cookie.split('=').next().unwrap(), strange.split('=').nth(1).unwrap());
    for foreign in [&forged, &strange] {
        let (who, set) = visit(&world, "sticky", Some(foreign)).await;
        assert!(who != "other" && set.is_some_and(|set| set != *foreign), "{who}");
    }

    world.api.delete(PODS, "a");
    while visit(&world, "sticky", None).await.0 != "two" || world.gateway.instances(&sticky_id()) != 1 {}
    let (who, again) = visit(&world, "sticky", Some(&cookie)).await;
    assert!(who == "two" && again.as_ref().is_some_and(|again| *again != cookie), "{who} {again:?}");
    assert_eq!(visit(&world, "sticky", again.as_deref()).await, ("two".to_owned(), None));
}

#[tokio::test]
async fn a_client_whose_instance_is_busy_is_served_by_another_one_and_keeps_its_cookie() {
    let world = World::start(seeded(1)).await;
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let one = Workload::start(179, 0, move |request| {
        let held = held.clone();
        async move {
            if request.uri().path() == "/hold" {
                held.notified().await;
            }
            full("one")
        }
    })
    .await;
    let two = answering(180, one.port, "two", &Arc::new(AtomicU16::new(200))).await;
    sticky(&world, "sticky", one.port).await;
    world.api.put(PODS, pod("sticky-1", "a", Some(one.ip)));
    let cookie = visit(&world, "sticky", None).await.1.unwrap();
    let holding = tokio::spawn(send(world.public, crate::world::request("GET", "sticky.ns.localhost", "/hold", "")));
    until(|| one.now.load(Ordering::SeqCst) == 1).await;
    world.api.put(PODS, pod("sticky-1", "b", Some(two.ip)));
    assert_eq!(visit(&world, "sticky", Some(&cookie)).await, ("two".to_owned(), None));
    release.notify_waiters();
    assert_eq!(holding.await.unwrap().status(), 200);
    world.loaded("sticky-1", 0).await;
    assert_eq!(visit(&world, "sticky", Some(&cookie)).await, ("one".to_owned(), None));
}

fn sticky_id() -> RevisionId {
    RevisionId::new("ns", "sticky-1")
}
