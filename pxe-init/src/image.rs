//! The image: its description, its files as a program inside would see them, and the preparation of its
//! root for the workload.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use pxe_contract::image::Description;
use pxe_contract::settings::Settings;

use crate::say;
use crate::told;
use crate::xattr;

/// As many links as Linux follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

/// An image's root file system and what is to run in it.
#[derive(Debug)]
pub struct Image {
    pub description: Description,
    root: PathBuf,
    dir: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(
        "{path}: {source}; the image's initrd did not arrive whole, or the machine has too little memory to unpack it"
    )]
    Missing { path: PathBuf, source: io::Error },
    #[error(
        "the kernel could not unpack all of the initrd ({problem}): {}", if problem.contains("write error") {
            "the machine has too little memory for the image"
        } else {
            "it is not what the appliance sent, or the kernel had no room for it; stages = \"two\" goes another way"
        }
    )]
    Truncated { problem: String },
    #[error("{path}: {source}")]
    Invalid { path: PathBuf, source: serde_json::Error },
    #[error(
        "the image is {found}, the appliance announced {expected}: kernel and initrd belong to different boots"
    )]
    OtherDigest { found: String, expected: String },
    #[error("the image names no program: give it an ENTRYPOINT or CMD")]
    NoProgram,
    #[error("preparing the image's {what}: {source}")]
    Prepare { what: &'static str, source: io::Error },
}

impl Image {
    /// The image below `root` that `description` describes, verified against what was announced.
    pub fn open(root: &Path, description: &Path, expected: Option<&str>) -> Result<Self, ImageError> {
        let missing = |path: &Path| {
            let path = path.to_owned();
            move |source| ImageError::Missing { path, source }
        };
        let text = std::fs::read(description).map_err(missing(description))?;
        let invalid = |source| ImageError::Invalid { path: description.to_owned(), source };
        let description: Description = serde_json::from_slice(&text).map_err(invalid)?;
        if let Some(expected) = expected.filter(|e| *e != description.digest) {
            let found = description.digest.clone();
            return Err(ImageError::OtherDigest { found, expected: expected.to_owned() });
        }
        if description.argv.is_empty() {
            return Err(ImageError::NoProgram);
        }
        let dir = File::open(root).map_err(missing(root))?.into();
        Ok(Self { description, root: root.to_owned(), dir })
    }

