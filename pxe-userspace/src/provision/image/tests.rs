use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::testing::{self, TestLayer, assets, bzimage};
use super::*;
use crate::base::text::hex;

/// A state directory and an assets directory.
struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("assets")).unwrap();
        assets(&dir.path().join("assets"));
        Self { dir }
    }

    fn images(&self) -> Images {
        let engine = Engine::new(&crate::config::Docker { socket: Some(self.dir.path().join("no-engine")) });
        Images::open(&self.dir.path().join("state"), &self.dir.path().join("assets"), engine).unwrap()
    }

    /// Writes a `docker save` archive to a file.
    fn saved(&self, name: &str, tag: &str, layer: &[u8], cmd: &[&str]) -> ImageSource {
        let path = self.dir.path().join(name);
        std::fs::write(&path, testing::saved(tag, layer, serde_json::json!({"Cmd": cmd}))).unwrap();
        ImageSource::Path(path)
    }
}

fn rootfs() -> TestLayer {
    TestLayer::new()
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\x0a")])
        .file("bin/app", b"program")
        .file("etc/os-release", b"ID=test\n")
}

fn names_in(blob: &Blob) -> Vec<String> {
    let mut bytes = vec![0; blob.len() as usize];
    blob.read_at(0, &mut bytes).unwrap();
    let plain = zstd::decode_all(&bytes[..]).unwrap();
    let mut names = Vec::new();
    let mut rest = &plain[..];
    loop {
        let field = |n: usize| {
            usize::from_str_radix(std::str::from_utf8(&rest[6 + 8 * n..14 + 8 * n]).unwrap(), 16).unwrap()
        };
        let (size, name_size) = (field(6), field(11));
        let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
        if name == "TRAILER!!!" {
            return names;
        }
        names.push(name);
        rest = &rest[(110 + name_size).next_multiple_of(4) + size.next_multiple_of(4)..];
    }
}

/// Somebody's assets may be links to those of a version, and are the same assets for that.
#[tokio::test]
async fn assets_may_be_links() {
    let plain = Fixture::new();
    let linked = Fixture::new();
    let (assets, version) = (linked.dir.path().join("assets"), linked.dir.path().join("assets-1.2"));
    std::fs::create_dir(&version).unwrap();
    for (name, renamed) in [("kernel", "linux-6.1"), ("busybox", "busybox-1.35"), ("pxe-init", "pxe-init")] {
        std::fs::rename(assets.join(name), version.join(renamed)).unwrap();
        std::os::unix::fs::symlink(version.join(renamed), assets.join(name)).unwrap();
    }
    std::fs::rename(version.join("linux-6.1/vmlinuz"), version.join("vmlinuz")).unwrap();
    std::os::unix::fs::symlink("../vmlinuz", version.join("linux-6.1/vmlinuz")).unwrap();
    let mut records = Vec::new();
    for fixture in [&plain, &linked] {
        let source = fixture.saved("a.tar", "app", &rootfs().bytes(), &["/bin/app"]);
        records.push(fixture.images().add(&source, false, |_| ()).await.unwrap().record.clone());
    }
    assert_eq!(records[1].kernel.source, KernelSource::Assets);
    assert_eq!(records[0].assets, records[1].assets);
    assert_eq!(records[0].stage1_blob, records[1].stage1_blob);
}

