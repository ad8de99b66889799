//! `bridgehead storm`: boots a thousand simulated machines against the user's own appliance.
//!
//! The machines have DHCP, TFTP and HTTP clients of their own, which share only the packet formats of `pxe-common`
//! with the server. They behave like their `firmware`: its options, its timers, and when it gives up.
//!
//! Read it in this order: `firmware` (what each kind does), `dhcp`, `tftp` and `http` (one
//! client each, pure), `machine` (a boot from power-on to its workload, pure), `engine` (all of
//! them on one `wire`), `outcome` (the result).

mod appliance;
mod args;
mod cable;
mod contents;
mod cpu;
mod dhcp;
mod engine;
mod expect;
mod firmware;
mod http;
mod link;
mod machine;
mod outcome;
mod picture;
mod tftp;
mod wire;

use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use appliance::Appliance;
use cable::Cable;
use contents::Contents;
use cpu::Meter;
use engine::{End, Engine, Signals, mac};
use firmware::Firmware;
use machine::{Machine, State};
use outcome::Outcome;
use picture::Picture;
use wire::Wire;

use crate::api::client::AskError;

pub use args::{Client, Storm};
pub use expect::Expectations;

/// The numbers of the scouts, the machines that boot alone first: far from the others'.
const SCOUTS: u32 = 0xff_ff00;

/// The time in which the scouts must have booted.
const SCOUTS_WITHIN: Duration = Duration::from_secs(120);

/// There was no storm, or no usable result.
#[derive(Debug, thiserror::Error)]
pub enum StormError {
    #[error("{0}")]
    Api(#[from] AskError),
    #[error(
        "the bridge `{bridge}` of the appliance at {api} is not on this host: name the interface that leads there with --interface"
    )]
    Elsewhere { bridge: String, api: String },
    #[error("{source}; without the daemon's API, name an interface with --interface")]
    NoApi { source: AskError },
    #[error("profile {name:?} can't be checked: {cause}")]
    ProfileUnknown { name: String, cause: String },
    #[error("there is no profile {name:?}: there are {names}")]
    NoProfile { name: String, names: String },
    #[error("profile {name:?} can't be booted: {problem}")]
    NotReady { name: String, problem: String },
    #[error(
        "unknown machines boot {} here, not profile {wanted:?}: [default] profile in the configuration says which",
        .given.as_ref().map_or("nothing".to_owned(), |g| format!("profile {g:?}"))
    )]
    OtherProfile { wanted: String, given: Option<String> },
    #[error(
        "{nodes} machines want an address, and the appliance has {free} for them: widen [dhcp] range, take --nodes {free}, or go on with --yes"
    )]
    PoolTooSmall { nodes: u32, free: u32 },
    #[error("not without consent: answer yes, or give --yes")]
    NoConsent,
    #[error("no interface is called `{0}`: `ip link` lists them")]
    NoInterface(String),
    #[error(
        "a cable into the bridge `{bridge}`: {source}; run as root, or with CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN"
    )]
    Cable { bridge: String, source: io::Error },
    #[error("the daemon does not take `{port}` for a port of its bridge: its log says why")]
    PortUnseen { port: String },
    #[error("frames on {on}: {source}; run as root, or with CAP_NET_ADMIN and CAP_NET_RAW")]
    Wire { on: String, source: io::Error },
    #[error("one {firmware} machine did not boot by itself, so no more were powered on: {cause}")]
    Scout { firmware: String, cause: String },
    #[error("interrupted before the storm began")]
    Interrupted,
    #[error("signals: {0}")]
    Signals(io::Error),
    #[error("the outcome could not be printed: {0}")]
    Output(io::Error),
}

impl StormError {
    /// Whether the user's request was wrong, rather than its execution.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoProfile { .. }
                | Self::OtherProfile { .. }
                | Self::PoolTooSmall { .. }
                | Self::NoConsent
                | Self::NoInterface(_)
                | Self::Elsewhere { .. }
        )
    }
}

/// Runs a storm and prints the result. True when all expectations hold.
pub fn run(storm: &Storm, out: &mut dyn Write) -> Result<bool, StormError> {
    // Before any thread is started.
    let signals = Signals::catch().map_err(StormError::Signals)?;
    let appliance = Appliance::ask(&storm.reading.api);
    check(storm, &appliance)?;
    let (mut wire, _cable, appliance) = plug_in(storm, appliance)?;
    let on = storm.interface.clone().unwrap_or_else(|| "the cable".to_owned());
    let wire_error = |source| StormError::Wire { on: on.clone(), source };

    let mut contents = Contents::default();
    scout(storm, &mut wire, &mut contents, &signals, appliance.as_ref(), &wire_error)?;

    let kinds = storm.client.firmwares();
    let machines = (0..storm.nodes)
        .zip(kinds.iter().cycle())
        .map(|(n, kind)| Machine::new(mac(n), *kind).telling(storm.facts));
    let dropped_before = wire.dropped().map_err(&wire_error)?;
    let mut engine = Engine::new(&mut wire, &mut contents, 0, machines.collect(), storm.loss);
    let mut picture = Picture::new();
    let meter = Meter::start();
    let end = engine
        .run(storm.spread, storm.patience, &signals, |engine| picture.paint(engine))
        .map_err(&wire_error)?;
    let (seconds, cpu) = (engine.elapsed().as_secs_f64(), meter.stop());
    picture.paint(&engine);
    let dropped = engine.dropped().map_err(&wire_error)? - dropped_before;
    let mut outcome = Outcome::of(&engine, end == End::Interrupted, seconds, dropped, cpu);
    if !storm.keep_leases {
        engine.release().map_err(&wire_error)?;
    }
    outcome.broken = storm.expect.broken(|name| outcome.figure(name));
    let text = match storm.reading.json {
        true => format!("{:#}\n", serde_json::to_value(&outcome).expect("outcomes have only text keys")),
        false => outcome.text(),
    };
    out.write_all(text.as_bytes()).map_err(StormError::Output)?;
    Ok(outcome.broken.is_empty() && end == End::Done)
}

