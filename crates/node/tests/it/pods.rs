//! Pods on a whole node, with network and sandboxes, before an API server in memory.

use std::net::IpAddr;
use std::path::Path;
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

/// A node that runs, and its end: also where a test fails, so that nothing of it stays on the machine.
struct Running {
    node: Arc<Node>,
    tasks: TaskTracker,
    stop: CancellationToken,
    ended: bool,
}

impl Running {
    async fn start(dir: &Path, api: &Arc<FakeApi>, max_pods: usize) -> Self {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let caches = Caches::new(api.client(), tasks.clone(), stop.clone());
        let config = node::Config { name: "node-1".into(), prepared: 2, max_pods, ..node::Config::new(dir) };
        std::fs::create_dir_all(&config.runtimes_dir).unwrap();
        let node = Node::start(config, api.client(), caches, Arc::new(NoNames), tasks.clone(), stop.clone());
        let node = node.await.unwrap_or_else(|error| panic!("{error:?}"));
        Self { node, tasks, stop, ended: false }
    }

    async fn end(mut self, keep_pods: bool) {
        if keep_pods {
            self.node.leave().await
        } else {
            self.node.shutdown().await
        }
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.ended = true;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(self.node.shutdown()));
            self.stop.cancel();
        }
    }
}

/// What is left of a node that let its pods run on.
struct Left {
    dir: tempfile::TempDir,
    api: Arc<FakeApi>,
}

impl Left {
    /// A node on it.
    async fn start(self) -> Fixture {
        Fixture { running: Running::start(self.dir.path(), &self.api, 10).await, left: self }
    }
}

impl std::ops::Deref for Fixture {
    type Target = Left;

    fn deref(&self) -> &Left {
        &self.left
    }
}

/// A node, its directory and its API server; the node goes first.
struct Fixture {
    running: Running,
    left: Left,
}

impl Fixture {
    async fn start() -> Self {
        Self::start_for(10).await
    }

    /// With places for so many pods.
    async fn start_for(max_pods: usize) -> Self {
        let left = Left { dir: tempfile::tempdir().unwrap(), api: FakeApi::new() };
        Self { running: Running::start(left.dir.path(), &left.api, max_pods).await, left }
    }

    /// Ends the node as `up --keep-pods` does.
    async fn leave(self) -> Left {
        self.running.end(true).await;
        self.left
    }

    fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("node-1");
        let metadata = json!({"name": name, "namespace": "default", "uid": format!("uid-{name}")});
        self.api.put(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
    }

    async fn logs(&self, pod: &str, follow: bool) -> String {
        let options = LogOptions { follow, ..LogOptions::default() };
        let stream = self.running.node.logs("default", pod, options).await.unwrap();
        let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
        String::from_utf8(pieces.concat()).unwrap()
    }

    async fn end(self) {
        self.running.end(false).await;
        assert_nothing_is_left(self.left.dir.path());
    }
}

fn assert_nothing_is_left(dir: &Path) {
    let mine = dir.to_str().unwrap();
    assert_eq!(node::network::left_over(dir).unwrap(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(dir.join("pods")).unwrap().count(), 0);
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(mine));
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        assert!(!line.contains(mine), "{line} still runs");
    }
}

/// Kills the supervisor of a pod, found by the log that it has open.
fn kill_supervisor(dir: &std::path::Path, uid: &str) {
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    for pid in pids {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if line.starts_with(b"colibri-supervisor\0") && String::from_utf8_lossy(&line).contains(dir.to_str().unwrap()) {
            let holds = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let mut open = holds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
            if open.any(|path| path.to_string_lossy().contains(uid)) {
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
                return;
            }
        }
    }
    panic!("no supervisor has a log of {uid}");
}

fn ticks() -> Value {
    shell("echo began; n=0; while :; do echo tick $n; n=$((n+1)); sleep 0.05; done")
}

fn holds(log: &std::path::Path, text: &str) -> bool {
    std::fs::read_to_string(log).is_ok_and(|log| log.contains(text))
}

