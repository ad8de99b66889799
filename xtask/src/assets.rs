//! What the appliance gives to nodes besides images, made into `target/assets`:
//!
//! ```text
//! grub/i386-pc.0, grub/x86_64-efi.efi   GRUB's netboot images
//! kernel/vmlinuz, kernel/version        Debian's kernel, for images without one
//! kernel/modules/lib/modules/VERSION/   its network drivers
//! storage/initrd, storage/unpacked      tools and drivers for storage plans, and their size in memory
//! docker-node/image.tar                 the image of nodes that run containers, as `docker save` writes one
//! rescue/initrd, rescue/unpacked        dropbear, for shells over SSH
//! busybox, pxe-init                     stage 1's programs
//! ```
//!
//! Every directory is made under a temporary name and renamed, so that an existing one is complete. A `recipe` file
//! in it says what it was made from; when the recipe changes, it is made again.

mod docker_node;
mod kernel;
mod programs;
mod rescue;
mod storage;

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{build, paths};

/// Makes what is missing or out of date.
pub(crate) fn make() -> anyhow::Result<()> {
    let assets = paths::target("assets");
    std::fs::create_dir_all(&assets).with_context(|| format!("creating {}", assets.display()))?;
    build::copy_if_changed(&build::init()?, &assets.join("pxe-init"))?;
    build::copy_if_changed(Path::new(BUSYBOX), &assets.join("busybox"))?;
    if !is_made(&assets.join("grub"), &grub_recipe()) {
        directory(&assets.join("grub"), &grub_recipe(), grub)?;
    }
    let rescue = assets.join("rescue");
    if !is_made(&rescue, &rescue::recipe()) {
        directory(&rescue, &rescue::recipe(), rescue::make)?;
    }
    // All three are made from one kernel.
    let [kernel, storage, node] = ["kernel", "storage", "docker-node"].map(|name| assets.join(name));
    if !is_made(&kernel, &kernel::recipe())
        || !is_made(&storage, &storage::recipe())
        || !is_made(&node, &docker_node::recipe())
    {
        let package = kernel::Package::fetch()?;
        directory(&kernel, &kernel::recipe(), |into| kernel::make(into, &package))?;
        directory(&storage, &storage::recipe(), |into| storage::make(into, &package))?;
        directory(&node, &docker_node::recipe(), |into| docker_node::make(into, &package))?;
    }
    Ok(())
}

/// Debian's busybox-static.
const BUSYBOX: &str = "/bin/busybox";

/// GRUB's modules: its network, both transfer protocols, and what our grub.cfg uses. They load in one transfer, which
/// takes 0.1 s (measured). A module that is left out is fetched from the server as a file of its own.
const GRUB_MODULES: &str = "net tftp http normal configfile linux echo test minicmd boot sleep serial terminal \
                            reboot halt";

/// The two images: GRUB's name for the format, the modules for its network and its screen, the file. Without a driver
/// for the firmware's screen (GOP; UGA before UEFI 2.0), GRUB can't tell a kernel where the screen is, and what runs
/// then never writes on it.
const GRUB_IMAGES: [(&str, &str, &str); 2] =
    [("i386-pc-pxe", "pxe", "i386-pc.0"), ("x86_64-efi", "efinet efi_gop efi_uga", "x86_64-efi.efi")];

fn grub_recipe() -> String {
    let version = std::fs::read_to_string("/var/lib/dpkg/info/grub-common.md5sums").unwrap_or_default();
    format!("{GRUB_MODULES}\n{GRUB_IMAGES:?}\n{version}")
}

fn grub(into: &Path) -> anyhow::Result<()> {
    for (format, own, file) in GRUB_IMAGES {
        let mut mkimage = Command::new("grub-mkimage");
        mkimage.args(["-O", format, "-p", "/grub", "-o"]).arg(into.join(file));
        mkimage.args(own.split_whitespace()).args(GRUB_MODULES.split_whitespace());
        run(&mut mkimage)?;
    }
    Ok(())
}

fn is_made(path: &Path, recipe: &str) -> bool {
    std::fs::read_to_string(path.join("recipe")).is_ok_and(|made_from| made_from == recipe)
}

fn directory(
    path: &Path,
    recipe: &str,
    make: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    eprintln!("set-up: making {}", path.display());
    let aside = path.with_extension(format!("part{}", std::process::id()));
    let made = fresh(&aside)
        .and_then(|()| make(&aside))
        .and_then(|()| Ok(std::fs::write(aside.join("recipe"), recipe)?))
        .and_then(|()| {
            if path.exists() {
                std::fs::remove_dir_all(path)?;
            }
            Ok(std::fs::rename(&aside, path)?)
        });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&aside);
    }
    made.with_context(|| format!("making {}", path.display()))
}

/// Makes an empty directory at `path`.
fn fresh(path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        std::fs::remove_dir_all(path)?;
    }
    Ok(std::fs::create_dir_all(path)?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("running {:?}", command.get_program()))?;
    ensure!(status.success(), "{:?} failed ({status}); its own message is above", command.get_program());
    Ok(())
}
