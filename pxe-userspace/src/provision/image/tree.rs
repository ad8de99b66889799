//! A file system in memory: inodes and names in memory, file contents in a spool file on disk.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

/// The limit of symbolic links in one path, as in Linux (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Nested directories. Linux's own PATH_MAX allows hardly more.
const MAX_DEPTH: usize = 1024;

#[derive(Debug)]
pub(super) struct Tree {
    inodes: Vec<Inode>,
}

/// An inode of the tree that returned it. Two names with the same id are hard links.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct InodeId(usize);

#[derive(Clone, Debug)]
pub(super) struct Inode {
    /// Permissions with setuid, setgid and sticky, without the file type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: u32,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Directory(BTreeMap<Vec<u8>, Name>),
    File(Content),
    Symlink(Vec<u8>),
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// One name in a directory, and the layer that put it there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) inode: InodeId,
    pub(super) layer: usize,
}

/// Why a path can't be resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unresolved {
    /// There is no `name` in the directory.
    Missing {
        directory: InodeId,
        name: Vec<u8>,
    },
    NotADirectory,
    TooManyLinks,
    TooDeep,
}

impl Inode {
    pub(super) fn new(mode: u32, kind: Kind) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0, xattrs: BTreeMap::new(), kind }
    }

    pub(super) fn directory(mode: u32) -> Self {
        Self::new(mode, Kind::Directory(BTreeMap::new()))
    }

    /// The file type bits of `st_mode`.
    pub(super) fn file_type(&self) -> u32 {
        match self.kind {
            Kind::Directory(_) => libc::S_IFDIR,
            Kind::File(_) => libc::S_IFREG,
            Kind::Symlink(_) => libc::S_IFLNK,
            Kind::CharDevice { .. } => libc::S_IFCHR,
            Kind::BlockDevice { .. } => libc::S_IFBLK,
            Kind::Fifo => libc::S_IFIFO,
        }
    }
}

impl Tree {
    pub(super) const ROOT: InodeId = InodeId(0);

    pub(super) fn new() -> Self {
        Self { inodes: vec![Inode::directory(0o755)] }
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0]
    }

    pub(super) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0]
    }

    /// The names in a directory; `None` for other inodes.
    pub(super) fn names(&self, id: InodeId) -> Option<&BTreeMap<Vec<u8>, Name>> {
        match &self.inode(id).kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(super) fn names_mut(&mut self, id: InodeId) -> Option<&mut BTreeMap<Vec<u8>, Name>> {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(names) => Some(names),
            _ => None,
        }
    }

    /// Moves the tree into the directory `name` of an otherwise empty one.
    pub(super) fn below(mut self, name: &[u8]) -> Self {
        let root = std::mem::replace(&mut self.inodes[Self::ROOT.0], Inode::directory(0o755));
        let id = InodeId(self.inodes.len());
        self.inodes.push(root);
        self.link(Self::ROOT, name, id, 0);
        self
    }

    /// Adds `inode` to `directory` as `name`, and replaces what was there; a directory that replaces a directory keeps
    /// its contents.
    pub(super) fn insert(
        &mut self,
        directory: InodeId,
        name: &[u8],
        mut inode: Inode,
        layer: usize,
    ) -> InodeId {
        let old = self.names(directory).and_then(|names| names.get(name)).map(|n| n.inode);
        if let Kind::Directory(new) = &mut inode.kind
            && let Some(kept) = old.and_then(|old| self.names_mut(old))
        {
            new.append(kept);
        }
        let id = InodeId(self.inodes.len());
        self.inodes.push(inode);
        self.link(directory, name, id, layer);
        id
    }

    /// Adds one more name of an inode.
    pub(super) fn link(&mut self, directory: InodeId, name: &[u8], inode: InodeId, layer: usize) {
        if let Some(names) = self.names_mut(directory) {
            names.insert(name.to_owned(), Name { inode, layer });
        }
    }

    /// Resolves `path` from the root. Symbolic links are followed, and never lead out of the tree.
    pub(super) fn resolve<'a>(
        &self,
        path: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<InodeId, Unresolved> {
        let mut ahead: VecDeque<Vec<u8>> = path.into_iter().map(<[u8]>::to_owned).collect();
        let mut behind = Vec::new();
        let mut here = Self::ROOT;
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            let names = self.names(here).ok_or(Unresolved::NotADirectory)?;
            if name.is_empty() || name == b"." {
                continue;
            }
            if name == b".." {
                here = behind.pop().unwrap_or(Self::ROOT);
                continue;
            }
            let Some(found) = names.get(&name) else {
                return Err(Unresolved::Missing { directory: here, name });
            };
            if let Kind::Symlink(target) = &self.inode(found.inode).kind {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Unresolved::TooManyLinks);
                }
                if target.starts_with(b"/") {
                    here = Self::ROOT;
                    behind.clear();
                }
                for part in target.split(|b| *b == b'/').rev() {
                    ahead.push_front(part.to_owned());
                }
            } else {
                behind.push(here);
                here = found.inode;
                if behind.len() > MAX_DEPTH {
                    return Err(Unresolved::TooDeep);
                }
            }
        }
        Ok(here)
    }

    /// The inode at `path`, if any.
    pub(super) fn find(&self, path: &str) -> Option<InodeId> {
        self.resolve(path.as_bytes().split(|b| *b == b'/')).ok()
    }

    /// The contents of the regular file at `path`.
    pub(super) fn file(&self, path: &str) -> Option<&Content> {
        match &self.inode(self.find(path)?).kind {
            Kind::File(content) => Some(content),
            _ => None,
        }
    }

    /// Every name except the root, parents before children, siblings in byte order.
    pub(super) fn walk(&self) -> Vec<(Vec<u8>, InodeId)> {
        let mut all = Vec::new();
        let mut ahead = vec![(Vec::new(), Self::ROOT)];
        while let Some((path, id)) = ahead.pop() {
            for (name, child) in self.names(id).into_iter().flatten().rev() {
                let mut child_path: Vec<u8> = path.clone();
                if !path.is_empty() {
                    child_path.push(b'/');
                }
                child_path.extend(name);
                ahead.push((child_path, child.inode));
            }
            if id != Self::ROOT {
                all.push((path, id));
            }
        }
        all
    }

    /// SHA-256 over the tree's contents: equal trees have equal digests on any machine, whatever their layers. Times
    /// are left out, because they differ between equal builds.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut field = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        let root = std::iter::once((Vec::new(), Self::ROOT));
        for (path, id) in root.chain(self.walk()) {
            let inode = self.inode(id);
            field(&path);
            for number in [inode.file_type() | inode.mode, inode.uid, inode.gid] {
                field(&number.to_le_bytes());
            }
            match &inode.kind {
                Kind::Directory(_) | Kind::Fifo => {}
                Kind::File(content) => field(&content.sha256),
                Kind::Symlink(target) => field(target),
                Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                    field(&major.to_le_bytes());
                    field(&minor.to_le_bytes());
                }
            }
            field(&(inode.xattrs.len() as u64).to_le_bytes());
            for (name, value) in &inode.xattrs {
                field(name);
                field(value);
            }
        }
        hash.finalize().into()
    }

    /// What the tree takes in a node's memory when it is unpacked into tmpfs: whole pages for contents, and about a
    /// kilobyte of kernel structures per inode.
    pub(super) fn unpacked_size(&self) -> u64 {
        const PAGE: u64 = 4096;
        const INODE: u64 = 1024;
        let mut seen = std::collections::HashSet::new();
        self.walk()
            .into_iter()
            .filter(|(_, id)| seen.insert(*id))
            .map(|(_, id)| match &self.inode(id).kind {
                Kind::File(content) => INODE + content.len.next_multiple_of(PAGE),
                _ => INODE,
            })
            .sum()
    }
}

