//! Drives the real binary from outside: starts a platform on free ports in a directory of its own, and speaks to it
//! with the real `kubectl`, the real CLI and plain HTTP.

mod layout;
mod leftovers;
mod platform;

pub use layout::{Layout, Process, Roles, layout, start_processes};
pub use leftovers::{Leftovers, pods};
pub use platform::{Alone, Answer, Options, Output, Platform, alone, binary, hello_program, run, work_dir};

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

fn path() -> std::ffi::OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}