    /// Whether the kernel unpacked the whole initrd. When memory runs out it only logs that, and starts
    /// /init all the same, with truncated files.
    pub(crate) fn check_unpacked() -> Result<(), ImageError> {
        let Ok(mut log) = File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open("/dev/kmsg")
        else {
            return Ok(());
        };
        // One read is one message; EPIPE means that older ones were overwritten meanwhile.
        let mut message = [0; 8192];
        loop {
            match log.read(&mut message) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&message[..len]);
                    if let Some((_, problem)) = text.split_once("Initramfs unpacking failed: ") {
                        let problem = problem.lines().next().unwrap_or_default().to_owned();
                        return Err(ImageError::Truncated { problem });
                    }
                }
                Err(e) if e.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                Err(_) => return Ok(()),
            }
        }
    }

    /// The root's path outside of the image.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens a path as a program inside would: links, also absolute ones, stay in the image.
    pub(crate) fn open_inside(&self, path: &str, flags: OFlag, mode: Mode) -> io::Result<OwnedFd> {
        let how =
            OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        // EAGAIN: a rename was in progress somewhere (openat2(2)).
        loop {
            match openat2(&self.dir, path, how) {
                Err(Errno::EAGAIN) => {}
                result => return Ok(result?),
            }
        }
    }

    /// Reads a text file. Invalid UTF-8 is replaced, so that one odd name does not hide the others.
    pub(crate) fn read_to_string(&self, path: &str) -> io::Result<String> {
        let mut bytes = Vec::new();
        // Otherwise opening a FIFO in its place would block.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        File::from(self.open_inside(path, flags, Mode::empty())?).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Prepares the root: extended attributes, the kernel's file systems, and the files that Docker, too, replaces in an
    /// image.
    pub(crate) fn prepare(&mut self, settings: &Settings) -> Result<(), ImageError> {
        for xattr in &self.description.xattrs {
            // A symbolic link's own attribute, never that of its target.
            let file = self.open_inside(&xattr.path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty());
            // A kernel may not know a kind of attribute; most workloads never miss it.
            if let Err(error) = file.and_then(|file| xattr::set(&file, xattr)) {
                say!("the extended attribute {} of {} is lost: {error}", xattr.name, xattr.path);
            }
        }
        // A mount of its own, so that it can become the workload's root (see workload.rs).
        let root = bind(&self.root, &self.root).and_then(|()| File::open(&self.root));
        // The old descriptor is now below that mount, and so would be a volume mounted through it.
        self.dir = root.map_err(|source| ImageError::Prepare { what: "root", source })?.into();
        for (what, mode) in [("proc", 0o555), ("sys", 0o555), ("dev", 0o755)] {
            let mounted =
                self.mount_point(what, mode).and_then(|at| bind(&Path::new("/").join(what), &at.path()));
            mounted.map_err(|source| ImageError::Prepare { what, source })?;
        }
        // No container engine does the following to an image, so the image does without if it fails.
        let fresh = self.mount_point("run", 0o755).and_then(|at| at.fresh());
        let kept = fresh.and_then(|()| self.create_dir_all("tmp", Mode::from_bits_truncate(0o1777)));
        if let Err(error) = kept {
            say!("the image's /run and /tmp stay as they are: {error}");
        }

        for (what, contents) in told::files(settings) {
            if !contents.is_empty()
                && let Err(error) = self.replace_file(what, &contents)
            {
                say!("the image's /{what} stays as it is: {error}");
            }
        }
        Ok(())
    }

    /// Creates the directory with this mode, and its missing parents; also the targets of links, which stay in the image
    /// wherever they point. Docker's runtime does the same (securejoin.MkdirAllHandle).
    pub(crate) fn create_dir_all(&self, path: &str, mode: Mode) -> io::Result<()> {
        let parts = |path: &str| path.split('/').map(str::to_owned).collect::<VecDeque<String>>();
        let mut ahead = parts(path);
        // Only directories, no links.
        let mut here: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            match part.as_str() {
                "" | "." => continue,
                ".." => drop(here.pop()),
                _ => {
                    let parent = format!("./{}", here.join("/"));
                    here.push(part);
                    let found =
                        self.open_inside(&here.join("/"), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty());
                    let found = match found {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {
                            let parent = self.open_inside(&parent, OFlag::O_DIRECTORY, Mode::empty())?;
                            let last = ahead.iter().all(|part| part.is_empty() || part == ".");
                            let mode = if last { mode } else { Mode::from_bits_truncate(0o755) };
                            mkdirat(&parent, here[here.len() - 1].as_str(), mode)?;
                            let made =
                                self.open_inside(&here.join("/"), OFlag::O_DIRECTORY, Mode::empty())?;
                            // The full mode, without this process's umask.
                            nix::sys::stat::fchmod(&made, mode)?;
                            continue;
                        }
                        found => found?,
                    };
                    match file_type(&found)? {
                        SFlag::S_IFDIR => {}
                        SFlag::S_IFLNK if links < MAX_LINKS => {
                            links += 1;
                            let target = readlinkat(&found, "")?.into_string();
                            let target = target.map_err(|_| io::Error::from(Errno::EILSEQ))?;
                            here.pop();
                            if target.starts_with('/') {
                                here.clear();
                            }
                            let mut further = parts(&target);
                            further.append(&mut ahead);
                            ahead = further;
                        }
                        SFlag::S_IFLNK => return Err(Errno::ELOOP.into()),
                        _ => return Err(Errno::ENOTDIR.into()),
                    }
                }
            }
        }
        Ok(())
    }

    /// A directory in the image's root to mount something at, created if missing.
    fn mount_point(&self, name: &str, mode: u32) -> io::Result<MountPoint> {
        self.create_dir_all(name, Mode::from_bits_truncate(mode))?;
        let own = self.open_inside(name, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
        let dir = self.open_inside(name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
        let (at, root) = (fstat(&dir)?, fstat(&self.dir)?);
        if (at.st_dev, at.st_ino) == (root.st_dev, root.st_ino) {
            return Err(io::Error::other("it is a link to the root directory"));
        }
        Ok(MountPoint { dir, is_link: file_type(&own)? == SFlag::S_IFLNK })
    }

    /// Replaces a file, or a link in its place (to systemd-resolved's stub).
    fn replace_file(&self, path: &str, contents: &str) -> io::Result<()> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        self.create_dir_all(dir, Mode::from_bits_truncate(0o755))?;
        let dir = self.open_inside(dir, OFlag::O_DIRECTORY, Mode::empty())?;
        match unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
        let file = self.open_inside(path, flags, Mode::from_bits_truncate(0o644))?;
        File::from(file).write_all(contents.as_bytes())
    }
}

