//! Objects that exist on every platform: our kinds' definitions, the system namespace and its ConfigMaps.

use anyhow::{Context, Result};
use api::config::EXAMPLE;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

/// Creates what is missing and brings the definitions up to date.
///
/// # Errors
///
/// When the API server refuses an object.
pub async fn install(client: &Client) -> Result<()> {
    let definitions = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in api::crds::all() {
        let name = definition.name_any();
        match definitions.get_opt(&name).await? {
            None => {
                definitions.create(&PostParams::default(), &definition).await.with_context(|| name.clone())?;
            }
            Some(present) if present.spec != definition.spec => {
                let mut next = definition;
                next.metadata.resource_version = present.resource_version();
                definitions.replace(&name, &PostParams::default(), &next).await.with_context(|| name.clone())?;
            }
            Some(_) => {}
        }
    }
    let namespaces = Api::<Namespace>::all(client.clone());
    if namespaces.get_opt(api::SYSTEM_NAMESPACE).await?.is_none() {
        let metadata = ObjectMeta { name: Some(api::SYSTEM_NAMESPACE.to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        namespaces.create(&PostParams::default(), &namespace).await.context(api::SYSTEM_NAMESPACE)?;
    }
    config_maps(client).await
}

/// Creates the ConfigMaps that are missing, and brings their documentation up to date.
///
/// # Errors
///
/// When the API server refuses one.
pub async fn config_maps(client: &Client) -> Result<()> {
    let config_maps = Api::<ConfigMap>::namespaced(client.clone(), api::SYSTEM_NAMESPACE);
    for map in &api::config::MAPS {
        let initial = map.initial();
        match config_maps.get_opt(map.name).await? {
            None => {
                config_maps.create(&PostParams::default(), &initial).await.context(map.name)?;
            }
            // An earlier build documented other keys.
            Some(mut present) => {
                let wanted = initial.data.and_then(|mut data| data.remove(EXAMPLE)).unwrap_or_default();
                let data = present.data.get_or_insert_default();
                if data.get(EXAMPLE).is_some_and(|text| *text != wanted) {
                    data.insert(EXAMPLE.to_owned(), wanted);
                    config_maps.replace(map.name, &PostParams::default(), &present).await.context(map.name)?;
                }
            }
        }
    }
    Ok(())
}
