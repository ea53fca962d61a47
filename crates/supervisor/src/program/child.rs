//! What runs between the fork of a container and the start of its program.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};
use supervisor::{ContainerSpec, StartFailure, read_frame};

use super::cgroup::Cgroup;
use super::identity::{self, Identity};
use super::sandbox::Sandbox;
use super::{Failure, Step, rootfs, sys};

/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Open files of a container's processes.
const OPEN_FILES: u64 = 1_048_576;

/// What a waiting child is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    /// The container.
    pub spec: ContainerSpec,
    /// The sandbox's folder on disk.
    pub dir: PathBuf,
    /// The sandbox's folder in memory.
    pub memory: PathBuf,
    /// Volumes: name and folder.
    pub volumes: BTreeMap<String, PathBuf>,
    /// The host's id of the containers' root.
    pub owner: u32,
    /// Controllers on hierarchies of version 1.
    pub v1_controllers: Vec<String>,
}

/// Waits for orders and follows them; the process becomes the container's.
pub fn run(sandbox: &Sandbox, cgroup: &Cgroup, orders: OwnedFd, report: OwnedFd, outputs: [OwnedFd; 2]) -> ! {
    let failure = match prepare(cgroup, &outputs).and_then(|()| wait_for_orders(orders)) {
        Ok(Some(orders)) => start(sandbox, &orders),
        Ok(None) => sys::exit(0),
        Err(failure) => failure,
    };
    tell(report, &failure);
    sys::exit(128)
}

fn tell(report: OwnedFd, failure: &Failure) {
    let failure = StartFailure { config: failure.config, message: failure.to_string() };
    // Nobody is left to be told when this fails.
    let _ = serde_json::to_vec(&failure).map(|text| fs::File::from(report).write_all(&text));
}

fn prepare(cgroup: &Cgroup, outputs: &[OwnedFd; 2]) -> Result<(), Failure> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).step("tying the container to its supervisor")?;
    // What the supervisor mounts is seen here, not the other way round.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).step("separating mounts")?;
    cgroup.join()?;
    unshare(CloneFlags::CLONE_NEWCGROUP).step("making a cgroup namespace")?;
    sys::redirect_to_null(&[0]);
    sys::dup2(outputs[0].as_fd(), 1).and_then(|()| sys::dup2(outputs[1].as_fd(), 2)).step("connecting outputs")
}

fn wait_for_orders(orders: OwnedFd) -> Result<Option<Orders>, Failure> {
    read_frame(&mut fs::File::from(orders)).step("reading orders")
}

/// Follows the orders; returns only when that failed.
fn start(sandbox: &Sandbox, orders: &Orders) -> Failure {
    let spec = &orders.spec;
    let map = sandbox.user_namespace.as_ref().map(AsFd::as_fd);
    let entered = check(spec).and_then(|()| rootfs::enter(orders, map)).and_then(|()| identity::resolve(&spec.user));
    match entered.and_then(|identity| give_up_rights(sandbox, spec, &identity).map(|()| identity)) {
        Ok(identity) => execute(&spec.args, &environment(spec, &identity)),
        Err(failure) => failure,
    }
}

fn check(spec: &ContainerSpec) -> Result<(), Failure> {
    let targets = spec.mounts.iter().map(|mount| mount.target.as_str());
    for path in targets.chain([spec.termination_log.as_str(), spec.cwd.as_str()]) {
        if !rootfs::is_plain(path) {
            return Err(Failure::config("checking paths", format!("{path:?} is not absolute or has \"..\"")));
        }
    }
    Ok(())
}

