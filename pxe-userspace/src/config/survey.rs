//! What a configuration needs of the system that it runs on. Nothing is changed for these checks.

use std::collections::BTreeSet;

use super::file::File;
use super::findings::Findings;
use super::{Config, FORWARDS_IN_TIME, IpxeLoader, Source, kernel};

pub(super) fn survey(raw: &File, config: Option<&Config>, findings: &mut Findings<'_>) {
    // Not /sys/class/net, which shows the network namespace of whoever mounted it.
    let interfaces = interfaces();
    for port in &raw.network.ports {
        if !interfaces.contains(port.get_ref()) {
            let others: Vec<&str> = interfaces
                .iter()
                .map(String::as_str)
                .filter(|name| *name != "lo" && *name != raw.network.bridge.get_ref())
                .collect();
            let right = match others.as_slice() {
                [] => "this machine has none but the loopback".to_owned(),
                others => format!("this machine has {}", others.join(", ")),
            };
            findings.add(port.span(), format!("no interface is called `{}`", port.get_ref()), right);
        }
    }
    let bridge = raw.network.bridge.get_ref();
    if let Some(seconds) = forwards_after(bridge).filter(|seconds| *seconds > FORWARDS_IN_TIME) {
        findings.add(
            raw.network.bridge.span(),
            format!(
                "{bridge} has spanning tree on: its ports forward {seconds} s after their link came up, and BIOS machines \
                 give up before"
            ),
            format!("`ip link set {bridge} type bridge stp_state 0`, where no cable makes a loop"),
        );
    }
    if let Some(config) = config {
        files_by_hand(raw, config, findings);
    }
    if let Some(files) = &raw.files {
        let root = findings.directory().join(files.root.get_ref());
        if let Err(error) = std::fs::read_dir(&root) {
            findings.add(
                files.root.span(),
                format!("{} can't be listed: {error}", root.display()),
                "name a directory that the daemon may read",
            );
        }
    }
    if let Some(assets) = &raw.boot.assets {
        let path = findings.directory().join(assets.get_ref());
        if !path.is_dir() {
            findings.add(
                assets.span(),
                format!("{} is not a directory", path.display()),
                "`cargo xtask setup` says where it puts the netboot images",
            );
        }
    }
}

/// Reports kernels and initrds that are missing: a machine would request them in vain.
fn files_by_hand(raw: &File, config: &Config, findings: &mut Findings<'_>) {
    let Some(root) = config.files_root.as_deref().filter(|root| root.is_dir()) else { return };
    // The profiles are in the order of their entries.
    for (table, profile) in raw.profiles.iter().zip(&config.profiles) {
        let (Some(at), Source::Kernel { kernel: path, initrd }) = (&table.get_ref().kernel, &profile.source)
        else {
            continue;
        };
        let right = format!("put it below {}, or name one that is there", root.display());
        if let Some(what) = kernel::missing(root, path) {
            findings.add(at.span(), what, right.clone());
        } else if let Some(what) = kernel::flaw(root, path).filter(|_| config.boot.ipxe == IpxeLoader::Grub) {
            findings.add(at.span(), what, "name a kernel");
        }
        let at = table.get_ref().initrd.as_ref().map_or(at.span(), |initrd| initrd.span());
        for what in initrd.iter().filter_map(|path| kernel::missing(root, path)) {
            findings.add(at.clone(), what, right.clone());
        }
    }
}

/// Seconds for which a bridge's ports listen and learn; `None` if there is no such bridge or spanning tree is off.
fn forwards_after(bridge: &str) -> Option<u32> {
    let number = |name: &str| -> Option<u32> {
        std::fs::read_to_string(format!("/sys/class/net/{bridge}/{name}")).ok()?.trim().parse().ok()
    };
    // /sys may show a bridge of the same name in another namespace.
    let index = nix::net::if_::if_nametoindex(bridge).ok()?;
    if number("ifindex")? != index || number("bridge/stp_state")? == 0 {
        return None;
    }
    // Listening and learning take one forward delay each, in hundredths of a second.
    Some(2 * number("bridge/forward_delay")? / 100)
}

fn interfaces() -> BTreeSet<String> {
    let all = nix::net::if_::if_nameindex();
    all.iter().flat_map(|all| all.iter()).map(|i| i.name().to_string_lossy().into_owned()).collect()
}
