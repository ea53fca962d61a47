//! Clients: they send requests over connections in memory, through the gateway's own HTTP, and judge the answers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use gateway::Gateway;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::io::duplex;
use tokio::time::{Instant, sleep, timeout};

use crate::checks::Checks;
use crate::dice::Dice;
use crate::network::{SENT, TAG, WORK};
use crate::note;
use crate::trace::Trace;
use crate::users::{App, TAGS, Users};

/// Bytes that a connection holds in each direction.
const BUFFER: usize = 8 * 1024;
/// Time that an answer may take beyond the limits that the gateway sets.
const MARGIN: Duration = Duration::from_secs(10);
/// Time after which the platform must have recovered from the last fault or change.
pub const RECOVERY: Duration = Duration::from_secs(150);

/// All clients.
pub struct Traffic {
    gateway: Arc<Gateway>,
    users: Arc<Users>,
    checks: Arc<Checks>,
    trace: Arc<Trace>,
    dice: Dice,
    /// Since when there are no faults.
    calm: parking_lot::Mutex<Option<Instant>>,
    waiting: Vec<AtomicUsize>,
    sent: AtomicUsize,
    failed: AtomicUsize,
}

/// How a request ended.
enum Ended {
    Answered(StatusCode, String),
    Broken(String),
    Unanswered,
}

impl Traffic {
    /// Clients of the users' apps.
    pub fn new(
        gateway: Arc<Gateway>,
        users: Arc<Users>,
        checks: Arc<Checks>,
        trace: Arc<Trace>,
        dice: Dice,
    ) -> Arc<Self> {
        let waiting = users.apps().iter().map(|_| AtomicUsize::new(0)).collect();
        let (calm, sent, failed) =
            (parking_lot::Mutex::new(Some(Instant::now())), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { gateway, users, checks, trace, dice, calm, waiting, sent, failed })
    }

    /// Says whether faults are about to begin, or have ended.
    pub fn set_calm(&self, calm: bool) {
        *self.calm.lock() = calm.then(Instant::now);
        self.checks.set_calm(calm);
    }

