//! The embedded Kubernetes API server.
//!
//! Invariants: built-in kinds and custom resources take the same path; a write is acknowledged when the store says
//! that it is durable; reads and watches never touch the disk.

pub mod kinds;
pub mod openapi;
pub mod quote;
pub mod resource;

pub use resource::{Column, Columns, Durability, FieldError, ListType, NameRule, ResourceDef, Strategy};
