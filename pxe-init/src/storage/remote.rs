//! Storage of other machines: iSCSI targets, whose LUNs the planner finds among the disks, and
//! directories of NFS servers.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::umount;
use pxe_contract::settings::Settings;
use pxe_contract::storage::{NfsMount, Storage, Target};

use super::apply::mount_inside;
use super::tools::{self, ToolError};
use crate::image::Image;
use crate::modules::{LoadError, Modules};
use crate::say;
use crate::system::unblock_signals;

#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error("no DNS server knows an address of `{name}`: {said}")]
    Unknown { name: String, said: String },
    #[error("`{name}` is no address, and the node has no DNS server: set dhcp.dns, or use an address")]
    NoDns { name: String },
    #[error("mounting {from} at {at}: {source}")]
    Mount { from: String, at: String, source: io::Error },
}

/// Loads the kernel modules that the plan needs. A failure shows when they are used.
pub(super) fn load(modules: &mut Modules, wanted: &Storage) {
    let iscsi = wanted.disks.iter().any(|set| set.iscsi.is_some());
    let nfs = !wanted.mounts.is_empty();
    for (module, needed) in [("iscsi_tcp", iscsi), ("nfs", nfs)] {
        if needed && let Err(error @ LoadError::Refused { .. }) = modules.load_by_alias(module) {
            say!("storage: {error}");
        }
    }
}

/// Logs in to the plan's iSCSI targets, and makes Debian's iscsid log in again when a connection is lost.
pub(super) fn log_in(wanted: &Storage, settings: &Settings) -> Result<(), RemoteError> {
    let initiator = initiator(&settings.mac);
    let mut targets: Vec<&Target> = wanted.disks.iter().filter_map(|set| set.iscsi.as_ref()).collect();
    targets.dedup();
    for Target { target, portal, port } in &targets {
        let (address, port) = (resolve(portal, &settings.boot.dns)?.to_string(), port.to_string());
        say!("storage: logging in to {target} at {address}:{port} as {initiator}");
        // Portal group 1, the default of targets.
        let arguments = ["-i", &initiator, "-t", target, "-g", "1", "-a", &address, "-p", &port];
        tools::run("/usr/sbin/iscsistart", &arguments, None)?;
    }
    if !targets.is_empty() {
        keep_logged_in(&initiator)?;
    }
    Ok(())
}

/// The node's name as an initiator: its MAC as an EUI-64, which needs no domain of ours (RFC 7143,
/// section 4.2.7.3).
fn initiator(mac: &str) -> String {
    let digits: String = mac.split(':').collect();
    let (vendor, number) = digits.split_at(digits.len().min(6));
    format!("eui.{vendor}fffe{number}").to_ascii_lowercase()
}

/// The kernel asks a daemon to reconnect; without one a session is lost after 120 s.
fn keep_logged_in(initiator: &str) -> Result<(), RemoteError> {
    const ISCSID: &str = "/usr/sbin/iscsid";
    const NAME: &str = "/run/initiatorname.iscsi";
    const CONFIG: &str = "/run/iscsid.conf";
    let failed = |source| ToolError::Start { program: ISCSID.to_owned(), source };
    // It accepts requests, including its own, only from a user with the name root.
    std::fs::write("/etc/passwd", "root:x:0:0:root:/:/bin/sh\n").map_err(failed)?;
    std::fs::write(NAME, format!("InitiatorName={initiator}\n")).map_err(failed)?;
    std::fs::write(CONFIG, "node.startup = manual\n").map_err(failed)?;
    let mut iscsid = Command::new(ISCSID);
    iscsid.args(["--foreground", "--no-pid-file", "--initiatorname", NAME, "--config", CONFIG]);
    // It is reaped like every process.
    unblock_signals(&mut iscsid).spawn().map_err(failed)?;
    Ok(())
}

const UNMOUNT_PATIENCE: Duration = Duration::from_secs(20);

/// The versions to try if the plan's options name none, as mount.nfs(8) does.
const NFS_VERSIONS: [&str; 4] = ["4.2", "4.1", "4.0", "3"];

/// Mounts a directory of an NFS server below the image's root.
pub(super) fn mount_nfs(wanted: &NfsMount, image: &Image, settings: &Settings) -> Result<(), RemoteError> {
    let NfsMount { server, path, mount: at, options } = wanted;
    let address = resolve(server, &settings.boot.dns)?;
    let from = format!("{server}:{path}");
    say!("storage: mounting {from} ({address}) at {at}");
    let options = options.as_deref().unwrap_or_default();
    let failed = |source| RemoteError::Mount { from: from.clone(), at: at.clone(), source };
    for version in NFS_VERSIONS {
        let Some(options) = nfs_options(options, version, address, settings.address) else { continue };
        match mount_inside(image, &from, "nfs", at, &options, false) {
            Ok(()) => return Ok(()),
            // Try the next version.
            Err(source) if source.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {}
            Err(source) => return Err(failed(source)),
        }
    }
    Err(failed(Errno::EPROTONOSUPPORT.into()))
}

