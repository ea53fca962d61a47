//! The supervisor's program: embedded, put into sealed memory, run from there.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Built by `build.rs`.
static PROGRAM: &[u8] = include_bytes!(env!("COLIBRI_SUPERVISOR"));

/// The program in memory that nobody can write to.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Puts it there.
    ///
    /// # Errors
    ///
    /// When memory or the descriptor table is full.
    pub fn load() -> io::Result<Self> {
        let fd = memfd_create("colibri-supervisor", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(fd);
        file.write_all(PROGRAM)?;
        fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        Ok(Self(file.into()))
    }

    /// A path to execute it by, valid in this process and in what it has forked.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}
