//! The platform's ConfigMaps as they are now.
//!
//! Each role keeps its own [`Live`], fed by the shared cache. A ConfigMap that cannot be used (admission refuses it, but
//! it may be older) leaves the values that counted before, and is told of in the log.

use std::sync::Arc;

use api::config::{Map, SettingError, Settings};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use parking_lot::RwLock;
use tracing::{error, info, warn};

use crate::cache::{Caches, Change};

/// Settings that change while the platform runs.
#[derive(Default)]
pub struct Live(RwLock<Arc<Settings>>);

impl Live {
    /// The settings now.
    pub fn get(&self) -> Arc<Settings> {
        self.0.read().clone()
    }

    /// Takes over every ConfigMap from `caches`, now and from now on, and tells of it in the log.
    pub fn follow(self: &Arc<Self>, caches: &Caches) {
        let live = self.clone();
        caches.of_system::<ConfigMap>().subscribe(move |change| live.observe_and_tell(change));
    }

    /// Takes over a ConfigMap, or its absence; its name if that changed anything. Nothing is logged: every process has one
    /// that follows.
    pub fn observe(&self, change: &Change<ConfigMap>) -> Option<&'static str> {
        let map = map_of(change)?;
        let changed = self.apply(map, change).unwrap_or_default();
        changed.then_some(map.name)
    }

    fn observe_and_tell(&self, change: &Change<ConfigMap>) {
        let Some(map) = map_of(change) else { return };
        let data = change.new.as_ref().map(|new| new.data.clone().unwrap_or_default());
        for remark in data.iter().filter_map(|data| map.check(data).ok()).flatten() {
            warn!("{remark}");
        }
        match self.apply(map, change) {
            Ok(false) => {}
            Ok(true) => info!(config_map = map.name, version = change.object().resource_version(), "settings changed"),
            Err(error) => error!(%error, "the settings stay as they were"),
        }
    }

    /// Whether that changed anything.
    fn apply(&self, map: &Map, change: &Change<ConfigMap>) -> Result<bool, SettingError> {
        let data = change.new.as_ref().map(|new| new.data.clone().unwrap_or_default());
        let mut present = self.0.write();
        let mut next = (**present).clone();
        let changed = next.apply(map.name, data.as_ref())?;
        if changed {
            *present = Arc::new(next);
        }
        Ok(changed)
    }
}

/// Which of the platform's ConfigMaps that is.
fn map_of(change: &Change<ConfigMap>) -> Option<&'static Map> {
    let key = change.key();
    Map::of(&key.name).filter(|_| key.namespace == api::SYSTEM_NAMESPACE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn map(namespace: &str, data: &[(&str, &str)]) -> Option<Arc<ConfigMap>> {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let metadata = ObjectMeta {
            name: Some("config-defaults".to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        Some(Arc::new(ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }))
    }

    #[test]
    fn settings_follow_and_wrong_ones_change_nothing() {
        let live = Live::default();
        let set = |new: Option<Arc<ConfigMap>>, old| live.observe(&Change { old, new });
        let timeout = || live.get().defaults.timeout_seconds;
        assert_eq!(set(map("other", &[("revision-timeout-seconds", "20")]), None), None);
        assert_eq!(timeout(), 300);
        let present = map("colibri-system", &[("revision-timeout-seconds", "20")]);
        assert_eq!(set(present.clone(), None), Some("config-defaults"));
        assert_eq!(timeout(), 20);
        assert_eq!(set(map("colibri-system", &[("revision-timeout-seconds", "x")]), present.clone()), None);
        assert_eq!(timeout(), 20);
        assert_eq!(set(None, present), Some("config-defaults"));
        assert_eq!(timeout(), 300);
    }
}
