//! The end of a definition of custom resources: its objects go first.

use std::time::Duration;

use http::Method;
use serde_json::json;

use crate::ApiServer;
use crate::body;
use crate::crd;
use crate::housekeeping::path_of;
use crate::object::{finalizers, is_deleting};
use crate::special::cleanup_user;

/// Time between looks while objects wait for their finalizers.
const PAUSE: Duration = Duration::from_millis(200);

impl ApiServer {
    /// Deletes the objects of a definition, then the definition.
    pub(crate) fn start_cleanup(&self, name: String) {
        let Some(server) = self.me.upgrade() else { return };
        tokio::spawn(async move {
            let stop = server.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = server.cleanup(&name) => {}
            }
        });
    }

    async fn cleanup(self: &std::sync::Arc<Self>, name: &str) {
        let table = self.store.table(&format!("{}/{}", crd::GROUP, crd::PLURAL));
        let Some((plural, group)) = name.split_once('.') else { return };
        loop {
            let Some(entry) = table.get(name) else { return };
            let value = entry.record.value();
            if !is_deleting(&value) {
                return;
            }
            if self.store.table(&format!("{group}/{plural}")).is_empty() {
                let kept: Vec<&str> = finalizers(&value).into_iter().filter(|f| *f != crd::CLEANUP).collect();
                let patch =
                    json!({"metadata": {"finalizers": kept, "resourceVersion": value["metadata"]["resourceVersion"]}});
                self.send(
                    Method::PATCH,
                    &format!("/apis/{}/v1/{}/{name}", crd::GROUP, crd::PLURAL),
                    &patch.to_string(),
                )
                .await;
                if table.get(name).is_none_or(|entry| !finalizers(&entry.record.value()).contains(&crd::CLEANUP)) {
                    return;
                }
            } else if let Some(served) = self.registry.any_version(group, plural) {
                self.delete_instances(&served).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn delete_instances(self: &std::sync::Arc<Self>, served: &crate::registry::Served) {
        for (key, entry) in self.table(served).list("", None, usize::MAX, |_| true).entries {
            if !is_deleting(&entry.record.value()) {
                self.send(Method::DELETE, &path_of(&served.def, &key), "").await;
            }
        }
    }

    /// Sends a request of the server's own.
    pub(crate) async fn send(&self, method: Method, path: &str, text: &str) {
        let Some(server) = self.me.upgrade() else { return };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header(
                http::header::CONTENT_TYPE,
                if text.is_empty() { "application/json" } else { "application/merge-patch+json" },
            )
            .body(body::full(text.to_string()));
        match request {
            Ok(request) => {
                let response = server.handle(cleanup_user(), request).await;
                if !response.status().is_success() {
                    tracing::debug!(path, status = %response.status(), "clean-up of custom resources tries again");
                }
            }
            Err(error) => tracing::warn!(%error, path, "clean-up of custom resources has a bad path"),
        }
    }
}
