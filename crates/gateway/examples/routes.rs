//! What a lookup and a change of a Route cost, by the number of Routes: `cargo run --release -p gateway --example routes`.

use std::hint::black_box;
use std::time::Instant;

use api::config::Network;
use base::RouteId;
use gateway::random::{Random, below};
use gateway::routes::{HOST_LIMIT_BYTES, Table, hosts_of, normalise};
use serde_json::json;

const LOOKUPS: u32 = 2_000_000;
const CHANGES: u32 = 20_000;

fn route(number: usize, revision: u32) -> api::serving::Route {
    let route = json!({"apiVersion": "serving.knative.dev/v1", "kind": "Route", "spec": {},
        "metadata": {"name": format!("app-{number}"), "namespace": "ns"},
        "status": {"url": format!("http://app-{number}.ns.localhost"),
            "traffic": [{"revisionName": format!("app-{number}-{revision}"), "percent": 100}]}});
    serde_json::from_value(route).expect("it is a Route")
}

#[expect(clippy::print_stdout, reason = "its result")]
fn main() {
    println!("| Routes | lookup, ns | change, us |\n|---|---|---|");
    for count in [20, 2_000, 20_000] {
        let table = Table::new(1);
        let settings = Network::default();
        for number in 0..count {
            let id = RouteId::new("ns", format!("app-{number}"));
            table.set(&id, &hosts_of(&route(number, 0), &settings), Clone::clone);
        }
        let random = Random::new(1);
        let hosts: Vec<String> =
            (0..4096).map(|_| format!("App-{}.ns.localhost:8080", below(random.next(), count))).collect();
        let start = Instant::now();
        for turn in 0..LOOKUPS as usize {
            let mut buffer = [0; HOST_LIMIT_BYTES];
            let host = normalise(hosts[turn % hosts.len()].as_bytes(), &mut buffer).expect("it is a host");
            black_box(table.get(host).expect("it is routed").inside.pick());
        }
        let lookup = start.elapsed() / LOOKUPS;
        let changes: Vec<_> = (0..CHANGES)
            .map(|turn| {
                let number = below(random.next(), count);
                (RouteId::new("ns", format!("app-{number}")), hosts_of(&route(number, turn + 1), &settings))
            })
            .collect();
        let start = Instant::now();
        for (id, claims) in &changes {
            table.set(id, claims, Clone::clone);
        }
        let change = start.elapsed() / CHANGES;
        println!("| {count} | {} | {:.1} |", lookup.as_nanos(), change.as_secs_f64() * 1e6);
    }
}
