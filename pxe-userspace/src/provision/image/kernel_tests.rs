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
