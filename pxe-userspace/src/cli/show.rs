//! Documents as people read them.

use jiff::Timestamp;

use super::table::{or_dash, size, table};
use crate::api::documents::{
    Collected, FileEntry, Image, Lease, Profile, Progress, Reloaded, Status, Workload,
};
use crate::machines::{Hold, Machine};
use crate::text::word;
use crate::timeline::{Event, Stage};

pub(super) fn status(status: Status) -> String {
    let Status { version, started, bridge, pool, ports, boots, pacing, alerts, counters } = status;
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
    let counters: Vec<_> = counters.into_iter().map(|(name, value)| [name, value.to_string()]).collect();
    out.push('\n');
    out.push_str(&table(["COUNTER", "TOTAL"], &counters, "nothing counted yet"));
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
                stage(m),
                or_dash(m.since.map(time)),
                or_dash(m.stages),
                or_dash(m.firmware.as_deref()),
            ]
        })
        .collect();
    let heads = ["NODE", "MAC", "ADDRESS", "PROFILE", "STAGE", "SINCE", "STAGES", "FIRMWARE"];
    table(heads, &rows, "no machine was seen or declared")
}

fn stage(machine: &Machine) -> String {
    let fetching = machine.fetching.as_ref().map(|f| format!(", {} % of {}", f.percent, f.path));
    let waiting = machine.waiting.map(|before| format!(" (waiting: {before} before it)"));
    let parts = machine.stage.map(word).into_iter().chain(fetching).chain(waiting);
    let stage = or_dash(parts.reduce(|a, b| a + &b));
    match (machine.hold, machine.stage) {
        (None, _) => stage,
        (Some(Hold::Reached | Hold::UntilReleased), Some(Stage::Stage1)) => format!("{stage} (held)"),
        (Some(_), _) => format!("{stage} (to be held)"),
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
        .map(|Image { record: i, profiles, stages }| {
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
            let answers = or_dash(w.address.map(|a| a.to_string()).or(Some(w.ports.join(","))));
            let restarts = w.restarts.to_string();
            [w.name, w.image, word(w.state), answers, restarts, time(w.since), or_dash(w.error)]
        })
        .collect();
    table(
        ["WORKLOAD", "IMAGE", "STATE", "ANSWERS AT", "RESTARTS", "SINCE", "PROBLEM"],
        &rows,
        "no workloads are configured",
    )
}

/// One line, for a log that scrolls: no columns beyond the first.
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

fn time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
