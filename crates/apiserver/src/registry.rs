//! The resources that are served now: built-in ones, and those that CustomResourceDefinitions add and take away.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::resource::ResourceDef;

/// A served resource.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its description.
    pub def: Arc<ResourceDef>,
    /// Version in which its objects are stored.
    pub storage_version: Arc<str>,
    /// Name of the CustomResourceDefinition it comes from.
    pub crd: Option<Arc<str>>,
    /// Cancelled when it is served no longer: watches end then.
    pub gone: CancellationToken,
}

/// Group, version and plural name.
type Key = (String, String, String);

/// All served resources.
#[derive(Debug, Default)]
pub struct Registry {
    resources: RwLock<Arc<BTreeMap<Key, Served>>>,
}

impl Registry {
    /// Adds built-in resources.
    pub fn add_builtin(&self, defs: Vec<ResourceDef>) {
        let mut by_storage: BTreeMap<(String, String), Arc<str>> = BTreeMap::new();
        for def in &defs {
            // The first version that is listed for a storage is the one that is stored.
            let storage = (def.storage.0.to_string(), def.storage.1.to_string());
            by_storage.entry(storage).or_insert_with(|| def.api_version().into());
        }
        let mut resources = BTreeMap::clone(&self.resources.read());
        for def in defs {
            let storage = (def.storage.0.to_string(), def.storage.1.to_string());
            let storage_version = by_storage[&storage].clone();
            resources.insert(
                key(&def),
                Served { def: Arc::new(def), storage_version, crd: None, gone: CancellationToken::new() },
            );
        }
        *self.resources.write() = Arc::new(resources);
    }

    /// Serves exactly `served` for the CustomResourceDefinition of that name.
    pub fn set_custom(&self, crd: &str, served: Vec<Served>) {
        let mut resources = self.resources.write();
        let mut next = BTreeMap::clone(&resources);
        let wanted: BTreeMap<Key, Served> = served.into_iter().map(|s| (key(&s.def), s)).collect();
        next.retain(|key, old| {
            let keep = old.crd.as_deref() != Some(crd);
            if !keep && !wanted.contains_key(key) {
                old.gone.cancel();
            }
            keep
        });
        for (key, mut served) in wanted {
            // A new version of the definition does not end the watches.
            if let Some(old) = resources.get(&key).filter(|old| old.crd.as_deref() == Some(crd)) {
                served.gone = old.gone.clone();
            }
            next.insert(key, served);
        }
        *resources = Arc::new(next);
    }

    /// The resource of that group, version and plural name.
    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<Served> {
        self.resources.read().get(&(group.into(), version.into(), plural.into())).cloned()
    }

    /// Any version of a resource, the stored one first.
    pub fn any_version(&self, group: &str, plural: &str) -> Option<Served> {
        let all = self.all();
        let mut versions = all.values().filter(|s| s.def.group == group && s.def.plural == plural);
        let first = versions.next()?;
        if *first.def.api_version() == *first.storage_version {
            return Some(first.clone());
        }
        let stored = versions.find(|s| *s.def.api_version() == *s.storage_version);
        Some(stored.unwrap_or(first).clone())
    }

    /// The resource of a kind.
    pub fn by_kind(&self, group: &str, version: &str, kind: &str) -> Option<Served> {
        let all = self.all();
        let found = all.values().find(|s| s.def.group == group && s.def.version == version && s.def.kind == kind);
        found.cloned()
    }

    /// Everything that is served, ordered by group, version and plural name.
    pub fn all(&self) -> Arc<BTreeMap<Key, Served>> {
        self.resources.read().clone()
    }

    /// Whether anything is served in the group (in that version).
    pub fn has_group(&self, group: &str, version: Option<&str>) -> bool {
        self.all().keys().any(|(g, v, _)| g == group && version.is_none_or(|version| v == version))
    }
}

fn key(def: &ResourceDef) -> Key {
    (def.group.to_string(), def.version.to_string(), def.plural.to_string())
}
