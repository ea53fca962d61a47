//! What attackers send, byte by byte, against a real gateway in front of a workload that shares no code with it.

mod http2;
mod limits;
mod smuggling;
mod spoofing;
mod upstream;

use std::net::SocketAddr;
use std::time::Duration;

use api::config::Gateway as ClientLimits;
use gateway::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::recorder::Recorder;
use crate::seeded;
use crate::world::{PODS, World, pod};

/// Far longer than anything takes here.
const LONG: Duration = Duration::from_secs(60);

/// A gateway with the host `attack.ns.localhost`, whose one instance is the recorder.
async fn attacked(recorder: &Recorder, clients: ClientLimits) -> World {
    let world = World::start(Config { clients, ..seeded(1) }).await;
    world.service("attack", recorder.port, json!({})).await;
    world.api.put(PODS, pod("attack-1", "p", Some(recorder.ip)));
    assert_eq!(world.get("attack.ns.localhost").await.0, 200);
    assert_eq!(recorder.take().len(), 1);
    world
}

/// Sends these bytes, and reads what comes back until the end.
async fn converse(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // Whoever is refused may find the connection closed before all is sent.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let ended = timeout(LONG, stream.read_to_end(&mut answer)).await;
    assert!(
        ended.is_ok(),
        "{:?} is left open after {:?}",
        bytes.escape_ascii().to_string(),
        String::from_utf8_lossy(&answer)
    );
    String::from_utf8_lossy(&answer).into_owned()
}
