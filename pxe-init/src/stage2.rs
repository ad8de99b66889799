//! Stage 2: the image's root file system as one SquashFS, fetched from the appliance or found on a disk of the node,
//! and mounted as the lower layer of an overlay whose upper layer is in memory.
//!
//! ```text
//! /stage2/memory/DIGEST, /stage2/cache/…   the SquashFS, in memory or on a disk
//! /stage2/packed                           it, mounted: image.json and image/
//! /stage2/layer                            a tmpfs
//! /image                                   both as one
//! ```

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::mount::{MsFlags, mount as mount_at};
use pxe_contract::paths;
use pxe_contract::settings::Stage2;

use crate::appliance::Appliance;
use crate::cache::{Cache, Other};
use crate::carousel::{self, Came as Fetched};
use crate::fetch::{self, FetchError, Remote};
use crate::modules::{LoadError, Modules};
use crate::say;
use crate::steps::Steps;
use crate::system;

/// Where the image's root is, in one stage or in two.
pub(crate) const ROOT: &str = paths::file::IMAGE;
/// The image's description, if it comes as stage 2.
pub(crate) const DESCRIPTION: &str = "/stage2/packed/image.json";

/// How the image was obtained, for the timeline.
#[derive(Debug)]
pub(crate) struct Came {
    pub(crate) how: String,
    /// Bytes that were fetched, and in what time.
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Stage2Error {
    #[error("bridgehead.stage2= without bridgehead.url=: there is no appliance to fetch the image from")]
    NoAppliance,
    #[error(
        "the image needs {} MiB of memory, {} MiB of them to keep it packed, and {} MiB are free: use a smaller image \
         or more memory, or give the machine a disk to keep it on", mib(.size + WORKING), mib(*.size), mib(*.free)
    )]
    Memory { size: u64, free: u64 },
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{action}: {source}")]
    Io { action: &'static str, source: io::Error },
}

/// The least memory to leave for the workload and the kernel's page cache.
const WORKING: u64 = 32 << 20;

/// Loads the modules for mounting, and the drivers of disks, while the network comes up: a SATA controller takes a second
/// to find that no disk is there.
pub(crate) fn prepare() -> JoinHandle<Option<Modules>> {
    std::thread::spawn(|| {
        let mut modules = Modules::open(Path::new("/")).ok()?;
        for module in pxe_contract::modules::STAGE2 {
            match modules.load_by_alias(module) {
                // It is built in, or mounting will report what is missing.
                Ok(()) | Err(LoadError::Unknown(_)) => {}
                Err(error) => say!("{error}"),
            }
        }
        modules.load_for_disks();
        Some(modules)
    })
}

/// Brings the image to [`ROOT`].
pub(crate) fn mount(
    wanted: &Stage2,
    appliance: Option<&Appliance>,
    prepared: JoinHandle<Option<Modules>>,
    steps: &mut Steps,
) -> Result<Came, Stage2Error> {
    let mut modules = prepared.join().unwrap_or_default();
    steps.done("disks");
    let (file, came) = obtain(wanted, appliance, modules.as_mut())?;
    steps.done("image");
    let failed = |action| move |source| Stage2Error::Io { action, source };
    let device = loop_device(&file).map_err(failed("making a loop device of the image"))?;
    mount_new(device.to_str(), "/stage2/packed", "squashfs", MsFlags::MS_RDONLY, None)
        .map_err(failed("mounting the image's SquashFS"))?;
    layer().map_err(failed("mounting a layer in memory over the image"))?;
    Ok(came)
}

/// The SquashFS, verified: from the disk that has it, else from the appliance.
fn obtain(
    wanted: &Stage2,
    appliance: Option<&Appliance>,
    modules: Option<&mut Modules>,
) -> Result<(PathBuf, Came), Stage2Error> {
    let cache = Cache::find(modules);
    if let Some(cache) = &cache
        && let Some(file) = cache.get(wanted)
    {
        let how = format!("found on {}", cache.disk());
        cache.settle();
        return Ok((file, Came { how, bytes: 0, took: Duration::ZERO }));
    }
    let server = appliance.cloned().ok_or(Stage2Error::NoAppliance)?;
    let path = paths::stage2(&wanted.sha256);
    let remote = Remote { server, path, size: wanted.size, sha256: wanted.sha256.clone() };
    let kept = cache.as_ref().and_then(|cache| Some((cache, cache.make_room(wanted)?)));
    let (file, fetched, place) = match kept {
        Some((cache, mut part)) => {
            let fetched = fetch_changes(&remote, cache, &mut part.file)?;
            let file = part.keep().map_err(FetchError::Keep)?;
            cache.settle();
            (file, fetched, format!(", kept on {}", cache.disk()))
        }
        None => {
            let path = memory(wanted)?;
            let failed = |source| Stage2Error::Io { action: "making a file in memory", source };
            let mut file = File::create_new(&path).map_err(failed)?;
            (path, carousel::fetch(&remote, &mut file)?, String::new())
        }
    };
    let how = format!("{}{place}", how(fetched, wanted.size));
    Ok((file, Came { how, bytes: fetched.bytes, took: fetched.took }))
}

/// Fetches only what the images on the disk do not have. If those are damaged, they are deleted, and everything is
/// fetched.
fn fetch_changes(remote: &Remote, cache: &Cache, into: &mut File) -> Result<Fetched, FetchError> {
    let (paths, others): (Vec<_>, Vec<_>) =
        cache.others().into_iter().map(|Other { path, file }| (path, file)).unzip();
    if others.is_empty() {
        return carousel::fetch(remote, into);
    }
    match fetch::fetch(remote, &others, into) {
        Err(error @ (FetchError::Digest { .. } | FetchError::Older(_))) => {
            let problem = match error {
                FetchError::Digest { .. } => {
                    "put together with them, the image has another SHA-256".to_owned()
                }
                other => other.to_string(),
            };
            say!("the older images on {} are of no use, and removed: {problem}", cache.disk());
            for path in paths {
                let _ = fs::remove_file(path);
            }
            into.set_len(0).map_err(FetchError::Keep)?;
            carousel::fetch(remote, into)
        }
        result => result.map(Fetched::from),
    }
}

