use std::path::Path;

use proptest::prelude::*;

use super::*;

const GOOD: &str = r#"
[network]
bridge  = "pxe0"
address = "10.77.0.1/24"
ports   = ["eth1"]

[dhcp]
range      = ["10.77.0.100", "10.77.0.199"]
lease-time = "1h"
router     = "10.77.0.1"
dns        = "10.77.0.1"
ntp        = ["10.77.0.1", "10.77.0.2"]
domain     = "lab.example"
options    = { 150 = "10.77.0.1", 224 = [1, 2], 225 = "hex:0aff", 226 = ["10.0.0.1", "10.0.0.2"] }

[files]
root = "boot"

[default]
profile = "web"

[[profile]]
name    = "web"
image   = "hello-metal:latest"
cmdline = "console=ttyS0"
on-exit = "stay"
stages  = "two"

[[profile]]
name   = "hand"
kernel = "debian/vmlinuz"
initrd = ["debian/initrd", "extra.cpio"]

[[node]]
name    = "n1"
mac     = "52:54:00:77:00:01"
address = "10.77.0.11"
profile = "hand"
memory  = "512M"

[[workload]]
name        = "registry"
image       = "registry:2"
environment = { A = "b" }
ports       = ["5000:5000"]
"#;

const STORAGE: &str = r#"
[[storage]]
name         = "data"
wipe         = "always"
serials      = ["S1", "S2"]
release-keys = "boot-segment"

[[storage.disks]]
name   = "pair"
count  = 2
type   = "ssd"
size   = "400G..2T"
path   = "*/0000:00:1f.2/*"

[[storage.volume]]
name    = "db"
disks   = "pair"
size    = "40G"
raid    = 1
encrypt = true
mount   = "/var/lib/db"
options = "noatime"

[[storage.volume]]
name   = "rest"
disks  = "pair"
raid   = 0
format = "xfs"
mount  = "/scratch"

[[storage.disks]]
name   = "san"
iscsi  = "iqn.2026-01.example:d1"
portal = "san.example"

[[storage.volume]]
name  = "far"
disks = "san"
mount = "/far"

[[storage.mount]]
nfs     = "files.example:/export/models"
mount   = "/models"
options = "ro"

[[profile]]
name    = "pet"
image   = "db:1"
storage = "data"
"#;

const DOCKER: &str = r#"
[[profile]]
name    = "docker"
run     = "docker"
storage = "engines"
[[node]]
name    = "d1"
mac     = "52:54:00:77:00:d1"
profile = "docker"
labels  = ["rack-1"]
[[workload]]
name    = "w"
image   = "a"
ports   = ["80:80"]
volumes = ["data:/data"]
on      = { label = "rack-1", count = 1 }
[[storage]]
name = "engines"
[[storage.disks]]
name = "one"
[[storage.volume]]
name  = "engine"
disks = "one"
mount = "/var/lib/docker"
"#;

fn parse(text: &str) -> Result<Config, Vec<Problem>> {
    super::parse(text, Path::new("/etc/bridgehead/config.toml"))
}

#[test]
fn every_key_arrives() {
    let config = parse(GOOD).unwrap_or_else(|p| panic!("{p:?}"));
    assert_eq!(config.state_dir, Path::new("/var/lib/bridgehead"));
    assert_eq!(config.files_root.as_deref(), Some(Path::new("/etc/bridgehead/boot")));
    assert_eq!(config.network.address.addr(), Ipv4Addr::new(10, 77, 0, 1));
    assert_eq!(config.network.ceiling, None);
    assert_eq!(config.dhcp.lease_time, Duration::from_secs(3600));
    assert_eq!(config.dhcp.dns, [Ipv4Addr::new(10, 77, 0, 1)]);
    assert_eq!(config.dhcp.ntp.len(), 2);
    let options: Vec<_> = config.dhcp.options.into_iter().collect();
    let expected: [(u8, &[u8]); 4] =
        [(150, &[10, 77, 0, 1]), (224, &[1, 2]), (225, &[10, 255]), (226, &[10, 0, 0, 1, 10, 0, 0, 2])];
    assert_eq!(options, expected.map(|(n, b)| (n, b.to_vec())));
    assert_eq!(config.profiles[0].source, Source::Image("hello-metal:latest".into()));
    assert_eq!(config.profiles[0].on_exit, OnExit::Stay);
    assert_eq!((config.profiles[0].stages, config.profiles[1].stages), (Stages::Two, Stages::Auto));
    assert!(matches!(&config.profiles[1].source, Source::Kernel { initrd, .. } if initrd.len() == 2));
    assert_eq!(config.nodes[0].memory, Some(512 << 20));
    assert_eq!(config.workloads[0].ports[0].host, 5000);
    let Http { port, tls_port } = config.http;
    assert_eq!((port, tls_port), (80, 7443));
    assert_eq!((config.api.socket, config.api.listen), (API_SOCKET.into(), None));
}

