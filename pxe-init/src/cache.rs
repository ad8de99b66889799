//! The cache of images on a disk of the node: on the ext4 file system with the label `bridgehead-cache`, below
//! `bridgehead/`, named by their SHA-256. They are not fetched again; the least recently used are deleted to make room.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::statvfs;
use pxe_contract::settings::Stage2;

use crate::fetch;
use crate::modules::{LoadError, Modules};
use crate::say;
use crate::stage2::mount_new;

/// `mkfs.ext4 -L bridgehead-cache /dev/…` turns a disk or partition into a cache.
const LABEL: &[u8; 16] = b"bridgehead-cache";
const AT: &str = "/stage2/cache";
const MOUNT_FLAGS: MsFlags =
    MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NOATIME);
/// Left free beside an image: file systems slow down when they are full.
const SPARE: u64 = 16 << 20;

/// The file system, mounted.
pub(crate) struct Cache {
    disk: String,
    directory: PathBuf,
}

/// Another image, which may have many of the same blocks.
pub(crate) struct Other {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
}

/// An image that is being written.
pub(crate) struct Part {
    pub(crate) file: File,
    path: PathBuf,
    name: PathBuf,
}

impl Cache {
    /// Looks for the file system on all disks. If it is faulty, that is logged, and nothing is cached.
    pub(crate) fn find(modules: Option<&mut Modules>) -> Option<Self> {
        let mut modules = modules;
        if let Some(modules) = &mut modules {
            modules.load_for_disks();
        }
        let disk = disks(Path::new("/sys/class/block"))
            .into_iter()
            .find(|disk| File::open(Path::new("/dev").join(disk)).is_ok_and(is_labelled))?;
        if let Some(Err(error @ LoadError::Refused { .. })) = modules.map(|m| m.load_by_alias("ext4")) {
            say!("{error}");
        }
        let mounted = mount_new(Some(&format!("/dev/{disk}")), AT, "ext4", MOUNT_FLAGS, None);
        let directory = Path::new(AT).join("bridgehead");
        match mounted.and_then(|()| fs::create_dir_all(&directory)) {
            Ok(()) => Some(Self { disk, directory }),
            Err(error) => {
                say!("images can't be kept on {disk}: {error}");
                None
            }
        }
    }

    pub(crate) fn disk(&self) -> &str {
        &self.disk
    }

    /// The image, if it is cached and intact.
    pub(crate) fn get(&self, wanted: &Stage2) -> Option<PathBuf> {
        let path = self.directory.join(&wanted.sha256);
        let file = File::options().read(true).write(true).open(&path).ok()?;
        let size = file.metadata().ok()?.len();
        if size == wanted.size && fetch::sha256(&file).is_ok_and(|found| found == wanted.sha256) {
            // The modification time is the time of the last use.
            let _ = file.set_modified(SystemTime::now());
            return Some(path);
        }
        say!("the image on {} is damaged, and removed", self.disk);
        let _ = fs::remove_file(path);
        None
    }

    /// The other images, the most recently used first.
    pub(crate) fn others(&self) -> Vec<Other> {
        let mut others: Vec<(SystemTime, Other)> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_none())
            .filter_map(|path| {
                let file = File::open(&path).ok()?;
                Some((file.metadata().ok()?.modified().ok()?, Other { path, file }))
            })
            .collect();
        others.sort_by(|(a, _), (b, _)| b.cmp(a));
        others.into_iter().map(|(_, other)| other).collect()
    }

    /// Removes the oldest images until there is room for `wanted`, and begins to write it.
    pub(crate) fn make_room(&self, wanted: &Stage2) -> Option<Part> {
        let kept = || -> io::Result<Option<Part>> {
            let mut kept = Vec::new();
            for entry in fs::read_dir(&self.directory)? {
                let (path, meta) = entry.map(|entry| (entry.path(), entry.metadata()))?;
                let meta = meta?;
                if path.extension().is_some_and(|e| e == PART) {
                    // Left by a power cut.
                    fs::remove_file(path)?;
                } else {
                    kept.push(Kept { path, size: meta.len(), used: meta.modified()? });
                }
            }
            let stat = statvfs(&self.directory)?;
            let free = stat.blocks_free() * stat.fragment_size();
            let Some(old) = in_the_way(kept, free, wanted.size + SPARE) else {
                say!("{} is too small to keep this image", self.disk);
                return Ok(None);
            };
            for Kept { path, .. } in old {
                say!("{} makes room on {}", path.display(), self.disk);
                fs::remove_file(path)?;
            }
            let name = self.directory.join(&wanted.sha256);
            let path = name.with_extension(PART);
            let file = File::create_new(&path)?;
            Ok(Some(Part { file, path, name }))
        };
        kept().unwrap_or_else(|error| {
            say!("the image can't be kept on {}: {error}", self.disk);
            None
        })
    }

    /// Makes the file system read-only, so that a node that loses power leaves it clean.
    pub(crate) fn settle(&self) {
        let remount = MOUNT_FLAGS | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        if let Err(error) = mount(None::<&str>, AT, None::<&str>, remount, None::<&str>) {
            say!("{} stays writable: {error}", self.disk);
        }
    }
}

const PART: &str = "part";

impl Part {
    /// Gives the image its name, durably: contents first, then the directory.
    pub(crate) fn keep(self) -> io::Result<PathBuf> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.name)?;
        if let Some(directory) = self.name.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(self.name)
    }
}

/// A cached image.
#[derive(Debug, PartialEq)]
struct Kept {
    path: PathBuf,
    size: u64,
    used: SystemTime,
}

/// Which images to delete, oldest first, for `needed` bytes; `None` if even all would not be enough.
fn in_the_way(mut kept: Vec<Kept>, mut free: u64, needed: u64) -> Option<Vec<Kept>> {
    kept.sort_by(|a, b| (a.used, &a.path).cmp(&(b.used, &b.path)));
    let mut old = Vec::new();
    let mut kept = kept.into_iter();
    while free < needed {
        let oldest = kept.next()?;
        free += oldest.size;
        old.push(oldest);
    }
    Some(old)
}

/// Disks and partitions that can hold a file system.
fn disks(class: &Path) -> Vec<String> {
    let names = fs::read_dir(class).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    // Not memory, files, or drives whose medium would have to spin up.
    names.retain(|name| ["loop", "ram", "zram", "sr", "fd"].iter().all(|other| !name.starts_with(other)));
    names.sort();
    names
}

/// Whether this is an ext4 file system with the label (fs/ext4/ext4.h: `s_magic`, `s_volume_name`).
fn is_labelled(mut disk: File) -> bool {
    let mut superblock = [0; 0x88];
    let read = disk.seek(SeekFrom::Start(1024)).and_then(|_| disk.read_exact(&mut superblock));
    read.is_ok() && superblock[0x38..0x3a] == [0x53, 0xef] && superblock[0x78..0x88] == *LABEL
}

#[cfg(test)]
#[path = "cache_tests.rs"]
pub(crate) mod tests;
