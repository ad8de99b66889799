//! The API's documents as text for people.

use jiff::Timestamp;

use crate::api::documents::{
    AuditEntry, Collected, FileEntry, Image, KernelStatus, Lease, NodesChanged, PowerResult, Profile,
    ProgramState, ProgramStatus, Progress, Rekey, ReleasedTo, Reloaded, Status, WayIn, Workload,
};
use crate::base::table::{or_dash, size, table};
use crate::base::text::{one_line, word};
use crate::machines::Machine;
use crate::machines::diagnosis::{Cause, Evidence, Why};
use crate::machines::timeline::{Event, Stage};
use crate::operate::access::Token;
use crate::operate::power::pins::NewPin;
use crate::operate::power::{self, credentials::Known};
use crate::provision::image::KernelList;

pub(super) fn tokens(tokens: Vec<Token>) -> String {
    let row = |token: &Token| {
        let ended = token.expires.is_some_and(|end| end <= Timestamp::now());
        let expires =
            token.expires.map(|end| format!("{}{}", time(end), if ended { " (ended)" } else { "" }));
        [token.name.clone(), token.role.to_string(), time(token.added), or_dash(expires)]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    table(["NAME", "ROLE", "ADDED", "EXPIRES"], &rows, "no tokens: the API is used by its socket alone")
}

/// An audit entry in one line.
pub(super) fn audit(entry: &AuditEntry) -> String {
    let AuditEntry { time: at, caller, did, .. } = entry;
    let from = caller.from.map_or_else(String::new, |from| format!(" from {from}"));
    let on = did.on.as_ref().map_or_else(String::new, |on| format!(" {on}"));
    let value = |value: &serde_json::Value| match value {
        serde_json::Value::Null => "-".to_owned(),
        value => value.to_string(),
    };
    let change = match (&did.before, &did.after) {
        (serde_json::Value::Null, serde_json::Value::Null) => String::new(),
        (before, after) => format!("  {} -> {}", value(before), value(after)),
    };
    let line =
        format!("{}  {} ({}{from})  {}{on}{change}", time(*at), caller.who, word(caller.through), did.what);
    one_line(&line)
}

pub(super) fn status(status: Status) -> String {
    let Status { version, started, bridge, pool, ports, fast_path, boots, pacing, alerts, counters } = status;
    let mut out = format!(
        "bridgehead {version}, running since {}\nbridge {} {} {}\n",
        time(started),
        bridge.name,
        bridge.address,
        bridge.mac
    );
    if let Some([first, last]) = pool {
        out.push_str(&format!("pool {first} to {last}\n"));
    }
    if let Some(wave) = boots {
        out.push_str(&format!("boots: {wave}\n"));
    }
    if let (1.., Some(most), Some(capacity)) = (pacing.waiting, pacing.most, pacing.capacity) {
        let megabits = capacity as f64 / 125_000.0;
        out.push_str(&format!(
            "       {most} at a time, which is what {megabits} Mbit/s carry without a block having to wait\n"
        ));
    }
    for alert in &alerts {
        out.push_str(&format!("ALERT: {alert}\n"));
    }
    let ports: Vec<_> = ports.into_iter().map(|p| [p.name, word(p.tier), or_dash(p.reason)]).collect();
    out.push('\n');
    out.push_str(&table(["PORT", "FAST PATH", "WHY"], &ports, "the bridge has no ports"));
    if let Some(kernel) = fast_path {
        out.push('\n');
        out.push_str(&programs(kernel));
    }
    let counters: Vec<_> = counters.into_iter().map(|(name, value)| [name, value.to_string()]).collect();
    out.push('\n');
    out.push_str(&table(["COUNTER", "TOTAL"], &counters, "nothing counted yet"));
    out
}

/// Which programs a kernel takes: one line if it takes all of them.
pub(super) fn survey(kernel: KernelStatus) -> String {
    if kernel.programs.iter().any(|program| program.state == ProgramState::Refused) {
        let release = kernel.kernel.clone();
        return format!(
            "warning: Linux {release} does not take every program of the fast path; docs/fast-path.md says which do\n{}",
            programs(kernel)
        );
    }
    let taken = kernel.programs.iter().filter(|program| program.state == ProgramState::Loaded);
    let taken: Vec<&str> = taken.map(|program| &*program.name).collect();
    format!("fast path: Linux {} takes {}\n", kernel.kernel, taken.join(", "))
}

/// Which programs the kernel took, and what its verifier said of the refused ones.
pub(super) fn programs(KernelStatus { kernel, programs }: KernelStatus) -> String {
    let rows: Vec<_> = programs
        .iter()
        .map(|p| [p.name.clone(), word(p.state), or_dash(p.instructions), or_dash(p.reason.as_ref())])
        .collect();
    let mut out = table(["PROGRAM", "STATE", "INSTRUCTIONS", "WHY"], &rows, "there are no programs");
    for ProgramStatus { name, verifier, .. } in programs.iter().filter(|p| !p.verifier.is_empty()) {
        out.push_str(&format!("\nthe verifier of Linux {kernel} about {name}, at its end:\n"));
        verifier.iter().for_each(|line| out.push_str(&format!("  {line}\n")));
    }
    out
}

pub(super) fn nodes(machines: &[Machine]) -> String {
    let rows: Vec<_> = machines
        .iter()
        .map(|m| {
            [
                or_dash(m.name.as_deref()),
                m.mac.to_string(),
                or_dash(m.address),
                or_dash(m.profile.as_deref()),
                m.state("-"),
                or_dash(m.since.map(time)),
                or_dash(m.stages),
                or_dash(m.firmware.map(|f| f.to_string()).as_deref()),
                or_dash(m.origin.as_ref()),
                or_dash((!m.labels.is_empty()).then(|| m.labels.join(" "))),
            ]
        })
        .collect();
    let heads =
        ["NODE", "MAC", "ADDRESS", "PROFILE", "STAGE", "SINCE", "STAGES", "FIRMWARE", "DECLARED", "LABELS"];
    let mut shown = table(heads, &rows, "no machine was seen or declared");
    for machine in machines {
        if let Some(problem) = &machine.problem {
            shown.push_str(&format!("{}: {problem}\n", machine.label()));
        }
    }
    shown
}

/// In a line for each kind of change; of many machines, how many.
pub(super) fn nodes_changed(changed: &NodesChanged) -> String {
    const NAMED: usize = 20;
    let NodesChanged { meant, added, changed: others, removed } = changed;
    let line = |what: &str, names: &[String]| match names.len() {
        0 => String::new(),
        1..=NAMED => format!("{what} {}\n", names.join(" ")),
        many => format!("{what} {many} machines\n"),
    };
    let lines = [line("added", added), line("changed", others), line("removed", removed)].concat();
    if lines.is_empty() { format!("nothing to change of {meant}: they were so already\n") } else { lines }
}

/// Each machine in a row; what failed has its cause below the table, whole.
pub(super) fn power(results: &[PowerResult]) -> String {
    let now = Timestamp::now();
    let row = |result: &PowerResult| {
        let outcome = result.outcome.as_ref();
        let heard = outcome.and_then(|outcome| outcome.heard);
        let state = outcome.map_or_else(|| "failed".to_owned(), |outcome| outcome.state.to_string());
        let what = outcome.map(|outcome| match (outcome.switched, outcome.boot) {
            (false, _) => "",
            (true, None) => "switched",
            (true, Some(boot)) if boot.from == power::NetBoot::Http => "switched, boots by HTTP once",
            (true, Some(_)) => "switched, boots by PXE once",
        });
        [
            result.label(),
            state,
            or_dash(outcome.map(|outcome| outcome.driver.as_str())),
            or_dash(heard.map(|heard| format!("seen {} s ago", now.duration_since(heard).as_secs().max(0)))),
            or_dash(result.kind.map(word).or_else(|| what.map(str::to_owned))),
        ]
    };
    let rows: Vec<_> = results.iter().map(row).collect();
    let mut out = table(["NODE", "POWER", "BY", "HEARD", "WHAT"], &rows, "no machines");
    for result in results {
        if let Some(error) = &result.error {
            out.push_str(&format!("\n{}: {}\n", result.label(), one_line(error)));
        }
    }
    out
}

pub(super) fn credentials(all: &[Known]) -> String {
    let rows: Vec<_> = all.iter().map(|k| [k.name.clone(), k.user.clone(), time(k.added)]).collect();
    table(["NAME", "USER", "ADDED"], &rows, "no credentials: `bridgehead power credentials add` keeps some")
}

pub(super) fn pin(pin: &NewPin) -> String {
    let before = pin.before.as_ref().map_or_else(|| "none".to_owned(), Clone::clone);
    format!("{} is trusted with\n  SHA-256 {}\nbefore\n  SHA-256 {before}\n", pin.bmc, pin.fingerprint)
}

pub(super) fn way_in(way_in: WayIn) -> String {
    let WayIn { node, address, user, password, host_key, heard, .. } = way_in;
    let at = address.map_or_else(|| "an address that was given up".to_owned(), |a| a.to_string());
    format!(
        "{node} waits in stage 1, heard of at {}\n\n  \
         ssh {user}@{at}\n  \
         password  {}\n  \
         host key  {host_key}\n\n\
         `bridgehead release {node}` ends it.\n",
        time(heard),
        password.as_deref().unwrap_or("was used, and is worth nothing any more")
    )
}

pub(super) fn rekey(rekey: &Rekey) -> String {
    let Rekey { node, keys, until } = rekey;
    match (keys, until) {
        (ReleasedTo::NextBoot, Some(until)) => {
            format!("{node} gets its keys if it boots until {}, once\n", time(*until))
        }
        (ReleasedTo::ThisBoot | ReleasedTo::NextBoot, _) => format!("{node} has its keys in this boot\n"),
    }
}

pub(super) fn leases(leases: Vec<Lease>) -> String {
    let rows: Vec<_> = leases
        .into_iter()
        .map(|l| [l.address.to_string(), l.mac.to_string(), or_dash(l.node), word(l.state), time(l.expires)])
        .collect();
    table(["ADDRESS", "MAC", "NODE", "STATE", "EXPIRES"], &rows, "no leases")
}

pub(super) fn files(files: Vec<FileEntry>) -> String {
    let rows: Vec<_> = files.into_iter().map(|f| [f.path, size(f.bytes), time(f.modified)]).collect();
    table(["PATH", "SIZE", "MODIFIED"], &rows, "no files: [files] root names their directory")
}

pub(super) fn images(images: Vec<Image>) -> String {
    let rows: Vec<_> = images
        .into_iter()
        .map(|Image { record: i, profiles, stages, .. }| {
            let root = i.stage2_blob.as_ref().filter(|_| stages == 2).unwrap_or(&i.rootfs_blob);
            let bytes = i.kernel_blob.size + i.stage1_blob.size + root.size;
            [
                i.reference,
                i.digest,
                size(bytes),
                stages.to_string(),
                i.kernel.version,
                time(i.added),
                or_dash(Some(profiles.join(","))),
            ]
        })
        .collect();
    let none = "no images: `bridgehead image add` brings one in";
    table(["IMAGE", "DIGEST", "SIZE", "STAGES", "KERNEL", "ADDED", "PROFILES"], &rows, none)
}

/// An image that was added, and its other names.
pub(super) fn image_added(image: Image) -> String {
    let others: Vec<_> =
        image.names.iter().filter(|name| **name != image.record.reference).cloned().collect();
    let others =
        if others.is_empty() { String::new() } else { format!("also named {}\n", others.join(", ")) };
    images(vec![image]) + &others
}

pub(super) fn kernels(list: KernelList) -> String {
    let KernelList { default, kernels } = list;
    let rows: Vec<_> = kernels
        .into_iter()
        .map(|kernel| {
            let mark = if default.as_ref() == Some(&kernel.name) { "yes" } else { "-" };
            let stages = if kernel.two_stages { "1 or 2" } else { "1" };
            [
                kernel.name,
                kernel.version,
                mark.into(),
                size(kernel.kernel_blob.size + kernel.stage1_blob.size),
                stages.into(),
                time(kernel.added),
                kernel.from,
            ]
        })
        .collect();
    let none =
        "no kernels: images boot with their own or the stock one; `bridgehead kernel add` brings one in";
    table(["KERNEL", "VERSION", "DEFAULT", "SIZE", "STAGES", "ADDED", "FROM"], &rows, none)
}

pub(super) fn profiles(profiles: Vec<Profile>) -> String {
    let rows: Vec<_> = profiles
        .into_iter()
        .map(|p| {
            let ready = if p.ready { "yes" } else { "no" };
            [
                p.name,
                or_dash(p.image.or(p.kernel)),
                ready.into(),
                or_dash(Some(p.cmdline)),
                or_dash(p.problem),
            ]
        })
        .collect();
    let heads = ["PROFILE", "BOOTS", "READY", "CMDLINE", "PROBLEM"];
    table(heads, &rows, "no profiles are configured")
}

pub(super) fn workloads(workloads: Vec<Workload>) -> String {
    let rows: Vec<_> = workloads
        .into_iter()
        .map(|w| {
            let ports = Some(w.ports.join(",")).filter(|ports| !ports.is_empty());
            let answers = w.address.map(|a| a.to_string()).into_iter().chain(ports);
            let answers = or_dash(answers.reduce(|address, ports| format!("{address} {ports}")));
            let health = w.health.map(|health| format!(" ({})", word(health))).unwrap_or_default();
            let state = word(w.state) + &health;
            let restarts = w.restarts.to_string();
            [w.name, or_dash(w.node), w.image, state, answers, restarts, time(w.since), or_dash(w.error)]
        })
        .collect();
    table(
        ["WORKLOAD", "NODE", "IMAGE", "STATE", "ANSWERS AT", "RESTARTS", "SINCE", "PROBLEM"],
        &rows,
        "no workloads are configured",
    )
}

/// An event in one line, for a log that scrolls: only the first columns are aligned.
pub(super) fn event(event: &Event) -> String {
    let who = event.node.clone().unwrap_or_else(|| event.mac.to_string());
    let mut line = format!(
        "{}  {who:17}  {:8}  {}",
        event.time.strftime("%H:%M:%S%.3f"),
        word(event.stage),
        word(event.answered_by)
    );
    let figures = [event.bytes.map(size), event.duration.map(|d| format!("{d:.3} s"))];
    let words = [event.detail.clone(), event.cause.clone()];
    for part in figures.into_iter().chain(words).flatten() {
        line.push_str("  ");
        line.push_str(&part);
    }
    line
}

/// The state of a machine's boot in a line, then each cause with its evidence and its remedy.
pub(super) fn why(why: &Why) -> String {
    let Why { node, mac, began, last, failed, done, causes, before, stage: reached } = why;
    let name = node.as_ref().map_or_else(|| mac.to_string(), |node| format!("{node} {mac}"));
    let stage = |stage: &Option<Stage>| stage.map_or_else(|| "the start".to_owned(), word);
    let state = match failed {
        true => "failed after",
        false if *done => "has booted, up to",
        false => "is at",
    };
    let mut out = format!(
        "{name}, boot of {}: {state} {}, last heard of {}\n",
        time(*began),
        stage(reached),
        clock(*last)
    );
    match (causes.is_empty(), before) {
        // Its firmware may be trying its next way. All that is known is that the boot before failed.
        (true, Some(_)) if !done => out.push_str("nothing is wrong with it so far; the boot before failed\n"),
        (true, _) => out.push_str("nothing is wrong, as far as can be seen from here\n"),
        (false, _) => {}
    }
    causes.iter().for_each(|cause| push_cause(&mut out, cause));
    if let Some(before) = before {
        let at = stage(&before.stage);
        out.push_str(&format!(
            "\nthe boot before, of {}, failed after {at}, {}\n",
            time(before.began),
            clock(before.ended)
        ));
        before.causes.iter().for_each(|cause| push_cause(&mut out, cause));
    }
    out
}

fn push_cause(out: &mut String, cause: &Cause) {
    let Cause { kind, words, evidence, remedy } = cause;
    out.push_str(&format!("\n{}: {words}\n", word(kind)));
    for Evidence { time, words } in evidence {
        let time = time.map_or_else(|| " ".repeat(12), clock);
        out.push_str(&format!("  {time}  {words}\n"));
    }
    out.push_str(&format!("  -> {remedy}\n"));
}

/// Every machine with something to report, and the alerts, which may explain why others are not seen at all.
pub(super) fn all_why(all: &[Why], alerts: &[String]) -> String {
    let tries_again = |why: &Why| !why.done && why.before.is_some();
    let told = all.iter().filter(|w| w.failed || !w.causes.is_empty() || tries_again(w));
    let told: Vec<String> = told.map(why).collect();
    let mut out = match told.as_slice() {
        [] => "nothing is wrong with any machine's last boot, as far as can be seen from here\n".to_owned(),
        told => told.join("\n"),
    };
    if !alerts.is_empty() {
        out.push('\n');
    }
    alerts.iter().for_each(|alert| out.push_str(&format!("ALERT: {alert}\n")));
    out
}

fn clock(time: Timestamp) -> String {
    time.strftime("%H:%M:%S%.3f").to_string()
}

pub(super) fn progress(progress: &Progress) -> String {
    match progress.bytes {
        Some(bytes) => format!("{} ({})", progress.step, size(bytes)),
        None => progress.step.clone(),
    }
}

pub(super) fn collected(done: &Collected) -> String {
    format!("{} files removed, {} freed\n", done.files, size(done.bytes))
}

pub(super) fn reloaded(done: &Reloaded) -> String {
    let mut out = match done.changed.as_slice() {
        [] => "nothing changed\n".to_owned(),
        changed => format!("changed: {}\n", changed.join(", ")),
    };
    if !done.needs_restart.is_empty() {
        out.push_str(&format!("at the next start: {}\n", done.needs_restart.join(", ")));
    }
    out
}

pub(super) fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
