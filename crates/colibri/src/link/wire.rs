//! Lines of JSON, in both directions.

use base::{MappingId, PodId, RevisionId, RouteId};
use bytes::{Bytes, BytesMut};
use client::https::{Body, BoxError};
use client::link::Stat;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest line.
const LINE_LIMIT_BYTES: usize = 4 << 20;

/// What the gateway says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum FromGateway {
    /// One second's statistics. Numbers of one gateway rise; each is acknowledged.
    Report { number: u64, stats: Vec<SecondOf> },
    /// A request waits and no instance can take it.
    Poke { revision: Name, load: usize },
    /// Requests in flight and waiting have changed since the last line that told them.
    Load { revision: Name, load: usize },
    /// Answers [`ToGateway::Programmed`] and [`ToGateway::Mapped`].
    Programmed { call: u64 },
    /// Answers [`ToGateway::Retire`] and [`ToGateway::RetirePods`].
    Retired { call: u64, pods: Vec<Name> },
    /// Instances that a controller before this one asked to retire are drained.
    Released { pods: Vec<Name> },
}

/// What the controller says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum ToGateway {
    /// The report of that number is recorded, and all before it.
    Recorded { number: u64 },
    /// Answer once that generation of the Route is served.
    Programmed { call: u64, route: Name, generation: i64 },
    /// Answer once the domain is served as the mapping's status of that generation says.
    Mapped { call: u64, mapping: Name, generation: i64 },
    /// Take so many instances out of rotation and answer once they are drained.
    Retire { call: u64, revision: Name, count: usize, drain_timeout_ms: u64 },
    /// Take these instances, which another gateway chose, out of rotation and answer once they are drained.
    RetirePods { call: u64, revision: Name, pods: Vec<Name>, drain_timeout_ms: u64 },
    /// Nobody waits for that answer any more.
    Cancel { call: u64 },
}

/// One second of one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecondOf {
    /// The revision.
    pub revision: Name,
    /// Average of requests in flight and waiting.
    pub concurrency: f64,
    /// Requests that arrived.
    pub requests: f64,
    /// Requests in flight and waiting at the second's end.
    pub load: usize,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Name(String, String);

macro_rules! names {
    ($($id:ident),*) => {$(
        impl From<&$id> for Name {
            fn from(id: &$id) -> Self {
                Self(id.namespace.to_string(), id.name.to_string())
            }
        }

        impl From<&Name> for $id {
            fn from(name: &Name) -> Self {
                Self::new(&name.0, &name.1)
            }
        }
    )*};
}
names!(RevisionId, RouteId, MappingId, PodId);

impl SecondOf {
    /// A gateway's statistics and load.
    pub fn new(stat: &Stat, load: usize) -> Self {
        Self { revision: (&stat.revision).into(), concurrency: stat.concurrency, requests: stat.requests, load }
    }

    /// Without the load.
    pub fn stat(&self) -> Stat {
        Stat { revision: (&self.revision).into(), concurrency: self.concurrency, requests: self.requests }
    }
}

/// One line.
pub fn line(message: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(message).expect("a message has no map with keys that are not text");
    text.push(b'\n');
    text.into()
}

/// The lines of a body.
pub struct Lines {
    body: Body,
    pending: BytesMut,
}

impl Lines {
    /// The lines of `body`.
    pub fn new(body: Body) -> Self {
        Self { body, pending: BytesMut::new() }
    }

    /// The next line; `None` at the body's end.
    ///
    /// # Errors
    ///
    /// When the body breaks off, or a line is too long or none of ours.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BoxError> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line = self.pending.split_to(end + 1);
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.pending.len() > LINE_LIMIT_BYTES {
                return Err(format!("a line is longer than {LINE_LIMIT_BYTES} bytes").into());
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
