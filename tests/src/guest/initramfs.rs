//! A machine's initramfs: BusyBox, the modules that it needs, programs with their C libraries, and other files of a test.
//! It is not compressed, because in software emulation unpacking is slower than reading.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::card::Card;
use super::kernel::{Suite, unpacked};
use crate::process::output;

/// Modules beside the card's: for the bridge, for a filter at tc without tcx, for the agent's channel, and for the links
/// that the daemon's own tests make.
const MODULES: [&str; 8] =
    ["virtio_pci", "virtio_console", "bridge", "sch_ingress", "cls_bpf", "veth", "dummy", "tun"];

/// A tree that becomes a machine's root.
pub struct Initramfs {
    root: PathBuf,
}

impl Initramfs {
    /// A tree in the empty directory `root`, with what each machine has.
    pub fn new(root: PathBuf, suite: Suite, card: Card) -> Result<Self> {
        let made = Self { root };
        for dir in ["bin", "modules", "usr"] {
            fs::create_dir_all(made.root.join(dir))?;
        }
        let busybox = crate::assets().join("busybox");
        let busybox = if busybox.is_file() { busybox } else { "/bin/busybox".into() };
        made.file(&busybox, "bin/busybox")?;
        symlink("busybox", made.root.join("bin/sh"))?;
        made.text("init", include_str!("init.sh"), 0o755)?;
        made.text("agent.sh", include_str!("agent.sh"), 0o644)?;
        let modules = [&MODULES[..], &[card.module()]].concat();
        let mut order = String::new();
        for module in suite.modules(&modules)? {
            order += &unpacked(&module, &made.root.join("modules"))?;
            order.push('\n');
        }
        made.text("modules/order", &order, 0o644)?;
        Ok(made)
    }

    /// Adds a program, without its symbols, and the C libraries that it is linked to.
    pub fn program(&self, program: &Path, name: &str) -> Result<()> {
        let inside = self.root.join("bin").join(name);
        output(Command::new("strip").arg("-o").args([&inside, program]))?;
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader without an arrow. The libraries are in
        // the loader's default path.
        let linked = output(Command::new("ldd").arg(program))?;
        for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
            self.file(Path::new(library), library.trim_start_matches('/'))?;
        }
        Ok(())
    }

    /// Adds a file, or a directory with its contents.
    pub fn tree(&self, from: &Path, inside: &str) -> Result<()> {
        if !from.is_dir() {
            return self.file(from, inside);
        }
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name();
            self.tree(&entry.path(), &format!("{inside}/{}", name.to_string_lossy()))?;
        }
        Ok(())
    }

    /// Adds a file.
    pub fn file(&self, from: &Path, inside: &str) -> Result<()> {
        let to = self.root.join(inside);
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok(())
    }

    /// Writes a file.
    pub fn text(&self, inside: &str, text: &str, mode: u32) -> Result<()> {
        let to = self.root.join(inside);
        fs::create_dir_all(to.parent().context("a file lies in a directory")?)?;
        fs::write(&to, text)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
        Ok(())
    }

    /// Packs the tree into `archive` and removes it.
    pub fn pack(self, archive: &Path) -> Result<()> {
        let mut find =
            Command::new("find").arg(".").current_dir(&self.root).stdout(Stdio::piped()).spawn()?;
        let mut cpio = Command::new("cpio");
        cpio.args(["--create", "--format=newc", "--quiet", "--owner=0:0"]).current_dir(&self.root);
        cpio.stdin(find.stdout.take().context("find's stdout")?).stdout(fs::File::create(archive)?);
        let packed = cpio.status().context("is cpio installed?")?;
        ensure!(find.wait()?.success() && packed.success(), "packing {}: {packed}", archive.display());
        Ok(fs::remove_dir_all(&self.root)?)
    }
}
