//! The corpus. Each case is something that a tool has written, or that is in a tool's tests.

use serde_json::json;

use super::tar::{header, number};
use super::{Case, Docker, Entry, Layer, Packed};

/// All of them. Names are unique.
pub fn all() -> Vec<Case> {
    let mut all = layers();
    all.extend(links());
    all.extend(entries());
    all.extend(numbers());
    all.extend(sparse());
    all.extend(compressions());
    all.extend(configurations());
    for (name, docker) in different() {
        all.iter_mut().find(|case| case.name == name).expect("it is there").docker = docker;
    }
    all
}

/// The cases in which Docker's result differs.
fn different() -> [(&'static str, Docker); 5] {
    [
        (
            "aufs",
            Docker::Differs(
                &[".wh.aufs", ".wh.plnk"],
                "overlay2 takes AUFS's own files for whiteouts, and leaves what stands for these",
            ),
        ),
        (
            "hard-link-says-otherwise",
            Docker::Differs(
                &["d/x", "h"],
                "it gives both names what the link's entry says; here the file's own entry counts",
            ),
        ),
        (
            "root-directory",
            Docker::Differs(&[""], "overlay2's root is its own; containerd takes it from the layer"),
        ),
        ("twice", Docker::Refuses("it could not write such a layer again; containerd takes the last")),
        (
            "attributes",
            Docker::Differs(&["user"], "an attribute without a value is not there (Go's PAX reader)"),
        ),
    ]
}

fn base() -> Layer {
    Layer::new()
        .directory("etc")
        .file("etc/hello", b"hello\n")
        .directory("d")
        .file("d/x", b"x")
        .file("d/y", b"y")
}

/// Several layers.
fn layers() -> Vec<Case> {
    vec![
        Case::new("plain", [base()]),
        Case::new("nothing", [Layer::new(), base(), Layer::new()]),
        Case::new("whiteout", [base(), Layer::new().file("d/.wh.x", b"").file(".wh.etc", b"")]),
        Case::new("whiteout-of-nothing", [base(), Layer::new().file("d/.wh.never", b"").file(".wh.never", b"")]),
        Case::new("opaque", [base(), Layer::new().directory("d").file("d/.wh..wh..opq", b"").file("d/new", b"n")]),
        Case::new("opaque-last", [base(), Layer::new().directory("d").file("d/new", b"n").file("d/.wh..wh..opq", b"")]),
        Case::new("whiteout-then-again", [
            base(),
            Layer::new().file(".wh.d", b""),
            Layer::new().directory("d").file("d/z", b"z"),
        ]),
        Case::new("aufs", [base().file(".wh..wh.aufs", b"").directory(".wh..wh.plnk")]),
        Case::new("file-becomes-directory", [base().file("opt", b"x"), Layer::new().file("opt/y", b"y")]),
        Case::new("directory-becomes-file", [base(), Layer::new().file("d", b"file")]),
        Case::new("directory-file-directory", [
            base(),
            Layer::new().file("d", b"file"),
            Layer::new().directory("d").file("d/z", b"z"),
        ]),
        Case::new("link-becomes-directory", [
            base().symlink("l", "d"),
            Layer::new().directory("l").file("l/z", b"z"),
        ]),
        Case::new("directory-becomes-link", [base(), Layer::new().symlink("d", "etc")]),
        Case::new("directory-gets-another-mode", [
            base(),
            Layer::new().entry(&Entry { uid: 7, ..Entry::new(b'5', "d", 0o2750) }, b""),
        ]),
        Case::new("through-a-lower-link", [base().symlink("l", "d"), Layer::new().file("l/z", b"z")]).docker(
            Docker::Differs(
                &["l", "l/z", "d/z"],
                "overlay2 puts a directory in the link's place; containerd and Docker on other file systems follow it, as \
                 the image specification's examples (lib -> usr/lib) need it",
            ),
        ),
        Case::new("parents-not-listed", [Layer::new().file("a/b/c", b"c"), Layer::new().file("a/e/f", b"f")]),
    ]
}

/// Hard and symbolic links.
fn links() -> Vec<Case> {
    let long = "t".repeat(3000);
    vec![
        Case::new("hard-links", [base().hard_link("h", "d/x").hard_link("i", "h").hard_link("d/j", "./h")]),
        Case::new("hard-link-absolute", [base().hard_link("h", "/d/x")]),
        Case::new("hard-link-to-a-link", [base().symlink("l", "nowhere").hard_link("h", "l")]),
        Case::new(
            "hard-link-says-otherwise",
            [base().entry(
                &Entry { uid: 7, gid: 8, link: b"d/x", mtime: 1_600_000_000, ..Entry::new(b'1', "h", 0o600) },
                b"",
            )],
        ),
        Case::new(
            "hard-link-with-a-size",
            [base()
                .entry(&Entry { link: b"d/x", size: Some(1), ..Entry::new(b'1', "h", 0o644) }, b"")
                .file("after", b"a")],
        ),
        Case::new("hard-link-to-a-lower-layer", [base(), Layer::new().hard_link("h", "d/x")]).docker(
            Docker::Refuses("overlay2 has each layer in a directory of its own; containerd takes it"),
        ),
        Case::new(
            "symlinks",
            [base()
                .symlink("dangling", "no/where")
                .symlink("absolute", "/etc/hello")
                .symlink("loop", "loop")
                .symlink("up", "etc/../d")],
        ),
        Case::new("symlink-long", [base().pax(&[("linkpath", long.as_bytes())]).symlink("l", "short")]),
        Case::new(
            "symlink-long-gnu",
            [base()
                .entry(&Entry::new(b'K', "././@LongLink", 0o644), &[long.as_bytes(), b"\0"].concat())
                .symlink("l", "short")],
        ),
    ]
}

/// Names, kinds and attributes.
fn entries() -> Vec<Case> {
    let deep = format!("{}/f", ["directory"; 40].join("/"));
    let name = "n".repeat(255);
    let mut v7 = header(&Entry::new(0, "v7", 0o644), 2);
    v7[257..].fill(0);
    let mut v7_directory = header(&Entry::new(0, "v7dir/", 0o755), 0);
    v7_directory[257..].fill(0);
    let mut prefixed = header(&Entry::new(b'0', "file", 0o644), 2);
    prefixed[345..345 + 11].copy_from_slice(b"prefix/deep");
    let device = |kind, path, device| Entry { device, ..Entry::new(kind, path, 0o660) };
    let capability = b"\x01\x00\x00\x02\x0a\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    vec![
        Case::new(
            "kinds",
            [base()
                .entry(&device(b'3', "null", (1, 3)), b"")
                .entry(&device(b'4', "sda", (8, 1)), b"")
                .entry(&device(b'3', "far", (300, 70_000)), b"")
                .entry(&Entry::new(b'6', "pipe", 0o620), b"")],
        ),
        Case::new(
            "modes",
            [base()
                .entry(&Entry::new(b'0', "suid", 0o4755), b"s")
                .entry(&Entry::new(b'0', "sgid", 0o2755), b"s")
                .entry(&Entry::new(b'5', "sticky", 0o1777), b"")
                .entry(&Entry::new(b'0', "none", 0), b"s")
                .entry(&Entry::new(b'0', "with-type", 0o100_640), b"s")],
        ),
        Case::new(
            "root-directory",
            [base().entry(&Entry { uid: 3, gid: 4, ..Entry::new(b'5', "./", 0o711) }, b"")],
        ),
        Case::new(
            "from-the-root",
            [Layer::new().directory("./a").file("./a/b", b"b").file("/c", b"c").file("a//e", b"e")],
        ),
        Case::new("around", [base().file("d/../f", b"f").file("/../g", b"g")]),
        Case::new(
            "twice",
            [base().file("d/x", b"second").directory("d").symlink("etc/hello", "x").file("etc/hello", b"")],
        ),
        Case::new("long-path-pax", [Layer::new().pax(&[("path", deep.as_bytes())]).file("short", b"f")]),
        Case::new(
            "long-path-gnu",
            [Layer::new()
                .entry(&Entry::new(b'L', "././@LongLink", 0o644), &[deep.as_bytes(), b"\0"].concat())
                .file("short", b"f")],
        ),
        Case::new("long-name", [Layer::new().pax(&[("path", name.as_bytes())]).file("short", b"f")]),
        Case::new("ustar-prefix", [Layer::new().raw(&prefixed, b"pf")]),
        Case::new("old-headers", [Layer::new().raw(&v7, b"v7").raw(&v7_directory, b"").file("after", b"a")]),
        Case::new(
            "names-in-other-letters",
            [Layer::new()
                .file("ü/ñ/漢字", "ä".as_bytes())
                .entry(&Entry::new(b'0', b"latin-\xe4", 0o644), b"l")
                .file("a b\tc", b"blank")
                .file("new\nline", b"n")
                .file("back\\slash", b"b")],
        ),
        Case::new(
            "pax-value-empty",
            [Layer::new().pax(&[("path", b""), ("comment", b"c")]).file("kept", b"k")],
        ),
        Case::new(
            "global-header",
            [Layer::new()
                .entry(&Entry::new(b'g', "pax_global_header", 0o644), b"19 comment=aaaaaaa\n")
                .file("f", b"f")],
        ),
        Case::new(
            "attributes",
            [base()
                .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.trusted.t", b"t")])
                .file("cap", b"program")
                .pax(&[("SCHILY.xattr.user.empty", b""), ("SCHILY.xattr.user.line", b"a\nb=c\n")])
                .file("user", b"u")
                .pax(&[("SCHILY.xattr.user.dir", b"d")])
                .directory("marked")],
        ),
        Case::new(
            "directory-with-a-size",
            [Layer::new()
                .entry(&Entry { size: Some(4096), ..Entry::new(b'5', "s", 0o755) }, b"")
                .file("s/f", b"f")],
        ),
        Case::new("no-end", [Layer::new().file("f", b"f")]).shortened(),
        Case::new("behind-the-end", [Layer::new().file("f", b"f").append(&[0; 1024]).file("hidden", b"h")]),
        Case::new("contiguous", [base().entry(&Entry::new(b'7', "c", 0o600), b"contents")])
            .docker(Docker::Refuses("POSIX has readers take it for a file; Docker knows no such type")),
        Case::new("label", [Layer::new().entry(&Entry::new(b'V', "label", 0o644), b"").file("f", b"f")])
            .docker(Docker::Refuses(
                "`tar --label` describes the archive; nothing of it belongs to the image",
            )),
    ]
}

