//! Shared caches: each kind is listed and watched once per process and decoded once.
//!
//! Subscribers are called in line, under no lock of the cache, in the order of the changes. They must be quick: a
//! controller adds a key to its [`Queue`](crate::Queue) and returns.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

/// Namespace (empty for a cluster-wide kind) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for a cluster-wide kind.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// One object as it was and as it is.
#[derive(Debug)]
pub struct Change<K> {
    /// The object before; `None` when it is new.
    pub old: Option<Arc<K>>,
    /// The object now; `None` when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K: Resource> Change<K> {
    /// The object now, or the last that was seen of it.
    pub fn object(&self) -> &Arc<K> {
        self.new.as_ref().or(self.old.as_ref()).expect("a change has an old or a new object")
    }

    /// Key of the object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::of(self.object().as_ref())
    }
}

/// A kind that can be cached.
pub trait Cacheable: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Cacheable for K {}

type Subscriber<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// All objects of one kind, as last seen.
pub struct Cache<K> {
    objects: RwLock<BTreeMap<ObjectKey, Arc<K>>>,
    subscribers: RwLock<Vec<Subscriber<K>>>,
    synced: watch::Sender<bool>,
}

impl<K: Cacheable> Cache<K> {
    fn new() -> Self {
        Self { objects: RwLock::default(), subscribers: RwLock::default(), synced: watch::Sender::new(false) }
    }

    /// The object of that key.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.objects.read().get(&ObjectKey::new(namespace, name)).cloned()
    }

    /// The object of that key.
    pub fn get_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.objects.read().get(key).cloned()
    }

    /// All objects, in the order of their keys.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.objects.read().values().cloned().collect()
    }

    /// The objects of one namespace for which `keep` holds.
    pub fn select(&self, namespace: &str, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let objects = self.objects.read();
        let start = ObjectKey::new(namespace, "");
        let in_namespace = objects.range(start..).take_while(|(key, _)| key.namespace == namespace);
        in_namespace.filter(|(_, object)| keep(object)).map(|(_, object)| object.clone()).collect()
    }

    /// The objects by names that `names` takes from each, such as a label's value. Whoever subscribes to the cache after
    /// this finds the index as new as the change.
    pub fn index<N: IntoIterator<Item = String>>(
        &self,
        names: impl Fn(&K) -> N + Send + Sync + 'static,
    ) -> Arc<Index<K>> {
        let index = Arc::new(Index(RwLock::default()));
        let kept = index.clone();
        self.subscribe(move |change| {
            let names = change.new.iter().flat_map(|new| names(new)).collect();
            kept.0.write().put(change.key(), change.new.as_ref(), names);
        });
        index
    }

    /// Calls `subscriber` for each object present now, then for each change.
    pub fn subscribe(&self, subscriber: impl Fn(&Change<K>) + Send + Sync + 'static) {
        // The list of subscribers is locked first, so that no change falls between the two steps.
        let mut subscribers = self.subscribers.write();
        for object in self.list() {
            subscriber(&Change { old: None, new: Some(object) });
        }
        subscribers.push(Box::new(subscriber));
    }

    /// Waits until the first list is complete.
    pub async fn synced(&self) {
        // The sender lives as long as the cache.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    fn set(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let subscribers = self.subscribers.read();
        let new = Arc::new(object);
        let old = self.objects.write().insert(ObjectKey::of(new.as_ref()), new.clone());
        notify(&subscribers, &Change { old, new: Some(new) });
    }

    fn remove(&self, key: &ObjectKey, last: Option<K>) {
        let subscribers = self.subscribers.read();
        let present = self.objects.write().remove(key);
        if let Some(old) = last.map(Arc::new).or(present) {
            notify(&subscribers, &Change { old: Some(old), new: None });
        }
    }

    async fn run(self: Arc<Self>, api: Api<K>, config: watcher::Config, stop: CancellationToken) {
        use kube::runtime::WatchStreamExt;
        let mut events = watcher::watcher(api, config).default_backoff().boxed();
        let mut listed: Option<Vec<ObjectKey>> = None;
        let mut told = String::new();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Init)) => listed = Some(Vec::new()),
                Some(Ok(Event::InitApply(object))) => {
                    if let Some(listed) = &mut listed {
                        listed.push(ObjectKey::of(&object));
                    }
                    self.set(object);
                }
                Some(Ok(Event::InitDone)) => {
                    told.clear();
                    self.keep_only(&listed.take().unwrap_or_default());
                    self.synced.send_replace(true);
                }
                Some(Ok(Event::Apply(object))) => self.set(object),
                Some(Ok(Event::Delete(object))) => self.remove(&ObjectKey::of(&object), Some(object)),
                Some(Err(error)) => {
                    let text = error.to_string();
                    // The same cause every second would tell nothing, such as a kind that this API server lacks.
                    if text != told {
                        warn!(error = text, kind = %K::kind(&()), "watch failed, trying again");
                        told = text;
                    }
                }
                None => return,
            }
        }
    }

    /// After a new list: what it did not name is gone.
    fn keep_only(&self, listed: &[ObjectKey]) {
        let listed: std::collections::HashSet<&ObjectKey> = listed.iter().collect();
        let gone: Vec<ObjectKey> = self.objects.read().keys().filter(|key| !listed.contains(key)).cloned().collect();
        for key in gone {
            self.remove(&key, None);
        }
    }
}

/// Objects of one kind by something other than their names; see [`Cache::index`].
pub struct Index<K>(RwLock<Entries<K>>);

