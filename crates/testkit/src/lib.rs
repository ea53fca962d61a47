//! The whole control plane and the gateway on one thread, with a virtual clock, seeded faults and invariants that are
//! checked at every step. For tests only: nothing depends on it.
//!
//! | Part | Is |
//! |---|---|
//! | API server, store (in memory), serving, functions, autoscaler, link, cluster controllers, gateway | the real code |
//! | [`nodes`], [`network`], [`traffic`], [`images`] | simulated: pods, connections, clients, registry |
//! | [`users`], [`domains`], [`settings`] | simulated: people |
//! | [`wire`] | between each client and the API server: delays, refusals, lost answers, cut watches, crashes |
//! | [`checks`] | the invariants |
//! | [`os`] | the thread's clock and randomness |
//! | [`plots`] | pictures of the autoscaler at work |
//!
//! One process runs one seed: the same seed gives the same trace, to the last line. `simulate` starts such processes.

pub mod checks;
pub mod dice;
pub mod domains;
mod garbage;
pub mod images;
pub mod network;
pub mod nodes;
pub mod os;
pub mod plots;
mod routes;
pub mod settings;
pub mod trace;
pub mod traffic;
pub mod users;
pub mod wire;
pub mod world;
