//! Writes as data: what a plan consists of, and the one place that carries it out.
//!
//! All controllers share this: their plans differ in what is written, not in how.

use std::any::TypeId;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use api::autoscaling::PodAutoscaler;
use api::serving::domain::{ClusterDomainClaim, DomainMapping};
use api::serving::{Configuration, Revision, Route, Service};
use client::ObjectKey;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, Service as CoreService};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, GetParams, PostParams, Preconditions};
use kube::core::Request;
use kube::{Client, Resource};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// How long a cache may take to show a write; after that it is written again, and the API server decides.
const CACHE_DELAY: Duration = Duration::from_secs(2);

macro_rules! objects {
    ($($kind:ident),*) => {
        /// An object of one of the kinds that the controllers write.
        #[derive(Clone, Debug, PartialEq)]
        pub(crate) enum Object {
            $(#[doc = concat!("A ", stringify!($kind), ".")] $kind(Box<$kind>)),*
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*

        impl Object {
            fn kind(&self) -> &'static str {
                match self { $(Self::$kind(_) => stringify!($kind)),* }
            }

            fn type_id(&self) -> TypeId {
                match self { $(Self::$kind(_) => TypeId::of::<$kind>()),* }
            }

            fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata),* }
            }

            /// The collection that the object belongs to, and the object as JSON. Of a cluster-wide kind the namespace
            /// is empty.
            fn request(&self, namespace: &str) -> kube::Result<(Request, Vec<u8>)> {
                let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
                match self {
                    $(Self::$kind(object) => {
                        let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
                        Ok((Request::new($kind::url_path(&(), namespace)), body))
                    })*
                }
            }
        }
    };
}

/// Sends a request. The answer is not decoded: what was written comes back by the watches.
async fn send(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> kube::Result<()> {
    client.request_text(request.map_err(kube::Error::BuildRequest)?).await.map(drop)
}

impl Object {
    async fn exists(&self, client: &Client, namespace: &str, name: &str) -> kube::Result<bool> {
        let request = self.request(namespace)?.0.get(name, &GetParams::default());
        match send(client, request).await {
            Ok(()) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, client: &Client, namespace: &str) -> kube::Result<()> {
        let (request, body) = self.request(namespace)?;
        send(client, request.create(&PostParams::default(), body)).await
    }

    async fn replace(&self, client: &Client, namespace: &str, name: &str) -> kube::Result<()> {
        let (request, body) = self.request(namespace)?;
        send(client, request.replace(name, &PostParams::default(), body)).await
    }

    async fn replace_status(&self, client: &Client, namespace: &str, name: &str) -> kube::Result<()> {
        let (request, body) = self.request(namespace)?;
        send(client, request.replace_subresource("status", name, &PostParams::default(), body)).await
    }

    async fn delete(
        &self,
        client: &Client,
        namespace: &str,
        name: &str,
        resource_version: Option<String>,
    ) -> kube::Result<()> {
        let preconditions = Some(Preconditions { uid: self.meta().uid.clone(), resource_version });
        let params = DeleteParams { preconditions, ..DeleteParams::background() };
        send(client, self.request(namespace)?.0.delete(name, &params)).await
    }
}

objects!(Service, Configuration, Revision, Route, PodAutoscaler, DomainMapping, ClusterDomainClaim, Pod, CoreService);

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Write {
    /// Makes a new object.
    Create(Object),
    /// Replaces metadata and spec; fails on a newer version.
    Update(Object),
    /// Replaces the status; fails on a newer version.
    Status(Object),
    /// Deletes this very object, not one that took its name since.
    Delete(Object),
    /// Deletes the object if it is still as it was seen.
    DeleteUnchanged(Object),
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, object) = match self {
            Self::Create(object) => ("create", object),
            Self::Update(object) => ("update", object),
            Self::Status(object) => ("status", object),
            Self::Delete(object) | Self::DeleteUnchanged(object) => ("delete", object),
        };
        write!(f, "{verb} {} {}", object.kind(), self.key())
    }
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// The cache that the plan was made from is behind; its next change brings the work back.
    #[error("{write}: the object has changed meanwhile")]
    Stale { write: String, source: kube::Error },
    /// The cache does not show this process' own last write of the object yet.
    #[error("{write}: the last write is still on its way back")]
    Behind { write: String },
    /// The API server refused it, or could not be reached.
    #[error("{write}")]
    Refused { write: String, source: kube::Error },
}

impl Write {
    fn object(&self) -> &Object {
        match self {
            Self::Create(object)
            | Self::Update(object)
            | Self::Status(object)
            | Self::Delete(object)
            | Self::DeleteUnchanged(object) => object,
        }
    }

    /// Key of what is written.
    pub(crate) fn key(&self) -> ObjectKey {
        let meta = self.object().meta();
        ObjectKey::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }

    /// Whether the object is there although its creation failed with `error`: the answer may have got lost, or a proxy
    /// on the way gave up. Where nobody knows, it is.
    pub(crate) async fn is_made(&self, client: &Client, error: &WriteError) -> bool {
        let (WriteError::Stale { source, .. } | WriteError::Refused { source, .. }) = error else { return true };
        if matches!(source, kube::Error::Api(status) if (400..500).contains(&status.code)) {
            return false;
        }
        let ObjectKey { namespace, name } = self.key();
        self.object().exists(client, &namespace, &name).await.unwrap_or(true)
    }

