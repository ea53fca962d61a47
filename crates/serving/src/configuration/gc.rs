//! Which Revisions that nobody uses go. Pure.
//!
//! Source: `knative/serving/pkg/reconciler/gc/gc.go`.

use std::sync::Arc;
use std::time::Duration;

use api::config::Gc;
use api::serving::Revision;
use api::serving::annotations as keys;
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use super::Observed;
use crate::meta::{is_controlled_by, is_deleted};

/// The Revisions to delete, and when to look again: then the next one has been without traffic for long enough.
pub(super) fn collect(observed: &Observed, settings: &Gc, now: Timestamp) -> (Vec<Arc<Revision>>, Option<Duration>) {
    let Gc { retain_since_create, retain_since_active, min_non_active, max_non_active } = *settings;
    let configuration = observed.configuration.as_ref();
    let latest = configuration.status.as_ref().and_then(|status| status.latest_ready_revision_name.as_deref());
    let own = observed.revisions.iter().filter(|revision| is_controlled_by(revision.as_ref(), configuration));
    // The one that the template asks for would not be made again.
    let wanted = observed.named.as_ref().and_then(|named| named.metadata.name.as_deref());
    let is_kept = |name: Option<&str>| name == latest || name == wanted;
    let unused = own.filter(|revision| !is_kept(revision.metadata.name.as_deref()) && is_unused(revision));
    let mut unused: Vec<&Arc<Revision>> = unused.collect();
    unused.sort_by_key(|revision| (last_active(revision), revision.name_any()));
    let spare = unused.len().saturating_sub(min_non_active);

    // Both times at once disabled mean for ever, one of them only that the other decides.
    let due = |revision: &Revision| {
        let after = |since: Timestamp, time: Option<Duration>| {
            Some(since.saturating_add(SignedDuration::try_from(time?).ok()?).unwrap_or(Timestamp::MAX))
        };
        after(created(revision), retain_since_create).max(after(last_active(revision), retain_since_active))
    };
    let (stale, kept): (Vec<_>, Vec<_>) =
        unused.into_iter().partition(|revision| due(revision).is_some_and(|due| due <= now));
    let over = stale.len().saturating_sub(spare);
    let mut gone: Vec<Arc<Revision>> =
        stale.iter().take(stale.len() - over).map(|revision| (*revision).clone()).collect();
    let next = kept.iter().filter_map(|revision| due(revision)).min().filter(|_| spare > gone.len());
    if over == 0
        && let Some(most) = max_non_active
    {
        gone.extend(kept.iter().take(kept.len().saturating_sub(most)).map(|revision| (*revision).clone()));
    }
    let wait = next.map(|due| Duration::try_from(due.duration_since(now)).unwrap_or_default());
    (gone, wait)
}

/// Whether no Route leads to it, and nobody wants it kept.
fn is_unused(revision: &Revision) -> bool {
    let kept = revision.annotations().get(keys::NO_GC_ANNOTATION);
    let state = revision.labels().get(keys::ROUTING_STATE_LABEL);
    !kept.is_some_and(|kept| kept.eq_ignore_ascii_case("true"))
        && state.is_some_and(|state| state == "reserve")
        && !is_deleted(revision)
}

