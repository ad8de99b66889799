//! An image with an init of its own, systemd or another, becomes the whole system: its root replaces that of stage 1,
//! and its init becomes PID 1 in place of this process (what util-linux calls `switch_root`).
//!
//! A process of ours stays in stage 1's root: it reports that the hand-over worked, which the replaced process can't,
//! and renews the lease, of which the image's own network configuration need not know.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir, pipe2};
use pxe_contract::facts::Facts;
use pxe_contract::image::Description;
use pxe_contract::report::Reported;
use pxe_contract::settings::Settings;
use serde::{Deserialize, Serialize};

use crate::console;
use crate::facts::Telling;
use crate::image::Image;
use crate::program::{self, ProgramError};
use crate::renewal::Renewal;
use crate::report::Reporter;
use crate::say;
use crate::supervise::{Happening, Supervisor};
use crate::system::unblock_signals;
use crate::ticket::Session;
use crate::workload;

/// The argument that makes this program the one that stays behind.
pub const STAY: &str = "stay-behind";

/// How long the hand-over waits for the disks to be found and told of: the thread that tells ends with it.
pub(crate) const FACTS_WITHIN: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("handing over to the image's init {init}: {step}: {source}")]
    Refused { init: String, step: &'static str, source: io::Error },
}

/// Whether the image's program is an init, which wants to be PID 1 and to run the machine. It is recognised by the names
/// that Linux itself tries (`kernel_init` in init/main.c), systemd's and OpenRC's own, and BusyBox's applet; also if a
/// shell does nothing but start it (`CMD exec /sbin/init`).
pub(crate) fn is_init(description: &Description) -> bool {
    let argv: Vec<&str> = description.argv.iter().map(String::as_str).collect();
    let last = |program: &str| program.rsplit('/').next().unwrap_or_default().to_owned();
    match argv[..] {
        [program, "init", ..] if last(program) == "busybox" => true,
        [shell, "-c", line, ..] if SHELLS.contains(&last(shell).as_str()) => is_init_line(line),
        [program, ..] => INITS.contains(&program),
        [] => false,
    }
}

const INITS: [&str; 12] = [
    "/sbin/init",
    "/usr/sbin/init",
    "/etc/init",
    "/bin/init",
    "/bin/systemd",
    "/usr/bin/systemd",
    "/lib/systemd/systemd",
    "/usr/lib/systemd/systemd",
    "/sbin/openrc-init",
    "/usr/sbin/openrc-init",
    "/sbin/runit-init",
    "/usr/sbin/runit-init",
];

const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "zsh"];

/// One simple command that replaces the shell: by `exec`, or because nothing comes after it.
fn is_init_line(line: &str) -> bool {
    let mut words = line.split_whitespace().peekable();
    words.next_if_eq(&"exec");
    words.next().is_some_and(|program| INITS.contains(&program))
        && !line.trim().contains(['\n', ';', '&', '|'])
}

/// Makes the image's root the machine's and its init PID 1. Returns only if that failed, with everything
/// as it was.
pub(crate) fn hand_over(
    image: &Image,
    extra: &[(&str, &str)],
    reporter: &Reporter,
    behind: &Behind,
) -> Result<Infallible, HandoverError> {
    let Description { reference, argv, env, .. } = &image.description;
    let path = env.iter().rev().find_map(|word| word.strip_prefix("PATH=")).unwrap_or(workload::PATH);
    let init = program::find(image, &argv[0], path, "/")?;
    let failed = |step| {
        let init = init.clone();
        move |source: io::Error| HandoverError::Refused { init, step, source }
    };
    if let Err(error) = lend_modules(image) {
        say!("the image has no modules for this kernel, and stage 1's can't be put there: {error}");
    }
    let words = format!("{reference}: handed over to {}, {}", name(image, &init), argv.join(" "));
    let mut progress =
        stay_behind(&words, behind).map_err(failed("starting the process that stays behind"))?;
    say!("{words}");
    // Earlier events have to be reported first, and this process's threads end at exec.
    reporter.flush(Duration::from_secs(5));
    console::flush(Duration::from_secs(2));

    let stage1 = File::open("/").map_err(failed("opening stage 1's root"))?;
    let entered: io::Result<Infallible> = enter(image.root()).and_then(|()| {
        // From now on the kernel uses the image's modprobe; /proc is the image's by now.
        let _ = fs::write("/proc/sys/kernel/modprobe", "/sbin/modprobe");
        let mut command = Command::new(&init);
        command.arg0(&argv[0]).args(&argv[1..]).env_clear().envs(environment(env, extra));
        Err(unblock_signals(&mut command).exec())
    });
    let Err(source) = entered;
    let _ = fchdir(&stage1).and_then(|()| chroot("."));
    let _ = fs::write("/proc/sys/kernel/modprobe", "/init");
    let _ = progress.write_all(b"!");
    Err(failed("executing it")(source))
}

