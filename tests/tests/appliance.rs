//! The appliance and the system that it runs on: what it changes, restores and refuses.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance, BRIDGE, address_only, program};
use lab::clients::{Dhcp, Fetch};
use lab::net::{self, Host};
use lab::process::{PATIENCE, wait_for};
use lab::world::{self, World};

#[test]
fn nothing_is_left_after_a_stop() {
    world::test(&["ip", "udhcpc"], |world| {
        let (appliance, hosts) = Appliance::with_hosts(world, &["a", "b"])?;
        ensure!(master(&hosts[0])?.as_deref() == Some(BRIDGE), "the port is on the bridge");
        Dhcp::Udhcpc.lease(world, &hosts[0])?;
        let status = appliance.stop()?;
        ensure!(status.success(), "SIGTERM is a way to end well, not {status}");
        ensure_clean(&hosts)
    });
}

#[test]
fn a_crash_is_tidied_up_by_the_next_start() {
    world::test(&["ip", "udhcpc"], |world| {
        let (appliance, hosts) = Appliance::with_hosts(world, &["a", "b"])?;
        let address = Dhcp::Udhcpc.lease(world, &hosts[0])?;
        appliance.crash()?;
        // At the second start there is one port less: the other one is restored nevertheless.
        let config = address_only(world, &[hosts[0].port()], "auto");
        let appliance = Appliance::start(world, &config)?;
        ensure!(master(&hosts[1])?.is_none(), "a port of the crashed run is still on the bridge");
        let again = Dhcp::Dhclient.lease(world, &hosts[0]);
        ensure!(again? == address, "the lease outlives the crash");
        appliance.stop()?;
        ensure_clean(&hosts)
    });
}

#[test]
fn a_bridge_that_was_there_stays() {
    world::test(&["ip", "udhcpc"], |world| {
        net::bridge(BRIDGE, "192.0.2.1/24")?;
        let other = Host::new("other", 9)?;
        net::plug(&other.port(), BRIDGE)?;
        let (appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        // A port that somebody else adds to the bridge is served like the configured ones.
        Dhcp::Udhcpc.lease(world, &other)?;
        appliance.stop()?;
        let left = net::ip(["-brief", "address", "show", BRIDGE])?;
        ensure!(left.contains("192.0.2.1") && !left.contains(ADDRESS), "the bridge is as it was, not {left}");
        ensure!(master(&other)?.as_deref() == Some(BRIDGE), "somebody else's port stays");
        ensure!(master(&hosts[0])?.is_none(), "ours does not");
        Ok(())
    });
}

#[test]
fn a_port_that_comes_back_is_enslaved_again() {
    world::test(&["ip", "udhcpc"], |world| {
        let (_appliance, mut hosts) = Appliance::with_hosts(world, &["a"])?;
        drop(hosts.remove(0));
        let host = Host::new("a", 1)?;
        wait_for(PATIENCE, || Ok(master(&host)?.filter(|m| m == BRIDGE)))
            .context("the port that came back")?;
        Dhcp::Udhcpc.lease(world, &host)?;
        Ok(())
    });
}

#[test]
fn check_names_file_and_line() {
    world::test(&["ip"], |world| {
        let host = Host::new("a", 1)?;
        let good = address_only(world, &[host.port()], "auto");
        let (code, words) = check(world, &good)?;
        ensure!(code == Some(0), "a good configuration: {code:?}: {words}");
        ensure!(!world.path("state").exists(), "check changes nothing");
        ensure!(net::ip(["link", "show", BRIDGE]).is_err(), "check makes no bridge");

        // The old text, the new text, and a word of the error.
        let cases = [
            ("lease-time = \"1h\"", "lease-tiem = \"1h\"", "lease-time"),
            ("10.77.0.100", "10.88.0.100", "10.88.0.100"),
            ("\"10.77.0.199\"", "\"10.77.0.99\"", "10.77.0.99"),
            ("fast-path = \"auto\"", "fast-path = \"fast\"", "xdp"),
            ("lease-time = \"1h\"", "lease-time = \"soon\"", "soon"),
            ("\"p-a\"", "\"p-none\"", "p-none"),
            ("mode       = \"authoritative\"", "mode       = ", ""),
        ];
        for (from, to, word) in cases {
            let bad = good.replacen(from, to, 1);
            let line = 1 + bad.lines().position(|l| l.contains(to)).context("the case changes a line")?;
            let (code, words) = check(world, &bad)?;
            ensure!(code == Some(2), "{to}: exit code {code:?}: {words}");
            let place = format!("bridgehead.toml:{line}:");
            ensure!(
                words.contains(&place) && words.contains(word),
                "{to}: no {place} with {word:?}: {words}"
            );
        }
        Ok(())
    });
}

#[test]
fn an_idle_appliance_is_small() {
    world::test(&["ip", "curl"], |world| {
        fs::create_dir_all(world.path("files"))?;
        fs::write(world.path("files/one"), [1])?;
        let (appliance, hosts) = Appliance::with_hosts(world, &["a"])?;
        hosts[0].address("10.77.0.50/24")?;
        Fetch::CurlTftp(512).fetch(world, &hosts[0], ADDRESS, "one")?;
        let before = cpu_ticks(appliance.pid())?;
        let seconds = 5;
        std::thread::sleep(Duration::from_secs(seconds));
        let ticks = cpu_ticks(appliance.pid())? - before;
        let memory = resident_bytes(appliance.pid())?;
        // Times on a shared machine are printed, not judged; USER_HZ is 100 on every Linux.
        println!("idle: {} KiB resident, {}.{} % of a core", memory >> 10, ticks / seconds, ticks % seconds);
        ensure!(memory < 60 << 20, "{memory} bytes resident");
        Ok(())
    });
}

/// The bridge that a host's port belongs to.
fn master(host: &Host) -> Result<Option<String>> {
    let link = fs::read_link(Path::new("/sys/class/net").join(host.port()).join("master")).ok();
    Ok(link.and_then(|l| Some(l.file_name()?.to_string_lossy().into_owned())))
}

fn ensure_clean(hosts: &[Host]) -> Result<()> {
    ensure!(!Path::new("/sys/class/net").join(BRIDGE).exists(), "the bridge is left");
    for host in hosts {
        ensure!(master(host)?.is_none(), "{} is still on a bridge", host.port());
        let link = net::ip(["-details", "link", "show", &host.port()])?;
        ensure!(!link.contains("xdp"), "a program is left: {link}");
        if lab::installed("bpftool") {
            let attached = lab::process::output(std::process::Command::new("bpftool").args(["net", "show"]))?;
            ensure!(!attached.contains(&host.port()), "a program is left: {attached}");
        }
    }
    for entry in fs::read_dir("/sys/fs/bpf")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        ensure!(name.ends_with(".debug"), "{name} is left pinned");
    }
    Ok(())
}

/// The exit code and output of `bridgehead check`.
fn check(world: &World, config: &str) -> Result<(Option<i32>, String)> {
    fs::create_dir_all(world.path("files"))?;
    let file = world.path("bridgehead.toml");
    fs::write(&file, config)?;
    let output = std::process::Command::new(program()?)
        .args(["check", "--config"])
        .arg(&file)
        .env("BRIDGEHEAD_ASSETS", lab::assets())
        .output()?;
    let words = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&words).into_owned()))
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// User and system time in ticks: fields 14 and 15 of /proc/PID/stat (proc(5)).
fn cpu_ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(')').context("no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Ok(fields.get(11).context("utime")?.parse::<u64>()? + fields.get(12).context("stime")?.parse::<u64>()?)
}
