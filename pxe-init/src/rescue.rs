//! Shells on the consoles, for people.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pxe_contract::paths;
use pxe_contract::rescue::Standing;
use pxe_contract::settings::OnFailure;

use crate::appliance::{Appliance, Told};
use crate::renewal::Renewal;
use crate::report::Reporter;
use crate::say;
use crate::ssh::Ssh;
use crate::supervise::{Happening, Power, Supervisor};
use crate::system::unblock_signals;
use crate::{mounts, power};

/// Shells on each console, one after the other, until someone asks for the machine's end.
pub(crate) fn shells(supervisor: &Supervisor, reporter: &Reporter) -> ! {
    loop {
        shells_until(supervisor, reporter, &AtomicBool::new(false), None);
    }
}

/// Keeps a failed boot reachable as its profile says, until somebody ends it: on the node, or from the appliance.
pub(crate) fn failed(supervisor: &Supervisor, reporter: &Reporter, told: &Told, cause: &str) -> ! {
    let Told { settings, .. } = told;
    if settings.boot.on_failure == OnFailure::Off {
        say!("this node has no rescue: it boots again in {} s", AGAIN.as_secs());
        let again = Instant::now() + AGAIN;
        loop {
            match supervisor.next(Some(again)) {
                Happening::Ended(..) => {}
                Happening::Timeout => power::end(Power::Reboot, supervisor, reporter),
                Happening::Asked(power) => power::end(power, supervisor, reporter),
            }
        }
    }
    say!("`bridgehead release {}` on the appliance boots it again", settings.name);
    let message = format!("The boot of {} failed: {cause}", settings.name);
    stay(supervisor, reporter, told, paths::node::FAILED, &message);
    power::end(Power::Reboot, supervisor, reporter)
}

/// How long a failed boot waits before it reboots, where nobody can log in.
const AGAIN: Duration = Duration::from_secs(60);

/// Holds a boot until the appliance releases it.
pub(crate) fn hold(supervisor: &Supervisor, reporter: &Reporter, told: &Told) {
    let name = &told.settings.name;
    say!("this boot is held; `bridgehead release {name}` on the appliance lets it go on");
    let message = format!("The boot of {name} is held.");
    stay(supervisor, reporter, told, paths::node::HELD, &message);
    say!("the boot goes on");
}

/// Runs shells until the appliance releases the machine. The appliance is polled, and told how to log in.
fn stay(supervisor: &Supervisor, reporter: &Reporter, told: &Told, path: &'static str, message: &str) {
    let Told { settings, appliance } = told;
    let ssh = (settings.boot.on_failure == OnFailure::Ssh).then(|| Ssh::start(message));
    let ssh = ssh.and_then(|started| started.inspect_err(|e| say!("there is no way in by SSH: {e}")).ok());
    let released = Arc::new(AtomicBool::new(false));
    if let Some(appliance) = appliance.clone() {
        let (mac, done) = (settings.mac.clone(), Arc::clone(&released));
        let way_in = ssh.as_ref().map(|ssh| (ssh.host_key.clone(), ssh.logged_in()));
        let ask = move || {
            loop {
                let host_key = way_in.as_ref().map(|(host_key, _)| host_key.clone());
                let logged_in = way_in.as_ref().map(|(_, logged_in)| logged_in.load(Ordering::Acquire));
                if is_released(&appliance, path, Standing { host_key, logged_in, mac: &mac }) {
                    done.store(true, Ordering::Release);
                    return;
                }
                std::thread::sleep(ASK_EVERY);
            }
        };
        if let Err(e) = std::thread::Builder::new().name("rescue".into()).spawn(ask) {
            say!("the appliance can't let it go on: {e}");
        }
    }
    shells_until(supervisor, reporter, &released, Some(Renewal::new(settings)));
    if let Some(ssh) = ssh {
        ssh.stop();
    }
}

/// Asks the appliance once whether a machine that stands may go on.
pub(crate) fn is_released(appliance: &Appliance, path: &str, standing: Standing<&String>) -> bool {
    let body = serde_json::to_vec(&standing).expect("it has only text keys");
    matches!(appliance.post(path, &body), Ok(204))
}

pub(crate) const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often it is checked whether a shell is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn shells_until(
    supervisor: &Supervisor,
    reporter: &Reporter,
    done: &AtomicBool,
    mut renewal: Option<Renewal>,
) {
    let mut shells: Vec<Shell> = mounts::terminals().into_iter().enumerate().map(Shell::on).collect();
    loop {
        if shells.iter().any(Shell::is_due) {
            say!("a shell on the console; `reboot -f` or `poweroff -f` ends the machine");
        }
        shells.iter_mut().filter(|shell| shell.is_due()).for_each(Shell::start);
        if done.load(Ordering::Acquire) {
            for pid in shells.iter().filter_map(|shell| shell.running) {
                // An interactive shell ignores SIGTERM.
                supervisor.stop(pid, Signal::SIGHUP as i32, Duration::from_secs(2));
            }
            return;
        }
        match supervisor.next(Some(Instant::now() + LOOK_EVERY)) {
            Happening::Ended(pid, _) => match shells.iter_mut().find(|shell| shell.running == Some(pid)) {
                Some(shell) => shell.ended(),
                None => renewal.iter_mut().for_each(|r| r.ended(pid)),
            },
            Happening::Timeout => renewal.iter_mut().for_each(Renewal::start),
            Happening::Asked(power) => power::end(power, supervisor, reporter),
        }
    }
}

/// A console, and the shell on it.
struct Shell {
    /// None for the one behind `/dev/console`, which pxe-init has open.
    console: Option<PathBuf>,
    running: Option<Pid>,
    again: Instant,
}

impl Shell {
    fn on((index, console): (usize, PathBuf)) -> Self {
        Self { console: (index > 0).then_some(console), running: None, again: Instant::now() }
    }

    fn is_due(&self) -> bool {
        self.running.is_none() && self.again <= Instant::now()
    }

    fn start(&mut self) {
        let started = match &self.console {
            None => unblock_signals(&mut shell()).spawn(),
            Some(console) => shell_on(console).and_then(|mut shell| unblock_signals(&mut shell).spawn()),
        };
        match started {
            Ok(child) => self.running = Some(Pid::from_raw(child.id().cast_signed())),
            Err(e) => {
                say!("no shell can be started: {e}");
                self.again = Instant::now() + Duration::from_secs(60);
            }
        }
    }

    /// Without a console a shell ends at once: no faster than one a second.
    fn ended(&mut self) {
        self.running = None;
        self.again = Instant::now() + Duration::from_secs(1);
    }
}

/// The same after a panic of the first process, when nothing else can be relied on.
pub(crate) fn shells_after_panic() -> ! {
    loop {
        let _ = unblock_signals(&mut shell()).status();
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// BusyBox finds the terminal behind /dev/console and makes it the session's.
fn shell() -> Command {
    busybox(&["setsid", "cttyhack", "sh", "-l"])
}

/// The same on another terminal.
fn shell_on(terminal: &Path) -> io::Result<Command> {
    let device = File::options().read(true).write(true).open(terminal)?;
    let mut shell = busybox(&["setsid", "-c", "sh", "-l"]);
    shell.stdin(device.try_clone()?).stdout(device.try_clone()?).stderr(device);
    Ok(shell)
}

fn busybox(args: &[&str]) -> Command {
    let mut shell = Command::new("/bin/busybox");
    shell.args(args);
    shell.env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").env("HOME", "/").env("TERM", "linux");
    shell
}