/// A file's bytes in a spool.
#[derive(Clone, Debug)]
pub(super) struct Content {
    spool: Arc<File>,
    offset: u64,
    pub(super) len: u64,
    pub(super) sha256: [u8; 32],
}

/// Where file contents are stored on disk between an archive and an initrd. The file has no name, so it is deleted with
/// the last [`Content`] in any case.
#[derive(Debug)]
pub(super) struct Spool {
    file: Arc<File>,
    end: u64,
}

impl Spool {
    pub(super) fn new(directory: &Path) -> io::Result<Self> {
        Ok(Self::on(tempfile::tempfile_in(directory)?))
    }

    /// A spool in a file that is open already, and empty.
    pub(super) fn on(file: File) -> Self {
        Self { file: Arc::new(file), end: 0 }
    }

    /// Stores all of `reader`.
    pub(super) fn add(&mut self, mut reader: impl Read) -> io::Result<Content> {
        let offset = self.end;
        let mut hash = Sha256::new();
        let mut buf = vec![0; 128 * 1024];
        let mut hole = false;
        loop {
            let n = match reader.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            };
            hash.update(&buf[..n]);
            // A sparse file takes no space here, either.
            hole = buf[..n].iter().all(|b| *b == 0);
            if !hole {
                self.file.write_all_at(&buf[..n], self.end)?;
            }
            self.end += n as u64;
        }
        if hole {
            self.file.set_len(self.end)?;
        }
        let sha256 = hash.finalize().into();
        Ok(Content { spool: self.file.clone(), offset, len: self.end - offset, sha256 })
    }
}

impl Content {
    /// A section of a file that does not change.
    pub(super) fn of_file(file: Arc<File>, offset: u64, len: u64) -> io::Result<Self> {
        let mut content = Self { spool: file, offset, len, sha256: [0; 32] };
        let mut hash = Sha256::new();
        io::copy(&mut content.reader(), &mut hash)?;
        content.sha256 = hash.finalize().into();
        Ok(content)
    }

    pub(super) fn reader(&self) -> impl Read {
        ContentReader { content: self.clone(), at: 0 }
    }

    /// The complete contents of a small file.
    pub(super) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader().read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

struct ContentReader {
    content: Content,
    at: u64,
}

impl Read for ContentReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.content.len - self.at).unwrap_or(usize::MAX);
        let want = buf.len().min(left);
        let n = self.content.spool.read_at(&mut buf[..want], self.content.offset + self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
