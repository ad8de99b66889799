//! The appliance in a virtual machine with the kernel of another Debian release, and its clients at the other end of
//! the cable: how its programs perform on the kernels that people run.
//!
//! Two rows of the matrix are part of every run; the others are ignored, and run by `cargo xtask test --all`. The rows'
//! results are written to `target/fast-path-matrix.md`.

mod boots;
mod matrix;
mod parity;
mod row;
mod takeover;
mod wire;

use anyhow::{Context as _, Result, ensure};
use lab::guest::{Card, Guest, Options, Suite};
use lab::needs::Needs;
use lab::process::output;
use lab::world::{self, World};

use matrix::{ROWS, Row};
use row::{PROGRAMS, Report};

/// In addition to a machine for the appliance.
const FIRMWARE: [&str; 4] = ["ip", "qemu-system-x86_64", "dockerd", "docker"];

/// The verifier's limit of instructions; half of it is reserved for future kernels.
const MOST_INSTRUCTIONS: u64 = 1_000_000 / 2;

/// The harness itself, without an appliance: input reaches the machine, and its output is received.
#[test]
fn a_machine_does_what_it_is_told() {
    world::test(Needs::of(&[&PROGRAMS[..], &["ping"]].concat()).machine(1024), |world| {
        let options = Options { programs: Vec::new(), ..Options::new(Suite::Bookworm, Card::VIRTIO)? };
        let guest = Guest::boot(world, &options)?;
        ensure!(guest.kernel() == Suite::Bookworm.version()?, "{}", guest.kernel());
        let said = guest.run("echo out; echo err >&2; exit 7")?;
        ensure!((said.status, &said.stdout[..], &said.stderr[..]) == (7, b"out\n", b"err\n"), "{said:?}");
        let bytes: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        guest.write("/srv/some/where", &bytes)?;
        ensure!(guest.run("cat /srv/some/where")?.stdout == bytes, "other bytes came back");
        // Frames pass in both directions.
        let host = row::host("a", 1)?;
        host.address("10.77.0.50/24")?;
        guest.text("ip address add 10.77.0.1/24 dev eth0; ip link set eth0 up")?;
        output(host.command("ping").args(["-c", "1", "-W", "20", "10.77.0.1"]))?;
        guest.text("ping -c 1 -W 20 10.77.0.50")?;
        // A panic is reported at once, with the console's end.
        let end = guest.run("echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger").unwrap_err();
        ensure!(format!("{end:#}").contains("sysrq"), "{end:#}");
        Ok(())
    });
}

#[test]
fn debian_12s_kernel_takes_the_programs_and_they_serve() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| serves(world, Suite::Bookworm));
}

#[test]
fn debian_13s_kernel_takes_the_programs_and_they_serve() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| serves(world, Suite::Trixie));
}

/// The first row of a kernel: its programs, a transfer, a lease.
fn serves(world: &World, suite: Suite) -> Result<()> {
    let row = ROWS.iter().find(|row| row.suite == suite).context("each kernel has a row")?;
    let report = row::briefly(world, row)?;
    println!("{row}: Linux {}", report.kernel);
    for (program, instructions) in &report.instructions {
        println!("  {program}: {instructions} instructions");
        ensure!(
            *instructions < MOST_INSTRUCTIONS,
            "{program}: the verifier followed {instructions} instructions"
        );
    }
    ensure!(!report.instructions.is_empty(), "nobody says how many instructions the verifier followed");
    as_declared(row, &report)
}

/// Every row, with everything that clients can do. `BRIDGEHEAD_ROWS` selects those whose name contains its text.
#[test]
#[ignore = "twenty minutes: cargo xtask test --all"]
fn every_row_of_the_matrix() {
    let programs = [&PROGRAMS[..], &["tcpdump", "tshark", "ethtool", "ping"]].concat();
    world::test(Needs::of(&programs).machine(1024), |world| {
        let (mut table, file) = (matrix::Table::default(), lab::target().join("fast-path-matrix.md"));
        let mut faults = Vec::new();
        for row in ROWS.iter().filter(|row| chosen(&row.to_string())) {
            if let Some(missing) = row.card.missing() {
                table.missing(row, &missing);
                table.write(&file)?;
                continue;
            }
            let begun = std::time::Instant::now();
            match row::wholly(world, row).and_then(|report| as_declared(row, &report).map(|()| report)) {
                Ok(report) => table.report(row, &report),
                Err(fault) => {
                    table.fault(row, &fault);
                    faults.push(format!("{row}: {fault:#}"));
                }
            }
            println!("{row}: {:.0} s, {} faults so far", begun.elapsed().as_secs_f64(), faults.len());
            table.write(&file)?;
        }
        ensure!(faults.is_empty(), "{} rows are not as declared:\n{}", faults.len(), faults.join("\n"));
        Ok(())
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn transfers_go_on_while_the_daemon_is_dead_and_the_next_takes_them_over() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| {
        each([Suite::Bookworm, Suite::Trixie], ["tc", "auto"], |suite, mode| {
            takeover::transfers_go_on(world, suite, mode)
        })
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn maps_of_another_layout_are_replaced() {
    world::test(Needs::of(&PROGRAMS).machine(1024), |world| {
        each([Suite::Bookworm, Suite::Trixie], ["tc", "auto"], |suite, mode| {
            takeover::another_layout_is_replaced(world, suite, mode)
        })
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn programs_and_daemon_say_the_same_on_debian_12() {
    world::test(Needs::of(&PROGRAMS).machine(2048), |world| {
        parity::programs_and_daemon_say_the_same(world, Suite::Bookworm)
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn programs_and_daemon_say_the_same_on_debian_13() {
    world::test(Needs::of(&PROGRAMS).machine(2048), |world| {
        parity::programs_and_daemon_say_the_same(world, Suite::Trixie)
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn machines_boot_through_debian_12s_kernel() {
    world::test(Needs::of(&FIRMWARE).machine(2048).machine(512), |world| {
        boots::machines_boot_through_it(world, Suite::Bookworm)
    });
}

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn machines_boot_through_debian_13s_kernel() {
    world::test(Needs::of(&FIRMWARE).machine(2048).machine(512), |world| {
        boots::machines_boot_through_it(world, Suite::Trixie)
    });
}

/// Whether a name contains the text in `BRIDGEHEAD_ROWS`.
fn chosen(name: &str) -> bool {
    std::env::var("BRIDGEHEAD_ROWS").map_or(true, |part| name.contains(&part))
}

/// Every kernel with every mode; a failure does not stop the others.
fn each<const S: usize, const M: usize>(
    suites: [Suite; S],
    modes: [&str; M],
    body: impl Fn(Suite, &str) -> Result<()>,
) -> Result<()> {
    let mut faults = Vec::new();
    for (suite, mode) in suites.into_iter().flat_map(|suite| modes.map(|mode| (suite, mode))) {
        let name = format!("{} {mode}", suite.name());
        if chosen(&name)
            && let Err(fault) = body(suite, mode)
        {
            faults.push(format!("{name}: {fault:#}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// A row's tier and answers are the declared ones.
fn as_declared(row: &Row, report: &Report) -> Result<()> {
    ensure!(
        report.tier == row.tier,
        "the port's tier is {} ({}), not {}",
        report.tier,
        report.reason,
        row.tier
    );
    for (what, answers, by) in [
        ("lease", &report.lease, row.lock_step),
        ("lock-step", &report.lock_step, row.lock_step),
        ("window", &report.windows, row.windows),
    ] {
        ensure!(answers.only(by), "{what}: answered by {answers}, not by {by:?}");
    }
    Ok(())
}
