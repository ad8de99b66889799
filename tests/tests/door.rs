//! Access to a running daemon: to its API, its files, its memory.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use lab::appliance::{Appliance, address_only};
use lab::net::Host;
use lab::process::output;
use lab::world::{self, World};
use serde_json::Value;

const API: &str = "http://127.0.0.1:7480";
const SOCKET: &str = "/run/bridgehead/api.sock";
const NODE: &str = "\n[[node]]\nname = \"n1\"\nmac = \"52:54:00:77:00:01\"\n";

/// curl's output as an ordinary user of the appliance, and whether it succeeded.
fn as_nobody(arguments: &[&str]) -> Result<(String, bool)> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "curl", "-s", "-m", "20"]);
    let output = command.args(arguments).output().context("setpriv")?;
    Ok((String::from_utf8_lossy(&output.stdout).into_owned(), output.status.success()))
}

/// An appliance that knows a node, and a host on its wire.
fn start(world: &World) -> Result<(Appliance, Host)> {
    let host = Host::new("h1", 1)?;
    let config = address_only(world, &[host.port()], "auto") + NODE;
    Ok((Appliance::start(world, &config)?, host))
}

/// An archive that only root can read.
fn secret_image(world: &World) -> Result<String> {
    let private = world.path("private");
    fs::create_dir(&private)?;
    fs::set_permissions(&private, PermissionsExt::from_mode(0o700))?;
    let archive = private.join("image.tar");
    fs::write(&archive, "TOPSECRET")?;
    Ok(archive.to_str().context("a path in UTF-8")?.to_owned())
}

#[test]
fn an_ordinary_user_of_the_appliance_gets_nothing_and_root_all() {
    world::test(&["ip", "curl", "setpriv"], |world| {
        let (appliance, _host) = start(world)?;
        let archive = secret_image(world)?;
        let path = format!("{{\"path\": {archive:?}}}");
        let kernel = format!("{{\"source\": {{\"path\": {archive:?}}}, \"name\": \"evil\"}}");
        let json = "content-type: application/json";
        let requests: [&[&str]; 12] = [
            &["/api/nodes"],
            &["/api/nodes/n1/rescue"],
            &["/api/nodes/n1/trace?follow=1"],
            &["/api/events"],
            &["/metrics"],
            &["/"],
            &["/api/reload", "-X", "POST"],
            &["/api/nodes/n1/hold", "-X", "POST"],
            &["/api/images", "-H", json, "-d", &path],
            &["/api/kernels", "-H", json, "-d", &kernel],
            &["/api/default-kernel", "-X", "PUT", "-H", json, "-d", "{\"name\": null}"],
            &["/api/tokens", "-H", json, "-d", "{\"name\": \"me\", \"role\": \"admin\"}"],
        ];
        for request in requests {
            let [path, arguments @ ..] = request else { bail!("each has a path") };
            let url = format!("{API}{path}");
            let (said, _) = as_nobody(&[&[&*url][..], arguments].concat())?;
            ensure!(said.contains("a token is needed") && said.len() < 100, "{path}: {said}");
            let (said, reached) = as_nobody(&[&["--unix-socket", SOCKET, &*url][..], arguments].concat())?;
            ensure!(!reached && said.is_empty(), "by the socket, {path}: {said}");
        }
        let said = as_nobody(&["-H", "Authorization: Bearer bh_0", &format!("{API}/api/nodes")])?.0;
        ensure!(said.contains("a token is needed"), "{said}");

        // Root, through the socket.
        ensure!(appliance.run(&["hold", "n1"])?.contains("to be held"));
        appliance.run(&["release", "n1"])?;
        appliance.run(&["reload"])?;
        appliance.run(&["image", "gc"])?;
        appliance.run(&["kernel", "default"])?;
        let refused = appliance.run(&["image", "add", &archive]).expect_err("it is no archive").to_string();
        ensure!(refused.contains("private/image.tar"), "in the words of who asked: {refused}");
        let mut by_path = Command::new("curl");
        by_path.args(["-s", "--unix-socket", SOCKET, "-H", json, "-d", &path, "http://localhost/api/images"]);
        let by_path = output(&mut by_path)?;
        ensure!(by_path.contains("unknown field `path`"), "{by_path}");

        // And callers that root admits.
        let token = appliance.run(&["token", "add", "me", "--role", "viewer", "--expires", "1h"])?;
        let token = format!("Authorization: Bearer {}", token.trim());
        let (said, _) = as_nobody(&["-H", &token, &format!("{API}/api/nodes")])?;
        ensure!(said.contains("52:54:00:77:00:01"), "{said}");
        let (said, _) = as_nobody(&["-H", &token, "-X", "POST", &format!("{API}/api/reload")])?;
        ensure!(said.contains("this takes the role admin"), "{said}");
        let link = appliance.run(&["login"])?;
        let (said, _) = as_nobody(&["-L", "-c", "/dev/null", "-b", "", link.trim()])?;
        ensure!(said.contains("<h1>Overview</h1>"), "{said}");
        let audit = appliance.run(&["audit", "--json"])?;
        let audit: Vec<Value> = audit.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let told: Vec<&str> = audit.iter().filter_map(|entry| entry["what"].as_str()).collect();
        let expected = [
            "node.hold",
            "node.release",
            "reload",
            "image.gc",
            "kernel.default",
            "token.add",
            "login.invite",
            "login.enter",
        ];
        ensure!(told == expected, "{told:?}");
        ensure!(audit.iter().all(|entry| entry["who"] == "root"), "{audit:?}");
        appliance.stop()?;
        ensure!(!fs::exists(SOCKET)?, "the socket goes with the daemon");
        Ok(())
    });
}

