//! One running platform.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::layout::{Layout, Process, Roles, layout, start_processes};
use crate::leftovers::Leftovers;

/// How long a platform may take until it is ready, on a machine that is busy with other tests.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long anything else may take.
const WAIT_LIMIT: Duration = Duration::from_secs(90);

/// How a platform is started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// More arguments for `colibri up`, or for the node where it is a process of its own.
    pub arguments: Vec<String>,
    /// A program of `/usr/bin` that the platform does not see.
    pub hidden: Option<&'static str>,
    /// Data directory; a fresh temporary one by default.
    pub data_dir: Option<PathBuf>,
    /// The caller has the [`Machine`] alone.
    pub alone: bool,
    /// How the roles are spread over processes, whatever `E2E_LAYOUT` says.
    pub layout: Option<Layout>,
}

/// Keeps other tests' platforms off the machine, or keeps others from doing so, across processes, until dropped.
#[derive(Debug)]
struct Lock(#[expect(dead_code, reason = "the lock is held by the open file")] File);

/// A machine on which no other test runs a platform, and one data directory for platforms after each other: for tests
/// that look at the whole machine.
#[derive(Debug)]
pub struct Machine {
    dir: TempDir,
    before: Leftovers,
    _lock: Lock,
}

impl Machine {
    /// Waits until no other test runs a platform, and keeps it so.
    ///
    /// # Errors
    ///
    /// When the lock file cannot be opened, or no directory can be made.
    pub async fn alone() -> Result<Self> {
        let lock = lock(libc::LOCK_EX).await?;
        let dir = tempfile::tempdir()?;
        let before = Leftovers::look(&dir.path().join("data"));
        Ok(Self { dir, before, _lock: lock })
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// For a platform on that directory.
    pub fn options(&self) -> Options {
        Options { data_dir: Some(self.data_dir()), alone: true, ..Options::default() }
    }

    /// What is here and was not there at first.
    pub fn changes(&self) -> Leftovers {
        Leftovers::look(&self.data_dir()).since(&self.before)
    }
}

async fn lock(kind: i32) -> Result<Lock> {
    let path = std::env::temp_dir().join("colibri-e2e.lock");
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
    let locked = move || {
        // SAFETY: the descriptor is open for as long as the call.
        let result = unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&file), kind) };
        if result == 0 { Ok(Lock(file)) } else { Err(std::io::Error::last_os_error()) }
    };
    Ok(tokio::task::spawn_blocking(locked).await??)
}

/// A running platform; killed when dropped, if it was not stopped.
pub struct Platform {
    /// In the order in which they are stopped.
    processes: Vec<Process>,
    data_dir: PathBuf,
    home: TempDir,
    endpoints: BTreeMap<String, String>,
    http: reqwest::Client,
    _shared: Option<Lock>,
}

/// What a command printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// The output, if the command succeeded.
    ///
    /// # Errors
    ///
    /// When it did not; the text has everything it printed.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// Both outputs.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: reqwest::header::HeaderMap,
    /// Body.
    pub body: String,
    /// From the request to the last byte.
    pub took: Duration,
}

impl Platform {
    /// Starts a platform and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready; the text has its log.
    pub async fn start(options: Options) -> Result<Self> {
        let mut platform = Self::spawn(options).await?;
        platform.ready().await?;
        Ok(platform)
    }

    /// Starts a platform and does not wait.
    ///
    /// # Errors
    ///
    /// When the program cannot be started.
    pub async fn spawn(options: Options) -> Result<Self> {
        let shared = if options.alone { None } else { Some(lock(libc::LOCK_SH).await?) };
        // Needed where other crates of the same build turn TLS on; it may be there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().timeout(WAIT_LIMIT).build()?;
        let home = tempfile::Builder::new().prefix("colibri-e2e-").tempdir()?;
        let data_dir = options.data_dir.clone().unwrap_or_else(|| home.path().join("data"));
        let mut platform =
            Self { processes: Vec::new(), data_dir, home, endpoints: BTreeMap::new(), http, _shared: shared };
        platform.start_processes(&options).await?;
        Ok(platform)
    }

