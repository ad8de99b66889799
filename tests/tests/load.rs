//! The benchmarks' clients against the appliance: they get correct answers, and notice wrong ones.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::appliance::{ADDRESS, Appliance};
use lab::guest::appliance::Status;
use lab::load::cpu::Cpus;
use lab::load::dhcp::{self, End, Given, Way};
use lab::load::{Numbers, tftp};
use lab::needs::Needs;
use lab::net::Host;
use lab::world::{self, World};

const LEN: usize = 30_001;

fn loaded(world: &World) -> Result<(Appliance, Vec<Host>, Vec<u8>)> {
    let content = Numbers::new(1).bytes(LEN);
    fs::create_dir_all(world.path("files"))?;
    fs::write(world.path("files/load.bin"), &content)?;
    let (appliance, hosts) = Appliance::with_hosts(world, &["direct", "relay"])?;
    hosts[1].address("10.77.0.50/24")?;
    Ok((appliance, hosts, content))
}

fn plan<'a>(content: &'a [u8], clients: usize, window: u16, loss: f64) -> Result<tftp::Plan<'a>> {
    let file = ("load.bin", content);
    let duration = Duration::from_secs(2);
    Ok(tftp::Plan { server: ADDRESS.parse()?, file, clients, blksize: 1024, window, loss, duration })
}

#[test]
fn many_clients_read_the_whole_file_again_and_again() {
    world::test(Needs::of(&["ip"]).processors(2), |world| {
        let cpus = Cpus::divide()?;
        let (_appliance, hosts, content) = loaded(world)?;
        for (clients, window, loss) in [(1, 1, 0.0), (20, 1, 0.0), (20, 8, 0.0), (20, 8, 1.0)] {
            let plan = plan(&content, clients, window, loss)?;
            let outcome = hosts[1].inside(|| tftp::run(&plan, &cpus))?;
            let case = format!("{clients} clients, window {window}, {loss} % lost: {outcome:?}");
            ensure!(outcome.transfers > 0, "no transfer ended: {case}");
            ensure!(outcome.bytes <= outcome.blocks * 1024, "more bytes than blocks hold: {case}");
            ensure!(outcome.latency.p50 <= outcome.latency.p99, "{case}");
            ensure!(outcome.latency.p99 <= outcome.latency.max, "{case}");
        }
        Ok(())
    });
}

#[test]
fn one_wrong_byte_ends_a_benchmark() {
    world::test(Needs::of(&["ip"]).processors(2), |world| {
        let cpus = Cpus::divide()?;
        let (_appliance, hosts, mut content) = loaded(world)?;
        content[LEN - 1] ^= 1;
        let plan = plan(&content, 3, 1, 0.0)?;
        match hosts[1].inside(|| tftp::run(&plan, &cpus)) {
            Err(e) => ensure!(format!("{e:#}").contains("not the file's"), "{e:#}"),
            Ok(outcome) => anyhow::bail!("not noticed: {outcome:?}"),
        }
        Ok(())
    });
}

#[test]
fn machines_get_one_address_each_relayed_and_direct() {
    world::test(Needs::of(&["ip", "iptables"]).processors(2), |world| {
        let cpus = Cpus::divide()?;
        let (appliance, hosts, _) = loaded(world)?;
        let mut given = Given::new();
        let ways = [(&hosts[0], Way::Direct), (&hosts[1], Way::Relayed("10.77.0.50".parse()?))];
        let (mut first, mut before) = (0, 0);
        for (host, way) in ways {
            let server = ADDRESS.parse()?;
            let plan = dhcp::Plan { server, way, first, machines: 30, outstanding: 7, end: End::Round };
            // The second time they are known, so the kernel answers.
            for known in [false, true] {
                let outcome = host.inside(|| dhcp::run(&plan, &mut given, &cpus))?;
                ensure!(outcome.exchanges + outcome.drops == 30, "{way:?}: {outcome:?}");
                ensure!(outcome.exchanges > 0, "{way:?}: nobody got an address");
                let acks = acks_by_kernel(&appliance)?;
                let more = acks - std::mem::replace(&mut before, acks);
                ensure!(!known || more > 0, "{way:?}: {more} of known machines by the kernel");
            }
            first += 30;
        }
        let machines: HashSet<u32> = given.values().copied().collect();
        ensure!(machines.len() == given.len(), "{} addresses for {} machines", given.len(), machines.len());
        Ok(())
    });
}

/// Sent by the programs, at both hooks.
fn acks_by_kernel(appliance: &Appliance) -> Result<u64> {
    let status = Status(appliance.json(&["status"])?);
    Ok(["xdp", "tc"].iter().map(|hook| status.count(&format!("kernel.{hook}.dhcp-acks"))).sum())
}