#[tokio::test]
async fn an_image_becomes_blobs_and_is_there_after_a_restart() {
    let fixture = Fixture::new();
    let source = fixture.saved("a.tar", "docker.io/library/app", &rootfs().bytes(), &["/bin/app", "-v"]);
    let image = fixture.images().add(&source, false, |_| ()).await.unwrap();
    let record = &image.record;
    assert_eq!(record.reference, "app:latest");
    assert_eq!(record.kernel.version, "6.1.0-1");
    assert_eq!(record.kernel.source, KernelSource::Assets);
    assert!(record.kernel.modules);
    assert_eq!(record.unpacked.kernel, 30 << 20);
    // Four names, and two files smaller than a page.
    assert_eq!(record.unpacked.rootfs, 4 * 1024 + 2 * 4096);
    assert_eq!(
        names_in(&image.rootfs),
        ["image", "image/bin", "image/bin/app", "image/etc", "image/etc/os-release", "image.json"]
    );
    let stage1 = names_in(&image.stage1);
    for name in ["init", "bin/busybox", "bin/sh", "dev/console", "image", "proc"] {
        assert!(stage1.iter().any(|n| n == name), "{name} in {stage1:?}");
    }
    assert!(stage1.contains(&"lib/modules/6.1.0-1/kernel/drivers/net/virtio_net.ko".to_owned()));

    let reopened = fixture.images();
    // Compared as JSON, because times are stored only to the microsecond.
    let json = |records: &[ImageRecord]| serde_json::to_value(records).unwrap();
    assert_eq!(json(&reopened.list()), json(&[ImageRecord::clone(record)]));
    assert_eq!(reopened.get("app").unwrap().rootfs.key(), image.rootfs.key());
    assert!(reopened.get("other").is_none());
}

