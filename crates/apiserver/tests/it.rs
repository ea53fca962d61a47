//! The server as its clients see it: over TLS, and through the in-process client.

#![expect(clippy::unwrap_used, reason = "a test fails where it unwraps")]

#[path = "it/webhooks.rs"]
mod webhooks;

use std::path::{Path, PathBuf};
use std::process::Command;

use apiserver::{Access, ApiServer, Config, User};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

async fn start(data_dir: Option<PathBuf>) -> (std::sync::Arc<ApiServer>, String, CancellationToken) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = ApiServer::open(Config { data_dir, ..Config::default() }).await.unwrap();
    let stop = CancellationToken::new();
    let (serving, token) = (server.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(listener, Access::Full, token).await.unwrap() });
    (server, url, stop)
}

#[tokio::test]
async fn the_in_process_client_creates_watches_and_deletes() {
    use futures::TryStreamExt;
    let server = ApiServer::open(Config::default()).await.unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(server.client(User::master("test")));
    let new: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).unwrap();
    let created = api.create(&PostParams::default(), &new).await.unwrap();
    let revision = created.metadata.resource_version.clone().unwrap();
    let mut watch = std::pin::pin!(api.watch(&WatchParams::default(), &revision).await.unwrap());
    let patch = Patch::Merge(json!({"data": {"k": "w"}}));
    api.patch("a", &PatchParams::default(), &patch).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let Some(WatchEvent::Modified(changed)) = watch.try_next().await.unwrap() else { panic!("a change is first") };
    assert_eq!(changed.data.unwrap()["k"], "w");
    assert!(matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Deleted(_))));
    assert!(api.list(&ListParams::default()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn server_side_apply_keeps_owners_apart() {
    let server = ApiServer::open(Config::default()).await.unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(server.client(User::master("test")));
    let config = |data: serde_json::Value| {
        Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}))
    };
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    api.patch("a", &one, &config(json!({"x": "1", "y": "1"}))).await.unwrap();
    api.patch("a", &two, &config(json!({"z": "1"}))).await.unwrap();
    let conflict = api.patch("a", &two, &config(json!({"x": "2", "z": "1"}))).await.unwrap_err();
    assert!(conflict.to_string().contains("conflict with \"one\" using v1: .data.x"), "{conflict}");
    let kept = api.patch("a", &one, &config(json!({"x": "1"}))).await.unwrap();
    let data = kept.data.unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["x", "z"], "what one no longer names goes, what two set stays");
    let forced = api.patch("a", &two.clone().force(), &config(json!({"x": "2"}))).await.unwrap();
    assert_eq!(forced.data.unwrap()["x"], "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_and_definitions_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}}}}}}]},
    });
    let resource = kube::api::ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    {
        let server =
            ApiServer::open(Config { data_dir: Some(folder.path().into()), ..Config::default() }).await.unwrap();
        let client = server.client(User::master("test"));
        let request = http::Request::post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")
            .body(crd.to_string().into_bytes())
            .unwrap();
        client.request::<serde_json::Value>(request).await.unwrap();
        let api: Api<kube::api::DynamicObject> = Api::default_namespaced_with(client, &resource);
        let widget = serde_json::from_value(
            json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "spec": {"no": 1}}),
        )
        .unwrap();
        let created = api.create(&PostParams::default(), &widget).await.unwrap();
        assert_eq!(created.data["spec"], json!({"size": 3}));
        server.close();
    }
    let server = ApiServer::open(Config { data_dir: Some(folder.path().into()), ..Config::default() }).await.unwrap();
    let api: Api<kube::api::DynamicObject> =
        Api::default_namespaced_with(server.client(User::master("test")), &resource);
    assert_eq!(api.get("w").await.unwrap().data["spec"], json!({"size": 3}));
}

/// Steps of each recorded area that must pass.
const FLOORS: [(&str, u32); 17] = [
    ("core", 117),
    ("requests", 98),
    ("discovery", 37),
    ("watches", 112),
    ("lists", 71),
    ("crd", 136),
    ("tables", 77),
    ("patches", 68),
    ("deletion", 39),
    ("subresources", 84),
    ("pods", 69),
    ("auth", 134),
    ("apply", 56),
    ("admission", 32),
    ("services", 25),
    ("workloads", 32),
    ("other-kinds", 62),
];

/// The recorded conversations, in the folder that `COLIBRI_VECTORS` names or beside the workspace.
fn vectors() -> Option<(PathBuf, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let vectors = std::env::var_os("COLIBRI_VECTORS").map_or_else(|| root.join("../shared/vectors"), PathBuf::from);
    let tool = vectors.join("../tools/replay_api.py");
    (tool.is_file() && vectors.join("apiserver").is_dir()).then_some((vectors.join("apiserver"), tool))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_apiserver() {
    let Some((folder, tool)) = vectors() else {
        println!("skipped: the recorded API conversations are not here (set COLIBRI_VECTORS)");
        return;
    };
    let (server, url, stop) = start(None).await;
    let token = server.pki().admin_token.clone();
    // All areas at once: most of their time is waiting.
    let runs = FLOORS.map(|(area, floor)| {
        let mut command = Command::new("python3");
        command.arg(&tool).args([
            "--server",
            &url,
            "--token",
            &token,
            "--insecure",
            "--jobs",
            "4",
            "--without",
            "controllers",
        ]);
        command.arg(folder.join(format!("{area}.json")));
        (area, floor, tokio::task::spawn_blocking(move || command.output().unwrap()))
    });
    let mut below = Vec::new();
    for (area, floor, run) in runs {
        let output = run.await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default().to_string();
        let passed: u32 = last.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        println!("{area}: {last}");
        if passed < floor {
            below.push(format!("{area}: {passed} < {floor}\n{text}"));
        }
    }
    stop.cancel();
    assert!(below.is_empty(), "{}", below.join("\n"));
}

/// A file system of a few MiB in memory; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_with_its_cause_and_cure() {
    let disk = SmallDisk(tempfile::tempdir().unwrap());
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8m", "api-test"]).arg(disk.0.path()).status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a small file system cannot be mounted here");
        return;
    }
    let server =
        ApiServer::open(Config { data_dir: Some(disk.0.path().join("data")), ..Config::default() }).await.unwrap();
    let api: Api<ConfigMap> = Api::default_namespaced(server.client(User::master("test")));
    let new = |name: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v".repeat(500 << 10)}})).unwrap()
    };
    api.create(&PostParams::default(), &new("first")).await.unwrap();
    let ballast = disk.0.path().join("ballast");
    // Until nothing fits any more.
    let _ = std::fs::write(&ballast, vec![1; 7 << 20]);
    let kube::Error::Api(status) = api.create(&PostParams::default(), &new("second")).await.unwrap_err() else {
        panic!("an answer of the server")
    };
    assert_eq!((status.code, status.reason.as_str()), (507, "InsufficientStorage"), "{status:?}");
    assert!(status.message.contains("No space left on device") && status.message.contains("free space"), "{status:?}");
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1, "reads go on");
    std::fs::remove_file(ballast).unwrap();
    api.create(&PostParams::default(), &new("second")).await.unwrap();
}