/// The systemd unit's capabilities suffice, also to serve other users' files that everybody may read.
#[test]
fn the_units_capabilities_are_enough() {
    world::test(&["ip", "curl", "setpriv", "udhcpc"], |world| {
        let unit = lab::target().join("../scripts/bridgehead.service");
        let unit = fs::read_to_string(&unit).with_context(|| unit.display().to_string())?;
        let left = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let left: Vec<String> = left
            .context("the unit has a bounding set")?
            .split_whitespace()
            .map(|capability| format!("+{}", capability.trim_start_matches("CAP_").to_lowercase()))
            .collect();
        let host = Host::new("h1", 1)?;
        fs::create_dir_all(world.path("files"))?;
        fs::write(world.path("files/ten"), "0123456789")?;
        std::os::unix::fs::chown(world.path("files/ten"), Some(1000), Some(1000))?;
        let mut command = Command::new("setpriv");
        command.arg(format!("--bounding-set=-all,{}", left.join(","))).arg("--no-new-privs");
        command.arg(lab::appliance::program()?);
        let appliance = Appliance::start_by(world, &address_only(world, &[host.port()], "auto"), command)?;
        let status = fs::read_to_string(format!("/proc/{}/status", appliance.pid()))?;
        ensure!(status.contains("NoNewPrivs:\t1"), "{status}");
        let status = appliance.run(&["status"])?;
        ensure!(status.contains("h1") && !status.contains("ALERT"), "{status}");
        output(host.command("udhcpc").args(["-i", "eth0", "-n", "-q", "-t", "5", "-s", "/bin/true"]))?;
        host.address("10.77.0.200/24")?;
        for scheme in ["http://10.77.0.1/files/ten", "tftp://10.77.0.1/ten"] {
            let got = output(host.command("curl").args(["-s", "-m", "20", scheme]))?;
            ensure!(got == "0123456789", "{scheme}: {got}");
        }
        let log = fs::read_to_string(appliance.log())?;
        ensure!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        appliance.stop()?;
        Ok(())
    });
}

#[test]
fn files_and_memory_are_the_daemons_own() {
    world::test(&["ip"], |world| {
        let state = world.path("state");
        // As an earlier version left it.
        fs::create_dir(&state)?;
        fs::set_permissions(&state, PermissionsExt::from_mode(0o755))?;
        let (appliance, _host) = start(world)?;
        let mode = |path: &std::path::Path| Ok::<_, std::io::Error>(fs::metadata(path)?.mode() & 0o777);
        ensure!(mode(&state)? == 0o700);
        let mut todo = vec![state];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                ensure!(mode(&path)? & 0o077 == 0, "{}: {:o}", path.display(), mode(&path)?);
                if path.is_dir() {
                    todo.push(path);
                }
            }
        }
        let proc = format!("/proc/{}", appliance.pid());
        let limits = fs::read_to_string(format!("{proc}/limits"))?;
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).context("a limit")?;
        ensure!(core.split_whitespace().filter(|word| *word == "0").count() == 2, "{core}");
        let status = fs::read_to_string(format!("{proc}/status"))?;
        ensure!(status.lines().any(|line| line == "Umask:\t0077"), "{status}");

        let socket = fs::metadata(SOCKET)?;
        ensure!(socket.mode() & 0o777 == 0o660 && socket.uid() == 0);
        ensure!(fs::metadata("/run/bridgehead")?.mode() & 0o777 == 0o755, "its group gets through");
        appliance.crash()?;
        ensure!(fs::exists(SOCKET)?, "a killed daemon leaves it");
        let again = Appliance::start(world, &fs::read_to_string(world.path("bridgehead.toml"))?)?;
        ensure!(again.run(&["status"])?.contains("bridge pxe0"));
        // A socket that belongs to another daemon is not replaced.
        let other = fs::read_to_string(world.path("bridgehead.toml"))?.replace("/state", "/other");
        let file = world.path("other.toml");
        fs::write(&file, other.replace("127.0.0.1:7480", "127.0.0.1:7481").replace("pxe0", "pxe1"))?;
        let mut serve = Command::new(lab::appliance::program()?);
        serve.args(["serve", "--config"]).arg(&file).env("BRIDGEHEAD_ASSETS", lab::assets());
        let refused = serve.output()?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && said.contains("another daemon serves its API"), "{said}");
        ensure!(again.run(&["status"])?.contains("bridge pxe0"));
        Ok(())
    });
}
