//! A boot with real firmware, and an attacker on its segment who listens: what is read off the wire is useless.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{self, ADDRESS, Appliance};
use lab::engine::{DEMO, Engine};
use lab::machine::{Disk, Machine, Spec};
use lab::needs::Needs;
use lab::net::{Host, tap};
use lab::process::{PATIENCE, output, wait_for};
use lab::timeline::Event;
use lab::world::{self, World};

const PROGRAMS: [&str; 8] =
    ["ip", "qemu-system-x86_64", "dockerd", "docker", "tshark", "curl", "openssl", "zstd"];

/// A key is released, too.
const PLAN: &str = r#"
[[storage]]
name         = "data"
release-keys = "boot-segment"

[[storage.disks]]
name  = "one"

[[storage.volume]]
name    = "db"
disks   = "one"
encrypt = true
mount   = "/data"
"#;

#[test]
fn a_token_that_was_read_off_the_wire_is_good_for_nothing() {
    world::test(Needs::of(&PROGRAMS).machine(512), |world| {
        let engine = Engine::start(world)?;
        engine.make_demo_image(world)?;
        let spec = Spec { disks: vec![Disk::blank(world, "D1", 160)?], ..Spec::numbered(1) };
        tap(&spec.tap)?;
        let thief = Host::new("thief", 9)?;
        thief.address("10.77.0.150/24")?;
        let ports = [spec.tap.clone(), thief.port()];
        let config = appliance::demo(world, &ports, std::slice::from_ref(&spec), "auto");
        let image = format!("image   = {DEMO:?}\n");
        ensure!(config.contains(&image));
        let config = config.replace(&image, &format!("{image}storage = \"data\"\n")) + PLAN;
        let appliance = Appliance::start(world, &config)?;
        appliance.run(&["image", "add", DEMO])?;
        let (_follow, events) = appliance.follow(world)?;

        let capture = world.path("n1.pcap");
        let mut machine = Machine::power_on(world, spec.clone(), Some(&capture))?;
        until_workload(&mut machine, &events)?;
        let token = token(world, &capture)?;
        let ca = world.path("state/ca.pem");

        // The initrd of its boot can be fetched only by the machine, and the boot's other paths can't be fetched by
        // TFTP.
        let path = format!("/boot/node/{}", spec.mac);
        let refused = curl(&thief, &[&format!("http://{ADDRESS}{path}")])?;
        ensure!(
            refused.starts_with("403") && refused.contains("10.77.0.150 is not its address"),
            "{refused}"
        );
        let error = thief.inside(|| read_request(&path))?;
        ensure!(error.contains("by HTTP only"), "{error}");

        // Its token has been used, and belongs to another machine.
        let request = request(world)?;
        for mac in [spec.mac.as_str(), thief.mac()] {
            let body = format!(r#"{{"mac": "{mac}", "token": "{token}", "request": "{request}"}}"#);
            let session = format!("https://{ADDRESS}:7443/node/session");
            let ca = ca.to_str().context("a path in UTF-8")?;
            let refused = curl(
                &thief,
                &["--cacert", ca, "-H", "Content-Type: application/json", "-d", &body, &session],
            )?;
            ensure!(refused.starts_with("403") && refused.contains("the token is refused"), "{refused}");
        }
        let warning = wait_for(PATIENCE, || {
            let event = events.recv_timeout(Duration::from_secs(1));
            Ok(event.ok().filter(|event| event.stage == "warning"))
        })?;
        let cause = warning.cause.as_deref().unwrap_or_default();
        ensure!(warning.mac.eq_ignore_ascii_case(&spec.mac) && cause.contains("10.77.0.150"), "{warning:?}");
        let node = appliance.json(&["nodes", &spec.name])?;
        ensure!(node["stage"] == "workload", "{node}");

        // Nobody else had it: no log, no document, no console, no file.
        for command in ["status", "nodes", "leases", "files", "profiles", "workloads", "events", "images"] {
            without(&token, command, output(appliance.command(&[command])?.arg("--json"))?.as_bytes())?;
        }
        without(&token, "console", appliance.run(&["console", &spec.name, "--json"])?.as_bytes())?;
        without(&token, "the serial console", machine.console_text().as_bytes())?;
        without(&token, "the daemon's log", &fs::read(appliance.log())?)?;
        for file in fs::read_dir(world.path("state"))?.flatten().filter(|file| file.path().is_file()) {
            without(&token, &file.path().display().to_string(), &fs::read(file.path())?)?;
        }
        drop(machine);
        let status = appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        engine.stop()
    });
}

fn until_workload(machine: &mut Machine, events: &Receiver<Event>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        machine.ensure_running()?;
        ensure!(Instant::now() < end, "out of time; the end of the console:\n{}", machine.console_tail());
        let Ok(event) = events.recv_timeout(Duration::from_millis(200)) else { continue };
        let seconds = event.seconds_since(machine.powered_on);
        println!("{seconds:7.2} s  {}  {}", event.stage, event.detail.as_deref().unwrap_or_default());
        match event.stage.as_str() {
            "failed" | "warning" => bail!(event.cause.unwrap_or_default()),
            "workload" => return Ok(()),
            _ => {}
        }
    }
}

/// What a listener learns: Wireshark extracts the machine's initrd from the capture.
fn token(world: &World, capture: &Path) -> Result<String> {
    let objects = world.path("objects");
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-q", "-r"]).arg(capture).arg("--export-objects");
    output(tshark.arg(format!("http,{}", objects.display())))?;
    let all: Vec<_> = fs::read_dir(&objects)?.flatten().map(|entry| entry.path()).collect();
    for object in &all {
        let Ok(archive) = output(Command::new("zstd").args(["-dc"]).arg(object)) else { continue };
        if let Some(token) = archive.split("\"token\": \"").nth(1).and_then(|rest| rest.get(..64)) {
            return Ok(token.to_owned());
        }
    }
    bail!("no token was captured; HTTP had {all:?}")
}

/// A certificate request for the thief's own key, in hexadecimal.
fn request(world: &World) -> Result<String> {
    let (key, request) = (world.path("thief.key"), world.path("thief.csr"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/",
    ]);
    output(openssl.args(["-outform", "DER", "-keyout"]).arg(key).arg("-out").arg(&request))?;
    Ok(fs::read(request)?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Status code and body.
fn curl(from: &Host, arguments: &[&str]) -> Result<String> {
    let mut curl = from.command("curl");
    curl.args([
        "--silent",
        "--show-error",
        "--max-time",
        "20",
        "--output",
        "-",
        "--write-out",
        "\n%{http_code}",
    ]);
    let text = output(curl.args(arguments))?;
    let (body, status) = text.trim_end().rsplit_once('\n').context("curl writes a status code")?;
    Ok(format!("{status} {body}"))
}

/// The message of the ERROR that answers a read request (RFC 1350).
fn read_request(path: &str) -> Result<String> {
    let socket = UdpSocket::bind("10.77.0.150:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    socket.send_to(format!("\0\x01{path}\0octet\0").as_bytes(), (ADDRESS, 69))?;
    let mut answer = [0; 600];
    let len = socket.recv(&mut answer)?;
    ensure!(answer[..2] == [0, 5], "no ERROR: {:?}", &answer[..len.min(4)]);
    Ok(String::from_utf8_lossy(&answer[4..len]).into_owned())
}

fn without(secret: &str, what: &str, bytes: &[u8]) -> Result<()> {
    let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    ensure!(!found, "{what} has the token in it");
    Ok(())
}
