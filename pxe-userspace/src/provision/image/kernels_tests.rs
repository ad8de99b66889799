use std::process::Command;

use super::super::testing::{self, bzimage};
use super::*;
use crate::nodes::engine::Engine;

struct Fixture {
    dir: tempfile::TempDir,
    images: Images,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("assets")).unwrap();
        testing::assets(&dir.path().join("assets"));
        let images = Self::open(dir.path());
        Self { dir, images }
    }

    fn open(dir: &Path) -> Images {
        let engine = Engine::new(&crate::config::Docker { socket: Some(dir.join("no-engine")) });
        Images::open(&dir.join("state"), &dir.join("assets"), engine).unwrap()
    }

    /// Like a distribution's package: a kernel, and modules of which stage 1 needs some.
    fn directory(&self, version: &str) -> PathBuf {
        let root = self.dir.path().join(format!("kernel-{version}"));
        let modules = root.join("lib/modules").join(version);
        for (file, contents) in [
            ("kernel/drivers/net/ethernet/card.ko", "card"),
            ("kernel/drivers/net/bonding/bonding.ko.xz", "bonding"),
            ("kernel/net/tls/tls.ko", "tls"),
            ("kernel/sound/snd-hda.ko", "sound"),
            (
                "modules.dep",
                "kernel/drivers/net/ethernet/card.ko:\n\
                 kernel/drivers/net/bonding/bonding.ko.xz: kernel/net/tls/tls.ko\n\
                 kernel/net/tls/tls.ko:\nkernel/sound/snd-hda.ko:\n",
            ),
            (
                "modules.builtin",
                "kernel/drivers/block/loop.ko\nkernel/fs/squashfs/squashfs.ko\nkernel/fs/overlayfs/overlay.ko\n",
            ),
        ] {
            let path = modules.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, contents).unwrap();
        }
        std::fs::create_dir(root.join("boot")).unwrap();
        std::fs::write(root.join(format!("boot/vmlinuz-{version}")), bzimage(version)).unwrap();
        root
    }

    async fn add(&self, path: &Path) -> Result<KernelRecord, AddKernelError> {
        let source = KernelOrigin::Path(path.to_owned());
        self.images.add_kernel(NewKernel { name: None, source, from: None }).await
    }

    /// The names of the archive's files, listed by cpio(1), so that our writer does not judge itself.
    fn files(&self, blob: &Stored) -> Vec<String> {
        let packed =
            std::fs::File::open(self.dir.path().join("state/images/blobs").join(&blob.sha256)).unwrap();
        let plain = zstd::decode_all(packed).unwrap();
        let path = self.dir.path().join("plain.cpio");
        std::fs::write(&path, plain).unwrap();
        let listed =
            Command::new("cpio").arg("-t").stdin(std::fs::File::open(path).unwrap()).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_directory_becomes_a_kernel_with_a_stage_1_of_its_own() {
    let fixture = Fixture::new();
    let record = fixture.add(&fixture.directory("6.9.1")).await.unwrap();
    assert_eq!((record.name.as_str(), record.version.as_str()), ("6.9.1", "6.9.1"));
    assert!(record.two_stages);
    let files = fixture.files(&record.stage1_blob);
    assert!(files.iter().any(|f| f == "lib/modules/6.9.1/kernel/drivers/net/ethernet/card.ko"), "{files:?}");
    assert!(files.iter().all(|f| !f.contains("snd-hda") && !f.contains("bonding.ko")), "{files:?}");
    assert!(files.iter().any(|f| f == "init"), "{files:?}");

    // The default is stored, and removed with its kernel.
    assert!(fixture.images.default_kernel(Some("6.9.1")).unwrap());
    assert!(!fixture.images.default_kernel(Some("6.9.2")).unwrap());
    let again = Fixture::open(fixture.dir.path());
    let KernelList { default, kernels } = again.kernels();
    assert_eq!(default.as_deref(), Some("6.9.1"));
    // Times are stored to the microsecond.
    let kernels: Vec<_> =
        kernels.into_iter().map(|kept| KernelRecord { added: record.added, ..kept }).collect();
    assert_eq!(kernels, std::slice::from_ref(&record));
    assert_eq!(again.gc(BTreeSet::new()).await.unwrap().files, 0, "all of it is in use");
    assert!(again.remove_kernel("6.9.1").unwrap() && !again.remove_kernel("6.9.1").unwrap());
    assert_eq!(again.kernels(), KernelList::default());
    let kept = BTreeSet::from([record.kernel_blob.sha256.clone()]);
    assert_eq!(again.gc(kept).await.unwrap().files, 3, "but for what a machine came up with last");
}

#[tokio::test]
async fn the_same_kernel_is_the_same_blobs() {
    let fixture = Fixture::new();
    let directory = fixture.directory("6.9.1");
    let first = fixture.add(&directory).await.unwrap();
    let second = fixture.add(&directory).await.unwrap();
    assert_eq!(KernelRecord { added: first.added, ..second }, first);
}

#[tokio::test]
async fn a_profiles_modules_come_with_what_they_depend_on() {
    let fixture = Fixture::new();
    let record = fixture.add(&fixture.directory("6.9.1")).await.unwrap();
    let wanted = ["bonding", "snd_hda", "squashfs"].map(str::to_owned);
    let set = fixture.images.module_set(&record, &wanted).unwrap();
    let files = fixture.files(&set.blob);
    let modules: Vec<&str> =
        files.iter().filter(|f| f.contains(".ko")).map(|f| f.rsplit('/').next().unwrap()).collect();
    assert_eq!(modules, ["bonding.ko.xz", "tls.ko", "snd-hda.ko"], "{files:?}");
    assert_eq!(fixture.images.module_set(&record, &wanted).unwrap(), set);
    assert_eq!(fixture.images.gc(BTreeSet::new()).await.unwrap().files, 0);

    let missing = fixture.images.module_set(&record, &["nosuch".to_owned()]).unwrap_err();
    assert_eq!(missing.to_string(), "kernel 6.9.1 has no module nosuch");
}

#[tokio::test]
async fn a_debian_package_is_unpacked_and_not_installed() {
    let fixture = Fixture::new();
    let root = fixture.dir.path().join("package");
    std::fs::create_dir_all(root.join("DEBIAN")).unwrap();
    std::fs::create_dir(root.join("boot")).unwrap();
    let control =
        "Package: linux-image-test\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n";
    std::fs::write(root.join("DEBIAN/control"), control).unwrap();
    std::fs::write(root.join("boot/vmlinuz-6.9.1"), bzimage("6.9.1")).unwrap();
    let deb = fixture.dir.path().join("linux-image.deb");
    let built = Command::new("dpkg-deb").arg("--build").args([&root, &deb]).output().unwrap();
    assert!(built.status.success(), "{built:?}");

    let record = fixture.add(&deb).await.unwrap();
    assert_eq!((record.version.as_str(), record.modules, record.two_stages), ("6.9.1", None, false));
    let work = fixture.dir.path().join("state/images/work");
    assert_eq!(work.read_dir().unwrap().count(), 0, "nothing of it stays");
}

#[tokio::test]
async fn what_is_no_kernel_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    let refused = async |path: &Path| fixture.add(path).await.unwrap_err().to_string();
    let directory = fixture.directory("6.9.1");

    let empty = fixture.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(refused(&empty).await.contains("has no kernel"));

    std::fs::write(directory.join("boot/vmlinuz-6.9.1"), bzimage("6.9.2")).unwrap();
    let words = refused(&directory).await;
    assert!(words.contains("has modules of 6.9.1, and none of its kernel's version 6.9.2"), "{words}");

    std::fs::write(directory.join("boot/vmlinuz-6.9.1"), bzimage("6.9.1")).unwrap();
    std::fs::remove_file(directory.join("lib/modules/6.9.1/modules.dep")).unwrap();
    let words = refused(&directory).await;
    assert!(words.contains("`depmod -b DIR 6.9.1`"), "{words}");

    std::fs::write(directory.join("boot/vmlinuz-6.9.1"), "noise").unwrap();
    assert!(refused(&directory).await.contains("is not a Linux kernel"));

    let noise = fixture.dir.path().join("noise.deb");
    std::fs::write(&noise, "noise").unwrap();
    let words = refused(&noise).await;
    assert!(
        words.contains("neither a Debian package nor a tar archive") && words.contains("noise.deb"),
        "{words}"
    );
    assert!(fixture.images.kernels().kernels.is_empty());

    let source = KernelOrigin::Image("nothing".into());
    let error = fixture.images.add_kernel(NewKernel { name: None, source, from: None }).await.unwrap_err();
    assert!(matches!(error, AddKernelError::NoImage(name) if name == "nothing:latest"));
    let source = KernelOrigin::Path(fixture.directory("6.9.3"));
    let error = fixture
        .images
        .add_kernel(NewKernel { name: Some("a/b".into()), source, from: None })
        .await
        .unwrap_err();
    assert!(matches!(error, AddKernelError::Name(_)));
}
