//! Keeping the lease: the address came from the kernel's command line, so a DHCP client is needed
//! only to renew it. BusyBox's udhcpc does that, from half of the lease on, so that a boot
//! costs no second exchange.

use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io};

use nix::unistd::Pid;
use pxe_contract::settings::Settings;

use crate::link;
use crate::say;
use crate::system::unblock_signals;

/// The client process, or when it is due.
pub(crate) struct Renewal {
    mac: String,
    address: Ipv4Addr,
    name: String,
    state: State,
}

enum State {
    Due(Instant),
    Running(Pid),
}

const SCRIPT: &str = "/run/bridgehead-udhcpc";

/// After this time a client that ended is started again.
const AGAIN: Duration = Duration::from_secs(30);

impl Renewal {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            mac: settings.mac.clone(),
            address: settings.address,
            name: settings.name.clone(),
            state: State::Due(Instant::now() + settings.boot.lease / 2),
        }
    }

    /// When [`Self::start`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => Some(at),
            State::Running(_) => None,
        }
    }

    /// Starts the client, if it is due.
    pub(crate) fn start(&mut self) {
        if self.due().is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.state = match self.spawn() {
            Ok(pid) => State::Running(pid),
            Err(e) => {
                say!("the lease can't be renewed: {e}");
                State::Due(Instant::now() + AGAIN)
            }
        };
    }

    /// A process ended: if it was the client, it will be started again.
    pub(crate) fn ended(&mut self, pid: Pid) {
        if matches!(self.state, State::Running(client) if client == pid) {
            self.state = State::Due(Instant::now() + AGAIN);
        }
    }

    fn spawn(&self) -> io::Result<Pid> {
        // By its present name, because an image's udev may rename it.
        let link = link::name(&self.mac).ok_or(io::ErrorKind::NotFound)?;
        fs::write(SCRIPT, script(self.address))?;
        fs::set_permissions(SCRIPT, fs::Permissions::from_mode(0o755))?;
        let mut client = Command::new("/bin/busybox");
        client
            .args(["udhcpc", "-f", "-i", &link, "-s", SCRIPT])
            .args(["-r", &self.address.to_string(), "-x", &format!("hostname:{}", self.name)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Pid::from_raw(unblock_signals(&mut client).spawn()?.id().cast_signed()))
    }
}

/// The script that udhcpc calls with its events. It never touches the interface: removing the address
/// would cut off a working workload, and another address needs a reboot.
fn script(address: Ipv4Addr) -> String {
    format!(
        "#!/bin/busybox sh\n\
         [ \"$1\" = bound ] || [ \"$1\" = renew ] || exit 0\n\
         [ \"$ip\" = {address} ] && exit 0\n\
         echo \"bridgehead: the lease is now for $ip; this node keeps {address} until its next boot\" >/dev/console\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_script() {
        let script = script(Ipv4Addr::new(10, 0, 0, 1));
        let checked = Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
        assert!(checked.success(), "{script}");
    }
}
