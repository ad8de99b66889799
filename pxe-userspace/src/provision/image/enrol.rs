//! The image of machines that only tell their facts: as good as empty, because pxe-init does what is done. In the form of
//! any other image, so that it is stored, sent and removed as one.

use std::io;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::base::text::hex;
use crate::config::ENROL;

/// What `docker save` would write of it, in a file that vanishes when it is dropped.
pub(super) fn archive(work: &Path) -> io::Result<NamedTempFile> {
    let layer =
        packed(&[("README", b"A machine that boots this tells its facts, and runs nothing of it.\n")])?;
    let config = serde_json::json!({
        "os": "linux",
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "config": { "Cmd": ["/README"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))] },
    });
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": [ENROL], "Layers": ["layer.tar"] }]);
    let (config, manifest) = (config.to_string(), manifest.to_string());
    let archive = packed(&[
        ("layer.tar", &layer),
        ("config.json", config.as_bytes()),
        ("manifest.json", manifest.as_bytes()),
    ])?;
    let mut file = NamedTempFile::new_in(work)?;
    io::Write::write_all(&mut file, &archive)?;
    Ok(file)
}

/// A tar archive, the same each time.
fn packed(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        archive.append_data(&mut header, name, *contents)?;
    }
    archive.into_inner()
}
