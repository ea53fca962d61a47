//! What must be so before a platform can start on this machine, and what cures it where it is not.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that a platform wants: thousands of connections and pods.
const WANTED_FILES: u64 = 65_536;
/// Capabilities that the sandbox needs: number in `linux/capability.h` and name.
const CAPABILITIES: [(u32, &str); 10] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

/// Why the platform cannot start here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreflightError {
    /// Not root.
    #[error(
        "colibri up needs root: it makes namespaces, cgroups and a network bridge for the pods it runs. Start it with: sudo {command}"
    )]
    NotRoot {
        /// The command that was typed.
        command: String,
    },
    /// Root, but without a capability that the sandbox needs, as in most containers.
    #[error(
        "colibri up lacks the capability {missing}: pods cannot be isolated without it. In a container, start it with --privileged (or --cap-add {first})"
    )]
    Capability {
        /// Names of what is missing.
        missing: String,
        /// The first of them.
        first: String,
    },
}

/// Checks user and capabilities.
///
/// # Errors
///
/// [`PreflightError`] with the command that cures it.
pub fn check() -> Result<(), PreflightError> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let command = std::env::args().collect::<Vec<_>>().join(" ");
    judge(rustix::process::geteuid().is_root(), &status, &command)
}

fn judge(is_root: bool, status: &str, command: &str) -> Result<(), PreflightError> {
    if !is_root {
        return Err(PreflightError::NotRoot { command: command.to_owned() });
    }
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| held & (1 << bit) == 0).map(|(_, name)| *name).collect();
    match missing.first() {
        None => Ok(()),
        Some(first) => Err(PreflightError::Capability { missing: missing.join(", "), first: (*first).to_owned() }),
    }
}

/// Raises the limit of open files as far as allowed; answers the limit where it stays below what is wanted.
pub fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    // Root may raise the hard limit too; where that is refused the present hard limit has to do.
    let raised = Rlimit { current: Some(most.max(WANTED_FILES)), maximum: Some(most.max(WANTED_FILES)) };
    if setrlimit(Resource::Nofile, raised).is_err() {
        let allowed = Rlimit { current: Some(most), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, allowed) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
    }
    getrlimit(Resource::Nofile).current.filter(|current| *current < WANTED_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_told_the_command_with_sudo() {
        let error = judge(false, "", "colibri up --demo").unwrap_err();
        assert!(error.to_string().ends_with("sudo colibri up --demo"), "{error}");
    }

    #[test]
    fn a_missing_capability_is_named() {
        assert_eq!(judge(true, "CapEff:\t000001fffeffffff\n", ""), Ok(()));
        let without_net_admin = format!("CapEff:\t{:016x}\n", 0x1ff_feff_ffff_u64 & !(1 << 12));
        let error = judge(true, &without_net_admin, "").unwrap_err();
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
}
