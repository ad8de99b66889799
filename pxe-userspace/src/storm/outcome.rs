//! The result of a storm: one document, and the same as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use pxe_contract::stage::Stage;
use serde::Serialize;

use super::cpu::Cpu;
use super::engine::Engine;
use super::machine::{Machine, STAGES, State};
use crate::base::table::{size, table};
use crate::base::text::word;

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Outcome {
    nodes: usize,
    booted: usize,
    failed: usize,
    /// Neither booted nor failed, because the storm was interrupted.
    unfinished: usize,
    interrupted: bool,
    seconds: f64,
    /// Bytes of files that machines received.
    bytes: u64,
    stages: Vec<Reached>,
    causes: Vec<Cause>,
    retries: Retries,
    frames: Frames,
    /// Offers by server. More than one server here means a rival.
    offers: BTreeMap<Ipv4Addr, u64>,
    cpu: Cpu,
    /// Expectations that don't hold.
    pub(super) broken: Vec<String>,
    /// From power-on to the last stage, in seconds, sorted.
    #[serde(skip)]
    boots: Vec<f64>,
}

/// A stage: when machines reached it, in seconds after their power-on, and how long it took them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Reached {
    stage: Stage,
    nodes: usize,
    at: Spread,
    took: Spread,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Spread {
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cause {
    cause: String,
    nodes: usize,
    /// One of them.
    example: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Retries {
    /// Packets that machines retransmitted.
    all: u64,
    /// Of them, those that no simulated loss explains.
    server: u64,
    /// Blocks that the server retransmitted.
    repeated_blocks: u64,
    /// How often a loader started over from its configuration.
    restarts: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Frames {
    sent: u64,
    received: u64,
    /// By the simulated loss.
    lost: u64,
    /// Because the simulator read its socket too slowly: the result says less about the server.
    dropped: u64,
}

impl Outcome {
    pub(super) fn of(engine: &Engine<'_>, interrupted: bool, seconds: f64, dropped: u64, cpu: Cpu) -> Self {
        let machines = &engine.machines;
        let count = |wanted: fn(State<'_>) -> bool| machines.iter().filter(|m| wanted(m.state())).count();
        let booted = count(|s| s == State::Booted);
        let failed = count(|s| matches!(s, State::Failed(_)));
        let mut retries = Retries::default();
        let mut bytes = 0;
        let mut causes = BTreeMap::<String, (usize, &Machine)>::new();
        for machine in machines {
            let tally = machine.tally();
            bytes += tally.bytes;
            retries.all += tally.retries;
            retries.server += tally.unexplained;
            retries.repeated_blocks += tally.repeated;
            retries.restarts += tally.restarts;
            if let State::Failed(cause) = machine.state() {
                causes.entry(cause.to_owned()).or_insert((0, machine)).0 += 1;
            }
        }
        let mut causes: Vec<_> = causes
            .into_iter()
            .map(|(cause, (nodes, m))| Cause {
                cause,
                nodes,
                example: format!("{} ({:?})", m.mac(), m.firmware()),
            })
            .collect();
        causes.sort_by_key(|c| std::cmp::Reverse(c.nodes));
        let last = |m: &Machine| m.reached(m.stage()?);
        Self {
            nodes: machines.len(),
            booted,
            failed,
            unfinished: machines.len() - booted - failed,
            interrupted,
            seconds,
            bytes,
            stages: stages(machines),
            causes,
            retries,
            frames: Frames {
                sent: engine.passed.sent,
                received: engine.passed.received,
                lost: engine.passed.lost,
                dropped,
            },
            offers: engine.offers.clone(),
            cpu,
            broken: Vec::new(),
            boots: sorted(machines.iter().filter(|m| m.state() == State::Booted).filter_map(last)),
        }
    }

    /// A figure for `--expect`. A machine that did not boot counts as infinitely slow.
    pub(super) fn figure(&self, name: &str) -> Option<f64> {
        let boot = |share| match rank(self.nodes, share) {
            Some(rank) => self.boots.get(rank).copied().or(Some(f64::INFINITY)),
            None => None,
        };
        Some(match name {
            "p50" => return boot(0.50),
            "p90" => return boot(0.90),
            "p99" => return boot(0.99),
            "max" => return boot(1.0),
            "booted" => self.booted as f64,
            "failed" => (self.failed + self.unfinished) as f64,
            "retries" => self.retries.all as f64,
            "server-retries" => self.retries.server as f64,
            "restarts" => self.retries.restarts as f64,
            _ => return None,
        })
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let stages: Vec<_> = self
            .stages
            .iter()
            .map(|Reached { stage, nodes, at, took }| {
                let s = |seconds: f64| format!("{seconds:.3}");
                [
                    word(stage),
                    nodes.to_string(),
                    s(at.p50),
                    s(at.p90),
                    s(at.p99),
                    s(at.max),
                    s(took.p50),
                    s(took.p99),
                    s(took.max),
                ]
            })
            .collect();
        let heads = ["STAGE", "NODES", "AT p50", "p90", "p99", "max", "TOOK p50", "p99", "max"];
        out.push_str(&table(heads, &stages, "no machine was powered on"));
        out.push('\n');
        // Writing to a String can't fail.
        let _ = self.lines(&mut out);
        out
    }

    fn lines(&self, out: &mut String) -> std::fmt::Result {
        let Self { nodes, booted, failed, unfinished, seconds, bytes, retries, frames, .. } = self;
        write!(out, "{booted} of {nodes} booted in {seconds:.1} s, {failed} failed")?;
        match self.interrupted {
            true => writeln!(out, ", {unfinished} under way when it was interrupted")?,
            false => writeln!(out)?,
        }
        for Cause { cause, nodes, example } in &self.causes {
            writeln!(out, "  {nodes} x {cause}; such as {example}")?;
        }
        let rate = if *seconds > 0.0 { *bytes as f64 / seconds } else { 0.0 };
        writeln!(out, "files     {} ({}/s)", size(*bytes), size(rate as u64))?;
        writeln!(
            out,
            "retries   {}, {} of them not explained by simulated loss; blocks that came again {}; boots begun again by their loader {}",
            retries.all, retries.server, retries.repeated_blocks, retries.restarts
        )?;
        writeln!(
            out,
            "frames    {} sent, {} received, {} lost on purpose",
            frames.sent, frames.received, frames.lost
        )?;
        if frames.dropped > 0 {
            writeln!(
                out,
                "WARNING   {} frames were lost in this host's own sockets: the simulator was too slow, and retries are its own",
                frames.dropped
            )?;
        }
        if self.offers.len() > 1 {
            let all: Vec<_> = self.offers.iter().map(|(server, n)| format!("{server} ({n})")).collect();
            writeln!(out, "WARNING   more than one DHCP server made offers: {}", all.join(", "))?;
        }
        out.push_str(&self.cpu.text());
        for broken in &self.broken {
            writeln!(out, "BROKEN    {broken}")?;
        }
        Ok(())
    }
}

fn stages(machines: &[Machine]) -> Vec<Reached> {
    let reached = STAGES.iter().map(|stage| {
        let at = |m: &Machine| m.reached(*stage);
        // Counted from the last stage that this machine reached before: kernels by hand report nothing.
        let took = |m: &Machine| {
            let before = STAGES.iter().take_while(|s| *s != stage).filter_map(|s| m.reached(*s)).last();
            Some(m.reached(*stage)? - before.unwrap_or_default())
        };
        let all = sorted(machines.iter().filter_map(at));
        Reached {
            stage: *stage,
            nodes: all.len(),
            at: Spread::of(&all),
            took: Spread::of(&sorted(machines.iter().filter_map(took))),
        }
    });
    reached.filter(|r| r.nodes > 0 && r.stage != Stage::Discover).collect()
}

/// Nanoseconds as sorted seconds.
fn sorted(times: impl Iterator<Item = u64>) -> Vec<f64> {
    let mut all: Vec<f64> = times.map(|ns| ns as f64 / 1e9).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The index of the value at `share` among `count` sorted ones (nearest rank).
fn rank(count: usize, share: f64) -> Option<usize> {
    ((count as f64 * share).ceil() as usize).clamp(1, count.max(1)).checked_sub(1).filter(|_| count > 0)
}

impl Spread {
    fn of(sorted: &[f64]) -> Self {
        let at = |share| rank(sorted.len(), share).map_or(0.0, |r| sorted[r]);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_ranks() {
        assert_eq!(rank(0, 0.5), None);
        assert_eq!((rank(1, 0.5), rank(1, 1.0)), (Some(0), Some(0)));
        assert_eq!((rank(100, 0.5), rank(100, 0.99), rank(100, 1.0)), (Some(49), Some(98), Some(99)));
        assert_eq!(rank(1000, 0.99), Some(989));
    }
}
