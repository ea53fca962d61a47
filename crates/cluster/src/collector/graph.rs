//! Who owns whom, and what follows from it: pure.
//!
//! A deletion can be *background* (dependents go afterwards), *foreground* (the owner waits, by the finalizer
//! `foregroundDeletion`, until its blocking dependents are gone) or *orphan* (the finalizer `orphan`: dependents lose
//! the reference and stay).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::resources::Kind;

/// Finalizer of an owner that waits for its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";

/// UID of an object.
pub(super) type Uid = String;

/// One object, as far as ownership goes.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub kind: Arc<Kind>,
    pub namespace: String,
    pub name: String,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    pub finalizers: Vec<String>,
}

impl Item {
    /// What of an object's metadata matters here.
    pub(super) fn new(kind: Arc<Kind>, metadata: &ObjectMeta) -> Self {
        Self {
            kind,
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            owners: metadata.owner_references.clone().unwrap_or_default(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.clone().unwrap_or_default(),
        }
    }

    fn has_finalizer(&self, name: &str) -> bool {
        self.finalizers.iter().any(|present| present == name)
    }

    fn is_waiting_for_dependents(&self) -> bool {
        self.deleting && self.has_finalizer(FOREGROUND)
    }
}

/// How a dependent is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// What to do about one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    Nothing,
    /// Delete it: no owner is left.
    Delete(Propagation),
    /// Take these owners' references away; others are left.
    DropReferences(BTreeSet<Uid>),
    /// Take its reference away from each of these dependents, then remove the finalizer `orphan`.
    ReleaseDependents(Vec<Uid>),
    /// Remove the finalizer `foregroundDeletion`: nothing blocks any more.
    RemoveForegroundFinalizer,
    /// Look at these dependents: each has to be deleted first.
    DeleteDependents(Vec<Uid>),
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Graph {
    items: HashMap<Uid, Item>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// Takes in an object as it is now; answers whose plans may have changed.
    pub(super) fn observe(&mut self, uid: Uid, item: Item) -> Vec<Uid> {
        let old = self.unlink(&uid);
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
        }
        let mut changed = Vec::new();
        if !item.owners.is_empty() || item.deleting {
            changed.push(uid.clone());
        }
        // An owner in foreground deletion waits for references that went away or stopped blocking.
        let former = old.iter().flat_map(|old| &old.owners).map(|owner| owner.uid.clone());
        changed.extend(former.filter(|owner| self.items.get(owner).is_some_and(Item::is_waiting_for_dependents)));
        self.items.insert(uid, item);
        changed
    }

    /// Forgets an object that is gone; answers whose plans may have changed.
    pub(super) fn forget(&mut self, uid: &str) -> Vec<Uid> {
        let old = self.unlink(uid);
        let mut changed: Vec<Uid> = self.dependents_of(uid).cloned().collect();
        let owners = old.iter().flat_map(|old| &old.owners).map(|owner| owner.uid.clone());
        changed.extend(owners.filter(|owner| self.items.get(owner).is_some_and(Item::is_waiting_for_dependents)));
        changed
    }

    pub(super) fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// Objects of one kind that are not in `listed`: they went away unseen.
    pub(super) fn missing(&self, kind: &Kind, listed: &HashSet<Uid>) -> Vec<Uid> {
        let gone = self.items.iter().filter(|(uid, item)| *item.kind == *kind && !listed.contains(*uid));
        gone.map(|(uid, _)| uid.clone()).collect()
    }

    /// Owners of the object that the graph does not hold: they must be asked for before anything is deleted.
    pub(super) fn unknown_owners(&self, uid: &str) -> Vec<OwnerReference> {
        let owners = self.items.get(uid).map(|item| item.owners.as_slice()).unwrap_or_default();
        owners.iter().filter(|owner| !self.items.contains_key(&owner.uid)).cloned().collect()
    }

    /// What to do about the object; `absent` are owners that are known not to exist.
    pub(super) fn plan(&self, uid: &str, absent: &HashSet<Uid>) -> Plan {
        let Some(item) = self.items.get(uid) else { return Plan::Nothing };
        if item.deleting {
            return self.plan_deleting(uid, item);
        }
        if item.owners.is_empty() {
            return Plan::Nothing;
        }
        let is_waiting =
            |owner: &OwnerReference| self.items.get(&owner.uid).is_some_and(Item::is_waiting_for_dependents);
        let is_absent = |owner: &OwnerReference| absent.contains(&owner.uid) && !self.items.contains_key(&owner.uid);
        let (going, staying): (Vec<_>, Vec<_>) =
            item.owners.iter().partition(|owner| is_absent(owner) || is_waiting(owner));
        if going.is_empty() {
            return Plan::Nothing;
        }
        if !staying.is_empty() {
            return Plan::DropReferences(going.iter().map(|owner| owner.uid.clone()).collect());
        }
        let waited_for = item.owners.iter().any(is_waiting);
        let has_dependents = self.dependents_of(uid).next().is_some();
        Plan::Delete(if item.has_finalizer(ORPHAN) {
            Propagation::Orphan
        } else if item.has_finalizer(FOREGROUND) || (waited_for && has_dependents) {
            Propagation::Foreground
        } else {
            Propagation::Background
        })
    }

