use std::path::Path;
use std::process::Command;

use tar::EntryType;

use super::super::testing::{TestLayer, apply, paths};
use super::*;
use crate::provision::image::tree::{Inode, Tree};

fn at<'a>(tree: &'a Tree, path: &str) -> &'a Inode {
    let id = tree.walk().into_iter().find(|(p, _)| p == path.as_bytes()).expect(path).1;
    tree.inode(id)
}

fn refusal(layer: TestLayer) -> String {
    apply([layer]).expect_err("the archive must be refused").to_string()
}

#[test]
fn a_whiteout_hides_what_lower_layers_have() {
    let tree = apply([
        TestLayer::new().directory("a").file("a/x", b"1").file("a/y", b"2").file("b", b"3"),
        TestLayer::new().file("a/.wh.x", b"").file(".wh.b", b"").file(".wh.never-was", b""),
    ]);
    assert_eq!(paths(&tree.unwrap()), ["a", "a/y"]);
}

#[test]
fn a_whiteout_says_nothing_of_its_own_layer() {
    // In any order of the layer's entries (OCI image spec, "Whiteouts").
    for new_first in [true, false] {
        let lower = TestLayer::new().directory("d").file("d/old", b"").file("f", b"old");
        let mut upper = TestLayer::new();
        if new_first {
            upper = upper.directory("d").file("d/new", b"").file("f", b"new");
        }
        upper = upper.file(".wh.d", b"").file(".wh.f", b"");
        if !new_first {
            upper = upper.directory("d").file("d/new", b"").file("f", b"new");
        }
        let tree = apply([lower, upper]).unwrap();
        assert_eq!(paths(&tree), ["d", "d/new", "f"]);
        assert_eq!(tree.file("f").unwrap().read().unwrap(), b"new");
    }
}

#[test]
fn an_opaque_directory_shows_its_own_layer_only() {
    for opaque_first in [true, false] {
        let lower =
            TestLayer::new().directory("d").directory("d/sub").file("d/sub/old", b"").file("d/x", b"");
        let mut upper = TestLayer::new().directory("d");
        if opaque_first {
            upper = upper.file("d/.wh..wh..opq", b"").file("d/sub/new", b"");
        } else {
            upper = upper.file("d/sub/new", b"").file("d/.wh..wh..opq", b"");
        }
        assert_eq!(paths(&apply([lower, upper]).unwrap()), ["d", "d/sub", "d/sub/new"]);
    }
}

#[test]
fn aufs_bookkeeping_is_not_content() {
    let layer = TestLayer::new().directory(".wh..wh.plnk").file(".wh..wh.aufs", b"").file("x", b"");
    assert_eq!(paths(&apply([layer]).unwrap()), ["x"]);
}

#[test]
fn owners_modes_devices_and_times_are_kept() {
    let layer = TestLayer::new()
        .entry(
            "su",
            EntryType::Regular,
            |h| {
                h.set_mode(0o4755);
                h.set_uid(12);
                h.set_gid(34);
            },
            b"program",
        )
        .entry(
            "sda",
            EntryType::Block,
            |h| {
                h.set_device_major(8).unwrap();
                h.set_device_minor(1).unwrap();
            },
            b"",
        )
        .entry("pipe", EntryType::Fifo, |_| (), b"");
    let tree = apply([layer]).unwrap();
    let su = at(&tree, "su");
    assert_eq!((su.mode, su.uid, su.gid, su.mtime), (0o4755, 12, 34, 1_700_000_000));
    assert!(matches!(at(&tree, "sda").kind, Kind::BlockDevice { major: 8, minor: 1 }));
    assert!(matches!(at(&tree, "pipe").kind, Kind::Fifo));
}

#[test]
fn the_root_directory_has_an_owner_and_a_mode() {
    let tree = apply([TestLayer::new().entry("./", EntryType::Directory, |h| h.set_mode(0o700), b"")]);
    assert_eq!(tree.unwrap().inode(Tree::ROOT).mode, 0o700);
}

