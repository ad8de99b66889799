//! Access to this module's internals for `fuzz/`.

use std::io::{self, Write as _};
use std::path::Path;

use super::initrd::Initrd;
use super::oci::Archive;
use super::tree::{Inode, Kind, Spool, Tree};
use super::{depmod, extract, kernel_files};

/// Applies layers, from the bottom, to a tree, and writes the tree as an initrd.
pub fn layers(archives: &[&[u8]]) {
    let mut tree = Tree::new();
    let mut spool = Spool::new(&std::env::temp_dir()).expect("there is room");
    for (layer, archive) in archives.iter().enumerate() {
        if extract::apply(&mut tree, &mut spool, layer, *archive).is_err() {
            return;
        }
    }
    let mut initrd = Initrd::new(io::sink(), 1).expect("zstd has this level");
    if initrd.tree("image", &tree).is_ok() {
        initrd.finish().expect("the sink takes everything");
    }
}

/// Describes an image archive, and reads its layers to their ends.
pub fn archive(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("there is room");
    file.write_all(bytes).expect("there is room");
    let Ok(archive) = Archive::from_file(Path::new("image.tar"), file) else { return };
    let Ok(described) = archive.describe() else { return };
    for layer in &described.layers {
        if let Ok(mut reader) = archive.layer(layer) {
            // The reader reports damaged compression as an error.
            let _ = io::copy(&mut reader, &mut io::sink());
        }
    }
}

/// Reads a kernel's package.
pub fn package(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("there is room");
    file.write_all(bytes).expect("there is room");
    let mut spool = Spool::new(&std::env::temp_dir()).expect("there is room");
    // What is no package or has no kernel is an error.
    let _ = kernel_files::read(Path::new("linux.deb"), file, &mut spool);
}

/// Indexes a module.
pub fn module(bytes: &[u8]) {
    let mut spool = Spool::new(&std::env::temp_dir()).expect("there is room");
    let mut tree = Tree::new();
    let content = spool.add(bytes).expect("there is room");
    tree.insert(Tree::ROOT, b"a.ko", Inode::new(0o644, Kind::File(content)), 0);
    // Damaged compression is an error.
    let _ = depmod::index(&mut tree, Tree::ROOT, &mut spool);
}
