//! Boots that fail on a real wire, each with a cause of its own, and what the appliance says of them.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance, address_only, program};
use lab::dnsmasq::Dnsmasq;
use lab::load::Numbers;
use lab::net::{self, Host};
use lab::peers;
use lab::process::{PATIENCE, output, wait_for};
use lab::rom::{Ends, Rom};
use lab::world::{self, World};
use nix::pty::openpty;
use nix::sys::termios::tcgetattr;
use serde_json::{Value, json};

const BIOS: u16 = 0;
const UEFI: u16 = 7;
/// ARM 64-bit UEFI (IANA).
const ARM: u16 = 11;

const LOADER: &str = "grub/x86_64-efi.efi";

/// How long a diagnosis may take. Silence is diagnosed after 30 s in a transfer, after 70 s without an address.
const SILENCE: Duration = Duration::from_secs(150);

/// An appliance with three profiles: a kernel by hand whose initrd is missing, an image that does not exist, and one
/// that does. Each of `nodes` is declared with its lines.
fn appliance(world: &World, hosts: &[&Host], nodes: &[(&Host, &str)]) -> Result<Appliance> {
    let files = world.path("files");
    fs::create_dir_all(&files)?;
    fs::write(files.join("kernel"), Numbers::new(1).bytes(600_000))?;
    let ports: Vec<String> = hosts.iter().map(|h| h.port()).collect();
    let mut config = address_only(world, &ports, "auto").replace("\"address-only\"", "\"boot\"");
    config += "\n[default]\nprofile = \"web\"\n\n[[profile]]\nname = \"web\"\nkernel = \"/kernel\"\ninitrd = [\"/initrd\"]\n";
    config += "\n[[profile]]\nname = \"lost\"\nimage = \"nowhere:1\"\n";
    config += "\n[[profile]]\nname = \"there\"\nimage = \"hello:1\"\n";
    for (host, lines) in nodes {
        config += &format!("\n[[node]]\nname = {:?}\nmac = {:?}\n{lines}\n", host.port(), host.mac());
    }
    let (appliance, image) = (Appliance::start(world, &config)?, saved_image(world)?);
    appliance.run(&["image", "add", image.to_str().context("a path in ASCII")?])?;
    Ok(appliance)
}

