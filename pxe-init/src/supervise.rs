//! The duties of the first process: reaping orphans, and handling the signals that ask for a shutdown.

use std::fmt;
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::signals;
use crate::system;

/// Children and signals, as one stream of events.
pub struct Supervisor {
    signals: SignalFd,
}

/// What the supervisor saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// A process ended: a child, or an orphan that we inherited.
    Ended(Pid, Ended),
    /// Somebody asks for a shutdown.
    Asked(Power),
    /// The deadline passed.
    Timeout,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(i32),
    /// By this signal; real-time signals have no [`Signal`].
    Killed(i32),
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Off,
    Reboot,
}

/// The signals of BusyBox's `poweroff`, `halt` and `reboot`, and of Ctrl-Alt-Delete (SIGINT).
const ASKS: [(Signal, Power); 5] = [
    (Signal::SIGUSR1, Power::Off),
    (Signal::SIGUSR2, Power::Off),
    (Signal::SIGPWR, Power::Off),
    (Signal::SIGTERM, Power::Reboot),
    (Signal::SIGINT, Power::Reboot),
];

impl Supervisor {
    /// Takes over the process's signals. Must be called before any thread starts: threads inherit the
    /// blocked signals, and we get a signal only if every thread blocks it. (The kernel drops signals to
    /// the first process that are neither blocked nor handled.)
    pub fn new() -> io::Result<Self> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        for (signal, _) in ASKS {
            set.add(signal);
        }
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { signals: SignalFd::with_flags(&set, flags)? })
    }

    /// The next event; [`Happening::Timeout`] at the deadline.
    pub fn next(&self, deadline: Option<Instant>) -> Happening {
        loop {
            // Pending signals of one kind merge, so look for ended children every time.
            if let Some((pid, ended)) = reap() {
                return Happening::Ended(pid, ended);
            }
            while let Ok(Some(info)) = self.signals.read_signal() {
                let asked = ASKS.iter().find(|(signal, _)| *signal as u32 == info.ssi_signo);
                if let Some((_, power)) = asked {
                    return Happening::Asked(*power);
                }
            }
            if let Some((pid, ended)) = reap() {
                return Happening::Ended(pid, ended);
            }
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Happening::Timeout;
            }
            // Rounded up, because otherwise the last millisecond would be spent spinning.
            let timeout = left.map_or(PollTimeout::NONE, |l| {
                PollTimeout::try_from(l + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            });
            let _ = poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], timeout);
        }
    }

    /// Ends a process: with `signal`, and with SIGKILL if that is not enough in time. The first process of a PID namespace
    /// is killed at once if it has no handler for the signal, because the kernel would not deliver it.
    pub fn stop(&self, pid: Pid, signal: i32, patience: Duration) {
        let mut deadline = Instant::now() + patience;
        let mut killed = false;
        let _ =
            system::send(pid, if signals::is_spared(pid, signal) { Signal::SIGKILL as i32 } else { signal });
        loop {
            match self.next(Some(deadline)) {
                Happening::Ended(ended, _) if ended == pid => return,
                Happening::Ended(..) | Happening::Asked(_) => {}
                Happening::Timeout if killed => return,
                Happening::Timeout => {
                    let _ = kill(pid, Signal::SIGKILL);
                    killed = true;
                    deadline = Instant::now() + Duration::from_secs(2);
                }
            }
        }
    }

    /// Ends every process but this one. Only for the first process of a PID namespace.
    pub fn stop_all(&self, patience: Duration) {
        const EVERYONE: Pid = Pid::from_raw(-1);
        for (signal, patience) in [(Signal::SIGTERM, patience), (Signal::SIGKILL, Duration::from_secs(2))] {
            if kill(EVERYONE, signal) == Err(Errno::ESRCH) {
                return;
            }
            let deadline = Instant::now() + patience;
            while Instant::now() < deadline {
                if waitpid(EVERYONE, Some(WaitPidFlag::WNOHANG)) == Err(Errno::ECHILD) {
                    return;
                }
                self.next(Some((Instant::now() + Duration::from_millis(50)).min(deadline)));
            }
        }
    }
}

fn reap() -> Option<(Pid, Ended)> {
    loop {
        match system::reap() {
            Ok(Some((pid, ended))) => return Some((pid, ended)),
            Err(Errno::EINTR) => {}
            Ok(None) | Err(_) => return None,
        }
    }
}

impl Ended {
    /// What a workload wanted that called reboot(2): in a PID namespace this kills the first process with one of these
    /// signals (pid_namespaces(7)), and nothing else can.
    pub(crate) fn asks(self) -> Option<Power> {
        match self {
            Self::Killed(signal) if signal == Signal::SIGHUP as i32 => Some(Power::Reboot),
            Self::Killed(signal) if signal == Signal::SIGINT as i32 => Some(Power::Off),
            Self::Killed(_) | Self::Exited(_) => None,
        }
    }

    /// As a shell gives it: a signal counts from 128.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "killed by {}", signals::name(*signal)),
        }
    }
}
