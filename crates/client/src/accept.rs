//! The loop that takes connections, for every server of the platform.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// Pause after an error of `accept`, such as too many open files, which does not go away by trying at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves each connection of `listener` in a task of its own, until `stop`; those that are open then go on. There are at
/// most as many as there are `places`; more wait in the kernel's queue.
pub async fn accept<F>(
    listener: TcpListener,
    places: Arc<Semaphore>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (place, listener.accept().await)
        };
        let Some((place, accepted)) = stop.run_until_cancelled(next).await else { return };
        match accepted {
            Ok((stream, peer)) => {
                // Only latency is at stake.
                let _ = stream.set_nodelay(true);
                let served = serve(stream, peer);
                tasks.spawn(async move {
                    served.await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn one_more_than_there_are_places_waits_and_a_stop_lets_the_open_ones_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, stop, places) = (TaskTracker::new(), CancellationToken::new(), Arc::new(Semaphore::new(1)));
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (owned, ending, free) = (tasks.clone(), stop.clone(), places.clone());
        let accepting = tokio::spawn(async move {
            let serve = |mut stream: TcpStream, peer| {
                begun.send(peer).unwrap();
                async move {
                    stream.read_to_end(&mut Vec::new()).await.unwrap();
                }
            };
            accept(listener, free, &owned, &ending, serve).await;
        });
        let first = TcpStream::connect(address).await.unwrap();
        let second = TcpStream::connect(address).await.unwrap();
        assert_eq!(begins.recv().await, Some(first.local_addr().unwrap()));
        assert_eq!(places.available_permits(), 0);
        assert!(begins.try_recv().is_err(), "the second waits for a place");
        drop(first);
        assert_eq!(begins.recv().await, Some(second.local_addr().unwrap()));
        stop.cancel();
        accepting.await.unwrap();
        tasks.close();
        assert_eq!(tasks.len(), 1, "what is open goes on");
        drop(second);
        tasks.wait().await;
        assert_eq!(places.available_permits(), 1);
    }
}
