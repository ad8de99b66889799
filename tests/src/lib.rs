//! The lab: a private world in which the appliance, its peers and real firmware meet.
//!
//! Read it in this order: [`world`] (namespaces that end with their owner), [`net`] (bridge, taps, hosts),
//! [`machine`] (firmware in QEMU), [`engine`] (a Docker engine and the demo image), [`appliance`] (the
//! daemon and its command line), [`boot`] (all of it: machines from power-on to a page that answers).
//! [`guest`] has the appliance in a virtual machine, with a kernel of another release. [`needs`] decides how
//! tests share this machine.
//! `docs/lab.md` says how to look into a running one.

pub mod appliance;
pub mod bmc;
pub mod boot;
pub mod browser;
pub mod capture;
pub mod clients;
pub mod dnsmasq;
pub mod engine;
pub mod frames;
pub mod guest;
pub mod images;
pub mod load;
pub mod machine;
pub mod needs;
pub mod net;
pub mod peers;
pub mod process;
pub mod reader;
pub mod rom;
pub mod soak;
pub mod storm;
pub mod timeline;
pub mod world;

use std::path::{Path, PathBuf};

/// The workspace's root: where `target/` and the assets are.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Cargo's target directory, where everything is built.
pub fn target() -> PathBuf {
    workspace().join("target")
}

/// GRUB's images, the stock kernel, BusyBox and pxe-init, as `cargo xtask build` makes them.
pub fn assets() -> PathBuf {
    std::env::var_os("BRIDGEHEAD_ASSETS").map_or_else(|| target().join("assets"), PathBuf::from)
}

/// Whether `program` is found in `PATH`, or among the peers.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
        || peers::program(program).is_file()
}
