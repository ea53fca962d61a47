//! Tests that need root and a Linux host; without root each prints why it is skipped.

mod fake_api;
mod pods;
mod sandbox;
