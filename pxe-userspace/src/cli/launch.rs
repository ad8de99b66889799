//! `bridgehead launch` and `launches`: machines, powered on and watched until they run what they shall.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{AskError, Client, Reading, print, read, show};
use crate::api::LaunchOrder;
use crate::api::documents::{Asked, Launch, LaunchEvent, LaunchLine, WholeLaunch};
use crate::base::table::{or_dash, table};
use crate::base::text::{self, word};
use crate::config::duration;
use crate::machines::timeline::Stage;
use crate::operate::launch::model::{
    Changed, Judged, Limit, MachineChange, Member, Outcome, Phase, Reach, State, Step,
};

/// After the daemon was restarted, it is asked again for so long.
const DAEMON_BACK_WITHIN: Duration = Duration::from_secs(60);
const ASKS_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct LaunchArgs {
    #[command(subcommand)]
    command: Option<LaunchCommand>,
    #[command(flatten)]
    order: OrderArgs,
}

/// What is asked for.
#[derive(Debug, Args)]
struct OrderArgs {
    /// Which machines: names, n[1-40], MAC addresses, label=L, profile=P, all; several of them.
    #[arg(value_name = "SELECTOR", required = true)]
    selector: Vec<String>,
    /// They boot this profile from now on.
    #[arg(long, value_name = "P", conflicts_with = "image", required_unless_present = "image")]
    profile: Option<String>,
    /// They boot this image, in place of their profiles'. The engine pulls what it does not have.
    #[arg(long, value_name = "REF")]
    image: Option<String>,
    /// So many machines at a time at most [default: as many as the links carry]
    #[arg(long, value_name = "N")]
    at_a_time: Option<u32>,
    /// So many go first; the others begin when all of them are healthy.
    #[arg(long, value_name = "N")]
    canary: Option<u32>,
    /// Begin no others when more than these are set aside: a number, or a share of all such as 5%.
    #[arg(long, value_name = "N|N%")]
    max_failed: Option<Limit>,
    /// How often a machine is powered on at most [default: 2]
    #[arg(long, value_name = "N")]
    tries: Option<u32>,
    /// A machine is healthy when this answers with 200 to 399: http://{address}:8080/health
    ///
    /// {address} and {name} are the machine's. Without it, an image's HEALTHCHECK says so; without that, a machine is
    /// healthy when its workload has run for 30 s.
    #[arg(long, value_name = "URL")]
    healthy: Option<String>,
    /// End it after this time, whatever is missing: 90s, 30m, 2h.
    #[arg(long, value_name = "T", value_parser = time)]
    deadline: Option<Duration>,
    /// How long a machine may take from power-on to its first DISCOVER, and from its workload to its health [default: 5m]
    #[arg(long, value_name = "T", value_parser = time)]
    patience: Option<Duration>,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Show it as it goes, until its end. Exit code 0: every machine is healthy; 1: not, with names and causes.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Debug, Subcommand)]
enum LaunchCommand {
    /// One launch, machine by machine.
    Show {
        id: u64,
        /// Show it as it goes, until its end, with the exit code of `launch --wait`.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        reading: Reading,
    },
    /// End a launch: no other machine begins. Machines that are on stay on.
    Cancel {
        id: u64,
        #[command(flatten)]
        reading: Reading,
    },
    /// Bring the machines of a launch back to what they booted before, by a launch.
    Undo {
        id: u64,
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        reading: Reading,
    },
}

fn time(text: &str) -> Result<Duration, String> {
    duration(text).filter(|time| !time.is_zero()).ok_or_else(|| "a time, such as 90s, 30m or 2h".to_owned())
}

pub(super) fn run(args: LaunchArgs, out: &mut dyn Write) -> Result<(), AskError> {
    match args.command {
        None => launch(args.order, out),
        Some(LaunchCommand::Show { id, wait: false, reading }) => {
            read::<WholeLaunch>(&reading, &format!("/api/launches/{id}"), out, |whole| shown(&whole))
        }
        Some(LaunchCommand::Show { id, wait: true, reading }) => wait(id, &reading, out),
        Some(LaunchCommand::Cancel { id, reading }) => {
            let client = Client::new(&reading.api);
            let whole: WholeLaunch =
                client.document(client.post(&format!("/api/launches/{id}/cancel"), None)?)?;
            print(&reading, &whole, out, shown)
        }
        Some(LaunchCommand::Undo { id, wait: waits, reading }) => {
            let client = Client::new(&reading.api);
            let asked: Asked = client.document(client.post(&format!("/api/launches/{id}/undo"), None)?)?;
            begun(&asked, waits, &reading, out)
        }
    }
}

