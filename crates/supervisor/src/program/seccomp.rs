//! The system call filter of every container: an allow-list, like container engines' default.
//!
//! What is not on the list is refused with EPERM. `clone3` and io_uring answer ENOSYS, so that libraries fall back to
//! what can be filtered. Tighter than most engines in two places: no ptrace, and no AF_ALG or AF_VSOCK sockets.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition as Condition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::{Failure, Step};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// The flags of `clone` that make namespaces.
const NAMESPACE_FLAGS: u64 = 0x7e02_0000;

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Allowed with any argument, on every processor.
const ALLOWED: &[i64] = numbers! {
    SYS_accept SYS_accept4 SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir SYS_clock_adjtime SYS_clock_getres
    SYS_clock_gettime SYS_clock_nanosleep SYS_close SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3
    SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit
    SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fanotify_mark SYS_fchdir SYS_fchmod
    SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_fcntl SYS_fdatasync SYS_fgetxattr SYS_flistxattr SYS_flock
    SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_fsync SYS_ftruncate SYS_futex SYS_futex_waitv
    SYS_getcpu SYS_getcwd SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername
    SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid SYS_getrlimit
    SYS_get_robust_list SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid
    SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch SYS_io_cancel SYS_ioctl SYS_io_destroy
    SYS_io_getevents SYS_ioprio_get SYS_ioprio_set SYS_io_setup SYS_io_submit SYS_kill SYS_landlock_add_rule
    SYS_landlock_create_ruleset SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr
    SYS_llistxattr SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create SYS_mincore
    SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect SYS_mq_getsetattr SYS_mq_notify
    SYS_mq_open SYS_mq_timedreceive SYS_mq_timedsend SYS_mq_unlink SYS_mremap SYS_msgctl SYS_msgget SYS_msgrcv
    SYS_msgsnd SYS_msync SYS_munlock SYS_munlockall SYS_munmap SYS_name_to_handle_at SYS_nanosleep SYS_newfstatat
    SYS_openat SYS_openat2 SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2 SYS_prlimit64 SYS_process_mrelease
    SYS_pselect6 SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead SYS_readlinkat SYS_readv SYS_recvfrom
    SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages SYS_removexattr SYS_renameat SYS_renameat2 SYS_restart_syscall
    SYS_rseq SYS_rt_sigaction SYS_rt_sigpending SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn
    SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_tgsigqueueinfo SYS_sched_getaffinity SYS_sched_getattr
    SYS_sched_getparam SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_getscheduler
    SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_setattr SYS_sched_setparam SYS_sched_setscheduler
    SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg
    SYS_sendto SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer SYS_setpgid SYS_setpriority
    SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setrlimit SYS_set_robust_list SYS_setsid SYS_setsockopt
    SYS_set_tid_address SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
    SYS_sigaltstack SYS_signalfd4 SYS_socketpair SYS_splice SYS_statfs SYS_statx SYS_symlinkat SYS_sync
    SYS_sync_file_range SYS_syncfs SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete SYS_timerfd_create
    SYS_timerfd_gettime SYS_timerfd_settime SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_times SYS_tkill
    SYS_truncate SYS_umask SYS_uname SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
    SYS_chroot
};

/// Allowed too where the processor has them: older names of the above.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[i64] = numbers! {
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create SYS_epoll_ctl_old
    SYS_epoll_wait SYS_epoll_wait_old SYS_eventfd SYS_fork SYS_futimesat SYS_getdents SYS_getpgrp SYS_inotify_init
    SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_open SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename
    SYS_rmdir SYS_select SYS_signalfd SYS_stat SYS_symlink SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
    SYS_set_thread_area SYS_get_thread_area SYS_ustat
};
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[i64] = &[];

/// Allowed, but newer than the library's table: cachestat, mseal, `futex_wake`, `futex_wait`, `futex_requeue`, the
/// `*xattrat` family. The numbers are the same on all processors.
const ALLOWED_NEWER: &[i64] = &[451, 454, 455, 456, 462, 463, 464, 465, 466];

/// As if the kernel did not have them.
const ABSENT: &[i64] = numbers! { SYS_clone3 SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register };

/// The filters, to be installed in this order.
pub fn filters() -> Result<[BpfProgram; 2], Failure> {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let absent = ABSENT.iter().map(|number| (*number, Vec::new())).collect();
    Ok([
        compile(allowed().step("writing the system call filter")?, refuse, SeccompAction::Allow)?,
        compile(absent, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
    ])
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Failure> {
    let filter = SeccompFilter::new(rules, otherwise, matched, ARCH).step("writing the system call filter")?;
    filter.try_into().step("compiling the system call filter")
}

fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let lists = [ALLOWED, ALLOWED_HERE, ALLOWED_NEWER];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        lists.iter().flat_map(|list| list.iter()).map(|number| (*number, Vec::new())).collect();
    let no_namespaces = Condition::new(0, Len::Qword, Op::MaskedEq(NAMESPACE_FLAGS), 0)?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![no_namespaces])?]);
    let other_family = |family: i32| Condition::new(0, Len::Dword, Op::Ne, family as u64);
    let sockets = vec![other_family(libc::AF_ALG)?, other_family(libc::AF_VSOCK)?];
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(sockets)?]);
    let personalities = [0u64, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
    let exactly = |value| SeccompRule::new(vec![Condition::new(0, Len::Dword, Op::Eq, value)?]);
    rules.insert(libc::SYS_personality, personalities.into_iter().map(exactly).collect::<Result<_, _>>()?);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_leave_out_what_reaches_the_kernel() {
        let filters = filters().unwrap();
        assert!(filters.iter().all(|filter| filter.len() < 4096), "the kernel's limit");
        let rules = allowed().unwrap();
        for number in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_ptrace,
            libc::SYS_process_vm_writev,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_open_by_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_fsopen,
            libc::SYS_move_mount,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_quotactl,
        ] {
            assert!(!rules.contains_key(&number), "system call {number}");
        }
    }
}
