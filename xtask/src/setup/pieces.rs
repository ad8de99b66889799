//! The pieces that each purpose needs, their Debian packages, and how to tell that they are there.

use std::path::{Path, PathBuf};

/// A purpose of set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Compile everything: the daemon, pxe-init, the kernel programs.
    Build,
    /// Make GRUB's netboot images and fetch the stock kernel.
    Assets,
    /// Boot virtual machines in a network of their own.
    Lab,
    /// Real clients and independent checkers for the tests.
    Test,
    /// The peer of `bench boot`.
    Bench,
    /// The peers of `bench tftp` and `bench dhcp`: see [`super::peers`].
    Peers,
    /// Every kernel on which the appliance is tested, in addition to the two that each test run uses: see
    /// [`super::kernels`].
    Kernels,
}

/// A piece that must be there.
pub(super) struct Piece {
    pub(super) package: &'static str,
    pub(super) why: &'static str,
    need: Need,
    proof: Proof,
}

enum Proof {
    /// A program in `PATH`.
    Program(&'static str),
    File(&'static str),
}

#[rustfmt::skip]
const PIECES: &[Piece] = {
    use Need::{Assets, Bench, Build, Lab, Test};
    use Proof::{File, Program};
    const fn piece(need: Need, package: &'static str, proof: Proof, why: &'static str) -> Piece {
        Piece { package, why, need, proof }
    }
    &[
        piece(Build,  "gcc",                 Program("cc"),                 "links, and compiles SQLite and zstd"),
        piece(Build,  "libc6-dev",           File("/usr/lib/x86_64-linux-gnu/libc.a"), "static linking of pxe-init"),
        piece(Build,  "ca-certificates",     File("/etc/ssl/certs/ca-certificates.crt"), "cargo fetches crates over TLS"),

        piece(Assets, "grub-common",         Program("grub-mkimage"),       "makes GRUB's netboot images"),
        piece(Assets, "grub-pc-bin",         File("/usr/lib/grub/i386-pc/pxe.mod"), "GRUB for BIOS"),
        piece(Assets, "grub-efi-amd64-bin",  File("/usr/lib/grub/x86_64-efi/efinet.mod"), "GRUB for UEFI"),
        piece(Assets, "busybox-static",      File("/usr/share/doc/busybox-static"), "the rescue shell of stage 1"),
        piece(Assets, "kmod",                Program("depmod"),             "indexes the stock kernel's modules"),
        piece(Assets, "cpio",                Program("cpio"),               "packs the initrds of tools"),
        piece(Assets, "zstd",                Program("zstd"),               "compresses it"),

        piece(Lab,    "qemu-system-x86",     Program("qemu-system-x86_64"), "the virtual machines"),
        piece(Lab,    "ovmf",                File("/usr/share/OVMF/OVMF_CODE_4M.fd"), "UEFI firmware"),
        piece(Lab,    "ipxe-qemu",           File("/usr/lib/ipxe/qemu/pxe-virtio.rom"), "the BIOS machines' network ROMs"),
        piece(Lab,    "seabios",             File("/usr/share/seabios/bios-256k.bin"), "BIOS firmware"),
        piece(Lab,    "docker.io",           Program("dockerd"),            "the engine that images come from"),
        piece(Lab,    "busybox-static",      File("/usr/share/doc/busybox-static"), "the demo image"),
        piece(Lab,    "iproute2",            Program("ip"),                 "namespaces and links"),
        piece(Lab,    "util-linux",          Program("unshare"),            "namespaces"),
        piece(Lab,    "procps",              Program("ps"),                 "finding what a lab left behind"),

        piece(Test,   "iputils-ping",        Program("ping"),               "asks whether the lab's wire carries frames"),
        piece(Test,   "dnsmasq-base",        Program("dnsmasq"),            "the second DHCP server that a wire should not have"),
        piece(Test,   "openssh-client",      Program("ssh"),                "logs in to a machine whose boot failed"),
        piece(Test,   "sshpass",             Program("sshpass"),            "types its password"),
        piece(Test,   "tcpdump",             Program("tcpdump"),            "captures what we send"),
        piece(Test,   "binutils",            Program("strip"),              "makes programs small that go into virtual machines"),
        piece(Test,   "xz-utils",            Program("xz"),                 "unpacks kernels' modules"),
        piece(Test,   "ethtool",             Program("ethtool"),            "turns checksum offloads of the lab's cables off"),
        piece(Test,   "bpftool",             Program("bpftool"),            "sees which programs are attached, independently"),
        piece(Test,   "dmidecode",           Program("dmidecode"),          "reads firmware's tables, independently"),
        piece(Test,   "lldpd",               Program("lldpd"),              "says who it is, as a switch does"),
        piece(Test,   "tshark",              Program("tshark"),             "decodes what we send, independently"),
        piece(Test,   "atftp",               Program("atftp"),              "a TFTP client"),
        piece(Test,   "tftp-hpa",            Program("tftp"),               "another TFTP client"),
        piece(Test,   "iptables",            Program("iptables"),           "drops packets where a test wants them lost"),
        piece(Test,   "python3-venv",        File("/usr/share/doc/python3-venv"), "schemathesis, which makes requests from our OpenAPI"),
        piece(Test,   "openssl",             Program("openssl"),            "makes certificates that are not ours"),
        piece(Test,   "curl",                Program("curl"),               "an HTTP and TFTP client"),
        piece(Test,   "udhcpc",              Program("udhcpc"),             "a DHCP client"),
        piece(Test,   "isc-dhcp-client",     Program("dhclient"),           "another DHCP client"),
        piece(Test,   "dhcpcd-base",         Program("dhcpcd"),             "a third DHCP client"),
        piece(Test,   "cpio",                Program("cpio"),               "reads our initrds, independently"),
        piece(Test,   "zstd",                Program("zstd"),               "unpacks our initrds, independently"),
        piece(Test,   "squashfs-tools",      Program("unsquashfs"),         "unpacks our SquashFS, independently"),
        piece(Test,   "libcap2-bin",         Program("getcap"),             "sees files' capabilities, independently"),
        piece(Test,   "attr",                Program("getfattr"),           "sees files' attributes, independently"),
        piece(Test,   "bzip2",               Program("bzip2"),              "packs layers as others do"),
        piece(Test,   "debootstrap",         Program("debootstrap"),        "makes the tests' systemd image"),
        piece(Test,   "e2fsprogs",           Program("mkfs.ext4"),          "the disk that keeps images"),
        piece(Test,   "fdisk",               Program("sfdisk"),             "makes partition tables as on a node"),
        piece(Test,   "chromium",            Program("chromium"),           "a browser that looks at the page"),
        piece(Test,   "chromium-driver",     Program("chromedriver"),       "tells it what to do"),
        piece(Test,   "fonts-dejavu-core",   File("/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"), "the page's letters in it"),
        piece(Test,   "npm",                 Program("npm"),                "fetches axe-core, which judges the page"),
        piece(Test,   "grub-common",         Program("grub-script-check"),  "parses our grub.cfg, independently"),
        piece(Test,   "ipmitool",            Program("ipmitool"),           "speaks IPMI for the appliance"),
        piece(Test,   "openipmi",            Program("ipmi_sim"),           "a BMC that is asked by IPMI"),
        piece(Test,   "python3-venv",        File("/usr/share/doc/python3-venv"), "holds the Redfish emulator"),

        piece(Bench,  "dnsmasq-base",        Program("dnsmasq"),            "the peer of every benchmark"),
        piece(Bench,  "iptables",            Program("iptables"),           "keeps the load client's host out of what is measured"),
        piece(Bench,  "tshark",              Program("tshark"),             "reads each boot's stages from its capture"),
        piece(Bench,  "curl",                Program("curl"),               "copies what the peer is to serve"),
    ]
};

/// The missing pieces for `needs`, each package once.
pub(super) fn missing(needs: &[Need]) -> Vec<&'static Piece> {
    let mut missing: Vec<&Piece> = Vec::new();
    for piece in PIECES.iter().filter(|p| needs.contains(&p.need)) {
        if !piece.proof.holds() && missing.iter().all(|m| m.package != piece.package) {
            missing.push(piece);
        }
    }
    missing
}

impl Proof {
    fn holds(&self) -> bool {
        match self {
            Self::Program(name) => program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// Finds a program in `PATH`; `main` has added the administrators' directories to it.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
