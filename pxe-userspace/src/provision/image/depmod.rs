//! The index of a kernel's modules, as depmod(8) makes it from the modules themselves: modules.dep, modules.alias and
//! modules.softdep, which are what a node reads. Each module says in its `.modinfo` section what it needs and what it
//! is for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, BufReader, Read as _};

use super::compression::Compression;
use super::tree::{Inode, InodeId, Kind, Spool, Tree};

/// The largest modules, amdgpu with symbols among them, have some 30 MiB.
const MODULE_MAX: u64 = 256 << 20;

/// Adds the index to the directory of a kernel's modules.
pub(super) fn index(tree: &mut Tree, directory: InodeId, spool: &mut Spool) -> io::Result<()> {
    let mut files = Vec::new();
    collect(tree, directory, "", &mut files);
    let mut modules = BTreeMap::new();
    for (path, file) in files {
        let Kind::File(content) = &tree.inode(file).kind else { continue };
        let mut packed = BufReader::new(content.reader());
        let mut bytes = Vec::new();
        Compression::of(&mut packed)?.reader(packed)?.take(MODULE_MAX).read_to_end(&mut bytes)?;
        modules.insert(path, Info::of(&bytes));
    }
    for (name, text) in [
        ("modules.dep", dependencies(&modules)),
        (
            "modules.alias",
            lines(&modules, "alias", |info| &info.aliases, |alias, module| format!("{alias} {module}")),
        ),
        (
            "modules.softdep",
            lines(&modules, "softdep", |info| &info.soft, |soft, module| format!("{module} {soft}")),
        ),
    ] {
        let content = spool.add(text.as_bytes())?;
        tree.insert(directory, name.as_bytes(), Inode::new(0o644, Kind::File(content)), 0);
    }
    Ok(())
}

fn collect(tree: &Tree, directory: InodeId, below: &str, into: &mut Vec<(String, InodeId)>) {
    for (name, entry) in tree.names(directory).into_iter().flatten() {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        // The tables are text: a name with a blank or line end would be something else in them.
        if name.contains(|c: char| c.is_whitespace() || c == ':') {
            continue;
        }
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        match &tree.inode(entry.inode).kind {
            Kind::Directory(_) => collect(tree, entry.inode, &path, into),
            Kind::File(_) if name.ends_with(".ko") || name.contains(".ko.") => into.push((path, entry.inode)),
            Kind::File(_)
            | Kind::Symlink(_)
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => {}
        }
    }
}

/// What a module says of itself.
#[derive(Debug, Default, PartialEq)]
struct Info {
    needs: Vec<String>,
    aliases: Vec<String>,
    soft: Vec<String>,
}

impl Info {
    /// Empty for what is no module.
    fn of(module: &[u8]) -> Self {
        let mut info = Self::default();
        for entry in section(module, b".modinfo").unwrap_or_default().split(|b| *b == 0) {
            let Ok(entry) = std::str::from_utf8(entry) else { continue };
            match entry.split_once('=') {
                Some((_, value)) if value.contains(char::is_control) => {}
                Some(("depends", value)) => {
                    info.needs.extend(value.split(',').filter(|name| !name.is_empty()).map(plain));
                }
                Some(("alias", value)) if !value.contains(' ') => info.aliases.push(value.to_owned()),
                Some(("softdep", value)) => info.soft.push(value.to_owned()),
                _ => {}
            }
        }
        info
    }
}

/// A section of a 64-bit little-endian ELF file, by name (elf(5)).
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let mut number = [0; 8];
        number[..bytes].copy_from_slice(file.get(at..at.checked_add(bytes)?)?);
        usize::try_from(u64::from_le_bytes(number)).ok()
    };
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    // e_shoff, e_shentsize, e_shnum, e_shstrndx.
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(size)?);
    let contents = |header: usize| -> Option<&'a [u8]> {
        // sh_offset, sh_size.
        let (offset, size) = (number(header.checked_add(0x18)?, 8)?, number(header.checked_add(0x20)?, 8)?);
        file.get(offset..offset.checked_add(size)?)
    };
    let names = contents(header(names)?)?;
    (0..count).find_map(|index| {
        let header = header(index)?;
        let own = names.get(number(header, 4)?..)?;
        own.strip_prefix(name)?.starts_with(&[0]).then(|| contents(header))?
    })
}

/// A module's name: `-` and `_` are equivalent in it.
fn plain(name: &str) -> String {
    name.trim().replace('-', "_")
}

fn module(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    plain(file.split(".ko").next().unwrap_or(file))
}

