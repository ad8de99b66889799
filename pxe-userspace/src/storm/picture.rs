//! The storm's progress on stderr: bars on a terminal, a line every few seconds elsewhere.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use pxe_contract::stage::Stage;

use super::engine::Engine;
use super::machine::{STAGES, State};
use crate::base::table::size;
use crate::base::text::word;

/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

const BAR: usize = 40;

pub(super) struct Picture {
    live: bool,
    /// Lines on the terminal to paint over.
    painted: usize,
    last: Option<Duration>,
    bytes: u64,
}

impl Picture {
    pub(super) fn new() -> Self {
        Self { live: io::stderr().is_terminal(), painted: 0, last: None, bytes: 0 }
    }

    pub(super) fn paint(&mut self, engine: &Engine<'_>) {
        let now = engine.elapsed();
        let since = now.saturating_sub(self.last.unwrap_or_default());
        if !self.live && self.last.is_some() && since < LINE_EVERY {
            return;
        }
        let bytes: u64 = engine.machines.iter().map(|m| m.tally().bytes).sum();
        let rate = (bytes - self.bytes) as f64 / since.as_secs_f64().max(0.001);
        (self.last, self.bytes) = (Some(now), bytes);
        let text = if self.live { bars(engine) } else { String::new() } + &line(engine, rate as u64);
        let up = if self.painted > 0 { format!("\x1b[{}A\x1b[J", self.painted) } else { String::new() };
        self.painted = if self.live { text.lines().count() } else { 0 };
        // Nobody sees it when stderr is closed.
        let _ = io::stderr().write_all((up + &text).as_bytes());
    }
}

fn bars(engine: &Engine<'_>) -> String {
    let all = engine.machines.len();
    let bar = |stage: &Stage| {
        let there = engine.machines.iter().filter(|m| m.reached(*stage).is_some()).count();
        let full = there * BAR / all.max(1);
        format!("{:9} {}{} {there}\n", word(stage), "█".repeat(full), "░".repeat(BAR - full))
    };
    STAGES.iter().map(bar).collect()
}

fn line(engine: &Engine<'_>, rate: u64) -> String {
    let count = |wanted: fn(State<'_>) -> bool| engine.machines.iter().filter(|m| wanted(m.state())).count();
    let at: Vec<_> = STAGES
        .iter()
        .filter_map(|stage| {
            let booting = engine.machines.iter().filter(|m| m.state() == State::Booting);
            let there = booting.filter(|m| m.stage() == Some(*stage)).count();
            (there > 0).then(|| format!("{} {there}", word(stage)))
        })
        .collect();
    format!(
        "{:6.1} s  booted {}  failed {}  off {}  {}/s  {}\n",
        engine.elapsed().as_secs_f64(),
        count(|s| s == State::Booted),
        count(|s| matches!(s, State::Failed(_))),
        count(|s| s == State::Off),
        size(rate),
        at.join(" · "),
    )
}
