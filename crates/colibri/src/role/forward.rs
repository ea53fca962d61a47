//! Passes connections of the pod network on to the gateway and the API server, which listen elsewhere.

use std::sync::Arc;
use std::time::Duration;

use client::accept::accept;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

/// Connections at a time; more wait in the kernel's queue.
const CONNECTIONS: usize = 4096;
/// Time until the other side takes a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Copies bytes between each connection of `listener` and one to `target` (`host:port`), until `stop`.
pub async fn forward(listener: TcpListener, target: String, tasks: TaskTracker, stop: CancellationToken) {
    accept(listener, Arc::new(Semaphore::new(CONNECTIONS)), &tasks, &stop, |near, _| {
        let passing = stop.clone().run_until_cancelled_owned(pass_on(near, target.clone()));
        async move {
            passing.await;
        }
    })
    .await;
}

async fn pass_on(mut near: TcpStream, target: String) {
    let far = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(&target)).await;
    let Ok(Ok(mut far)) = far else {
        debug!(target, "a connection of the pod network cannot be passed on");
        return;
    };
    // Only latency is at stake.
    let _ = far.set_nodelay(true);
    // A connection that breaks ends for both.
    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_go_both_ways_and_ends_are_passed_on() {
        let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (target, address) = (far.local_addr().unwrap().to_string(), near.local_addr().unwrap());
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(forward(near, target, tasks.clone(), stop.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut server, _) = far.accept().await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut text = String::new();
        server.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        stop.cancel();
        tasks.close();
        tasks.wait().await;
    }
}