/// The file name of `init` with links resolved: `systemd` for `/sbin/init` on Debian.
fn name(image: &Image, init: &str) -> String {
    let file = image.open_inside(init, OFlag::O_PATH, Mode::empty());
    let path = file.and_then(|file| fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())));
    let path = path.unwrap_or_else(|_| init.into());
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What switch_root(8) does. The old root stays below the new one, where the process that stays behind
/// still uses it.
fn enter(root: &Path) -> io::Result<()> {
    chdir(root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// The image's environment as an init needs it.
fn environment<'a>(image: &'a [String], extra: &[(&'a str, &'a str)]) -> Vec<(String, String)> {
    let mut env = workload::environment(image, "/", extra);
    // Dockerfiles that install systemd set this to tell it that it is in a container. It is not.
    env.retain(|(name, _)| name != "container");
    env
}

/// An image without modules for this kernel gets stage 1's, read-only, so that its udev finds drivers.
fn lend_modules(image: &Image) -> io::Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let directory = format!("/lib/modules/{}", release.trim());
    if image.open_inside(&directory, OFlag::O_DIRECTORY, Mode::empty()).is_ok()
        || !Path::new(&directory).is_dir()
    {
        return Ok(());
    }
    image.create_dir_all(&directory, Mode::from_bits_truncate(0o755))?;
    let at = image.open_inside(&directory, OFlag::O_DIRECTORY, Mode::empty())?;
    // By its descriptor, so that links in the path are resolved inside the image.
    let at = format!("/proc/self/fd/{}", at.as_raw_fd());
    mount(Some(directory.as_str()), at.as_str(), None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    Ok(mount(None::<&str>, at.as_str(), None::<&str>, read_only, None::<&str>)?)
}

/// What the process that stays behind needs to know about this boot.
#[derive(Serialize, Deserialize)]
pub(crate) struct Behind {
    /// The kernel's, with this boot's settings.
    pub(crate) cmdline: String,
    pub(crate) session: Session,
    /// What the machine is made of, which was told; its neighbours may not have been heard.
    pub(crate) facts: Option<Facts>,
}

/// Starts the process that stays behind. Through the returned pipe it gets what it needs to know, and is told of a
/// failure. If exec closes the pipe without that, the image's init runs.
fn stay_behind(words: &str, behind: &Behind) -> io::Result<File> {
    let (hears, tells) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new("/proc/self/exe");
    // In a process group of its own, so that Ctrl-C on the console does not reach it.
    command.args([STAY, words]).stdin(Stdio::from(hears)).process_group(0);
    unblock_signals(&mut command).spawn()?;
    let mut tells = File::from(tells);
    serde_json::to_writer(&mut tells, behind)?;
    Ok(tells)
}

/// Runs the process that stays behind, until the machine ends.
pub fn stay(words: &str) -> io::Result<()> {
    // Before the reporter's thread starts.
    let supervisor = Supervisor::new()?;
    let mut told = Vec::new();
    io::stdin().read_to_end(&mut told)?;
    // With more bytes after it this is no valid document, which means that the hand-over failed.
    let Ok(Behind { cmdline, session, facts }) = serde_json::from_slice(&told) else { return Ok(()) };
    let settings = Settings::parse(&cmdline).map_err(io::Error::other)?;
    let appliance = session.open().map_err(io::Error::other)?;
    let reporter = Reporter::start(Some(appliance.clone()), &settings.mac);
    reporter.reached(Reported::Workload, words);
    let _telling = facts.map(|facts| Telling::go_on(appliance, &settings.mac, facts));
    let mut renewal = Renewal::new(&settings);
    loop {
        match supervisor.next(renewal.due()) {
            Happening::Ended(pid, _) => renewal.ended(pid),
            Happening::Timeout => renewal.start(),
            // The image's init shuts the machine down, and signals every process first.
            Happening::Asked(_) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_init_is_known_by_its_path() {
        let runs = |argv: &[&str]| {
            let argv = argv.iter().map(ToString::to_string).collect();
            is_init(&Description { argv, ..Description::default() })
        };
        assert!(runs(&["/sbin/init"]) && runs(&["/lib/systemd/systemd", "--unit=multi-user.target"]));
        assert!(!runs(&["/start"]) && !runs(&["init"]) && !runs(&["/bin/sh", "/sbin/init"]) && !runs(&[]));
        assert!(
            runs(&["/sbin/openrc-init"]) && runs(&["busybox", "init"]) && runs(&["/bin/busybox", "init"])
        );
        for line in
            ["exec /sbin/init", " exec  /lib/systemd/systemd --unit=x.target 3>/dev/null", "/sbin/init\n"]
        {
            assert!(runs(&["/bin/sh", "-c", line]) && runs(&["bash", "-c", line]), "{line}");
        }
        for line in ["/sbin/init; echo", "echo /sbin/init", "exec /init", "exec", "/sbin/init & wait", ""] {
            assert!(!runs(&["/bin/sh", "-c", line]), "{line}");
        }
        assert!(
            !runs(&["/init"]) && !runs(&["/usr/bin/tini", "--", "/sbin/init"]) && !runs(&["busybox", "sh"])
        );
    }

    #[test]
    fn an_init_is_not_told_that_it_is_in_a_container() {
        let image = ["container=docker", "LANG=C.UTF-8"].map(str::to_owned);
        let env = environment(&image, &[("BRIDGEHEAD_NODE", "n1")]);
        assert!(env.iter().all(|(name, _)| name != "container"), "{env:?}");
        assert!(env.contains(&("LANG".into(), "C.UTF-8".into())));
        assert!(env.contains(&("BRIDGEHEAD_NODE".into(), "n1".into())));
    }
}
