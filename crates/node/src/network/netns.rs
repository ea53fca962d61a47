//! Network namespaces: making one, and doing something inside another.
//!
//! A thread's namespace is its own, so this must run on a thread that the caller owns, never on a
//! worker of the async runtime.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

/// The namespace of the calling thread.
///
/// # Errors
///
/// `/proc` is not mounted, or the limit of open files is reached.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// The namespace of a process.
///
/// # Errors
///
/// There is no such process, or it may not be looked at.
pub fn of_process(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// Runs `work` with the calling thread in `target`, then returns the thread to `home`.
///
/// # Errors
///
/// The thread could not enter `target` (needs CAP_SYS_ADMIN).
///
/// # Panics
///
/// When the thread cannot return to `home`: it must not go on in a pod's namespace.
pub fn inside<T>(home: BorrowedFd<'_>, target: BorrowedFd<'_>, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    setns(target, CloneFlags::CLONE_NEWNET)?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET).expect("a thread can return to its own namespace");
    result
}

/// Makes a new, empty namespace.
///
/// # Errors
///
/// It could not be made (needs CAP_SYS_ADMIN; see also `user.max_net_namespaces`).
///
/// # Panics
///
/// As [`inside`].
pub fn create(home: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let made = current();
    setns(home.as_fd(), CloneFlags::CLONE_NEWNET).expect("a thread can return to its own namespace");
    made
}