/// Checks what can be known before a frame is sent.
fn check(storm: &Storm, appliance: &Result<Appliance, AskError>) -> Result<(), StormError> {
    let appliance = match (appliance, &storm.profile) {
        (Ok(appliance), _) => appliance,
        (Err(error), Some(name)) => {
            return Err(StormError::ProfileUnknown { name: name.clone(), cause: error.to_string() });
        }
        (Err(_), None) => return Ok(()),
    };
    if let Some(name) = &storm.profile {
        appliance.check_profile(name)?;
    }
    match appliance.free_addresses()? {
        Some(free) if free < storm.nodes && !storm.yes => {
            Err(StormError::PoolTooSmall { nodes: storm.nodes, free })
        }
        _ => Ok(()),
    }
}

/// Connects the machines: to the named interface, after a question, or by a cable of their own to the
/// bridge of the appliance on this host.
fn plug_in(
    storm: &Storm,
    appliance: Result<Appliance, AskError>,
) -> Result<(Wire, Option<Cable>, Option<Appliance>), StormError> {
    if let Some(interface) = &storm.interface {
        let index = nix::net::if_::if_nametoindex(interface.as_str())
            .map_err(|_| StormError::NoInterface(interface.clone()))?;
        consent(storm, interface)?;
        let socket =
            wire::open(index).map_err(|source| StormError::Wire { on: interface.clone(), source })?;
        return Ok((Wire::new(socket), None, appliance.ok()));
    }
    let mut appliance = appliance.map_err(|source| StormError::NoApi { source })?;
    let bridge = appliance.status.bridge.name.clone();
    if !appliance.is_here() {
        return Err(StormError::Elsewhere { bridge, api: storm.reading.api.to_string() });
    }
    let (cable, wire) = cable::plug(&bridge)?;
    appliance.wait_for_port(&cable.port)?;
    Ok((wire, Some(cable), Some(appliance)))
}

/// An interface may lead to somebody else's DHCP server, whose addresses the machines would take.
fn consent(storm: &Storm, interface: &str) -> Result<(), StormError> {
    if storm.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(StormError::NoConsent);
    }
    eprint!(
        "{} machines will ask for addresses and boot files on `{interface}`, of whichever server answers there. Go on? [y/N] ",
        storm.nodes
    );
    let mut answer = String::new();
    let _ = io::stdin().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(StormError::NoConsent),
    }
}

/// Boots one machine of each kind first, without loss: to see that it can, and to have the copy of
/// every file that all others are compared with.
fn scout(
    storm: &Storm,
    wire: &mut Wire,
    contents: &mut Contents,
    signals: &Signals,
    appliance: Option<&Appliance>,
    wire_error: &dyn Fn(io::Error) -> StormError,
) -> Result<(), StormError> {
    let kinds = storm.client.firmwares();
    let machines = (SCOUTS..).zip(kinds).map(|(n, kind)| Machine::new(mac(n), *kind)).collect();
    let mut engine = Engine::new(wire, contents, SCOUTS, machines, 0.0);
    let end = engine.run(Duration::ZERO, SCOUTS_WITHIN, signals, |_| {}).map_err(wire_error)?;
    let checked = judge(storm, &engine, appliance);
    if !storm.keep_leases {
        engine.release().map_err(wire_error)?;
    }
    if end == End::Interrupted {
        return Err(StormError::Interrupted);
    }
    checked?;
    for machine in &engine.machines {
        let seconds = machine.stage().and_then(|s| machine.reached(s)).unwrap_or_default() as f64 / 1e9;
        let files = crate::base::table::size(machine.tally().bytes);
        eprintln!("one {} machine by itself: {seconds:.1} s, {files}", name(machine.firmware()));
    }
    Ok(())
}

fn judge(storm: &Storm, engine: &Engine<'_>, appliance: Option<&Appliance>) -> Result<(), StormError> {
    for machine in &engine.machines {
        if let State::Failed(cause) = machine.state() {
            let firmware = name(machine.firmware());
            return Err(StormError::Scout { firmware, cause: cause.to_owned() });
        }
        if let (Some(wanted), Some(appliance)) = (&storm.profile, appliance) {
            let given = appliance.profile_of(&machine.mac().to_string())?;
            if given.as_ref() != Some(wanted) {
                return Err(StormError::OtherProfile { wanted: wanted.clone(), given });
            }
        }
    }
    Ok(())
}

/// The waits after each DISCOVER, in milliseconds: for a test that the server assumes the same.
#[cfg(test)]
pub(crate) fn discover_waits(firmware: pxe_common::dhcp::Firmware) -> Vec<u64> {
    use pxe_common::dhcp::Firmware::{Bios, IpxeBios};
    let simulated = match firmware {
        Bios => Firmware::Bios,
        IpxeBios => Firmware::Ipxe,
        _ => Firmware::Uefi,
    };
    simulated.rom().dhcp.discover.iter().map(|ms| u64::from(*ms)).collect()
}

fn name(firmware: Firmware) -> String {
    use clap::ValueEnum as _;
    firmware.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}
