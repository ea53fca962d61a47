//! A supervisor's process: a child of this one, or one that an earlier platform started.

use std::io;
use std::os::fd::OwnedFd;

use futures::FutureExt;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;

/// A supervisor's process.
#[derive(Debug)]
pub enum Process {
    /// Started by this process, which has to collect its exit code.
    Child(Child),
    /// Started by an earlier one.
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    /// Takes hold of a process that another one started.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn adopt(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        let fd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by what is registered, which never replaces it and is dropped with it.
        let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self::Adopted(registered?))
    }

    /// Waits for its end.
    pub async fn ended(&mut self) {
        // An error means that there is nothing left to wait for.
        match self {
            Self::Child(child) => drop(child.wait().await),
            Self::Adopted(fd) => drop(fd.readable().await),
        }
    }

    /// Kills it and waits for its end.
    pub async fn kill(&mut self) {
        // It may have ended by itself.
        match self {
            Self::Child(child) => drop(child.kill().await),
            Self::Adopted(fd) => {
                if pidfd_send_signal(fd.get_ref(), Signal::KILL).is_ok() {
                    drop(fd.readable().await);
                }
            }
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        match self {
            Self::Child(child) => !matches!(child.try_wait(), Ok(None)),
            Self::Adopted(fd) => fd.readable().now_or_never().is_some(),
        }
    }
}
