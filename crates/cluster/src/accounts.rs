//! Gives each namespace the service account `default` and the ConfigMap `kube-root-ca.crt`.
//!
//! Source: Kubernetes' `serviceaccount` and `root-ca-certificate-publisher` controllers.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Caches, Queue, queue::Outcome, run_workers_after};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{StepError, is_conflict};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

pub(crate) fn start(root_ca_pem: String, caches: &Arc<Caches>, tasks: &TaskTracker, stop: &CancellationToken) {
    let queue = Queue::<String>::new();
    let namespaces = caches.of::<Namespace>();
    let add = queue.clone();
    namespaces.subscribe(move |change| add.add(change.object().name_any()));
    let accounts = caches.of::<ServiceAccount>();
    let add = queue.clone();
    accounts.subscribe(move |change| {
        if change.new.is_none() && change.object().name_any() == ACCOUNT {
            add.add(change.object().namespace().unwrap_or_default());
        }
    });
    let configs = caches.of::<ConfigMap>();
    let add = queue.clone();
    configs.subscribe(move |change| {
        if change.object().name_any() == ROOT_CA {
            add.add(change.object().namespace().unwrap_or_default());
        }
    });
    let client = caches.client().clone();
    let data = BTreeMap::from([("ca.crt".to_owned(), root_ca_pem)]);
    let first = (namespaces.clone(), accounts.clone(), configs.clone());
    let ready = async move {
        tokio::join!(first.0.synced(), first.1.synced(), first.2.synced());
    };
    run_workers_after(ready, "accounts", &queue, 1, tasks, stop, move |namespace: String| {
        let (client, data) = (client.clone(), data.clone());
        let (namespaces, accounts, configs) = (namespaces.clone(), accounts.clone(), configs.clone());
        async move {
            let active = namespaces.get("", &namespace).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
            if !active {
                return Ok(Outcome::Done);
            }
            if accounts.get(&namespace, ACCOUNT).is_none() {
                create_account(&client, &namespace).await?;
            }
            if configs.get(&namespace, ROOT_CA).is_none_or(|present| present.data.as_ref() != Some(&data)) {
                publish_root_ca(&client, &namespace, data).await?;
            }
            Ok::<_, StepError>(Outcome::Done)
        }
    });
}

async fn create_account(client: &Client, namespace: &str) -> Result<(), StepError> {
    let account = ServiceAccount { metadata: named(namespace, ACCOUNT), ..ServiceAccount::default() };
    let api = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    tolerate_race(api.create(&PostParams::default(), &account).await)
        .map_err(StepError::api("creating the default service account"))
}

async fn publish_root_ca(client: &Client, namespace: &str, data: BTreeMap<String, String>) -> Result<(), StepError> {
    let map = ConfigMap { metadata: named(namespace, ROOT_CA), data: Some(data), ..ConfigMap::default() };
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let created = api.create(&PostParams::default(), &map).await;
    let result = match created {
        Err(error) if is_conflict(&error) => api.replace(ROOT_CA, &PostParams::default(), &map).await,
        other => other,
    };
    tolerate_race(result).map_err(StepError::api("publishing the CA's certificate"))
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..ObjectMeta::default() }
}

/// Another writer was first (409), or the namespace goes away (403, 404): the next event tells.
fn tolerate_race<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}