/// Each module with all that it needs, directly or not; what is needed comes after what needs it (modules.dep(5)).
fn dependencies(modules: &BTreeMap<String, Info>) -> String {
    let paths: HashMap<String, &String> = modules.keys().map(|path| (module(path), path)).collect();
    let mut text = String::new();
    for path in modules.keys() {
        let (mut order, mut seen) = (Vec::new(), HashSet::from([path]));
        visit(path, modules, &paths, &mut seen, &mut order);
        let _ = write!(text, "{path}:");
        for needed in order.iter().rev() {
            let _ = write!(text, " {needed}");
        }
        text.push('\n');
    }
    text
}

/// Adds what a module needs, the deepest first. A circle ends where it was entered.
fn visit<'a>(
    path: &'a String,
    modules: &'a BTreeMap<String, Info>,
    paths: &HashMap<String, &'a String>,
    seen: &mut HashSet<&'a String>,
    order: &mut Vec<&'a String>,
) {
    for needed in modules[path].needs.iter().filter_map(|name| paths.get(name)).rev() {
        if seen.insert(needed) {
            visit(needed, modules, paths, seen, order);
            order.push(needed);
        }
    }
}

fn lines(
    modules: &BTreeMap<String, Info>,
    word: &str,
    of: impl Fn(&Info) -> &Vec<String>,
    line: impl Fn(&str, &str) -> String,
) -> String {
    let mut text = String::new();
    for (path, info) in modules {
        for entry in of(info) {
            let _ = writeln!(text, "{word} {}", line(entry, &module(path)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::process::Command;

    use super::super::stage1;
    use super::*;

    /// depmod judges, by modules of the stock kernel.
    #[test]
    fn the_index_is_depmods() {
        let assets =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/assets/kernel/modules/lib/modules");
        let Some(Ok(version)) = assets.read_dir().ok().and_then(|mut versions| versions.next()) else {
            println!("skipped: {} has no modules: cargo xtask setup", assets.display());
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("lib/modules");
        std::fs::create_dir_all(&modules).unwrap();
        let copied = Command::new("cp").arg("-rL").arg(version.path()).arg(&modules).status().unwrap();
        assert!(copied.success());
        let own = modules.join(version.file_name());
        for table in ["modules.dep", "modules.alias", "modules.softdep"] {
            let _ = std::fs::remove_file(own.join(table));
        }
        let mut spool = Spool::new(dir.path()).unwrap();
        let mut tree = Tree::new();
        stage1::load(&mut spool, &mut tree, Tree::ROOT, &own).unwrap();
        let at = tree.find(version.file_name().to_str().unwrap()).unwrap();
        index(&mut tree, at, &mut spool).unwrap();

        let Ok(made) = Command::new("depmod").arg("-b").arg(dir.path()).arg(version.file_name()).output()
        else {
            println!("skipped: there is no depmod (apt: kmod)");
            return;
        };
        assert!(made.status.success(), "{made:?}");
        let theirs = |table: &str| std::fs::read_to_string(own.join(table)).unwrap();
        let ours = |table: &str| {
            let path = format!("{}/{table}", version.file_name().display());
            String::from_utf8(tree.file(&path).unwrap().read().unwrap()).unwrap()
        };
        let rows = |text: String| -> BTreeSet<String> {
            text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
        };
        for table in ["modules.alias", "modules.softdep"] {
            assert_eq!(rows(ours(table)), rows(theirs(table)), "{table}");
        }
        let parsed = |text: String| -> BTreeMap<String, Vec<String>> {
            let rows = text.lines().filter_map(|line| line.split_once(':'));
            rows.map(|(path, needs)| (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect()))
                .collect()
        };
        let (ours, theirs) = (parsed(ours("modules.dep")), parsed(theirs("modules.dep")));
        assert!(theirs.values().any(|needs| needs.len() > 2), "there is something to judge");
        let sorted = |all: &BTreeMap<String, Vec<String>>| -> BTreeMap<String, BTreeSet<String>> {
            all.iter().map(|(path, needs)| (path.clone(), needs.iter().cloned().collect())).collect()
        };
        assert_eq!(sorted(&ours), sorted(&theirs));
        // Loaded from the last one on, each module finds what it needs.
        for needs in ours.values() {
            for (place, needed) in needs.iter().enumerate() {
                let loaded = &needs[place + 1..];
                assert!(theirs[needed].iter().all(|deeper| loaded.contains(deeper)), "{needed} in {needs:?}");
            }
        }
    }

    #[test]
    fn noise_is_no_module() {
        assert_eq!(Info::of(b"noise"), Info::default());
        // A section table beyond the end, and one whose numbers overflow.
        for at in [0x1000u64, u64::MAX] {
            let mut file = [&b"\x7fELF\x02\x01"[..], &[0xff; 80]].concat();
            file[0x28..0x30].copy_from_slice(&at.to_le_bytes());
            assert_eq!(Info::of(&file), Info::default());
        }
    }
}