/// Unmounts an NFS directory, which writes unwritten data. With an unreachable server that would block
/// for ever.
pub(super) fn unmount(at: &str) {
    let (done, ended) = mpsc::channel();
    let at = at.to_owned();
    let unmounted = at.clone();
    std::thread::spawn(move || done.send(umount(unmounted.as_str())));
    match ended.recv_timeout(UNMOUNT_PATIENCE) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => say!("{at} could not be unmounted: {error}"),
        Err(_) => {
            say!("{at} could not be unmounted: its server does not answer; what it did not get is lost")
        }
    }
}

/// The options that mount.nfs would pass to the kernel (nfs(5), fs/nfs/fs_context.c); `None` if the
/// plan's own options name another version.
fn nfs_options(own: &str, version: &str, server: Ipv4Addr, client: Ipv4Addr) -> Option<String> {
    let named = own.split(',').find_map(|o| o.strip_prefix("nfsvers=").or_else(|| o.strip_prefix("vers=")));
    let mut options = match named {
        // `4` means the lowest of them.
        Some(named) if named == version || (named == "4" && version == "4.0") => own.to_owned(),
        Some(_) => return None,
        None => format!("vers={version},{own}"),
    };
    options += &format!(",addr={server}");
    if version == "3" {
        // Without statd there are no locks at the server, so they are local.
        options += ",nolock,proto=tcp,mountproto=tcp";
    } else {
        options += &format!(",clientaddr={client}");
    }
    Some(options)
}

/// An address as it is, or a name's address from the first DNS server that has one. A static program
/// can't use the C library's resolver, but BusyBox is there.
fn resolve(name: &str, servers: &[Ipv4Addr]) -> Result<Ipv4Addr, RemoteError> {
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let mut said = None;
    for server in servers {
        let output =
            tools::output("/bin/busybox", &["nslookup", "-type=a", name, &server.to_string()], None)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(address) = answer(&text) {
            return Ok(address);
        }
        let mut lines = text.lines().chain(str::from_utf8(&output.stderr).unwrap_or_default().lines());
        let last = lines.rfind(|line| !line.trim().is_empty()).unwrap_or("no answer");
        said = Some(format!("{last} ({server})"));
    }
    let name = name.to_owned();
    Err(match said {
        Some(said) => RemoteError::Unknown { name, said },
        None => RemoteError::NoDns { name },
    })
}

/// The first address in the output of BusyBox's nslookup; the one before `Name:` is the server's own.
fn answer(nslookup: &str) -> Option<Ipv4Addr> {
    let mut lines = nslookup.lines().skip_while(|line| !line.starts_with("Name:"));
    lines.find_map(|line| line.strip_prefix("Address:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_the_names_and_not_the_servers() {
        let text = "Server:\t\t10.77.0.1\nAddress:\t10.77.0.1:53\n\n\
            files.lab\tcanonical name = a.lab\nName:\ta.lab\nAddress: 10.77.0.9\nAddress: 10.77.0.10\n";
        assert_eq!(answer(text), Some(Ipv4Addr::new(10, 77, 0, 9)));
        let unknown =
            "Server:\t\t10.77.0.1\nAddress:\t10.77.0.1:53\n\n** server can't find x.lab: NXDOMAIN\n";
        assert_eq!(answer(unknown), None);
        assert_eq!(resolve("10.0.0.1", &[]).unwrap(), Ipv4Addr::new(10, 0, 0, 1));
        let error = resolve("files.lab", &[]).unwrap_err().to_string();
        assert!(error.starts_with("`files.lab` is no address"), "{error}");
    }

    #[test]
    fn options_are_what_mount_nfs_would_make_of_them() {
        let (server, client) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let options = |own, version| nfs_options(own, version, server, client);
        let modern = "vers=4.2,ro,soft,addr=10.0.0.1,clientaddr=10.0.0.2";
        assert_eq!(options("ro,soft", "4.2").as_deref(), Some(modern));
        assert_eq!(options("nfsvers=3", "4.2"), None);
        let old = "nfsvers=3,addr=10.0.0.1,nolock,proto=tcp,mountproto=tcp";
        assert_eq!(options("nfsvers=3", "3").as_deref(), Some(old));
        let any = NFS_VERSIONS.iter().filter(|version| options("vers=4", version).is_some()).count();
        assert_eq!(any, 1);
    }

    #[test]
    fn an_initiator_is_named_by_its_mac() {
        assert_eq!(initiator("52:54:00:77:00:0A"), "eui.525400fffe77000a");
    }
}
