//! Between a role's client and the API server: what a network and a loaded server do.
//!
//! Every request takes some time. While faults are on, some are refused, some answers get lost after the request was
//! carried out, some writes meet a conflict, watches lag and are cut. A role that crashed gets no answer any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use apiserver::body::{self, Body, BoxError, Response};
use apiserver::{ApiServer, User};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::dice::Dice;
use crate::note;
use crate::trace::Trace;
use crate::world::Sabotage;

/// The API server, and whether faults are on.
pub struct Wire {
    server: Arc<ApiServer>,
    trace: Arc<Trace>,
    faults: AtomicBool,
    seed: u64,
    clients: AtomicU64,
    sabotage: Option<Sabotage>,
    /// Writes of roles other than nodes and users, since the start.
    writes: AtomicU64,
    /// The statuses of Routes that were written, by path: for a wire that is broken on purpose.
    statuses: Mutex<BTreeMap<String, Vec<Value>>>,
}

/// Who speaks over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Users and their tools: no faults, so that what they want is known.
    User,
    /// The observer that checks the invariants: no faults and no delay.
    Observer,
    /// Controllers.
    Controllers,
    /// The gateway.
    Gateway,
    /// The API server's own admission, which follows the ConfigMaps.
    Admission,
    /// Nodes.
    Node,
}

/// What happens to one request.
struct Fate {
    before: Duration,
    after: Duration,
    refusal: Option<StatusCode>,
    lost: bool,
}

