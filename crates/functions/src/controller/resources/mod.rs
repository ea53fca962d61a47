//! Makers of the objects that the controller writes.

pub mod service;
