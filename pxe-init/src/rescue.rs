//! A shell on the console, for people.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use pxe_contract::paths;
use pxe_contract::rescue::Standing;
use pxe_contract::settings::OnFailure;

use crate::appliance::Told;
use crate::power;
use crate::renewal::Renewal;
use crate::report::Reporter;
use crate::say;
use crate::ssh::Ssh;
use crate::supervise::{Happening, Power, Supervisor};
use crate::system::unblock_signals;

/// Runs shells on the console, one after the other, until somebody shuts the machine down.
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
                let standing = Standing { host_key, logged_in, mac: &mac };
                let body = serde_json::to_vec(&standing).expect("it has only text keys");
                if let Ok(204) = appliance.post(path, &body) {
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

const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often it is checked whether a shell is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn shells_until(
    supervisor: &Supervisor,
    reporter: &Reporter,
    done: &AtomicBool,
    mut renewal: Option<Renewal>,
) {
    loop {
        say!("a shell on the console; `reboot -f` or `poweroff -f` ends the machine");
        let shell = unblock_signals(&mut shell()).spawn();
        let mut running = match shell {
            Ok(child) => Some(Pid::from_raw(child.id().cast_signed())),
            Err(e) => {
                say!("no shell can be started: {e}");
                None
            }
        };
        // Without a console a shell ends at once; so the next one has to wait.
        let mut again = running.is_none().then(|| Instant::now() + Duration::from_secs(60));
        while again.is_none_or(|again| Instant::now() < again) {
            if done.load(Ordering::Acquire) {
                if let Some(pid) = running {
                    // An interactive shell ignores SIGTERM.
                    supervisor.stop(pid, Signal::SIGHUP as i32, Duration::from_secs(2));
                }
                return;
            }
            match supervisor.next(Some(Instant::now() + LOOK_EVERY)) {
                Happening::Ended(ended, _) if Some(ended) == running => {
                    running = None;
                    again = Some(Instant::now() + Duration::from_secs(1));
                }
                Happening::Ended(pid, _) => renewal.iter_mut().for_each(|r| r.ended(pid)),
                Happening::Timeout => renewal.iter_mut().for_each(Renewal::start),
                Happening::Asked(power) => power::end(power, supervisor, reporter),
            }
        }
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
    let mut shell = Command::new("/bin/busybox");
    shell.args(["setsid", "cttyhack", "sh", "-l"]);
    shell.env("PATH", "/bin:/sbin:/usr/bin:/usr/sbin").env("HOME", "/").env("TERM", "linux");
    shell
}
