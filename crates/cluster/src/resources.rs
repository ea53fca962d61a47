//! Which kinds the API server has, by discovery.

use kube::Client;
use kube::api::ApiResource;

use crate::StepError;

/// One kind and what can be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Names of the kind.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// Every kind whose objects can be listed, watched and deleted, each in its group's preferred version.
///
/// # Errors
///
/// When the API server does not answer discovery.
pub async fn deletable(client: &Client) -> Result<Vec<Kind>, StepError> {
    let discover = "discovering the API's resources";
    let mut kinds = Vec::new();
    let core = client.list_core_api_resources("v1").await.map_err(StepError::api(discover))?;
    kinds.extend(core.resources.iter().filter_map(|resource| kind("", "v1", resource)));
    let groups = client.list_api_groups().await.map_err(StepError::api(discover))?;
    for group in groups.groups {
        let preferred = group.preferred_version.as_ref().or_else(|| group.versions.first());
        let Some(preferred) = preferred else { continue };
        let listed = client.list_api_group_resources(&preferred.group_version).await;
        let resources = match listed {
            Ok(list) => list.resources,
            // The group went away between the two requests.
            Err(error) if crate::is_not_found(&error) => continue,
            Err(error) => return Err(StepError::api(discover)(error)),
        };
        kinds.extend(resources.iter().filter_map(|resource| kind(&group.name, &preferred.version, resource)));
    }
    Ok(kinds)
}

fn kind(
    group: &str,
    version: &str,
    found: &k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource,
) -> Option<Kind> {
    let can = |verb: &str| found.verbs.iter().any(|present| present == verb);
    if found.name.contains('/') || !["list", "watch", "delete"].into_iter().all(can) {
        return None;
    }
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: found.kind.clone(),
        plural: found.name.clone(),
    };
    Some(Kind { resource, namespaced: found.namespaced })
}
