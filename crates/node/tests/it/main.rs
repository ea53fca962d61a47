//! Tests that need root and a Linux host; without root each prints why it is skipped.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

mod fake_api;
mod pods;
mod sandbox;