impl Wire {
    /// A wire to `server`, without faults at first.
    pub fn new(server: Arc<ApiServer>, trace: Arc<Trace>, seed: u64, sabotage: Option<Sabotage>) -> Arc<Self> {
        let (faults, clients, writes) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { server, trace, faults, seed, clients, sabotage, writes, statuses: Mutex::default() })
    }

    /// Turns faults on or off.
    pub fn set_faults(&self, on: bool) {
        self.faults.store(on, Ordering::Relaxed);
        note!(self.trace, "faults {}", if on { "on" } else { "off" });
    }

    /// Whether faults are on.
    pub fn has_faults(&self) -> bool {
        self.faults.load(Ordering::Relaxed)
    }

    /// Writes of controllers and gateway so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// A client for `role`; once `crashed` is cancelled it gets no answers.
    pub fn client(self: &Arc<Self>, role: Role, crashed: CancellationToken) -> Client {
        let number = self.clients.fetch_add(1, Ordering::Relaxed);
        let dice = Dice::new(self.seed, &format!("wire {role:?} {number}"));
        let wire = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (wire, dice, crashed) = (wire.clone(), dice.clone(), crashed.clone());
            let answer: BoxFuture<'static, Result<Response, BoxError>> = Box::pin(async move {
                let token = crashed.clone();
                match token.run_until_cancelled(wire.carry(role, dice, crashed, request)).await {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            });
            answer
        });
        Client::new(service, "default")
    }

    async fn carry(
        self: Arc<Self>,
        role: Role,
        dice: Dice,
        crashed: CancellationToken,
        request: Request<kube::client::Body>,
    ) -> Result<Response, BoxError> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().is_some_and(|query| query.contains("watch="));
        let fate = self.fate(role, &dice, &method, watch);
        if !fate.before.is_zero() {
            sleep(fate.before).await;
        }
        if let Some(code) = fate.refusal {
            note!(self.trace, "{role:?} {method} {path}: {code} by fault");
            return Ok(refusal(code));
        }
        let keep = self.sabotage == Some(Sabotage::KeepGarbage) && role == Role::Controllers;
        if keep && method == Method::DELETE && !path.contains("/pods/") {
            return Ok(answer(StatusCode::OK, &json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})));
        }
        let mut request = request.map(|body| body.map_err(|error| Box::new(error) as BoxError).boxed_unsync());
        request.headers_mut().insert(client::WITHOUT_MANAGED_FIELDS, HeaderValue::from_static("true"));
        let request = if self.sabotage.is_some() { self.mend(role, &path, request).await? } else { request };
        let request = if role == Role::Controllers { self.spoil(&path, request).await? } else { request };
        let mut response = self.server.handle(User::master("system:colibri"), request).await;
        let code = response.status();
        if method != Method::GET {
            note!(self.trace, "{role:?} {method} {path}: {}", code.as_u16());
            let counts = matches!(role, Role::Controllers | Role::Gateway);
            self.writes.fetch_add(u64::from(counts), Ordering::Relaxed);
        }
        if !fate.after.is_zero() {
            sleep(fate.after).await;
        }
        if fate.lost {
            note!(self.trace, "{role:?} {method} {path}: the answer gets lost");
            return Err("the connection was reset".into());
        }
        if watch && role != Role::Observer && code.is_success() {
            response = response.map(|body| self.watched(role, dice, crashed, path, body));
        } else if !watch && self.sabotage.is_some() && method == Method::GET {
            response = self.forge_whole(role, &path, response).await;
        }
        Ok(response)
    }

    fn fate(&self, role: Role, dice: &Dice, method: &Method, watch: bool) -> Fate {
        let mut fate = Fate { before: Duration::ZERO, after: Duration::ZERO, refusal: None, lost: false };
        if role == Role::Observer {
            return fate;
        }
        fate.before = Duration::from_micros(dice.between(100..1_000));
        if role == Role::User || !self.has_faults() {
            return fate;
        }
        let write = *method != Method::GET;
        if dice.chance(20) {
            fate.before += dice.millis(10..3_000);
        }
        if dice.chance(15) {
            let codes = [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE];
            fate.refusal = Some(*dice.pick(&codes));
        } else if write && [Method::PUT, Method::PATCH].contains(method) && dice.chance(15) {
            fate.refusal = Some(StatusCode::CONFLICT);
        } else if write && dice.chance(15) {
            fate.after = dice.millis(1..500);
            fate.lost = true;
        } else if !watch && dice.chance(10) {
            fate.after = dice.millis(10..1_000);
        }
        fate
    }

    /// A watch's body, late and cut while faults are on.
    fn watched(self: &Arc<Self>, role: Role, dice: Dice, crashed: CancellationToken, path: String, body: Body) -> Body {
        let cut = (self.has_faults() && dice.chance(300)).then(|| Instant::now() + dice.seconds(1..120));
        let slow = self.has_faults() && dice.chance(150);
        let state = Watched { wire: self.clone(), role, dice, crashed, path, body, cut, slow };
        body::stream(futures::stream::unfold(state, |mut state| async move {
            let chunk = state.next().await?;
            Some((chunk, state))
        }))
    }

    /// What a broken component was shown must not be what it writes.
    async fn mend(
        &self,
        role: Role,
        path: &str,
        request: apiserver::body::Request,
    ) -> Result<apiserver::body::Request, BoxError> {
        let (head, body) = request.into_parts();
        let mut text = String::from_utf8(body.collect().await?.to_bytes().into())?;
        for (from, to) in self.forgeries(role, path) {
            text = text.replace(to, from);
        }
        Ok(Request::from_parts(head, body::full(text)))
    }

    /// A write of the controllers as it arrives over a wire that is broken on purpose.
    async fn spoil(&self, path: &str, request: apiserver::body::Request) -> Result<apiserver::body::Request, BoxError> {
        if self.sabotage == Some(Sabotage::CollectUsed)
            && request.method() == Method::DELETE
            && path.contains("/revisions/")
        {
            let (mut head, _) = request.into_parts();
            head.uri = the_next(path).parse()?;
            return Ok(Request::from_parts(head, body::empty()));
        }
        let is_status = request.method() == Method::PUT && path.contains("/routes/") && path.ends_with("/status");
        if !is_status || !matches!(self.sabotage, Some(Sabotage::LoseShare | Sabotage::StaleRoutes)) {
            return Ok(request);
        }
        let (head, body) = request.into_parts();
        let mut object: Value = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        let status = &mut object["status"];
        if self.sabotage == Some(Sabotage::LoseShare) {
            for target in status["traffic"].as_array_mut().into_iter().flatten().filter(|one| one["percent"] == 1) {
                target["percent"] = 0.into();
            }
        } else {
            let mut all = self.statuses.lock();
            let written = all.entry(path.to_owned()).or_default();
            written.push(status.clone());
            if written.len().is_multiple_of(5) {
                *status = written[written.len() - 3].clone();
            }
        }
        Ok(Request::from_parts(head, body::full(object.to_string())))
    }

    async fn forge_whole(&self, role: Role, path: &str, response: Response) -> Response {
        let (head, body) = response.into_parts();
        match body.collect().await {
            Ok(bytes) => Response::from_parts(head, body::full(self.forge(role, path, bytes.to_bytes()))),
            Err(_) => Response::from_parts(head, body::empty()),
        }
    }

    /// Texts that a broken component reads as others.
    fn forgeries(&self, role: Role, path: &str) -> &'static [(&'static str, &'static str)] {
        let (of_maps, of_routes) = (path.contains("/configmaps"), path.contains("/routes"));
        match (self.sabotage, role) {
            (Some(Sabotage::IgnoreConcurrency), Role::Gateway) => &[("\"containerConcurrency\":", "\"forged\":")],
            // Of Revisions alone: the PodAutoscalers are made from them, and all else is as it should be.
            (Some(Sabotage::IgnoreMaxScale), Role::Controllers) if path.contains("/revisions") => {
                &[("\"autoscaling.knative.dev/max-scale\":", "\"forged\":")]
            }
            (Some(Sabotage::ForgeClaims), Role::Gateway) if path.contains("/clusterdomainclaims") => {
                &[("\"spec\":{\"namespace\":\"blue\"}", "\"spec\":{\"namespace\":\"green\"}")]
            }
            (Some(Sabotage::MistakeTags), Role::Gateway) if of_routes => {
                &[("\"tag\":\"stable\"", "\"tag\":\"canary\""), ("//stable-", "//canary-")]
            }
            (Some(Sabotage::JumpRollouts), Role::Controllers) if of_routes || of_maps => {
                &[("rollout-duration\":", "rollout-forged\":")]
            }
            (Some(Sabotage::IgnoreGc), Role::Controllers) if of_maps => {
                &[("\"max-non-active-revisions\":", "\"forged\":"), ("\"retain-since-", "\"forged-since-")]
            }
            (Some(Sabotage::IgnoreSettings), Role::Controllers) if of_maps => {
                &[("\"max-scale\":", "\"forged\":"), ("\"min-scale\":", "\"forged too\":")]
            }
            _ => &[],
        }
    }

    /// What a broken component believes to read.
    fn forge(&self, role: Role, path: &str, bytes: Bytes) -> Bytes {
        let forgeries = self.forgeries(role, path);
        match std::str::from_utf8(&bytes) {
            Ok(text) if !forgeries.is_empty() => {
                forgeries.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to)).into()
            }
            _ => bytes,
        }
    }
}

