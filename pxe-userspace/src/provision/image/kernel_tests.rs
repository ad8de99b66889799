use super::super::testing::{TestLayer, apply, bzimage};
use super::*;

fn image(names: &[&str]) -> Tree {
    let layer = names.iter().fold(TestLayer::new(), |layer, name| {
        layer.file(&format!("boot/{name}"), &bzimage(&format!("header-of-{name}")))
    });
    apply([layer]).unwrap()
}

fn chosen(tree: &Tree) -> (String, String) {
    let choice = of_image(tree).unwrap().unwrap().choice;
    (choice.version, choice.path)
}

#[test]
fn the_highest_version_is_chosen() {
    let tree =
        image(&["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-10-amd64", "vmlinuz-6.1.0-11-amd64.old", "vmlinuz"]);
    assert_eq!(chosen(&tree), ("6.1.0-10-amd64".into(), "/boot/vmlinuz-6.1.0-10-amd64".into()));
    let rescue = image(&["vmlinuz-0-rescue-abc", "vmlinuz"]);
    assert_eq!(chosen(&rescue), ("header-of-vmlinuz".into(), "/boot/vmlinuz".into()));
}

#[test]
fn a_kernel_without_a_version_in_its_name_says_it_itself() {
    let layer = TestLayer::new()
        .directory("usr/lib/modules/6.6.1")
        .symlink("lib", "usr/lib")
        .symlink("boot/vmlinuz", "../usr/lib/modules/6.6.1/vmlinuz")
        .file("usr/lib/modules/6.6.1/vmlinuz", &bzimage("6.6.1"));
    let choice = of_image(&apply([layer]).unwrap()).unwrap().unwrap().choice;
    assert_eq!(choice.version, "6.6.1");
    assert!(choice.modules, "modules are found through the link from /lib");
}

#[test]
fn kernels_are_found_where_distributions_keep_them() {
    const V: &str = "6.12.3-1-x";
    for (place, shown) in [
        ("boot/vmlinuz-6.12.3-1-x", "/boot/vmlinuz-6.12.3-1-x"),
        ("boot/vmlinuz-lts", "/boot/vmlinuz-lts"),
        ("boot/vmlinuz-linux-zen", "/boot/vmlinuz-linux-zen"),
        ("boot/kernel-6.12.3-1-x", "/boot/kernel-6.12.3-1-x"),
        ("boot/bzImage", "/boot/bzImage"),
        ("usr/lib/modules/6.12.3-1-x/vmlinuz", "/usr/lib/modules/6.12.3-1-x/vmlinuz"),
        ("lib/modules/6.12.3-1-x/vmlinuz", "/lib/modules/6.12.3-1-x/vmlinuz"),
    ] {
        for modules in ["lib/modules", "usr/lib/modules"] {
            let layer = TestLayer::new()
                .file(&format!("{modules}/{V}/modules.dep"), b"")
                .file(place, &bzimage(V))
                // A file that is no kernel is skipped.
                .file("boot/vmlinuz-9.9.old", &bzimage("9.9"))
                .file("boot/vmlinuz-signed.sig", b"text")
                .file("boot/kernel-notes", b"text");
            let choice = of_image(&apply([layer]).unwrap()).unwrap().unwrap().choice;
            assert_eq!((&choice.version[..], &choice.path[..], choice.modules), (V, shown, true));
            assert_eq!(choice.reason, "the image's only kernel");
        }
    }
}

#[test]
fn beside_modules_of_another_version_it_is_called_by_its_place() {
    let layer = TestLayer::new()
        .file("usr/lib/modules/6.12.3-1-x/modules.dep", b"")
        .file("usr/lib/modules/6.12.3-1-x/vmlinuz", &bzimage("6.12.3+"));
    let choice = of_image(&apply([layer]).unwrap()).unwrap().unwrap().choice;
    assert_eq!((&choice.version[..], choice.modules), ("6.12.3-1-x", true));
}

#[test]
fn one_with_modules_comes_before_a_higher_one_without() {
    let layer = TestLayer::new()
        .file("lib/modules/6.1.0/modules.dep", b"")
        .file("boot/vmlinuz-virt", &bzimage("6.1.0"))
        .file("boot/vmlinuz-edge", &bzimage("6.12.0"));
    let choice = of_image(&apply([layer]).unwrap()).unwrap().unwrap().choice;
    assert_eq!((&choice.path[..], choice.modules), ("/boot/vmlinuz-virt", true));
    assert_eq!(choice.reason, "the highest version that has its modules, of 2 kernels in the image");
}

#[test]
fn no_kernel_is_none_and_something_else_is_an_error() {
    assert!(of_image(&Tree::new()).unwrap().is_none());
    assert!(of_image(&image(&["config-6.1.0"])).unwrap().is_none());
    let text = apply([TestLayer::new().file("boot/vmlinuz-6.1.0", b"#!/bin/sh\n")]).unwrap();
    let Err(error) = of_image(&text) else { panic!("a script is no kernel") };
    assert!(error.to_string().contains("boot/vmlinuz-6.1.0 is not a Linux kernel"), "{error}");
}

#[test]
fn network_modules_come_with_what_they_depend_on() {
    let dep = "kernel/drivers/net/ethernet/intel/e1000/e1000.ko:\n\
               kernel/drivers/net/virtio_net.ko.zst: kernel/drivers/net/net_failover.ko kernel/net/core/failover.ko\n\
               kernel/drivers/net/net_failover.ko: kernel/net/core/failover.ko\n\
               kernel/net/core/failover.ko:\n\
               kernel/sound/snd.ko:\n";
    let tree =
        apply([TestLayer::new().file("m/modules.dep", dep.as_bytes()).file("m/modules.alias", b"")]).unwrap();
    let needed = needed_modules(&tree, tree.find("m").unwrap()).unwrap();
    assert_eq!(
        needed,
        [
            "kernel/drivers/net/ethernet/intel/e1000/e1000.ko",
            "kernel/drivers/net/net_failover.ko",
            "kernel/drivers/net/virtio_net.ko.zst",
            "kernel/net/core/failover.ko",
            "modules.dep",
            "modules.alias",
        ]
    );
}

#[test]
fn numbers_order_as_numbers() {
    let mut versions = ["6.1.0-10", "6.1.0-9", "5.19", "6.1.0", "6.01.0", "6.1.0-9-rt", "a", ""];
    versions.sort_by(|a, b| natural_order(a, b));
    assert_eq!(versions, ["", "5.19", "6.1.0", "6.1.0-9", "6.1.0-9-rt", "6.1.0-10", "6.01.0", "a"]);
}