    fn plan_deleting(&self, uid: &str, item: &Item) -> Plan {
        if item.has_finalizer(ORPHAN) {
            return Plan::ReleaseDependents(self.dependents_of(uid).cloned().collect());
        }
        if !item.has_finalizer(FOREGROUND) {
            return Plan::Nothing;
        }
        let blocks = |dependent: &Uid| {
            let owners = self.items.get(dependent).map(|item| item.owners.as_slice()).unwrap_or_default();
            owners.iter().any(|owner| owner.uid == uid && owner.block_owner_deletion.unwrap_or(false))
        };
        if !self.dependents_of(uid).any(blocks) {
            return Plan::RemoveForegroundFinalizer;
        }
        let alive = |dependent: &&Uid| self.items.get(*dependent).is_some_and(|item| !item.deleting);
        Plan::DeleteDependents(self.dependents_of(uid).filter(alive).cloned().collect())
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Uid> {
        self.dependents.get(uid).into_iter().flatten()
    }

    fn unlink(&mut self, uid: &str) -> Option<Item> {
        let old = self.items.remove(uid)?;
        for owner in &old.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::ApiResource;

    fn item(owners: &[(&str, bool)], finalizers: &[&str], deleting: bool) -> Item {
        let resource = ApiResource {
            group: String::new(),
            version: "v1".into(),
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            plural: "configmaps".into(),
        };
        let owner = |(uid, block): &(&str, bool)| OwnerReference {
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(*block),
            ..OwnerReference::default()
        };
        Item {
            kind: Arc::new(Kind { resource, namespaced: true }),
            namespace: "default".into(),
            name: "x".into(),
            owners: owners.iter().map(owner).collect(),
            deleting,
            finalizers: finalizers.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn absent(uids: &[&str]) -> HashSet<Uid> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn a_dependent_goes_only_when_every_owner_is_known_to_be_gone() {
        let mut graph = Graph::default();
        graph.observe("a".into(), item(&[], &[], false));
        graph.observe("c".into(), item(&[("a", false), ("b", false)], &[], false));
        assert_eq!(graph.plan("c", &absent(&[])), Plan::Nothing, "b may exist, unseen");
        assert_eq!(graph.plan("c", &absent(&["b"])), Plan::DropReferences(["b".to_owned()].into()));
        assert_eq!(graph.forget("a"), ["c"]);
        assert_eq!(graph.plan("c", &absent(&["a", "b"])), Plan::Delete(Propagation::Background));
    }

    #[test]
    fn foreground_waits_for_blocking_dependents_only() {
        let mut graph = Graph::default();
        graph.observe("owner".into(), item(&[], &[FOREGROUND], true));
        graph.observe("blocking".into(), item(&[("owner", true)], &[], false));
        graph.observe("other".into(), item(&[("owner", false)], &[], false));
        let Plan::DeleteDependents(mut first) = graph.plan("owner", &absent(&[])) else { panic!("waits") };
        first.sort();
        assert_eq!(first, ["blocking", "other"]);
        assert_eq!(graph.plan("blocking", &absent(&[])), Plan::Delete(Propagation::Background));
        assert_eq!(graph.forget("blocking"), ["owner"]);
        assert_eq!(graph.plan("owner", &absent(&[])), Plan::RemoveForegroundFinalizer);
    }

    #[test]
    fn foreground_goes_down_the_tree() {
        let mut graph = Graph::default();
        graph.observe("top".into(), item(&[], &[FOREGROUND], true));
        graph.observe("middle".into(), item(&[("top", true)], &[], false));
        graph.observe("leaf".into(), item(&[("middle", true)], &[], false));
        assert_eq!(graph.plan("middle", &absent(&[])), Plan::Delete(Propagation::Foreground));
    }

    #[test]
    fn orphans_lose_their_reference_first() {
        let mut graph = Graph::default();
        graph.observe("owner".into(), item(&[], &[ORPHAN], true));
        graph.observe("child".into(), item(&[("owner", true)], &[], false));
        assert_eq!(graph.plan("owner", &absent(&[])), Plan::ReleaseDependents(vec!["child".into()]));
        assert_eq!(graph.plan("child", &absent(&[])), Plan::Nothing, "the owner still exists");
        graph.observe("child".into(), item(&[], &[], false));
        assert_eq!(graph.plan("owner", &absent(&[])), Plan::ReleaseDependents(vec![]));
    }

    #[test]
    fn a_reference_that_stops_blocking_wakes_the_owner() {
        let mut graph = Graph::default();
        graph.observe("owner".into(), item(&[], &[FOREGROUND], true));
        graph.observe("child".into(), item(&[("owner", true)], &[], false));
        assert!(graph.observe("child".into(), item(&[], &[], false)).contains(&"owner".to_owned()));
    }
}