#[test]
fn a_ceiling_is_written_in_bits_and_kept_in_bytes() {
    let text = GOOD.replace("ports   = [\"eth1\"]", "ceiling = \"2.5G\"");
    let config = parse(&text).unwrap();
    assert_eq!(config.network.ceiling, Some(312_500_000));
}

/// Each case: a change to a good file, the place of the fault, and words of the message.
#[test]
fn each_fault_is_named_with_its_place() {
    for (from, to, place, words) in [
        ("bridge  = \"pxe0\"", "brigde = \"pxe0\"", "3:1", "unknown key `brigde`; did you mean `bridge`?"),
        ("bridge  = \"pxe0\"", "", "2:1", "`bridge` is missing"),
        ("bridge  = \"pxe0\"", "bridge = 7", "3:10", "invalid type: integer `7`; here goes a string"),
        ("bridge  = \"pxe0\"", "bridge = \"a-name-that-is-long\"", "3:10", "1 to 15 characters"),
        ("ports   = [\"eth1\"]", "fast-path = \"xpd\"", "5:13", "unknown value `xpd`; did you mean `xdp`?"),
        (
            "ports   = [\"eth1\"]",
            "ceiling = \"fast\"",
            "5:11",
            "`fast` is no rate that machines could boot at",
        ),
        ("ports   = [\"eth1\"]", "ceiling = \"999K\"", "5:11", "at least 1M"),
        ("ports   = [\"eth1\"]", "ports = [\"eth1\", \"eth1\"]", "5:18", "`eth1` is listed twice"),
        ("ports   = [\"eth1\"]", "ports = [\"pxe0\"]", "5:10", "is the bridge itself"),
        ("10.77.0.1/24\"", "10.77.0.0/24\"", "4:11", "network's own or broadcast"),
        ("10.77.0.1/24\"", "10.77.0.1/31\"", "4:11", "has no room for nodes"),
        ("10.77.0.1/24\"", "10.77.0/24\"", "4:11", "invalid"),
        (
            "[\"10.77.0.100\", \"10.77.0.199\"]",
            "[\"10.77.0.199\", \"10.77.0.100\"]",
            "8:14",
            "before its start",
        ),
        (
            "[\"10.77.0.100\", \"10.77.0.199\"]",
            "[\"10.77.1.1\", \"10.77.1.9\"]",
            "8:14",
            "outside 10.77.0.0/24",
        ),
        (
            "[\"10.77.0.100\", \"10.77.0.199\"]",
            "[\"10.77.0.1\", \"10.77.0.9\"]",
            "8:14",
            "appliance's own address",
        ),
        ("[\"10.77.0.100\", \"10.77.0.199\"]", "[\"10.77.0.2\", \"10.77.0.255\"]", "8:14", "broadcast"),
        ("range      = [\"10.77.0.100\", \"10.77.0.199\"]", "", "7:1", "no range"),
        ("\"1h\"", "\"soon\"", "9:14", "`soon` is no duration"),
        ("\"1h\"", "\"1s\"", "9:14", "30s to 365d"),
        ("router     = \"10.77.0.1\"", "router = \"10.78.0.1\"", "10:10", "the router 10.78.0.1 is outside"),
        ("150 = \"10.77.0.1\"", "51 = \"x\"", "14:16", "use [dhcp] lease-time"),
        ("150 = \"10.77.0.1\"", "next = \"x\"", "14:16", "`next` is no option's number"),
        ("150 = \"10.77.0.1\"", "150 = \"hex:1\"", "14:22", "pairs of hexadecimal digits"),
        ("domain     = \"lab.example\"", "domain = \"-\"", "13:10", "no domain name"),
        ("profile = \"web\"", "profile = \"wbe\"", "20:11", "no profile is called `wbe`; there is web, hand"),
        ("[default]\nprofile = \"web\"", "", "7:1", "set [default] profile"),
        ("name   = \"hand\"", "name = \"web\"", "30:8", "two profiles are called `web`"),
        ("image   = \"hello-metal:latest\"", "", "22:1", "has nothing to boot"),
        ("\"hello-metal:latest\"", "\"a b\"", "24:11", "`a b` is no image reference"),
        ("\"hello-metal:latest\"", "\"/a.tar\"", "24:11", "`bridgehead image add /a.tar` brings"),
        (
            "image   = \"hello-metal:latest\"",
            "image = \"a\"\nkernel = \"debian/vmlinuz\"",
            "25:10",
            "is the name of a kernel in the store",
        ),
        (
            "kernel = \"debian/vmlinuz\"",
            "kernel = \"debian/vmlinuz\"\nmodules = [\"bonding\"]",
            "32:12",
            "works through the init",
        ),
        ("on-exit = \"stay\"", "on-exit = \"sty\"", "26:11", "did you mean `stay`?"),
        ("on-exit = \"stay\"", "restarts = 3", "26:12", "set on-exit = \"restart\""),
        ("on-exit = \"stay\"", "rescue = \"shh\"", "26:10", "did you mean `ssh`?"),
        (
            "kernel = \"debian/vmlinuz\"",
            "kernel = \"debian/vmlinuz\"\nlogs = false",
            "32:8",
            "`logs` works through the init",
        ),
        ("stages  = \"two\"", "stages = \"tow\"", "27:10", "did you mean `two`?"),
        (
            "kernel = \"debian/vmlinuz\"",
            "kernel = \"debian/vmlinuz\"\nstages = \"two\"",
            "32:10",
            "how an image comes to the machine",
        ),
        ("kernel = \"debian/vmlinuz\"", "kernel = \"../vmlinuz\"", "31:10", "below the files root"),
        ("[files]\nroot = \"boot\"", "", "30:10", "set [files] root"),
        ("52:54:00:77:00:01", "52:54:00", "36:11", "six hexadecimal bytes"),
        ("52:54:00:77:00:01", "53:54:00:77:00:01", "36:11", "group address"),
        ("address = \"10.77.0.11\"", "address = \"10.77.0.1\"", "37:11", "the appliance's own address"),
        ("address = \"10.77.0.11\"", "address = \"10.9.0.1\"", "37:11", "outside 10.77.0.0/24"),
        ("profile = \"hand\"", "profile = \"none\"", "38:11", "no profile is called `none`"),
        ("\"512M\"", "\"much\"", "39:11", "`much` is no size"),
        ("name    = \"n1\"", "name = \"n_1\"", "35:8", "can't be a node's name"),
        ("\"5000:5000\"", "\"80:80\"", "45:16", "port 80 is the appliance's HTTP's already"),
        ("\"5000:5000\"", "\"x\"", "45:16", "no port mapping"),
        ("ports       = [\"5000:5000\"]", "address = \"10.77.0.150\"", "45:11", "lies in [dhcp] range"),
        ("name        = \"registry\"", "name = \"-\"", "42:8", "can't be a workload's name"),
        ("[network]", "[api]\nlisten = \"0.0.0.0:80\"\n[network]", "3:10", "answers nodes"),
        ("[network]", "[api]\nlisten = \"10.77.0.1:7443\"\n[network]", "3:10", "answers nodes"),
        ("[network]", "[api]\nnames = [\"a b\"]\n[network]", "3:10", "`a b` is no host's name"),
        ("[network]", "[http]\ntls-port = 0\n[network]", "3:12", "port 0 is none"),
        ("[network]", "[http]\ntls-port = 80\n[network]", "3:12", "are both 80"),
        ("[network]", "[network", "2:9", "unclosed table; here goes `]`"),
    ] {
        assert!(GOOD.contains(from), "{from} is not in the good file");
        let problems = parse(&GOOD.replacen(from, to, 1)).expect_err(to);
        let text = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
        let place = format!("/etc/bridgehead/config.toml:{place}: ");
        assert!(
            text.lines().any(|l| l.starts_with(&place) && l.contains(words)),
            "{from} -> {to}: {place}{words} not in\n{text}"
        );
        // Some faults cause others.
        if ![r#"10.77.0.1/24""#, r#"name   = "hand""#].contains(&from) {
            assert_eq!(problems.len(), 1, "{from} -> {to}\n{text}");
        }
    }
}