/// Owners, times and sizes at the ends of their ranges.
fn numbers() -> Vec<Case> {
    let timed = |path, mtime| Entry { mtime, ..Entry::new(b'0', path, 0o644) };
    vec![
        Case::new(
            "owners",
            [Layer::new()
                .entry(&Entry { uid: 1000, gid: 50, ..Entry::new(b'0', "a", 0o640) }, b"a")
                .entry(
                    &Entry { uid: 3_000_000_000, gid: 4_294_967_294, ..Entry::new(b'0', "base-256", 0o644) },
                    b"b",
                )
                .pax(&[("uid", b"3000000000"), ("gid", b"4294967294")])
                .file("pax", b"p")],
        ),
        Case::new(
            "owners-below-zero",
            [Layer::new()
                .entry(&Entry { uid: -2, gid: -2, ..Entry::new(b'0', "nobody", 0o644) }, b"n")
                .entry(&Entry { uid: -1, gid: -1, ..Entry::new(b'0', "as-made", 0o644) }, b"m")],
        ),
        Case::new(
            "times",
            [Layer::new()
                .entry(&timed("zero", 0), b"0")
                .entry(&timed("late", 4_000_000_000), b"l")
                .pax(&[("mtime", b"1700000000.987654321")])
                .file("fraction", b"f")],
        ),
        Case::new(
            "times-before-1970",
            [Layer::new().entry(&timed("base-256", -5), b"b").pax(&[("mtime", b"-5.5")]).file("pax", b"p")],
        ),
        Case::new("times-after-2106", [Layer::new().entry(&timed("far", 7_000_000_000), b"f")])
            .docker(Docker::Differs(&["far"], "an initrd has 32 bits for a time")),
    ]
}

