//! The compiler and linker for the kernel programs. Two toolchains are supported: Debian's `rustc-web` with its
//! prebuilt `core` for BPF (no nightly needed), and aya's usual one, a nightly with `rust-src` and `bpf-linker`. An
//! installed one is used; without any, Debian's is set up if apt works. docs/decisions/001-toolchain.md has the
//! reasons.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::apt;
use super::pieces::program;
use crate::paths;

/// The compiler of the kernel programs.
pub(crate) enum Toolchain {
    /// Debian's rustc for BPF, called by the stable cargo.
    Debian { rustc: &'static str, linker: PathBuf },
    /// rustup's nightly, which builds `core` itself.
    Nightly { linker: PathBuf },
}

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const LINKER_VERSION: &str = "0.13.0";

/// The installed toolchain, if one is complete.
pub(crate) fn find() -> Option<Toolchain> {
    let debian = || {
        let linker = linker(debian_llvm()?);
        linker.exists().then_some(Toolchain::Debian { rustc: DEBIAN_RUSTC, linker })
    };
    debian().or_else(nightly)
}

/// Installs what the linker is built from, if no toolchain is complete. Returns what to install if it can't.
pub(super) fn install_packages() -> anyhow::Result<Option<String>> {
    if find().is_some() {
        return Ok(None);
    }
    if debian_llvm().is_none() {
        if apt::obstacle().is_some() {
            return Ok(Some(HOW.to_owned()));
        }
        eprintln!("set-up: installing rustc-web, libstd-rust-web-dev-bpf (compile the kernel programs)");
        apt::install_packages(&["rustc-web", "libstd-rust-web-dev-bpf"])?;
    }
    let llvm = installed_llvm()?;
    if !llvm_prefix(llvm).join("bin/llvm-config").exists() || program("c++").is_none() {
        if apt::obstacle().is_some() {
            return Ok(Some(format!("LLVM {llvm} for bpf-linker: apt-get install llvm-{llvm}-dev g++")));
        }
        eprintln!("set-up: installing llvm-{llvm}-dev, g++ (bpf-linker is built against them)");
        apt::install_packages(&[&format!("llvm-{llvm}-dev"), "g++"])?;
    }
    Ok(None)
}

/// Builds the linker, if no toolchain is complete.
pub(super) fn install_linker() -> anyhow::Result<()> {
    if find().is_some() {
        return Ok(());
    }
    let llvm = installed_llvm()?;
    eprintln!("set-up: building bpf-linker {LINKER_VERSION} against LLVM {llvm} (a minute or two)");
    let status = Command::new("cargo")
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}"), "--root"])
        .arg(linker_root(llvm))
        .env("LLVM_PREFIX", llvm_prefix(llvm))
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .context("running cargo")?;
    ensure!(
        status.success(),
        "bpf-linker {LINKER_VERSION} could not be built against LLVM {llvm}; cargo's message is above"
    );
    Ok(())
}

const HOW: &str = "a compiler for BPF: on Debian as root: apt-get install rustc-web libstd-rust-web-dev-bpf g++, \
     then run this again, for the LLVM that it names; \
     elsewhere: rustup toolchain install nightly --component rust-src && cargo install bpf-linker";

/// The LLVM major version whose bitcode Debian's BPF-capable rustc emits. Read from the compiler, since both change
/// with Debian's security updates.
fn debian_llvm() -> Option<u32> {
    if !Path::new(DEBIAN_CORE).exists() {
        return None;
    }
    let output = Command::new(DEBIAN_RUSTC).arg("-vV").env_remove("LD_LIBRARY_PATH").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.lines().find_map(|l| l.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

fn installed_llvm() -> anyhow::Result<u32> {
    debian_llvm().context("rustc-web is installed, yet /usr/bin/rustc names no LLVM version")
}

fn llvm_prefix(llvm: u32) -> PathBuf {
    format!("/usr/lib/llvm-{llvm}").into()
}

fn nightly() -> Option<Toolchain> {
    let linker = program("bpf-linker")?;
    let output =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    let core = sysroot.join("lib/rustlib/src/rust/library/core");
    (output.status.success() && core.exists()).then_some(Toolchain::Nightly { linker })
}

/// The path of the linker for an LLVM version. It contains both versions, so that a change of either installs a new
/// one.
fn linker(llvm: u32) -> PathBuf {
    linker_root(llvm).join("bin/bpf-linker")
}

fn linker_root(llvm: u32) -> PathBuf {
    paths::target("tools").join(format!("bpf-linker-{LINKER_VERSION}-llvm-{llvm}"))
}