/// An image of one file, as `docker save` writes it.
fn saved_image(world: &World) -> Result<PathBuf> {
    let (root, saved) = (world.path("root"), world.path("saved"));
    fs::create_dir_all(&root)?;
    fs::create_dir_all(&saved)?;
    fs::write(root.join("hello"), "hello\n")?;
    let pack = |of: &Path, into: &Path, names: &[&str]| {
        output(Command::new("tar").arg("-C").arg(of).arg("-cf").arg(into).args(names))
    };
    pack(&root, &saved.join("layer.tar"), &["hello"])?;
    let digest = output(Command::new("sha256sum").arg(saved.join("layer.tar")))?;
    let digest = digest.split_whitespace().next().context("sha256sum says nothing")?;
    let config = json!({
        "os": "linux", "architecture": "amd64", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    fs::write(saved.join("config.json"), config.to_string())?;
    let manifest = json!([{"Config": "config.json", "RepoTags": ["hello:1"], "Layers": ["layer.tar"]}]);
    fs::write(saved.join("manifest.json"), manifest.to_string())?;
    let image = world.path("hello.tar");
    pack(&saved, &image, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(image)
}

/// Loads what firmware and GRUB load: the loader, its configuration, and the kernel and the initrds in that.
fn load(rom: &Rom<'_>, host: &Host) -> Result<()> {
    rom.bind(ADDRESS)?;
    rom.read(ADDRESS, LOADER, Ends::Whole)?;
    let text = decided(rom, host)?;
    ensure!(text.contains("if linux "), "{text}");
    let mut over_http = 0;
    for word in text.split('\'') {
        if let Some(path) = word.strip_prefix("/boot/") {
            rom.read(ADDRESS, &format!("boot/{path}"), Ends::Whole)?;
        } else if let Some(rest) = word.strip_prefix("(http,") {
            let mut curl = host.command("curl");
            curl.args(["--silent", "--fail", "--max-time", "20", "--output", "/dev/null"]);
            output(curl.arg(format!("http://{}", rest.replacen(')', "", 1))))?;
            over_http += 1;
        }
    }
    ensure!(over_http == 1, "its own initrd comes by HTTP: {text}");
    Ok(())
}

/// The configuration, as soon as the appliance has the image or knows that it gets none. GRUB, too, requests it
/// repeatedly.
fn decided(rom: &Rom<'_>, host: &Host) -> Result<String> {
    let mut text = String::new();
    wait_for(SILENCE, || {
        text = String::from_utf8(rom.read(ADDRESS, &config(host), Ends::Whole)?)?;
        Ok((!text.contains("is being brought in")).then_some(()))
    })
    .with_context(|| text.clone())?;
    Ok(text)
}

/// The configuration that GRUB asks for first.
fn config(host: &Host) -> String {
    format!("grub/grub.cfg-01-{}", host.mac().replace(':', "-"))
}

/// What `bridgehead why` says of a host, as soon as `told` accepts it.
fn why(
    appliance: &Appliance,
    host: &Host,
    patience: Duration,
    told: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut last = Value::Null;
    let told = wait_for(patience, || {
        last = appliance.json(&["why", host.mac()])?;
        Ok(told(&last).then(|| last.clone()))
    });
    told.with_context(|| format!("the last answer: {last:#}"))
}

/// Waits until the host's boot, or the one before, has this as its first cause. Fails unless these words are in it.
fn ensure_cause(appliance: &Appliance, host: &Host, kind: &str, words: &str) -> Result<()> {
    let cause = |why: &Value| {
        let first = |boot: &Value| boot["causes"][0].clone();
        [first(why), first(&why["before"])].into_iter().find(|c| c["kind"] == kind)
    };
    let why = why(appliance, host, SILENCE, |why| cause(why).is_some()).context(kind.to_owned())?;
    let cause = cause(&why).context("found")?;
    ensure!(cause.to_string().contains(words), "no {words:?} in {cause:#}");
    ensure!(cause["evidence"].as_array().is_some_and(|e| !e.is_empty()), "{cause:#}");
    let people = appliance.run(&["why", host.mac()])?;
    ensure!(people.contains(&format!("{kind}: ")) && people.contains("  -> "), "{people}");
    Ok(())
}

/// The cause of the host's last boot that failed, from the timeline.
fn failed(appliance: &Appliance, host: &Host) -> Result<String> {
    let events = appliance.run(&["events", "--json", "--node", host.mac()])?;
    let events = events.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let failed = events.iter().rev().find(|e| e["stage"] == "failed").context("no boot failed")?;
    Ok(failed["cause"].as_str().context("without a cause")?.to_owned())
}

/// The firmware starts anew, after a pause in which none could have booted.
fn again(rom: &Rom<'_>) -> Result<()> {
    std::thread::sleep(Duration::from_millis(1200));
    rom.discover(0).map(drop)
}

#[test]
fn boots_that_fail_say_why() {
    world::test(&["ip", "dnsmasq", "curl"], |world| {
        let names = [
            "rival", "mute", "pulled", "narrow", "arm", "abort", "secure", "nofile", "noimage", "report",
            "late", "quiet", "astray", "small",
        ];
        let hosts = (1..).zip(names).map(|(n, name)| Host::new(name, n)).collect::<Result<Vec<_>>>()?;
        let host = |name: &str| hosts.iter().zip(names).find(|(_, n)| *n == name).expect("one of them").0;
        let all: Vec<&Host> = hosts.iter().collect();
        let (lost, there) = ("profile = \"lost\"", "profile = \"there\"");
        let nodes = [
            ("noimage", lost),
            ("report", lost),
            ("quiet", there),
            ("astray", there),
            ("small", "profile = \"there\"\nmemory = \"32M\""),
        ];
        let appliance = appliance(world, &all, &nodes.map(|(name, lines)| (host(name), lines)))?;

        // These come first, because their silence takes time to diagnose.
        Rom::new(host("mute"), BIOS).discover(4)?;
        let pulled = Rom::new(host("pulled"), UEFI);
        pulled.bind(ADDRESS)?;
        pulled.read(ADDRESS, LOADER, Ends::Pulled(9))?;
        net::ip(["link", "set", &host("pulled").port(), "down"])?;
        // Its card receives 1000 bytes at most: small packets pass, blocks of 1468 do not.
        let narrow = Rom::new(host("narrow"), UEFI);
        narrow.bind(ADDRESS)?;
        net::ip(["-n", "narrow", "link", "set", "eth0", "mtu", "1000"])?;
        ensure!(narrow.read(ADDRESS, LOADER, Ends::Starved)?.is_empty(), "a block passed");

        let arm = Rom::new(host("arm"), ARM);
        arm.bind(ADDRESS)?;
        again(&arm)?;
        ensure_cause(&appliance, host("arm"), "wrong-architecture", "option 93: 11")?;
        let words = failed(&appliance, host("arm"))?;
        ensure!(words.starts_with("it began anew after ack: its firmware is of architecture 11"), "{words}");

        let abort = Rom::new(host("abort"), UEFI);
        abort.bind(ADDRESS)?;
        abort.read(ADDRESS, LOADER, Ends::Aborted(5, "Disk full or allocation exceeded"))?;
        again(&abort)?;
        ensure_cause(&appliance, host("abort"), "transfer-aborted", "code 3, disk full")?;

        // As under Secure Boot: the loader arrives but does not run.
        let secure = Rom::new(host("secure"), UEFI);
        secure.bind(ADDRESS)?;
        secure.read(ADDRESS, LOADER, Ends::Whole)?;
        again(&secure)?;
        ensure_cause(&appliance, host("secure"), "secure-boot", "no configuration was asked for")?;

        let nofile = Rom::new(host("nofile"), UEFI);
        nofile.bind(ADDRESS)?;
        nofile.read(ADDRESS, LOADER, Ends::Whole)?;
        nofile.read(ADDRESS, &config(host("nofile")), Ends::Whole)?;
        nofile.read(ADDRESS, "kernel", Ends::Whole)?;
        ensure!(nofile.read(ADDRESS, "initrd", Ends::Whole).is_err(), "there is no initrd");
        again(&nofile)?;
        ensure_cause(&appliance, host("nofile"), "file-not-served", "initrd")?;

        let noimage = Rom::new(host("noimage"), UEFI);
        noimage.bind(ADDRESS)?;
        noimage.read(ADDRESS, LOADER, Ends::Whole)?;
        decided(&noimage, host("noimage"))?;
        ensure_cause(&appliance, host("noimage"), "not-bootable", "nowhere:1")?;

        let small = Rom::new(host("small"), UEFI);
        small.bind(ADDRESS)?;
        small.read(ADDRESS, LOADER, Ends::Whole)?;
        decided(&small, host("small"))?;
        ensure_cause(&appliance, host("small"), "memory-too-small", "32 MiB")?;

        // The kernel hangs, has no driver for the card, or has a console that nobody sees.
        let quiet = Rom::new(host("quiet"), UEFI);
        load(&quiet, host("quiet"))?;
        again(&quiet)?;
        ensure_cause(&appliance, host("quiet"), "kernel-silent", "console=ttyS0,115200, tty0")?;

        // Reports of stage 1, but sent by curl.
        let report = Rom::new(host("report"), UEFI);
        report.bind(ADDRESS)?;
        let post_for = |name: &str, path: &str, rest: &str| {
            let body = format!(r#"{{"mac": "{}", {rest}}}"#, host(name).mac());
            let mut curl = host("report").command("curl");
            curl.args([
                "--silent",
                "--max-time",
                "20",
                "--header",
                "Content-Type: application/json",
                "--data",
                &body,
            ]);
            output(curl.arg(format!("http://{ADDRESS}{path}")))
        };
        let post = |path: &str, rest: &str| post_for("report", path, rest);
        let astray = Rom::new(host("astray"), UEFI);
        load(&astray, host("astray"))?;
        let refused = post_for("astray", "/node/report", r#""stage": "stage1", "detail": "Linux 6.1""#)?;
        ensure!(refused.contains("is not the address of"), "{refused}");
        again(&astray)?;
        ensure_cause(&appliance, host("astray"), "stage1-network", "another address")?;
        post("/node/report", r#""stage": "stage1", "detail": "Linux 6.1""#)?;
        post(
            "/node/report",
            r#""stage": "failed", "cause": "the image is damaged: SHA-256 aa of what arrived, bb announced""#,
        )?;
        ensure_cause(&appliance, host("report"), "digest-mismatch", "SHA-256 aa")?;
        again(&report)?;
        post("/node/report", r#""stage": "stage1", "detail": "Linux 6.1""#)?;
        let refused = post("/node/storage-keys", r#""volume": "data""#)?;
        ensure!(refused.contains("there are no keys for this boot"), "{refused}");
        post(
            "/node/report",
            r#""stage": "failed", "cause": "the appliance gave this boot no session: it was used before""#,
        )?;
        ensure_cause(&appliance, host("report"), "token-refused", "good once")?;

        // A switch that began to forward after the machine's first three requests.
        Rom::new(host("late"), BIOS).discover(28)?;
        ensure_cause(&appliance, host("late"), "link-late", "28 s")?;

        let rival = host("rival");
        let rival_address = "10.77.0.66";
        rival.address(&format!("{rival_address}/24"))?;
        let arguments =
            ["--dhcp-range=10.77.0.210,10.77.0.220,1h", "--dhcp-authoritative", "--interface=eth0"];
        let arguments = arguments.map(str::to_owned);
        let dnsmasq = Dnsmasq::start(rival.command("dnsmasq"), &arguments, &world.path("dnsmasq.log"))?;
        let elsewhere = Host::new("else", 99)?;
        net::plug(&elsewhere.port(), lab::appliance::BRIDGE)?;
        let rom = Rom::new(&elsewhere, UEFI);
        let theirs = rom
            .offer_of(rival_address.parse()?)
            .with_context(|| format!("the rival's log ends:\n{}", dnsmasq.last_lines(20)))?;
        rom.request(&theirs)?;
        ensure_cause(&appliance, &elsewhere, "other-dhcp-server", rival_address)?;

        ensure_cause(&appliance, host("pulled"), "transfer-stalled", "after block 9 of")?;
        ensure_cause(&appliance, host("narrow"), "transfer-stalled", "smaller MTU")?;
        ensure_cause(&appliance, host("mute"), "offer-not-taken", "an offer was sent and it never")?;
        let silent = wait_for(SILENCE, || {
            Ok(failed(&appliance, host("mute")).ok().filter(|words| words.starts_with("nothing heard for 7")))
        })?;
        ensure!(silent.contains("an offer was sent"), "{silent}");

        let all = appliance.run(&["why"])?;
        for kind in ["wrong-architecture", "secure-boot", "transfer-stalled", "other-dhcp-server"] {
            ensure!(all.contains(kind), "no {kind}: {all}");
        }
        metrics(&appliance)?;
        screen(&appliance)
    });
}

/// The API's socket, for curl.
const API: [&str; 2] = ["--unix-socket", "/run/bridgehead/api.sock"];

/// Prometheus' own tool accepts the metrics, and they count what happened.
fn metrics(_appliance: &Appliance) -> Result<()> {
    let text = output(
        Command::new("curl").args(["--silent", "--max-time", "20"]).args(API).arg("http://localhost/metrics"),
    )?;
    let mut promtool = peers::command("promtool");
    let mut promtool = promtool
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    promtool.stdin.take().context("stdin is piped")?.write_all(text.as_bytes())?;
    let checked = promtool.wait_with_output()?;
    let said = [checked.stdout, checked.stderr].concat();
    ensure!(checked.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
    for sample in [
        "bridgehead_boot_failures_total{cause=\"wrong-architecture\"} ",
        "bridgehead_boot_failures_total{cause=\"digest-mismatch\"} ",
        "bridgehead_boot_stage_seconds_bucket{stage=\"ack\",le=\"+Inf\"} ",
        "bridgehead_sent_bytes_total{tier=\"daemon\"} ",
        "bridgehead_nodes{stage=\"failed\"} ",
        "bridgehead_transfers 0",
        "# TYPE bridgehead_dhcp_bound gauge",
    ] {
        ensure!(text.contains(sample), "no {sample}:\n{text}");
    }
    Ok(())
}

/// `bridgehead top`, once as text, then on a terminal, whose settings it must restore.
fn screen(appliance: &Appliance) -> Result<()> {
    let once = appliance.run(&["top", "--once", "--interval", "0.2"])?;
    for words in ["machines by stage", "│failed", "│xdp", "transfer-stalled"] {
        ensure!(once.contains(words), "no {words:?}:\n{once}");
    }
    for end in ["q", "\x03"] {
        let pty =
            openpty(Some(&nix::pty::Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 }), None)?;
        let before = tcgetattr(&pty.slave)?;
        let end_of = |fd: &OwnedFd| -> Result<Stdio> { Ok(fd.as_fd().try_clone_to_owned()?.into()) };
        let mut top = Command::new(program()?)
            .args(["top", "--interval", "0.2"])
            .env("TERM", "xterm")
            .stdin(end_of(&pty.slave)?)
            .stdout(end_of(&pty.slave)?)
            .stderr(end_of(&pty.slave)?)
            .spawn()?;
        let mut terminal = fs::File::from(pty.master.try_clone()?);
        let (sender, seen) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Until the last descriptor of the slave is closed.
            while let Ok(len @ 1..) = terminal.read(&mut buffer) {
                if sender.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        let mut screen = String::new();
        wait_for(PATIENCE, || {
            screen.extend(seen.try_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            // Only what changed is drawn, so spaces are left out where the screen has them already.
            Ok((screen.contains("┌machines") && screen.contains("┌causes")).then_some(()))
        })
        .context("the first screen")?;
        ensure!(tcgetattr(&pty.slave)?.local_flags != before.local_flags, "the terminal is raw meanwhile");
        fs::File::from(pty.master.try_clone()?).write_all(end.as_bytes())?;
        let status = wait_for(PATIENCE, || Ok(top.try_wait()?))?;
        ensure!(status.success(), "{end:?}: {status}");
        let after = tcgetattr(&pty.slave)?;
        ensure!(
            after.local_flags == before.local_flags && after.input_flags == before.input_flags,
            "{end:?}: left raw"
        );
        drop(pty.slave);
        wait_for(PATIENCE, || {
            screen.extend(seen.try_iter().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            Ok((screen.contains("\x1b[?1049h") && screen.contains("\x1b[?1049l")).then_some(()))
        })
        .with_context(|| format!("{end:?}: the screen is not given back"))?;
    }
    Ok(())
}
