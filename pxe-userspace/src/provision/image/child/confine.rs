//! Takes everything from this process that reading an archive does not need. What follows can't be undone.
//!
//! The system calls that are left work on descriptors that are open already and on the process's own memory. There is
//! none that opens, names or looks for a file, makes a socket, a process or a thread, or signals another one. That holds
//! for root, too: where the daemon may not change its user (the systemd unit leaves it no CAP_SETUID), nothing is lost
//! but the second line.

use std::collections::BTreeMap;
use std::io;

use nix::errno::Errno;
use nix::sys::prctl::{set_dumpable, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Group, Pid, Uid, User, geteuid, getpid, getppid, setgroups, setresgid, setresuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use serde::{Deserialize, Serialize};

/// The user of the child, if the host has one of this name.
const USER: &str = "bridgehead-import";

/// The range in which systemd, too, looks for users of its own that are nobody else's (uid-range in systemd's
/// documentation).
const FREE: std::ops::RangeInclusive<u32> = 61_184..=65_519;

/// What one import may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::provision::image) struct Limits {
    /// Bytes of address space.
    pub(in crate::provision::image) memory: u64,
    /// Bytes of each file that it writes.
    pub(in crate::provision::image) file: u64,
    /// Seconds of CPU time.
    pub(in crate::provision::image) cpu: u64,
}

impl Limits {
    /// Two decoders of 130 MiB, and the names of some million files. Contents for which no machine has memory. Hours
    /// for what usually takes a minute.
    pub(in crate::provision::image) const IMPORT: Self =
        Self { memory: 4 << 30, file: 64 << 30, cpu: 2 * 3600 };
}

/// Something was not given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    #[error("{what}: {source}")]
    Step { what: &'static str, source: io::Error },
    #[error("setting up the filter of system calls: {0}")]
    Filter(String),
    #[error("capabilities are left")]
    Capabilities,
    #[error("the daemon has ended")]
    Orphan,
}

/// Confines this process, which has one thread. `daemon` is its parent.
pub(super) fn process(limits: &Limits, daemon: Pid) -> Result<(), ConfineError> {
    limit(limits)?;
    drop_bounding_set();
    drop_user()?;
    drop_capabilities()?;
    step("PR_SET_DUMPABLE", set_dumpable(false))?;
    // A change of user takes it back, so it comes after.
    step("PR_SET_PDEATHSIG", set_pdeathsig(Signal::SIGKILL))?;
    if getppid() != daemon {
        return Err(ConfineError::Orphan);
    }
    filter_system_calls()
}

fn step<T>(what: &'static str, done: Result<T, impl Into<io::Error>>) -> Result<T, ConfineError> {
    done.map_err(|error| ConfineError::Step { what, source: error.into() })
}

fn limit(limits: &Limits) -> Result<(), ConfineError> {
    for (what, resource, most, last) in [
        ("RLIMIT_AS", Resource::RLIMIT_AS, limits.memory, limits.memory),
        ("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, limits.file, limits.file),
        // SIGXCPU, which says why, comes before SIGKILL.
        ("RLIMIT_CPU", Resource::RLIMIT_CPU, limits.cpu, limits.cpu + 10),
        ("RLIMIT_CORE", Resource::RLIMIT_CORE, 0, 0),
    ] {
        step(what, setrlimit(resource, most, last))?;
    }
    Ok(())
}

/// Becomes a user whom nobody else is. One who is not root, or has no right to, stays who it is.
fn drop_user() -> Result<(), ConfineError> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = user();
    let dropped =
        setgroups(&[]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    match dropped {
        // No CAP_SETUID, or a user namespace that has no such user.
        Err(Errno::EPERM | Errno::EINVAL) => Ok(()),
        done => step("changing the user", done),
    }
}

fn user() -> (Uid, Gid) {
    if let Ok(Some(user)) = User::from_name(USER) {
        return (user.uid, user.gid);
    }
    let free = |id: &u32| {
        matches!(User::from_uid(Uid::from_raw(*id)), Ok(None))
            && matches!(Group::from_gid(Gid::from_raw(*id)), Ok(None))
    };
    // nobody's, if all of them are taken.
    let id = FREE.rev().take(64).find(free).unwrap_or(65_534);
    (Uid::from_raw(id), Gid::from_raw(id))
}

/// Refused for numbers that the kernel does not know, and to who has no CAP_SETPCAP. That is no loss: the set limits what
/// execve(2) gives, and there will be no execve.
fn drop_bounding_set() {
    for number in 0..u64::BITS {
        let _ = remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number));
    }
}

fn drop_capabilities() -> Result<(), ConfineError> {
    step("PR_SET_NO_NEW_PRIVS", set_no_new_privs(true))?;
    step("PR_CAP_AMBIENT", clear_ambient_capability_set())?;
    let none = CapabilitySet::empty();
    step(
        "capset",
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }),
    )?;
    let left = step("capget", capabilities(None))?;
    match left.effective.is_empty() && left.permitted.is_empty() && left.inheritable.is_empty() {
        true => Ok(()),
        false => Err(ConfineError::Capabilities),
    }
}

/// Whatever is called beyond these fails with EPERM.
const CALLS: &[libc::c_long] = &[
    // Descriptors that are open. io::copy tries the middle ones.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_ftruncate,
    libc::SYS_fstat,
    libc::SYS_close,
    // Memory; mmap and mprotect are below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // What Rust and its libc do by themselves.
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

fn filter_system_calls() -> Result<(), ConfineError> {
    let compiled = || -> Result<BpfProgram, seccompiler::BackendError> {
        let only = |argument, operator, value| -> Result<SeccompRule, seccompiler::BackendError> {
            SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?])
        };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            CALLS.iter().map(|call| (*call, Vec::new())).collect();
        // No memory that is or becomes a program.
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            rules.insert(call, vec![only(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?]);
        }
        // abort(3) signals itself.
        let own = u64::from(getpid().as_raw().unsigned_abs());
        rules.insert(libc::SYS_tgkill, vec![only(0, SeccompCmpOp::Eq, own)?]);
        // Rust asks before it closes, where assertions are on.
        rules.insert(libc::SYS_fcntl, vec![only(1, SeccompCmpOp::Eq, libc::F_GETFD as u64)?]);
        let (other, allowed) = (SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow);
        SeccompFilter::new(rules, other, allowed, std::env::consts::ARCH.try_into()?)?.try_into()
    };
    let program = compiled().map_err(|error| ConfineError::Filter(error.to_string()))?;
    seccompiler::apply_filter(&program).map_err(|error| ConfineError::Filter(error.to_string()))
}