/// From here on the process has a container's rights.
fn give_up_rights(sandbox: &Sandbox, spec: &ContainerSpec, identity: &Identity) -> Result<(), Failure> {
    let _ = nix::unistd::setsid(); // a process group leader stays one
    let _ = fs::write("/proc/self/oom_score_adj", "500");
    sys::set_limit(libc::RLIMIT_NOFILE, OPEN_FILES);
    sys::set_limit(libc::RLIMIT_CORE, 0);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if let Some(namespace) = &sandbox.user_namespace {
        sys::setns(namespace.as_fd(), libc::CLONE_NEWUSER).step("entering the user namespace")?;
    }
    identity::become_identity(identity, &spec.capabilities, spec.allow_privilege_escalation)?;
    std::env::set_current_dir(&spec.cwd).step(format!("entering the working directory {}", spec.cwd))?;
    // Becoming another user has cleared it.
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).step("tying the container to its supervisor")?;
    sys::reset_signals();
    sys::close_on_exec_from(3).step("closing descriptors")?;
    if !spec.unconfined {
        for filter in &sandbox.filters {
            sys::seccomp(filter).step("installing the system call filter")?;
        }
    }
    Ok(())
}

fn environment(spec: &ContainerSpec, identity: &Identity) -> Vec<String> {
    let mut env = spec.env.clone();
    let has = |name: &str, env: &[String]| env.iter().any(|entry| entry.split('=').next() == Some(name));
    if !has("PATH", &env) {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    if !has("HOME", &env) {
        env.push(format!("HOME={}", identity.home));
    }
    env
}

/// Executes the program; returns only when that failed.
fn execute(args: &[String], env: &[String]) -> Failure {
    let strings = |list: &[String]| -> Result<Vec<CString>, Failure> {
        let each = list.iter().map(|text| CString::new(text.as_str()));
        each.collect::<Result<_, _>>().map_err(|error| Failure::config("reading arguments", error.to_string()))
    };
    let (c_args, c_env) = match (strings(args), strings(env)) {
        (Ok(args), Ok(env)) => (args, env),
        (Err(failure), _) | (_, Err(failure)) => return failure,
    };
    let Some(name) = args.first().filter(|name| !name.is_empty()) else {
        return Failure::config("starting the program", "no command is given");
    };
    if name.contains('/') {
        let error = sys::exec(&c_args[0], &c_args, &c_env);
        return refused(name, &explain(&error));
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for folder in path.split(':').filter(|folder| !folder.is_empty()) {
        let Ok(candidate) = CString::new(format!("{folder}/{name}")) else { continue };
        let error = sys::exec(&candidate, &c_args, &c_env);
        if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) {
            denied.get_or_insert(error);
        }
    }
    match denied {
        Some(error) => refused(name, &explain(&error)),
        None => refused(name, "executable file not found in $PATH"),
    }
}

fn refused(name: &str, cause: &str) -> Failure {
    Failure { step: format!("exec: {name:?}"), cause: cause.to_string(), config: false }
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".into(),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => {
            "exec format error: no program for this kind of processor, or a script without #!".into()
        }
        _ => error.to_string(),
    }
}

/// Runs a command in a running container: the forked child of the supervisor, never to return.
pub fn exec_inside(
    sandbox: &Sandbox,
    spec: &ContainerSpec,
    container: BorrowedFd<'_>,
    cgroup: &Cgroup,
    args: &[String],
    output: &OwnedFd,
) -> ! {
    let entered = || -> Result<Identity, Failure> {
        sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64).step("tying the command to its supervisor")?;
        sys::redirect_to_null(&[0]);
        sys::dup2(output.as_fd(), 1).and_then(|()| sys::dup2(output.as_fd(), 2)).step("connecting outputs")?;
        cgroup.join()?;
        let namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWCGROUP;
        sys::setns(container, namespaces).step("entering the container")?;
        identity::resolve(&spec.user)
    };
    let failure = match entered() {
        Ok(identity) => match sys::fork(0) {
            Ok(sys::Forked::Parent(pid)) => {
                let status = sys::wait(pid);
                sys::exit(if libc::WIFEXITED(status) {
                    libc::WEXITSTATUS(status)
                } else {
                    128 + libc::WTERMSIG(status)
                })
            }
            Ok(sys::Forked::Child) => match give_up_rights(sandbox, spec, &identity) {
                Ok(()) => execute(args, &environment(spec, &identity)),
                Err(failure) => failure,
            },
            Err(error) => Failure { step: "forking".into(), cause: error.to_string(), config: false },
        },
        Err(failure) => failure,
    };
    // The command's output is the only way to tell.
    let _ = writeln!(io::stderr(), "{failure}");
    sys::exit(126)
}