#[test]
fn a_storage_plan_arrives() {
    use pxe_contract::storage::{DiskKind, Format, Wipe};
    let config = parse(&(GOOD.to_owned() + STORAGE)).unwrap_or_else(|p| panic!("{p:?}"));
    let plan = config.storage_of(config.profile("pet").unwrap()).unwrap();
    assert_eq!((plan.wipe, plan.serials.len()), (Wipe::Always, 2));
    let disks = &plan.disks[0];
    assert_eq!((disks.count, disks.kind, disks.size), (2, Some(DiskKind::Ssd), Some((400 << 30, 2 << 40))));
    let [db, rest, _far] = &plan.volumes[..] else { panic!("{plan:?}") };
    assert_eq!((db.size, db.raid, db.encrypt, db.format), (Some(40 << 30), Some(1), true, Format::Ext4));
    assert_eq!((rest.size, rest.raid, rest.encrypt, rest.format), (None, Some(0), false, Format::Xfs));
    let target = plan.disks[1].iscsi.as_ref().unwrap();
    assert_eq!(
        (target.target.as_str(), target.portal.as_str(), target.port),
        ("iqn.2026-01.example:d1", "san.example", 3260)
    );
    let mount = &plan.mounts[0];
    assert_eq!((mount.server.as_str(), mount.path.as_str()), ("files.example", "/export/models"));
    assert_eq!((mount.mount.as_str(), mount.options.as_deref()), ("/models", Some("ro")));
}

