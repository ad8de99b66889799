//! The image's program: started in the image's root, as its user, in a session and a PID namespace of its own. As with
//! Docker it is process 1 there, which s6-overlay and others insist on.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, PipeReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid, pipe2};

use crate::account::{Account, AccountError};
use crate::image::Image;
use crate::program::{self, ProgramError};
use crate::signals;
use crate::system::{Entry, unblock_signals};

/// Docker's default.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Account(#[from] AccountError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("the image's {0:?} has a zero byte in it")]
    ZeroByte(String),
    #[error("the image's working directory {path} can't be made: {}", why_not(source))]
    Directory { path: String, source: io::Error },
    #[error("starting {program} in the image: {step}: {source}")]
    Refused { program: String, step: Step, source: io::Error },
}

/// The child's progress before exec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    Fork,
    Namespace,
    Root,
    Processes,
    Directory,
    Groups,
    Group,
    User,
    Exec,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fork => "creating a process",
            Self::Namespace => "leaving the initrd's mount namespace",
            Self::Root => "entering the image's root",
            Self::Processes => "mounting its /proc",
            Self::Directory => "entering the working directory",
            Self::Groups => "setting supplementary groups",
            Self::Group => "setting the group",
            Self::User => "setting the user",
            Self::Exec => "executing it",
        })
    }
}

/// Starts the image's program. When this returns, the program runs: exec has succeeded.
///
/// `extra` overrides the image's environment; `terminal` is the session's.
pub fn start(image: &Image, extra: &[(&str, &str)], terminal: &Path) -> Result<Pid, StartError> {
    spawn(image, &image.description.argv, extra, None, |command| {
        if let Ok(console) = File::options().read(true).write(true).open(terminal)
            && let (Ok(output), Ok(errors)) = (console.try_clone(), console.try_clone())
        {
            command.stdin(console).stdout(Stdio::from(output)).stderr(errors);
        }
    })
}

/// Starts another program beside the workload whose first process is `workload`, as its user and with its files.
/// Returns the program's combined output.
pub(crate) fn check(
    image: &Image,
    argv: &[String],
    extra: &[(&str, &str)],
    workload: Pid,
) -> Result<(Pid, PipeReader), StartError> {
    let refused = |source| StartError::Refused { program: argv.join(" "), step: Step::Namespace, source };
    let open = |name| File::open(format!("/proc/{workload}/ns/{name}")).map_err(refused);
    let (mounts, processes) = (open("mnt")?, open("pid")?);
    let (read, write) = std::io::pipe().map_err(refused)?;
    let errors = write.try_clone().map_err(refused)?;
    let pid = spawn(image, argv, extra, Some((mounts, processes)), |command| {
        command.stdin(Stdio::null()).stdout(write).stderr(errors);
    })?;
    Ok((pid, read))
}

fn spawn(
    image: &Image,
    argv: &[String],
    extra: &[(&str, &str)],
    beside: Option<(File, File)>,
    connect: impl FnOnce(&mut Command),
) -> Result<Pid, StartError> {
    let description = &image.description;
    let account = Account::in_image(&description.user, image)?;
    let env = environment(&description.env, &account.home, extra);
    let path = env.iter().find(|(name, _)| name == "PATH").map_or(PATH, |(_, value)| value);
    let cwd = format!("/{}", description.cwd.trim_start_matches('/'));
    let program = program::find(image, &argv[0], path, &cwd)?;
    // Like Docker, create a missing WORKDIR, also behind a dangling link.
    image
        .create_dir_all(&cwd, Mode::from_bits_truncate(0o755))
        .map_err(|source| StartError::Directory { path: cwd.clone(), source })?;

    let refused = |step| {
        let program = program.clone();
        move |source: io::Error| StartError::Refused { program, step, source }
    };
    let (steps, progress) = pipe2(OFlag::O_CLOEXEC).map_err(|e| refused(Step::Fork)(e.into()))?;
    let (namespace, processes) = beside.unzip();
    let entry = Entry {
        namespace,
        root: c_string(&image.root().to_string_lossy())?,
        cwd: c_string(&cwd)?,
        uid: Uid::from_raw(account.uid),
        gid: Gid::from_raw(account.gid),
        groups: account.groups.iter().map(|g| Gid::from_raw(*g)).collect(),
        progress,
    };
    let mut command = Command::new(&program);
    command.arg0(&argv[0]).args(&argv[1..]).env_clear().envs(env);
    connect(&mut command);
    unblock_signals(&mut command);
    entry.before_exec(&mut command);
    let spawned = spawn_among(&mut command, processes);
    // It holds our copy of the pipe's write end, with which reading would not end.
    drop(command);
    match spawned {
        Ok(child) => Ok(Pid::from_raw(child.id().cast_signed())),
        Err(source) => Err(refused(last_step(File::from(steps)))(source)),
    }
}

