//! What Routes say and have said: who may answer for which name, how traffic moves, which Revisions are in use. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use api::serving::annotations::{ROLLOUT_DURATION, value};
use api::serving::{Route, TrafficTarget};
use kube::ResourceExt;
use tokio::time::Instant;

use crate::checks::Key;

/// All Routes.
#[derive(Default)]
pub(crate) struct Routes {
    seen: BTreeMap<Key, Seen>,
    names: BTreeMap<Key, Name>,
}

/// One Route as it was seen last.
#[derive(Default)]
struct Seen {
    uid: Option<String>,
    /// Generation that its status speaks of.
    observed: Option<i64>,
    /// The targets that follow the latest Revision, and their shares; the newest Revision comes last.
    rollout: Vec<(String, i64)>,
    /// Since when each Revision is named by the spec.
    wanted: BTreeMap<String, Instant>,
    /// Since when each Revision is named by the status.
    shown: BTreeMap<String, Instant>,
}

/// A name that requests are sent to: that of a Route, or of a tag of it.
#[derive(Default)]
struct Name {
    /// Since when it leads anywhere, without a break.
    since: Option<Instant>,
    /// The Revisions that it has led to, and until when.
    revisions: BTreeMap<String, Option<Instant>>,
}

impl Name {
    fn lead_to(&mut self, revisions: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        for until in self.revisions.values_mut() {
            until.get_or_insert(now);
        }
        let mut leads = false;
        for revision in revisions {
            self.revisions.insert(revision, None);
            leads = true;
        }
        self.since = leads.then(|| self.since.unwrap_or(now));
    }

    /// Whether it has led to that Revision at any time since `then`.
    fn led_to(&self, revision: &str, then: Instant) -> bool {
        self.revisions.get(revision).is_some_and(|until| until.is_none_or(|until| until >= then))
    }
}

impl Routes {
    /// Takes a Route's new state, or its end; what is wrong with it. `gradual` says whether the platform lets traffic move
    /// gradually where a Route says nothing, `exists` whether there is a Revision of that name.
    pub(crate) fn set(
        &mut self,
        key: &Key,
        route: Option<&Route>,
        gradual: bool,
        exists: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let traffic = route.and_then(|route| route.status.as_ref()).map(|status| status.traffic.as_slice());
        let traffic = traffic.unwrap_or_default();
        self.set_names(key, traffic);
        let Some(route) = route else {
            self.seen.remove(key);
            return Vec::new();
        };
        let mut wrong = Vec::new();
        let shares: Vec<i64> = traffic.iter().map(|target| target.percent.unwrap_or_default()).collect();
        let sum: i64 = shares.iter().sum();
        if !traffic.is_empty() && (sum != 100 || shares.iter().any(|share| *share < 0)) {
            wrong.push(format!("the shares of {} are {shares:?}, which are not 100 together", key.1));
        }
        let was = self.seen.remove(key).filter(|was| was.uid == route.uid()).unwrap_or_default();
        let now = Instant::now();
        let next = Seen {
            uid: route.uid(),
            observed: route.status.as_ref().and_then(|status| status.observed_generation),
            rollout: rollout(traffic),
            wanted: named(&route.spec.traffic, &was.wanted, now),
            shown: named(traffic, &was.shown, now),
        };
        for revision in next.shown.keys().filter(|revision| !was.shown.contains_key(*revision) && !exists(revision)) {
            wrong.push(format!("the traffic of {} goes to {revision}, which does not exist", key.1));
        }
        let own = value(route.annotations(), ROLLOUT_DURATION).is_some();
        if was.observed == next.observed {
            wrong
                .extend(moved(&was.rollout, &next.rollout, own || gradual).map(|why| {
                    format!("the rollout of {} {why}: from {:?} to {:?}", key.1, was.rollout, next.rollout)
                }));
        }
        self.seen.insert(key.clone(), next);
        wrong
    }

    fn set_names(&mut self, key: &Key, traffic: &[TrafficTarget]) {
        let (namespace, route) = key;
        let mut leads: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for target in traffic {
            let Some(revision) = &target.revision_name else { continue };
            if target.percent.unwrap_or_default() > 0 {
                leads.entry(route.clone()).or_default().push(revision.clone());
            }
            if let Some(tag) = &target.tag {
                leads.entry(format!("{tag}-{route}")).or_default().push(revision.clone());
            }
        }
        let suffix = format!("-{route}");
        for ((of, name), present) in &mut self.names {
            if of == namespace && (name == route || name.ends_with(&suffix)) {
                present.lead_to(leads.remove(name).unwrap_or_default());
            }
        }
        for (name, revisions) in leads {
            self.names.entry((namespace.clone(), name)).or_default().lead_to(revisions);
        }
    }