    /// Requests sent, and those of them that were refused or broken off.
    pub fn counts(&self) -> (usize, usize) {
        (self.sent.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// Requests that have no answer yet.
    pub fn waiting(&self) -> usize {
        self.waiting.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Sends bursts to one app, with pauses, until `end`.
    pub async fn run(self: Arc<Self>, index: usize, end: Instant) {
        loop {
            let pause = if self.dice.chance(300) { self.dice.seconds(500..1_500) } else { self.dice.seconds(30..420) };
            sleep(pause).await;
            if Instant::now() >= end {
                return;
            }
            // In calm times what is sent can be served within any app's limits: then nothing may be refused.
            let calm = self.calm.lock().is_some();
            let crowd = self.dice.chance(100) && !calm;
            let count = if crowd { self.dice.between(8..20) } else { self.dice.between(1..5) };
            let gap = *self.dice.pick(&[0, 10, 200]);
            let works = if calm { &[100, 5_000, 500_000] } else { &[100, 50_000, 4_000_000] };
            let work = *self.dice.pick(works);
            let limit = u64::try_from(self.users.app(index).timeout.as_micros()).unwrap_or(u64::MAX);
            for _ in 0..count {
                // Some of a crowd take so long that their pods are in surplus before they end.
                let work =
                    if crowd && self.dice.chance(250) { limit * 3 / 8..limit * 7 / 8 } else { work / 2..work * 2 };
                let work = Duration::from_micros(self.dice.between(work));
                tokio::spawn(self.clone().send(index, work));
                sleep(Duration::from_millis(gap)).await;
            }
        }
    }

    /// Sends one request and judges its end; the answer's text if a pod gave it.
    pub async fn send(self: Arc<Self>, index: usize, work: Duration) -> Option<String> {
        let app = self.users.app(index);
        let sent = Instant::now();
        self.waiting[index].fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        let limit = app.timeout * 2 + MARGIN;
        // A tag in the header leads to its Revision; one that nobody knows changes nothing.
        let tag = if self.dice.chance(100) { *self.dice.pick::<&str>(&TAGS) } else { "" };
        let ended = timeout(limit, self.exchange(app.host(), tag, work)).await.unwrap_or(Ended::Unanswered);
        self.waiting[index].fetch_sub(1, Ordering::Relaxed);
        let text = match &ended {
            Ended::Answered(status, text) => format!("{} {text}", status.as_u16()),
            Ended::Broken(why) => format!("broken: {why}"),
            Ended::Unanswered => "unanswered".to_owned(),
        };
        note!(self.trace, "request to {} after {:?}: {text}", app.host(), sent.elapsed());
        match ended {
            Ended::Answered(StatusCode::OK, text) => {
                if !text.starts_with(&format!("{}-", app.name)) {
                    self.checks.breach(format!("{} was answered by {text:?}", app.host()));
                }
                self.users.answered(index, sent);
                Some(text)
            }
            other => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                if let Some(why) = self.objection(index, &app, sent, &other) {
                    self.checks.breach(format!("{} was sent a request: {text}, and {why}", app.host()));
                }
                None
            }
        }
    }

    /// Sends a short request for any host, with a tag in its header if there is one; the answer's status and text.
    pub async fn ask(&self, host: &str, tag: &str) -> String {
        let limit = Duration::from_secs(120);
        let exchange = self.exchange(host.to_owned(), tag, Duration::from_millis(1));
        let text = match timeout(limit, exchange).await.unwrap_or(Ended::Unanswered) {
            Ended::Answered(status, text) => format!("{} {text}", status.as_u16()),
            Ended::Broken(why) => format!("broken: {why}"),
            Ended::Unanswered => "unanswered".to_owned(),
        };
        note!(self.trace, "request to {host} {tag}: {text}");
        text
    }

    /// Why no rule allows that a request ended like this.
    fn objection(&self, index: usize, before: &App, sent: Instant, ended: &Ended) -> Option<String> {
        let now = self.users.app(index);
        let recovered = |since: Instant| since + RECOVERY < sent;
        let calm = self.calm.lock().is_some_and(recovered) && recovered(now.changed);
        let broke = self.checks.last_broke(before.namespace, &before.name).is_some_and(|last| last >= sent);
        let established = before.established.is_some() && now.established == before.established;
        match ended {
            Ended::Unanswered => Some("no rule leaves one unanswered".to_owned()),
            Ended::Broken(_) => Some("the gateway never breaks a client's connection".to_owned()),
            Ended::Answered(status, _) => match status.as_u16() {
                404 if established => Some("the service was there all the time".to_owned()),
                503 if established && !self.is_crowded(index) => Some("nothing was in the way".to_owned()),
                502 if !broke && !before.crashes => Some("no pod broke".to_owned()),
                404 | 502 | 503 | 504 if calm && now.wanted => Some("all has been well for a while".to_owned()),
                404 | 502 | 503 | 504 => None,
                _ => Some("the gateway has no such answer".to_owned()),
            },
        }
    }

    fn is_crowded(&self, index: usize) -> bool {
        self.waiting[index].load(Ordering::Relaxed) >= crate::world::QUEUE_LIMIT
    }

    async fn exchange(&self, host: String, tag: &str, work: Duration) -> Ended {
        let (near, far) = duplex(BUFFER);
        let gateway = self.gateway.clone();
        let peer = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 9), 40_000));
        tokio::spawn(async move { gateway.serve(far, peer).await });
        let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(near)).await {
            Ok(pair) => pair,
            Err(error) => return Ended::Broken(error.to_string()),
        };
        tokio::spawn(async move { drop(connection.await) });
        let sent = self.trace.start().elapsed().as_micros().to_string();
        let work = work.as_micros().to_string();
        let mut request = Request::get("/").header("host", host).header(WORK, work).header(SENT, sent);
        if !tag.is_empty() {
            request = request.header(TAG, tag);
        }
        let request = request.body(Empty::<Bytes>::new()).expect("the request's parts are valid");
        match sender.send_request(request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                match body.collect().await {
                    Ok(body) => Ended::Answered(head.status, String::from_utf8_lossy(&body.to_bytes()).into_owned()),
                    Err(error) => Ended::Broken(error.to_string()),
                }
            }
            Err(error) => Ended::Broken(error.to_string()),
        }
    }
}