/// A sparse file of ten bytes, of which three are stored, in every format; and a file after it.
fn sparse() -> Vec<Case> {
    let gnu = {
        let mut header = header(&Entry::new(b'S', "s", 0o644), 3);
        header[257..265].copy_from_slice(b"ustar  \0");
        header[345..].fill(0);
        for (at, value) in [(386, 2), (398, 1), (410, 6), (422, 2), (434, 10), (446, 0)] {
            number(&mut header[at..at + 12], value);
        }
        number(&mut header[483..495], 10);
        header
    };
    let mut map = b"3\n2\n1\n6\n2\n10\n0\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abc");
    let after = |layer: Layer| [layer.file("after", b"a")];
    let one = |key| (key, &b"1"[..]);
    vec![
        Case::new("sparse-gnu", after(Layer::new().raw(&gnu, b"abc")))
            .docker(Docker::Refuses("it knows no such type; GNU tar writes it with --format=gnu --sparse")),
        Case::new(
            "sparse-0-0",
            after(
                Layer::new()
                    .pax(&[
                        ("GNU.sparse.size", b"10"),
                        ("GNU.sparse.numblocks", b"2"),
                        ("GNU.sparse.offset", b"2"),
                        ("GNU.sparse.numbytes", b"1"),
                        ("GNU.sparse.offset", b"6"),
                        ("GNU.sparse.numbytes", b"2"),
                    ])
                    .file("s", b"abc"),
            ),
        ),
        Case::new(
            "sparse-0-1",
            after(
                Layer::new()
                    .pax(&[
                        ("GNU.sparse.size", b"10"),
                        ("GNU.sparse.numblocks", b"2"),
                        ("GNU.sparse.map", b"2,1,6,2"),
                        ("GNU.sparse.name", b"s"),
                    ])
                    .file("GNUSparseFile.0/s", b"abc"),
            ),
        ),
        Case::new(
            "sparse-1-0",
            after(
                Layer::new()
                    .pax(&[
                        one("GNU.sparse.major"),
                        ("GNU.sparse.minor", b"0"),
                        ("GNU.sparse.realsize", b"10"),
                        ("GNU.sparse.name", b"s"),
                    ])
                    .file("GNUSparseFile.0/s", &map),
            ),
        ),
    ]
}

