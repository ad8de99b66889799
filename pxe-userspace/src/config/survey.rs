//! What a configuration needs of the system it runs on, as far as looking changes nothing.

use std::collections::BTreeSet;

use super::file::File;
use super::findings::Findings;

pub(super) fn survey(raw: &File, findings: &mut Findings<'_>) {
    // Not /sys/class/net: that shows the network namespace of whoever mounted it.
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

fn interfaces() -> BTreeSet<String> {
    let all = nix::net::if_::if_nameindex();
    all.iter().flat_map(|all| all.iter()).map(|i| i.name().to_string_lossy().into_owned()).collect()
}
