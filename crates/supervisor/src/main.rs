//! `colibri-supervisor`: makes one pod's sandbox, starts its containers, keeps their logs and tells how they end.
//!
//! Single-threaded and static, so that forking it costs little and is safe. It joins no cgroup that it limits, holds
//! the pod's network, IPC and host name namespaces open, and has a mount namespace of its own: whatever it mounts goes
//! with it, and the host never sees it.
//!
//! The cold start, in order: the node takes a prepared sandbox (namespaces, cgroups, a forked first container that
//! waits for its orders), sends `Configure` and `Start`; the waiting child mounts the root, gives up every right and
//! executes the program.

mod program;

fn main() {
    std::process::exit(program::main());
}
