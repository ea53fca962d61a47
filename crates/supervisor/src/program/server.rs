//! The loop: requests from the node, outputs and ends of containers, time limits.
//!
//! Ties: a container that ended is told as started first, if its program had started. A connection that does not take
//! what it is sent is closed once [`BACKLOG_BYTES`] wait; the next one is told the state anew. A sandbox that is bound to
//! a pod waits for the next node when its connection ends; one that is not ends with it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use supervisor::{
    Binding, ContainerSpec, ContainerState, Event, ExecSpec, Exit, PROTOCOL, PodConfig, Request, Stage, StartFailure,
    State, decode, encode, write_frame,
};

use super::cgroup::{self, Cgroup};
use super::child::{self, Orders};
use super::log::{Log, Stream};
use super::sandbox::{Prepared, Sandbox};
use super::sys::{self, Forked};
use super::{Failure, Step, volumes};

/// What may wait to be sent on one connection.
const BACKLOG_BYTES: usize = 1024 * 1024;
/// Connections at once; more are closed.
const CONNECTIONS: usize = 8;
/// Output of a command that is kept.
const EXEC_OUTPUT_BYTES: usize = 16 * 1024;
/// Commands at once in all containers; more fail.
const EXECS: usize = 32;
/// Longest termination message.
const MESSAGE_BYTES: u64 = 4096;

/// The supervisor at work.
pub struct Server {
    sandbox: Sandbox,
    listener: UnixListener,
    binding: Option<Binding>,
    prepared: Option<Prepared>,
    pod: PodConfig,
    volumes: BTreeMap<String, PathBuf>,
    containers: BTreeMap<String, Container>,
    states: BTreeMap<String, ContainerState>,
    execs: Vec<Exec>,
    connections: Vec<Connection>,
    ending: bool,
}

struct Container {
    spec: ContainerSpec,
    pid: i32,
    started_ms: i64,
    cgroup: Cgroup,
    report: Option<OwnedFd>,
    report_text: Vec<u8>,
    outputs: [Option<File>; 2],
    log: Log,
    kill_at: Option<Instant>,
    killed_for_term: bool,
}

struct Exec {
    id: u64,
    pid: i32,
    output: Option<File>,
    text: Vec<u8>,
    kill_at: Instant,
    killed: bool,
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
    broken: bool,
}

/// What a polled descriptor belongs to.
enum Source {
    Signals,
    Listener,
    Connection(usize),
    Report(String),
    Output(String, Stream),
    Exec(usize),
}