#[test]
fn hard_links_share_an_inode_also_across_layers() {
    let tree = apply([
        TestLayer::new().file("a", b"data").hard_link("b", "a"),
        TestLayer::new().hard_link("c", "./b"),
    ])
    .unwrap();
    let ids: Vec<_> = tree.walk().into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn xattrs_are_kept_line_ends_included() {
    // CAP_DAC_OVERRIDE and CAP_FOWNER: 0x0a, which is also a line feed. The entry after it must still be found.
    let capability = b"\x01\x00\x00\x02\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let layer = TestLayer::new()
        .pax(&[("SCHILY.xattr.security.capability", capability), ("mtime", b"1600000000.5")])
        .file("ping", b"program")
        .file("next", b"");
    let tree = apply([layer]).unwrap();
    let ping = at(&tree, "ping");
    assert_eq!(ping.xattrs[&b"security.capability"[..]], capability);
    assert_eq!(ping.mtime, 1_600_000_000);
    assert!(at(&tree, "next").xattrs.is_empty());
}

#[test]
fn long_and_strange_names_are_kept() {
    let long = format!("{}/file", ["directory"; 30].join("/"));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b""[..]).unwrap();
    let mut tree = Tree::new();
    let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
    super::apply(&mut tree, &mut spool, 0, &builder.into_inner().unwrap()[..]).unwrap();
    assert!(tree.file(&long).is_some());
    let layer = TestLayer::new().pax(&[("path", b"not-utf8-\xff")]).file("x", b"");
    assert_eq!(apply([layer]).unwrap().walk()[0].0, b"not-utf8-\xff");
}

#[test]
fn links_of_lower_layers_are_followed_inside_the_image() {
    let tree = apply([
        TestLayer::new().directory("usr/lib").symlink("lib", "usr/lib").symlink("up", "../../usr"),
        TestLayer::new().file("lib/a", b"").file("up/b", b""),
    ]);
    assert_eq!(paths(&tree.unwrap()), ["lib", "up", "usr", "usr/b", "usr/lib", "usr/lib/a"]);
}

#[test]
fn an_entry_replaces_what_was_there() {
    let tree = apply([
        TestLayer::new().file("a", b"1").file("a", b"2").directory("d").file("d/x", b"").symlink("l", "d"),
        // A directory over a directory keeps the contents; over a link it replaces the link.
        TestLayer::new().directory("d").directory("l").file("l/y", b""),
    ])
    .unwrap();
    assert_eq!(paths(&tree), ["a", "d", "d/x", "l", "l/y"]);
    assert_eq!(tree.file("a").unwrap().read().unwrap(), b"2");
    let file = apply([TestLayer::new().directory("d").file("d/x", b""), TestLayer::new().file("d", b"")]);
    assert_eq!(paths(&file.unwrap()), ["d"]);
}

#[test]
fn a_directory_of_an_upper_layer_takes_a_files_place() {
    let lower =
        || TestLayer::new().file("opt", b"x").symlink("l", "opt").file("d/f", b"").symlink("to-d", "d");
    let tree =
        apply([lower(), TestLayer::new().file("opt/y", b"y").file("l/z", b"z").file("to-d/f/deep/x", b"")]);
    let tree = tree.unwrap();
    assert_eq!(paths(&tree), ["d", "d/f", "d/f/deep", "d/f/deep/x", "l", "opt", "opt/y", "opt/z", "to-d"]);
    // And back again, twice: nothing from before returns.
    let tree = apply([
        TestLayer::new().directory("a").file("a/x", b""),
        TestLayer::new().file("a", b"file"),
        TestLayer::new().directory("a").file("a/y", b""),
    ]);
    assert_eq!(paths(&tree.unwrap()), ["a", "a/y"]);
}

