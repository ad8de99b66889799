//! Builds what plain `cargo build` can't: the kernel programs and the static pxe-init. Each has its own target
//! directory, so that its flags don't rebuild everything else. Cargo decides what is out of date; unchanged files are
//! not copied.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};

use crate::setup::bpf::{self, Toolchain};
use crate::{assets, paths};

/// Builds everything, in an order in which each part embeds or packs those before it.
pub(crate) fn all() -> anyhow::Result<()> {
    kernel_programs()?;
    assets::make()?;
    bridgehead()?;
    Ok(())
}

/// The daemon, with the kernel programs embedded. Returns its path.
pub(crate) fn bridgehead() -> anyhow::Result<PathBuf> {
    let dir = paths::root().join("target");
    let mut cargo = cargo(["build", "--release", "-p", "pxe-userspace", "--bin", "bridgehead"]);
    run(cargo.arg("--target-dir").arg(&dir), "the daemon")?;
    Ok(dir.join("release/bridgehead"))
}

/// The kernel programs: `target/bpf/pxe-ebpf`, which the daemon's build script embeds, and those that they are compared
/// with by `bench limit`.
pub(crate) fn kernel_programs() -> anyhow::Result<PathBuf> {
    const TARGET: &str = "bpfel-unknown-none";
    let Some(toolchain) = bpf::find() else {
        bail!("no compiler for BPF is installed: run `cargo xtask setup`");
    };
    let mut command = match &toolchain {
        Toolchain::Debian { rustc, .. } => {
            let mut cargo = cargo(["build"]);
            // aya-ebpf uses unstable features; this is how Debian's stable compiler accepts them.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Toolchain::Nightly { .. } => {
            let mut rustup = Command::new("rustup");
            rustup.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            rustup.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
            rustup
        }
    };
    let (Toolchain::Debian { linker, .. } | Toolchain::Nightly { linker }) = &toolchain;
    let flags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        format!("-Clinker={}", linker.display()),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // "In order" means: copies only as the addresses' alignment allows, and a call to clear a few bytes.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
    ];
    let dir = paths::target("bpf-build");
    command
        .args(["-p", "pxe-ebpf", "--profile", "bpf", "--target", TARGET, "--target-dir"])
        .arg(&dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        // `cargo run` sets this to rustup's libraries; Debian's rustc and LLVM have their own.
        .env_remove("LD_LIBRARY_PATH")
        .current_dir(paths::root());
    run(&mut command, "the kernel programs")?;
    let object = paths::target("bpf/pxe-ebpf");
    copy_if_changed(&dir.join(TARGET).join("bpf/pxe-ebpf"), &object)?;
    copy_if_changed(&dir.join(TARGET).join("bpf/limit"), &paths::target("bpf/limit"))?;
    Ok(object)
}

/// The node's first process, linked statically: it runs from an initrd that has no C library.
pub(crate) fn init() -> anyhow::Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let dir = paths::target("init-build");
    let mut cargo = cargo(["build", "-p", "pxe-init", "--profile", "init"]);
    cargo
        .args(["--bin", "pxe-init", "--target", &target, "--target-dir"])
        .arg(&dir)
        // Not position-independent: a static PIE needs relocation at start, and gains nothing here.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    run(&mut cargo, "pxe-init")?;
    Ok(dir.join(target).join("init/pxe-init"))
}

/// Copies if the contents differ, by a rename, so that a reader never sees half a file and a build script sees no
/// needless new time stamp.
pub(crate) fn copy_if_changed(from: &Path, to: &Path) -> anyhow::Result<()> {
    let new = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    if std::fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let parent = to.parent().context("a file has a directory")?;
    std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    let part = to.with_extension(format!("part{}", std::process::id()));
    std::fs::copy(from, &part).with_context(|| format!("writing {}", part.display()))?;
    std::fs::rename(&part, to).with_context(|| format!("writing {}", to.display()))
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.args(args).current_dir(paths::root());
    cargo
}

fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status =
        command.status().with_context(|| format!("building {what}: running {:?}", command.get_program()))?;
    ensure!(status.success(), "{what} could not be built ({status}); the compiler's message is above");
    Ok(())
}
