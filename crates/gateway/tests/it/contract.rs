//! What a workload may rely on in a request, and what no client can make it believe.

use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use serde_json::json;
use std::sync::atomic::Ordering;

use crate::seeded;
use crate::world::{PODS, REVISIONS, Workload, World, bytes, full, pod, request, revision, send, text, until};

/// Answers with the request's head, one field a line.
async fn head(request: Request<Incoming>) -> http::Response<crate::world::Body> {
    let mut lines = vec![format!("{} {}", request.method(), request.uri())];
    for (name, value) in request.headers() {
        lines.push(format!("{name}: {}", value.to_str().unwrap()));
    }
    lines.sort();
    full(lines.join("\n"))
}

#[tokio::test]
async fn the_platforms_own_headers_are_the_platforms() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(171, 0, head).await;
    world.service("edge", workload.port, json!({})).await;
    world.api.put(PODS, pod("edge-1", "p", Some(workload.ip)));
    let lies = "K-Proxy-Request: activator\r\nK-Original-Host: lie\r\nK-Kubelet-Probe: queue\r\n\
        K-Network-Hash: override\r\nKnative-Serving-Revision: other-1\r\nKnative-Serving-Namespace: other\r\n\
        Knative-Serving-Default-Route: true\r\n";
    let ask = format!("GET /x HTTP/1.1\r\nhost: edge.ns.localhost\r\nconnection: close\r\n{lies}K-Own: kept\r\n\r\n");
    let answer = bytes(world.public, &ask).await;
    let seen: Vec<&str> = answer.split("\r\n\r\n").nth(1).unwrap().lines().collect();
    assert!(seen.contains(&"k-own: kept") && seen.contains(&"host: edge.ns.localhost"), "{seen:?}");
    let reserved = |line: &&&str| line.starts_with("k-") || line.starts_with("knative-");
    assert_eq!(seen.iter().filter(reserved).collect::<Vec<_>>(), [&"k-own: kept"], "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn probes_are_no_requests() {
    let world = World::start(seeded(1)).await;
    let workload = Workload::start(172, 0, head).await;
    let probe = json!({"httpGet": {"path": "/ready", "port": workload.port}});
    let mut object = revision("probed-1", workload.port, json!({}));
    object["spec"]["containers"][0]["readinessProbe"] = probe;
    world.api.put(REVISIONS, object);
    let traffic = json!([{"revisionName": "probed-1", "percent": 100}]);
    world.route("probed", 1, traffic, json!({})).await;
    // Whether the host is routed: answered here, at zero as well.
    let mut asked = request("GET", "probed.ns.localhost", "/", "");
    asked.headers_mut().insert("k-network-probe", "queue".parse().unwrap());
    let answer = send(world.public, asked.clone()).await;
    assert_eq!((answer.status().as_u16(), text(answer).await), (200, String::new()));
    let mut nowhere = request("GET", "nowhere.ns.localhost", "/", "");
    nowhere.headers_mut().insert("k-network-probe", "queue".parse().unwrap());
    assert_eq!(send(world.public, nowhere).await.status(), 404);
    assert_eq!(world.autoscaler.pokes.load(Ordering::SeqCst), 0, "it wakes nothing");
    // The gateway's own probes.
    world.api.put(PODS, pod("probed-1", "p", Some(workload.ip)));
    let id = base::RevisionId::new("ns", "probed-1");
    until(|| world.gateway.ready_and_waiting(&id) == (1, 0)).await;
    assert!(workload.served.load(Ordering::SeqCst) > 0);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(world.autoscaler.stats.lock().len(), 0, "no second saw a request");
    assert!(world.gateway.metrics().contains("kn_serving_invocation_duration_seconds_count"), "its series is there");
    assert!(!world.gateway.metrics().contains("class=\"2xx\""), "{}", world.gateway.metrics());
    // A request shows that they would have been.
    assert_eq!(world.get("probed.ns.localhost").await.0, 200);
    until(|| !world.autoscaler.stats.lock().is_empty()).await;
}
