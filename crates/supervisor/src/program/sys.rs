//! System calls that the libraries lack. All of this program's unsafe code.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use libc::{c_int, c_long, c_ulong};

/// What a fork is in.
pub enum Forked {
    /// The parent, with the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Forks into new namespaces (`CLONE_NEW*`).
pub fn fork(flags: c_int) -> io::Result<Forked> {
    // SAFETY: the program has one thread, so the child may use everything the parent could; no stack is given, so the
    // child goes on on a copy of this one.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, c_long::from(flags | libc::SIGCHLD), 0, 0, 0, 0) })?;
    Ok(if pid == 0 { Forked::Child } else { Forked::Parent(pid as i32) })
}

/// Ends a forked child without running what the parent has set up for its own end.
pub fn exit(code: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(code) }
}

/// Enters the namespaces of a process (`CLONE_NEW*`) or the one that a namespace file names.
pub fn setns(fd: BorrowedFd<'_>, flags: c_int) -> io::Result<()> {
    // SAFETY: plain system call on an open descriptor.
    check(c_long::from(unsafe { libc::setns(fd.as_raw_fd(), flags) })).map(drop)
}

/// A descriptor for a process.
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the descriptor it returns is nobody else's.
    unsafe {
        let fd = check(libc::syscall(libc::SYS_pidfd_open, c_long::from(pid), 0))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Sets attributes of a mount (`MOUNT_ATTR_*`), with an id map if a user namespace is given.
pub fn mount_setattr(mount: BorrowedFd<'_>, set: u64, map: Option<BorrowedFd<'_>>, recursive: bool) -> io::Result<()> {
    let mut attr = MountAttr { set, clear: 0, propagation: 0, user_namespace: 0 };
    if let Some(map) = map {
        attr.set |= libc::MOUNT_ATTR_IDMAP;
        attr.user_namespace = map.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure outlives the call and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            c_long::from(mount.as_raw_fd()),
            c"".as_ptr(),
            c_long::from(flags),
            &raw const attr,
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
}

/// Makes `new_root` the root of this mount namespace and lets go of the old one.
pub fn pivot_root(new_root: &Path) -> io::Result<()> {
    std::env::set_current_dir(new_root)?;
    // SAFETY: both strings are static; the second call detaches the old root, which lies over the new one at ".".
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(c_long::from(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)))?;
    }
    std::env::set_current_dir("/")
}

/// `prctl` with plain numbers.
pub fn prctl(option: c_int, argument: c_ulong) -> io::Result<()> {
    // SAFETY: only used with options that take numbers.
    check(c_long::from(unsafe { libc::prctl(option, argument, 0, 0, 0) })).map(drop)
}

/// Installs a system call filter.
pub fn seccomp(filter: &[seccompiler::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut().cast() };
    // SAFETY: `sock_filter` has the kernel's layout in both crates, and the kernel copies the program.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// Sets the effective and permitted capabilities, and none that are inherited.
pub fn capset(permitted: u64) -> io::Result<()> {
    let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
    let (low, high) = (permitted as u32, (permitted >> 32) as u32);
    let data: [[u32; 3]; 2] = [[low, low, 0], [high, high, 0]];
    // SAFETY: version 3 of the interface takes two data structures of three words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// Sets user, group and supplementary groups of this process.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: plain system calls; the raw ones act on this thread, which is the only one.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

/// Marks all descriptors from `first` on as closed on execution.
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: it closes nothing now.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).map(drop)
}

/// Closes all descriptors but those, which must be sorted.
pub fn close_all_but(keep: &[RawFd]) {
    let mut first = 3u32;
    for &fd in keep {
        let fd = fd as u32;
        if fd > first {
            // SAFETY: called in a fresh child that uses the kept descriptors only.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd + 1);
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
}

/// Executes a program; returns only when that failed.
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// A pipe, both ends closed on execution.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for two, and both descriptors are ours from then on.
    unsafe {
        check(c_long::from(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC)))?;
        Ok((OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])))
    }
}

/// Makes reads and writes of a descriptor return at once.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain system calls on an open descriptor.
    unsafe {
        let flags = check(c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL)))? as c_int;
        check(c_long::from(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)))?;
    }
    Ok(())
}

/// Makes `to` a copy of `from` that stays open on execution.
pub fn dup2(from: BorrowedFd<'_>, to: RawFd) -> io::Result<()> {
    // SAFETY: `to` is one of the standard descriptors, which no owner holds.
    check(c_long::from(unsafe { libc::dup2(from.as_raw_fd(), to) })).map(drop)
}

/// Points standard descriptors at `/dev/null`.
pub fn redirect_to_null(targets: &[RawFd]) {
    use std::os::fd::AsFd;
    if let Ok(null) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        for &target in targets {
            // It stays what it was, which harms nobody.
            let _ = dup2(null.as_fd(), target);
        }
    }
}

/// Sends a signal; a process that is gone is none of the caller's business.
pub fn kill(pid: i32, signal: c_int) {
    // SAFETY: plain system call. `pid` is a child that has not been waited for, so the number is still its own.
    unsafe { libc::kill(pid, signal) };
}

/// A child that ended, with its raw wait status.
pub fn reap() -> Option<(i32, c_int)> {
    let mut status = 0;
    // SAFETY: plain system call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child.
pub fn wait(pid: i32) -> c_int {
    let mut status = 0;
    // SAFETY: plain system call.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return 1 << 8;
        }
    }
    status
}

/// Blocks the signals that the loop reads from the descriptor that is returned.
pub fn signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by `sigemptyset` before use; the descriptor is ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        check(c_long::from(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut())))?;
        let fd = check(c_long::from(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Blocks nothing and ignores nothing: what a fresh program expects.
pub fn reset_signals() {
    // SAFETY: as above; resetting a signal that cannot be reset fails and changes nothing.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Sets both bounds of a resource limit, at most to what is allowed.
pub fn set_limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: plain system calls with initialised structures. Where it is refused the old limit stays.
    unsafe {
        if libc::setrlimit(resource, &raw const limit) != 0 {
            let mut old = limit;
            libc::getrlimit(resource, &raw mut old);
            old.rlim_cur = old.rlim_max.min(most);
            libc::setrlimit(resource, &raw const old);
        }
    }
}

/// Makes a character device.
pub fn make_device(path: &Path, major: u32, minor: u32) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the name is a valid string.
    check(c_long::from(unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(major, minor)) }))
        .map(drop)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// Waits until one of the descriptors has something to say, or `timeout_ms` (-1 for ever).
pub fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) {
    // SAFETY: the slice is valid for its length. An interrupted poll is looked at again by the loop.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
}