pub(super) fn list(reading: &Reading, out: &mut dyn Write) -> Result<(), AskError> {
    read::<Vec<Launch>>(reading, "/api/launches", out, |all| launches(&all))
}

fn launch(args: OrderArgs, out: &mut dyn Write) -> Result<(), AskError> {
    let OrderArgs { selector, profile, image, at_a_time, canary, max_failed, tries, healthy, .. } = args;
    let order = LaunchOrder {
        select: selector.join(","),
        profile,
        image,
        at_a_time,
        canary,
        max_failed,
        tries,
        healthy,
        deadline: args.deadline.map(|time| time.as_secs()),
        patience: args.patience.map(|time| time.as_secs()),
    };
    let reading = args.reading;
    let client = Client::new(&reading.api);
    let path = format!("/api/launches?dry-run={}", args.dry_run);
    let mut outcome = None;
    client.lines::<LaunchLine>(client.post_for_lines(&path, &json!(order))?, |line, _| {
        match line {
            LaunchLine::Progress(step) if !reading.json => writeln!(out, "{}", show::progress(&step))?,
            LaunchLine::Progress(_) => {}
            LaunchLine::Done(asked) => outcome = Some(Ok(asked)),
            LaunchLine::Failed(failure) => outcome = Some(Err(failure)),
        }
        out.flush()
    })?;
    match outcome {
        Some(Ok(asked)) => begun(&asked, args.wait && !args.dry_run, &reading, out),
        Some(Err(failure)) => Err(AskError::Refused(failure)),
        None => Err(AskError::Cut { api: reading.api }),
    }
}

/// Shows what was begun, and where it is wanted, how it goes on.
fn begun(asked: &Asked, waits: bool, reading: &Reading, out: &mut dyn Write) -> Result<(), AskError> {
    let id = asked.launch.launch.id;
    if !waits {
        return print(reading, asked, out, show_asked);
    }
    if !reading.json {
        out.write_all(text::visible_lines(&notes(asked)).as_bytes()).map_err(AskError::Output)?;
    }
    wait(id, reading, out)
}

/// Shows each change until the launch is over, also over restarts of the daemon.
fn wait(id: u64, reading: &Reading, out: &mut dyn Write) -> Result<(), AskError> {
    let client = Client::new(&reading.api);
    let mut after = 0;
    let mut lost = None;
    loop {
        let path = format!("/api/launch-events?follow=1&launch={id}&after={after}");
        let mut over = false;
        let followed = client.get(&path).and_then(|answer| {
            lost = None;
            client.lines_while::<LaunchEvent>(answer, |event, raw| {
                after = event.id;
                match reading.json {
                    true => out.write_all(raw)?,
                    false => writeln!(out, "{}", text::visible_lines(&event_line(&event)))?,
                }
                out.flush()?;
                over = matches!(event.change, Changed::Phase { phase: Phase::Ended, .. });
                Ok(!over)
            })
        });
        if over {
            break;
        }
        match followed {
            Err(error @ (AskError::Output(_) | AskError::Refused(_) | AskError::NotYours { .. })) => {
                return Err(error);
            }
            Ok(()) | Err(_) => {
                let since = *lost.get_or_insert_with(std::time::Instant::now);
                if since.elapsed() > DAEMON_BACK_WITHIN {
                    return followed.and(Err(AskError::Cut { api: reading.api.clone() }));
                }
                std::thread::sleep(ASKS_AGAIN);
            }
        }
    }
    let path = format!("/api/launches/{id}");
    let whole: WholeLaunch = client.document(client.get(&path)?)?;
    if !reading.json {
        out.write_all(text::visible_lines(&verdict(&whole)).as_bytes()).map_err(AskError::Output)?;
    }
    match whole.launch.verdict {
        Some(verdict) if verdict.outcome == Outcome::Healthy => Ok(()),
        verdict => Err(AskError::Launch { id, words: verdict.map_or_else(String::new, |v| v.words) }),
    }
}

