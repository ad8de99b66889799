//! Looking into a machine's boot from afar.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use super::{AskError, Client, Reading};
use crate::base::text::percent;
use crate::machines::console::{Line, Source};

#[derive(Debug, Args)]
pub struct Trace {
    /// The machine, by name or MAC address; a MAC need not have been seen before.
    #[arg(value_name = "NAME|MAC")]
    node: String,
    /// Where the trace goes, as pcapng; `-` is stdout.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Go on after the boot's end, until Ctrl-C.
    #[arg(long, short)]
    follow: bool,
    /// Keep only so many bytes of each frame.
    #[arg(long, short, value_name = "BYTES")]
    snap_length: Option<usize>,
    #[command(flatten)]
    api: super::Place,
}

#[derive(Debug, Args)]
pub struct Spoken {
    /// The machine, by name or MAC address.
    #[arg(value_name = "NAME|MAC")]
    node: String,
    /// Go on with what it says, also in its next boots.
    #[arg(long, short)]
    follow: bool,
    /// How many boots back: 1 is the one before the last.
    #[arg(long, short, value_name = "N", default_value_t = 0, conflicts_with = "follow")]
    back: usize,
    #[command(flatten)]
    reading: Reading,
}

/// Each line with the kernel's time, as in `dmesg`.
pub(super) fn console(console: Spoken, out: &mut dyn Write) -> Result<(), AskError> {
    spoken(console, "console", out, |line, out| {
        let dying = if line.from == Source::Netconsole { "crash: (unverified) " } else { "" };
        writeln!(out, "[{:12.6}] {dying}{}", line.uptime, line.text)
    })
}

/// Only what the workload wrote. A partial line stays without its end.
pub(super) fn logs(logs: Spoken, out: &mut dyn Write) -> Result<(), AskError> {
    spoken(logs, "logs", out, |line, out| {
        write!(out, "{}{}", line.text, if line.partial { "" } else { "\n" })
    })
}

fn spoken(
    what: Spoken,
    of: &str,
    out: &mut dyn Write,
    print: impl Fn(&Line, &mut dyn Write) -> io::Result<()>,
) -> Result<(), AskError> {
    let Spoken { node, follow, back, reading } = what;
    let client = Client::new(&reading.api);
    let node = percent(&node, "");
    let answer = client.get(&format!("/api/nodes/{node}/{of}?back={back}&follow={}", u8::from(follow)))?;
    let mut last: Option<Line> = None;
    client.lines::<Line>(answer, |line, raw| {
        if reading.json {
            return out.write_all(raw).and_then(|()| out.flush());
        }
        let next = match &last {
            Some(last) if last.boot == line.boot => last.number.saturating_add(1),
            _ => {
                let began = line.time.strftime("%Y-%m-%d %H:%M:%SZ");
                writeln!(out, "--- boot of {began}")?;
                0
            }
        };
        if line.number > next {
            writeln!(out, "--- {} lines are missing", line.number - next)?;
        }
        print(&line, out)?;
        last = Some(line);
        out.flush()
    })
}

pub(super) fn trace(trace: Trace, out: &mut dyn Write) -> Result<(), AskError> {
    let Trace { node, output, follow, snap_length, api } = trace;
    let client = Client::new(&api);
    let mut path = format!("/api/nodes/{}/trace?follow={}", percent(&node, ""), u8::from(follow));
    if let Some(bytes) = snap_length {
        path += &format!("&snap-length={bytes}");
    }
    let answer = client.get(&path)?;
    let mut file;
    let out: &mut dyn Write = if output.as_os_str() == "-" {
        out
    } else {
        file = File::create(&output).map_err(|source| AskError::File { path: output, source })?;
        &mut file
    };
    // To stderr, because stdout may be the file.
    let until = if follow { "Ctrl-C" } else { "its boot has ended, or Ctrl-C" };
    let _ = writeln!(io::stderr(), "tracing {node} until {until}");
    client.blocks(answer, |block| out.write_all(block).and_then(|()| out.flush()))
}
