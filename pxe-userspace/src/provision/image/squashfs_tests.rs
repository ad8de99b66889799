//! The results are checked by `unsquashfs` (squashfs-tools) and by the kernel that runs the tests.

use std::convert::Infallible;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use pxe_contract::blocks::Blocks;
use pxe_init::delta::{self, Piece};
use tar::EntryType;

use super::super::testing::{TestLayer, apply};
use super::*;

/// Incompressible, and the same every time.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(step).collect()
}

/// A large file with a hole, whose end is not at a block's end.
fn large() -> Vec<u8> {
    [noise(BLOCK), vec![0; 2 * BLOCK], b"text ".repeat(BLOCK / 5), b"the end".to_vec()].concat()
}

/// CAP_NET_RAW, effective, as `setcap cap_net_raw+ep` writes it (linux/capability.h, revision 2).
const NET_RAW: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn tree() -> Tree {
    let device = |major, minor| {
        move |h: &mut tar::Header| {
            h.set_device_major(major).unwrap();
            h.set_device_minor(minor).unwrap();
            h.set_mode(0o660);
        }
    };
    let mut layer = TestLayer::new()
        .directory("dir")
        .file("dir/a", b"twelve bytes")
        .hard_link("dir/b", "dir/a")
        .file("dir/same", b"twelve bytes")
        .file("empty", b"")
        .file("exact", &noise(BLOCK))
        .file("large", &large())
        .symlink("link", "dir/a")
        .entry("null", EntryType::Char, device(1, 3), b"")
        .entry("disk", EntryType::Block, device(259, 1000), b"")
        .entry("pipe", EntryType::Fifo, |_| (), b"")
        .entry(
            "su",
            EntryType::Regular,
            |h| {
                h.set_mode(0o4755);
                h.set_uid(7);
                h.set_gid(70_000);
            },
            b"odd",
        )
        .pax(&[("SCHILY.xattr.security.capability", NET_RAW), ("SCHILY.xattr.user.note", b"hello")])
        .file("ping", b"x")
        .directory("many");
    // More entries than fit into a directory's run, a metadata block and a fragment.
    for n in 0..700 {
        layer = layer.file(&format!("many/{n:03}"), &noise(500 + n));
    }
    apply([layer.hard_link("many/zzz", "dir/a")]).unwrap()
}

fn packed(tree: &Tree) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let len = write(tree, file.as_file_mut(), 3).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), len);
    file
}

fn unsquashfs(arguments: &[&str]) -> String {
    let output = Command::new("unsquashfs").env("TZ", "UTC").args(arguments).output();
    let output = output.expect("unsquashfs is installed (apt: squashfs-tools)");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "", "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Checks a packed [`tree`] that was unpacked or mounted at `root`.
fn judge(root: &Path) {
    let at = |name: &str| root.join(name);
    let meta = |name: &str| fs::symlink_metadata(at(name)).unwrap();
    assert_eq!(fs::read(at("dir/a")).unwrap(), b"twelve bytes");
    assert_eq!(fs::read(at("dir/same")).unwrap(), b"twelve bytes");
    assert_eq!((meta("dir/a").ino(), meta("dir/a").nlink()), (meta("dir/b").ino(), 3));
    assert_eq!(meta("dir/a").ino(), meta("many/zzz").ino());
    assert_ne!(meta("dir/a").ino(), meta("dir/same").ino());
    assert_eq!(meta("many").nlink(), 2);
    assert_eq!(fs::read(at("empty")).unwrap(), b"");
    assert!(fs::read(at("exact")).unwrap() == noise(BLOCK));
    assert!(fs::read(at("large")).unwrap() == large());
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("dir/a"));
    let device = |name| (nix::sys::stat::major(meta(name).rdev()), nix::sys::stat::minor(meta(name).rdev()));
    assert!(meta("null").file_type().is_char_device());
    assert_eq!(device("null"), (1, 3));
    assert!(meta("disk").file_type().is_block_device());
    assert_eq!(device("disk"), (259, 1000));
    assert!(meta("pipe").file_type().is_fifo());
    assert_eq!((meta("su").uid(), meta("su").gid(), meta("su").mode() & 0o7777), (7, 70_000, 0o4755));
    assert_eq!(meta("su").mtime(), 1_700_000_000);
    for n in 0..700 {
        assert!(fs::read(at(&format!("many/{n:03}"))).unwrap() == noise(500 + n), "{n}");
    }
    assert_eq!(fs::read_dir(at("many")).unwrap().count(), 701);
}

