//! The data plane: one hop from a client to an instance, with the queue, the limits and the numbers of serverless in it.
//!
//! Inputs are API objects only: Routes give hosts and shares, DomainMappings and claims further hosts, Revisions limits,
//! timeouts, port and probe, Pods with the label `serving.knative.dev/revision` and an address are instances. Everything
//! else it knows it counts itself.
//!
//! | Part | Kind |
//! |---|---|
//! | [`routes`], [`affinity`], [`throttle`], [`instance`], [`meter`], [`settings`], [`headers`], [`wire`], [`timing`], [`stage`],
//! [`answer`], [`cause`], [`trace`], [`spans`] | pure |
//! | [`revision`], [`fleet`], [`probe`], [`clients`] | shell around them |
//! | [`metrics`], [`record`], [`telemetry`], [`access_log`], [`export`], [`outbox`] | what is told of requests |
//! | [`proxy`], [`early`], [`upstream`], [`transport`], [`body`], [`tunnel`], [`guard`], [`listen`], [`certificates`] | sockets |
//!
//! Invariants:
//! - an instance never has more requests than `containerConcurrency`;
//! - a body is never held as a whole, and none of it is read before an instance has the request;
//! - no lock is shared by two revisions on a request's way, and none is held across an `.await`, except while the
//!   one HTTP/2 connection to an instance is made; the access log and traces, where they are on, take one for a copy;
//! - a slot is given back exactly once, however the request ends.

pub mod access_log;
pub mod affinity;
pub mod answer;
pub mod body;
pub mod cause;
pub mod certificates;
pub mod clients;
pub mod config;
pub mod early;
pub mod export;
pub mod fleet;
pub mod gateway;
pub mod guard;
pub mod headers;
pub mod instance;
pub mod listen;
pub mod meter;
pub mod metrics;
pub mod outbox;
pub mod probe;
pub mod proxy;
pub mod random;
pub mod record;
pub mod revision;
pub mod routes;
pub mod settings;
pub mod spans;
pub mod stage;
pub mod telemetry;
pub mod throttle;
pub mod timing;
pub mod trace;
pub mod transport;
pub mod tunnel;
pub mod upstream;
pub mod wire;

pub use body::ResponseBody;
pub use config::Config;
pub use gateway::Gateway;
pub use listen::{Listener, ListenerKind};
pub use proxy::HostHandler;
pub use transport::Dialer;
