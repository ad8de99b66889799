//! A corpus of unusual images, which `docker load` and the appliance must read in the same way. tests/tests/images.rs
//! compares the results.
//!
//! The archives are written here, byte by byte, by the specifications (POSIX pax, GNU tar's manual, the OCI image
//! specification), because a library would not write most of these entries.

mod cases;
mod tar;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use cases::all;
pub use tar::{Entry, Layer};

/// One image.
pub struct Case {
    pub name: &'static str,
    /// The layers, from the bottom.
    pub layers: Vec<Vec<u8>>,
    /// How each layer is packed.
    pub packed: Packed,
    /// The configuration's `config`.
    pub run: Value,
    pub docker: Docker,
}

/// How layers are packed.
pub enum Packed {
    Plain,
    /// By this program, from stdin to stdout.
    By(&'static [&'static str]),
    /// By the program in two concatenated pieces.
    Twice(&'static [&'static str]),
    /// By the program, after these bytes.
    Behind(Vec<u8>, &'static [&'static str]),
}

/// How Docker's result differs from the appliance's.
pub enum Docker {
    /// The same.
    Same,
    /// Docker refuses the image, the appliance does not: the reason.
    Refuses(&'static str),
    /// These paths differ in something: which, and why.
    Differs(&'static [&'static str], &'static str),
}

impl Case {
    fn new(name: &'static str, layers: impl IntoIterator<Item = Layer>) -> Self {
        Self {
            name,
            layers: layers.into_iter().map(Layer::bytes).collect(),
            packed: Packed::Plain,
            run: json!({"Cmd": ["/run-me"]}),
            docker: Docker::Same,
        }
    }

    fn packed(mut self, packed: Packed) -> Self {
        self.packed = packed;
        self
    }

    /// Its layers without the blocks that end an archive.
    fn shortened(mut self) -> Self {
        self.layers.iter_mut().for_each(|layer| layer.truncate(layer.len() - 1024));
        self
    }

    fn run(mut self, run: Value) -> Self {
        self.run = run;
        self
    }

    fn docker(mut self, docker: Docker) -> Self {
        self.docker = docker;
        self
    }

    /// The name that the archive gives the image.
    pub fn reference(&self) -> String {
        format!("corpus/{}:1", self.name)
    }

    /// Writes what `docker save` writes.
    pub fn save(&self, path: &Path) -> Result<()> {
        let digest = |bytes: &[u8]| format!("{:x}", Sha256::digest(bytes));
        let diff_ids: Vec<String> = self.layers.iter().map(|l| format!("sha256:{}", digest(l))).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": self.run,
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", digest(&config));
        let mut archive = Layer::new().file(&config_name, &config);
        let mut names = Vec::new();
        for (number, layer) in self.layers.iter().enumerate() {
            let name = format!("{number}-{}/layer.tar", &diff_ids[number][7..23]);
            archive = archive.file(&name, &self.packed.pack(layer)?);
            names.push(name);
        }
        let manifest = json!([{"Config": config_name, "RepoTags": [self.reference()], "Layers": names}]);
        let archive = archive.file("manifest.json", manifest.to_string().as_bytes());
        fs::write(path, archive.bytes()).with_context(|| format!("writing {}", path.display()))
    }
}

impl Packed {
    /// The program that it needs.
    pub fn program(&self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::By(command) | Self::Twice(command) | Self::Behind(_, command) => Some(command[0]),
        }
    }

    fn pack(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Plain => bytes.to_vec(),
            Self::By(command) => filter(command, bytes)?,
            Self::Twice(command) => {
                let (first, second) = bytes.split_at(bytes.len() / 2);
                [filter(command, first)?, filter(command, second)?].concat()
            }
            Self::Behind(head, command) => [head.clone(), filter(command, bytes)?].concat(),
        })
    }
}

/// Minimal assets with which each of these images can be imported. None of them runs, and a real kernel's drivers would
/// be packed each time.
pub fn assets(at: &Path) -> Result<()> {
    const VERSION: &str = "6.1.0-1";
    let modules = at.join(format!("kernel/modules/lib/modules/{VERSION}"));
    fs::create_dir_all(&modules)?;
    // The start of a bzImage (Linux, Documentation/arch/x86/boot.rst), as far as it is read without running it.
    let mut kernel = vec![0; 0x400];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&(30u32 << 20).to_le_bytes());
    kernel[0x300..0x300 + VERSION.len()].copy_from_slice(VERSION.as_bytes());
    let builtin =
        "kernel/drivers/block/loop.ko\nkernel/fs/squashfs/squashfs.ko\nkernel/fs/overlayfs/overlay.ko\n";
    for (path, contents) in [
        (at.join("busybox"), &b"busybox"[..]),
        (at.join("pxe-init"), b"pxe-init"),
        (at.join("kernel/vmlinuz"), &kernel),
        (at.join("kernel/version"), VERSION.as_bytes()),
        (modules.join("modules.builtin"), builtin.as_bytes()),
        (modules.join("modules.dep"), b""),
    ] {
        fs::write(path, contents)?;
    }
    Ok(())
}

fn filter(command: &[&str], bytes: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command[0]))?;
    let mut stdin = child.stdin.take().context("stdin is piped")?;
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output()?;
    writer.join().expect("it does not panic")?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(output.stdout)
}
