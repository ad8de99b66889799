//! The JSON documents of an image archive: `docker save`'s manifest, and OCI's index, manifest and configuration.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};

use super::health::HealthJson;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerManifest {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct OciIndex {
    pub(super) manifests: Vec<OciDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OciDescriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) platform: Option<OciPlatform>,
    #[serde(default)]
    pub(super) annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
pub(super) struct OciPlatform {
    pub(super) os: String,
    pub(super) architecture: String,
    pub(super) variant: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct OciManifest {
    pub(super) config: OciDescriptor,
    pub(super) layers: Vec<OciDescriptor>,
}

/// application/vnd.oci.image.config.v1+json, and Docker's own before it.
#[derive(Deserialize)]
pub(super) struct ConfigJson {
    #[serde(default)]
    pub(super) os: String,
    #[serde(default)]
    pub(super) architecture: String,
    pub(super) created: Option<String>,
    pub(super) config: Option<RunJson>,
    pub(super) rootfs: RootfsJson,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunJson {
    #[serde(default, deserialize_with = "one_or_several")]
    pub(super) entrypoint: Option<Vec<String>>,
    #[serde(default, deserialize_with = "one_or_several")]
    pub(super) cmd: Option<Vec<String>>,
    pub(super) env: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
    pub(super) user: Option<String>,
    pub(super) stop_signal: Option<String>,
    pub(super) healthcheck: Option<HealthJson>,
    #[serde(default, deserialize_with = "one_or_several")]
    pub(super) shell: Option<Vec<String>>,
}

/// Some builders write a single word in place of a list. It is read as by Docker (moby's `StrSlice`): as one word,
/// never split.
fn one_or_several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Several(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Several(words) => words,
    }))
}

#[derive(Deserialize)]
pub(super) struct RootfsJson {
    #[serde(default)]
    pub(super) diff_ids: Vec<String>,
}

impl OciDescriptor {
    /// The x86-64 level that the image needs: 1 for the baseline, 2 for x86-64-v2 and so on; `None` if it is for
    /// another platform. Without a platform it may be ours; BuildKit's attestations say `unknown/unknown`.
    pub(super) fn rank(&self) -> Option<u32> {
        let Some(platform) = &self.platform else { return Some(1) };
        if (&platform.os[..], &platform.architecture[..]) != ("linux", "amd64") {
            return None;
        }
        match platform.variant.as_deref() {
            None | Some("") => Some(1),
            Some(variant) => variant.strip_prefix('v')?.parse().ok(),
        }
    }

    pub(super) fn is_index(&self) -> bool {
        self.media_type.contains("index") || self.media_type.contains("manifest.list")
    }

    /// The name that a layout gives it. containerd's annotation has the whole name; OCI's is often the tag alone, as
    /// `skopeo copy … oci-archive:web.tar:latest` writes it: then the name is the archive's.
    pub(super) fn reference(&self, archive: &Path) -> Option<String> {
        let named = |key| self.annotations.get(key).filter(|name| !name.is_empty());
        if let Some(name) = named("io.containerd.image.name") {
            return Some(name.clone());
        }
        let name = named("org.opencontainers.image.ref.name")?;
        let tag = if is_tag(name) { format!("{}:{name}", stem(archive)) } else { name.clone() };
        Some(tag)
    }
}

/// Whether a single word is more likely a tag than a name: `latest`, `1.2`, `v3`.
fn is_tag(word: &str) -> bool {
    let version = word.strip_prefix('v').unwrap_or(word);
    word == "latest" || (version.starts_with(|c: char| c.is_ascii_digit()) && !word.contains(['/', ':', '@']))
}

/// The name of an image whose archive gives it none: `web` for `web.tar.gz`, for `web.tar` and for the directory `web`.
pub(super) fn stem(archive: &Path) -> String {
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let name =
        [".gz", ".tgz", ".zst", ".bz2", ".xz"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
    name.strip_suffix(".tar")
        .or_else(|| name.rsplit_once('.').map(|(stem, _)| stem))
        .unwrap_or(name)
        .to_owned()
}
