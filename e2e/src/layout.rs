//! The processes that make up a platform: all of it in one (`colibri up`), or each role in its own.
//!
//! `E2E_LAYOUT=processes` chooses the second for every platform that tests start; `E2E_LAYOUT=kubernetes` the second with
//! Kubernetes' own control plane instead of our API server.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::kubernetes;
use crate::platform::{Options, Output, binary, run};

/// How the roles of a platform are spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `colibri up`.
    One,
    /// `colibri apiserver`, `controller`, `gateway` and `node`; the API server does nothing that another would not.
    Processes,
    /// `colibri controller`, `gateway` and `node` beside etcd, kube-apiserver, kube-controller-manager and
    /// kube-scheduler, which `KUBEBUILDER_ASSETS` names the folder of.
    Kubernetes,
}

/// The layout that tests run with.
///
/// # Panics
///
/// When `E2E_LAYOUT` names none.
pub fn layout() -> Layout {
    match std::env::var("E2E_LAYOUT").as_deref() {
        Err(_) | Ok("" | "one") => Layout::One,
        Ok("processes") => Layout::Processes,
        Ok("kubernetes") => Layout::Kubernetes,
        Ok(other) => panic!("E2E_LAYOUT={other:?} is none of one, processes, kubernetes"),
    }
}

/// Lays a layer over `/usr/bin` in which the first argument is missing, and starts the rest.
const HIDE: &str = r#"set -e
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work
mount -t overlay overlay -o lowerdir=/usr/bin,upperdir=/mnt/upper,workdir=/mnt/work /usr/bin
rm "/usr/bin/$1"
shift
exec "$@"
"#;

/// One process of a platform.
pub struct Process {
    /// The role; `up` for all in one.
    pub role: String,
    /// The process; `None` once its end was seen.
    pub child: Option<Child>,
    program: PathBuf,
    arguments: Vec<String>,
    /// A program of `/usr/bin` that it does not see.
    hidden: Option<&'static str>,
    log: PathBuf,
    /// What it writes once it is ready.
    endpoints: PathBuf,
    /// Whether it was ended as a crash does, ever.
    pub was_killed: bool,
}

