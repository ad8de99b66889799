//! The files root: a directory served read-only, and nothing outside it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::OpenError;
use crate::provision::blob::Blob;

/// A directory whose files can be opened by relative path.
///
/// The kernel resolves each path beneath the directory (openat2, Linux 5.6), so that neither
/// `..` nor a symbolic link leads out, also while somebody changes the tree under us.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory; it stays the same one when `path` is renamed or replaced later.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?;
        Ok(Self { directory })
    }

    /// Opens a regular file. `path` is relative, without `..`.
    pub fn file(&self, path: &str) -> Result<Blob, OpenError> {
        let how = OpenHow::new()
            // A FIFO somebody left in the tree must not hold the opener.
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let fd = openat2(&self.directory, path, how).map_err(|errno| match errno {
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
        assert!(matches!(root.file("../secret"), Err(OpenError::Outside)));
        assert!(matches!(root.file("sub"), Err(OpenError::Directory)));
        assert!(matches!(root.file("nothing"), Err(OpenError::NotFound)));
        assert!(matches!(root.file("sub/kernel/x"), Err(OpenError::NotFound)));
        assert!(matches!(root.file("loop"), Err(OpenError::Refused(_))));
        assert!(matches!(root.file("fifo"), Err(OpenError::Refused(_))));
    }
}