impl Server {
    /// Opens the socket and prepares the first container.
    pub fn new(mut sandbox: Sandbox) -> Result<Self, Failure> {
        let prepared = Some(sandbox.prepare()?);
        // A name relative to the folder: paths of sockets are short.
        std::env::set_current_dir(&sandbox.setup.dir).step("entering the sandbox's folder")?;
        let listener = UnixListener::bind("socket").step("opening the socket")?;
        fs::set_permissions("socket", std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .step("closing the socket")?;
        listener.set_nonblocking(true).step("opening the socket")?;
        Ok(Self {
            sandbox,
            listener,
            binding: None,
            prepared,
            pod: PodConfig::default(),
            volumes: BTreeMap::new(),
            containers: BTreeMap::new(),
            states: BTreeMap::new(),
            execs: Vec::new(),
            connections: Vec::new(),
            ending: false,
        })
    }

    /// Serves until it is told to quit, or until its node goes before it has a pod; the exit code.
    pub fn run(mut self, node_is_there: bool) -> i32 {
        self.ending = !node_is_there;
        while !self.ending {
            let (mut fds, sources) = self.wanted();
            sys::poll(&mut fds, self.timeout_ms());
            for (fd, source) in fds.iter().zip(&sources) {
                if fd.revents != 0 {
                    self.handle(source, fd.revents);
                }
            }
            self.reap();
            self.expire();
            let before = self.connections.len();
            self.connections.retain(|connection| !connection.broken);
            if self.binding.is_none() && self.connections.is_empty() && before > 0 {
                self.ending = true;
            }
        }
        self.end();
        0
    }

    fn wanted(&self) -> (Vec<libc::pollfd>, Vec<Source>) {
        let (mut fds, mut sources) = (Vec::new(), Vec::new());
        let mut add = |fd: RawFd, events: i16, source: Source| {
            fds.push(libc::pollfd { fd, events, revents: 0 });
            sources.push(source);
        };
        add(self.sandbox.signals.as_raw_fd(), libc::POLLIN, Source::Signals);
        add(self.listener.as_raw_fd(), libc::POLLIN, Source::Listener);
        for (index, connection) in self.connections.iter().enumerate() {
            let out = if connection.output.is_empty() { 0 } else { libc::POLLOUT };
            add(connection.stream.as_raw_fd(), libc::POLLIN | out, Source::Connection(index));
        }
        for (name, container) in &self.containers {
            if let Some(report) = &container.report {
                add(report.as_raw_fd(), libc::POLLIN, Source::Report(name.clone()));
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                if let Some(output) = &container.outputs[stream as usize] {
                    add(output.as_raw_fd(), libc::POLLIN, Source::Output(name.clone(), stream));
                }
            }
        }
        for (index, exec) in self.execs.iter().enumerate() {
            if let Some(output) = &exec.output {
                add(output.as_raw_fd(), libc::POLLIN, Source::Exec(index));
            }
        }
        (fds, sources)
    }

    fn timeout_ms(&self) -> i32 {
        let stops = self.containers.values().filter_map(|container| container.kill_at);
        let execs = self.execs.iter().filter(|exec| !exec.killed).map(|exec| exec.kill_at);
        let next = stops.chain(execs).min();
        next.map_or(-1, |at| {
            let left = at.saturating_duration_since(Instant::now());
            i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
        })
    }

    fn handle(&mut self, source: &Source, events: i16) {
        match source {
            Source::Signals => self.take_signals(),
            Source::Listener => self.accept(),
            Source::Connection(index) => self.serve(*index, events),
            Source::Report(name) => self.take_report(name),
            Source::Output(name, stream) => {
                if let Some(container) = self.containers.get_mut(name) {
                    container.take_output(*stream);
                }
            }
            Source::Exec(index) => self.execs[*index].take_output(),
        }
    }

    /// Any signal but that of a child means the end.
    fn take_signals(&mut self) {
        let mut record = [0; 128];
        while let Ok(128) = rustix::io::read(&self.sandbox.signals, &mut record) {
            let signal = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
            if signal != libc::SIGCHLD as u32 {
                self.ending = true;
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= CONNECTIONS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut connection = Connection { stream, input: Vec::new(), output: Vec::new(), broken: false };
            connection.send(&Event::State(State {
                protocol: PROTOCOL,
                binding: self.binding.clone(),
                user_namespace: self.sandbox.user_namespace.is_some(),
                containers: self.states.clone(),
            }));
            self.connections.push(connection);
        }
    }

    fn serve(&mut self, index: usize, events: i16) {
        let connection = &mut self.connections[index];
        if events & libc::POLLOUT != 0 {
            connection.flush();
        }
        if events & !libc::POLLOUT == 0 {
            return;
        }
        for request in connection.receive() {
            self.request(request);
        }
    }

    fn request(&mut self, request: Request) {
        match request {
            Request::Bind(binding) => self.binding = Some(binding),
            Request::Configure(config) => self.configure(config),
            Request::Start(spec) => self.start(*spec),
            Request::Stop { container, grace_ms } => {
                for (name, running) in &mut self.containers {
                    if container.as_ref().is_none_or(|wanted| wanted == name) {
                        running.stop(Duration::from_millis(grace_ms));
                    }
                }
            }
            Request::Exec(exec) => self.exec(exec),
            Request::Quit => self.ending = true,
        }
    }

    /// Volumes are made by the next start; those of running containers are renewed at once.
    fn configure(&mut self, config: PodConfig) {
        self.pod = config;
        if !self.containers.is_empty()
            && let Ok(volumes) = volumes::apply(&self.sandbox, &self.pod)
        {
            self.volumes = volumes;
        }
    }

    fn start(&mut self, spec: ContainerSpec) {
        let (name, run) = (spec.name.clone(), spec.run);
        if self.containers.contains_key(&name) {
            return; // the same order twice
        }
        let starting = ContainerState { run, note: spec.note.clone(), stage: Stage::Starting };
        self.states.insert(name.clone(), starting);
        if let Err(failure) = self.try_start(spec) {
            self.failed(name, run, StartFailure { config: failure.config, message: failure.to_string() });
        }
    }

    fn try_start(&mut self, spec: ContainerSpec) -> Result<(), Failure> {
        self.volumes = volumes::apply(&self.sandbox, &self.pod)?;
        let prepared = match self.prepared.take() {
            Some(prepared) => prepared,
            None => self.sandbox.prepare()?,
        };
        let term = self.sandbox.memory().join("term").join(format!("{}-{}", spec.name, spec.run));
        let owner = Some(self.sandbox.owner());
        fs::write(&term, "")
            .and_then(|()| std::os::unix::fs::chown(&term, owner, owner))
            .and_then(|()| fs::set_permissions(&term, std::os::unix::fs::PermissionsExt::from_mode(0o666)))
            .step("making the termination log")?;
        prepared.cgroup.limit(&spec.limits)?;
        let log = Log::open(&spec.log).step(format!("opening the log {}", spec.log.display()))?;
        let orders = Orders {
            spec,
            dir: self.sandbox.setup.dir.clone(),
            memory: self.sandbox.memory(),
            volumes: self.volumes.clone(),
            owner: self.sandbox.owner(),
            v1_controllers: self.sandbox.setup.cgroups.v1.keys().cloned().collect(),
        };
        let [stdout, stderr] = prepared.outputs.map(|output| Some(File::from(output)));
        write_frame(&mut File::from(prepared.orders), &orders).step("giving orders to the container")?;
        let container = Container {
            pid: prepared.pid,
            started_ms: 0,
            cgroup: prepared.cgroup,
            report: Some(prepared.report),
            report_text: Vec::new(),
            outputs: [stdout, stderr],
            log,
            kill_at: None,
            killed_for_term: false,
            spec: orders.spec,
        };
        self.containers.insert(container.spec.name.clone(), container);
        Ok(())
    }

    fn failed(&mut self, container: String, run: u32, failure: StartFailure) {
        self.enter(&container, Stage::Failed(failure.clone()));
        self.tell(&Event::Failed { container, run, failure });
    }

    fn enter(&mut self, container: &str, stage: Stage) {
        if let Some(state) = self.states.get_mut(container) {
            state.stage = stage;
        }
    }

    fn tell(&mut self, event: &Event) {
        for connection in &mut self.connections {
            connection.send(event);
        }
    }

    /// What a starting container has to say: nothing but the end means that its program runs.
    fn take_report(&mut self, name: &str) {
        let Some(container) = self.containers.get_mut(name) else { return };
        let Some(report) = &container.report else { return };
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(report, &mut buffer) {
                Ok(0) => break,
                Ok(count) => container.report_text.extend_from_slice(&buffer[..count]),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
        container.report = None;
        let (run, pid) = (container.spec.run, container.pid as u32);
        if container.report_text.is_empty() {
            let started_ms = jiff::Timestamp::now().as_millisecond();
            container.started_ms = started_ms;
            self.enter(name, Stage::Running { pid, started_ms });
            self.tell(&Event::Started { container: name.to_string(), run, pid, started_ms });
        }
    }

    fn reap(&mut self) {
        while let Some((pid, status)) = sys::reap() {
            let container = self.containers.iter().find(|(_, container)| container.pid == pid);
            if let Some(name) = container.map(|(name, _)| name.clone()) {
                self.take_report(&name);
                self.container_ended(&name, status);
            } else if let Some(index) = self.execs.iter().position(|exec| exec.pid == pid) {
                let mut exec = self.execs.swap_remove(index);
                exec.take_output();
                let code = (!exec.killed && libc::WIFEXITED(status)).then(|| libc::WEXITSTATUS(status));
                let output = String::from_utf8_lossy(&exec.text).into_owned();
                self.tell(&Event::ExecDone { id: exec.id, code, output });
            } else if self.prepared.as_ref().is_some_and(|prepared| prepared.pid == pid)
                && let Some(prepared) = self.prepared.take()
            {
                prepared.cgroup.remove();
            }
        }
    }

    fn container_ended(&mut self, name: &str, status: i32) {
        let Some(mut container) = self.containers.remove(name) else { return };
        container.drain();
        let oom_killed = container.cgroup.oom_killed();
        container.cgroup.remove();
        let run = container.spec.run;
        if !container.report_text.is_empty() {
            let failure = serde_json::from_slice(&container.report_text).unwrap_or_else(|_| StartFailure {
                config: false,
                message: String::from_utf8_lossy(&container.report_text).into_owned(),
            });
            self.forget_files(&container.spec);
            return self.failed(name.to_string(), run, failure);
        }
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        let signal =
            if container.killed_for_term && signal == Some(libc::SIGKILL) { Some(libc::SIGTERM) } else { signal };
        let code = signal.map_or_else(|| libc::WEXITSTATUS(status), |signal| 128 + signal);
        let exit = Exit {
            code,
            signal,
            oom_killed,
            message: self.message(&container, code),
            started_ms: container.started_ms,
            finished_ms: jiff::Timestamp::now().as_millisecond(),
        };
        self.forget_files(&container.spec);
        self.enter(name, Stage::Exited(exit.clone()));
        self.tell(&Event::Exited { container: name.to_string(), run, exit });
    }

    fn message(&self, container: &Container, code: i32) -> String {
        let spec = &container.spec;
        let term = self.sandbox.memory().join("term").join(format!("{}-{}", spec.name, spec.run));
        let mut text = Vec::new();
        // A missing message is an empty one.
        let _ = File::open(term).and_then(|file| file.take(MESSAGE_BYTES).read_to_end(&mut text));
        if text.is_empty() && code != 0 && spec.message_from_log {
            return container.log.tail();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn forget_files(&self, spec: &ContainerSpec) {
        let name = format!("{}-{}", spec.name, spec.run);
        // What stays goes with the sandbox.
        let _ = fs::remove_file(self.sandbox.memory().join("term").join(&name));
        let _ = fs::remove_dir_all(self.sandbox.memory().join("run").join(&name));
        let _ = fs::remove_dir_all(self.sandbox.setup.dir.join("rw").join(&name));
    }

    fn exec(&mut self, spec: ExecSpec) {
        let id = spec.id;
        match self.try_exec(&spec) {
            Ok(exec) => self.execs.push(exec),
            Err(failure) => self.tell(&Event::ExecDone { id, code: None, output: failure.to_string() }),
        }
    }

    fn try_exec(&mut self, spec: &ExecSpec) -> Result<Exec, Failure> {
        let running = self.containers.get(&spec.container).filter(|container| container.report.is_none());
        let Some(container) = running else {
            return Err(Failure::config("running a command", format!("container {} does not run", spec.container)));
        };
        if self.execs.len() >= EXECS {
            return Err(Failure::config("running a command", format!("{EXECS} commands run already")));
        }
        let pidfd = sys::pidfd(container.pid).step("finding the container")?;
        let (output, output_in) = sys::pipe().step("making a pipe")?;
        match sys::fork(0).step("forking a command")? {
            Forked::Parent(pid) => {
                sys::set_nonblocking(output.as_fd()).step("preparing a pipe")?;
                Ok(Exec {
                    id: spec.id,
                    pid,
                    output: Some(output.into()),
                    text: Vec::new(),
                    kill_at: Instant::now() + Duration::from_millis(spec.timeout_ms),
                    killed: false,
                })
            }
            Forked::Child => {
                let mut keep = vec![pidfd.as_raw_fd(), output_in.as_raw_fd()];
                keep.extend(self.sandbox.user_namespace.as_ref().map(AsRawFd::as_raw_fd));
                keep.sort_unstable();
                sys::close_all_but(&keep);
                let (sandbox, cgroup) = (&self.sandbox, &container.cgroup);
                child::exec_inside(sandbox, &container.spec, pidfd.as_fd(), cgroup, &spec.args, &output_in)
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        for container in self.containers.values_mut() {
            if container.kill_at.is_some_and(|at| at <= now) {
                container.kill_at = None;
                sys::kill(container.pid, libc::SIGKILL);
            }
        }
        for exec in &mut self.execs {
            if !exec.killed && exec.kill_at <= now {
                exec.killed = true;
                sys::kill(exec.pid, libc::SIGKILL);
            }
        }
    }

    /// Kills all, gives everything back.
    fn end(&mut self) {
        for pid in self.containers.values().map(|container| container.pid).chain(self.execs.iter().map(|e| e.pid)) {
            sys::kill(pid, libc::SIGKILL);
        }
        for container in self.containers.values() {
            sys::wait(container.pid);
            container.cgroup.remove();
        }
        if let Some(prepared) = self.prepared.take() {
            sys::kill(prepared.pid, libc::SIGKILL);
            sys::wait(prepared.pid);
            prepared.cgroup.remove();
        }
        cgroup::remove_parents(&self.sandbox.setup.cgroups, &self.sandbox.setup.name);
        // The node removes the folder.
        let _ = fs::remove_file("socket");
    }
}

impl Container {
    /// SIGTERM now, SIGKILL later. The first process of a container does not die of a SIGTERM that it leaves alone, as
    /// any other process does; here it does, so that nobody waits for a grace that is of no use.
    fn stop(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        if self.report.is_some() || !self.minds_term() {
            self.killed_for_term = true;
            sys::kill(self.pid, libc::SIGKILL);
        } else if self.kill_at.is_none() {
            sys::kill(self.pid, libc::SIGTERM);
        }
        self.kill_at = Some(self.kill_at.map_or(at, |old| old.min(at)));
    }

    /// Whether its program catches SIGTERM or wants to ignore it.
    fn minds_term(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let has = |name: &str| {
            let mask = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
            mask & (1 << (libc::SIGTERM - 1)) != 0
        };
        has("SigCgt") || has("SigIgn")
    }

    fn take_output(&mut self, stream: Stream) {
        let Some(output) = &mut self.outputs[stream as usize] else { return };
        let mut buffer = vec![0; 64 * 1024];
        match output.read(&mut buffer) {
            Ok(0) => self.outputs[stream as usize] = None,
            Ok(count) => self.log.take(stream, &buffer[..count], jiff::Timestamp::now()),
            Err(_) => {} // nothing there
        }
    }

    /// Takes what is left in the pipes of a container that ended.
    fn drain(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut buffer = vec![0; 64 * 1024];
            while let Some(count) =
                self.outputs[stream as usize].as_mut().and_then(|output| output.read(&mut buffer).ok())
                && count > 0
            {
                self.log.take(stream, &buffer[..count], jiff::Timestamp::now());
            }
        }
        self.log.finish(jiff::Timestamp::now());
    }
}

impl Exec {
    fn take_output(&mut self) {
        let mut buffer = [0; 4096];
        while let Some(output) = &mut self.output {
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(count) => {
                    let room = EXEC_OUTPUT_BYTES.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(_) => return,
            }
        }
    }
}

impl Connection {
    fn send(&mut self, event: &Event) {
        match encode(event) {
            Ok(frame) if self.output.len() + frame.len() <= BACKLOG_BYTES => self.output.extend_from_slice(&frame),
            _ => self.broken = true,
        }
        self.flush();
    }

    fn flush(&mut self) {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
    }

    fn receive(&mut self) -> Vec<Request> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => self.broken = true,
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    continue;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => self.broken = true,
            }
            break;
        }
        let mut requests = Vec::new();
        loop {
            match decode(&mut self.input) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => return requests,
                Err(_) => {
                    self.broken = true;
                    return requests;
                }
            }
        }
    }
}
