//! The life of one pod on this node.
//!
//! [`machine`] decides, [`worker`] does; [`spec`], [`env`], [`past`] and [`status`] are pure makers; [`prepare`] fetches
//! what a container needs; [`probe`] probes, [`listeners`] tells why nobody answers it.
//!
//! Invariants: one worker per pod uid; only it talks to the pod's supervisor; the machine reads no clock.

pub mod env;
pub mod listeners;
pub mod machine;
pub mod past;
pub mod prepare;
pub mod probe;
pub mod spec;
pub mod status;
pub mod worker;
