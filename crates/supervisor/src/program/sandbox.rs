//! What is prepared before a pod is known: namespaces, cgroups, memory for files, and a first container that waits.

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use seccompiler::BpfProgram;
use supervisor::Setup;

use super::cgroup::{self, Cgroup};
use super::sys::{self, Forked};
use super::{Failure, Step, child, seccomp};

/// Most that the sandbox's own memory folder holds: files of volumes, termination logs.
const MEMORY_BYTES: u64 = 64 * 1024 * 1024;
/// Size of the range of ids that a user namespace maps.
const ID_RANGE: u32 = 65_536;

/// The sandbox of one pod.
pub struct Sandbox {
    /// How it was asked for.
    pub setup: Setup,
    /// The user namespace of its containers.
    pub user_namespace: Option<OwnedFd>,
    /// The filters of its containers.
    pub filters: [BpfProgram; 2],
    /// Signals that the loop reads.
    pub signals: OwnedFd,
    next_leaf: u32,
}

/// A forked container that waits for its orders.
pub struct Prepared {
    /// Its process id.
    pub pid: i32,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Where its orders are written.
    pub orders: OwnedFd,
    /// Where it says why it could not start; its end is the start of the program.
    pub report: OwnedFd,
    /// Its two outputs.
    pub outputs: [OwnedFd; 2],
}

impl Sandbox {
    /// Makes namespaces and cgroups.
    pub fn make(setup: Setup) -> Result<Self, Failure> {
        // Nobody in a container may look into a process of ours that is about to become one.
        sys::prctl(libc::PR_SET_DUMPABLE, 0).step("hiding memory")?;
        // The name that process lists show; it may be refused without harm.
        let _ = fs::write("/proc/self/comm", "colibri-pod");
        // A process group leader is a session leader already.
        let _ = nix::unistd::setsid();
        let signals = sys::signals().step("blocking signals")?;
        let namespaces =
            CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNS;
        unshare(namespaces).step("making namespaces")?;
        // Mounts of ours stay ours; what the host unmounts goes here too.
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none).step("separating mounts")?;
        let memory = setup.dir.join("mem");
        make_dir(&memory)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = format!("size={MEMORY_BYTES},mode=711");
        mount(Some("colibri"), &memory, Some("tmpfs"), flags, Some(options.as_str())).step("mounting memory")?;
        // Volumes in memory that are mounted later reach the containers that are forked already.
        mount(none, &memory, none, MsFlags::MS_SHARED, none).step("sharing memory")?;
        for name in ["etc", "term", "run", "v"] {
            make_dir(&memory.join(name))?;
        }
        // Containers have no right to low ports of their own; in a network of their own everybody may use them.
        fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").step("opening low ports")?;
        // Ping without raw sockets; absent on some kernels.
        let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
        let _ = fs::write("/proc/self/oom_score_adj", "-998");
        cgroup::make_parents(&setup.cgroups, &setup.name)?;
        let user_namespace = setup.user_namespace.map(make_user_namespace).transpose()?;
        Ok(Self { setup, user_namespace, filters: seccomp::filters()?, signals, next_leaf: 0 })
    }

    /// Forks a container that waits for its orders.
    pub fn prepare(&mut self) -> Result<Prepared, Failure> {
        let leaf = format!("c{}", self.next_leaf);
        self.next_leaf += 1;
        let cgroup = Cgroup::make(&self.setup.cgroups, &self.setup.name, &leaf)?;
        let pipe = || sys::pipe().step("making a pipe");
        let (orders_in, orders) = pipe()?;
        let (report, report_out) = pipe()?;
        let (stdout, stdout_in) = pipe()?;
        let (stderr, stderr_in) = pipe()?;
        match sys::fork(libc::CLONE_NEWPID | libc::CLONE_NEWNS).step("forking a container")? {
            Forked::Parent(pid) => {
                for fd in [&report, &stdout, &stderr] {
                    sys::set_nonblocking(fd.as_fd()).step("preparing a pipe")?;
                }
                Ok(Prepared { pid, cgroup, orders, report, outputs: [stdout, stderr] })
            }
            Forked::Child => {
                let mut keep: Vec<_> =
                    [&orders_in, &report_out, &stdout_in, &stderr_in].map(|fd| fd.as_raw_fd()).into();
                keep.extend(self.user_namespace.as_ref().map(AsRawFd::as_raw_fd));
                keep.sort_unstable();
                sys::close_all_but(&keep);
                child::run(self, &cgroup, orders_in, report_out, [stdout_in, stderr_in])
            }
        }
    }

    /// Folder in memory, visible to this sandbox alone.
    pub fn memory(&self) -> PathBuf {
        self.setup.dir.join("mem")
    }

    /// The host's id of the containers' root.
    pub fn owner(&self) -> u32 {
        self.setup.user_namespace.unwrap_or(0)
    }
}

/// Makes a folder unless it is there.
pub fn make_dir(path: &Path) -> Result<(), Failure> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.step(format!("making folder {}", path.display())),
    }
}

/// A user namespace whose ids from 0 on are the host's from `base` on.
fn make_user_namespace(base: u32) -> Result<OwnedFd, Failure> {
    let (hold, release) = sys::pipe().step("making a pipe")?;
    match sys::fork(libc::CLONE_NEWUSER).step("making a user namespace")? {
        Forked::Child => {
            drop(release);
            // Ends when the parent has what it wants, or is gone.
            let _ = fs::File::from(hold).read(&mut [0]);
            sys::exit(0)
        }
        Forked::Parent(pid) => {
            drop(hold);
            let map = format!("0 {base} {ID_RANGE}");
            let made = ["uid_map", "gid_map"]
                .iter()
                .try_for_each(|file| fs::write(format!("/proc/{pid}/{file}"), &map))
                .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")));
            drop(release);
            sys::wait(pid);
            Ok(made.step("mapping ids of the user namespace")?.into())
        }
    }
}
