//! The kernel's file systems, and the console.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::{console, say};

#[derive(Debug, thiserror::Error)]
#[error("mounting {kind} at {target}: {source}")]
pub(crate) struct MountError {
    kind: &'static str,
    target: &'static str,
    source: io::Error,
}

struct Mount {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
    /// Whether a node can't work without it.
    needed: bool,
}

/// As systemd and Docker mount them. `/tmp` stays on the root, which is memory as well.
const MOUNTS: &[Mount] = {
    const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
    const NO_DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
    const DEVICES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
    &[
        Mount { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: None, needed: true },
        Mount { kind: "sysfs", target: "/sys", flags: NO_PROGRAMS, options: None, needed: true },
        Mount {
            kind: "devtmpfs",
            target: "/dev",
            flags: MsFlags::MS_NOSUID,
            options: Some("mode=0755"),
            needed: true,
        },
        Mount {
            kind: "devpts",
            target: "/dev/pts",
            flags: DEVICES,
            options: Some("gid=5,mode=620,ptmxmode=666"),
            needed: false,
        },
        Mount {
            kind: "tmpfs",
            target: "/dev/shm",
            flags: NO_DEVICES,
            options: Some("mode=1777"),
            needed: false,
        },
        Mount { kind: "mqueue", target: "/dev/mqueue", flags: NO_PROGRAMS, options: None, needed: false },
        Mount { kind: "tmpfs", target: "/run", flags: NO_DEVICES, options: Some("mode=0755"), needed: true },
        Mount { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, options: None, needed: false },
    ]
};

/// Mounts the file systems that every program expects. One that is mounted already (devtmpfs, if the
/// kernel is configured so) stays.
pub(crate) fn mount_all() -> Result<(), MountError> {
    for Mount { kind, target, flags, options, needed } in MOUNTS {
        let mounted = fs::create_dir_all(target)
            .and_then(|()| Ok(mount(Some(*kind), *target, Some(*kind), *flags, *options)?));
        match mounted {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(nix::errno::Errno::EBUSY as i32) => {}
            Err(source) if *needed => return Err(MountError { kind, target, source }),
            Err(e) => say!("{target} is not there: mounting {kind}: {e}"),
        }
    }
    // devtmpfs holds only device nodes; these links are udev's job elsewhere.
    for (link, to) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{to}"), format!("/dev/{link}"));
    }
    Ok(())
}

/// Opens standard input and output on the console: those that the kernel opened, if any, use a device
/// node of the initrd.
pub(crate) fn use_console() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    let _ = dup2_stdin(&console).and_then(|()| dup2_stdout(&console)).and_then(|()| dup2_stderr(&console));
    if let [_, others @ ..] = terminals().as_slice() {
        console::also_on(others);
    }
}

/// The terminals that the kernel writes to, the one behind `/dev/console` first, which itself can't be a session's
/// controlling terminal. What people are to see or to type at is on all of them.
pub(crate) fn terminals() -> Vec<PathBuf> {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let mut terminals = listed(&active);
    // A serial console whose port does not exist refuses every write.
    let first = terminals.first().cloned();
    terminals.retain(|path| Some(path) == first.as_ref() || takes(path));
    terminals
}

/// Of the kernel's list: the last is the one behind `/dev/console`.
fn listed(active: &str) -> Vec<PathBuf> {
    let mut names: Vec<&str> = active.split_whitespace().rev().collect();
    if names.is_empty() {
        names.push("console");
    }
    // tty0 stands for whichever virtual terminal is shown; a session needs a real one.
    let path = |name: &str| PathBuf::from("/dev").join(if name == "tty0" { "tty1" } else { name });
    names.into_iter().map(path).collect()
}

fn takes(terminal: &Path) -> bool {
    console::open(terminal).is_ok_and(|mut device| device.write(&[]).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_the_kernel_s_consoles_is_the_first_of_ours() {
        let dev = |names: &[&str]| names.iter().map(|n| Path::new("/dev").join(n)).collect::<Vec<_>>();
        assert_eq!(listed("ttyS0 tty0\n"), dev(&["tty1", "ttyS0"]));
        assert_eq!(listed("tty0 ttyS1\n"), dev(&["ttyS1", "tty1"]));
        assert_eq!(listed("\n"), dev(&["console"]));
    }
}
