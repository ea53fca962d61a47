//! `client::link` between processes: an HTTP/2 stream with mutual TLS, from each gateway to the controller that holds
//! the Lease `colibri-system/colibri-controller`.
//!
//! The gateway finds the controller's address on the Lease, opens one POST, and both sides write lines of JSON into its
//! two bodies ([`wire`]). [`dial`] is the gateway's side, [`serve`] the controller's.
//!
//! When the stream breaks, the gateway looks at the Lease again, and on the new stream says first what the new
//! controller cannot know: reports that nobody has acknowledged, a poke for each revision where requests wait, and
//! instances that are out of rotation for a controller that is gone. Requests wait in the gateway meanwhile.

pub mod dial;
pub mod serve;
#[cfg(test)]
mod tests;
pub mod wire;

/// Name of the Lease that controllers compete for.
pub const LEASE: &str = "colibri-controller";
/// Annotation of the Lease with `host:port` of its holder's link.
pub const ADDRESS: &str = "link.colibri.dev/address";
/// Path of the link; it changes when the lines do.
pub const PATH: &str = "/colibri/link/v1";
/// Header that names the gateway.
pub const GATEWAY_HEADER: &str = "x-colibri-gateway";