#[test]
fn each_fault_of_a_storage_plan_is_named_with_its_place() {
    for (from, to, place, words) in [
        ("\"data\"\nwipe", "\"da ta\"\nwipe", "3:16", "can't be the name of a storage plan"),
        ("\"always\"", "\"often\"", "4:16", "unknown value `often`"),
        ("[\"S1\", \"S2\"]", "[]", "4:16", "`always` would wipe no disk"),
        ("\"always\"", "\"never\"", "5:16", "the disks that wipe = \"always\" means"),
        ("release-keys = \"boot-segment\"", "", "20:11", "nothing may give a node this volume's key"),
        ("count  = 2", "count = 0", "10:9", "use 1 to 32"),
        ("type   = \"ssd\"", "serial = \"S1\"", "11:10", "1 serial can't be 2 disks"),
        ("\"400G..2T\"", "\"400G\"", "12:10", "no range of sizes"),
        ("\"400G..2T\"", "\"2T..400G\"", "12:10", "no range of sizes"),
        ("\"*/0000:00:1f.2/*\"", "\"/dev/sda\"", "13:10", "names below /dev change"),
        ("\"*/0000:00:1f.2/*\"", "\"sda\"", "13:10", "no pattern for a path below /sys"),
        ("disks   = \"pair\"", "disks = \"pear\"", "17:9", "no disks are called `pear`; there is pair"),
        ("size    = \"40G\"", "size = \"4\"", "18:8", "no size of a partition"),
        ("size    = \"40G\"", "", "26:10", "takes all that is left of `pair`"),
        ("raid    = 1", "raid = 5", "19:8", "use 0, 1 or 10"),
        ("raid    = 1", "", "17:11", "set raid = 1 (mirrored)"),
        ("name   = \"rest\"", "name = \"db\"", "25:8", "two volumes are called `db`"),
        ("\"/var/lib/db\"", "\"var/lib/db\"", "21:11", "no mount point"),
        ("\"/var/lib/db\"", "\"/\"", "21:11", "no mount point"),
        ("\"/var/lib/db\"", "\"/a/../b\"", "21:11", "no mount point"),
        ("\"/var/lib/db\"", "\"/run/db\"", "21:11", "the kernel's or the boot's own"),
        ("\"/var/lib/db\"", "\"/scratch\"", "29:10", "two volumes are mounted at /scratch"),
        ("\"noatime\"", "\"no atime\"", "22:11", "no white space"),
        ("\"iqn.2026-01.example:d1\"", "\"disk1\"", "33:10", "no name of an iSCSI target"),
        ("iscsi  = \"iqn.2026-01.example:d1\"", "", "34:10", "a portal of no target"),
        ("portal = \"san.example\"", "", "33:10", "nothing says where the target is"),
        ("\"san.example\"", "\"san.example:0\"", "34:10", "is no portal"),
        ("\"san.example\"", "\"san_\"", "34:10", "is no portal"),
        ("files.example:/export/models", "/export/models", "42:11", "no directory of an NFS server"),
        ("files.example:/export/models", "files.example:export", "42:11", "no directory of an NFS server"),
        ("\"/models\"", "\"/far\"", "43:11", "something else is mounted at /far"),
        ("\"/models\"", "\"/var/lib\"", "43:11", "it would cover the volume `db`"),
        ("\"/models\"", "\"/dev\"", "43:11", "the kernel's or the boot's own"),
        ("\"ro\"", "\"r o\"", "44:11", "no white space"),
        (
            "storage = \"data\"",
            "storage = \"date\"",
            "49:11",
            "no storage plan is called `date`; there is data",
        ),
        ("image   = \"db:1\"", "kernel = \"k\"", "49:11", "works through the init"),
    ] {
        assert!(STORAGE.contains(from), "{from} is not in the good plan");
        let problems = parse(&(STORAGE.replacen(from, to, 1) + GOOD)).expect_err(to);
        let text = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
        let place = format!("/etc/bridgehead/config.toml:{place}: ");
        assert!(
            text.lines().any(|l| l.starts_with(&place) && l.contains(words)),
            "{from} -> {to}: {place}{words} not in\n{text}"
        );
    }
}

