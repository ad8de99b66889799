//! Directories that are sent to the daemon as a tar archive. The caller reads the files, with the caller's permissions.
//! Only a confined child reads what was sent ([`super::child`]), into memory.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::kernels::{MODULES, is_kernel};

/// Writes the parts of a kernel's directory that are looked for: the kernel's file, there and in `boot`, and all
/// modules.
pub fn pack_kernel(directory: &Path, out: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    for place in ["", "boot"] {
        for entry in entries(&directory.join(place))? {
            let name = entry.file_name().unwrap_or_default().to_owned();
            if is_kernel(&name.to_string_lossy()) && entry.is_file() {
                file(&mut archive, &entry, &Path::new(place).join(name))?;
            }
        }
    }
    for place in MODULES {
        for version in entries(&directory.join(place))?.iter().filter(|entry| entry.join("kernel").is_dir()) {
            let name = Path::new(place).join(version.file_name().unwrap_or_default());
            below(&mut archive, version, &name)?;
        }
    }
    archive.into_inner()?.flush()
}

/// Writes an OCI layout, or the unpacked directory of a `docker save` archive.
pub fn pack_layout(directory: &Path, out: impl Write) -> io::Result<()> {
    if !["index.json", "manifest.json"].iter().any(|name| directory.join(name).is_file()) {
        return Err(io::Error::other("it has no index.json, as an OCI layout has, and no manifest.json"));
    }
    let mut archive = tar::Builder::new(out);
    below(&mut archive, directory, Path::new(""))?;
    archive.into_inner()?.flush()
}

/// Adds every file below a directory. A link to a file is followed; one to a directory may lead in a circle, and is
/// left out.
fn below(archive: &mut tar::Builder<impl Write>, directory: &Path, name: &Path) -> io::Result<()> {
    for entry in entries(directory)? {
        let name = name.join(entry.file_name().unwrap_or_default());
        let own = entry.symlink_metadata()?.file_type();
        if own.is_dir() {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            header.set_mode(0o755);
            archive.append_data(&mut header, &name, io::empty())?;
            below(archive, &entry, &name)?;
        } else if entry.is_file() {
            file(archive, &entry, &name)?;
        }
    }
    Ok(())
}

fn file(archive: &mut tar::Builder<impl Write>, path: &Path, name: &Path) -> io::Result<()> {
    let with_path = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let opened = File::open(path).map_err(with_path)?;
    let mut header = tar::Header::new_gnu();
    header.set_size(opened.metadata().map_err(with_path)?.len());
    header.set_mode(0o644);
    // A file that grows meanwhile is cut at the length that the header states.
    let length = header.size()?;
    archive.append_data(&mut header, name, io::Read::take(opened, length)).map_err(with_path)
}

/// Sorted; empty if there is no such directory.
fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let found = match directory.read_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))?,
    };
    let mut found = found.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

/// Opens an image's archive. A directory becomes one, in a file without a name in `work`.
pub(super) fn open_layout(path: &Path, work: &Path) -> io::Result<File> {
    open(path, work, |out| pack_layout(path, out))
}

/// The same for a kernel's package or directory.
pub(super) fn open_kernel(path: &Path, work: &Path) -> io::Result<File> {
    open(path, work, |out| pack_kernel(path, out))
}

