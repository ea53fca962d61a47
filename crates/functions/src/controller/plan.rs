//! From what was observed to what is written. No I/O, no clock.

use std::time::Duration;

use api::functions::FunctionStatus;
use api::serving::Service;
use client::queue::Outcome;
use jiff::Timestamp;
use kube::ResourceExt;

use super::observe::{Observed, Source};
use super::resources::service;
use super::status;
use crate::fetch::Progress;

/// How soon an archive that is not there is looked for again: no event tells of an upload.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What to do with the Service.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceWrite {
    /// It is not there.
    Create(Box<Service>),
    /// It differs from what is wanted.
    Replace(Box<Service>),
}

/// Everything that is to be written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The Service.
    pub service: Option<ServiceWrite>,
    /// The Function's status, where it differs.
    pub status: Option<FunctionStatus>,
    /// When to look again.
    pub outcome: Outcome,
}

/// The plan for one Function.
pub fn plan(observed: &Observed, now: Timestamp) -> Plan {
    let status = status::status(observed, now);
    let changed = observed.function.status.as_ref() != Some(&status);
    let outcome = match &observed.source {
        Source::Missing { .. } => Outcome::After(LOOK_AGAIN),
        Source::Elsewhere { progress: Progress::Failed { again: Some(again), .. }, .. } => Outcome::After(*again),
        _ => Outcome::Done,
    };
    Plan { service: plan_service(observed), status: changed.then_some(status), outcome }
}

fn plan_service(observed: &Observed) -> Option<ServiceWrite> {
    let wanted = service::make(&observed.function, &observed.source.code()?);
    let Some(present) = &observed.service else { return Some(ServiceWrite::Create(Box::new(wanted))) };
    if !belongs(observed) || present.metadata.deletion_timestamp.is_some() || service::is_as_wanted(present, &wanted) {
        return None;
    }
    Some(ServiceWrite::Replace(Box::new(service::merge(present, wanted))))
}

/// Whether the Service of that name is controlled by this Function.
pub fn belongs(observed: &Observed) -> bool {
    let uid = observed.function.uid();
    observed.service.as_ref().is_some_and(|service| {
        let mut owners = service.owner_references().iter();
        owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == uid.as_ref())
    })
}