fn created(revision: &Revision) -> Timestamp {
    revision.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// When traffic last went to it.
fn last_active(revision: &Revision) -> Timestamp {
    let modified = revision.annotations().get(keys::ROUTING_STATE_MODIFIED_ANNOTATION);
    modified.and_then(|text| text.parse().ok()).unwrap_or_else(|| created(revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::serving::Configuration;
    use serde_json::json;

    const HOUR: i64 = 3_600;

    /// Revisions by name, hours since their creation, hours since their last traffic, and routing state.
    fn observed(revisions: &[(&str, i64, i64, &str)]) -> Observed {
        let configuration: Configuration = serde_json::from_value(json!({
            "metadata": {"name": "c", "namespace": "default", "uid": "u"}, "spec": {"template": {"spec": {}}},
            "status": {"latestReadyRevisionName": "latest"},
        }))
        .unwrap();
        let revision = |(name, created, active, state): &(&str, i64, i64, &str)| {
            let ago = |hours: i64| (now() - SignedDuration::from_secs(hours * HOUR)).to_string();
            let mut annotations = json!({"serving.knative.dev/routingStateModified": ago(*active)});
            if *name == "kept" {
                annotations[keys::NO_GC_ANNOTATION] = "true".into();
            }
            let object = json!({"metadata": {
                "name": name, "namespace": "default", "creationTimestamp": ago(*created), "annotations": annotations,
                "labels": {"serving.knative.dev/routingState": state},
                "ownerReferences": [{
                    "apiVersion": "serving.knative.dev/v1", "kind": "Configuration", "name": "c", "uid": "u",
                    "controller": true,
                }],
            }, "spec": {}});
            Arc::new(serde_json::from_value::<Revision>(object).unwrap())
        };
        let revisions = revisions.iter().map(revision).collect();
        Observed { configuration: Arc::new(configuration), revisions, named: None }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000 * HOUR).unwrap()
    }

    #[test]
    fn the_revision_that_is_wanted_stays() {
        let none_kept = Gc { min_non_active: 0, max_non_active: Some(0), ..Gc::default() };
        let mut observed = observed(&[("old", 100, 90, "reserve"), ("new", 100, 90, "reserve")]);
        observed.named = Some(observed.revisions[1].clone());
        let (gone, _) = collect(&observed, &none_kept, now());
        assert_eq!(gone.iter().map(|revision| revision.name_any()).collect::<Vec<_>>(), ["old"]);
    }

    fn check(settings: Gc, revisions: &[(&str, i64, i64, &str)], gone: &[&str], wait_hours: Option<i64>) {
        let (found, wait) = collect(&observed(revisions), &settings, now());
        let names: Vec<String> = found.iter().map(|revision| revision.name_any()).collect();
        assert_eq!(names, gone, "{settings:?} {revisions:?}");
        let hours = wait.map(|wait| i64::try_from(wait.as_secs()).unwrap() / HOUR);
        assert_eq!(hours, wait_hours, "{settings:?} {revisions:?}");
    }

    #[test]
    fn what_nobody_uses_goes_when_its_time_has_come() {
        let none_kept = Gc { min_non_active: 0, ..Gc::default() };
        let rows = [("old", 100, 20, "reserve"), ("young", 40, 20, "reserve"), ("recent", 100, 10, "reserve")];
        check(none_kept.clone(), &rows, &["old"], Some(5));
        let never = [("latest", 100, 90, "reserve"), ("kept", 100, 90, "reserve"), ("served", 100, 90, "active")];
        check(none_kept.clone(), &never, &[], None);
        check(none_kept.clone(), &[("new", 100, 90, "pending")], &[], None);
        // So many are kept in any case, the youngest.
        let stale = [("a", 100, 90, "reserve"), ("b", 100, 80, "reserve"), ("c", 100, 70, "reserve")];
        check(Gc { min_non_active: 2, ..Gc::default() }, &stale, &["a"], None);
        check(Gc::default(), &stale, &[], None);
        // More than the most go at once, oldest first; times that are disabled keep nothing from that.
        let fresh = [("a", 3, 3, "reserve"), ("b", 2, 2, "reserve"), ("c", 1, 1, "reserve")];
        let most = Gc { min_non_active: 0, max_non_active: Some(1), ..Gc::default() };
        check(most.clone(), &fresh, &["a", "b"], Some(45));
        check(Gc { retain_since_create: None, retain_since_active: None, ..most }, &fresh, &["a", "b"], None);
        let forever = Gc { retain_since_create: None, retain_since_active: None, max_non_active: None, ..none_kept };
        check(forever, &stale, &[], None);
        // One time alone decides where the other is disabled.
        let active_only = Gc { min_non_active: 0, retain_since_create: None, ..Gc::default() };
        check(active_only, &[("a", 20, 16, "reserve")], &["a"], None);
    }
}
