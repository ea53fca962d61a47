//! Sandboxes without the pod network: start, logs, ends, limits, and attempts to break out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use node::sandbox::{PodNetwork, Sandbox, SandboxConfig, Sandboxes, found};
use supervisor::*;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

struct NoNetwork;

impl PodNetwork for NoNetwork {
    fn attach(&self, _pid: u32) -> BoxFuture<'_, Result<Ipv4Addr, String>> {
        Box::pin(async { Ok(Ipv4Addr::LOCALHOST) })
    }

    fn release(&self, _address: Ipv4Addr) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// Whether this process is root; else says so.
pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: sandboxes need root");
    }
    root
}

struct Fixture {
    dir: tempfile::TempDir,
    sandboxes: Arc<Sandboxes>,
    cgroup: String,
}

async fn fixture(name: &str, prepared: usize, user_namespace: bool) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let cgroup = format!("colibri-test-{name}-{}", std::process::id());
    let config = SandboxConfig {
        dir: dir.path().join("pods"),
        prepared,
        cgroup: cgroup.clone(),
        user_namespace: user_namespace.then_some(1_000_000),
    };
    let network = Arc::new(NoNetwork);
    let sandboxes = Sandboxes::start(config, &BTreeSet::new(), network, &TaskTracker::new(), CancellationToken::new())
        .await
        .unwrap();
    Fixture { dir, sandboxes, cgroup }
}

impl Fixture {
    async fn end(self) {
        self.sandboxes.shutdown().await;
        let left: Vec<_> = std::fs::read_dir(self.dir.path().join("pods")).unwrap().collect();
        assert!(left.is_empty(), "folders left: {left:?}");
        let cgroups = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        for mount in cgroups.lines().filter(|line| line.contains(" - cgroup")) {
            let at = Path::new(mount.split(' ').nth(4).unwrap()).join(&self.cgroup);
            assert!(!at.exists(), "{} is left", at.display());
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts left: {mounts}");
    }
}

impl Drop for Fixture {
    /// Where a test fails, nothing of it stays on the machine.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let runtime = tokio::runtime::Handle::current();
            tokio::task::block_in_place(|| runtime.block_on(self.sandboxes.shutdown()));
        }
    }
}

/// The host's `/usr` and nothing else.
fn host_root() -> Root {
    let mut host = HostRoot { binds: vec!["/usr".into()], ..HostRoot::default() };
    for name in ["bin", "lib", "lib64", "sbin"] {
        if let Ok(target) = std::fs::read_link(format!("/{name}")) {
            host.links.push((format!("/{name}"), target.to_string_lossy().into_owned()));
        }
    }
    host.files.push(("/etc/passwd".into(), "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/home:/bin/sh\n".into()));
    host.scratch = ["/tmp", "/home", "/run", "/var"].map(String::from).to_vec();
    Root::Host(host)
}

fn container(fixture: &Fixture, args: &[&str]) -> ContainerSpec {
    let logs = fixture.dir.path().join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    ContainerSpec {
        name: "main".into(),
        run: 0,
        note: String::new(),
        root: host_root(),
        read_only_root: false,
        mounts: Vec::new(),
        args: args.iter().map(|arg| arg.to_string()).collect(),
        env: vec!["GREETING=hello".into()],
        cwd: "/".into(),
        user: UserSpec::default(),
        capabilities: vec![0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31],
        allow_privilege_escalation: false,
        unconfined: false,
        limits: Limits { memory_bytes: Some(256 << 20), pids: Some(64), ..Limits::default() },
        log: logs.join("0.log"),
        termination_log: "/dev/termination-log".into(),
        message_from_log: true,
    }
}

fn pod() -> PodConfig {
    PodConfig { hostname: "pod-1".into(), hosts: "127.0.0.1 localhost\n".into(), ..PodConfig::default() }
}

