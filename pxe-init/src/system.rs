//! System calls for which nix has no safe function: all of pxe-init's `unsafe` is here.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
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

/// A packet socket (packet(7)) for one EtherType of what arrives on every link. It does not block.
pub(crate) fn packet_socket(ethertype: u16) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: three numbers.
    let socket = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(ethertype.to_be())) })?;
    // SAFETY: it was just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// Has a link receive frames to a group, for as long as the packet socket is open.
pub(crate) fn join_group(socket: &OwnedFd, link: u32, group: [u8; 6]) -> io::Result<()> {
    let mut request = libc::packet_mreq {
        mr_ifindex: link.cast_signed(),
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: [0; 8],
    };
    request.mr_address[..6].copy_from_slice(&group);
    // SAFETY: the kernel reads a packet_mreq, which is there, of the length that it is told.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as u32,
        )
    };
    Ok(Errno::result(set).map(drop)?)
}

/// linux/nvme_ioctl.h, struct nvme_admin_cmd.
#[repr(C)]
#[derive(Default)]
struct NvmeCommand {
    opcode: u8,
    flags: u8,
    reserved: u16,
    namespace: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
    cdw13: u32,
    cdw14: u32,
    cdw15: u32,
    timeout_ms: u32,
    result: u32,
}

/// The health log of an NVMe controller, by any of its devices: Get Log Page 2 (NVM Express Base 2.0, section 5.16).
pub(crate) fn nvme_health(device: &File) -> io::Result<[u8; 512]> {
    /// _IOWR('N', 0x41, struct nvme_admin_cmd)
    const NVME_IOCTL_ADMIN_CMD: libc::Ioctl = 0xC048_4E41_u32 as libc::Ioctl;
    const GET_LOG_PAGE: u8 = 0x02;
    const HEALTH: u32 = 0x02;
    let mut log = [0u8; 512];
    let mut command = NvmeCommand {
        opcode: GET_LOG_PAGE,
        namespace: u32::MAX,
        address: log.as_mut_ptr() as u64,
        data_len: log.len() as u32,
        // Its length in double words, less one.
        cdw10: HEALTH | (log.len() as u32 / 4 - 1) << 16,
        timeout_ms: 1000,
        ..NvmeCommand::default()
    };
    // SAFETY: the kernel reads and writes the command, and writes as many bytes to the log as it is told.
    let status = unsafe { libc::ioctl(device.as_raw_fd(), NVME_IOCTL_ADMIN_CMD, &raw mut command) };
    match Errno::result(status)? {
        0 => Ok(log),
        // The controller's own.
        status => Err(io::Error::other(format!("NVMe status {status:#x}"))),
    }
}
