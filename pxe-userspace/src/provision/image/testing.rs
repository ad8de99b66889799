//! Layers for tests, written by the `tar` crate, so that our reader does not judge itself.

use std::io::Cursor;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::extract::{self, ExtractError};
use super::tree::{Spool, Tree};
use crate::base::text::hex;

/// A layer that is being written.
pub(super) struct TestLayer(Builder<Vec<u8>>);

impl TestLayer {
    pub(super) fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    pub(super) fn file(self, path: &str, contents: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, |h| h.set_mode(0o644), contents)
    }

    pub(super) fn directory(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, |h| h.set_mode(0o755), b"")
    }

    pub(super) fn symlink(self, path: &str, target: &str) -> Self {
        let set = |h: &mut Header| h.set_link_name_literal(target).unwrap();
        self.entry(path, EntryType::Symlink, set, b"")
    }

    pub(super) fn hard_link(self, path: &str, target: &str) -> Self {
        let set = |h: &mut Header| h.set_link_name_literal(target).unwrap();
        self.entry(path, EntryType::Link, set, b"")
    }

    /// PAX records for the next entry.
    pub(super) fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    /// Any entry. The path is written unchanged, also if `tar` would refuse it.
    pub(super) fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        set: impl FnOnce(&mut Header),
        contents: &[u8],
    ) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_size(contents.len() as u64);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        set(&mut header);
        header.set_cksum();
        self.0.append(&header, contents).unwrap();
        self
    }

    pub(super) fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// Applies layers, from the bottom.
pub(super) fn apply(layers: impl IntoIterator<Item = TestLayer>) -> Result<Tree, ExtractError> {
    let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
    let mut tree = Tree::new();
    for (number, layer) in layers.into_iter().enumerate() {
        extract::apply(&mut tree, &mut spool, number, Cursor::new(layer.bytes()))?;
    }
    Ok(tree)
}

/// Every path of a tree.
pub(super) fn paths(tree: &Tree) -> Vec<String> {
    tree.walk().into_iter().map(|(path, _)| String::from_utf8(path).unwrap()).collect()
}

/// The beginning of a bzImage, as far as it is read without being run.
pub(super) fn bzimage(version: &str) -> Vec<u8> {
    let mut image = vec![0; 0x400];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&(30u32 << 20).to_le_bytes());
    let text = format!("{version} (test) #1 SMP\0");
    image[0x300..0x300 + text.len()].copy_from_slice(text.as_bytes());
    image
}

/// A complete assets directory.
pub(super) fn assets(directory: &Path) {
    let modules = directory.join("kernel/modules/lib/modules/6.1.0-1/kernel/drivers/net");
    std::fs::create_dir_all(&modules).unwrap();
    for (path, contents) in [
        ("busybox", b"busybox".to_vec()),
        ("pxe-init", b"pxe-init".to_vec()),
        ("kernel/vmlinuz", bzimage("6.1.0-1")),
        ("kernel/version", b"6.1.0-1\n".to_vec()),
        (
            "kernel/modules/lib/modules/6.1.0-1/modules.builtin",
            b"kernel/drivers/block/loop.ko\nkernel/fs/squashfs/squashfs.ko\nkernel/fs/overlayfs/overlay.ko\n"
                .to_vec(),
        ),
        ("kernel/modules/lib/modules/6.1.0-1/modules.dep", b"kernel/drivers/net/virtio_net.ko:\n".to_vec()),
        ("kernel/modules/lib/modules/6.1.0-1/kernel/drivers/net/virtio_net.ko", b"module".to_vec()),
    ] {
        std::fs::write(directory.join(path), contents).unwrap();
    }
}

/// What `docker save` would write for one layer and this configuration. Tags are separated by blanks.
pub(super) fn saved(tag: &str, layer: &[u8], run: serde_json::Value) -> Vec<u8> {
    let config = serde_json::json!({
        "os": "linux", "architecture": "amd64", "config": run,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(layer)))]},
    });
    let tags: Vec<&str> = tag.split(' ').collect();
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": tags, "Layers": ["layer.tar"]}]);
    TestLayer::new()
        .file("layer.tar", layer)
        .file("config.json", config.to_string().as_bytes())
        .file("manifest.json", manifest.to_string().as_bytes())
        .bytes()
}

/// The same for an image that contains only BusyBox. A shell that is process 1 ignores SIGTERM; with the stop signal,
/// tests need not wait for it.
pub(crate) fn saved_busybox(tag: &str) -> Vec<u8> {
    let busybox = std::fs::read("/bin/busybox").expect("busybox is installed (apt: busybox-static)");
    let layer = TestLayer::new()
        .entry("bin/busybox", EntryType::Regular, |h| h.set_mode(0o755), &busybox)
        .hard_link("bin/sh", "bin/busybox");
    saved(tag, &layer.bytes(), serde_json::json!({"Cmd": ["/bin/sh"], "StopSignal": "SIGKILL"}))
}
