//! What node and supervisor say to each other.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Version of this protocol. A node takes over only supervisors that speak its own.
pub const PROTOCOL: u32 = 2;

/// How a supervisor is started: the one argument of the program, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Folder of this sandbox: socket, state file, writable layers. It exists.
    pub dir: PathBuf,
    /// Name of the sandbox, also that of its cgroups; without slashes.
    pub name: String,
    /// Where its cgroups are made.
    pub cgroups: CgroupBase,
    /// First host user and group id of a range of 65,536 that the pod's user namespace maps; `None` for none.
    pub user_namespace: Option<u32>,
}

/// The platform's own cgroup in each hierarchy, as absolute folders that exist.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupBase {
    /// Controller to folder, for those that are on a version 1 hierarchy.
    pub v1: BTreeMap<String, PathBuf>,
    /// Folder on the version 2 hierarchy, where at least one controller is there.
    pub v2: Option<PathBuf>,
}

/// The supervisor's first words on its standard output.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Hello {
    /// The sandbox stands and the socket is open.
    Ready,
    /// It could not be made; the text names the step.
    Failed(String),
}

/// From node to supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// The sandbox belongs to this pod from now on, and outlives the node. Until then it ends with its connection.
    Bind(Binding),
    /// What all containers share. Before the first start; again to change the content of volumes.
    Configure(PodConfig),
    /// Start a container.
    Start(Box<ContainerSpec>),
    /// SIGTERM to one container (`None`: to all), SIGKILL after `grace_ms`.
    Stop {
        /// Name of the container.
        container: Option<String>,
        /// Time between the two signals.
        grace_ms: u64,
    },
    /// Run a command inside a running container.
    Exec(ExecSpec),
    /// Kill all, give back cgroups and end.
    Quit,
}

/// From supervisor to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// Sent first on each connection.
    State(State),
    /// The container's program runs.
    Started {
        /// Name of the container.
        container: String,
        /// Which run of it.
        run: u32,
        /// Its process id on the host.
        pid: u32,
        /// When, in milliseconds since 1970.
        started_ms: i64,
    },
    /// The container could not be started.
    Failed {
        /// Name of the container.
        container: String,
        /// Which run of it.
        run: u32,
        /// Why.
        failure: StartFailure,
    },
    /// The container's program ended.
    Exited {
        /// Name of the container.
        container: String,
        /// Which run of it.
        run: u32,
        /// How.
        exit: Exit,
    },
    /// A command that was asked for by [`Request::Exec`] ended.
    ExecDone {
        /// The number the request gave it.
        id: u64,
        /// Its exit code; `None` when it was killed, ran out of time or could not be started.
        code: Option<i32>,
        /// The first bytes of its output, or why it could not be started.
        output: String,
    },
}

/// Whose sandbox it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The pod's uid.
    pub uid: String,
    /// Its address on the pod network.
    pub address: Ipv4Addr,
}

/// All that a node must know of a sandbox to take it over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// [`PROTOCOL`] of the supervisor.
    pub protocol: u32,
    /// Whose it is; `None` while it waits for a pod.
    pub binding: Option<Binding>,
    /// Whether its containers have a user namespace.
    pub user_namespace: bool,
    /// The containers that were started so far, by name.
    pub containers: BTreeMap<String, ContainerState>,
}

/// The last run of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Which run of it.
    pub run: u32,
    /// What the node said of it when it started it.
    pub note: String,
    /// What became of it.
    pub stage: Stage,
}

/// What became of one run of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It is being started.
    Starting,
    /// It runs.
    Running {
        /// Its process id on the host.
        pid: u32,
        /// Since when, in milliseconds since 1970.
        started_ms: i64,
    },
    /// It could not be started.
    Failed(StartFailure),
    /// It ended.
    Exited(Exit),
}

/// Why a container was not started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartFailure {
    /// Whether the pod's configuration is at fault (`CreateContainerConfigError`), not the start itself.
    pub config: bool,
    /// For the user.
    pub message: String,
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// What it left in its termination log, or the end of its log where asked for.
    pub message: String,
    /// When it began, in milliseconds since 1970.
    pub started_ms: i64,
    /// When it ended, in milliseconds since 1970.
    pub finished_ms: i64,
}