/// Spawns into this PID namespace, or as the first process of a new one. The PID namespace for children is set per thread
/// (setns(2), unshare(2)), so a thread is started for this child alone.
fn spawn_among(command: &mut Command, processes: Option<File>) -> io::Result<Child> {
    std::thread::scope(|scope| {
        let spawn = || {
            match processes {
                Some(namespace) => setns(namespace, CloneFlags::CLONE_NEWPID)?,
                None => unshare(CloneFlags::CLONE_NEWPID)?,
            }
            command.spawn()
        };
        std::thread::Builder::new()
            .spawn_scoped(scope, spawn)?
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Why a directory can't be created, as text.
fn why_not(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOTDIR) => "it is a file, or something on its way is".to_owned(),
        Some(Errno::ELOOP) => "symbolic links lead in a circle".to_owned(),
        _ => error.to_string(),
    }
}

/// The signal that asks the program to end. One that Docker would not accept means SIGTERM, as in Docker.
pub fn stop_signal(image: &Image) -> i32 {
    let named = image.description.stop_signal.as_deref().and_then(signals::parse);
    named.unwrap_or(Signal::SIGTERM as i32)
}

/// The environment, in order and without repetition.
pub(crate) fn environment(image: &[String], home: &str, extra: &[(&str, &str)]) -> Vec<(String, String)> {
    let defaults = [("PATH", PATH), ("HOME", home), ("TERM", "linux")];
    let image = image.iter().filter_map(|e| e.split_once('='));
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in defaults.into_iter().chain(image).chain(extra.iter().copied()) {
        match env.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => value.clone_into(old),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    // A name can't be empty, and nothing can have a zero byte; Command would refuse everything because of one of these.
    env.retain(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'));
    env
}

/// The last step that the child announced.
fn last_step(mut steps: File) -> Step {
    let mut bytes = Vec::new();
    let _ = steps.read_to_end(&mut bytes);
    const ALL: [Step; 9] = [
        Step::Fork,
        Step::Namespace,
        Step::Root,
        Step::Processes,
        Step::Directory,
        Step::Groups,
        Step::Group,
        Step::User,
        Step::Exec,
    ];
    let last = bytes.last().copied().unwrap_or(Step::Fork as u8);
    ALL.into_iter().find(|s| *s as u8 == last).unwrap_or(Step::Fork)
}

fn c_string(text: &str) -> Result<CString, StartError> {
    CString::new(text).map_err(|_| StartError::ZeroByte(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_defaults_and_the_appliance_wins() {
        let image = ["PATH=/opt", "A=1", "A=2", "BRIDGEHEAD_NODE=forged", "broken", "=x"].map(str::to_owned);
        let env = environment(&image, "/root", &[("BRIDGEHEAD_NODE", "n1")]);
        let expected =
            [("PATH", "/opt"), ("HOME", "/root"), ("TERM", "linux"), ("A", "2"), ("BRIDGEHEAD_NODE", "n1")];
        assert_eq!(env, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }
}