struct MountPoint {
    dir: OwnedFd,
    is_link: bool,
}

impl MountPoint {
    /// By its descriptor, because a path would follow an image's absolute links out of it.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    /// Mounts an empty file system, but not over a directory with contents that the image only links to.
    fn fresh(&self) -> io::Result<()> {
        if self.is_link && std::fs::read_dir(self.path())?.next().is_some() {
            return Ok(());
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        Ok(mount(Some("tmpfs"), &self.path(), Some("tmpfs"), flags, Some("mode=0755"))?)
    }
}

fn file_type(file: &OwnedFd) -> io::Result<SFlag> {
    Ok(SFlag::from_bits_truncate(fstat(file)?.st_mode & SFlag::S_IFMT.bits()))
}

fn bind(from: &Path, to: &Path) -> io::Result<()> {
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn image(json: &str) -> (tempfile::TempDir, Result<Image, ImageError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("image")).unwrap();
        fs::write(dir.path().join("image.json"), json).unwrap();
        let image = Image::open(&dir.path().join("image"), &dir.path().join("image.json"), Some("sha256:aa"));
        (dir, image)
    }

    #[test]
    fn the_description_is_read_and_verified() {
        let (_dir, image) = image(
            r#"{"reference":"x:1","id":"sha256:1","digest":"sha256:aa","argv":["/x"],"stop-signal":"SIGINT"}"#,
        );
        let description = image.unwrap().description;
        assert_eq!((description.argv, description.stop_signal), (vec!["/x".into()], Some("SIGINT".into())));

        let (_dir, other) = self::image(r#"{"digest":"sha256:bb","argv":["/x"]}"#);
        assert!(matches!(other, Err(ImageError::OtherDigest { .. })));
        let (_dir, empty) = self::image(r#"{"digest":"sha256:aa"}"#);
        assert!(matches!(empty, Err(ImageError::NoProgram)));
        let (_dir, broken) = self::image("{");
        assert!(matches!(broken, Err(ImageError::Invalid { .. })));
    }

    #[test]
    fn links_stay_inside_and_files_replace_them() {
        let (dir, image) = image(r#"{"digest":"sha256:aa","argv":["/x"]}"#);
        let image = image.unwrap();
        let root = dir.path().join("image");
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        fs::create_dir(root.join("etc")).unwrap();
        symlink(&outside, root.join("etc/resolv.conf")).unwrap();
        symlink("/etc", root.join("abs")).unwrap();

        image.replace_file("abs/resolv.conf", "nameserver 10.0.0.1\n").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
        assert_eq!(image.read_to_string("/etc/resolv.conf").unwrap(), "nameserver 10.0.0.1\n");
        assert!(image.read_to_string("../outside").is_err());

        // Dangling links: absolute, relative, out of the image, and chained.
        symlink("/var/far/tmp", root.join("dangling")).unwrap();
        symlink("../../../up/./there", root.join("out")).unwrap();
        symlink("out", root.join("chain")).unwrap();
        symlink("../usr/etc", root.join("var-etc")).unwrap();
        for (path, made) in [
            ("dangling", "var/far/tmp"),
            ("chain/x", "up/there/x"),
            ("/dangling/../y", "var/far/y"),
            ("var-etc//a/.", "usr/etc/a"),
        ] {
            image.create_dir_all(path, Mode::from_bits_truncate(0o700)).unwrap();
            assert!(root.join(made).is_dir(), "{made}");
        }
        assert_eq!(fs::metadata(root.join("var/far")).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(fs::metadata(root.join("var/far/tmp")).unwrap().permissions().mode() & 0o7777, 0o700);
        assert!(!dir.path().join("up").exists());
        symlink("b", root.join("a")).unwrap();
        symlink("a", root.join("b")).unwrap();
        symlink("/etc/resolv.conf", root.join("to-file")).unwrap();
        for (path, errno) in
            [("a/x", Errno::ELOOP), ("etc/resolv.conf", Errno::ENOTDIR), ("to-file/x", Errno::ENOTDIR)]
        {
            let error = image.create_dir_all(path, Mode::from_bits_truncate(0o755)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(errno as i32), "{path}: {error}");
        }

        image.create_dir_all("tmp/a", Mode::from_bits_truncate(0o1777)).unwrap();
        let mode = fs::metadata(root.join("tmp/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o1777);
    }
}
