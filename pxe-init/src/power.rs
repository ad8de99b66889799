//! Powering the machine off, and rebooting it.

use std::time::Duration;

use nix::sys::reboot::{RebootMode, reboot};

use crate::console;
use crate::output;
use crate::report::Reporter;
use crate::say;
use crate::storage;
use crate::supervise::{Power, Supervisor};

/// Ends every process, delivers pending reports, and powers off or reboots.
pub(crate) fn end(power: Power, supervisor: &Supervisor, reporter: &Reporter) -> ! {
    say!("{}", if power == Power::Off { "powering off" } else { "rebooting" });
    supervisor.stop_all(Duration::from_secs(5));
    reporter.flush(Duration::from_secs(5));
    output::flush(Duration::from_secs(5));
    console::flush(Duration::from_secs(2));
    storage::put_away();
    nix::unistd::sync();
    let mode = if power == Power::Off { RebootMode::RB_POWER_OFF } else { RebootMode::RB_AUTOBOOT };
    let Err(errno) = reboot(mode);
    say!("the kernel refused to end the machine: {errno}");
    // The first process must not return: the kernel would panic.
    loop {
        supervisor.next(None);
    }
}
