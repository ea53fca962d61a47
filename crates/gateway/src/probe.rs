//! Probes an instance until it is ready.
//!
//! Every 2 ms in the first second, then every 10 ms, after half a minute every 100 ms. With many probes at once each
//! is made less often, so that all of them together stay under some 10,000 a second.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::body::RequestBody;
use crate::revision::{Revision, Shared};
use crate::settings::{Probe, Protocol, Settings};
use crate::throttle::Key;
use crate::upstream::{Upstream, drive_until};

const SHARE: Duration = Duration::from_micros(100);

/// Probes until the instance is ready or no longer starting.
pub async fn until_ready(revision: Arc<Revision>, shared: Arc<Shared>, key: Key, upstream: Arc<Upstream>) {
    shared.probes.fetch_add(1, Ordering::Relaxed);
    let started = Instant::now();
    loop {
        if !revision.is_starting(key) {
            upstream.probing.store(false, Ordering::Relaxed);
            // It may have come to need one in between.
            revision.probe_starting();
            break;
        }
        let age = started.elapsed();
        let settings = revision.settings.load_full();
        if let Some(settings) = settings
            && once(&shared, &settings, &upstream, attempt_limit(age)).await
        {
            revision.probed(key, &upstream);
            break;
        }
        let crowd = u32::try_from(shared.probes.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let mut pause = interval(pause(age).max(SHARE.saturating_mul(crowd)));
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pause.tick().await;
        pause.tick().await;
    }
    shared.probes.fetch_sub(1, Ordering::Relaxed);
}

fn pause(age: Duration) -> Duration {
    match age.as_secs() {
        0 => Duration::from_millis(2),
        1..30 => Duration::from_millis(10),
        _ => Duration::from_millis(100),
    }
}

/// A connection attempt that got lost while the address came up must not cost a TCP retransmission's second.
fn attempt_limit(age: Duration) -> Duration {
    if age < Duration::from_secs(1) { Duration::from_millis(100) } else { Duration::from_secs(1) }
}

async fn once(shared: &Shared, settings: &Settings, upstream: &Arc<Upstream>, limit: Duration) -> bool {
    match &settings.probe {
        Probe::Node if !upstream.is_node_ready() => false,
        Probe::Node => connects(shared, settings, upstream, settings.port, limit).await,
        Probe::Tcp { port } => connects(shared, settings, upstream, *port, limit).await,
        Probe::Http { port, path, host, headers } => {
            let mut request = Request::builder().uri(path.as_str()).header(header::USER_AGENT, "kube-probe/colibri");
            let address = upstream.ip().map(|ip| std::net::SocketAddr::new(ip, *port).to_string());
            request = request.header(header::HOST, host.clone().or(address).unwrap_or_default());
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let Ok(request) = request.body(RequestBody::empty()) else {
                return false;
            };
            let answered = answers(shared, settings, upstream, *port, request, limit);
            timeout(limit, answered).await.unwrap_or(false)
        }
    }
}

/// Whether the port takes a connection; the connection is kept for the first request.
async fn connects(shared: &Shared, settings: &Settings, upstream: &Upstream, port: u16, limit: Duration) -> bool {
    let Ok(stream) = upstream.dial(port, limit).await else {
        return false;
    };
    if port == settings.port
        && settings.protocol == Protocol::Http1
        && let Ok(connection) = upstream.http1_over(port, stream).await
    {
        upstream.keep(connection, &shared.pool);
    }
    true
}

async fn answers(
    shared: &Shared,
    settings: &Settings,
    upstream: &Arc<Upstream>,
    port: u16,
    request: Request<RequestBody>,
    limit: Duration,
) -> bool {
    if settings.protocol == Protocol::H2c && port == settings.port {
        return answers_h2c(shared, upstream, port, request, limit).await;
    }
    let Ok(mut connection) = upstream.http1(port, limit).await else {
        return false;
    };
    let response = connection.sender.send_request(request);
    let Ok(response) = drive_until(&mut connection, response).await else {
        return false;
    };
    let ready = is_success(response.status());
    let body: Result<http_body_util::Collected<Bytes>, _> = {
        let body = http_body_util::Limited::new(response.into_body(), 64 * 1024).collect();
        drive_until(&mut connection, body).await
    };
    if ready && body.is_ok() && port == settings.port {
        upstream.keep(connection, &shared.pool);
    }
    ready
}

async fn answers_h2c(
    shared: &Shared,
    upstream: &Arc<Upstream>,
    port: u16,
    mut request: Request<RequestBody>,
    limit: Duration,
) -> bool {
    let spawn = |task| {
        let abort = shared.abort.clone();
        shared.background.spawn(async move { abort.run_until_cancelled(task).await });
    };
    let Ok((mut sender, _)) = upstream.http2(port, limit, spawn).await else {
        return false;
    };
    crate::headers::to_http2(&mut request);
    matches!(sender.send_request(request).await, Ok(response) if is_success(response.status()))
}

/// Source: Kubernetes, HTTP probes: 200 to 399 is success.
fn is_success(status: http::StatusCode) -> bool {
    (200..400).contains(&status.as_u16())
}
