//! Makes sandboxes ahead of their use.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use supervisor::{Binding, CgroupBase, Hello, Request, Setup};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::process::Process;
use super::program::Program;
use super::{Counters, Link, PodNetwork, SandboxConfig, SandboxError, Step, cgroups, found, usage};

/// Time for a supervisor to make its sandbox.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Time for a supervisor to give everything back.
pub(super) const END_LIMIT: Duration = Duration::from_secs(5);
/// Quiet time after a sandbox was taken before a new one is made: the pod that took it needs the processors more.
const REFILL_PAUSE: Duration = Duration::from_millis(300);

/// The sandboxes of one node.
pub struct Sandboxes {
    config: SandboxConfig,
    program: Program,
    cgroups: CgroupBase,
    network: Arc<dyn PodNetwork>,
    ready: Mutex<Vec<Sandbox>>,
    taken: Notify,
    last_taken: Mutex<Instant>,
    /// Begins the names of this run's sandboxes: no other run's are like them.
    prefix: String,
    next: AtomicU64,
    /// Held while one is made ahead, so that the shutdown misses none.
    filling: tokio::sync::Mutex<()>,
    closed: CancellationToken,
}

/// A sandbox and the connection to its supervisor.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name, unique on the node.
    pub name: String,
    /// Address on the pod network.
    pub address: Ipv4Addr,
    /// Its folder.
    pub dir: PathBuf,
    /// The connection.
    pub link: Link,
    pub(super) process: Process,
}