fn compressions() -> Vec<Case> {
    let large: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 5).to_le_bytes()).collect();
    let case = |name, packed| Case::new(name, [base().file("large", &large)]).packed(packed);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"meta"].concat();
    vec![
        case("gzip", Packed::By(&["gzip", "-nc"])),
        case("gzip-in-two", Packed::Twice(&["gzip", "-nc"])),
        case("zstd", Packed::By(&["zstd", "-qc"])),
        case("zstd-in-two", Packed::Twice(&["zstd", "-qc"])),
        case("zstd-skippable", Packed::Behind(skippable, &["zstd", "-qc"])),
        case("bzip2", Packed::By(&["bzip2", "-c"])),
        case("xz", Packed::By(&["xz", "-c"])),
        case("xz-best", Packed::By(&["xz", "-9c", "--check=sha256"])),
    ]
}

/// Programs, and how they run.
fn configurations() -> Vec<Case> {
    let case = |name, run| Case::new(name, [base()]).run(run);
    vec![
        case(
            "run-everything",
            json!({
                "Entrypoint": ["/a", "b c"], "Cmd": ["d", ""], "Env": ["A=1", "A=2", "E=", "PATH=/x", "Q=a=b \"c\""],
                "WorkingDir": "/srv/data", "User": "web:ops", "StopSignal": "SIGRTMIN+3",
                "ExposedPorts": {"80/tcp": {}}, "Labels": {"l": "v"}, "Volumes": {"/v": {}},
            }),
        ),
        case("run-a-word", json!({"Entrypoint": "/bin/run it", "Cmd": "all"})),
        case("run-entry-point", json!({"Entrypoint": ["/a"], "Cmd": null})),
        case("run-relative", json!({"Cmd": ["a"], "WorkingDir": "data", "User": "1000:0"})),
        case(
            "run-and-check",
            json!({
                "Cmd": ["/a"], "Healthcheck": {
                    "Test": ["CMD", "/check", "x"], "Interval": 5_000_000_000u64, "Timeout": 2_000_000_000u64,
                    "StartPeriod": 1_000_000_000, "Retries": 2,
                },
            }),
        ),
    ]
}
