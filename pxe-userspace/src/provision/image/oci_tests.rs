use std::io::Write as _;

use super::super::documents::RunJson;
use super::super::testing::TestLayer;
use super::*;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|l| digest(l)).collect();
    serde_json::json!({
        "os": "linux", "architecture": "amd64",
        "config": {"Entrypoint": ["/bin/app"], "Cmd": ["-v"], "Env": ["A=1"], "WorkingDir": "/srv", "User": "1000"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

/// The members of an OCI layout with one image.
fn layout(layers: &[(&[u8], &[u8])]) -> Vec<(String, Vec<u8>)> {
    let blob = |bytes: &[u8]| (format!("blobs/sha256/{}", hex(&Sha256::digest(bytes))), bytes.to_vec());
    let plain: Vec<_> = layers.iter().map(|(plain, _)| *plain).collect();
    let config = config(&plain);
    let manifest = serde_json::json!({
        "config": {"digest": digest(&config)},
        "layers": layers.iter().map(|(_, packed)| serde_json::json!({"digest": digest(packed)})).collect::<Vec<_>>(),
    })
    .to_string();
    // As BuildKit does: an index within the index, with an attestation beside the image.
    let inner = serde_json::json!({"manifests": [
        {"digest": digest(manifest.as_bytes()), "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": digest(b"attestation"), "platform": {"os": "unknown", "architecture": "unknown"}},
        {"digest": digest(b"other"), "platform": {"os": "linux", "architecture": "arm64"}},
    ]})
    .to_string();
    let index = serde_json::json!({"manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest(inner.as_bytes()),
        "annotations": {"io.containerd.image.name": "docker.io/library/app:1"},
    }]})
    .to_string();
    let mut members = vec![("index.json".to_owned(), index.into_bytes())];
    members.extend([blob(&config), blob(manifest.as_bytes()), blob(inner.as_bytes())]);
    members.extend(layers.iter().map(|(_, packed)| blob(packed)));
    members
}

fn tar_of(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    members.iter().fold(TestLayer::new(), |tar, (name, bytes)| tar.file(name, bytes)).bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn layers_of(archive: &Archive) -> Vec<Vec<u8>> {
    let described = archive.describe().unwrap();
    let read = |layer| {
        let mut bytes = Vec::new();
        archive.layer(layer).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    };
    described.layers.iter().map(read).collect()
}

#[test]
fn a_layout_is_read_as_directory_as_tar_and_as_compressed_tar() {
    let dir = tempfile::tempdir().unwrap();
    let one = TestLayer::new().file("a", b"1").bytes();
    let two = TestLayer::new().file("b", b"2").bytes();
    let three = TestLayer::new().file("c", b"3").bytes();
    let zstd = zstd::encode_all(&three[..], 3).unwrap();
    let members = layout(&[(&one, &one), (&two, &gzip(&two)), (&three, &zstd)]);
    let (tree, tar, tgz) = (dir.path().join("tree"), dir.path().join("i.tar"), dir.path().join("i.tar.gz"));
    std::fs::create_dir_all(tree.join("blobs/sha256")).unwrap();
    for (name, bytes) in &members {
        std::fs::write(tree.join(name), bytes).unwrap();
    }
    std::fs::write(&tar, tar_of(&members)).unwrap();
    std::fs::write(&tgz, gzip(&tar_of(&members))).unwrap();
    for path in [tree, tar, tgz] {
        let archive = Archive::open(&path, dir.path()).unwrap();
        let described = archive.describe().unwrap();
        assert_eq!(described.references, ["docker.io/library/app:1"]);
        assert_eq!(described.config.argv(), ["/bin/app", "-v"]);
        assert_eq!((&*described.config.working_dir, &*described.config.user), ("/srv", "1000"));
        assert_eq!(layers_of(&archive), [&one[..], &two, &three]);
    }
}

#[test]
fn a_layer_that_repeats_may_be_a_link_to_the_first() {
    let layer = TestLayer::new().file("a", b"1").bytes();
    let manifest = r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let tar = TestLayer::new()
        .file("1/layer.tar", &layer)
        .symlink("2/layer.tar", "../1/layer.tar")
        .file("c.json", &config(&[&layer, &layer]))
        .file("manifest.json", manifest.as_bytes());
    let archive = opened(tar).unwrap();
    assert_eq!(layers_of(&archive), [&layer[..], &layer]);
}

#[test]
fn one_image_may_be_listed_several_times() {
    let layer = TestLayer::new().file("a", b"1").bytes();
    let members = layout(&[(&layer, &layer)]);
    // In `layout`'s order.
    let [manifest, inner] = [2, 3].map(|i| digest(&members[i].1));
    let other = digest(b"another manifest");
    let plain = |digest: &str, name: &str| serde_json::json!({"digest": digest, "annotations": {"org.opencontainers.image.ref.name": name}});
    let index = |digest: &str, name: &str| {
        let mut listed = plain(digest, name);
        listed["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
        listed
    };
    let platform = |digest: &str, variant: &str| serde_json::json!({"digest": digest, "platform": {"os": "linux", "architecture": "amd64", "variant": variant}});
    let read = |listed: &[serde_json::Value], more: &[(String, Vec<u8>)]| {
        let index = serde_json::json!({"manifests": listed}).to_string().into_bytes();
        let members = [&[("index.json".to_owned(), index)], &members[1..], more].concat();
        let tar = members.iter().fold(TestLayer::new(), |tar, (name, bytes)| tar.file(name, bytes));
        opened(tar).and_then(|archive| archive.describe()).map(|d| (d.references.join(" "), d.id))
    };
    let config = digest(&members[1].1);
    let found = |name: &str| (name.to_owned(), config.clone());
    // buildx with two `-t`; an index beside the image that it lists, in both orders.
    assert_eq!(read(&[plain(&manifest, "a:1"), plain(&manifest, "b:1")], &[]).unwrap(), found("a:1 b:1"));
    assert_eq!(read(&[index(&inner, "e:1"), plain(&manifest, "f:1")], &[]).unwrap(), found("e:1 f:1"));
    assert_eq!(read(&[plain(&manifest, "f:1"), index(&inner, "e:1")], &[]).unwrap(), found("f:1 e:1"));
    // skopeo writes only a tag: the name is the archive's.
    assert_eq!(read(&[plain(&manifest, "latest")], &[]).unwrap(), found("test:latest"));
    assert_eq!(read(&[plain(&manifest, "v1.2")], &[]).unwrap(), found("test:v1.2"));
    assert_eq!(read(&[plain(&manifest, "web")], &[]).unwrap(), found("web"));
    // Several for the machines' platform: the one that every processor runs is chosen.
    let variants =
        serde_json::json!({"manifests": [platform(&other, "v3"), platform(&manifest, "")]}).to_string();
    let name = format!("blobs/sha256/{}", &digest(variants.as_bytes())[7..]);
    let listed = [index(&digest(variants.as_bytes()), "v:1")];
    assert_eq!(read(&listed, &[(name, variants.into_bytes())]).unwrap(), found("v:1"));
    // Two different images are an error.
    let two = read(&[plain(&manifest, "a:1"), plain(&other, "b:1")], &[]);
    assert!(matches!(two, Err(ArchiveError::Several { count: 2, .. })), "{two:?}");
}

#[test]
fn a_saved_image_has_all_its_names() {
    let layer = TestLayer::new().bytes();
    let manifest = r#"[{"Config":"c","RepoTags":["f:1","g:2"],"Layers":["l"]},{"Config":"c","RepoTags":["h:3"],"Layers":["l"]}]"#;
    let tar = TestLayer::new()
        .file("manifest.json", manifest.as_bytes())
        .file("c", &config(&[&layer]))
        .file("l", &layer);
    assert_eq!(opened(tar).unwrap().describe().unwrap().references, ["f:1", "g:2", "h:3"]);
    for (path, name) in
        [("/x/web.tar.gz", "web"), ("web-1.2.tar", "web-1.2"), ("web.oci", "web"), ("web", "web")]
    {
        assert_eq!(super::super::documents::stem(Path::new(path)), name);
    }
}

#[test]
fn an_archive_may_be_stored_with_holes() {
    let layer = TestLayer::new().file("a", &[0; 100_000]).bytes();
    let manifest = r#"[{"Config":"c","RepoTags":["f:1"],"Layers":["l"]}]"#;
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [("manifest.json", manifest.as_bytes()), ("c", &config(&[&layer])), ("l", &layer)] {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let tar = dir.path().join("i.tar");
    for format in ["--format=gnu", "--sparse-version=1.0", "--sparse-version=0.1", "--sparse-version=0.0"] {
        // tar finds holes by reading, so the file system need not support any.
        let mut command = std::process::Command::new("tar");
        command.args(["-S", "--hole-detection=raw", format, "-C"]).arg(dir.path()).arg("-cf").arg(&tar);
        if format.contains("sparse") {
            command.arg("--format=pax");
        }
        assert!(command.args(["manifest.json", "c", "l"]).status().unwrap().success());
        assert_eq!(layers_of(&Archive::open(&tar, dir.path()).unwrap()), [&layer[..]], "{format}");
    }
}

#[test]
fn a_word_by_itself_is_a_list_of_one() {
    let run = |json: &str| serde_json::from_str::<RunJson>(json).unwrap();
    let read = run(r#"{"Entrypoint":"/bin/sh -c","Cmd":["id"],"Shell":"/bin/sh"}"#);
    assert_eq!(read.entrypoint, Some(vec!["/bin/sh -c".to_owned()]), "Docker does not split it");
    assert_eq!(read.cmd, Some(vec!["id".to_owned()]));
    assert_eq!(read.shell, Some(vec!["/bin/sh".to_owned()]));
    let read = run(r#"{"Entrypoint":null}"#);
    assert_eq!((read.entrypoint, read.cmd), (None, None));
    assert!(serde_json::from_str::<RunJson>(r#"{"Cmd":[1]}"#).is_err());
}

#[test]
fn what_cannot_be_booted_is_refused_in_words() {
    let manifest = |config: &str, layers: &str| {
        format!(r#"[{{"Config":"{config}","RepoTags":null,"Layers":[{layers}]}}]"#).into_bytes()
    };
    let with = |config: &[u8], layers: &str| {
        TestLayer::new().file("manifest.json", &manifest("c", layers)).file("c", config)
    };
    let arm = br#"{"os":"linux","architecture":"arm64","rootfs":{}}"#;
    let two = br#"[{"Config":"a","Layers":[]},{"Config":"b","Layers":[]}]"#;
    let lying =
        TestLayer::new().file("index.json", br#"{"manifests":[{"digest":"sha256:../../../etc/passwd"}]}"#);
    for (tar, words) in [
        (TestLayer::new().file("bin/sh", b""), "docker import"),
        (
            TestLayer::new().file("manifest.json", &manifest("nowhere", "")),
            "names nowhere, which is not in it",
        ),
        (TestLayer::new().file("manifest.json", two), "holds 2 images"),
        (TestLayer::new().file("manifest.json", b"{"), "manifest.json"),
        (with(arm, ""), "--platform linux/amd64"),
        (with(&config(&[]), r#""x""#), "lists 1 layers, and its configuration 0"),
        (lying, "which is not in it"),
    ] {
        let refused = match opened(tar).and_then(|archive| archive.describe()) {
            Ok(_) => panic!("{words}: it must be refused"),
            Err(error) => error.to_string(),
        };
        assert!(refused.contains(words), "{refused}");
    }
    // A directory's manifest must not refer to the host's files.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("manifest.json"), manifest("/etc/hostname", "")).unwrap();
    let error = Archive::open(dir.path(), dir.path()).unwrap().describe().err().unwrap();
    assert!(matches!(error, ArchiveError::Missing { .. }), "{error}");
}

#[test]
fn a_manifest_that_was_changed_is_noticed() {
    let layer = TestLayer::new().bytes();
    let mut members = layout(&[(&layer, &layer)]);
    members[1].1.push(b' ');
    let tar = members.iter().fold(TestLayer::new(), |tar, (name, bytes)| tar.file(name, bytes));
    let error = opened(tar).unwrap().describe().err().unwrap();
    assert!(matches!(error, ArchiveError::Digest { .. }), "{error}");
}

fn opened(tar: TestLayer) -> Result<Archive, ArchiveError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&tar.bytes()).unwrap();
    Archive::from_file(Path::new("test.tar"), file)
}