#[test]
fn docker_nodes_and_what_runs_on_them() {
    let config = parse(&(GOOD.to_owned() + DOCKER)).unwrap_or_else(|p| panic!("{p:?}"));
    let profile = config.profile("docker").unwrap();
    assert_eq!((profile.run, profile.on_exit), (Run::Docker, OnExit::Restart));
    assert_eq!(profile.source, Source::Image(crate::config::DOCKER_NODE.into()));
    let names: Vec<_> = config.docker_nodes().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["d1"]);
    let on = On { group: Group::Label("rack-1".into()), count: Some(1) };
    assert_eq!(config.workloads[1].on, Some(on));
    assert_eq!(config.workloads[1].volumes, [Volume { name: "data".into(), path: "/data".into() }]);

    for (from, to, place, words) in [
        ("run     = \"docker\"", "run = \"docked\"", "4:7", "unknown value `docked`; did you mean `docker`?"),
        ("run     = \"docker\"", "run = \"docker\"\nimage = \"a\"", "5:9", "brings an image of its own"),
        ("[\"rack-1\"]", "[\"\"]", "10:12", "a label is a word"),
        ("label = \"rack-1\"", "label = \"rack-2\"", "16:21", "no declared node that runs a Docker engine"),
        ("label = \"rack-1\"", "node = \"n1\"", "16:20", "no declared node that runs a Docker engine"),
        ("label = \"rack-1\", count = 1", "node = \"d1\", count = 1", "16:34", "a node is one node"),
        ("count = 1", "count = 0", "16:39", "it would run nowhere"),
        ("count = 1", "node = \"d1\"", "16:11", "`on` names nodes in one way"),
        ("image   = \"a\"", "image = \"./a.tar\"", "13:9", "`docker load --input ./a.tar` brings"),
        ("[\"80:80\"]", "[\"2376:80\"]", "14:12", "port 2376 is the node's Docker engine's already"),
        ("ports   = [\"80:80\"]", "address = \"10.77.0.9\"", "14:11", "has no address of its own"),
        ("\"data:/data\"", "\"/data\"", "15:12", "is no volume"),
        ("\"data:/data\"", "\"a:/data\", \"b:/data\"", "15:23", "another volume of that name or path"),
        ("/var/lib/docker", "/var/lib/other", "16:21", "they would be gone with a reboot"),
    ] {
        assert!(DOCKER.contains(from), "{from} is not in the good file");
        let problems = parse(&(DOCKER.replacen(from, to, 1) + GOOD)).expect_err(to);
        let text = problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
        let place = format!("/etc/bridgehead/config.toml:{place}: ");
        let named = text.lines().any(|l| l.starts_with(&place) && l.contains(words));
        assert!(named, "{from} -> {to}: {place}{words} not in\n{text}");
    }
}

#[test]
fn faults_come_all_at_once_and_in_order() {
    let twice =
        GOOD.to_owned() + "[[node]]\nname = \"N1\"\nmac = \"52-54-00-77-00-01\"\naddress = \"10.77.0.11\"\n";
    let problems = parse(&twice.replace("\"1h\"", "\"never\"")).unwrap_err();
    let lines: Vec<_> = problems.iter().map(|p| p.line).collect();
    assert_eq!(lines, [9, 47, 48, 49], "{problems:#?}");
    assert!(problems[3].what.contains("node `n1`'s address"), "{problems:#?}");
}

