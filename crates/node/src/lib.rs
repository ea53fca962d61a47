//! The node: pods' life cycle, their sandboxes, network and images.

pub mod sandbox;
