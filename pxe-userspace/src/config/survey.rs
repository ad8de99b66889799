//! What a configuration needs of the system it runs on, as far as looking changes nothing.

use std::path::Path;

use super::file::{File, Findings};
use super::validate;

pub(super) fn survey(raw: &File, findings: &mut Findings<'_>) {
    for port in &raw.network.ports {
        // A name that is no interface's could also lead out of the directory.
        if !validate::is_interface_name(port.get_ref()) {
            continue;
        }
        if !Path::new("/sys/class/net").join(port.get_ref()).exists() {
            findings.add(
                port.span(),
                format!("no interface is called `{}`", port.get_ref()),
                format!("this machine has {}", interfaces(&raw.network.bridge)),
            );
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

fn interfaces(except: &toml::Spanned<String>) -> String {
    let mut names: Vec<String> = std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "lo" && name != except.get_ref())
        // bonding's control file lies among the interfaces.
        .filter(|name| name != "bonding_masters")
        .collect();
    names.sort();
    if names.is_empty() { "none but the loopback".to_owned() } else { names.join(", ") }
}