    /// Waits until a spawned platform is ready.
    ///
    /// # Errors
    ///
    /// When it does not become ready; the text has its log.
    pub async fn ready(&mut self) -> Result<()> {
        for process in &mut self.processes {
            process.ready(START_LIMIT).await?;
        }
        self.endpoints = serde_json::from_slice(&std::fs::read(self.data_dir.join("endpoints.json"))?)?;
        Ok(())
    }

    async fn start_processes(&mut self, options: &Options) -> Result<()> {
        let (home, data_dir) = (self.home.path(), &self.data_dir);
        let layout = options.layout.unwrap_or_else(layout);
        if layout != Layout::One {
            self.processes = start_processes(home, data_dir, layout, options, START_LIMIT).await?;
            return Ok(());
        }
        let ports = ["--api-port=0", "--gateway-port=0", "--gateway-tls-port=0", "--metrics-port=0"];
        let mut arguments = ports.map(str::to_owned).to_vec();
        arguments.extend(options.arguments.iter().cloned());
        self.processes.push(Process::start_hiding(options.hidden, home, "up", data_dir, &arguments)?);
        Ok(())
    }

    /// What the platform printed so far.
    pub fn log(&self) -> String {
        self.processes.iter().map(|process| format!("--- {} ---\n{}", process.role, process.log())).collect()
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// A directory for the test's own files.
    pub fn scratch(&self) -> &Path {
        self.home.path()
    }

    /// Process ID of the platform.
    pub fn pid(&self) -> u32 {
        self.processes.first().map_or(0, Process::pid)
    }

    /// One of the processes, by role.
    ///
    /// # Errors
    ///
    /// When the platform has no process of that role.
    pub fn process(&mut self, role: &str) -> Result<&mut Process> {
        let kubernetes = format!("kube-{role}");
        let found = self.processes.iter_mut().find(|process| process.role == role || process.role == kubernetes);
        found.with_context(|| format!("no process is the {role}"))
    }

    /// What starts more processes of this platform.
    pub fn roles(&self) -> Roles {
        Roles { home: self.home.path().to_path_buf(), data_dir: self.data_dir.clone(), hidden: None }
    }

    /// One entry of `endpoints.json`, such as `gateway`.
    pub fn endpoint(&self, name: &str) -> &str {
        self.endpoints.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Runs `kubectl` as the administrator.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<Output> {
        self.kubectl_with(arguments, None).await
    }

    /// Runs `kubectl apply -f -`.
    ///
    /// # Errors
    ///
    /// When kubectl fails.
    pub async fn apply(&self, manifest: &str) -> Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], Some(manifest)).await?.ok()
    }

    /// Runs `kubectl` with an input.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub async fn kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> Result<Output> {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", self.data_dir.join("kubeconfig")).env("HOME", self.home.path()).args(arguments);
        run(command, input).await
    }

    /// Runs our own CLI.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub async fn colibri(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("colibri"));
        command.env_remove("KUBECONFIG").env("HOME", self.home.path());
        command.args(arguments);
        if arguments != ["version"] {
            command.arg("--data-dir").arg(&self.data_dir);
        }
        run(command, None).await
    }

    /// A GET through the gateway.
    ///
    /// # Errors
    ///
    /// When no response came.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer> {
        self.get_with(host, path, None).await
    }

    /// A GET through the gateway with one more header.
    ///
    /// # Errors
    ///
    /// When no response came.
    pub async fn get_with(&self, host: &str, path: &str, header: Option<(&str, &str)>) -> Result<Answer> {
        self.send(reqwest::Method::GET, host, path, header, String::new()).await
    }

    /// A request through the gateway.
    ///
    /// # Errors
    ///
    /// When no response came.
    pub async fn request(&self, method: reqwest::Method, host: &str, path: &str, body: String) -> Result<Answer> {
        self.send(method, host, path, None, body).await
    }

    async fn send(
        &self,
        method: reqwest::Method,
        host: &str,
        path: &str,
        header: Option<(&str, &str)>,
        body: String,
    ) -> Result<Answer> {
        let url = format!("{}{path}", self.endpoint("gateway"));
        let start = Instant::now();
        let mut request = self.http.request(method, url).header("host", host).body(body);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.text().await?;
        Ok(Answer { status, headers, body, took: start.elapsed() })
    }

    /// A GET of any address.
    ///
    /// # Errors
    ///
    /// When no response came.
    pub async fn get_url(&self, url: &str) -> Result<Answer> {
        let start = Instant::now();
        let response = self.http.get(url).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.text().await?, took: start.elapsed() })
    }

    /// Waits until one of the gateway's figures of that name is not 0, such as its requests in flight.
    ///
    /// # Errors
    ///
    /// When it does not happen in time; the text has all figures.
    pub async fn wait_for_metric(&self, name: &str) -> Result<()> {
        let url = format!("{}/metrics", self.endpoint("metrics"));
        let start = Instant::now();
        loop {
            let metrics = self.get_url(&url).await?.body;
            let mut figures = metrics.lines().filter(|line| line.starts_with(name));
            if figures.any(|line| line.split_whitespace().last().is_some_and(|value| value != "0")) {
                return Ok(());
            }
            ensure!(start.elapsed() < WAIT_LIMIT, "{name} stays 0:\n{metrics}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An object as JSON, by `kubectl get`.
    ///
    /// # Errors
    ///
    /// When it does not exist.
    pub async fn object(&self, kind: &str, name: &str) -> Result<Value> {
        let text = self.kubectl(&["get", kind, name, "-o", "json"]).await?.ok()?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Names of the pods of a revision or service, by label.
    ///
    /// # Errors
    ///
    /// When kubectl fails.
    pub async fn pods(&self, selector: &str) -> Result<Vec<String>> {
        let text = self.kubectl(&["get", "pods", "-l", selector, "-o", "name"]).await?.ok()?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Waits until there are `count` pods; answers how long that took.
    ///
    /// # Errors
    ///
    /// When it does not happen within `limit`.
    pub async fn wait_for_pods(&self, selector: &str, count: usize, limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        loop {
            let pods = self.pods(selector).await?;
            if pods.len() == count {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < limit, "after {limit:?}: {} pods of {selector}, wanted {count}", pods.len());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until `colibri logs` with those arguments holds `word`: what a program printed is read from its pipe a
    /// moment later. Gives the log.
    ///
    /// # Errors
    ///
    /// When the command fails, or the word is not there within `limit`.
    pub async fn wait_for_logs(&self, arguments: &[&str], word: &str, limit: Duration) -> Result<String> {
        let (start, arguments) = (Instant::now(), [&["logs"], arguments].concat());
        loop {
            let logs = self.colibri(&arguments).await?.ok()?;
            if logs.contains(word) {
                return Ok(logs);
            }
            ensure!(start.elapsed() < limit, "after {limit:?} no {word:?} in:\n{logs}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Packs and loads the example server as an image, so that `hello:latest` can be used.
    ///
    /// # Errors
    ///
    /// When either command fails.
    pub async fn load_hello(&self) -> Result<()> {
        let layout = self.home.path().join("hello.tar");
        let layout = layout.to_string_lossy();
        let program = hello_program();
        let program = program.to_string_lossy();
        self.colibri(&["image", "pack", &program, "--tag", "hello:latest", "--output", &layout]).await?.ok()?;
        self.colibri(&["image", "load", &layout]).await?.ok()?;
        Ok(())
    }

    /// Packs and loads the echo server, with the libraries that it needs, as `echo:latest`.
    ///
    /// # Errors
    ///
    /// When a command fails.
    pub async fn load_echo(&self) -> Result<()> {
        let (root, layout) = (self.home.path().join("echo"), self.home.path().join("echo.tar"));
        let mut lay_out = Command::new(work_dir().join("tools/program-root"));
        lay_out.arg(binary("echo-container")).arg(&root);
        run(lay_out, None).await?.ok()?;
        let (root, layout) = (root.to_string_lossy(), layout.to_string_lossy());
        let entrypoint = ["--entrypoint", "/echo-container", "--tag", "echo:latest", "--output", &layout];
        self.colibri(&[&["image", "pack", &root], &entrypoint[..]].concat()).await?.ok()?;
        self.colibri(&["image", "load", &layout]).await?.ok()?;
        Ok(())
    }

    /// Sends a signal to the platform: to the first of its processes that runs, which is the gateway where there are
    /// several.
    pub fn signal(&self, signal: i32) {
        if let Some(process) = self.processes.iter().find(|process| process.child.is_some()) {
            process.signal(signal);
        }
    }

    /// Kills the platform, as a machine that fails does, and waits until it is gone.
    pub fn kill(&mut self) {
        for process in &mut self.processes {
            // One that is gone already is as good.
            let _ = process.kill();
        }
    }

    /// Waits for the end of the platform; of several processes the next is asked to stop when one has ended. Answers
    /// the first exit code that is not 0.
    ///
    /// # Errors
    ///
    /// When one does not end in time; it is then killed.
    pub async fn wait(&mut self) -> Result<i32> {
        let mut code = 0;
        for (number, process) in self.processes.iter_mut().enumerate() {
            if number > 0 {
                process.signal(libc::SIGINT);
            }
            let ended = process.wait(WAIT_LIMIT).await?;
            code = if code == 0 && process.is_ours() { ended } else { code };
        }
        Ok(code)
    }

    /// Stops the platform as Ctrl-C does, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it does not end with code 0.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(libc::SIGINT);
        let code = self.wait().await?;
        ensure!(code == 0, "the platform ended with code {code}:\n{}", self.log());
        // Kubernetes' API server refuses everybody for a moment after its start.
        if self.processes.iter().any(|process| process.role == "kube-apiserver" && process.was_killed) {
            return Ok(());
        }
        // The accounts of `colibri install --rbac` must be allowed all that the roles ever ask for.
        let is_refused = |line: &&str| {
            line.contains("forbidden: User \\\"system:serviceaccount:colibri-system:")
                || line.contains("forbidden: User \"system:serviceaccount:colibri-system:")
        };
        let refused: Vec<String> = self.log().lines().filter(is_refused).map(str::to_owned).collect();
        ensure!(refused.is_empty(), "a role is not allowed what it asks for:\n{}", refused.join("\n"));
        Ok(())
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        if self.processes.iter().all(|process| process.child.is_none()) {
            return;
        }
        if std::thread::panicking() || std::env::var_os("E2E_LOG").is_some() {
            eprintln!("--- log of the platform ---\n{}", self.log());
        }
        for process in &mut self.processes {
            process.end();
        }
    }
}

/// Path of a program of this workspace, built with the profile of this test.
///
/// # Panics
///
/// When it was not built.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile = test.ancestors().nth(2).expect("a test lies in <profile>/deps");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make e2e`, or `cargo build --profile ci --workspace --bins`",
        path.display()
    );
    path
}

/// The example server, linked statically.
///
/// # Panics
///
/// When it was not built.
pub fn hello_program() -> PathBuf {
    let profile = binary("colibri");
    let path = profile.ancestors().nth(2).expect("a program lies in <target>/<profile>").join("static/hello-container");
    assert!(path.is_file(), "{} is missing: run `make static`", path.display());
    path
}

/// The workspace's root.
pub fn work_dir() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Runs a command to its end without blocking the runtime.
///
/// # Errors
///
/// When it cannot be started, or does not end in time.
pub async fn run(mut command: Command, input: Option<&str>) -> Result<Output> {
    let shown = format!("{command:?}");
    let input = input.map(str::to_owned);
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    let mut child = command.kill_on_drop(true).spawn().with_context(|| format!("starting {shown}"))?;
    if let (Some(text), Some(mut pipe)) = (input, child.stdin.take()) {
        tokio::io::AsyncWriteExt::write_all(&mut pipe, text.as_bytes()).await?;
    }
    let output = tokio::time::timeout(WAIT_LIMIT, child.wait_with_output());
    let output = output.await.with_context(|| format!("{shown} did not end within {WAIT_LIMIT:?}"))??;
    Ok(Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
