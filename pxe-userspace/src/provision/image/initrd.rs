//! Writes initrds: cpio archives in the "newc" format (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst), compressed with zstd.
//!
//! The same trees give the same bytes: names in order, inodes numbered in sequence, one thread, fixed settings. The
//! `cpio` crate is not used because it takes names as UTF-8 and computes a file's size modulo 4 GiB; the format is a
//! page.

use std::collections::HashMap;
use std::io::{self, Read as _, Write};

use super::tree::{Content, InodeId, Kind, Tree};

/// PATH_MAX: Linux skips longer names (init/initramfs.c). It includes the final NUL.
const MAX_NAME: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    #[error(
        "{path} has {size} bytes; a file in an initrd has less than 4 GiB. Keep such data out of the image"
    )]
    TooBig { path: String, size: u64 },
    #[error("{path}: the path is longer than Linux unpacks")]
    LongName { path: String },
    #[error("writing the initrd: {0}")]
    Io(#[from] io::Error),
}

/// An archive of a few files in its root directory.
pub fn archive(files: &[(&str, &[u8])]) -> Result<Vec<u8>, InitrdError> {
    let mut initrd = Initrd::new(Vec::new(), zstd::DEFAULT_COMPRESSION_LEVEL)?;
    for (name, bytes) in files {
        initrd.file(name, bytes)?;
    }
    initrd.finish()
}

/// An archive that is being written.
pub(super) struct Initrd<W: Write> {
    out: zstd::Encoder<'static, W>,
    at: u64,
    last_inode: u32,
}

impl<W: Write> Initrd<W> {
    pub(super) fn new(out: W, level: i32) -> io::Result<Self> {
        let mut out = zstd::Encoder::new(out, level)?;
        // Linux verifies the frame's checksum, so that a corrupted transfer does not boot.
        out.include_checksum(true)?;
        Ok(Self { out, at: 0, last_inode: 0 })
    }

    /// Adds all of `tree`. Its root becomes the directory `at`, or the archive's own root if `at` is empty.
    pub(super) fn tree(&mut self, at: &str, tree: &Tree) -> Result<(), InitrdError> {
        let mut paths = tree.walk();
        if !at.is_empty() {
            for (path, _) in &mut paths {
                path.splice(0..0, [at.as_bytes(), b"/"].concat());
            }
            paths.insert(0, (at.into(), Tree::ROOT));
        }
        let mut links: HashMap<InodeId, (u32, u32)> = HashMap::new();
        for (_, id) in &paths {
            links.entry(*id).or_default().0 += 1;
        }
        let mut numbers: HashMap<InodeId, u32> = HashMap::new();
        for (path, id) in paths {
            let inode = tree.inode(id);
            let (count, written) = links.get_mut(&id).expect("every path was counted");
            *written += 1;
            // Linux recognises hard links by their inode number. It would write a symbolic link with several names
            // several times in any case.
            let linked = !matches!(inode.kind, Kind::Directory(_) | Kind::Symlink(_));
            let nlink = if linked { *count } else { 1 };
            let number = match numbers.get(&id).filter(|_| linked) {
                Some(number) => *number,
                None => self.next_inode(),
            };
            numbers.insert(id, number);
            let (data, device) = match &inode.kind {
                // The last of several hard links has the contents.
                Kind::File(content) if written == count => (Data::File(content), (0, 0)),
                Kind::Symlink(target) => (Data::Bytes(target), (0, 0)),
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    (Data::Bytes(&[]), (*major, *minor))
                }
                Kind::File(_) | Kind::Directory(_) | Kind::Fifo => (Data::Bytes(&[]), (0, 0)),
            };
            let meta = Meta {
                inode: number,
                mode: inode.file_type() | inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                nlink,
                mtime: inode.mtime,
                device,
            };
            self.entry(&path, &meta, data)?;
        }
        Ok(())
    }

    /// Adds one plain file that root owns.
    pub(super) fn file(&mut self, path: &str, bytes: &[u8]) -> Result<(), InitrdError> {
        let inode = self.next_inode();
        let meta =
            Meta { inode, mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, nlink: 1, mtime: 0, device: (0, 0) };
        self.entry(path.as_bytes(), &meta, Data::Bytes(bytes))
    }

    /// Ends the archive and the compression, and returns the writer.
    pub(super) fn finish(mut self) -> Result<W, InitrdError> {
        let meta = Meta { inode: 0, mode: 0, uid: 0, gid: 0, nlink: 1, mtime: 0, device: (0, 0) };
        self.entry(b"TRAILER!!!", &meta, Data::Bytes(&[]))?;
        Ok(self.out.finish()?)
    }

    fn next_inode(&mut self) -> u32 {
        self.last_inode += 1;
        self.last_inode
    }

    fn entry(&mut self, path: &[u8], meta: &Meta, data: Data<'_>) -> Result<(), InitrdError> {
        let shown = || path.escape_ascii().to_string();
        if path.len() >= MAX_NAME {
            return Err(InitrdError::LongName { path: shown() });
        }
        let size = data.len();
        let size = u32::try_from(size).map_err(|_| InitrdError::TooBig { path: shown(), size })?;
        let (major, minor) = meta.device;
        let name_size = path.len() as u32 + 1;
        let mut header = Vec::from(b"070701");
        // The device number of the file system and the checksum are zero, because "newc" does not use them.
        for field in [
            meta.inode, meta.mode, meta.uid, meta.gid, meta.nlink, meta.mtime, size, 0, 0, major, minor,
            name_size, 0,
        ] {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(path);
        header.push(0);
        self.put(&header)?;
        self.pad()?;
        match data {
            Data::Bytes(bytes) => self.put(bytes)?,
            Data::File(content) => {
                let copied = io::copy(&mut content.reader().take(content.len), &mut self.out)?;
                self.at += copied;
                if copied != content.len {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
        self.pad()?;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn pad(&mut self) -> io::Result<()> {
        let gap = self.at.next_multiple_of(4) - self.at;
        self.put(&[0; 3][..gap as usize])
    }
}

struct Meta {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    mtime: u32,
    device: (u32, u32),
}

enum Data<'a> {
    Bytes(&'a [u8]),
    File(&'a Content),
}

impl Data<'_> {
    fn len(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::File(content) => content.len,
        }
    }
}

#[cfg(test)]
#[path = "initrd_tests.rs"]
mod tests;