fn capability(path: &Path) -> String {
    let output = Command::new("getcap").arg(path).output();
    String::from_utf8(output.expect("getcap is installed (apt: libcap2-bin)").stdout).unwrap()
}

fn skipped() -> bool {
    let skipped = !nix::unistd::geteuid().is_root();
    if skipped {
        eprintln!("skipped: owners, devices and mounts need root");
    }
    skipped
}

#[test]
fn unsquashfs_unpacks_what_the_tree_holds() {
    if skipped() {
        return;
    }
    let file = packed(&tree());
    let into = tempfile::tempdir().unwrap();
    let root = into.path().join("root");
    unsquashfs(&["-quiet", "-no-progress", "-d", root.to_str().unwrap(), file.path().to_str().unwrap()]);
    judge(&root);
    assert!(capability(&root.join("ping")).contains("cap_net_raw=ep"));
    let said = unsquashfs(&["-stat", file.path().to_str().unwrap()]);
    assert!(said.contains("Compression zstd") && said.contains("Number of inodes 714"), "{said}");
}

#[test]
fn the_kernel_mounts_what_the_tree_holds() {
    if skipped() {
        return;
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("squashfs");
    if !known && !Command::new("modprobe").arg("squashfs").status().is_ok_and(|s| s.success()) {
        return eprintln!("skipped: this kernel has no SquashFS; the boots in tests/ mount one");
    }
    let file = packed(&tree());
    let at = tempfile::tempdir().unwrap();
    let status = Command::new("mount")
        .args(["-t", "squashfs", "-o", "loop,ro"])
        .args([file.path(), at.path()])
        .status()
        .unwrap();
    if !status.success() {
        return eprintln!("skipped: this system mounts no loop devices");
    }
    let judged = std::panic::catch_unwind(|| judge(at.path()));
    assert!(Command::new("umount").arg(at.path()).status().unwrap().success());
    judged.unwrap();
}

#[test]
fn an_empty_tree_and_one_below_another_are_file_systems() {
    let file = packed(&Tree::new());
    assert!(unsquashfs(&["-lls", file.path().to_str().unwrap()]).contains("squashfs-root"));
    let below = apply([TestLayer::new().file("a", b"x")]).unwrap().below(b"image");
    let file = packed(&below);
    let listing = unsquashfs(&["-ls", file.path().to_str().unwrap()]);
    assert!(listing.ends_with("squashfs-root\nsquashfs-root/image\nsquashfs-root/image/a\n"), "{listing}");
}

/// Directories store inode numbers relative to the first entry's, in 16 bits.
#[test]
fn neighbours_may_be_far_apart() {
    let mut tree = Tree::new();
    let first = tree.insert(Tree::ROOT, b"first", Inode::directory(0o755), 0);
    for n in 0..40_000 {
        tree.insert(first, format!("{n:05}").as_bytes(), Inode::new(0o600, Kind::Fifo), 0);
    }
    let second = tree.insert(Tree::ROOT, b"second", Inode::directory(0o755), 0);
    tree.insert(second, b"link", Inode::new(0o777, Kind::Symlink(b"there".to_vec())), 0);
    let listing = unsquashfs(&["-lls", packed(&tree).path().to_str().unwrap()]);
    assert!(listing.ends_with("squashfs-root/second/link -> there\n"));
    assert_eq!(listing.lines().filter(|line| line.starts_with("prw-------")).count(), 40_000);
}

#[test]
fn the_same_tree_is_the_same_bytes_and_equal_contents_are_stored_once() {
    let bytes = |tree: &Tree| fs::read(packed(tree).path()).unwrap();
    assert!(bytes(&tree()) == bytes(&tree()));
    let once = apply([TestLayer::new().file("a", &noise(4 * BLOCK))]).unwrap();
    let twice = apply([TestLayer::new().file("a", &noise(4 * BLOCK)).file("b", &noise(4 * BLOCK))]).unwrap();
    assert!(bytes(&twice).len() < bytes(&once).len() + BLOCK);
}

/// A tree with some files in several directories: each has a name, and the seed and length of its contents.
fn tree_of(files: &BTreeMap<String, (u32, usize)>) -> Tree {
    let mut layer = TestLayer::new();
    for directory in 0..8 {
        layer = layer.directory(&format!("d{directory}"));
    }
    for (path, (seed, len)) in files {
        let mut contents = noise(*len);
        contents.splice(..4.min(*len), seed.to_le_bytes().into_iter().take(*len));
        layer = layer.file(path, &contents);
    }
    apply([layer]).unwrap()
}

/// Assembles `new` as a node would that has `old`, and returns how much was fetched.
fn fetched(old: &[u8], new: &[u8]) -> u64 {
    let list = |file: &[u8]| {
        let part =
            |range: Range<u64>| Ok::<_, Infallible>(file[range.start as usize..range.end as usize].to_vec());
        let Ok(list) = Blocks::read(file.len() as u64, part);
        list.expect("a list of blocks")
    };
    let mut made: Vec<u8> = Vec::new();
    let mut fetched = 0;
    for Piece { len, from } in delta::plan(&list(new), new.len() as u64, [list(old)]) {
        let (file, at) = from.map_or((new, made.len()), |place| (old, place.at as usize));
        fetched += if from.is_none() { len } else { 0 };
        made.extend(&file[at..at + len as usize]);
    }
    assert!(made == new);
    fetched
}

/// Like a distribution's files: many small ones, few large ones. 38 MB, which can't be compressed.
#[test]
fn one_small_file_that_changes_costs_less_than_two_percent() {
    let mut files: BTreeMap<String, (u32, usize)> = (0..4000)
        .map(|n| {
            (
                format!("d{}/{n:04}", n % 8),
                (n, if n % 100 == 0 { 800_000 } else { 200 + (n as usize * 37) % 15_000 }),
            )
        })
        .collect();
    let bytes = |files: &_| fs::read(packed(&tree_of(files)).path()).unwrap();
    let old = bytes(&files);
    let mut costs = |path: &str, file| {
        match file {
            Some(file) => files.insert(path.to_owned(), file),
            None => files.remove(path),
        };
        let new = bytes(&files);
        let cost = fetched(&old, &new);
        println!("{path}: {cost} of {} bytes", new.len());
        assert!(cost * 50 < new.len() as u64, "{path}: {cost} of {}", new.len());
    };
    // Other contents, a longer file, one more, one less.
    costs("d0/0008", Some((77_777, 4096)));
    costs("d1/0001", Some((1, 9_000)));
    costs("d2/another", Some((99_999, 4096)));
    costs("d3/0003", None);
}

/// Tables, and up to 4 KiB of zeros before the list.
#[test]
fn nothing_but_tables_is_fetched_when_a_file_moves() {
    let file = |path: &str| {
        fs::read(packed(&tree_of(&[(path.to_owned(), (5, 4 * BLOCK + 5))].into())).path()).unwrap()
    };
    assert!(fetched(&file("d1/a"), &file("d7/b")) < 8192);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Files that are added, removed, changed and extended.
    #[test]
    fn any_two_trees_are_put_together(
        old in prop::collection::btree_map("d[0-7]/[a-e]", (0u32..4, 0usize..300_000), 0..12),
        new in prop::collection::btree_map("d[0-7]/[a-e]", (0u32..4, 0usize..300_000), 0..12),
    ) {
        let bytes = |files: &BTreeMap<_, _>| fs::read(packed(&tree_of(files)).path()).unwrap();
        let packed_old = bytes(&old);
        let both = bytes(&old.into_iter().chain(new).collect());
        prop_assert!(fetched(&packed_old, &both) <= both.len() as u64);
        prop_assert!(fetched(&both, &both) < 8192);
    }
}

#[test]
fn what_linux_would_not_take_is_refused_by_its_path() {
    let long = [b'x'; 256];
    let mut tree = Tree::new();
    tree.insert(Tree::ROOT, &long, Inode::directory(0o755), 0);
    let error = write(&tree, &mut tempfile::tempfile().unwrap(), 3).unwrap_err();
    assert!(matches!(error, SquashfsError::LongName { .. }), "{error}");
    let mut tree = Tree::new();
    tree.insert(Tree::ROOT, b"link", Inode::new(0o777, Kind::Symlink(vec![b'x'; 4096])), 0);
    let error = write(&tree, &mut tempfile::tempfile().unwrap(), 3).unwrap_err().to_string();
    assert!(error.starts_with("link: "), "{error}");
}