#[tokio::test]
async fn stage_2_holds_the_same_and_the_attributes_in_their_place() {
    let fixture = Fixture::new();
    let source = fixture.saved("a.tar", "app:1", &rootfs().bytes(), &["/bin/app", "-v"]);
    let image = fixture.images().add(&source, false, |_| ()).await.unwrap();
    let blob = image.record.stage2_blob.as_ref().unwrap();
    assert_eq!(image.stage2.unwrap().len(), blob.size);
    let path = fixture.dir.path().join("state/images/blobs").join(&blob.sha256);
    let unpacked = tempfile::tempdir().unwrap();
    let into = unpacked.path().join("root");
    let output = Command::new("unsquashfs")
        .args(["-quiet", "-no-progress", "-no-xattrs", "-d"])
        .args([&into, &path])
        .output();
    let output = output.expect("unsquashfs is installed (apt: squashfs-tools)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read(into.join("image/bin/app")).unwrap(), b"program");
    let manifest = std::fs::read(into.join("image.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["digest"], image.record.digest);
    assert_eq!(manifest["xattrs"], serde_json::json!([]));
}

#[tokio::test]
async fn a_kernel_without_the_modules_boots_in_one_stage() {
    let fixture = Fixture::new();
    let index = "assets/kernel/modules/lib/modules/6.1.0-1/modules.builtin";
    std::fs::write(fixture.dir.path().join(index), "kernel/drivers/block/loop.ko\n").unwrap();
    let source = fixture.saved("a.tar", "app:1", &rootfs().bytes(), &["/bin/app"]);
    let image = fixture.images().add(&source, false, |_| ()).await.unwrap();
    assert!(image.stage2.is_none() && image.record.stage2_blob.is_none());
}

#[tokio::test]
async fn the_manifest_says_what_to_run_and_which_xattrs_to_set() {
    let fixture = Fixture::new();
    let source = fixture.saved("a.tar", "app:1", &rootfs().bytes(), &["/bin/app", "-v"]);
    let image = fixture.images().add(&source, false, |_| ()).await.unwrap();
    let mut bytes = vec![0; image.rootfs.len() as usize];
    image.rootfs.read_at(0, &mut bytes).unwrap();
    let plain = zstd::decode_all(&bytes[..]).unwrap();
    let start = plain.iter().position(|b| *b == b'{').unwrap();
    let manifest = serde_json::Deserializer::from_slice(&plain[start..]).into_iter::<serde_json::Value>();
    assert_eq!(
        manifest.map(Result::unwrap).next().unwrap(),
        serde_json::json!({
            "reference": "app:1", "id": image.record.id, "digest": image.record.digest,
            "argv": ["/bin/app", "-v"], "env": [], "cwd": "/", "user": "", "stop-signal": null,
            "xattrs": [{"path": "bin/app", "name": "security.capability", "value": "010a"}],
        })
    );
}

#[tokio::test]
async fn the_same_image_is_the_same_bytes_on_every_appliance() {
    let (one, two) = (Fixture::new(), Fixture::new());
    let mut blobs = Vec::new();
    for fixture in [&one, &two] {
        let source = fixture.saved("a.tar", "app:1", &rootfs().bytes(), &["/bin/app"]);
        let record = fixture.images().add(&source, false, |_| ()).await.unwrap().record;
        blobs.push(record.blobs().cloned().collect::<Vec<_>>());
    }
    assert_eq!(blobs[0].len(), 4);
    assert_eq!(blobs[0], blobs[1]);
}

#[tokio::test]
async fn the_digest_is_of_the_contents_not_of_layers_and_times() {
    let fixture = Fixture::new();
    let images = fixture.images();
    let later = TestLayer::new()
        .pax(&[("SCHILY.xattr.security.capability", b"\x01\x0a"), ("mtime", b"1800000000")])
        .file("bin/app", b"program")
        .file("etc/os-release", b"ID=other\n")
        .file("etc/os-release", b"ID=test\n");
    let changed = TestLayer::new().file("bin/app", b"program").file("etc/os-release", b"ID=test\n");
    let mut digests = Vec::new();
    for (n, layer) in [rootfs(), later, changed].into_iter().enumerate() {
        let source = fixture.saved("a.tar", &format!("app:{n}"), &layer.bytes(), &["/bin/app"]);
        digests.push(images.add(&source, false, |_| ()).await.unwrap().record.digest.clone());
    }
    assert_eq!(digests[0], digests[1]);
    assert_ne!(digests[0], digests[2], "without its capability the program is another one");
}

#[tokio::test]
async fn a_kernel_in_the_image_comes_before_the_stock_one() {
    let fixture = Fixture::new();
    let layer = rootfs()
        .file("boot/vmlinuz-6.6.6", &bzimage("6.6.6"))
        .file("lib/modules/6.6.6/modules.dep", b"kernel/drivers/net/virtio_net.ko:\nkernel/sound/snd.ko:\n")
        .file("lib/modules/6.6.6/kernel/drivers/net/virtio_net.ko", b"module")
        .file("lib/modules/6.6.6/kernel/sound/snd.ko", b"module");
    let source = fixture.saved("a.tar", "app:1", &layer.bytes(), &["/bin/app"]);
    let image = fixture.images().add(&source, false, |_| ()).await.unwrap();
    assert_eq!(image.record.kernel.source, KernelSource::Image);
    assert_eq!(image.record.kernel_blob.sha256, hex(&Sha256::digest(bzimage("6.6.6"))));
    let modules: Vec<_> = names_in(&image.stage1).into_iter().filter(|n| n.ends_with(".ko")).collect();
    assert_eq!(modules, ["lib/modules/6.6.6/kernel/drivers/net/virtio_net.ko"]);
}

#[tokio::test]
async fn removed_images_are_swept_and_what_is_used_stays() {
    let fixture = Fixture::new();
    let images = fixture.images();
    let keep = fixture.saved("keep.tar", "keep:1", &rootfs().bytes(), &["/bin/app"]);
    let gone = fixture.saved("gone.tar", "gone:1", &rootfs().file("x", b"x").bytes(), &["/bin/app"]);
    images.add(&keep, false, |_| ()).await.unwrap();
    let held = images.add(&gone, false, |_| ()).await.unwrap();
    images.rm("gone:1").unwrap();
    assert!(matches!(images.rm("gone:1"), Err(RemoveError::NoSuchImage(_))));
    let freed = images.gc(BTreeSet::new()).await.unwrap();
    // Kernel and stage 1 are shared.
    let own = [Some(&held.record.rootfs_blob), held.record.stage2_blob.as_ref()];
    assert_eq!(freed, Freed { files: 2, bytes: own.into_iter().flatten().map(|b| b.size).sum() });
    assert_eq!(images.gc(BTreeSet::new()).await.unwrap(), Freed { files: 0, bytes: 0 });
    assert_eq!(fixture.images().list().len(), 1);
    // A machine may be fetching it.
    assert!(!names_in(&held.rootfs).is_empty());
}

#[tokio::test]
async fn an_image_has_several_names_and_is_gone_with_the_last() {
    let fixture = Fixture::new();
    let images = fixture.images();
    let saved = fixture.saved("a.tar", "a:1 b:2", &rootfs().bytes(), &["/bin/app"]);
    let image = images.add(&saved, false, |_| ()).await.unwrap();
    let names =
        |images: &Images| images.list().into_iter().map(|record| record.reference).collect::<Vec<_>>();
    assert_eq!((image.record.reference.as_str(), names(&images)), ("a:1", vec!["a:1".into(), "b:2".into()]));
    // Another archive of the same image, under another name: it is not built again.
    let again = fixture.saved("c.tar", "c:3", &rootfs().bytes(), &["/bin/app"]);
    let third = images.add(&again, false, |progress| panic!("{progress}")).await.unwrap();
    assert_eq!(third.record.reference, "c:3");
    assert_eq!(third.record.rootfs_blob, image.record.rootfs_blob);
    assert_eq!(images.names(&third.record), ["a:1", "b:2", "c:3"]);

    images.rm("a:1").unwrap();
    images.rm("c:3").unwrap();
    assert_eq!(images.gc(BTreeSet::new()).await.unwrap().files, 0);
    let reopened = fixture.images();
    assert_eq!(names(&reopened), ["b:2"]);
    assert!(!names_in(&reopened.get("b:2").unwrap().rootfs).is_empty());
    reopened.rm("b:2").unwrap();
    // Somebody sends a file meanwhile.
    let sent = tempfile::tempdir_in(reopened.work()).unwrap();
    std::fs::write(sent.path().join("d.tar"), "half").unwrap();
    assert_eq!(reopened.gc(BTreeSet::new()).await.unwrap().files, 4);
    assert!(sent.path().join("d.tar").exists());
}

#[tokio::test]
async fn what_cannot_be_booted_is_refused_in_words_and_leaves_nothing() {
    let fixture = Fixture::new();
    let images = fixture.images();
    let good = rootfs().bytes();
    let refused =
        async |source: ImageSource| images.add(&source, false, |_| ()).await.unwrap_err().to_string();

    let silent = fixture.saved("a.tar", "app:1", &good, &[]);
    assert!(refused(silent).await.contains("ENTRYPOINT or CMD"));

    let engine = refused(ImageSource::Reference("app:1".into())).await;
    assert!(engine.contains("no Docker engine answers at") && engine.contains("[docker] socket"), "{engine}");

    // One byte of a file changes after the image was built; its tar header stays valid.
    let ImageSource::Path(path) = fixture.saved("b.tar", "app:1", &good, &["/bin/app"]) else {
        unreachable!()
    };
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|w| w == b"program").unwrap();
    bytes[at] = b'P';
    std::fs::write(&path, bytes).unwrap();
    assert!(refused(ImageSource::Path(path)).await.contains("layer 1 is damaged"));

    std::fs::remove_dir_all(fixture.dir.path().join("assets/kernel")).unwrap();
    let no_kernel = fixture.saved("c.tar", "app:1", &good, &["/bin/app"]);
    let words = refused(no_kernel.clone()).await;
    assert!(words.contains("the image has no kernel") && words.contains("linux-image-amd64"), "{words}");
    std::fs::remove_file(fixture.dir.path().join("assets/pxe-init")).unwrap();
    assert!(refused(no_kernel).await.contains("cargo xtask setup"));

    assert!(images.list().is_empty());
    assert_eq!(images.gc(BTreeSet::new()).await.unwrap().files, 0, "nothing half-made stays");
}

#[tokio::test]
async fn a_record_whose_blob_is_gone_is_not_offered() {
    let fixture = Fixture::new();
    let source = fixture.saved("a.tar", "app:1", &rootfs().bytes(), &["/bin/app"]);
    let record = fixture.images().add(&source, false, |_| ()).await.unwrap().record;
    std::fs::remove_file(fixture.dir.path().join("state/images/blobs").join(&record.rootfs_blob.sha256))
        .unwrap();
    assert!(fixture.images().get("app:1").is_none());
}

#[test]
fn records_are_kebab_case_json() {
    let text = r#"{"reference":"a:1","id":"sha256:1","digest":"sha256:2",
        "added":"2026-01-02T03:04:05Z","config":{"entrypoint":[],"cmd":["/a"],"env":[],"working-dir":"",
        "user":""},"kernel":{"version":"6.1","source":"assets","path":"p","reason":"r",
        "modules":true},"kernel-blob":{"sha256":"x","size":1},"stage1-blob":{"sha256":"y","size":2},
        "rootfs-blob":{"sha256":"z","size":3},"unpacked":{"kernel":4,"stage1":5,"rootfs":6},"assets":"sha256:3"}"#;
    let record: ImageRecord = serde_json::from_str(text).unwrap();
    let mut expected: serde_json::Value = serde_json::from_str(text).unwrap();
    // Times always have microseconds.
    expected["added"] = "2026-01-02T03:04:05.000000Z".into();
    assert_eq!(serde_json::to_value(record).unwrap(), expected);
}

#[test]
fn references_are_spelled_out() {
    for (short, full) in [
        ("web", "web:latest"),
        ("docker.io/library/web", "web:latest"),
        ("docker.io/me/web:2", "me/web:2"),
        ("host:5000/web", "host:5000/web:latest"),
        ("web@sha256:12", "web@sha256:12"),
        ("sha256:12", "sha256:12"),
    ] {
        assert_eq!(canonical(short), full);
    }
}

#[test]
fn a_real_engine_gives_what_was_put_into_it() {
    use futures_util::TryStreamExt as _;
    crate::nodes::engine::testing::with_engine(async |engine, dir| {
        let fixture = Fixture::new();
        let images =
            Images::open(&dir.join("state"), &fixture.dir.path().join("assets"), engine.clone()).unwrap();
        let missing =
            images.add(&ImageSource::Reference("nothing:1".into()), false, |_| ()).await.unwrap_err();
        assert!(missing.to_string().contains("docker pull nothing:1"), "{missing}");

        let docker = engine.connect().await.unwrap();
        let saved = testing::saved_busybox("app:1");
        let options = bollard::query_parameters::ImportImageOptionsBuilder::default().build();
        let loaded = docker.import_image(options, bollard::body_full(saved.clone().into()), None);
        loaded.try_collect::<Vec<_>>().await.unwrap();
        let (send, seen) = std::sync::mpsc::channel();
        let report = move |progress| send.send(progress).unwrap();
        let from_engine = images.add(&ImageSource::Reference("app:1".into()), false, report).await.unwrap();
        let seen: Vec<Progress> = seen.iter().collect();
        assert!(
            matches!(seen[0], Progress::Exported { .. }) && seen.last() == Some(&Progress::Packing),
            "{seen:?}"
        );

        let path = dir.join("app.tar");
        std::fs::write(&path, saved).unwrap();
        let from_file = fixture.images().add(&ImageSource::Path(path), false, |_| ()).await.unwrap();
        assert_eq!(from_engine.record.digest, from_file.record.digest);

        // It is already here: nothing is exported again.
        let again =
            images.add(&ImageSource::Reference("app:1".into()), false, |p| panic!("{p}")).await.unwrap();
        assert_eq!(again.record, from_engine.record);
    });
}
