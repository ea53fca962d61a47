//! Pods on a whole node, with network and sandboxes, before an API server in memory.

use std::net::IpAddr;
use std::sync::Arc;

use client::Caches;
use client::kubelet::{Kubelet, LogOptions};
use futures::StreamExt;
use node::Node;
use node::network::Resolve;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fake_api::FakeApi;
use super::sandbox::is_root;

const PODS: &str = "/api/v1/namespaces/default/pods";

struct NoNames;

impl Resolve for NoNames {
    fn lookup(&self, _name: &str) -> Option<Vec<IpAddr>> {
        None
    }
}

struct Fixture {
    dir: tempfile::TempDir,
    api: Arc<FakeApi>,
    node: Arc<Node>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Fixture {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let api = FakeApi::new();
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let caches = Caches::new(api.client(), tasks.clone(), stop.clone());
        let config = node::Config { name: "node-1".into(), prepared: 2, ..node::Config::new(dir.path()) };
        std::fs::create_dir_all(&config.runtimes_dir).unwrap();
        let node = Node::start(config, api.client(), caches, Arc::new(NoNames), tasks.clone(), stop.clone());
        let node = node.await.unwrap_or_else(|error| panic!("{error:?}"));
        Self { dir, api, node, tasks, stop }
    }

    fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("node-1");
        let metadata = json!({"name": name, "namespace": "default", "uid": format!("uid-{name}")});
        self.api.put(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
    }

    async fn logs(&self, pod: &str, follow: bool) -> String {
        let options = LogOptions { follow, ..LogOptions::default() };
        let stream = self.node.logs("default", pod, options).await.unwrap();
        let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
        String::from_utf8(pieces.concat()).unwrap()
    }

    async fn end(self) {
        self.node.shutdown().await;
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let mine = self.dir.path().to_str().unwrap().to_owned();
        assert_eq!(node::network::left_over(self.dir.path()).unwrap(), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(self.dir.path().join("pods")).unwrap().count(), 0);
        assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&mine));
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
            assert!(!line.contains(&mine), "{line} still runs");
        }
    }
}

fn shell(script: &str) -> Value {
    json!({"name": "main", "image": "runtime.colibri.local/binary", "command": ["/bin/sh", "-c", script]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_becomes_ready_answers_and_ends_with_grace() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::start().await;
    let registered = fixture.api.get("/api/v1/nodes", "node-1").unwrap();
    assert_eq!(registered["metadata"]["labels"]["kubernetes.io/os"], "linux");
    assert!(
        registered["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["type"] == "Ready" && c["status"] == "True")
    );
    fixture.api.put(
        "/api/v1/namespaces/default/configmaps",
        json!({"metadata": {"name": "page"}, "data": {"index.html": "hello from the map"}}),
    );
    let script = "import http.server, os, signal, sys\n\
        signal.signal(signal.SIGTERM, lambda *_: (print('bye', flush=True), os._exit(0)))\n\
        os.chdir('/page')\nprint('up as', os.environ['WHO'], flush=True)\n\
        http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()";
    fixture.create(
        "web",
        json!({
            "terminationGracePeriodSeconds": 20,
            "volumes": [{"name": "page", "configMap": {"name": "page"}}],
            "containers": [{
                "name": "main",
                "image": "runtime.colibri.local/python",
                "command": ["python3", "-I", "-S", "-c", script],
                "env": [
                    {"name": "PORT", "value": "80"},
                    {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
                ],
                "ports": [{"containerPort": 80}],
                "volumeMounts": [{"name": "page", "mountPath": "/page"}],
                "readinessProbe": {"httpGet": {"path": "/index.html", "port": 80}, "periodSeconds": 1}
            }]
        }),
    );
    let is_ready = |pod: &Value| pod["status"]["containerStatuses"][0]["ready"] == true;
    let pod = fixture.api.wait(PODS, "web", is_ready).await;
    assert_eq!(pod["status"]["phase"], "Running");
    let address = pod["status"]["podIP"].as_str().unwrap();
    let body = {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect((address, 80)).await.unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    assert!(body.ends_with("hello from the map"), "{body}");
    assert!(fixture.logs("web", false).await.starts_with("up as web\n"));

    let mut deleted = pod.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z");
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(20);
    let (text, ()) = tokio::join!(fixture.logs("web", true), async { fixture.api.put(PODS, deleted) });
    assert!(text.ends_with("bye\n"), "{text}");
    fixture.api.wait(PODS, "web", Value::is_null).await;
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_failures_and_missing_images_are_told() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::start().await;
    fixture.create(
        "job",
        json!({"restartPolicy": "Never", "containers": [shell("echo reason > /dev/termination-log; exit 3")]}),
    );
    fixture.create("loop", json!({"containers": [shell("exit 1")]}));
    fixture.create("image", json!({"containers": [{"name": "main", "image": "127.0.0.1:9/no/such:1"}]}));
    fixture.create(
        "config",
        json!({"containers": [{
            "name": "main", "image": "runtime.colibri.local/binary", "command": ["/bin/true"],
            "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "none", "key": "a"}}}]
        }]}),
    );
    fixture.create("host", json!({"hostNetwork": true, "containers": [shell("true")]}));
    fixture.create("init", json!({
        "restartPolicy": "Never",
        "volumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [{
            "name": "first", "image": "runtime.colibri.local/binary", "command": ["/bin/sh", "-c", "echo made > /shared/file"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]
        }],
        "containers": [{
            "name": "main", "image": "runtime.colibri.local/binary", "command": ["/bin/sh", "-c", "cat /shared/file"],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]
        }]
    }));
    let job = fixture.api.wait(PODS, "job", |pod| pod["status"]["phase"] == "Failed").await;
    let ended = &job["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"], &ended["message"]),
        (&json!(3), &json!("Error"), &json!("reason\n"))
    );
    let waiting = |reason: &'static str| {
        move |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == reason
    };
    let looped = fixture
        .api
        .wait(PODS, "loop", |pod| {
            waiting("CrashLoopBackOff")(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 2
        })
        .await;
    assert_eq!(looped["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 1);
    fixture.api.wait(PODS, "image", waiting("ErrImagePull")).await;
    let config = fixture.api.wait(PODS, "config", waiting("CreateContainerConfigError")).await;
    assert_eq!(config["status"]["containerStatuses"][0]["state"]["waiting"]["message"], "Secret \"none\" not found");
    fixture.api.wait(PODS, "host", waiting("CreateContainerConfigError")).await;
    fixture.api.wait(PODS, "init", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(fixture.logs("init", false).await, "made\n");
    fixture.end().await;
}