/// What the containers of a pod share.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PodConfig {
    /// Host name.
    pub hostname: String,
    /// Content of `/etc/hosts`.
    pub hosts: String,
    /// Content of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Volumes by name.
    pub volumes: BTreeMap<String, Volume>,
    /// Supplementary group that owns the volumes.
    pub fs_group: Option<u32>,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Volume {
    /// An empty folder in the sandbox's folder on disk.
    Disk,
    /// An empty folder in memory.
    Memory {
        /// Most bytes; `None` for half of the memory.
        size_bytes: Option<u64>,
    },
    /// Files that the supervisor holds in memory, never on disk.
    Files(Vec<VolumeFile>),
    /// A folder of the host, read only (code, the content of an image).
    Host(PathBuf),
}

/// One file of a [`Volume::Files`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeFile {
    /// Path below the volume's root; without `..`.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub content: Content,
}

/// Bytes; base64 on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(pub Vec<u8>);

impl std::fmt::Debug for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len()) // it may be a secret
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine;
        let text = String::deserialize(deserializer)?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(text).map_err(serde::de::Error::custom)?;
        Ok(Self(bytes))
    }
}

/// A container to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Name in the pod.
    pub name: String,
    /// Which run of it: 0, then one more with each restart.
    pub run: u32,
    /// Told again to a node that takes the pod over; the supervisor does not read it.
    pub note: String,
    /// Its root file system.
    pub root: Root,
    /// Whether the root file system is read only.
    pub read_only_root: bool,
    /// What is mounted in it, in order.
    pub mounts: Vec<Mount>,
    /// Program and arguments; not empty.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; created where it is missing.
    pub cwd: String,
    /// Who it runs as.
    pub user: UserSpec,
    /// Capabilities by kernel number.
    pub capabilities: Vec<u8>,
    /// Whether set-user-ID programs may gain rights.
    pub allow_privilege_escalation: bool,
    /// Whether the system call filter is left out.
    pub unconfined: bool,
    /// Limits.
    pub limits: Limits,
    /// Where its log is written: `N.log` in an existing folder.
    pub log: PathBuf,
    /// Where the container finds its termination log.
    pub termination_log: String,
    /// Whether the end of the log is the message of a failure that left none.
    pub message_from_log: bool,
}

/// A root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Root {
    /// Unpacked layers, the lowest first, with a writable one on top.
    Layers(Vec<PathBuf>),
    /// An allow-list of the host: nothing else of it exists in the container.
    Host(HostRoot),
}

/// The parts of the host that a built-in runtime sees, read only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRoot {
    /// Folders and files that are mounted at their own path.
    pub binds: Vec<PathBuf>,
    /// Symbolic links: path and target.
    pub links: Vec<(String, String)>,
    /// Generated files: path and content.
    pub files: Vec<(String, String)>,
    /// Folders that are fresh and writable.
    pub scratch: Vec<String>,
}

/// One mount of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// What.
    pub source: MountSource,
    /// Where.
    pub target: String,
    /// Whether writing is refused.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountSource {
    /// A volume of the pod, or a part of it.
    Volume {
        /// Name of the volume.
        name: String,
        /// Path in it; empty for the whole.
        sub_path: String,
    },
    /// A folder of the host.
    Host(PathBuf),
}

/// Who a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    /// The image's `USER`: a name or number, and a group after a colon; looked up in the container's own files.
    pub image_user: String,
    /// Overrules the image's user.
    pub uid: Option<u32>,
    /// Overrules the image's group.
    pub gid: Option<u32>,
    /// More groups.
    pub groups: Vec<u32>,
    /// Whether root is refused.
    pub must_not_be_root: bool,
}

/// Limits of a container; `None` for no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Processor time in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Share of the processor when it is short, in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A command to run inside a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Chosen by the node.
    pub id: u64,
    /// Name of the container.
    pub container: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// It is killed after that time.
    pub timeout_ms: u64,
}
