//! Drives the real binary from outside: starts a platform on free ports in a directory of its own, and speaks to it
//! with the real `kubectl`, the real CLI and plain HTTP.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use tokio::net::{TcpListener, TcpSocket};

mod kubernetes;
mod layout;
mod leftovers;
mod platform;

pub use layout::{Layout, Process, Roles, layout, role_dir, start_processes};
pub use leftovers::{Leftovers, pods};
pub use platform::{Answer, Machine, Options, Output, Platform, binary, hello_program, run, work_dir};

/// Why this test cannot run here, if it cannot: printed by the caller, who then returns.
///
/// In CI (`CI` is set) a missing tool is a failure, not a reason to skip.
pub fn cannot_run(tools: &[&str]) -> Option<String> {
    let missing = |tool: &&&str| !std::env::split_paths(&path()).any(|dir| dir.join(tool).is_file());
    let reason = if effective_user() != 0 {
        Some("skipped: needs root".to_owned())
    } else {
        tools.iter().find(missing).map(|tool| format!("skipped: {tool} is not installed"))
    };
    if let Some(reason) = &reason {
        assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {reason}");
        println!("{reason}");
    }
    reason
}

/// Whether this test is skipped where the roles are processes of their own; says so, with the reason.
pub fn is_of_one_process(reason: &str) -> bool {
    let skipped = layout() != Layout::One;
    if skipped {
        println!("skipped with the roles as processes of their own: {reason}");
    }
    skipped
}

/// Whether this test is skipped where the control plane is Kubernetes' own; says so, with the reason.
pub fn is_of_our_control_plane(reason: &str) -> bool {
    let skipped = layout() == Layout::Kubernetes;
    if skipped {
        println!("skipped with Kubernetes' own control plane: {reason}");
    }
    skipped
}

/// Listens on an address that this machine does not have yet.
///
/// # Errors
///
/// When somebody else listens there.
pub fn listen_early(address: Ipv4Addr, port: u16) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    let on: libc::c_int = 1;
    let size = libc::socklen_t::try_from(size_of_val(&on)).unwrap_or_default();
    // SAFETY: the descriptor is open, and the option's value is as long as it is said to be.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_FREEBIND, (&raw const on).cast(), size)
    };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.bind((address, port).into())?;
    socket.listen(1)
}

fn path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}
