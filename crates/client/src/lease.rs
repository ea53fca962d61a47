//! Election by a Lease: of several processes with one task, one acts.
//!
//! As client-go's leader election: a holder renews its Lease; another takes it over once it has seen no renewal for the
//! Lease's whole duration, by its own clock. A holder that cannot renew stops acting earlier than that. Pure part:
//! [`Watched::step`].
//!
//! | Lease | step |
//! |---|---|
//! | is not there | create it |
//! | has no holder, or is held by us | take it |
//! | held by another and renewed within its duration, as seen here | wait |
//! | held by another and not renewed for its duration | take it |

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// What is competed for, and as whom.
#[derive(Clone, Debug)]
pub struct LeaseConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// Who we are: unique among all processes that compete.
    pub holder: String,
    /// Annotations that a holder sets, such as its address.
    pub annotations: BTreeMap<String, String>,
    /// Time without renewal after which another may take over.
    pub duration: Duration,
}

impl LeaseConfig {
    /// Time between two renewals.
    fn period(&self) -> Duration {
        self.duration / 6
    }

    /// Time without renewal after which a holder stops acting: before another may take over.
    fn patience(&self) -> Duration {
        self.duration * 2 / 3
    }
}

/// What to do about a Lease.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Create(Box<Lease>),
    Take(Box<Lease>),
    Wait,
}

/// The last change of a Lease that was seen, and when.
#[derive(Clone, Debug, Default)]
struct Watched {
    record: Option<(LeaseSpec, Instant)>,
}

impl Watched {
    fn step(&mut self, found: Option<&Lease>, config: &LeaseConfig, at: Instant, clock: Timestamp) -> Step {
        let Some(lease) = found else { return Step::Create(Box::new(held(None, config, clock))) };
        let spec = lease.spec.clone().unwrap_or_default();
        if self.record.as_ref().is_none_or(|(known, _)| *known != spec) {
            self.record = Some((spec.clone(), at));
        }
        let since = self.record.as_ref().map_or(at, |(_, since)| *since);
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(15);
        let fresh = at.duration_since(since) < Duration::from_secs(seconds);
        if !holder.is_empty() && holder != config.holder && fresh {
            return Step::Wait;
        }
        Step::Take(Box::new(held(Some(lease), config, clock)))
    }
}

/// The Lease, held by us.
fn held(old: Option<&Lease>, config: &LeaseConfig, clock: Timestamp) -> Lease {
    let mut lease = old.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            namespace: Some(config.namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Lease::default()
    });
    lease.metadata.annotations.get_or_insert_default().extend(config.annotations.clone());
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_ref() != Some(&config.holder) {
        spec.holder_identity = Some(config.holder.clone());
        spec.acquire_time = Some(MicroTime(clock));
        spec.lease_transitions = Some(spec.lease_transitions.map_or(0, |count| count.saturating_add(1)));
    }
    spec.renew_time = Some(MicroTime(clock));
    spec.lease_duration_seconds = Some(i32::try_from(config.duration.as_secs().max(1)).unwrap_or(i32::MAX));
    lease
}

/// A Lease that we hold.
#[derive(Debug)]
pub struct Held {
    config: LeaseConfig,
    leases: Api<Lease>,
    renewed: Instant,
}

/// Waits until the Lease is ours; `None` when `stop` comes first.
pub async fn acquire(client: &Client, config: LeaseConfig, stop: &CancellationToken) -> Option<Held> {
    let leases = Api::<Lease>::namespaced(client.clone(), &config.namespace);
    let mut watched = Watched::default();
    let mut told = false;
    loop {
        let at = Instant::now();
        match attempt(&leases, &mut watched, &config).await {
            Ok(true) => {
                info!(lease = config.name, holder = config.holder, "this process leads");
                return Some(Held { config, leases, renewed: at });
            }
            Ok(false) if !told => {
                told = true;
                let holder = watched.record.as_ref().and_then(|(spec, _)| spec.holder_identity.clone());
                info!(lease = config.name, holder, "another process leads; standing by");
            }
            Ok(false) => {}
            Err(error) => warn!(%error, lease = config.name, "the lease cannot be read or written, trying again"),
        }
        stop.run_until_cancelled(tokio::time::sleep(config.period())).await?;
    }
}

