//! The processes that make up a platform: all of it in one (`colibri up`), or each role in its own.
//!
//! `E2E_LAYOUT=processes` chooses the second for every platform that tests start.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::platform::{binary, run};

/// How the roles of a platform are spread over processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `colibri up`.
    One,
    /// `colibri apiserver`, `controller`, `gateway` and `node`; the API server does nothing that another would not.
    Processes,
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
        Ok(other) => panic!("E2E_LAYOUT={other:?} is neither one nor processes"),
    }
}

/// One process of a platform.
pub struct Process {
    /// The role; `up` for all in one.
    pub role: String,
    /// The process; `None` once its end was seen.
    pub child: Option<Child>,
    arguments: Vec<String>,
    log: PathBuf,
}

impl Process {
    /// Starts `colibri ROLE ARGUMENTS`; its log is a file in `home`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start(home: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let log = home.join(format!("{name}.log"));
        let mut process = Self { role: name.to_owned(), child: None, arguments: arguments.to_vec(), log };
        process.start_again()?;
        Ok(process)
    }

    /// Starts it with the same arguments, once it has ended.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<()> {
        let file = File::options().create(true).append(true).open(&self.log)?;
        let role = self.role.split('-').next().unwrap_or_default();
        let mut command = Command::new(binary("colibri"));
        command.arg(role).args(&self.arguments).env_remove("KUBECONFIG");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        self.child = Some(command.spawn().with_context(|| format!("starting colibri {role}"))?);
        Ok(())
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
            let Some(child) = self.child.as_mut() else { bail!("colibri {} was stopped already", self.role) };
            if let Some(status) = child.try_wait()? {
                self.child = None;
                return Ok(status.code().unwrap_or(-1));
            }
            ensure!(start.elapsed() < limit, "colibri {} still runs after {limit:?}:\n{}", self.role, self.log());
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

    /// Waits until it has written the file; answers its JSON.
    ///
    /// # Errors
    ///
    /// When it ends before, or does not write it in time.
    pub async fn wait_for(&mut self, file: &Path, limit: Duration) -> Result<Map<String, Value>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().context("a running process")?.try_wait()? {
                bail!("colibri {} ended with {status}:\n{}", self.role, self.log());
            }
            if let Ok(bytes) = std::fs::read(file) {
                return Ok(serde_json::from_slice(&bytes)?);
            }
            ensure!(start.elapsed() < limit, "colibri {} is not ready after {limit:?}:\n{}", self.role, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Starts the four roles below `data_dir`, and writes there what `colibri up` writes: `kubeconfig` and
/// `endpoints.json`. They are in the order in which they are stopped.
///
/// # Errors
///
/// When one does not become ready; the text has its log.
pub async fn start_processes(home: &Path, data_dir: &Path, limit: Duration) -> Result<Vec<Process>> {
    let roles = Roles { home: home.to_path_buf(), data_dir: data_dir.to_path_buf() };
    let mut apiserver = roles.start("apiserver", &["--api-port=0", "--admission=none"])?;
    let api = apiserver.wait_for(&roles.file("apiserver", "endpoints.json"), limit).await?;
    std::fs::copy(roles.file("apiserver", "kubeconfig"), data_dir.join("kubeconfig"))?;
    roles.install(&["--crds"]).await?;
    let ports = ["--gateway-port=0", "--gateway-tls-port=0", "--pod-port=0", "--metrics-port=0"];
    let mut gateway = roles.start("gateway", &ports)?;
    let at = gateway.wait_for(&roles.file("gateway", "endpoints.json"), limit).await?;
    let port = |name: &str| at[name].as_str().and_then(|url| url.rsplit(':').next()).unwrap_or_default().to_owned();
    let gateway_flag = format!("--gateway=127.0.0.1:{}", port("pods"));
    let mut node = roles.start("node", &["--kubelet-port=0", "--metrics-port=0", &gateway_flag])?;
    let public_port = format!("--public-port={}", port("gateway"));
    // Its address is written down in the API server: it must stay when the controller starts again.
    let webhooks = format!("--webhook-port={}", free_port()?);
    let ports = ["--link-port=0", "--metrics-port=0", "--lease-seconds=3", &webhooks, &public_port];
    let mut controller = roles.start("controller", &ports)?;
    node.wait_for(&roles.file("node", "endpoints.json"), limit).await?;
    let endpoints = controller.wait_for(&roles.file("controller", "endpoints.json"), limit).await?;
    let url = endpoints["webhooks"].as_str().unwrap_or_default();
    let ca = roles.file("apiserver", "pki/ca.crt");
    roles.install(&["--webhooks", "--url", url, "--ca", &ca.to_string_lossy()]).await?;
    let endpoints = json!({
        "api": api["api"], "gateway": at["gateway"], "gateway_tls": at["gateway_tls"], "metrics": at["metrics"],
        "domain": "localhost",
    });
    std::fs::write(data_dir.join("endpoints.json"), endpoints.to_string())?;
    Ok(vec![gateway, node, controller, apiserver])
}

/// A port that nobody listens on at this moment.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Starts roles of one platform.
pub struct Roles {
    /// Where logs are.
    pub home: PathBuf,
    /// Each role has a folder in it.
    pub data_dir: PathBuf,
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
        let mut all = vec![format!("--data-dir={}", self.data_dir.join(name).display())];
        if name != "apiserver" {
            all.push(format!("--kubeconfig={}", self.file("apiserver", "kubeconfig").display()));
            all.push(format!("--pki={}", self.file("apiserver", "pki").display()));
        }
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        Process::start(&self.home, name, &all)
    }

    /// `colibri install ARGUMENTS | kubectl apply -f -`.
    async fn install(&self, arguments: &[&str]) -> Result<()> {
        let mut install = Command::new(binary("colibri"));
        install.arg("install").args(arguments);
        let objects = run(install, None).await?.ok()?;
        let mut apply = Command::new("kubectl");
        apply.env("KUBECONFIG", self.file("apiserver", "kubeconfig")).env("HOME", &self.home);
        apply.args(["apply", "--server-side", "-f", "-"]);
        run(apply, Some(&objects)).await?.ok()?;
        Ok(())
    }
}

impl Drop for Process {
    /// One that was not stopped, such as when another of the same platform does not start.
    fn drop(&mut self) {
        self.end();
    }
}
