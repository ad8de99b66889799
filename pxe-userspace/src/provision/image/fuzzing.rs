//! Access to this module's internals for `fuzz/`.

use std::io::{self, Write as _};
use std::path::Path;

use super::extract;
use super::initrd::Initrd;
use super::oci::Archive;
use super::tree::{Spool, Tree};

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
