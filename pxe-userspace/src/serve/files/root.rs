//! The files root: a directory that is served read-only, and nothing outside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::OpenError;
use crate::provision::blob::Blob;

/// A directory whose files can be opened by relative path.
///
/// The kernel resolves each path beneath the directory (openat2, Linux 5.6). So neither `..` nor a symbolic link leads
/// out, even if somebody changes the tree at the same time.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory. The handle stays the same if `path` is renamed or replaced later.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
        Ok(Self { directory })
    }

    /// Opens a regular file. `path` is relative, without `..`.
    ///
    /// Deployment tools write absolute symbolic links. One is followed if it leads to a file beneath the directory,
    /// either as a path of the host or, as `tftpd -s` interprets it, as a path below the directory.
    pub fn file(&self, path: &str) -> Result<Blob, OpenError> {
        let fd = match self.resolve(Path::new(path), ResolveFlag::RESOLVE_BENEATH) {
            Err(Errno::EXDEV) => self.resolve_absolute(path),
            opened => opened,
        };
        let fd = fd.map_err(|errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ENAMETOOLONG | Errno::EINVAL => OpenError::NotFound,
            Errno::EXDEV => OpenError::Outside,
            Errno::ELOOP => OpenError::Refused("too many symbolic links".into()),
            Errno::EACCES | Errno::EPERM => OpenError::Refused("permission denied".into()),
            errno => OpenError::Io(errno.into()),
        })?;
        Blob::from_file(File::from(fd)).map_err(|error| match error.kind() {
            io::ErrorKind::IsADirectory => OpenError::Directory,
            io::ErrorKind::InvalidInput => OpenError::Refused("not a regular file".into()),
            _ => OpenError::Io(error),
        })
    }

    /// The same for a link that led out of the directory, or seemed to.
    fn resolve_absolute(&self, path: &str) -> nix::Result<OwnedFd> {
        // The directory's present path.
        let link = format!("/proc/self/fd/{}", self.directory.as_raw_fd());
        let inside = std::fs::read_link(link).ok().and_then(|root| {
            let target = root.join(path).canonicalize().ok()?;
            Some(target.strip_prefix(&root).ok()?.to_owned())
        });
        match inside {
            // The tree may have changed since, so the kernel decides.
            Some(inside) => self.resolve(&inside, ResolveFlag::RESOLVE_BENEATH),
            None => {
                self.resolve(Path::new(path), ResolveFlag::RESOLVE_IN_ROOT).map_err(|errno| match errno {
                    Errno::ENOENT => Errno::EXDEV,
                    errno => errno,
                })
            }
        }
    }

    fn resolve(&self, path: &Path, within: ResolveFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            // A FIFO that somebody left in the tree must not block the opener.
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(within | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.directory, path, how)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_regular_files_beneath_the_root_open() {
        let dir = tempfile::tempdir().unwrap();
        let root_path = dir.path().join("root");
        std::fs::create_dir_all(root_path.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "no").unwrap();
        std::fs::write(root_path.join("sub/kernel"), "yes").unwrap();
        symlink("sub/kernel", root_path.join("inside")).unwrap();
        symlink("../secret", root_path.join("outside")).unwrap();
        symlink("/etc/passwd", root_path.join("absolute")).unwrap();
        symlink("loop", root_path.join("loop")).unwrap();
        nix::unistd::mkfifo(&root_path.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = Root::open(&root_path).unwrap();

        assert_eq!(root.file("sub/kernel").unwrap().len(), 3);
        assert_eq!(root.file("inside").unwrap().len(), 3);
        assert!(matches!(root.file("outside"), Err(OpenError::Outside)));
        assert!(matches!(root.file("absolute"), Err(OpenError::Outside)));
        // `path` must have no `..`, because RESOLVE_IN_ROOT would let it lead to the root.
        assert!(matches!(root.file("../secret"), Err(OpenError::Outside)));
        assert!(matches!(root.file("sub"), Err(OpenError::Directory)));
        assert!(matches!(root.file("nothing"), Err(OpenError::NotFound)));
        assert!(matches!(root.file("sub/kernel/x"), Err(OpenError::NotFound)));
        assert!(matches!(root.file("loop"), Err(OpenError::Refused(_))));
        assert!(matches!(root.file("fifo"), Err(OpenError::Refused(_))));
    }

    #[test]
    fn absolute_links_are_followed_where_they_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let (root_path, beside) = (dir.path().join("root"), dir.path().join("root2"));
        std::fs::create_dir_all(root_path.join("v2")).unwrap();
        std::fs::create_dir_all(&beside).unwrap();
        std::fs::write(root_path.join("v2/kernel"), "yes").unwrap();
        std::fs::write(beside.join("kernel"), "no").unwrap();
        symlink(root_path.join("v2/kernel"), root_path.join("host")).unwrap();
        symlink(root_path.join("v2"), root_path.join("current")).unwrap();
        symlink("/v2/kernel", root_path.join("own")).unwrap();
        symlink(beside.join("kernel"), root_path.join("beside")).unwrap();
        symlink(root_path.join("v2/../../root2/kernel"), root_path.join("winding")).unwrap();
        let root = Root::open(&root_path).unwrap();
        for inside in ["host", "current/kernel", "own"] {
            assert_eq!(root.file(inside).unwrap().len(), 3, "{inside}");
        }
        for outside in ["beside", "winding", "current/../../root2/kernel"] {
            assert!(matches!(root.file(outside), Err(OpenError::Outside)), "{outside}");
        }
        // If the directory is moved, absolute links with the host's paths still lead where they say.
        std::fs::rename(&root_path, dir.path().join("moved")).unwrap();
        assert!(matches!(root.file("host"), Err(OpenError::Outside)));
        assert_eq!(root.file("own").unwrap().len(), 3);
    }
}