/// `18.2 MB of 600.0 MB fetched, the rest was in the cache, after the link was lost once`
fn how(Fetched { bytes, resumed, by_multicast, .. }: Fetched, size: u64) -> String {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let fetched = if bytes < size {
        let (bytes, size) = (megabytes(bytes), megabytes(size));
        format!("{bytes:.1} MB of {size:.1} MB fetched, the rest was in the cache")
    } else if by_multicast > 0 {
        format!("fetched, {:.1} of {:.1} MB by multicast", megabytes(by_multicast), megabytes(size))
    } else {
        "fetched".to_owned()
    };
    match resumed {
        0 => fetched,
        1 => format!("{fetched}, after the link was lost once"),
        n => format!("{fetched}, after the link was lost {n} times"),
    }
}

/// A path in memory for the packed image, if there is room.
fn memory(wanted: &Stage2) -> Result<PathBuf, Stage2Error> {
    let free = available(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    if let Some(free) = free.filter(|free| wanted.size + WORKING > *free) {
        return Err(Stage2Error::Memory { size: wanted.size, free });
    }
    let size = format!("mode=0700,size={}", wanted.size.next_multiple_of(4096));
    let at = Path::new("/stage2/memory");
    mount_new(Some("tmpfs"), "/stage2/memory", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(&size))
        .map_err(|source| Stage2Error::Io { action: "making room in memory", source })?;
    Ok(at.join(&wanted.sha256))
}

/// `MemAvailable:    123 kB`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

/// A loop device that reads from `file`.
fn loop_device(file: &Path) -> io::Result<PathBuf> {
    let number = system::free_loop_device(&File::open("/dev/loop-control")?)?;
    let path = PathBuf::from(format!("/dev/loop{number}"));
    system::attach_loop_device(&File::open(&path)?, &File::open(file)?)?;
    Ok(path)
}

/// Mounts a writable layer over the image. Its root is the workload's, and has the owner and mode of the
/// image's root.
fn layer() -> io::Result<()> {
    let below = Path::new("/stage2/packed/image");
    let (upper, work) = (Path::new("/stage2/layer/upper"), Path::new("/stage2/layer/work"));
    mount_new(Some("tmpfs"), "/stage2/layer", "tmpfs", MsFlags::empty(), Some("mode=0755"))?;
    fs::create_dir(upper)?;
    fs::create_dir(work)?;
    let root = fs::metadata(below)?;
    chown(upper, Some(root.uid()), Some(root.gid()))?;
    fs::set_permissions(upper, Permissions::from_mode(root.mode() & 0o7777))?;
    let options = "lowerdir=/stage2/packed/image,upperdir=/stage2/layer/upper,workdir=/stage2/layer/work";
    mount_new(Some("overlay"), ROOT, "overlay", MsFlags::empty(), Some(options))
}

pub(crate) fn mount_new(
    what: Option<&str>,
    at: &str,
    kind: &str,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    fs::create_dir_all(at)?;
    Ok(mount_at(what, at, Some(kind), flags, options)?)
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::cache;
    use crate::fetch::tests::{Httpd, two_images};

    #[test]
    fn free_memory_is_what_the_kernel_says_is_available() {
        let meminfo = "MemTotal:        1000 kB\nMemFree:            1 kB\nMemAvailable:     512 kB\n";
        assert_eq!(available(meminfo), Some(512 << 10));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn how_much_was_fetched_is_said() {
        let fetched = |bytes, resumed| Fetched { bytes, took: Duration::ZERO, resumed, by_multicast: 0 };
        assert_eq!(how(fetched(600_000_000, 0), 600_000_000), "fetched");
        assert_eq!(
            how(Fetched { by_multicast: 590_000_000, ..fetched(600_000_000, 0) }, 600_000_000),
            "fetched, 590.0 of 600.0 MB by multicast"
        );
        assert_eq!(
            how(fetched(18_240_000, 2), 600_000_000),
            "18.2 MB of 600.0 MB fetched, the rest was in the cache, after the link was lost 2 times"
        );
    }

    #[test]
    fn older_images_that_are_damaged_go_and_all_is_fetched() {
        let (mut old, new) = two_images();
        let (root, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("image"), &new).unwrap();
        let httpd = Httpd::start(root.path());
        let (size, sha256) = (new.len() as u64, fetch::sha256(&new[..]).unwrap());
        let remote = Remote { server: Appliance::plain(httpd.address), path: "/image".into(), size, sha256 };
        let older = disk.path().join("older");
        for damaged in [false, true] {
            old[30 * 50_000] ^= u8::from(damaged);
            fs::write(&older, &old).unwrap();
            let into = disk.path().join("new.part");
            let fetched =
                fetch_changes(&remote, &cache(disk.path()), &mut File::create(&into).unwrap()).unwrap();
            assert!(fs::read(into).unwrap() == new);
            assert_eq!((fetched.bytes == size, older.exists()), (damaged, !damaged), "{fetched:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said_in_mebibytes() {
        let words = Stage2Error::Memory { size: 600 << 20, free: 500 << 20 }.to_string();
        assert!(words.starts_with("the image needs 632 MiB of memory, 600 MiB of them"), "{words}");
    }
}