/// Whether the Lease is ours now.
async fn attempt(leases: &Api<Lease>, watched: &mut Watched, config: &LeaseConfig) -> Result<bool, kube::Error> {
    let found = leases.get_opt(&config.name).await?;
    let result = match watched.step(found.as_ref(), config, Instant::now(), Timestamp::now()) {
        Step::Wait => return Ok(false),
        Step::Create(lease) => leases.create(&PostParams::default(), &lease).await,
        Step::Take(lease) => leases.replace(&config.name, &PostParams::default(), &lease).await,
    };
    match result {
        Ok(_) => Ok(true),
        // Another was quicker.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

impl Held {
    /// Renews the Lease; returns once it is lost, or on `stop`.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        loop {
            if stop.run_until_cancelled(tokio::time::sleep(self.config.period())).await.is_none() {
                return;
            }
            let deadline = self.renewed + self.config.patience();
            let at = Instant::now();
            match tokio::time::timeout_at(deadline, self.renew()).await {
                Ok(Ok(true)) => self.renewed = at,
                Ok(Ok(false)) => {
                    warn!(lease = self.config.name, "another process has taken the lead");
                    return;
                }
                Ok(Err(error)) => {
                    warn!(%error, lease = self.config.name, "the lease was not renewed");
                    if Instant::now() >= deadline {
                        return;
                    }
                }
                Err(_) => {
                    warn!(lease = self.config.name, "the lease could not be renewed in time");
                    return;
                }
            }
        }
    }

    async fn renew(&self) -> Result<bool, kube::Error> {
        let Some(lease) = self.leases.get_opt(&self.config.name).await? else {
            return attempt(&self.leases, &mut Watched::default(), &self.config).await;
        };
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_ref());
        if holder != Some(&self.config.holder) {
            return Ok(false);
        }
        let lease = held(Some(&lease), &self.config, Timestamp::now());
        match self.leases.replace(&self.config.name, &PostParams::default(), &lease).await {
            // Written by somebody else meanwhile: the next look tells by whom.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
            other => other.map(|_| true),
        }
    }

    /// Gives the Lease back, so that another need not wait for its end.
    pub async fn release(self) {
        let given_back = async {
            let Some(mut lease) = self.leases.get_opt(&self.config.name).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.config.holder) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            self.leases.replace(&self.config.name, &PostParams::default(), &lease).await.map(drop)
        };
        match tokio::time::timeout(Duration::from_secs(2), given_back).await {
            Ok(Ok(())) => {}
            // It ends by itself.
            Ok(Err(error)) => debug!(%error, "the lease was not given back"),
            Err(_) => debug!("the lease was not given back in time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(holder: &str) -> LeaseConfig {
        LeaseConfig {
            namespace: "colibri-system".into(),
            name: "controller".into(),
            holder: holder.into(),
            annotations: BTreeMap::from([("address".to_owned(), format!("{holder}:1"))]),
            duration: Duration::from_secs(15),
        }
    }

    fn taken(step: Step) -> Lease {
        match step {
            Step::Create(lease) | Step::Take(lease) => *lease,
            Step::Wait => panic!("nothing was taken"),
        }
    }

    #[test]
    fn a_lease_is_taken_over_only_after_its_duration_without_a_renewal() {
        let (start, clock) = (Instant::now(), Timestamp::now());
        let (a, b) = (config("a"), config("b"));
        let lease = taken(Watched::default().step(None, &a, start, clock));
        assert_eq!(lease.spec.as_ref().unwrap().lease_transitions, Some(0));

        let mut seen = Watched::default();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(seen.step(Some(&lease), &b, after(0), clock), Step::Wait);
        assert_eq!(seen.step(Some(&lease), &b, after(14), clock), Step::Wait);
        // A renewal counts from when it is seen, whatever the holder's clock says.
        let renewed = held(Some(&lease), &a, clock + Duration::from_secs(100_000));
        assert_eq!(seen.step(Some(&renewed), &b, after(14), clock), Step::Wait);
        assert_eq!(seen.step(Some(&renewed), &b, after(28), clock), Step::Wait);
        let over = taken(seen.step(Some(&renewed), &b, after(29), clock));
        let spec = over.spec.as_ref().unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("b"), Some(1)));
        assert_eq!(over.metadata.annotations.as_ref().unwrap()["address"], "b:1");
    }

    #[test]
    fn a_lease_that_was_given_back_is_taken_at_once() {
        let (start, clock) = (Instant::now(), Timestamp::now());
        let mut lease = held(None, &config("a"), clock);
        lease.spec.as_mut().unwrap().holder_identity = None;
        let over = taken(Watched::default().step(Some(&lease), &config("b"), start, clock));
        assert_eq!(over.spec.unwrap().holder_identity.as_deref(), Some("b"));
    }

    #[test]
    fn a_holder_gives_up_before_another_takes_over() {
        let config = config("a");
        assert!(config.patience() + config.period() < config.duration);
    }
}
