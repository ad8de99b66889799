//! A kernel's Debian package, and a module in one: the package is read, and the module indexed.
use bridgehead::provision::image::fuzzing::{module, package};

// The first byte says which.
pub(crate) fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, bytes)) => module(bytes),
        Some((_, bytes)) => package(bytes),
        None => {}
    }
}
