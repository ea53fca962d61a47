//! Metadata that the controllers read and make.

use std::collections::BTreeMap;

use api::serving::Revision;
use api::serving::annotations as keys;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

/// Labels or annotations.
pub(crate) type Map = BTreeMap<String, String>;

/// Annotation that kubectl keeps its own last apply in; never handed down.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The owner reference of a controller: `owner` controls the object.
pub(crate) fn controlled_by<K: Resource<DynamicType = ()>>(owner: &K) -> Option<Vec<OwnerReference>> {
    owner.controller_owner_ref(&()).map(|reference| vec![reference])
}

/// Whether `owner` controls `object`.
pub(crate) fn is_controlled_by<O: Resource, K: Resource>(object: &O, owner: &K) -> bool {
    controller(object).is_some_and(|reference| Some(&reference.uid) == owner.meta().uid.as_ref())
}

/// The owner reference of whatever controls `object`.
pub(crate) fn controller<O: Resource>(object: &O) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|reference| reference.controller == Some(true))
}

/// Whether the object is on its way out: nothing more is made for it.
pub(crate) fn is_deleted<K: Resource>(object: &K) -> bool {
    object.meta().deletion_timestamp.is_some()
}

/// The annotations that children inherit.
pub(crate) fn inherited_annotations<K: Resource>(owner: &K) -> Map {
    let own = owner.annotations().iter();
    own.filter(|(key, _)| *key != LAST_APPLIED).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// `base` with `more` on top.
pub(crate) fn with<'a>(mut base: Map, more: impl IntoIterator<Item = (&'a str, &'a str)>) -> Map {
    base.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())));
    base
}

/// Labels of what a Revision makes.
pub(crate) fn labels_of_revision(revision: &Revision) -> Map {
    let (name, uid) = (revision.name_any(), revision.uid().unwrap_or_default());
    let mut labels =
        with(revision.labels().clone(), [(keys::REVISION_LABEL, name.as_str()), (keys::REVISION_UID_LABEL, &uid)]);
    labels.remove(keys::ROUTING_STATE_LABEL);
    labels.entry("app".to_owned()).or_insert(name);
    labels
}

/// Annotations of what a Revision makes.
pub(crate) fn annotations_of_revision(revision: &Revision) -> Map {
    let mut annotations = inherited_annotations(revision);
    annotations.retain(|key, _| key != keys::ROUTES_ANNOTATION && key != keys::ROUTING_STATE_MODIFIED_ANNOTATION);
    annotations
}

/// Puts `wanted` labels and annotations onto `present`; whether anything changed. Others' stay.
pub(crate) fn adopt(present: &mut ObjectMeta, wanted: &ObjectMeta) -> bool {
    let labels = adopt_map(&mut present.labels, wanted.labels.as_ref());
    adopt_map(&mut present.annotations, wanted.annotations.as_ref()) | labels
}

fn adopt_map(present: &mut Option<Map>, wanted: Option<&Map>) -> bool {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else { return false };
    let map = present.get_or_insert_default();
    let mut changed = false;
    for (key, value) in wanted {
        if map.get(key) != Some(value) {
            map.insert(key.clone(), value.clone());
            changed = true;
        }
    }
    changed
}