impl Sandboxes {
    /// Removes what a killed platform left, all but the sandboxes of those names, and begins to prepare new ones.
    ///
    /// # Errors
    ///
    /// When cgroups or folders cannot be made.
    pub async fn start(
        config: SandboxConfig,
        keep: &BTreeSet<String>,
        network: Arc<dyn PodNetwork>,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> Result<Arc<Self>, SandboxError> {
        std::fs::create_dir_all(&config.dir).step(format!("making folder {}", config.dir.display()))?;
        let cgroups = cgroups::make(&config.cgroup)?;
        found::remove_stale(&config.dir, &cgroups, keep).await;
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let sandboxes = Arc::new(Self {
            program: Program::load().step("loading the supervisor")?,
            cgroups,
            network,
            ready: Mutex::default(),
            taken: Notify::new(),
            last_taken: Mutex::new(Instant::now() - REFILL_PAUSE),
            prefix: format!("s{millis:x}"),
            next: AtomicU64::new(0),
            filling: tokio::sync::Mutex::new(()),
            closed: stop,
            config,
        });
        tasks.spawn(sandboxes.clone().keep_filled());
        Ok(sandboxes)
    }

    /// A sandbox for the pod with that uid: a prepared one, or a new one when none is left. It outlives this process.
    ///
    /// # Errors
    ///
    /// When a new one cannot be made.
    pub async fn take(&self, uid: &str) -> Result<Sandbox, SandboxError> {
        *self.last_taken.lock() = Instant::now();
        loop {
            let ready = self.ready.lock().pop();
            self.taken.notify_one();
            let is_new = ready.is_none();
            let mut sandbox = match ready {
                Some(sandbox) => sandbox,
                None => self.make().await?,
            };
            let binding = Binding { uid: uid.to_owned(), address: sandbox.address };
            let Err(error) = sandbox.link.send(&Request::Bind(binding)).await else { return Ok(sandbox) };
            warn!(sandbox = sandbox.name, "a prepared sandbox is lost");
            self.destroy(sandbox).await;
            if is_new {
                return Err(SandboxError::Supervisor(error.to_string()));
            }
        }
    }

    /// What the container whose first process is `pid` has used in that sandbox, and the name of its cgroup there, which
    /// no other run of a container has. `None` once it has ended.
    pub fn usage(&self, sandbox: &str, pid: u32) -> Option<(String, Counters)> {
        usage::of_process(&self.cgroups, sandbox, pid)
    }

    /// How many are prepared.
    pub fn prepared(&self) -> usize {
        self.ready.lock().len()
    }

    /// Destroys a sandbox: its processes, cgroups, address and folder.
    pub async fn destroy(&self, mut sandbox: Sandbox) {
        let asked = sandbox.link.send(&Request::Quit).await.is_ok();
        let ended = asked && timeout(END_LIMIT, sandbox.process.ended()).await.is_ok();
        if !ended && !sandbox.process.has_ended() {
            warn!(sandbox = sandbox.name, "the supervisor does not end, killing it");
            // Its containers go with it.
            sandbox.process.kill().await;
        }
        self.give_back(&sandbox.name, sandbox.address).await;
    }

    async fn give_back(&self, name: &str, address: Ipv4Addr) {
        cgroups::sweep(&self.cgroups, Some(name)).await;
        self.network.release(address).await;
        remove_folder(&self.config.dir.join(name));
    }

    /// Destroys the prepared ones and removes the cgroups. All sandboxes that were taken have been destroyed.
    pub async fn shutdown(&self) {
        self.leave().await;
        cgroups::sweep(&self.cgroups, None).await;
    }

    /// Destroys the prepared ones; those that were taken stay for the next start.
    pub async fn leave(&self) {
        self.closed.cancel();
        let _filled = self.filling.lock().await;
        let ready = std::mem::take(&mut *self.ready.lock());
        futures::future::join_all(ready.into_iter().map(|sandbox| self.destroy(sandbox))).await;
    }

    async fn keep_filled(self: Arc<Self>) {
        let mut failures = base::Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
        loop {
            let pause = if self.prepared() >= self.config.prepared {
                tokio::select! {
                    () = self.closed.cancelled() => return,
                    () = self.taken.notified() => continue,
                }
            } else {
                REFILL_PAUSE.saturating_sub(self.last_taken.lock().elapsed())
            };
            if !pause.is_zero() {
                tokio::select! {
                    () = self.closed.cancelled() => return,
                    () = sleep(pause) => continue,
                }
            }
            let filling = self.filling.lock().await;
            if self.closed.is_cancelled() {
                return;
            }
            // Not cut off by the stop: half a sandbox would be left.
            match self.make().await {
                Ok(sandbox) => {
                    failures.reset();
                    self.keep(sandbox).await;
                }
                Err(error) => {
                    drop(filling);
                    warn!(error = &error as &dyn std::error::Error, "no sandbox could be prepared");
                    tokio::select! {
                        () = self.closed.cancelled() => return,
                        () = sleep(failures.next_delay()) => {}
                    }
                }
            }
        }
    }

    async fn keep(&self, sandbox: Sandbox) {
        if self.closed.is_cancelled() {
            return self.destroy(sandbox).await;
        }
        self.ready.lock().push(sandbox);
    }

    async fn make(&self) -> Result<Sandbox, SandboxError> {
        let started = Instant::now();
        let name = format!("{}-{}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed));
        let dir = self.config.dir.join(&name);
        std::fs::create_dir(&dir).step(format!("making folder {}", dir.display()))?;
        let made = self.spawn(&name, &dir).await;
        match made {
            Ok((process, link, address)) => {
                debug!(sandbox = name, %address, took = ?started.elapsed(), "sandbox prepared");
                Ok(Sandbox { name, address, dir, link, process: Process::Child(process) })
            }
            Err(error) => {
                cgroups::sweep(&self.cgroups, Some(&name)).await;
                remove_folder(&dir);
                Err(error)
            }
        }
    }

    async fn spawn(&self, name: &str, dir: &Path) -> Result<(Child, Link, Ipv4Addr), SandboxError> {
        let setup = Setup {
            dir: dir.to_path_buf(),
            name: name.to_string(),
            cgroups: self.cgroups.clone(),
            user_namespace: self.config.user_namespace,
        };
        let setup = serde_json::to_string(&setup).map_err(|error| SandboxError::Supervisor(error.to_string()))?;
        let mut command = Command::new(self.program.path());
        command.arg0("colibri-supervisor").arg(setup).env_clear();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().step("starting the supervisor")?;
        let result = async {
            hear_hello(&mut process).await?;
            let link = Link::connect(dir).await.step("connecting to the supervisor")?;
            let pid = process.id().ok_or_else(|| SandboxError::Supervisor("it ended".into()))?;
            let address = self.network.attach(pid).await.map_err(SandboxError::Network)?;
            Ok((link, address))
        };
        match result.await {
            Ok((link, address)) => Ok((process, link, address)),
            Err(error) => {
                // It may have ended by itself.
                let _ = process.kill().await;
                Err(error)
            }
        }
    }
}

async fn hear_hello(process: &mut Child) -> Result<(), SandboxError> {
    let out = process.stdout.take().ok_or_else(|| SandboxError::Supervisor("it has no output".into()))?;
    let mut line = String::new();
    let heard = timeout(START_LIMIT, BufReader::new(out).read_line(&mut line)).await;
    heard
        .map_err(|_| SandboxError::Supervisor(format!("it did not answer within {START_LIMIT:?}")))?
        .step("reading from the supervisor")?;
    match serde_json::from_str(&line) {
        Ok(Hello::Ready) => Ok(()),
        Ok(Hello::Failed(why)) => Err(SandboxError::Supervisor(why)),
        Err(_) => Err(SandboxError::Supervisor("it ended without a word".into())),
    }
}

pub(super) fn remove_folder(path: &Path) {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(%error, path = %path.display(), "a sandbox's folder could not be removed");
        }
        _ => {}
    }
}
