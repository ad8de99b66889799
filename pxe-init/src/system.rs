//! The system calls that nix has no safe form of: all of pxe-init's `unsafe` is here.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;

/// Runs `enter` in the child, between fork and exec. It may do system calls only, on data that was
/// made before (signal-safety(7)): no allocation, no lock.
pub(crate) fn before_exec(
    command: &mut Command,
    enter: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: both callers (unblock_signals below, workload.rs) keep to what is said above.
    unsafe { command.pre_exec(enter) };
}

/// Gives a child the signal mask that programs expect. std's `Command` hands on ours, in which
/// SIGTERM is blocked: nothing that we start could be asked to end.
pub(crate) fn unblock_signals(command: &mut Command) -> &mut Command {
    before_exec(command, || Ok(SigSet::empty().thread_set_mask()?));
    command
}

/// Makes `terminal` the controlling terminal of the session that this process leads, if it is one.
pub(crate) fn take_terminal(terminal: BorrowedFd<'_>) {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory of ours.
    let _ = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
}

/// setxattr(2).
pub(crate) fn set_xattr(path: &CStr, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: both strings end with a zero byte, and the length is the value's; the kernel only reads.
    let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(set).map(drop)?)
}

/// The number of a loop device that is free (loop(4)).
pub(crate) fn free_loop_device(control: &File) -> io::Result<u32> {
    // SAFETY: LOOP_CTL_GET_FREE takes nothing, and gives a number back.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    Ok(Errno::result(number)?.cast_unsigned())
}

/// Makes a loop device of `file`. Both open for reading only: so is the device then.
pub(crate) fn attach_loop_device(device: &File, file: &File) -> io::Result<()> {
    // SAFETY: LOOP_SET_FD takes a descriptor, which is open.
    let set = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) };
    Ok(Errno::result(set).map(drop)?)
}

/// linux/loop.h
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