struct Entries<K> {
    by_name: HashMap<ObjectKey, BTreeMap<String, Arc<K>>>,
    /// The names under which each object is found.
    names: HashMap<ObjectKey, Vec<String>>,
}

impl<K> Default for Entries<K> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), names: HashMap::new() }
    }
}

impl<K> Entries<K> {
    fn put(&mut self, key: ObjectKey, object: Option<&Arc<K>>, names: Vec<String>) {
        for name in self.names.remove(&key).into_iter().flatten() {
            let name = ObjectKey::new(&key.namespace, name);
            if let Some(objects) = self.by_name.get_mut(&name) {
                objects.remove(&key.name);
                if objects.is_empty() {
                    self.by_name.remove(&name);
                }
            }
        }
        let Some(object) = object.filter(|_| !names.is_empty()) else { return };
        for name in &names {
            let objects = self.by_name.entry(ObjectKey::new(&key.namespace, name)).or_default();
            objects.insert(key.name.clone(), object.clone());
        }
        self.names.insert(key, names);
    }
}

impl<K> Index<K> {
    /// The objects of that namespace which bear `name`, in the order of their own names.
    pub fn get(&self, namespace: &str, name: &str) -> Vec<Arc<K>> {
        let entries = self.0.read();
        let found = entries.by_name.get(&ObjectKey::new(namespace, name));
        found.map(|objects| objects.values().cloned().collect()).unwrap_or_default()
    }

    /// The keys of all objects that bear a name at all, in no order.
    pub fn keys(&self) -> Vec<ObjectKey> {
        self.0.read().names.keys().cloned().collect()
    }
}

fn notify<K>(subscribers: &[Subscriber<K>], change: &Change<K>) {
    for subscriber in subscribers {
        subscriber(change);
    }
}

/// The caches of one process.
pub struct Caches {
    client: Client,
    tasks: TaskTracker,
    stop: CancellationToken,
    by_kind: Mutex<HashMap<(TypeId, Scope), Arc<dyn Any + Send + Sync>>>,
}

/// Which objects of a kind a cache holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Scope {
    All,
    System,
    /// Those that this field selector matches.
    Selected(&'static str),
}

impl Caches {
    /// Caches that read through `client` until `stop`.
    pub fn new(client: Client, tasks: TaskTracker, stop: CancellationToken) -> Arc<Self> {
        Arc::new(Self { client, tasks, stop, by_kind: Mutex::default() })
    }

    /// The client that the caches read through.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The cache of one kind, in all namespaces; started at its first use.
    pub fn of<K: Cacheable>(&self) -> Arc<Cache<K>> {
        self.cache(Scope::All, || Api::all(self.client.clone()))
    }

    /// The cache of those objects of one kind that a field selector matches, in all namespaces; started at its first use.
    pub fn of_selected<K: Cacheable>(&self, fields: &'static str) -> Arc<Cache<K>> {
        self.cache(Scope::Selected(fields), || Api::all(self.client.clone()))
    }

    /// The cache of one kind in the system namespace alone; started at its first use.
    pub fn of_system<K: Cacheable + Resource<Scope = NamespaceResourceScope>>(&self) -> Arc<Cache<K>> {
        self.cache(Scope::System, || Api::namespaced(self.client.clone(), api::SYSTEM_NAMESPACE))
    }

    fn cache<K: Cacheable>(&self, scope: Scope, api: impl Fn() -> Api<K>) -> Arc<Cache<K>> {
        let mut by_kind = self.by_kind.lock();
        if let Some(cache) = by_kind.get(&(TypeId::of::<K>(), scope)) {
            return cache.clone().downcast().expect("a cache is stored under its own type");
        }
        let cache = Arc::new(Cache::<K>::new());
        by_kind.insert((TypeId::of::<K>(), scope), cache.clone());
        let config = match scope {
            Scope::Selected(fields) => watcher::Config::default().fields(fields),
            Scope::All | Scope::System => watcher::Config::default(),
        };
        self.tasks.spawn(cache.clone().run(api(), config, self.stop.clone()));
        cache
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    #[test]
    fn an_index_follows_the_names_of_its_objects() {
        let cache = Cache::<ConfigMap>::new();
        let object = |namespace: &str, name: &str, of: &str| -> ConfigMap {
            let labels = (!of.is_empty()).then(|| [("of".to_owned(), of.to_owned())].into());
            let (namespace, name) = (Some(namespace.to_owned()), Some(name.to_owned()));
            ConfigMap { metadata: ObjectMeta { namespace, name, labels, ..Default::default() }, ..Default::default() }
        };
        cache.set(object("a", "first", "x"));
        let index = cache.index(|map| map.labels().get("of").cloned());
        let found = |namespace: &str, of: &str| -> Vec<String> {
            index.get(namespace, of).iter().map(|object| object.name_any()).collect()
        };
        assert_eq!(found("a", "x"), ["first"], "what was there before");
        cache.set(object("a", "second", "x"));
        cache.set(object("b", "third", "x"));
        cache.set(object("a", "fourth", ""));
        assert_eq!(found("a", "x"), ["first", "second"]);
        assert_eq!(found("b", "x"), ["third"]);
        assert_eq!(index.keys().len(), 3);
        cache.set(object("a", "first", "y"));
        assert_eq!((found("a", "x"), found("a", "y")), (vec!["second".to_owned()], vec!["first".to_owned()]));
        // The last that is told of an object may differ from what was seen of it.
        cache.remove(&ObjectKey::new("a", "first"), Some(object("a", "first", "z")));
        cache.keep_only(&[]);
        assert!(index.0.read().by_name.is_empty() && index.0.read().names.is_empty());
    }
}
