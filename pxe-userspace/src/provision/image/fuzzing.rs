//! What `fuzz/` reaches of this module's inside.

use std::io::{self, Write as _};
use std::path::Path;

use super::extract;
use super::initrd::Initrd;
use super::oci::Archive;
use super::tree::{Spool, Tree};

/// Layers, from the bottom, to a tree, and the tree to an initrd.
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

/// An image's archive, described, and its layers read to their ends.
pub fn archive(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("there is room");
    file.write_all(bytes).expect("there is room");
    let Ok(archive) = Archive::from_file(Path::new("image.tar"), file) else { return };
    let Ok(described) = archive.describe() else { return };
    for layer in &described.layers {
        if let Ok(mut reader) = archive.layer(layer) {
            // Damaged compression is an error of its reader.
            let _ = io::copy(&mut reader, &mut io::sink());
        }
    }
}