/// The path of the Revision that was made after the one of that path.
fn the_next(path: &str) -> String {
    let (start, number) = path.rsplit_once('-').unwrap_or((path, ""));
    format!("{start}-{:05}", number.parse::<u32>().unwrap_or_default() + 1)
}

struct Watched {
    wire: Arc<Wire>,
    role: Role,
    dice: Dice,
    crashed: CancellationToken,
    path: String,
    body: Body,
    cut: Option<Instant>,
    slow: bool,
}

impl Watched {
    async fn next(&mut self) -> Option<Result<Bytes, BoxError>> {
        loop {
            let never = Instant::now() + Duration::from_secs(86_400);
            let frame = tokio::select! {
                biased;
                () = self.crashed.cancelled() => std::future::pending().await,
                () = sleep_until(self.cut.unwrap_or(never)), if self.cut.is_some() => {
                    note!(self.wire.trace, "{:?} watch of {}: cut", self.role, self.path);
                    let clean = self.dice.chance(500);
                    self.cut = None;
                    return (!clean).then(|| Err("the connection was reset".into()));
                }
                frame = self.body.frame() => frame?,
            };
            let Ok(data) = frame.map(http_body::Frame::into_data) else { return None };
            let Ok(bytes) = data else { continue };
            if self.wire.has_faults() {
                let lag = if self.slow { self.dice.millis(0..2_000) } else { self.dice.millis(0..20) };
                sleep(lag).await;
            }
            return Some(Ok(self.wire.forge(self.role, &self.path, bytes)));
        }
    }
}

fn refusal(code: StatusCode) -> Response {
    let reason = match code {
        StatusCode::CONFLICT => "Conflict",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "simulated fault", "reason": reason, "code": code.as_u16(),
    });
    answer(code, &status)
}

fn answer(code: StatusCode, value: &Value) -> Response {
    let mut response = Response::new(body::full(value.to_string()));
    *response.status_mut() = code;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}
