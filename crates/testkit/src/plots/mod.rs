//! Plots of the autoscaler: one service under a known load, with the real control plane and gateway in virtual time.
//!
//! | Part | Is |
//! |---|---|
//! | [`scenario`] | the loads, and when each request is sent |
//! | [`stage`] | plays one against a world without faults, and looks at it |
//! | [`series`] | what was seen, as CSV and as a row of the page's table |
//! | [`chart`] | the picture of it |
//! | [`book`] | the files |
//!
//! The load follows from the scenario alone, the picture from the series alone: a test makes all of it again.

pub mod book;
pub mod chart;
pub mod scenario;
pub mod series;
pub mod stage;
