//! What only the API server itself knows: a cache may be behind.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Whether this very object, not one that took its name, is there and is not being deleted.
///
/// Whoever makes something for an object asks this first. The API server takes children of an object that is gone, the
/// garbage collector deletes them, and a controller whose watch lags would make them again, without end.
///
/// # Errors
///
/// When the API server gives no answer.
pub async fn is_there<K>(client: &Client, object: &K) -> kube::Result<bool>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let found = api.get_metadata_opt(&object.name_any()).await?;
    Ok(found.is_some_and(|found| found.metadata.deletion_timestamp.is_none() && found.uid() == object.uid()))
}
