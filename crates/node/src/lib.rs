//! Pods on this machine.

pub mod images;
pub mod network;
