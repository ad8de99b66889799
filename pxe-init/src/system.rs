//! System calls for which nix has no safe function: all of pxe-init's `unsafe` is here.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::SigSet;
use nix::unistd::{Gid, Pid, Uid, chdir, chroot, setgid, setgroups, setsid, setuid, write};

use crate::supervise::Ended;
use crate::workload::Step;

/// What the child needs before exec.
pub(crate) struct Entry {
    /// The namespace of a running workload; `None` for a new one.
    pub(crate) namespace: Option<File>,
    pub(crate) root: CString,
    pub(crate) cwd: CString,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    /// Where each step is announced.
    pub(crate) progress: OwnedFd,
}

impl Entry {
    /// Makes the child take these steps before exec.
    pub(crate) fn before_exec(self, command: &mut Command) {
        // SAFETY: between fork and exec only system calls are made, on data that was made before: no
        // allocation, no lock.
        unsafe { command.pre_exec(move || self.enter()) };
    }

    /// Runs in the child. Async-signal-safe throughout (signal-safety(7)).
    fn enter(&self) -> io::Result<()> {
        let step = |step: Step| {
            let _ = write(&self.progress, &[step as u8]);
        };
        // A session needs a terminal for job control and Ctrl-C; a workload works without one.
        let _ = setsid();
        take_terminal();

        // The image becomes the root of a mount namespace, as with switch_root for a whole system. In a
        // mere chroot the kernel would refuse user namespaces, and so sandboxes.
        step(Step::Namespace);
        if let Some(namespace) = &self.namespace {
            // Its root and working directory become those of the namespace (setns(2)).
            setns(namespace, CloneFlags::CLONE_NEWNS)?;
        } else {
            unshare(CloneFlags::CLONE_NEWNS)?;
            step(Step::Root);
            chdir(self.root.as_c_str())?;
            mount(Some(c"."), c"/", None::<&CStr>, MsFlags::MS_MOVE, None::<&CStr>)?;
            chroot(c".")?;
            // The existing /proc shows the processes of the whole machine.
            step(Step::Processes);
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some(c"proc"), c"/proc", Some(c"proc"), flags, None::<&CStr>)?;
        }
        step(Step::Directory);
        chdir(self.cwd.as_c_str())?;

        step(Step::Groups);
        setgroups(&self.groups)?;
        step(Step::Group);
        setgid(self.gid)?;
        step(Step::User);
        setuid(self.uid)?;
        step(Step::Exec);
        Ok(())
    }
}

/// Gives a child the signal mask that programs expect. std's `Command` would pass on ours, in which
/// SIGTERM is blocked: nothing that we start could be terminated with it.
pub(crate) fn unblock_signals(command: &mut Command) -> &mut Command {
    // SAFETY: sigprocmask is async-signal-safe, and the set is a value.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) }
}

/// Makes standard input the session's controlling terminal, if it is one.
fn take_terminal() {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
    let _ = unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) };
}

/// setxattr(2).
pub(crate) fn set_xattr(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: both strings end with a zero byte, and the length is the value's; the kernel only reads.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(set).map(drop)?)
}

/// kill(2), for signals of any number.
pub(crate) fn send(pid: Pid, signal: i32) -> Result<(), Errno> {
    // SAFETY: two numbers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// waitpid(2) for any child that ended, without waiting. nix can't represent a child that was killed by a real-time
/// signal.
pub(crate) fn reap() -> Result<Option<(Pid, Ended)>, Errno> {
    let mut status = 0;
    // SAFETY: the kernel writes one integer, which is there.
    let pid = Errno::result(unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) })?;
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Killed(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    };
    // Without WUNTRACED and WCONTINUED there are no other reasons.
    Ok((pid > 0).then_some((Pid::from_raw(pid), ended)))
}

/// The number of a loop device that is free (loop(4)).
pub(crate) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes nothing, and gives a number back.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    Ok(Errno::result(number)?.cast_unsigned())
}

/// Attaches `file` to a loop device. Both are open for reading only, and so is the device then.
pub(crate) fn attach_loop_device(device: &File, file: &File) -> io::Result<()> {
    // SAFETY: LOOP_SET_FD takes a descriptor, which is open.
    let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) };
    Ok(Errno::result(set).map(drop)?)
}

/// linux/loop.h
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
