//! Reads image archives: `docker save`'s and OCI image layouts, as a tar archive, compressed or not.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use pxe_contract::image::HealthCheck;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::compression::Compression;
use super::documents::{ConfigJson, DockerManifest, OciDescriptor, OciIndex, OciManifest};
use super::tar::{EntryKind, SparseMap, TarError, TarReader};
use crate::base::schema;
use crate::base::text::hex;

/// Manifests and configurations are kilobytes; larger ones are no images of ours.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// How many indexes may be nested above a manifest.
const MAX_INDEXES: usize = 4;

/// How a machine runs the image: the parts of its configuration that matter without a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<schema::HealthCheck>")]
    pub health_check: Option<HealthCheck>,
}

impl ImageConfig {
    /// The command line: the entry point, with the command as its arguments.
    pub fn argv(&self) -> Vec<String> {
        [&self.entrypoint[..], &self.cmd[..]].concat()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{path} can't be read: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {source}")]
    Tar { path: PathBuf, source: TarError },
    #[error(
        "{path} is neither what `docker save` writes nor an OCI layout: it has no manifest.json and no index.json. \
         A plain file system becomes an image with `docker import`"
    )]
    NotAnImage { path: PathBuf },
    #[error("{path} holds {count} images for linux/amd64: save the one to boot by itself")]
    Several { path: PathBuf, count: usize },
    #[error("{path} holds no image for linux/amd64")]
    NoPlatform { path: PathBuf },
    #[error(
        "the image is for {os}/{architecture}; the machines are linux/amd64. Build it with `--platform linux/amd64`"
    )]
    Platform { os: String, architecture: String },
    #[error("{path} names {name}, which is not in it")]
    Missing { path: PathBuf, name: String },
    #[error("{name} in {path} can't be read: {source}")]
    Read { path: PathBuf, name: String, source: io::Error },
    #[error("{name} in {path} is not the JSON it should be: {source}")]
    Json { path: PathBuf, name: String, source: serde_json::Error },
    #[error("{name} in {path} does not have the SHA-256 that it is named by: the archive is damaged")]
    Digest { path: PathBuf, name: String },
    #[error("{path} lists {layers} layers, and its configuration {diff_ids}")]
    LayerCount { path: PathBuf, layers: usize, diff_ids: usize },
}

/// An image in an archive, whose layers are not read yet.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    index: HashMap<String, Member>,
}

/// An archive's description of its image.
pub(super) struct Described {
    /// SHA-256 of the configuration, which is Docker's image ID.
    pub(super) id: String,
    /// The names that the archive gives it.
    pub(super) references: Vec<String>,
    pub(super) created: Option<String>,
    pub(super) config: ImageConfig,
    /// From the bottom.
    pub(super) layers: Vec<Layer>,
}

pub(super) struct Layer {
    name: String,
    /// SHA-256 of the uncompressed tar archive.
    pub(super) diff_id: String,
}

/// An image's names, the path of its configuration, and those of its layers.
type Named = (Vec<String>, String, Vec<String>);

enum Member {
    Data { offset: u64, size: u64, sparse: Option<SparseMap> },
    Link(String),
}

impl Archive {
    /// An archive or a directory, as the daemon opens it for the child.
    #[cfg(test)]
    fn open(path: &Path, spool: &Path) -> Result<Self, ArchiveError> {
        let opened = super::sent::open_layout(path, spool);
        let file = opened.map_err(|source| ArchiveError::Open { path: path.to_owned(), source })?;
        Self::in_file(path, file, tempfile::tempfile_in(spool).expect("there is room"))
    }

    /// An archive that is open. If it is compressed, it is unpacked to `scratch`, which is empty. `path` is for messages.
    pub(super) fn in_file(path: &Path, mut file: File, mut scratch: File) -> Result<Self, ArchiveError> {
        let failed = |source| ArchiveError::Open { path: path.to_owned(), source };
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        let mut plain = BufReader::with_capacity(256 * 1024, &file);
        let compressed = Compression::of(&mut plain).map_err(failed)?;
        if compressed == Compression::None {
            return Self::from_file(path, file);
        }
        let mut reader = compressed.reader(plain).map_err(failed)?;
        io::copy(&mut reader, &mut scratch).map_err(failed)?;
        drop(reader);
        Self::from_file(path, scratch)
    }

