//! Writes `/image.json` from an image's description.

use pxe_contract::image::{Description, Xattr};

use super::oci::ImageConfig;
use super::tree::Tree;
use crate::base::text::hex;

/// What pxe-init reads to run the image. It shall set those extended attributes for which `has_place` is false: the
/// format of the image's files can't store them. Also the files whose attributes are lost, because JSON can't store their
/// names.
pub(super) fn description(
    reference: &str,
    id: &str,
    digest: &str,
    config: &ImageConfig,
    tree: &Tree,
    has_place: impl Fn(&[u8]) -> bool,
) -> (Description, Vec<String>) {
    let (mut xattrs, mut lost) = (Vec::new(), Vec::new());
    for (path, inode) in tree.walk() {
        for (name, value) in tree.inode(inode).xattrs.iter().filter(|(name, _)| !has_place(name)) {
            match (String::from_utf8(path.clone()), String::from_utf8(name.clone())) {
                (Ok(path), Ok(name)) => xattrs.push(Xattr { path, name, value: hex(value) }),
                _ => lost.push(path.escape_ascii().to_string()),
            }
        }
    }
    let description = Description {
        reference: reference.to_owned(),
        id: id.to_owned(),
        digest: digest.to_owned(),
        argv: config.argv(),
        env: config.env.clone(),
        cwd: if config.working_dir.is_empty() { "/" } else { &config.working_dir }.to_owned(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
        health_check: config.health_check.clone(),
        xattrs,
    };
    (description, lost)
}