/// A directory as this host's `tar` packs it, applied as a layer.
fn by_gnu_tar(directory: &Path, more: &[&str]) -> Tree {
    let output =
        Command::new("tar").arg("-C").arg(directory).args(more).args(["-cf", "-", "."]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut tree = Tree::new();
    super::apply(&mut tree, &mut Spool::new(&std::env::temp_dir()).unwrap(), 0, &output.stdout[..]).unwrap();
    tree
}

#[test]
fn sparse_files_of_every_format_have_their_contents() {
    let dir = tempfile::tempdir().unwrap();
    // More segments than fit into a header, a block of the list and a block of the contents.
    let contents: Vec<u8> =
        (0..40 << 20).map(|n: usize| if n % (512 << 10) < 512 { n as u8 | 1 } else { 0 }).collect();
    std::fs::write(dir.path().join("many"), &contents).unwrap();
    std::fs::File::create(dir.path().join("hole")).unwrap().set_len(1 << 20).unwrap();
    std::fs::write(dir.path().join("after"), "after").unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tree = by_gnu_tar(dir.path(), &[&["--sparse", "--hole-detection=raw"], format].concat());
        let read = |name| tree.file(name).unwrap_or_else(|| panic!("{name}: {format:?}")).read().unwrap();
        assert!(read("many") == contents, "{format:?}");
        assert_eq!(read("hole"), vec![0; 1 << 20], "{format:?}");
        assert_eq!(read("after"), b"after", "{format:?}");
        assert_eq!(paths(&tree), ["after", "hole", "many"], "{format:?}");
    }
}