    /// Whether a request that was sent at `sent` to that name, with that tag in its header, may be answered by that
    /// Revision, where all that a Route says may be known `lag` later.
    pub(crate) fn may_answer(&self, key: &Key, tag: &str, revision: &str, sent: Instant, lag: Duration) -> bool {
        let then = sent.checked_sub(lag).unwrap_or(sent);
        let led = |name: Option<&Name>| name.is_some_and(|name| name.led_to(revision, then));
        let main = self.names.get(key);
        if tag.is_empty() {
            return led(main);
        }
        let tagged = self.names.get(&(key.0.clone(), format!("{tag}-{}", key.1)));
        // A tag that nobody knows leads where no tag does.
        let known = tagged.and_then(|tagged| tagged.since).is_some_and(|since| since <= then);
        led(tagged) || (!known && led(main))
    }

    /// The Route by which that Revision is in use: its status names it, or its spec does for longer than `lag`.
    pub(crate) fn user_of(&self, namespace: &str, revision: &str, lag: Duration) -> Option<&str> {
        let uses = |seen: &Seen| {
            seen.shown.contains_key(revision) || seen.wanted.get(revision).is_some_and(|since| since.elapsed() > lag)
        };
        self.seen.iter().find(|((of, _), seen)| of == namespace && uses(seen)).map(|((_, name), _)| name.as_str())
    }

    /// Whether a Route's status names that Revision.
    pub(crate) fn shows(&self, namespace: &str, revision: &str) -> bool {
        self.seen.iter().any(|((of, _), seen)| of == namespace && seen.shown.contains_key(revision))
    }
}

/// The Revisions that the targets name, each with the time since when.
fn named(traffic: &[TrafficTarget], was: &BTreeMap<String, Instant>, now: Instant) -> BTreeMap<String, Instant> {
    let names = traffic.iter().filter_map(|target| target.revision_name.clone());
    names.map(|name| (name.clone(), was.get(&name).copied().unwrap_or(now))).collect()
}

/// The Revisions that get the traffic of the latest one, and their shares.
fn rollout(traffic: &[TrafficTarget]) -> Vec<(String, i64)> {
    let mut shares: Vec<(String, i64)> = Vec::new();
    for target in traffic.iter().filter(|target| target.latest_revision == Some(true)) {
        let (name, share) = (target.revision_name.clone().unwrap_or_default(), target.percent.unwrap_or_default());
        match shares.iter_mut().find(|(present, _)| *present == name) {
            Some((_, sum)) => *sum += share,
            None => shares.push((name, share)),
        }
    }
    shares
}

/// What is wrong with how the traffic moved, where nobody has asked for another split meanwhile.
fn moved(was: &[(String, i64)], next: &[(String, i64)], gradual: bool) -> Option<&'static str> {
    let share = |shares: &[(String, i64)], name: &str| {
        shares.iter().find(|(present, _)| present == name).map_or(0, |(_, share)| *share)
    };
    let ((_, old), [others @ .., (newest, present)]) = (was.last()?, next) else { return None };
    let begins = was.last().is_some_and(|(name, _)| name != newest);
    if *present < share(was, newest) || others.iter().any(|(name, now)| *now > share(was, name)) {
        return Some("goes back");
    }
    (begins && gradual && *old > 0 && *present > 1).then_some("begins with more than 1 %")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_moves_from_old_to_new_only() {
        let shares = |shares: &[(&str, i64)]| -> Vec<(String, i64)> {
            shares.iter().map(|(name, share)| ((*name).to_owned(), *share)).collect()
        };
        let check = |was: &[(&str, i64)], next: &[(&str, i64)], gradual, wanted: Option<&str>| {
            assert_eq!(moved(&shares(was), &shares(next), gradual), wanted, "{was:?} {next:?}");
        };
        let half = [("a", 50), ("b", 50)];
        check(&[], &[("a", 100)], true, None);
        check(&[("a", 100)], &[("a", 99), ("b", 1)], true, None);
        check(&[("a", 100)], &[("b", 100)], false, None);
        check(&[("a", 100)], &[("b", 100)], true, Some("begins with more than 1 %"));
        check(&half, &[("a", 20), ("b", 80)], true, None);
        check(&half, &[("b", 100)], true, None);
        check(&half, &[("a", 60), ("b", 40)], true, Some("goes back"));
        check(&half, &[("a", 51), ("b", 48), ("c", 1)], true, Some("goes back"));
        check(&half, &[("a", 50), ("b", 49), ("c", 1)], true, None);
        // Nothing moves where the latest Revision has no share.
        check(&[("a", 0)], &[("b", 0)], true, None);
    }
}
