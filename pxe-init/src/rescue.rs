//! A shell on the console, for people.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use crate::power;
use crate::report::Reporter;
use crate::say;
use crate::supervise::{Happening, Supervisor};
use crate::system::unblock_signals;

/// Shells on the console, one after the other, until someone asks for the machine's end.
pub(crate) fn shells(supervisor: &Supervisor, reporter: &Reporter) -> ! {
    loop {
        say!("a shell on the console; `reboot -f` or `poweroff -f` ends the machine");
        let shell = unblock_signals(&mut shell()).spawn();
        let pid = match shell {
            Ok(child) => Some(Pid::from_raw(child.id().cast_signed())),
            Err(e) => {
                say!("no shell can be started: {e}");
                None
            }
        };
        // Without a console a shell ends at once: no faster than one a second.
        let mut again = pid.is_none().then(|| Instant::now() + Duration::from_secs(60));
        loop {
            match supervisor.next(again) {
                Happening::Ended(ended, _) if Some(ended) == pid => {
                    again = Some(Instant::now() + Duration::from_secs(1));
                }
                Happening::Ended(..) => {}
                Happening::Asked(power) => power::end(power, supervisor, reporter),
                Happening::Timeout => break,
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