/// Runs one container to its end: its exit and its log.
async fn run(fixture: &Fixture, pod: PodConfig, spec: ContainerSpec) -> (Result<Exit, StartFailure>, String) {
    let mut sandbox = fixture.sandboxes.take("uid-1").await.unwrap();
    let log = spec.log.clone();
    sandbox.link.send(&Request::Configure(pod)).await.unwrap();
    sandbox.link.send(&Request::Start(Box::new(spec))).await.unwrap();
    let end = end_of(&mut sandbox).await;
    fixture.sandboxes.destroy(sandbox).await;
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    let lines = text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default());
    (end, lines.collect::<Vec<_>>().join("\n"))
}

async fn end_of(sandbox: &mut Sandbox) -> Result<Exit, StartFailure> {
    loop {
        match sandbox.link.next().await.unwrap().expect("the supervisor is there") {
            Event::Exited { exit, .. } => return Ok(exit),
            Event::Failed { failure, .. } => return Err(failure),
            _ => {}
        }
    }
}

async fn shell(fixture: &Fixture, script: &str) -> (Result<Exit, StartFailure>, String) {
    run(fixture, pod(), container(fixture, &["/bin/sh", "-c", script])).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_container_runs_logs_and_ends() {
    if !is_root() {
        return;
    }
    for user_namespace in [false, true] {
        let fixture = fixture(&format!("run{}", user_namespace as u8), 1, user_namespace).await;
        let (exit, log) = shell(&fixture, "echo $GREETING from $(hostname) as $(id -u); echo bye >&2; exit 3").await;
        assert_eq!(log, "hello from pod-1 as 0\nbye");
        let exit = exit.unwrap();
        assert_eq!((exit.code, exit.signal, exit.message.as_str()), (3, None, "hello from pod-1 as 0\nbye\n"));
        let (exit, _) = shell(&fixture, "echo why > /dev/termination-log; kill -9 $$").await;
        let exit = exit.unwrap();
        // The first process of a container cannot kill itself.
        assert_eq!((exit.code, exit.message.as_str()), (0, "why\n"));
        let (failure, _) = run(&fixture, pod(), container(&fixture, &["no-such-program"])).await;
        let failure = failure.unwrap_err();
        assert_eq!(failure.message, "exec: \"no-such-program\": executable file not found in $PATH");
        let mut spec = container(&fixture, &["id", "-u"]);
        spec.user = UserSpec { image_user: "web".into(), ..UserSpec::default() };
        assert_eq!(run(&fixture, pod(), spec).await.1, "33");
        fixture.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn layers_are_writable_copies() {
    if !is_root() {
        return;
    }
    for user_namespace in [false, true] {
        let fixture = fixture(&format!("layers{}", user_namespace as u8), 1, user_namespace).await;
        let layer = fixture.dir.path().join("layer");
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::write(layer.join("etc/motd"), "from the image").unwrap();
        let mut spec = container(
            &fixture,
            &["/usr/bin/bash", "-c", "cat /etc/motd; echo x > /etc/motd; cat /etc/motd; stat -c %u /etc/motd"],
        );
        std::os::unix::fs::symlink("usr/lib64", layer.join("lib64")).unwrap();
        std::os::unix::fs::symlink("usr/lib", layer.join("lib")).unwrap();
        spec.root = Root::Layers(vec![layer.clone()]);
        spec.mounts.push(Mount { source: MountSource::Host("/usr".into()), target: "/usr".into(), read_only: true });
        let (exit, log) = run(&fixture, pod(), spec).await;
        assert_eq!(log, "from the imagex\n0", "{exit:?}");
        assert_eq!(std::fs::read_to_string(layer.join("etc/motd")).unwrap(), "from the image");
        fixture.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn volumes_are_mounted() {
    if !is_root() {
        return;
    }
    let fixture = fixture("volumes", 1, true).await;
    let file = |path: &str, text: &str| VolumeFile { path: path.into(), mode: 0o444, content: Content(text.into()) };
    let volumes = BTreeMap::from([
        ("secret".to_string(), Volume::Files(vec![file("key", "s3cret"), file("sub/cert", "pem")])),
        ("disk".to_string(), Volume::Disk),
        ("memory".to_string(), Volume::Memory { size_bytes: Some(1 << 20) }),
    ]);
    let script = "cat /secret/key /one/cert; echo d > /disk/f; echo m > /memory/f; cat /disk/f /memory/f; \
                  echo no > /secret/key || echo refused; dd if=/dev/zero of=/memory/big bs=1M count=3 2>/dev/null || echo full";
    let mut spec = container(&fixture, &["/bin/sh", "-c", script]);
    for (name, sub_path, target, read_only) in [
        ("secret", "", "/secret", true),
        ("secret", "sub", "/one", true),
        ("disk", "", "/disk", false),
        ("memory", "", "/memory", false),
    ] {
        let source = MountSource::Volume { name: name.into(), sub_path: sub_path.into() };
        spec.mounts.push(Mount { source, target: target.into(), read_only });
    }
    let (exit, log) = run(&fixture, PodConfig { volumes, ..pod() }, spec).await;
    let log: Vec<&str> = log.lines().filter(|line| !line.contains("cannot create")).collect();
    assert_eq!(log, ["s3cretpemd", "m", "refused", "full"], "{exit:?}");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_hold_and_grace_is_kept() {
    if !is_root() {
        return;
    }
    let fixture = fixture("limits", 1, true).await;
    let mut spec = container(
        &fixture,
        &["/usr/bin/python3", "-c", "x = bytearray(200 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"],
    );
    spec.limits.memory_bytes = Some(48 << 20);
    let exit = run(&fixture, pod(), spec).await.0.unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    assert_eq!(exit.code, 137);

    let mut sandbox = fixture.sandboxes.take("uid-1").await.unwrap();
    sandbox.link.send(&Request::Configure(pod())).await.unwrap();
    let spec = container(
        &fixture,
        &["/bin/sh", "-c", "trap 'echo got it; exit 7' TERM; echo up; while :; do sleep 0.01; done"],
    );
    let log = spec.log.clone();
    sandbox.link.send(&Request::Start(Box::new(spec))).await.unwrap();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("up") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let exec = |id, args: &[&str], timeout_ms| {
        let args = args.iter().map(|arg| arg.to_string()).collect();
        Request::Exec(ExecSpec { id, container: "main".into(), args, timeout_ms })
    };
    sandbox.link.send(&exec(1, &["sh", "-c", "echo $GREETING; exit 4"], 10_000)).await.unwrap();
    sandbox.link.send(&exec(2, &["sleep", "100"], 50)).await.unwrap();
    let mut done = Vec::new();
    while done.len() < 2 {
        if let Some(Event::ExecDone { id, code, output }) = sandbox.link.next().await.unwrap() {
            done.push((id, code, output));
        }
    }
    assert!(done.contains(&(1, Some(4), "hello\n".into())) && done.contains(&(2, None, String::new())), "{done:?}");
    sandbox.link.send(&Request::Stop { container: None, grace_ms: 10_000 }).await.unwrap();
    assert_eq!(end_of(&mut sandbox).await.unwrap().code, 7);
    // One that does not listen is killed after its grace; one that does not care dies at once.
    let mut deaf = container(&fixture, &["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done"]);
    deaf.run = 1;
    deaf.log = fixture.dir.path().join("logs/1.log");
    let log = deaf.log.clone();
    sandbox.link.send(&Request::Start(Box::new(deaf))).await.unwrap();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("deaf") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    sandbox.link.send(&Request::Stop { container: None, grace_ms: 20 }).await.unwrap();
    assert_eq!(end_of(&mut sandbox).await.unwrap().signal, Some(9));
    let mut careless = container(&fixture, &["sleep", "1000"]);
    careless.run = 2;
    sandbox.link.send(&Request::Start(Box::new(careless))).await.unwrap();
    sandbox.link.send(&Request::Stop { container: None, grace_ms: 1_000_000 }).await.unwrap();
    assert_eq!(end_of(&mut sandbox).await.unwrap().signal, Some(15));
    fixture.sandboxes.destroy(sandbox).await;
    fixture.end().await;
}

/// Each line prints `held` or what got out.
const PROBES: &str = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def probe(name, attempt):
    try:
        result = attempt()
    except (OSError, PermissionError) as error:
        result = None
    print(name, "held" if not result else "ESCAPED %r" % (result,), flush=True)
def call(number, *args):
    return libc.syscall(number, *args) >= 0
def entries(path):
    try: return os.listdir(path)
    except OSError: return []
allowed = {"bin","lib","lib32","lib64","libx32","sbin","usr","etc","tmp","home","run","var","dev","proc","sys"}
probe("host-files", lambda: set(os.listdir("/")) - allowed or entries("/root") or [f for f in entries("/etc") if f in ("shadow", "ssh", "machine-id")] or entries("/proc/1/root/root"))
probe("other-pods-files", lambda: [p for p in (sys.argv[1],) if os.path.exists(p)])
probe("other-processes", lambda: [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid()])
def loopback():
    s = socket.socket(); s.settimeout(2); s.connect(("127.0.0.1", int(sys.argv[2]))); return "connected"
probe("host-loopback", loopback)
probe("ptrace", lambda: call(101, 16, 1, 0, 0))
probe("mount", lambda: call(165, b"none", b"/tmp", b"tmpfs", 0, 0) or call(272, 0x00020000) or call(430, b"tmpfs", 0) or call(155, b".", b"."))
def sysctl():
    open("/proc/sys/kernel/core_pattern", "w").write("|/tmp/x"); return "written"
probe("proc-sys-write", sysctl)
def trigger():
    open("/proc/sysrq-trigger", "w").write("h"); return "written"
probe("sysrq", trigger)
def device():
    for folder in ("/tmp", "/dev", "/dev/shm"):
        path = folder + "/probe"
        try:
            os.mknod(path, 0o600 | 0o060000, os.makedev(254, 0)); return os.open(path, os.O_RDONLY)+1
        except OSError: pass
probe("device-node", device)
probe("raw-socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
probe("packet-socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
probe("descriptors", lambda: [os.readlink("/proc/self/fd/%s" % f) for f in os.listdir("/proc/self/fd") if int(f) > 2 and os.path.exists("/proc/self/fd/%s" % f) and not os.readlink("/proc/self/fd/%s" % f).endswith("/fd")])
probe("kill-others", lambda: [p for p in range(2, 400) if p != os.getpid() and call(62, p, 0)])
probe("chroot-breakout", lambda: (os.mkdir("/tmp/c"), os.chroot("/tmp/c"), [os.chdir("..") for _ in range(40)], os.chroot("."), set(os.listdir("/")) - allowed)[-1])
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_gets_out() {
    if !is_root() {
        return;
    }
    for user_namespace in [false, true] {
        let fixture = fixture(&format!("probes{}", user_namespace as u8), 2, user_namespace).await;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        // Another pod of the same node runs beside it.
        let mut other = fixture.sandboxes.take("uid-1").await.unwrap();
        other.link.send(&Request::Configure(pod())).await.unwrap();
        other.link.send(&Request::Start(Box::new(container(&fixture, &["sleep", "1000"])))).await.unwrap();
        let others = other.dir.to_string_lossy().into_owned();
        let mut spec = container(&fixture, &["/usr/bin/python3", "-I", "-S", "-c", PROBES, &others, &port]);
        spec.log = fixture.dir.path().join("logs/probes.log");
        let (exit, log) = run(&fixture, pod(), spec).await;
        assert_eq!(exit.as_ref().map(|exit| exit.code), Ok(0), "{log}");
        let escaped: Vec<&str> = log.lines().filter(|line| !line.ends_with(" held")).collect();
        assert!(escaped.is_empty() && log.lines().count() == 14, "{log}");
        fixture.sandboxes.destroy(other).await;
        fixture.end().await;
    }
}

/// The link to a pod's supervisor breaks; the sandbox stays, as when the platform is killed.
async fn abandoned(fixture: &Fixture, uid: &str, args: &[&str]) -> String {
    let mut sandbox = fixture.sandboxes.take(uid).await.unwrap();
    sandbox.link.send(&Request::Configure(pod())).await.unwrap();
    let spec = ContainerSpec { note: format!("note of {uid}"), ..container(fixture, args) };
    sandbox.link.send(&Request::Start(Box::new(spec))).await.unwrap();
    while !matches!(sandbox.link.next().await.unwrap(), Some(Event::Started { .. })) {}
    sandbox.name
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_killed_platform_leaves_pods_to_be_found_and_the_rest_is_swept() {
    if !is_root() {
        return;
    }
    let fixture = fixture("stale", 0, true).await;
    let kept = abandoned(&fixture, "uid-kept", &["sleep", "1000"]).await;
    let stale = abandoned(&fixture, "uid-stale", &["sleep", "1000"]).await;
    let dir = fixture.dir.path().join("pods");
    std::fs::create_dir(dir.join("half-made")).unwrap();

    let mut found = found::find(&dir).await;
    found.sort_by(|a, b| a.uid.cmp(&b.uid));
    let uids: Vec<&str> = found.iter().map(|found| found.uid.as_str()).collect();
    assert_eq!(uids, ["uid-kept", "uid-stale"]);
    let state = &found[0].state.containers["main"];
    assert_eq!(state.note, "note of uid-kept");
    let Stage::Running { pid, .. } = state.stage else { panic!("{state:?}") };
    let mut gone = found.remove(1).sandbox;
    let adopted = found.remove(0).sandbox;

    let config = SandboxConfig {
        dir: dir.clone(),
        prepared: 0,
        cgroup: fixture.cgroup.clone(),
        user_namespace: Some(1_000_000),
    };
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let keep = BTreeSet::from([kept.clone()]);
    let next = Sandboxes::start(config, &keep, Arc::new(NoNetwork), &tasks, stop).await.unwrap();
    while gone.link.next().await.is_ok_and(|event| event.is_some()) {}
    let left: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [kept.as_str()], "{stale} and half-made are gone");
    assert!(Path::new(&format!("/proc/{pid}")).exists(), "the kept pod's container runs on");
    next.destroy(adopted).await;
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    next.shutdown().await;
    fixture.end().await;
}

/// Not a test of time: prints what a start costs.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn figures_of_a_start() {
    if !is_root() {
        return;
    }
    let fixture = fixture("figures", 4, true).await;
    let layer: PathBuf = fixture.dir.path().join("layer");
    std::fs::create_dir_all(&layer).unwrap();
    std::fs::copy("/bin/true", layer.join("true")).unwrap();
    let mut started = Vec::new();
    for round in 0..20 {
        while fixture.sandboxes.prepared() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut spec = container(&fixture, &["/bin/true"]);
        if round % 2 == 1 {
            spec.root = Root::Layers(vec![layer.clone()]);
            spec.mounts.push(Mount {
                source: MountSource::Host("/usr".into()),
                target: "/usr".into(),
                read_only: true,
            });
            spec.mounts.push(Mount {
                source: MountSource::Host("/usr/lib64".into()),
                target: "/lib64".into(),
                read_only: true,
            });
            spec.mounts.push(Mount {
                source: MountSource::Host("/usr/lib".into()),
                target: "/lib".into(),
                read_only: true,
            });
            spec.args = vec!["/true".into()];
        }
        let mut sandbox = fixture.sandboxes.take("uid-1").await.unwrap();
        let from = Instant::now();
        sandbox.link.send(&Request::Configure(pod())).await.unwrap();
        sandbox.link.send(&Request::Start(Box::new(spec))).await.unwrap();
        let exec = loop {
            match sandbox.link.next().await.unwrap() {
                Some(Event::Started { .. }) => break from.elapsed(),
                Some(Event::Failed { failure, .. }) => panic!("{failure:?}"),
                _ => {}
            }
        };
        let exit = end_of(&mut sandbox).await.unwrap();
        assert_eq!(exit.code, 0);
        started.push((exec, from.elapsed()));
        fixture.sandboxes.destroy(sandbox).await;
    }
    started.sort();
    eprintln!(
        "order to exec: p50 {:?}, worst {:?}; to reported exit p50 {:?}",
        started[10].0, started[19].0, started[10].1
    );
    fixture.end().await;
}