impl Process {
    /// Starts `colibri ROLE ARGUMENTS` on a data directory; its log is a file in `home`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(home: &Path, name: &str, data_dir: &Path, arguments: &[String]) -> Result<Self> {
        Self::start_hiding(None, home, name, data_dir, arguments)
    }

    /// The same on a machine that lacks a program of `/usr/bin`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_hiding(
        hidden: Option<&'static str>,
        home: &Path,
        name: &str,
        data_dir: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let role = name.split('-').next().unwrap_or_default().to_owned();
        let mut all = vec![role, format!("--data-dir={}", data_dir.display())];
        all.extend_from_slice(arguments);
        let mut process = Self {
            role: name.to_owned(),
            child: None,
            program: binary("colibri"),
            arguments: all,
            hidden,
            log: home.join(format!("{name}.log")),
            endpoints: data_dir.join("endpoints.json"),
            was_killed: false,
        };
        process.start_again()?;
        Ok(process)
    }

    /// Starts a program that is not of this workspace; its log is a file in `home`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_other(home: &Path, program: PathBuf, arguments: Vec<String>) -> Result<Self> {
        let role = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = home.join(format!("{role}.log"));
        let mut process = Self {
            role,
            child: None,
            program,
            arguments,
            hidden: None,
            log,
            endpoints: PathBuf::new(),
            was_killed: false,
        };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it with the same arguments, once it has ended.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        // One that was killed leaves it behind.
        let _ = std::fs::remove_file(&self.endpoints);
        let file = File::options().create(true).append(true).open(&self.log)?;
        let mut command = self.command();
        command.args(&self.arguments).env_remove("KUBECONFIG");
        // With what is refused to the node's account, and each change of the settings.
        command.env("COLIBRI_LOG", "warn,colibri=info,node::events=debug,client::settings=info");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        self.child = Some(command.spawn().with_context(|| format!("starting {}", self.program.display()))?);
        Ok(())
    }

    /// Whether it is a program of this workspace, whose exit code is ours to answer for.
    pub fn is_ours(&self) -> bool {
        self.program == binary("colibri")
    }

    /// The program; where another is hidden from it, in a mount namespace of its own.
    fn command(&self) -> Command {
        let Some(hidden) = self.hidden else { return Command::new(&self.program) };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", HIDE, "sh", hidden]).arg(&self.program);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Ends it as a crash does, and waits for its end.
    ///
    /// # Errors
    ///
    /// When its end cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
            self.was_killed = true;
        }
        Ok(())
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Process ID; 0 once it has ended.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        if let Some(child) = &self.child {
            // SAFETY: the process is our own child and was not waited for yet, so that its ID is still its own.
            unsafe { libc::kill(i32::try_from(child.id()).unwrap_or(i32::MAX), signal) };
        }
    }

    /// Waits for its end; answers its exit code.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub async fn wait(&mut self, limit: Duration) -> Result<i32> {
        let start = Instant::now();
        loop {
            let Some(child) = self.child.as_mut() else { bail!("{} was stopped already", self.role) };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(start.elapsed() < limit, "{} still runs after {limit:?}:\n{}", self.role, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it: first the orderly way, so that nothing is left behind; then by force.
    pub fn end(&mut self) {
        self.signal(libc::SIGTERM);
        let start = Instant::now();
        let Some(mut child) = self.child.take() else { return };
        while start.elapsed() < Duration::from_secs(20) {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Waits until it is ready; answers where it listens. A program that is not of this workspace is not waited for.
    ///
    /// # Errors
    ///
    /// When it ends before, or is not ready in time.
    pub async fn ready(&mut self, limit: Duration) -> Result<Map<String, Value>> {
        let start = Instant::now();
        if !self.is_ours() {
            return Ok(Map::new());
        }
        loop {
            if let Some(status) = self.child.as_mut().context("a running process")?.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.role, self.log());
            }
            if let Ok(bytes) = std::fs::read(&self.endpoints) {
                return Ok(serde_json::from_slice(&bytes)?);
            }
            ensure!(start.elapsed() < limit, "{} is not ready after {limit:?}:\n{}", self.role, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Where a role keeps its state, of a platform on `data_dir`.
pub fn role_dir(data_dir: &Path, role: &str) -> PathBuf {
    match layout() {
        Layout::One => data_dir.to_path_buf(),
        Layout::Processes | Layout::Kubernetes => data_dir.join(role),
    }
}

/// Starts the roles below `data_dir`, each in its own process, and writes there what `colibri up` writes: `kubeconfig` and
/// `endpoints.json`. They are in the order in which they are stopped. Their ports stay when one starts again.
///
/// # Errors
///
/// When one does not become ready; the text has its log.
pub async fn start_processes(
    home: &Path,
    data_dir: &Path,
    layout: Layout,
    options: &Options,
    limit: Duration,
) -> Result<Vec<Process>> {
    let roles = Roles { home: home.to_path_buf(), data_dir: data_dir.to_path_buf(), hidden: options.hidden };
    let port = |flag: &str| anyhow::Ok(format!("--{flag}-port={}", free_port()?));
    let (servers, api) = if layout == Layout::Kubernetes {
        kubernetes::start(&roles, limit).await?
    } else {
        let mut apiserver = roles.start("apiserver", &[&port("api")?, "--admission=none"])?;
        let at = apiserver.ready(limit).await?;
        (vec![apiserver], at["api"].clone())
    };
    std::fs::copy(roles.file("apiserver", "kubeconfig"), data_dir.join("kubeconfig"))?;
    roles.install(&["--crds", "--rbac"]).await?;
    for role in ["controller", "gateway", "node"] {
        // Beside our own API server the controller does what other clusters have components for.
        if role != "controller" || layout == Layout::Kubernetes {
            roles.give_account(role).await?;
        }
    }
    let of_gateway = [port("gateway")?, port("gateway-tls")?, port("pod")?, port("metrics")?];
    let mut gateway = roles.start("gateway", &of_gateway.each_ref().map(String::as_str))?;
    let at = gateway.ready(limit).await?;
    let number = |name: &str| at[name].as_str().and_then(|url| url.rsplit(':').next()).unwrap_or_default().to_owned();
    let pods = format!("--gateway=127.0.0.1:{}", number("pods"));
    let mut of_node = vec!["--kubelet-port=0", "--metrics-port=0", &pods];
    let address = format!("--address={}", kubernetes::ADDRESS);
    if layout == Layout::Kubernetes {
        of_node.push(&address);
    }
    of_node.extend(options.arguments.iter().map(String::as_str));
    let mut node = roles.start("node", &of_node)?;
    let public = format!("--public-port={}", number("gateway"));
    let webhooks = port("webhook")?;
    let of_controller = ["--link-port=0", "--metrics-port=0", "--lease-seconds=3", &webhooks, &public];
    let mut controller = roles.start("controller", &of_controller)?;
    node.ready(limit).await?;
    let endpoints = controller.ready(limit).await?;
    let url = endpoints["webhooks"].as_str().unwrap_or_default();
    let ca = roles.file("apiserver", "pki/ca.crt");
    roles.install(&["--webhooks", "--url", url, "--ca", &ca.to_string_lossy()]).await?;
    if layout == Layout::Kubernetes {
        kubernetes::settled(&roles, limit).await?;
    }
    let endpoints = json!({
        "api": api, "gateway": at["gateway"], "gateway_tls": at["gateway_tls"], "metrics": at["metrics"],
        "domain": "localhost",
    });
    std::fs::write(data_dir.join("endpoints.json"), endpoints.to_string())?;
    let mut processes = vec![gateway, node, controller];
    processes.extend(servers);
    Ok(processes)
}

/// A port that nobody listens on at this moment, and that the system gives to no outgoing connection: one that tries
/// again while a server is away would take the server's port from it.
pub(crate) fn free_port() -> Result<u16> {
    const FIRST: u32 = 10_240;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        // Other processes begin elsewhere.
        let number = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id().wrapping_mul(97));
        let port = u16::try_from(FIRST + number % COUNT)?;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("every port is taken")
}

/// Starts roles of one platform.
pub struct Roles {
    /// Where logs are.
    pub home: PathBuf,
    /// Each role has a folder in it.
    pub data_dir: PathBuf,
    /// A program of `/usr/bin` that the node does not see.
    pub hidden: Option<&'static str>,
}

impl Roles {
    /// A file of a role.
    pub fn file(&self, role: &str, name: &str) -> PathBuf {
        self.data_dir.join(role).join(name)
    }

    /// Starts a role; `name` is the role's, with a suffix after `-` where there are several of it.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let mut all = Vec::new();
        if name != "apiserver" {
            all.push(format!("--kubeconfig={}", self.kubeconfig(name).display()));
            all.push(format!("--pki={}", self.file("apiserver", "pki").display()));
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let hidden = self.hidden.filter(|_| name == "node");
        Process::start_hiding(hidden, &self.home, name, &self.data_dir.join(name), &all)
    }

    /// The role's own account, once it was given one; else the administrator's.
    fn kubeconfig(&self, name: &str) -> PathBuf {
        let own = self.account(name);
        if own.is_file() { own } else { self.file("apiserver", "kubeconfig") }
    }

    fn account(&self, name: &str) -> PathBuf {
        let role = name.split('-').next().unwrap_or_default();
        self.file("apiserver", &format!("{role}.kubeconfig"))
    }

    /// Has the API server make a token for the account that `colibri install --rbac` made for a role.
    async fn give_account(&self, role: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/colibri-system/serviceaccounts/{role}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 86_400},
        });
        let answer = self.kubectl(&["create", "--raw", &path, "-f", "-"], Some(&request.to_string())).await?.ok()?;
        let answer: Value = serde_json::from_str(&answer)?;
        let ours = self.kubectl(&["config", "view", "--raw", "-o", "json"], None).await?.ok()?;
        let mut kubeconfig: Value = serde_json::from_str(&ours)?;
        kubeconfig["users"][0]["user"] = json!({"token": answer["status"]["token"].as_str().context("a token")?});
        std::fs::write(self.account(role), kubeconfig.to_string())?;
        Ok(())
    }

    /// `colibri install ARGUMENTS | kubectl apply -f -`.
    async fn install(&self, arguments: &[&str]) -> Result<()> {
        let mut install = Command::new(binary("colibri"));
        install.arg("install").args(arguments);
        let objects = run(install, None).await?.ok()?;
        self.kubectl(&["apply", "--server-side", "-f", "-"], Some(&objects)).await?.ok()?;
        Ok(())
    }

    /// Runs `kubectl` as the administrator.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.file("apiserver", "kubeconfig")).env("HOME", &self.home).args(arguments);
        run(command, input).await
    }
}

impl Drop for Process {
    /// One that was not stopped, such as when another of the same platform does not start.
    fn drop(&mut self) {
        self.end();
    }
}
