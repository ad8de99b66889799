//! Names of images that stay when their tags move: `hello-metal@sha256:…`.

use super::{AddError, Image, ImageRecord, Images};
use crate::config::nodes::PinnedImage;

impl Images {
    /// Gives the image a name that is never another's. Its blobs are kept for as long as it has that.
    pub fn pin(&self, image: &Image) -> Result<PinnedImage, AddError> {
        let pinned = pinned(&image.record);
        self.enter(image, std::slice::from_ref(&pinned.name))?;
        Ok(pinned)
    }

    /// Every name that [`pin`](Self::pin) gave.
    pub fn pinned(&self) -> Vec<String> {
        self.images().keys().filter(|name| name.contains('@')).cloned().collect()
    }
}

/// What the image would be pinned as. The ID tells images apart that only differ in what they run.
pub fn pinned(record: &ImageRecord) -> PinnedImage {
    let reference = &record.reference;
    let (name, was_pinned) = match reference.split_once('@') {
        Some((name, _)) => (name, true),
        None => (without_tag(reference), false),
    };
    let is_digest = |text: &str| {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let id = if is_digest(&record.id) { &record.id } else { &record.digest };
    let name = if was_pinned { reference.clone() } else { format!("{name}@{id}") };
    PinnedImage { reference: reference.clone(), name, digest: record.digest.clone() }
}

fn without_tag(reference: &str) -> &str {
    match reference.rsplit_once(':') {
        // Behind the last colon may be a registry's port and a path.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => reference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_no_part_of_a_name_and_a_port_is() {
        for (reference, name) in [
            ("hello:latest", "hello"),
            ("reg.example:5000/a/b:1", "reg.example:5000/a/b"),
            ("reg.example:5000/a/b", "reg.example:5000/a/b"),
            ("sha256:00", "sha256"),
        ] {
            assert_eq!(without_tag(reference), name);
        }
    }
}
