//! `/image.json`: what pxe-init reads to run the image.

use serde::Serialize;

use super::health::HealthCheck;
use super::oci::ImageConfig;
use super::tree::Tree;
use crate::text::hex;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct NodeManifest<'a> {
    reference: &'a str,
    id: &'a str,
    digest: &'a str,
    argv: Vec<String>,
    env: &'a [String],
    cwd: &'a str,
    user: &'a str,
    stop_signal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check: Option<&'a HealthCheck>,
    /// Those that the archive has no place for: pxe-init sets them.
    xattrs: Vec<Xattr>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Xattr {
    /// Below the image's root, without a leading slash.
    path: String,
    name: String,
    /// Hexadecimal.
    value: String,
}

impl<'a> NodeManifest<'a> {
    pub(super) fn new(
        reference: &'a str,
        id: &'a str,
        digest: &'a str,
        config: &'a ImageConfig,
        tree: &Tree,
        has_place: impl Fn(&[u8]) -> bool,
    ) -> Self {
        let mut xattrs = Vec::new();
        for (path, inode) in tree.walk() {
            for (name, value) in tree.inode(inode).xattrs.iter().filter(|(name, _)| !has_place(name)) {
                match (String::from_utf8(path.clone()), String::from_utf8(name.clone())) {
                    (Ok(path), Ok(name)) => xattrs.push(Xattr { path, name, value: hex(value) }),
                    _ => tracing::warn!(
                        path = %path.escape_ascii(),
                        "an extended attribute is lost: its file's name is not UTF-8"
                    ),
                }
            }
        }
        Self {
            reference,
            id,
            digest,
            argv: config.argv(),
            env: &config.env,
            cwd: if config.working_dir.is_empty() { "/" } else { &config.working_dir },
            user: &config.user,
            stop_signal: config.stop_signal.as_deref(),
            health_check: config.health_check.as_ref(),
            xattrs,
        }
    }
}