#[test]
fn a_list_of_holes_that_makes_no_sense_is_refused() {
    let sparse = |map: &str, size: &str, contents: &[u8]| {
        let records = [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", map.as_bytes())];
        apply([TestLayer::new().pax(&records).file("x", contents)])
    };
    let good = sparse("2,1,5,2", "9", b"abc").unwrap();
    assert_eq!(good.file("x").unwrap().read().unwrap(), b"\0\0a\0\0bc\0\0");
    for (map, size) in [
        ("5,2,2,1", "9"),
        ("0,4", "9"),
        ("8,3", "9"),
        ("0", "9"),
        ("x,1", "9"),
        ("0,1", "-1"),
        ("1,18446744073709551615", "9"),
    ] {
        let error = sparse(map, size, b"abc").unwrap_err().to_string();
        assert!(error.contains("a list of holes that does not fit"), "{map}: {error}");
    }
    // A few bytes that claim a terabyte are not expanded.
    let error = sparse("0,3", "1099511627776", b"abc").unwrap_err().to_string();
    assert!(error.contains("1099511627776 bytes with its holes"), "{error}");
}

#[test]
fn odd_entries_are_what_docker_takes_them_for() {
    let number = |field: &mut [u8], value: i64| {
        let len = field.len();
        field.fill(if value < 0 { 0xff } else { 0 });
        field[len - 8..].copy_from_slice(&value.to_be_bytes());
        field[0] |= 0x80;
    };
    let tree = apply([TestLayer::new()
        .entry("pax_global_header", EntryType::XGlobalHeader, |_| (), b"13 path=evil\n")
        .entry("label", EntryType::new(b'V'), |_| (), b"")
        .entry("contiguous", EntryType::new(b'7'), |h| h.set_mode(0o600), b"contents")
        .entry("dump", EntryType::new(b'D'), |_| (), b"Yfile\0\0")
        .entry("big", EntryType::Regular, |h| number(&mut h.as_old_mut().uid, 3_000_000_000), b"")
        .entry("nobody", EntryType::Regular, |h| number(&mut h.as_old_mut().uid, -2), b"")
        .entry("as-made", EntryType::Regular, |h| number(&mut h.as_old_mut().gid, -1), b"")
        .entry("early", EntryType::Regular, |h| number(&mut h.as_old_mut().mtime, -5), b"")
        .pax(&[("uid", b"-2"), ("gid", b"4294967294"), ("mtime", b"-5.5"), ("linkpath", b"")])
        .file("pax", b"")
        .file("/../up", b"")])
    .unwrap();
    let names = ["as-made", "big", "contiguous", "dump", "early", "nobody", "pax", "up"];
    assert_eq!(paths(&tree), names);
    assert_eq!(tree.file("contiguous").unwrap().read().unwrap(), b"contents");
    assert!(matches!(at(&tree, "dump").kind, Kind::Directory(_)));
    assert_eq!((at(&tree, "big").uid, at(&tree, "nobody").uid), (3_000_000_000, u32::MAX - 1));
    assert_eq!((at(&tree, "as-made").gid, at(&tree, "early").mtime), (0, 0));
    let Inode { uid, gid, mtime, .. } = at(&tree, "pax");
    assert_eq!((*uid, *gid, *mtime), (u32::MAX - 1, u32::MAX - 1, 0));
}

#[test]
fn absolute_paths_and_doubled_slashes_are_inside_the_image() {
    let layer = TestLayer::new().file("/etc//passwd", b"").file("a/../b", b"");
    assert_eq!(paths(&apply([layer]).unwrap()), ["b", "etc", "etc/passwd"]);
}

#[test]
fn hostile_entries_are_refused_by_name() {
    for (layer, words) in [
        (TestLayer::new().file("../x", b""), "../x: the path leads out of the image"),
        (TestLayer::new().file("a/../../x", b""), "leads out of the image"),
        (TestLayer::new().hard_link("x", "../../etc/passwd"), "leads out of the image"),
        (TestLayer::new().hard_link("x", "missing"), "a hard link to missing, which is not there"),
        (TestLayer::new().directory("d").hard_link("x", "d"), "which is a directory"),
        (TestLayer::new().file("f", b"").file("f/x", b""), "its directory is something else"),
        (TestLayer::new().symlink("l", "l").file("l/x", b""), "symbolic links in a circle"),
        (
            TestLayer::new().file(&"d/".repeat(40), b"").entry("x", EntryType::new(b'Z'), |_| (), b""),
            "type 'Z'",
        ),
        (TestLayer::new().pax(&[("path", b"a\0b")]).file("x", b""), "NUL"),
        (TestLayer::new().pax(&[("uid", b"99999999999")]).file("x", b""), "owner"),
    ] {
        let refused = refusal(layer);
        assert!(refused.contains(words), "{refused}");
    }
}

#[test]
fn directories_nest_only_so_deep() {
    let deep: Vec<&[u8]> = vec![b"d"; 1100];
    let mut tree = Tree::new();
    assert!(matches!(directory_for(&mut tree, b"deep", &deep, 0), Err(ExtractError::Unreachable { .. })));
}

#[test]
fn a_truncated_or_damaged_archive_is_refused() {
    let whole = TestLayer::new().file("a", &[7; 2000]).file("b", b"").bytes();
    let apply = |bytes: &[u8]| {
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        super::apply(&mut Tree::new(), &mut spool, 0, bytes)
    };
    apply(&whole).unwrap();
    // The first header, the data of `a`, the padding after it, the second header.
    for end in [100, 1000, 512 + 2010, 512 + 2048 + 100] {
        let error = apply(&whole[..end]).unwrap_err().to_string();
        assert!(error.contains("ends in the middle"), "{end}: {error}");
    }
    let mut damaged = whole;
    damaged[100] ^= 1;
    let error = apply(&damaged).unwrap_err().to_string();
    assert!(error.contains("checksum is wrong"), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_archive_panics(layers in proptest::collection::vec(
        proptest::collection::vec(("[ab./]{0,6}|[ab/]{0,3}\\.wh\\.[ab]|[ab]/\\.wh\\.\\.wh\\.\\.opq", 0u8..5), 0..12), 0..4,
    ), at in 0usize..4096, with: u8) {
        let mut tree = Tree::new();
        let mut spool = Spool::new(&std::env::temp_dir()).unwrap();
        for (number, entries) in layers.into_iter().enumerate() {
            let mut layer = TestLayer::new();
            for (path, kind) in entries {
                layer = match kind {
                    0 => layer.directory(&path),
                    1 => layer.symlink(&path, "a/b"),
                    2 => layer.hard_link(&path, "a"),
                    _ => layer.file(&path, b"contents"),
                };
            }
            let mut bytes = layer.bytes();
            if number == 3 && at < bytes.len() {
                bytes[at] = with;
            }
            let _ = super::apply(&mut tree, &mut spool, number, &bytes[..]);
        }
        let _ = (tree.walk(), tree.digest());
    }
}