#[test]
fn check_looks_at_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, GOOD.replace("\"eth1\"", "\"nosuchport\"")).unwrap();
    assert!(load(&path).is_ok());
    let problems = check(&path).unwrap_err();
    let lines: Vec<_> = problems.iter().map(|p| p.line).collect();
    assert_eq!(lines, [5, 17], "{problems:#?}");
    std::fs::create_dir(dir.path().join("boot")).unwrap();
    std::fs::write(&path, GOOD.replace("\"eth1\"", "\"lo\"")).unwrap();
    let problems = check(&path).unwrap_err();
    assert!(problems.iter().all(|p| p.what.contains("is not there")), "files by hand: {problems:#?}");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = parse(&text);
    }

    /// Damage to a good file: closer to real mistakes than arbitrary text.
    #[test]
    fn no_damage_panics(at in 0..GOOD.len(), cut in 0usize..40, put in "[\\PC\n]{0,12}") {
        let mut text: Vec<char> = GOOD.chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, put.chars());
        if let Err(problems) = parse(&text.into_iter().collect::<String>()) {
            prop_assert!(problems.iter().all(|p| p.line > 0 && p.column > 0 && !p.what.is_empty()));
        }
    }
}

#[test]
fn check_finds_what_a_boot_would_be_refused_for() {
    let dir = tempfile::tempdir().unwrap();
    let (file, root) = (dir.path().join("config.toml"), dir.path().join("boot"));
    std::fs::create_dir_all(root.join("debian")).unwrap();
    let checked = |text: &str| -> Vec<String> {
        std::fs::write(&file, text).unwrap();
        let problems = check(&file).err().unwrap_or_default().into_iter().map(|p| p.to_string());
        problems.filter(|p| !p.contains("no interface is called")).collect()
    };
    let all = checked(GOOD);
    let found = |words: &str| all.iter().filter(|p| p.contains(words)).count();
    assert_eq!(found("debian/vmlinuz is not there"), 1, "{all:#?}");
    assert_eq!((found("debian/initrd is not there"), found("extra.cpio is not there")), (1, 1), "{all:#?}");
    for initrd in ["debian/initrd", "extra.cpio"] {
        std::fs::write(root.join(initrd), "").unwrap();
    }
    // An EFI program: GRUB can't start it, iPXE can.
    std::fs::write(root.join("debian/vmlinuz"), vec![0; 2000]).unwrap();
    let all = checked(GOOD);
    assert!(matches!(&all[..], [only] if only.contains("debian/vmlinuz is no Linux kernel")), "{all:#?}");
    assert_eq!(checked(&format!("{GOOD}\n[boot]\nipxe = \"script\"\n")), [""; 0]);
    let mut kernel = vec![0; kernel::START];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..].copy_from_slice(b"HdrS");
    std::fs::write(root.join("debian/vmlinuz"), &kernel).unwrap();
    assert_eq!(checked(GOOD), [""; 0]);
    // A directory; then a link that is absolute within the root.
    std::fs::remove_file(root.join("extra.cpio")).unwrap();
    std::fs::create_dir(root.join("extra.cpio")).unwrap();
    assert!(checked(GOOD)[0].contains("extra.cpio is not a file"));
    std::fs::remove_dir(root.join("extra.cpio")).unwrap();
    std::os::unix::fs::symlink("/debian/initrd", root.join("extra.cpio")).unwrap();
    assert_eq!(checked(GOOD), [""; 0]);
    for (cmdline, words) in [
        ("ip=${net0/mac}", "iPXE would expand ${…}"),
        ("a='b'", "backslash before a single quote"),
        ("a=ä", "printable ASCII only"),
        ("a || b", "iPXE would end its command there"),
    ] {
        let all = checked(&GOOD.replacen("console=ttyS0", cmdline, 1));
        assert!(matches!(&all[..], [only] if only.contains(words)), "{cmdline}: {all:#?}");
    }
}

#[test]
fn check_finds_command_lines_that_no_machine_gets_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let checked = |len: usize| {
        let long = format!("console=ttyS0 {}", "x".repeat(len));
        std::fs::write(&file, GOOD.replacen("console=ttyS0", &long, 1)).unwrap();
        let problems = check(&file).err().unwrap_or_default();
        problems.into_iter().map(|p| p.to_string()).find(|p| p.contains("command line"))
    };
    assert_eq!(checked(1700), None);
    let problem = checked(2100).expect("it is found");
    assert!(problem.contains("loaders pass 2045 on; shorten it by "), "{problem}");
    // The other profiles of such a file boot.
    parse(&std::fs::read_to_string(&file).unwrap()).expect("it is no fault of the file");
}
