//! Whole boots: machines from power-on to the page that their workload serves.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use jiff::Timestamp;

use crate::appliance::{self, Appliance};
use crate::engine::{DEMO, Engine};
use crate::machine::{Machine, Spec};
use crate::net::tap;
use crate::process::Process;
use crate::timeline::Event;
use crate::world::World;

/// An appliance with an engine behind it, and machines on its wire.
pub struct Boot {
    pub appliance: Appliance,
    pub machines: Vec<Booting>,
    /// The demo image's digest, as the appliance says.
    pub digest: String,
    events: Receiver<Event>,
    _follow: Process,
    pub engine: Engine,
}

/// A booting machine.
pub struct Booting {
    pub machine: Machine,
    pub address: Option<Ipv4Addr>,
    /// Stages in the order they were reached, with who answered, seconds since power-on.
    pub stages: Vec<(String, String, f64)>,
    pub outcome: Option<Outcome>,
}

/// How a boot ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The workload's page names the node and the image's digest, this many seconds after power-on.
    Answers(f64),
    Failed(String),
}

/// What [`Boot::watch`] reports. Machines are named by their index.
pub enum News<'a> {
    Event(usize, &'a Event, f64),
    Ended(usize, &'a Outcome),
}

impl Boot {
    /// Starts the engine, makes the demo image, starts the appliance, imports the image, and powers `specs`
    /// on. `say` is called at each step.
    pub fn start(
        world: &World,
        specs: Vec<Spec>,
        fast_path: &str,
        mut say: impl FnMut(&str),
    ) -> Result<Self> {
        let ports: Vec<String> = specs.iter().map(|s| s.tap.clone()).collect();
        let config = appliance::demo(world, &ports, &specs, fast_path);
        let mut boot = Self::prepare(world, &specs, &config, 0, &mut say)?;
        say("powering on");
        boot.power_on(world, specs)?;
        Ok(boot)
    }

    /// The same without powering on, with a configuration that names the demo image, and with this many
    /// incompressible bytes in it.
    pub fn prepare(
        world: &World,
        specs: &[Spec],
        config: &str,
        ballast: u64,
        mut say: impl FnMut(&str),
    ) -> Result<Self> {
        say("starting a Docker engine");
        let engine = Engine::start(world)?;
        say("making the demo image");
        engine.make_heavy_demo_image(world, ballast)?;
        Self::with_image(world, specs, config, engine, DEMO, DEMO, say)
    }

    /// The same with another image, imported from `source` under the name `reference`.
    pub fn with_image(
        world: &World,
        specs: &[Spec],
        config: &str,
        engine: Engine,
        source: &str,
        reference: &str,
        mut say: impl FnMut(&str),
    ) -> Result<Self> {
        say("starting the appliance");
        for spec in specs {
            tap(&spec.tap)?;
        }
        let appliance = Appliance::start(world, config)?;
        say("bringing the image in");
        appliance.run(&["image", "add", source])?;
        let digest = appliance.image_digest(reference)?;
        let (follow, events) = appliance.follow(world)?;
        Ok(Self { appliance, machines: Vec::new(), digest, events, _follow: follow, engine })
    }

    /// Powers these machines on, in place of the earlier ones.
    pub fn power_on(&mut self, world: &World, specs: Vec<Spec>) -> Result<()> {
        self.machines.clear();
        for spec in specs {
            let machine = Machine::power_on(world, spec, None)?;
            self.machines.push(Booting { machine, address: None, stages: Vec::new(), outcome: None });
        }
        Ok(())
    }

    /// Follows the boots until each has an outcome. One that takes longer than `patience` has failed.
    pub fn watch(&mut self, patience: Duration, mut tell: impl FnMut(&[Booting], News<'_>)) -> Result<()> {
        let end = Instant::now() + patience;
        while self.machines.iter().any(|m| m.outcome.is_none()) {
            self.appliance.ensure_running()?;
            match self.events.recv_timeout(Duration::from_millis(100)) {
                Ok(event) => {
                    let Some(i) = self.machines.iter().position(|m| m.is(&event.mac)) else { continue };
                    // The end of the previous boot, which is noticed at this one's DISCOVER.
                    if event.cause.as_deref().is_some_and(|cause| cause.starts_with("it began anew")) {
                        continue;
                    }
                    let seconds = self.machines[i].took(&event);
                    tell(&self.machines, News::Event(i, &event, seconds));
                    if event.stage == "failed" && self.machines[i].outcome.is_none() {
                        let why = event.cause.unwrap_or_else(|| "no cause was given".into());
                        self.end(i, Outcome::Failed(why), &mut tell);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.appliance.ensure_running()?;
                    anyhow::bail!("`bridgehead events --follow` ended while machines boot");
                }
            }
            for i in 0..self.machines.len() {
                if self.machines[i].outcome.is_none()
                    && let Some(outcome) = self.machines[i].look(&self.digest, Instant::now() >= end)
                {
                    self.end(i, outcome, &mut tell);
                }
            }
        }
        Ok(())
    }

    /// Powers the machines off and stops the appliance, which must succeed; then the engine.
    pub fn stop(self) -> Result<()> {
        drop(self.machines);
        let status = self.appliance.stop()?;
        ensure!(status.success(), "the appliance ended with {status}");
        self.engine.stop()
    }

    fn end(&mut self, i: usize, outcome: Outcome, tell: &mut impl FnMut(&[Booting], News<'_>)) {
        self.machines[i].outcome = Some(outcome.clone());
        tell(&self.machines, News::Ended(i, &outcome));
    }

    /// An error with each console's end, unless every workload answered.
    pub fn failures(&self) -> Result<()> {
        let failed: Vec<String> = self
            .machines
            .iter()
            .filter_map(|m| match &m.outcome {
                Some(Outcome::Failed(why)) => {
                    let console = m.machine.console_tail();
                    let name = &m.machine.spec.name;
                    Some(format!("{name}: {why}\n  the end of its console:\n{console}"))
                }
                _ => None,
            })
            .collect();
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        Ok(())
    }
}

impl Booting {
    fn is(&self, mac: &str) -> bool {
        self.machine.spec.mac.eq_ignore_ascii_case(mac)
    }

    /// Records an event and returns its time since power-on.
    fn took(&mut self, event: &Event) -> f64 {
        let seconds = event.seconds_since(self.machine.powered_on);
        self.address = event.address.or(self.address);
        self.stages.push((event.stage.clone(), event.answered_by.clone(), seconds));
        seconds
    }

    /// The stage it is in.
    pub fn last_stage(&self) -> &str {
        self.stages.last().map_or("nothing", |(stage, ..)| stage)
    }

    fn look(&mut self, digest: &str, out_of_time: bool) -> Option<Outcome> {
        if let Err(e) = self.machine.ensure_running() {
            return Some(Outcome::Failed(format!(
                "the machine went off after `{}`: {e:#}",
                self.last_stage()
            )));
        }
        let page = match self.address.filter(|_| self.last_stage() == "workload") {
            Some(address) => page((address, 80).into()).map_err(|e| format!("its page: {e:#}")),
            None => Err(format!("the last stage is `{}`", self.last_stage())),
        };
        match page {
            Ok(page) => Some(match check_page(&page, &self.machine.spec.name, digest) {
                Ok(()) => {
                    Outcome::Answers(Timestamp::now().duration_since(self.machine.powered_on).as_secs_f64())
                }
                Err(e) => Outcome::Failed(format!("{e:#}")),
            }),
            Err(why) => out_of_time.then(|| Outcome::Failed(format!("out of time: {why}"))),
        }
    }
}

/// The demo image's page must name the node and the digest of what it runs.
pub fn check_page(page: &str, node: &str, digest: &str) -> Result<()> {
    let mut lines = page.lines();
    let said = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    ensure!(said == (node, digest), "the page says {said:?}, not {:?}", (node, digest));
    Ok(())
}

/// Fetches `/`.
pub fn page(server: SocketAddr) -> Result<String> {
    fetch(server, "/")
}

/// Fetches `path` by HTTP/1.0.
pub fn fetch(server: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", server.ip())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer has no end of its head")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.split(' ').nth(1) == Some("200"), "{status}");
    Ok(body.to_owned())
}
