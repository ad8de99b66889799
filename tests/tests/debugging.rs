//! Debugging a boot remotely: packet traces, consoles, held boots.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use lab::appliance::{ADDRESS, Appliance, address_only};
use lab::clients::{Dhcp, Fetch};
use lab::net::Host;
use lab::process::{PATIENCE, Process, output, wait_for};
use lab::world;

#[test]
fn a_trace_has_what_both_sides_sent_and_says_who_answered() {
    world::test(&["ip", "udhcpc", "curl", "tshark", "capinfos"], |world| {
        let (host, other) = (Host::new("a", 1)?, Host::new("b", 2)?);
        let ports = [host.port(), other.port()];
        fs::create_dir_all(world.path("files"))?;
        fs::write(world.path("files/f"), vec![7; 100_000])?;
        // In the driver packet sockets see nothing: while it is traced, the port must be answered at tc.
        let appliance = Appliance::start(world, &address_only(world, &ports, "xdp"))?;
        let tier = || -> Result<Option<String>> {
            let status = appliance.json(&["status"])?;
            Ok(status["ports"][0]["tier"].as_str().map(str::to_owned))
        };
        ensure!(tier()?.as_deref() == Some("xdp"), "{:?} is no port with XDP", tier()?);

        let file = world.path("a.pcapng");
        let mut trace = appliance.command(&["trace", host.mac(), "-o"])?;
        let mut trace = Process::start(trace.arg(&file).arg("--follow"), &world.path("trace.log"))?;
        wait_for(PATIENCE, || Ok(fs::metadata(&file).is_ok_and(|f| f.len() > 0).then_some(())))?;
        ensure!(tier()?.as_deref() == Some("tc"), "traced, the port's tier is {:?}", tier()?);

        for _ in 0..2 {
            Dhcp::Udhcpc.lease(world, &host)?;
        }
        Dhcp::Udhcpc.lease(world, &other)?;
        host.address("10.77.0.50/24")?;
        Fetch::CurlTftp(1024).fetch(world, &host, ADDRESS, "f")?;
        Fetch::CurlHttp.fetch(world, &host, ADDRESS, "f")?;
        // The last packet is soon in the file, and the file is complete at any time.
        let last = || Ok(tshark(&file, "http.response.code == 200").ok().filter(|rows| !rows.is_empty()));
        wait_for(PATIENCE, last).context("the last response in the trace")?;
        trace.kill()?;
        wait_for(PATIENCE, || Ok((tier()?.as_deref() == Some("xdp")).then_some(())))?;

        let about = output(Command::new("capinfos").arg("-Tmr").arg(&file))?;
        ensure!(about.contains("pcapng"), "{about}");
        let rows = |filter: &str| tshark(&file, filter);
        // BOOTP's types in order: each lease is DISCOVER, OFFER, REQUEST, ACK.
        let dhcp: Vec<_> = rows("dhcp")?;
        let kinds: Vec<&str> = dhcp.iter().map(|row| row.dhcp.as_str()).collect();
        ensure!(kinds == ["1", "2", "3", "5", "1", "2", "3", "5"], "{dhcp:?}");
        // An unknown machine's first DISCOVER is answered by the daemon, all others by the kernel.
        let in_kernel: Vec<bool> =
            dhcp.iter().map(|row| row.comment.contains("answered in the kernel")).collect();
        ensure!(in_kernel == [false, false, false, true, false, true, false, true], "{dhcp:?}");
        ensure!(dhcp.iter().all(|row| row.port == host.port()), "{dhcp:?}");
        let blocks = rows("tftp.opcode == 3")?;
        ensure!(blocks.len() >= 98, "{} DATA blocks of 98", blocks.len());
        let in_kernel = blocks.iter().filter(|row| row.comment.contains("answered in the kernel")).count();
        ensure!(in_kernel >= 90, "{in_kernel} blocks are said to come from the kernel");
        ensure!(rows("http.request.uri contains \"/files/f\"")?.len() == 1, "no HTTP request");
        ensure!(rows("http.response.code == 200")?.len() == 1, "no HTTP response");
        let strangers = rows(&format!("eth.addr == {}", other.mac()))?;
        ensure!(strangers.is_empty(), "another machine's frames: {strangers:?}");

        let refused = appliance.run(&["trace", "n9", "-o", "-"]).unwrap_err().to_string();
        ensure!(refused.contains("no machine is called `n9`"), "{refused}");
        Ok(())
    });
}

#[derive(Debug)]
struct Row {
    port: String,
    dhcp: String,
    comment: String,
}

/// The frames of a trace that tshark's filter accepts.
fn tshark(file: &Path, filter: &str) -> Result<Vec<Row>> {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-T", "fields", "-Y", filter, "-r"]).arg(file);
    for field in ["frame.interface_name", "dhcp.option.dhcp", "frame.comment"] {
        tshark.args(["-e", field]);
    }
    let text = output(&mut tshark)?;
    let row = |line: &str| {
        let mut fields = line.split('\t').map(str::to_owned);
        let mut next = || fields.next().context("a row of tshark's");
        Ok(Row { port: next()?, dhcp: next()?, comment: next()? })
    };
    text.lines().map(row).collect()
}