async fn until(condition: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !condition() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "it never came to hold");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn is_running(pod: &Value) -> bool {
    status(pod)["ready"] == true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_node_takes_over_what_runs_and_tells_what_ended_meanwhile() {
    if !is_root() {
        return;
    }
    let first = Fixture::start().await;
    first.create("steady", json!({"containers": [ticks()]}));
    first.create("brief", json!({"restartPolicy": "Never", "containers": [shell("echo up; while ! [ -e /tmp/x ]; do sleep 0.02; n=$((n+1)); [ $n -gt 25 ] && { echo down; exit 7; }; done")]}));
    first.create("orphan", json!({"containers": [ticks()]}));
    let steady = first.api.wait(PODS, "steady", is_running).await;
    first.api.wait(PODS, "brief", is_running).await;
    first.api.wait(PODS, "orphan", is_running).await;
    let left = first.leave().await;
    left.api.remove(PODS, "orphan");
    let brief_log = left.dir.path().join("logs/default_brief_uid-brief/main/0.log");
    assert!(brief_log.exists());
    // `brief` ends, and `steady` goes on, while nobody looks.
    let steady_log = left.dir.path().join("logs/default_steady_uid-steady/main/0.log");
    until(|| holds(&brief_log, "down") && holds(&steady_log, "tick 25")).await;

    let second = left.start().await;
    let ended = second.api.wait(PODS, "brief", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(status(&ended)["state"]["terminated"]["exitCode"], 7);
    assert_eq!(second.logs("brief", false).await, "up\ndown\n");
    let now = second.api.get(PODS, "steady").unwrap();
    assert_eq!(status(&now)["restartCount"], 0);
    assert_eq!(status(&now)["state"], status(&steady)["state"], "it runs since it began");
    assert_eq!(now["status"]["podIP"], steady["status"]["podIP"]);
    let text = second.logs("steady", false).await;
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.strip_prefix("tick ")?.parse().ok()).collect();
    assert!(numbers.len() > 20, "it went on while nobody looked: {text}");
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "no line is missing or double");
    assert_eq!(std::fs::read_dir(second.dir.path().join("logs")).unwrap().count(), 2, "the orphan's logs are gone");

    let mut deleted = now.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z");
    second.api.put(PODS, deleted);
    second.api.wait(PODS, "steady", Value::is_null).await;
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_a_sandbox_starts_anew_as_its_policy_says() {
    if !is_root() {
        return;
    }
    let first = Fixture::start().await;
    first.create("again", json!({"containers": [ticks()]}));
    first.create("never", json!({"restartPolicy": "Never", "containers": [ticks()]}));
    let before = first.api.wait(PODS, "again", is_running).await;
    first.api.wait(PODS, "never", is_running).await;
    let restarted = |count: u32| move |pod: &Value| is_running(pod) && status(pod)["restartCount"] == count;

    // While the node looks.
    kill_supervisor(first.dir.path(), "uid-again");
    let after = first.api.wait(PODS, "again", restarted(1)).await;
    assert_eq!(status(&after)["lastState"]["terminated"]["reason"], "ContainerStatusUnknown");
    assert_ne!(after["status"]["podIP"], before["status"]["podIP"]);

    // While it does not.
    let left = first.leave().await;
    kill_supervisor(left.dir.path(), "uid-again");
    kill_supervisor(left.dir.path(), "uid-never");
    let second = left.start().await;
    second.api.wait(PODS, "again", restarted(2)).await;
    let never = second.api.wait(PODS, "never", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(status(&never)["state"]["terminated"]["exitCode"], 137);
    // Running begins before the first line.
    let begin = std::time::Instant::now();
    while !second.logs("again", false).await.starts_with("began\n") {
        assert!(begin.elapsed() < std::time::Duration::from_secs(30), "{:?}", second.logs("again", false).await);
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    second.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_ended_takes_no_place_and_one_that_waits_gets_the_next() {
    if !is_root() {
        return;
    }
    let fixture = Fixture::start_for(2).await;
    let once = || json!({"restartPolicy": "Never", "containers": [shell("exit 0")]});
    fixture.create("done", once());
    let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    fixture.api.wait(PODS, "done", done).await;
    fixture.create("one", json!({"containers": [ticks()]}));
    fixture.create("two", json!({"containers": [ticks()]}));
    fixture.api.wait(PODS, "one", is_running).await;
    let two = fixture.api.wait(PODS, "two", is_running).await;
    assert_eq!(fixture.logs("done", false).await, "", "the logs of what has ended are there");

    fixture.create("third", once());
    fixture.create("fourth", once());
    // The node sees changes in order: once it has this one, which needs no place, it has turned those two away.
    let metadata = json!({"name": "over", "namespace": "default", "uid": "uid-over"});
    let spec = json!({"nodeName": "node-1", "restartPolicy": "Never", "containers": [shell("exit 0")]});
    let over = json!({"metadata": metadata, "spec": spec, "status": {"phase": "Succeeded"}});
    fixture.api.put(PODS, over);
    until(|| fixture.running.node.pods() >= 4).await;
    assert_eq!(fixture.running.node.pods(), 4, "of six there are done, one, two and over");
    assert_eq!(fixture.api.get(PODS, "third").unwrap()["status"], Value::Null, "there is no place for it");

    let mut deleted = two.clone();
    deleted["metadata"]["deletionTimestamp"] = json!("2026-11-25T00:00:00Z");
    deleted["metadata"]["deletionGracePeriodSeconds"] = json!(0);
    fixture.api.put(PODS, deleted);
    fixture.api.wait(PODS, "two", Value::is_null).await;
    // The place of the second is the third's, then the fourth's.
    fixture.api.wait(PODS, "third", done).await;
    fixture.api.wait(PODS, "fourth", done).await;
    fixture.end().await;
}

#[test]
fn a_test_that_fails_leaves_nothing_on_the_machine() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let failed = std::panic::catch_unwind(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (api, path) = (FakeApi::new(), dir.path());
            let _running = Running::start(path, &api, 10).await;
            let spec = json!({"nodeName": "node-1", "containers": [ticks()]});
            let metadata = json!({"name": "a", "namespace": "default", "uid": "uid-a"});
            api.put(PODS, json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}));
            api.wait(PODS, "a", is_running).await;
            assert_ne!(node::network::left_over(path).unwrap(), Vec::<String>::new());
            panic!("as a test that fails");
        });
    });
    assert_eq!(failed.unwrap_err().downcast_ref::<&str>(), Some(&"as a test that fails"));
    assert_nothing_is_left(dir.path());
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
