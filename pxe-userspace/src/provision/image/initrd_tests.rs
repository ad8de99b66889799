use std::process::{Command, Stdio};

use tar::EntryType;

use super::super::testing::{TestLayer, apply};
use super::*;
use crate::provision::image::tree::{Inode, Spool};

fn tree() -> Tree {
    apply([TestLayer::new()
        .directory("dir")
        .file("dir/a", b"twelve bytes")
        .hard_link("dir/b", "dir/a")
        .file("empty", b"")
        .symlink("link", "dir/a")
        .entry(
            "null",
            EntryType::Char,
            |h| {
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap();
                h.set_mode(0o666);
            },
            b"",
        )
        .entry("pipe", EntryType::Fifo, |_| (), b"")
        .entry(
            "su",
            EntryType::Regular,
            |h| {
                h.set_mode(0o4755);
                h.set_uid(7);
                h.set_gid(8);
            },
            b"odd",
        )])
    .unwrap()
}

fn archive(tree: &Tree) -> Vec<u8> {
    let mut initrd = Initrd::new(Vec::new(), 3).unwrap();
    initrd.file("image.json", b"{}").unwrap();
    initrd.tree("image", tree).unwrap();
    initrd.finish().unwrap()
}

/// What GNU cpio prints for the archive.
fn gnu_cpio(archive: &[u8], directory: &std::path::Path, arguments: &[&str]) -> String {
    let plain = zstd::decode_all(archive).unwrap();
    let child = Command::new("cpio")
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.expect("GNU cpio is installed (apt: cpio)");
    child.stdin.take().unwrap().write_all(&plain).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(errors.lines().all(|line| line.ends_with("block") || line.ends_with("blocks")), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gnu_cpio_lists_what_the_tree_holds() {
    let directory = tempfile::tempdir().unwrap();
    let listing = gnu_cpio(&archive(&tree()), directory.path(), &["-itvn"]);
    let squeezed: Vec<String> =
        listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    let date = "Nov 14 2023";
    assert_eq!(
        squeezed,
        [
            "-rw-r--r-- 1 0 0 2 Jan 1 1970 image.json".to_owned(),
            "drwxr-xr-x 1 0 0 0 Jan 1 1970 image".to_owned(),
            format!("drwxr-xr-x 1 0 0 0 {date} image/dir"),
            format!("-rw-r--r-- 2 0 0 0 {date} image/dir/a"),
            format!("-rw-r--r-- 2 0 0 12 {date} image/dir/b"),
            format!("-rw-r--r-- 1 0 0 0 {date} image/empty"),
            format!("lrwxrwxrwx 1 0 0 5 {date} image/link -> dir/a"),
            format!("crw-rw-rw- 1 0 0 1, 3 {date} image/null"),
            format!("prwxrwxrwx 1 0 0 0 {date} image/pipe"),
            format!("-rwsr-xr-x 1 7 8 3 {date} image/su"),
        ]
    );
}

#[test]
fn gnu_cpio_unpacks_contents_and_hard_links() {
    use std::os::unix::fs::MetadataExt as _;
    let directory = tempfile::tempdir().unwrap();
    // Only root can create devices.
    gnu_cpio(
        &archive(&tree()),
        directory.path(),
        &["-idm", "--quiet", "image/dir/*", "image/link", "image/su"],
    );
    let path = |name: &str| directory.path().join("image").join(name);
    assert_eq!(std::fs::read(path("dir/a")).unwrap(), b"twelve bytes");
    assert_eq!(
        path("dir/a").metadata().unwrap().ino(),
        path("dir/b").metadata().unwrap().ino(),
        "hard links stay links"
    );
    assert_eq!(std::fs::read(path("link")).unwrap(), b"twelve bytes");
    assert_eq!(std::fs::read(path("su")).unwrap(), b"odd");
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    assert_eq!(archive(&tree()), archive(&tree()));
}

#[test]
fn what_an_initrd_cannot_hold_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut spool = Spool::new(directory.path()).unwrap();
    let mut big = spool.add(&b""[..]).unwrap();
    big.len = 1 << 32;
    let mut tree = Tree::new();
    tree.insert(Tree::ROOT, b"big", Inode::new(0o644, Kind::File(big)), 0);
    let refused = Initrd::new(Vec::new(), 3).unwrap().tree("image", &tree).unwrap_err();
    assert!(matches!(refused, InitrdError::TooBig { size: 0x1_0000_0000, .. }), "{refused}");

    let mut tree = Tree::new();
    tree.insert(Tree::ROOT, &[b'x'; 4096], Inode::directory(0o755), 0);
    let refused = Initrd::new(Vec::new(), 3).unwrap().tree("", &tree).unwrap_err();
    assert!(matches!(refused, InitrdError::LongName { .. }), "{refused}");
}
