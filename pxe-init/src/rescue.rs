//! A shell on the console, for people.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::power;
use crate::report::Reporter;
use crate::say;
use crate::settings::Settings;
use crate::supervise::{Happening, Supervisor};
use crate::system::unblock_signals;

/// Shells on the console, one after the other, until someone asks for the machine's end.
pub(crate) fn shells(supervisor: &Supervisor, reporter: &Reporter) -> ! {
    loop {
        shells_until(supervisor, reporter, &AtomicBool::new(false));
    }
}

/// The same until the appliance says that the boot is to go on. It is asked every so often.
pub(crate) fn hold(supervisor: &Supervisor, reporter: &Reporter, settings: &Settings) {
    let release = format!("`bridgehead release {}` on the appliance lets it go on", settings.name);
    say!("this boot is held; {release}");
    let released = Arc::new(AtomicBool::new(false));
    if let Some(appliance) = settings.appliance.clone() {
        let (mac, done) = (settings.mac.clone(), Arc::clone(&released));
        let ask = move || {
            let body = serde_json::json!({ "mac": mac }).to_string();
            while !matches!(appliance.post("/node/held", body.as_bytes()), Ok(204)) {
                std::thread::sleep(ASK_EVERY);
            }
            done.store(true, Ordering::Release);
        };
        if let Err(e) = std::thread::Builder::new().name("held".into()).spawn(ask) {
            say!("the appliance can't let it go on: {e}");
        }
    }
    shells_until(supervisor, reporter, &released);
    say!("the boot goes on");
}

const ASK_EVERY: Duration = Duration::from_secs(2);
/// How often a shell is left to see whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

fn shells_until(supervisor: &Supervisor, reporter: &Reporter, done: &AtomicBool) {
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
        // Without a console a shell ends at once: no faster than one a second.
        let mut again = running.is_none().then(|| Instant::now() + Duration::from_secs(60));
        while again.is_none_or(|again| Instant::now() < again) {
            if done.load(Ordering::Acquire) {
                if let Some(pid) = running {
                    // An interactive shell ignores SIGTERM.
                    supervisor.stop(pid, Signal::SIGHUP, Duration::from_secs(2));
                }
                return;
            }
            match supervisor.next(Some(Instant::now() + LOOK_EVERY)) {
                Happening::Ended(ended, _) if Some(ended) == running => {
                    running = None;
                    again = Some(Instant::now() + Duration::from_secs(1));
                }
                Happening::Ended(..) | Happening::Timeout => {}
                Happening::Asked(power) => power::end(power, supervisor, reporter),
            }
        }
    }
}

/// The same where nothing can be relied on any more: after a panic of the first process.
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
