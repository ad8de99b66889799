use std::os::unix::fs::symlink;

use super::*;

/// Files below a root.
fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn link(root: &Path, target: &str, name: &str) {
    let name = root.join(name);
    fs::create_dir_all(name.parent().unwrap()).unwrap();
    symlink(root.join(target), name).unwrap();
}

#[test]
fn disks_are_told_by_how_they_are_connected() {
    let sata = "sys/devices/pci0000:00/0000:00:1f.2/ata3/host2/target2:0:0/2:0:0:0";
    let nvme = "sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1";
    let virtio = "sys/devices/pci0000:00/0000:00:03.0/virtio2/block/vda";
    let at = |of: &str, file: &str| format!("{of}/{file}");
    let files = [
        (at(sata, "model"), "Samsung SSD 870 \n"),
        (at(sata, "vpd_pg80"), "\0\u{1}\0\u{4}S5Y1 "),
        (at(sata, "block/sda/size"), "1000215216\n"),
        (at(sata, "block/sda/queue/rotational"), "0\n"),
        (at(nvme, "size"), "7501476528\n"),
        (at(nvme, "device/model"), "SAMSUNG MZQL23T8HCLS-00A07              \n"),
        (at(nvme, "device/serial"), "S64HNE0R123456      \n"),
        (at(virtio, "size"), "131072\n"),
        (at(virtio, "serial"), "DATA1"),
        ("sys/devices/virtual/block/loop0/size".to_owned(), "8\n"),
        ("sys/devices/virtual/block/sdz/size".to_owned(), "0\n"),
    ];
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    let root = root(&files);
    let root = root.path();
    link(root, sata, &at(sata, "block/sda/device"));
    for (name, target) in [
        ("sda", at(sata, "block/sda")),
        ("nvme0n1", nvme.to_owned()),
        ("vda", virtio.to_owned()),
        ("loop0", "sys/devices/virtual/block/loop0".to_owned()),
        ("sdz", "sys/devices/virtual/block/sdz".to_owned()),
    ] {
        link(root, &target, &format!("sys/block/{name}"));
    }
    let disks = disks(root);
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        Disk {
            name: "nvme0n1".into(),
            model: text("SAMSUNG MZQL23T8HCLS-00A07"),
            serial: text("S64HNE0R123456"),
            size: 7_501_476_528 * 512,
            transport: text("nvme"),
            ..Disk::default()
        },
        Disk {
            name: "sda".into(),
            model: text("Samsung SSD 870"),
            serial: text("S5Y1"),
            size: 1_000_215_216 * 512,
            rotational: Some(false),
            transport: text("sata"),
            ..Disk::default()
        },
        Disk {
            name: "vda".into(),
            serial: text("DATA1"),
            size: 64 << 20,
            transport: text("virtio"),
            ..Disk::default()
        },
    ];
    assert_eq!(disks, expected);
    for (path, expected) in [
        ("/sys/devices/platform/host5/session1/target5:0:0/5:0:0:1/block/sdb", Some("iscsi")),
        (
            "/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb",
            Some("usb"),
        ),
        ("/sys/devices/pci0000:3a/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sdb", Some("sas")),
        ("/sys/devices/pci0000:3a/host1/rport-1:0-0/target1:0:0/1:0:0:0/block/sdb", Some("fc")),
        ("/sys/devices/pci0000:00/0000:00:05.0/virtio1/host2/target2:0:0/2:0:0:0/block/sdb", Some("virtio")),
        ("/sys/devices/pci0000:00/0000:00:05.0/host0/target0:2:0/0:2:0:0/block/sdb", Some("scsi")),
        ("/sys/devices/virtual/block/sdb", None),
    ] {
        assert_eq!(transport("sdb", path), expected, "{path}");
    }
    assert_eq!([emmc_wear("0x01 0x02\n"), emmc_wear("0x00 0x00"), emmc_wear("x")], [Some(20), None, None]);
}

#[test]
fn network_cards_are_told_with_their_place() {
    let device = "sys/devices/pci0000:00/0000:00:01.1/0000:04:00.0";
    let virtio = "sys/devices/pci0000:00/0000:00:02.0/virtio0";
    let root = root(&[
        (&format!("{device}/net/eno1/address"), "52:54:00:77:00:0A\n"),
        (&format!("{device}/net/eno1/carrier"), "1\n"),
        (&format!("{device}/net/eno1/speed"), "25000\n"),
        (&format!("{virtio}/net/eth0/address"), "52:54:00:77:00:02\n"),
        (&format!("{virtio}/net/eth0/speed"), "-1\n"),
        ("sys/devices/virtual/net/lo/address", "00:00:00:00:00:00\n"),
        ("sys/bus/pci/drivers/tg3/x", ""),
    ]);
    let root = root.path();
    link(root, &format!("{device}/net/eno1"), "sys/class/net/eno1");
    link(root, &format!("{virtio}/net/eth0"), "sys/class/net/eth0");
    link(root, "sys/devices/virtual/net/lo", "sys/class/net/lo");
    link(root, device, &format!("{device}/net/eno1/device"));
    link(root, virtio, &format!("{virtio}/net/eth0/device"));
    link(root, "sys/bus/pci/drivers/tg3", &format!("{device}/driver"));
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        Nic {
            name: "eno1".into(),
            mac: "52:54:00:77:00:0a".into(),
            driver: text("tg3"),
            carrier: Some(true),
            speed: Some(25_000),
            bus: text("0000:04:00.0"),
        },
        Nic {
            name: "eth0".into(),
            mac: "52:54:00:77:00:02".into(),
            bus: text("0000:00:02.0"),
            ..Nic::default()
        },
    ];
    assert_eq!(nics(root), expected);
}

#[test]
fn processors_memory_tpm_and_boot_mode() {
    let mut files = vec![
        (
            "proc/cpuinfo".to_owned(),
            "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)   Gold\nflags\t: a\n".to_owned(),
        ),
        ("proc/meminfo".to_owned(), "MemTotal:         503216 kB\nMemFree: 1 kB\n".to_owned()),
        ("sys/firmware/acpi/tables/TPM2".to_owned(), String::new()),
        ("sys/firmware/efi/x".to_owned(), String::new()),
    ];
    for n in 0..8 {
        let topology = format!("sys/devices/system/cpu/cpu{n}/topology");
        files.push((format!("{topology}/physical_package_id"), (n / 4).to_string()));
        files.push((format!("{topology}/core_id"), (n / 2 % 2).to_string()));
    }
    files.push(("sys/devices/system/cpu/cpufreq/x".to_owned(), String::new()));
    let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let root = root(&files);
    let facts = collect(root.path());
    let model = Some("Intel(R) Xeon(R) Gold".to_owned());
    assert_eq!(facts.cpu, Cpu { model, sockets: Some(2), cores: Some(4), threads: Some(8) });
    assert_eq!(facts.memory.usable, Some(503_216 << 10));
    assert_eq!(facts.tpm.as_deref(), Some("2.0"));
    assert_eq!((facts.firmware.mode, facts.firmware.secure_boot), (Some(BootMode::Uefi), None));

    let parameters = root.path().join("sys/kernel/boot_params/data");
    fs::create_dir_all(parameters.parent().unwrap()).unwrap();
    let mut page = vec![0; 4096];
    page[0x1ec] = 3;
    fs::write(parameters, page).unwrap();
    assert_eq!(boot_mode(root.path()), (Some(BootMode::Uefi), Some(true)));
    assert_eq!(collect(Path::new("/nowhere")), Facts::default(), "nothing is known of nothing");
}
