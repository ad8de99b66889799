//! The process in which strangers' archives are read: the daemon starts itself as `bridgehead import-child`.
//!
//! An import has two sides. The daemon ([`Child`]) opens the files, starts the child and hands their descriptors to it.
//! The child ([`make`]) reads the appliance's own assets, gives up everything that it does not need ([`confine`]), and
//! only then reads the archive. It can open nothing, so a child that an archive has taken over can spoil the image of
//! this one import and nothing else. What it says is checked ([`messages`]), and what it wrote is hashed by the daemon
//! after the child's end. docs/decisions/028-import-child.md says why.

mod confine;
mod make;
mod messages;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

pub(super) use self::confine::Limits;
pub use self::make::run;
pub(super) use self::make::{STAGE1_LEVEL, digest};
use self::messages::ReceiveError;
pub(super) use self::messages::{Class, File as Given, Job, Made, MadeKernel, Said, What};
use crate::base::text::visible;

/// How much of what the child wrote to its stderr is told. It is a panic's message, and nobody else's.
const SAID_MAX: u64 = 2048;

/// A child that spends no CPU time waits for nobody: after this time without a message it is stuck.
const SILENCE: Duration = Duration::from_secs(4 * 3600);

/// Why the child made nothing. All are about the process; what it says of the archive is `Said::Refused`.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("starting the process that reads it: {0}")]
    Start(io::Error),
    #[error("the process that reads it could not be confined, and so it was not read: {0}")]
    Confine(String),
    #[error(
        "reading it took more than {} MiB of memory, and was ended. An image of that many files does not boot", memory >> 20
    )]
    Memory { memory: u64 },
    #[error("reading it took more than {seconds} seconds of CPU time, and was ended")]
    Cpu { seconds: u64 },
    #[error("its contents take more than {} MiB unpacked, and reading it was ended", size >> 20)]
    Size { size: u64 },
    #[error("the process that reads it said nothing for {} hours, and was ended", SILENCE.as_secs() / 3600)]
    Stuck,
    #[error("the process that reads it ended ({how}): {said}")]
    Ended { how: String, said: String },
    #[error("the process that reads it answered what it never should, and nothing of it is kept: {0}")]
    Answer(&'static str),
}

/// A child that runs. It is killed when this is dropped.
pub(super) struct Child {
    process: std::process::Child,
    channel: UnixStream,
    /// Its stderr: a file without a name, so that it never waits for a reader.
    stderr: File,
    limits: Limits,
}

impl Child {
    /// Starts a child and gives it the job with its files, in the order that the job says. `work` is a directory for a
    /// file without a name. The thread that starts it must live until the end of the child, because the kernel kills
    /// the child with it.
    pub(super) fn start(work: &Path, job: &Job, limits: Limits, files: &[&File]) -> Result<Self, ChildError> {
        let started = || -> io::Result<Self> {
            let (channel, theirs) = UnixStream::pair()?;
            channel.set_read_timeout(Some(SILENCE))?;
            let stderr = tempfile::tempfile_in(work)?;
            let process = program()
                .current_dir("/")
                .stdin(Stdio::from(OwnedFd::from(theirs)))
                .stdout(Stdio::null())
                .stderr(Stdio::from(stderr.try_clone()?))
                .spawn()?;
            let child = Self { process, channel, stderr, limits };
            messages::give(&child.channel, job, &child.limits, files)?;
            Ok(child)
        };
        started().map_err(ChildError::Start)
    }

    /// The child's next message. `Said::Refused` is one, too; an end without a message is an error.
    pub(super) fn next(&mut self) -> Result<Said, ChildError> {
        match messages::receive(&mut self.channel) {
            Ok(Said::NotConfined(why)) => Err(ChildError::Confine(visible(&why))),
            Ok(Said::TooLarge) => Err(ChildError::Size { size: self.limits.file }),
            Ok(Said::NoMemory) => Err(ChildError::Memory { memory: self.limits.memory }),
            Ok(said) => Ok(said),
            Err(ReceiveError::Ended) => Err(self.ended()),
            Err(ReceiveError::Silent) => Err(ChildError::Stuck),
            Err(ReceiveError::Damaged(what)) => Err(ChildError::Answer(what)),
        }
    }

    /// Tells a child that described its archive to go on.
    pub(super) fn go_on(&mut self) -> Result<(), ChildError> {
        messages::go_on(&mut self.channel).map_err(|_| self.ended())
    }

    /// Ends a child that said that it has made what it should. From then on nobody writes to its files. It is not waited
    /// for: one that was taken over might never end.
    pub(super) fn finish(self) {}

    /// How a child ended that says nothing more. If it only closed the channel, it is ended now; how one ends that is on
    /// its way out is not changed by that.
    fn ended(&mut self) -> ChildError {
        match self.process.kill().and_then(|()| self.process.wait()) {
            Ok(status) => self.why(status),
            Err(error) => ChildError::Start(error),
        }
    }

    fn why(&mut self, status: ExitStatus) -> ChildError {
        let said = self.said();
        match status.signal().and_then(|signal| Signal::try_from(signal).ok()) {
            Some(Signal::SIGXCPU) => ChildError::Cpu { seconds: self.limits.cpu },
            // The words of Rust's allocator before it aborts.
            Some(Signal::SIGABRT) if said.contains("memory allocation of") => {
                ChildError::Memory { memory: self.limits.memory }
            }
            _ => ChildError::Ended { how: status.to_string(), said },
        }
    }

    fn said(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self
            .stderr
            .seek(SeekFrom::Start(0))
            .and_then(|_| Read::by_ref(&mut self.stderr).take(SAID_MAX).read_to_end(&mut bytes));
        match (read, String::from_utf8_lossy(&bytes).trim()) {
            (Err(error), _) => error.to_string(),
            (Ok(_), "") => "it gave no reason".to_owned(),
            (Ok(_), said) => visible(said),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The daemon's own program, also after its file was replaced. Nothing of the environment is passed on.
fn program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env_clear();
    #[cfg(not(test))]
    command.arg(COMMAND);
    // The program of the unit tests has no commands: one of its tests is the child.
    #[cfg(test)]
    command.env(tests::ENTRY, "1").args(["--exact", tests::ENTRY, "--nocapture", "--test-threads=1"]);
    command
}

/// The hidden command of the command line that is the child.
#[cfg_attr(test, expect(dead_code, reason = "tests have no command line"))]
const COMMAND: &str = "import-child";
