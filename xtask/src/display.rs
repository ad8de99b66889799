//! The timeline on a terminal: one line per machine, redrawn; otherwise one line per event.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};

use ::lab::boot::{Booting, News, Outcome};
use ::lab::machine::Spec;

/// The stages of a boot, in order, with the contract's names.
const STAGES: [&str; 11] = [
    "discover", "offer", "request", "ack", "loader", "config", "kernel", "initrd", "stage1", "image",
    "workload",
];

pub(crate) struct Display {
    live: bool,
    /// The number of lines that the next redraw moves up.
    drawn: usize,
    name_width: usize,
}

impl Display {
    pub(crate) fn new(specs: &[Spec]) -> Self {
        let name_width = specs.iter().map(|s| s.name.len()).max().unwrap_or(0);
        Self { live: std::io::stdout().is_terminal(), drawn: 0, name_width }
    }

    /// Shows a step before the machines are switched on.
    pub(crate) fn step(&self, step: &str) {
        println!("{step} ...");
    }

    pub(crate) fn news(&mut self, machines: &[Booting], news: &News<'_>) {
        if self.live {
            return self.redraw(machines);
        }
        match news {
            News::Event(i, event, seconds) => {
                let mut line = format!("{seconds:7.2} s  {}  {}", self.name(machines, *i), event.stage);
                let _ = write!(line, "  ({})", event.answered_by);
                if let Some(bytes) = event.bytes {
                    let _ = write!(line, "  {bytes} bytes");
                }
                if let Some(duration) = event.duration {
                    let _ = write!(line, " in {duration:.3} s");
                }
                for words in [&event.detail, &event.cause].into_iter().flatten() {
                    let _ = write!(line, "  {words}");
                }
                println!("{line}");
            }
            News::Ended(i, Outcome::Answers(seconds)) => {
                println!("{seconds:7.2} s  {}  its page answers", self.name(machines, *i));
            }
            News::Ended(i, Outcome::Failed(why)) => println!("  FAILED  {}  {why}", self.name(machines, *i)),
        }
    }

    /// Each machine's stages, in seconds since its power-on.
    pub(crate) fn summary(&self, machines: &[Booting]) {
        let width = self.name_width.max(7);
        print!("\n{:9} ", "stage");
        for machine in machines {
            print!("  {:>width$}", machine.machine.spec.name);
        }
        print!("\n{:9} ", "");
        for machine in machines {
            print!("  {:>width$}", machine.machine.spec.firmware.name());
        }
        println!();
        for stage in STAGES {
            print!("{stage:9} ");
            for machine in machines {
                // A machine requests an address several times; the first request is the firmware's.
                match machine.stages.iter().find(|(s, ..)| s == stage) {
                    Some((_, _, seconds)) => print!("  {seconds:>width$.2}"),
                    None => print!("  {:>width$}", "-"),
                }
            }
            println!();
        }
        print!("{:9} ", "answers");
        for machine in machines {
            match machine.outcome {
                Some(Outcome::Answers(seconds)) => print!("  {seconds:>width$.2}"),
                _ => print!("  {:>width$}", "failed"),
            }
        }
        println!("   seconds since power-on");
    }

    fn redraw(&mut self, machines: &[Booting]) {
        let mut out = String::new();
        if self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A", self.drawn);
        }
        for (i, machine) in machines.iter().enumerate() {
            let reached = STAGES.iter().rposition(|s| machine.stages.iter().any(|(m, ..)| m == s));
            let done = reached.map_or(0, |r| r + 1);
            let bar = "━".repeat(done) + &"─".repeat(STAGES.len() - done);
            let (stage, by, seconds) =
                machine.stages.last().map_or(("power-on", "", 0.0), |(s, b, t)| (s, b, *t));
            let address = machine.address.map_or_else(String::new, |a| a.to_string());
            let firmware = machine.machine.spec.firmware.name();
            let state = match &machine.outcome {
                Some(Outcome::Answers(seconds)) => format!("answers after {seconds:.1} s"),
                Some(Outcome::Failed(why)) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
                None => format!("{stage} {seconds:.1} s {by}"),
            };
            let name = self.name(machines, i);
            let _ = writeln!(out, "\x1b[2K{name}  {firmware}  {address:12}  {bar}  {state:.60}");
        }
        self.drawn = machines.len();
        print!("{out}");
        let _ = std::io::stdout().flush();
    }

    fn name(&self, machines: &[Booting], i: usize) -> String {
        format!("{:width$}", machines[i].machine.spec.name, width = self.name_width)
    }
}