/// One line, for a log that scrolls.
fn event_line(event: &LaunchEvent) -> String {
    let time = event.time.strftime("%H:%M:%S");
    match &event.change {
        Changed::Phase { phase, verdict } => {
            let words = verdict.as_ref().map_or_else(String::new, |verdict| format!(": {}", verdict.words));
            text::one_line(&format!("{time}  launch {} is {}{words}", event.launch, word(phase)))
        }
        Changed::Machine(MachineChange { name, state, tries, stage, step, cause, .. }) => {
            let again = if *tries > 1 { format!("  (try {tries})") } else { String::new() };
            let cause = cause.as_ref().map_or_else(String::new, |cause| format!("  {cause}"));
            text::one_line(&format!("{time}  {name:12}  {}{again}{cause}", how_far(*state, *stage, *step)))
        }
    }
}

fn how_far(state: State, stage: Option<Stage>, step: Option<Step>) -> String {
    match (state, stage, step) {
        (State::Booting, Some(stage), _) => format!("booting at {}", word(stage)),
        (State::Booting, None, _) => "booting".to_owned(),
        (State::Powering, _, Some(Step::Ask)) => "powering: is it on?".to_owned(),
        (State::Powering, _, Some(Step::Off)) => "powering: off".to_owned(),
        (State::Powering, _, Some(Step::On)) => "powering: on".to_owned(),
        (State::SetAside, ..) => "set aside".to_owned(),
        (state, ..) => word(state),
    }
}

fn launches(all: &[Launch]) -> String {
    let rows: Vec<_> = all
        .iter()
        .map(|launch| {
            let state = match &launch.verdict {
                Some(verdict) if launch.phase == Phase::Ended => word(verdict.outcome),
                _ => word(launch.phase),
            };
            let words = or_dash(launch.verdict.as_ref().map(|verdict| verdict.words.as_str()));
            [
                launch.id.to_string(),
                show::time(launch.asked),
                launch.by.clone(),
                launch.select.clone(),
                launch.what.clone(),
                state,
                words,
            ]
        })
        .collect();
    table(["LAUNCH", "ASKED", "BY", "MACHINES", "WHAT", "STATE", "VERDICT"], &rows, "nothing was launched")
}

fn show_asked(asked: &Asked) -> String {
    let head = match asked.dry_run {
        true => "nothing was done; it would be:\n".to_owned(),
        false => format!(
            "launch {0} goes on; `bridgehead launch show {0}` says how far it is\n",
            asked.launch.launch.id
        ),
    };
    format!("{}{head}\n{}", notes(asked), machines(&asked.launch.machines))
}

fn notes(asked: &Asked) -> String {
    asked.notes.iter().map(|note| format!("note: {note}\n")).collect()
}

fn shown(whole: &WholeLaunch) -> String {
    let WholeLaunch { launch, machines: members } = whole;
    format!("{}\n{}", launches(std::slice::from_ref(launch)), machines(members))
}

fn machines(members: &[Member]) -> String {
    let rows: Vec<_> = members
        .iter()
        .map(|member| {
            let power = match member.reach {
                _ if member.runs => "runs it already",
                Reach::Full => "yes",
                Reach::Wake => "wake only",
                Reach::None => "by hand",
            };
            let judged = match member.judged {
                Judged::HealthCheck => "health check",
                Judged::Workload => "workload for 30 s",
                Judged::Url | Judged::UrlFromKernel => "URL",
            };
            let image = member.target.as_ref().and_then(|pin| pin.image.as_ref());
            let turn = if member.canary { "first" } else { "-" };
            [
                member.name.clone(),
                how_far(member.state, member.stage, member.step),
                member.tries.to_string(),
                turn.to_owned(),
                power.to_owned(),
                judged.to_owned(),
                or_dash(image.map(|image| image.name.as_str())),
                or_dash(member.cause.as_deref()),
            ]
        })
        .collect();
    let heads = ["NODE", "STATE", "TRIES", "TURN", "POWER", "HEALTHY BY", "IMAGE", "CAUSE"];
    table(heads, &rows, "it has no machines")
}

/// How it ended, with each machine that is not healthy.
fn verdict(whole: &WholeLaunch) -> String {
    let left = whole.machines.iter().filter(|member| member.state != State::Healthy);
    let line = |member: &Member| {
        let cause = member.cause.as_deref().unwrap_or("it was never begun");
        format!("{}: {}: {cause}\n", member.name, how_far(member.state, member.stage, member.step))
    };
    let words = whole.launch.verdict.as_ref().map_or("", |verdict| &verdict.words);
    format!("{}launch {}: {words}\n", left.map(line).collect::<String>(), whole.launch.id)
}
