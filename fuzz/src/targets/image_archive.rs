//! An image in a tar archive, in Docker's or OCI's format: it is found and described, and its layers are read.
use bridgehead::provision::image::fuzzing::archive;
use tar::{Builder, Header};

/// The names that the reader looks for.
const NAMES: [&str; 6] = [
    "manifest.json",
    "index.json",
    "config.json",
    "layer.tar",
    "oci-layout",
    "blobs/sha256/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
];

// The archive's files, each preceded by its name's number (one byte) and its length (two bytes).
pub(crate) fn run(bytes: &[u8]) {
    let mut builder = Builder::new(Vec::new());
    let mut rest = bytes;
    while let [name, high, low, tail @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low])).min(tail.len());
        let (content, tail) = tail.split_at(len);
        rest = tail;
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        let name = NAMES[usize::from(*name) % NAMES.len()];
        builder.append_data(&mut header, name, content).expect("a vector takes everything");
    }
    archive(&builder.into_inner().expect("a vector takes everything"));
}