    /// Carries the write out; whether the object was there. One that is gone needs no update, status or deletion.
    pub(crate) async fn apply(&self, client: &Client) -> Result<bool, WriteError> {
        let ObjectKey { namespace, name } = self.key();
        let result = match self {
            Self::Create(object) => object.create(client, &namespace).await,
            Self::Update(object) => object.replace(client, &namespace, &name).await,
            Self::Status(object) => object.replace_status(client, &namespace, &name).await,
            Self::Delete(object) => object.delete(client, &namespace, &name, None).await,
            Self::DeleteUnchanged(object) => {
                object.delete(client, &namespace, &name, object.meta().resource_version.clone()).await
            }
        };
        let Err(error) = result else { return Ok(true) };
        let code = match &error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        match (self, code) {
            (Self::Update(_) | Self::Status(_) | Self::Delete(_) | Self::DeleteUnchanged(_), 404)
            | (Self::Delete(_), 409) => Ok(false),
            (_, 409) => Err(WriteError::Stale { write: self.to_string(), source: error }),
            _ => Err(WriteError::Refused { write: self.to_string(), source: error }),
        }
    }
}

/// Carries plans out, and knows what was written a moment ago: a plan that was made before that came back would only be
/// refused, or make a thing twice.
pub(crate) struct Writer {
    client: Client,
    recent: Mutex<Recent>,
}

/// A kind and a key.
type Target = (TypeId, ObjectKey);

/// What was written within [`CACHE_DELAY`].
#[derive(Default)]
struct Recent {
    /// The version that an object was written over last, `None` for one that was made; and when.
    over: HashMap<Target, (Option<String>, Instant)>,
    ages: VecDeque<(Instant, Target)>,
}

impl Recent {
    fn expire(&mut self, now: Instant) {
        while let Some((since, target)) = self.ages.pop_front_if(|(since, _)| *since + CACHE_DELAY <= now) {
            // One that was written again is younger.
            if self.over.get(&target).is_some_and(|(_, last)| *last == since) {
                self.over.remove(&target);
            }
        }
    }

    fn is_behind(&self, target: &Target, version: Option<&String>) -> bool {
        self.over.get(target).is_some_and(|(over, _)| over.as_ref() == version)
    }

    fn insert(&mut self, target: Target, over: Option<String>, now: Instant) {
        self.ages.push_back((now, target.clone()));
        self.over.insert(target, (over, now));
    }
}

impl Writer {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, recent: Mutex::default() }
    }

    /// The object is gone: it may be made again.
    pub(crate) fn forget<K: 'static>(&self, key: ObjectKey) {
        self.recent.lock().over.remove(&(TypeId::of::<K>(), key));
    }

    /// Carries out one write; whether the object was there.
    pub(crate) async fn apply(&self, write: &Write) -> Result<bool, WriteError> {
        let over = match write {
            Write::Create(_) => None,
            Write::Update(object) | Write::Status(object) => object.meta().resource_version.clone(),
            Write::Delete(_) | Write::DeleteUnchanged(_) => return write.apply(&self.client).await,
        };
        let target = (write.object().type_id(), write.key());
        {
            let mut recent = self.recent.lock();
            recent.expire(Instant::now());
            if recent.is_behind(&target, over.as_ref()) {
                return Err(WriteError::Behind { write: write.to_string() });
            }
        }
        let found = write.apply(&self.client).await?;
        self.recent.lock().insert(target, over, Instant::now());
        Ok(found)
    }

    /// Carries out a plan for `owner`, in order, up to the first failure. Nothing is made for an owner that is gone.
    pub(crate) async fn apply_all<K>(&self, owner: &K, writes: &[Write]) -> Result<(), WriteError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + fmt::Debug,
    {
        let mut is_there = false;
        for write in writes {
            if matches!(write, Write::Create(_)) && !is_there {
                if !client::is_there(&self.client, owner)
                    .await
                    .map_err(|source| WriteError::Refused { write: write.to_string(), source })?
                {
                    return Ok(());
                }
                is_there = true;
            }
            let found = self.apply(write).await?;
            tracing::debug!(%write, found, "applied");
            // The status is the owner's own.
            if matches!(write, Write::Status(_)) {
                if !found {
                    return Ok(());
                }
                is_there = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_is_known_until_its_version_is_seen_or_its_time_is_up() {
        let mut recent = Recent::default();
        let target = |name: &str| (TypeId::of::<Revision>(), ObjectKey::new("a", name));
        let (one, two) = ("1".to_owned(), "2".to_owned());
        recent.insert(target("x"), None, Instant::now());
        assert!(recent.is_behind(&target("x"), None), "made, and not seen yet");
        assert!(!recent.is_behind(&target("y"), None));
        recent.insert(target("x"), Some(one.clone()), Instant::now() + Duration::from_secs(1));
        assert!(recent.is_behind(&target("x"), Some(&one)));
        assert!(!recent.is_behind(&target("x"), Some(&two)), "the cache has caught up");
        recent.expire(Instant::now() + CACHE_DELAY);
        assert!(recent.is_behind(&target("x"), Some(&one)), "the later write is younger");
        recent.expire(Instant::now() + CACHE_DELAY + Duration::from_secs(1));
        assert!(!recent.is_behind(&target("x"), Some(&one)));
        assert!(recent.over.is_empty() && recent.ages.is_empty());
    }
}