fn open(path: &Path, work: &Path, pack: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    if !path.is_dir() {
        return File::open(path);
    }
    let mut out = io::BufWriter::with_capacity(256 * 1024, tempfile::tempfile_in(work)?);
    pack(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::extract::{self, ExtractError};
    use super::super::tree::{Kind, Spool, Tree};
    use super::*;

    /// What arrives, as the daemon's child reads it.
    fn sent(pack: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> Result<Tree, ExtractError> {
        let mut archive = Vec::new();
        pack(&mut archive).unwrap();
        let mut tree = Tree::new();
        extract::apply(&mut tree, &mut Spool::new(&std::env::temp_dir()).unwrap(), 0, &archive[..])?;
        Ok(tree)
    }

    fn files(tree: &Tree) -> Vec<String> {
        let is_file = |id| matches!(tree.inode(id).kind, Kind::File(_));
        let found = tree.walk().into_iter().filter(|(_, id)| is_file(*id));
        found.map(|(path, _)| String::from_utf8(path).unwrap()).collect()
    }

    #[test]
    fn a_kernels_directory_arrives_with_what_is_a_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        };
        let long = format!("usr/lib/modules/6.9/kernel/{}/a.ko", "x".repeat(150));
        for name in
            ["boot/vmlinuz-6.9", "home/secret", "usr/lib/modules/6.9/modules.dep", &long, "vmlinuz.old"]
        {
            write(name);
        }
        symlink("usr/lib", dir.path().join("lib")).unwrap();
        symlink("/", dir.path().join("usr/lib/modules/6.9/build")).unwrap();
        symlink("modules.dep", dir.path().join("usr/lib/modules/6.9/modules.link")).unwrap();
        let there = sent(|out| pack_kernel(dir.path(), out)).unwrap();
        let mut expected = vec!["boot/vmlinuz-6.9".to_owned()];
        for place in ["lib", "usr/lib"] {
            expected.push(format!("{place}/modules/6.9/modules.dep"));
            expected.push(format!("{place}/modules/6.9/modules.link"));
            expected.push(long.replacen("usr/lib", place, 1));
        }
        expected.sort();
        assert_eq!(files(&there), expected);
        let link = there.file("lib/modules/6.9/modules.link").unwrap().read().unwrap();
        assert_eq!(link, b"usr/lib/modules/6.9/modules.dep");
    }

    #[test]
    fn only_a_layout_is_sent_as_one() {
        let dir = tempfile::tempdir().unwrap();
        assert!(pack_layout(dir.path(), io::sink()).unwrap_err().to_string().contains("index.json"));
        fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
        fs::write(dir.path().join("index.json"), "{}").unwrap();
        fs::write(dir.path().join("blobs/sha256/aa"), "x").unwrap();
        let there = sent(|out| pack_layout(dir.path(), out)).unwrap();
        assert_eq!(files(&there), ["blobs/sha256/aa", "index.json"]);
    }

    #[test]
    fn nothing_leads_out() {
        let with = |name: &[u8], kind, link: &str| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_size(if kind == tar::EntryType::Regular { 1 } else { 0 });
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            header.as_mut_bytes()[..name.len()].copy_from_slice(name);
            header.set_cksum();
            header
        };
        let one = |name: &str| {
            sent(|out| {
                let mut archive = tar::Builder::new(out);
                archive.append(&with(name.as_bytes(), tar::EntryType::Regular, ""), &b"x"[..])?;
                archive.finish()
            })
        };
        for name in ["../evil", "a/../../evil"] {
            assert!(matches!(one(name), Err(ExtractError::Outside { .. })), "{name}");
        }
        for (name, inside) in [("/etc/evil", &["etc/evil"][..]), ("a/../b", &["b"]), (".", &[])] {
            assert_eq!(files(&one(name).unwrap()), inside, "{name}");
        }
        // A link, followed by a file whose path goes through it: both are in the tree, and so is what they lead to.
        let links = |hard: bool| {
            sent(|out| {
                let mut archive = tar::Builder::new(out);
                archive.append(&with(b"d", tar::EntryType::Symlink, "/etc"), io::empty())?;
                archive.append(&with(b"vmlinuz", tar::EntryType::Symlink, "/etc/shadow"), io::empty())?;
                if hard {
                    archive.append(&with(b"hard", tar::EntryType::Link, "/etc/shadow"), io::empty())?;
                }
                archive.append(&with(b"d/x", tar::EntryType::Regular, ""), &b"x"[..])?;
                archive.finish()
            })
        };
        assert!(matches!(links(true), Err(ExtractError::HardLink { .. })));
        let tree = links(false);
        // The link is of the same layer, so it is not replaced, and leads nowhere.
        assert!(tree.is_err() || tree.unwrap().file("vmlinuz").is_none());
    }
}
