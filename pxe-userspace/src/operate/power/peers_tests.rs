//! Against real peers: sushy-tools' emulator, OpenIPMI's simulator, and tshark as the judge of a magic packet. Each in a
//! network namespace of its own.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::testing::{Said, limits, with};
use super::testing_bmc::PASSWORD;
use super::*;
use crate::host::net::tests::{HTTP, in_namespace, ip, network, run};
use crate::host::net::{Bridge, BridgeInfo};
use crate::store::Store;

const PATIENCE: Duration = Duration::from_secs(60);

/// A program that ends with its test.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether set-up has been run; otherwise says so.
fn is_installed(program: &Path) -> bool {
    let there = program.is_file();
    if !there {
        println!("skipped: {} is not installed (cargo xtask setup)", program.display());
    }
    there
}

fn sushy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/sushy-tools-2.2.0/bin/sushy-emulator")
}

/// The emulator with its fake driver, over TLS, for one user.
fn emulator(dir: &Path, generation: &str) -> Peer {
    let pair = rcgen::generate_simple_self_signed(vec!["bmc".to_owned()]).unwrap();
    let file = |name: &str| dir.join(format!("{name}-{generation}"));
    std::fs::write(file("certificate"), pair.cert.pem()).unwrap();
    std::fs::write(file("key"), pair.signing_key.serialize_pem()).unwrap();
    let python = sushy().with_file_name("python3");
    let hash = "import bcrypt, sys; print(bcrypt.hashpw(sys.argv[1].encode(), bcrypt.gensalt(4)).decode())";
    let hash = Command::new(python).args(["-c", hash, PASSWORD]).output().unwrap();
    assert!(hash.status.success(), "{hash:?}");
    std::fs::write(dir.join("users"), format!("root:{}", String::from_utf8(hash.stdout).unwrap())).unwrap();
    let config =
        format!("SUSHY_EMULATOR_AUTH_FILE = {:?}\nSUSHY_EMULATOR_STATE_DIR = {:?}\n", dir.join("users"), dir);
    std::fs::write(dir.join("config"), config).unwrap();
    let log = std::fs::File::create(file("log")).unwrap();
    let mut command = Command::new(sushy());
    command.arg("--fake").args(["-i", "127.0.0.1", "-p", "8443", "--config"]).arg(dir.join("config"));
    command.arg("--ssl-certificate").arg(file("certificate")).arg("--ssl-key").arg(file("key"));
    let mut peer = Peer(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
    let begun = Instant::now();
    while TcpStream::connect("127.0.0.1:8443").is_err() {
        let ended = peer.0.try_wait().unwrap();
        let log = || std::fs::read_to_string(file("log")).unwrap();
        assert!(ended.is_none() && begun.elapsed() < PATIENCE, "{ended:?}: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    peer
}

fn open(dir: &Path) -> Powers {
    let powers = with(dir, Store::open(&dir.join("db")).unwrap(), Said::default(), limits());
    powers.credentials().add("rack", "root", PASSWORD, Timestamp::now()).unwrap();
    powers
}

fn node(power: serde_json::Value) -> Node {
    let power = serde_json::from_value(power).unwrap();
    Node { power: Some(power), ..Node::new("n1", Mac([2, 0, 0, 0, 0, 7])) }
}

#[test]
fn sushy_tools_emulator_is_switched_and_its_certificate_is_pinned() {
    if !is_installed(&sushy()) {
        return;
    }
    in_namespace(|| {
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let peer = emulator(dir.path(), "first");
        let machine = node(json!({ "redfish": "https://127.0.0.1:8443", "credentials": "rack" }));
        let boot = BootOnce { from: NetBoot::Http, mode: Mode::Uefi };
        run(async {
            let powers = open(dir.path());
            let off = powers.act(&machine, Action::Status).await.unwrap();
            assert_eq!(off.state, State::Off);
            let on = powers.act(&machine, Action::On { boot: Some(boot) }).await.unwrap();
            assert_eq!((on.state, on.switched, on.boot), (State::On, true, Some(boot)));
            let cycled = powers.act(&machine, Action::Cycle { boot: None }).await.unwrap();
            assert_eq!((cycled.state, cycled.switched), (State::On, true));
            let off = powers.act(&machine, Action::Off).await.unwrap();
            assert_eq!(off.state, State::Off);
            powers.credentials().add("rack", "root", "wrong", Timestamp::now()).unwrap();
            let denied = powers.act(&machine, Action::Status).await.unwrap_err();
            assert_eq!(denied.kind(), Kind::Denied);
            powers.credentials().add("rack", "root", PASSWORD, Timestamp::now()).unwrap();
            drop(peer);

            // Somebody else answers there, or it has another certificate.
            let peer = emulator(dir.path(), "second");
            let refused = powers.act(&machine, Action::Status).await.unwrap_err();
            assert_eq!(refused.kind(), Kind::Certificate);
            assert!(refused.to_string().contains("no password was sent"), "{refused}");
            assert!(powers.trust(&machine, Some(&"00".repeat(32))).await.is_err());
            let openssl = Command::new("openssl")
                .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
                .arg(dir.path().join("certificate-second"))
                .output()
                .unwrap();
            let fingerprint = String::from_utf8(openssl.stdout).unwrap();
            let fingerprint = fingerprint.trim().split('=').nth(1).unwrap().to_owned();
            let pin = powers.trust(&machine, Some(&fingerprint)).await.unwrap();
            assert_eq!(pin.fingerprint, fingerprint.replace(':', "").to_lowercase());
            assert!(pin.before.is_some());
            powers.act(&machine, Action::Status).await.unwrap();
            drop((powers, peer));
        });
    });
}

/// The simulator asks a script for its chassis, as its own example has it.
fn simulator(dir: &Path) -> Peer {
    const CHASSIS: &str = "#!/bin/sh\nshift; verb=$1; shift\necho \"$verb $*\" >>\"$0.asked\"\n\
        while [ $# -gt 0 ]; do case \"$verb $1\" in\n\
        'get power') echo \"power:$(cat \"$0.power\")\"; shift;;\n\
        'get boot') echo boot:default; shift;;\n\
        'set power') echo \"$2\" >\"$0.power\"; shift 2;;\n\
        *) shift 2;;\n\
        esac; done\n";
    let chassis = dir.join("chassis");
    std::fs::write(&chassis, CHASSIS).unwrap();
    std::fs::write(dir.join("chassis.power"), "0").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&chassis, mode).unwrap();
    let auths = ["callback", "user", "operator", "admin"];
    let auths: String =
        auths.iter().map(|auth| format!("  allowed_auths_{auth} none md2 md5 straight\n")).collect();
    let lan = format!(
        "name \"sim\"\nset_working_mc 0x20\nstartlan 1\n  addr 127.0.0.1 623\n  priv_limit admin\n{auths}  \
         guid a123456789abcdefa123456789abcdef\nendlan\nchassis_control \"{} 0x20\"\n\
         user 1 false \"\" \"test\" user 10 none md2 md5 straight\n\
         user 2 true \"root\" \"{PASSWORD}\" admin 10 none md2 md5 straight\n",
        chassis.display()
    );
    std::fs::write(dir.join("lan.conf"), lan).unwrap();
    let emu = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\nmc_enable 0x20\n";
    std::fs::write(dir.join("sim.emu"), emu).unwrap();
    let mut command = Command::new("ipmi_sim");
    command.arg("-c").arg(dir.join("lan.conf")).arg("-f").arg(dir.join("sim.emu"));
    command.arg("-s").arg(dir.join("state")).arg("-n");
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Peer(quiet.spawn().unwrap())
}

#[test]
fn openipmis_simulator_is_switched() {
    if !is_installed(Path::new("/usr/bin/ipmi_sim")) || !is_installed(Path::new("/usr/bin/ipmitool")) {
        return;
    }
    in_namespace(|| {
        ip("link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let peer = simulator(dir.path());
        let machine = node(json!({ "ipmi": "127.0.0.1", "credentials": "rack" }));
        run(async {
            let powers = open(dir.path());
            let boot = BootOnce { from: NetBoot::Http, mode: Mode::Uefi };
            assert_eq!(powers.act(&machine, Action::Status).await.unwrap().state, State::Off);
            let on = powers.act(&machine, Action::On { boot: Some(boot) }).await.unwrap();
            assert_eq!((on.state, on.switched), (State::On, true));
            assert_eq!(on.boot, Some(BootOnce { from: NetBoot::Pxe, ..boot }));
            powers.act(&machine, Action::Cycle { boot: None }).await.unwrap();
            assert_eq!(powers.act(&machine, Action::Off).await.unwrap().state, State::Off);
            let asked = std::fs::read_to_string(dir.path().join("chassis.asked")).unwrap();
            let set: Vec<&str> = asked.lines().filter(|line| line.starts_with("set")).collect();
            assert_eq!(set, ["set boot pxe", "set power 1", "set power 0", "set power 1", "set power 0"]);

            powers.credentials().add("rack", "root", "wrong", Timestamp::now()).unwrap();
            let denied = powers.act(&machine, Action::Status).await.unwrap_err();
            assert_eq!(denied.kind(), Kind::Denied, "{denied}");
            powers.credentials().add("rack", "nobody", PASSWORD, Timestamp::now()).unwrap();
            assert_eq!(powers.act(&machine, Action::Status).await.unwrap_err().kind(), Kind::Denied);
            powers.credentials().add("rack", "root", &"x".repeat(21), Timestamp::now()).unwrap();
            assert_eq!(powers.act(&machine, Action::Status).await.unwrap_err().kind(), Kind::NotSetUp);
            powers.credentials().add("rack", "root", PASSWORD, Timestamp::now()).unwrap();
            drop(peer);
            let gone = powers.act(&machine, Action::Status).await.unwrap_err();
            assert_eq!(gone.kind(), Kind::Unreachable, "{gone}");
        });
    });
}

/// Two machines' ports; the bridge knows behind which the machine was.
#[test]
fn tshark_takes_the_packet_for_a_magic_one() {
    if !is_installed(Path::new("/usr/bin/tshark")) || !is_installed(Path::new("/usr/bin/tcpdump")) {
        return;
    }
    in_namespace(|| {
        let state = tempfile::tempdir().unwrap();
        for n in 1..=2 {
            ip(&format!("link add eth{n} type veth peer name peer{n}"));
            ip(&format!("link set peer{n} up"));
        }
        run(async {
            let bridge =
                Bridge::set_up(&network("pxe0", &["eth1", "eth2"]), &HTTP, state.path()).await.unwrap();
            let mac = Mac([2, 0, 0, 0, 0, 7]);
            let fdb = ["fdb", "add", "02:00:00:00:00:07", "dev", "eth1", "master", "dynamic"];
            assert!(Command::new("bridge").args(fdb).status().unwrap().success());
            let heard = captured("peer1", bridge.info(), mac, 2);
            let broadcast = captured("peer2", bridge.info(), mac, 1);
            // tshark prints the sixteen repetitions.
            let wakes = ["02:00:00:00:00:07"; 16].join(",");
            let by_broadcast = format!("ff:ff:ff:ff:ff:ff 9 {wakes}");
            assert_eq!(heard, [by_broadcast.clone(), format!("02:00:00:00:00:07  {wakes}")]);
            assert_eq!(broadcast, [by_broadcast]);
            bridge.restore().await.unwrap();
        });
    });
}

/// What tshark reads of what an interface gets while a machine is woken: destination, UDP port, and whom it wakes.
fn captured(interface: &str, bridge: &BridgeInfo, mac: Mac, count: usize) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let packets = dir.path().join("woken.pcap");
    let mut command = Command::new("timeout");
    command.args(["60", "tcpdump", "-i", interface, "-U", "-c", &count.to_string(), "-w"]).arg(&packets);
    let mut tcpdump = command.arg("ether proto 0x0842 or udp port 9").stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(tcpdump.stderr.take().unwrap());
    let mut line = String::new();
    // Its socket is open, with the filter, when it says so.
    while !line.contains("listening on") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "tcpdump ended");
    }
    Link::of(bridge).wake(mac).unwrap();
    assert!(tcpdump.wait().unwrap().success(), "not {count} packets within a minute");
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&packets).args(["-Y", "wol", "-T", "fields", "-E", "separator= "]);
    let output = tshark.args(["-e", "eth.dst", "-e", "udp.dstport", "-e", "wol.mac"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}