    /// An uncompressed tar archive that is already open; `path` is for messages.
    pub(super) fn from_file(path: &Path, mut file: File) -> Result<Self, ArchiveError> {
        let damaged = |source| ArchiveError::Tar { path: path.to_owned(), source };
        file.seek(SeekFrom::Start(0)).map_err(|e| damaged(e.into()))?;
        let mut index = HashMap::new();
        let mut tar = TarReader::new(BufReader::new(&file));
        while let Some(entry) = tar.next().map_err(damaged)? {
            let name = String::from_utf8_lossy(&entry.path).trim_start_matches("./").to_owned();
            let link = String::from_utf8_lossy(&entry.link).into_owned();
            let member = match entry.kind {
                EntryKind::File => {
                    Member::Data { offset: entry.offset, size: entry.size, sparse: entry.sparse }
                }
                // Docker before version 25 writes a repeated layer as a link to the first.
                EntryKind::Symlink => Member::Link(beside(&name, &link)),
                EntryKind::HardLink => Member::Link(link),
                EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Directory | EntryKind::Fifo => {
                    continue;
                }
            };
            index.insert(name, member);
        }
        Ok(Self { path: path.to_owned(), file, index })
    }

    /// Finds the one image for linux/amd64, and reads everything about it except its layers.
    pub(super) fn describe(&self) -> Result<Described, ArchiveError> {
        let (references, config_name, layers) = if self.has("manifest.json") {
            self.docker_manifest()?
        } else if self.has("index.json") {
            self.oci_manifest()?
        } else {
            return Err(ArchiveError::NotAnImage { path: self.path.clone() });
        };
        let bytes = self.read(&config_name)?;
        let config: ConfigJson = self.json(&config_name, &bytes)?;
        if config.os != "linux" || config.architecture != "amd64" {
            return Err(ArchiveError::Platform { os: config.os, architecture: config.architecture });
        }
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            let (layers, diff_ids) = (layers.len(), diff_ids.len());
            return Err(ArchiveError::LayerCount { path: self.path.clone(), layers, diff_ids });
        }
        let run = config.config.unwrap_or_default();
        Ok(Described {
            id: format!("sha256:{}", hex(&Sha256::digest(&bytes))),
            references,
            created: config.created,
            config: ImageConfig {
                entrypoint: run.entrypoint.unwrap_or_default(),
                cmd: run.cmd.unwrap_or_default(),
                env: run.env.unwrap_or_default(),
                working_dir: run.working_dir.unwrap_or_default(),
                user: run.user.unwrap_or_default(),
                stop_signal: run.stop_signal,
                health_check: run.healthcheck.and_then(|check| check.check(run.shell.as_deref())),
            },
            layers: layers.into_iter().zip(diff_ids).map(|(name, diff_id)| Layer { name, diff_id }).collect(),
        })
    }

    /// A layer's tar archive, uncompressed.
    pub(super) fn layer(&self, layer: &Layer) -> Result<Box<dyn Read + '_>, ArchiveError> {
        let failed = |source| self.read_error(&layer.name, source);
        let mut reader = BufReader::with_capacity(256 * 1024, self.open_member(&layer.name)?);
        Compression::of(&mut reader).and_then(|c| c.reader(reader)).map_err(failed)
    }

    fn docker_manifest(&self) -> Result<Named, ArchiveError> {
        let name = "manifest.json";
        let images: Vec<DockerManifest> = self.json(name, &self.read(name)?)?;
        let mut found: Vec<DockerManifest> = Vec::new();
        // An image with several names may be listed several times.
        for image in images {
            let same = |known: &&mut DockerManifest| {
                (&known.config, &known.layers) == (&image.config, &image.layers)
            };
            match found.iter_mut().find(same) {
                Some(known) => {
                    known.repo_tags.get_or_insert_default().extend(image.repo_tags.unwrap_or_default());
                }
                None => found.push(image),
            }
        }
        let count = found.len();
        match found.pop() {
            Some(image) if count == 1 => {
                Ok((image.repo_tags.unwrap_or_default(), image.config, image.layers))
            }
            _ => Err(ArchiveError::Several { path: self.path.clone(), count }),
        }
    }

    /// The layout's one image. It may be listed under several names, and both directly and in an index of platforms.
    fn oci_manifest(&self) -> Result<Named, ArchiveError> {
        let index: OciIndex = self.json("index.json", &self.read("index.json")?)?;
        let mut images: Vec<(Vec<String>, OciDescriptor)> = Vec::new();
        for listed in index.manifests.into_iter().filter(|m| m.rank().is_some()) {
            // The outermost name is the one that people chose.
            let reference = listed.reference(&self.path);
            let Some((inner, image)) = self.for_us(listed)? else { continue };
            let reference = reference.or(inner);
            match images.iter_mut().find(|(_, known)| known.digest == image.digest) {
                Some((names, _)) => names.extend(reference),
                None => images.push((reference.into_iter().collect(), image)),
            }
        }
        let count = images.len();
        let (references, image) = match images.pop() {
            None => return Err(ArchiveError::NoPlatform { path: self.path.clone() }),
            Some(_) if count > 1 => return Err(ArchiveError::Several { path: self.path.clone(), count }),
            Some(one) => one,
        };
        let name = self.blob_name(&image.digest)?;
        let manifest: OciManifest = self.json(&name, &self.verified(&name, &image.digest)?)?;
        let config = self.blob_name(&manifest.config.digest)?;
        self.verified(&config, &manifest.config.digest)?;
        let layers: Result<_, _> = manifest.layers.iter().map(|l| self.blob_name(&l.digest)).collect();
        Ok((references, config, layers?))
    }

    /// The image for these machines: in nested indexes, the one that needs the lowest processor level. Also the name
    /// that it has there.
    fn for_us(
        &self,
        mut descriptor: OciDescriptor,
    ) -> Result<Option<(Option<String>, OciDescriptor)>, ArchiveError> {
        let mut reference = None;
        for _ in 0..MAX_INDEXES {
            if !descriptor.is_index() {
                return Ok(Some((reference, descriptor)));
            }
            let name = self.blob_name(&descriptor.digest)?;
            let index: OciIndex = self.json(&name, &self.verified(&name, &descriptor.digest)?)?;
            // The first of those with the lowest level.
            let fitting = index.manifests.into_iter().filter(|m| m.rank().is_some());
            let Some(least) = fitting.min_by_key(OciDescriptor::rank) else { return Ok(None) };
            reference = reference.or_else(|| least.reference(&self.path));
            descriptor = least;
        }
        Ok(None)
    }

    /// The path of a digest's blob in a layout. A digest with anything but hex digits would be a path that its author
    /// chose.
    fn blob_name(&self, digest: &str) -> Result<String, ArchiveError> {
        match digest.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Ok(format!("blobs/sha256/{hex}"))
            }
            _ => Err(ArchiveError::Missing { path: self.path.clone(), name: digest.to_owned() }),
        }
    }

    fn verified(&self, name: &str, digest: &str) -> Result<Vec<u8>, ArchiveError> {
        let bytes = self.read(name)?;
        if format!("sha256:{}", hex(&Sha256::digest(&bytes))) != digest {
            return Err(ArchiveError::Digest { path: self.path.clone(), name: name.to_owned() });
        }
        Ok(bytes)
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
        serde_json::from_slice(bytes).map_err(|source| ArchiveError::Json {
            path: self.path.clone(),
            name: name.to_owned(),
            source,
        })
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        let read = self.open_member(name)?.take(MAX_JSON + 1).read_to_end(&mut bytes);
        match read {
            Ok(_) if bytes.len() as u64 <= MAX_JSON => Ok(bytes),
            Ok(_) => Err(self.read_error(name, io::ErrorKind::FileTooLarge.into())),
            Err(source) => Err(self.read_error(name, source)),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    fn open_member(&self, name: &str) -> Result<Box<dyn Read + '_>, ArchiveError> {
        let missing = || ArchiveError::Missing { path: self.path.clone(), name: name.to_owned() };
        let member = match self.index.get(name) {
            Some(Member::Link(target)) => self.index.get(target),
            other => other,
        };
        match member {
            Some(Member::Data { offset, size, sparse }) => {
                let section = Section { file: &self.file, at: *offset, end: offset + size };
                Ok(match sparse {
                    Some(map) => Box::new(map.expand(section)),
                    None => Box::new(section),
                })
            }
            _ => Err(missing()),
        }
    }

    fn read_error(&self, name: &str, source: io::Error) -> ArchiveError {
        ArchiveError::Read { path: self.path.clone(), name: name.to_owned(), source }
    }
}

/// A section of a file, read by position, so that several can be read at once.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        let n = std::os::unix::fs::FileExt::read_at(self.file, &mut buf[..want], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// What the relative link at `name` leads to, both inside the archive.
fn beside(name: &str, link: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;
