//! Messages of a crashing kernel, when no process can send them any more: netconsole sends them to the appliance by
//! UDP, from within the oops. All other messages are sent as lines of the console (`console`).

use std::ffi::CString;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::modules::{LoadError, Modules};
use crate::say;

/// The port of both ends: netconsole's own default for the receiver.
const PORT: u16 = 6666;

/// The sender's address and interface.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    pub(crate) link: String,
    pub(crate) address: Ipv4Addr,
}

/// Loads netconsole, once the appliance's MAC is known, that is after something was sent to it.
pub(crate) fn start(sender: &Sender, appliance: Ipv4Addr) {
    let table = fs::read_to_string("/proc/net/arp").unwrap_or_default();
    let Some(mac) = hardware_address(&table, appliance) else {
        say!("a crash of the kernel won't reach the appliance: it is behind a router");
        return;
    };
    let Ok(parameters) = CString::new(parameters(sender, appliance, mac)) else { return };
    let loaded = Modules::open(Path::new("/")).map(|mut m| m.load_with("netconsole", &parameters));
    // A kernel without the module is no error, but a refusal is worth knowing.
    if let Ok(Err(error @ LoadError::Refused { .. })) = loaded {
        say!("a crash of the kernel won't reach the appliance: {error}");
    }
}

/// Documentation/networking/netconsole.rst: `+` adds number, level and time to each message; `oops_only` leaves out all
/// messages except during an oops.
fn parameters(Sender { link, address }: &Sender, appliance: Ipv4Addr, mac: &str) -> String {
    format!("netconsole=+{PORT}@{address}/{link},{PORT}@{appliance}/{mac} oops_only=1")
}

/// `10.77.0.1        0x1         0x2         52:54:00:12:34:56     *        ens3`
fn hardware_address(table: &str, of: Ipv4Addr) -> Option<&str> {
    let row = |line: &'_ str| line.split_whitespace().next().is_some_and(|address| address.parse() == Ok(of));
    let mac = table.lines().find(|line| row(line))?.split_whitespace().nth(3)?;
    (mac != "00:00:00:00:00:00").then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_are_netconsoles() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
            10.77.0.10       0x1         0x2         52:54:00:00:00:01     *        ens3\n\
            10.77.0.1        0x1         0x2         52:54:00:12:34:56     *        ens3\n\
            10.77.0.9        0x1         0x0         00:00:00:00:00:00     *        ens3\n";
        let appliance = Ipv4Addr::new(10, 77, 0, 1);
        let mac = hardware_address(table, appliance).unwrap();
        let sender = Sender { link: "ens3".into(), address: Ipv4Addr::new(10, 77, 0, 100) };
        assert_eq!(
            parameters(&sender, appliance, mac),
            "netconsole=+6666@10.77.0.100/ens3,6666@10.77.0.1/52:54:00:12:34:56 oops_only=1"
        );
        assert_eq!(hardware_address(table, Ipv4Addr::new(10, 77, 0, 9)), None);
        assert_eq!(hardware_address(table, Ipv4Addr::new(10, 9, 0, 1)), None);
    }
}
