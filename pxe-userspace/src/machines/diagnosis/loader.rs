//! GRUB and iPXE: one that asks for nothing, and one that can't load what it was told to.

use std::time::Duration;

use jiff::Timestamp;
use pxe_common::dhcp::Firmware;
use pxe_contract::paths::{LoadFailure, LoadStep};
use pxe_contract::stage::Stage;

use super::boot::{Note, since};
use super::{Boot, Cause, Kind, transfer};

/// A loader that goes round asks again sooner after its last file, even one that hashes what it has loaded.
const STARTED_AFTER: Duration = Duration::from_secs(30);

/// The loader was fetched, and asked for nothing: what may be the reason, the likeliest first.
pub(super) fn silent(boot: &Boot) -> Vec<Cause> {
    if let Some(cause) = transfer::wrong_architecture(boot).or_else(|| transfer::broken(boot)) {
        return vec![cause];
    }
    let mut causes = Vec::new();
    // HTTP Boot's loaders ask the host of their own URL.
    if boot.has(Stage::Request) && !boot.has(Stage::Ack) && boot.firmware() != Some(Firmware::HttpX64) {
        causes.push(other_next_server(boot));
    }
    if boot.is_uefi() {
        causes.push(Cause::new(
            Kind::SecureBoot,
            "UEFI fetched the loader and nothing was heard of it since: most likely it did not run it, because Secure \
             Boot refuses what it has no key for",
            "see its screen: \"Security Violation\" or \"Access Denied\" is Secure Boot. Switch that off in its firmware, \
             or enrol a key and serve a signed loader",
        ));
    }
    causes.push(Cause::new(
        Kind::LoaderSilent,
        "the loader was fetched and asked for nothing: it did not start, or does not find its network card",
        "see on its screen whether GRUB starts (\"Welcome to GRUB!\", a `grub>` prompt); try the other loader: [boot] ipxe",
    ));
    let seen = |cause: Cause| {
        cause.with(boot.evidence(Stage::Loader)).known("no configuration was asked for after it")
    };
    causes.into_iter().map(seen).collect()
}

/// Its address is another DHCP server's, as in proxy mode. GRUB takes the server that this one's ACK names, which
/// is that server itself where nobody configured another.
fn other_next_server(boot: &Boot) -> Cause {
    let words = "another DHCP server gave it its address, and GRUB asks the server that this one names for its \
                 configuration, not the appliance";
    let remedy = "have the other DHCP server name the appliance as next server (dnsmasq: dhcp-boot=,,APPLIANCE; Kea and \
                  ISC: next-server; Windows: option 66), without a boot file; or boot by UEFI HTTP Boot, or by iPXE with \
                  [boot] ipxe = \"script\"";
    let cause = Cause::new(Kind::NextServer, words, remedy).with(boot.evidence(Stage::Request));
    let named = boot.notes.iter().rev().find_map(|(time, note)| match note {
        Note::NextServer { server, next } => Some((*time, server, next)),
        _ => None,
    });
    match named {
        Some((time, server, next)) if next.is_unspecified() => {
            cause.seen(time, format!("the ACK of {server} names no next server (siaddr)"))
        }
        Some((time, server, next)) => {
            cause.seen(time, format!("the ACK of {server} names {next} as next server (siaddr)"))
        }
        None => cause.known("the appliance did not give it its address"),
    }
}

/// It was fetched again and again, and is never heard of as what it should be.
pub(super) fn fetched_again(boot: &Boot) -> Option<Cause> {
    const AGAIN: u32 = 4;
    let loader = boot.stages.get(&Stage::Loader).filter(|loader| loader.times >= AGAIN)?;
    if boot.has(Stage::Config) {
        return None;
    }
    let cause = Cause::new(
        Kind::LoaderSilent,
        format!(
            "it fetched its loader {} times, and asked for nothing else: what it loads asks as firmware does",
            loader.times
        ),
        "the loader in [boot] assets is iPXE, and is given itself: set [boot] ipxe = \"script\", or make the assets anew",
    );
    Some(cause.with(boot.evidence(Stage::Loader)))
}

/// The loader said that it could not load or start what it was told to.
pub(super) fn not_loaded(boot: &Boot, now: Timestamp) -> Option<Cause> {
    let at = boot.notes.iter().rposition(|(_, note)| matches!(note, Note::NotLoaded { .. }))?;
    let (time, Note::NotLoaded { failure, flaw }) = &boot.notes[at] else { return None };
    if boot.last_stage() >= Some(Stage::Stage1) {
        return None;
    }
    let loaded = [Stage::Kernel, Stage::Initrd].iter().filter_map(|stage| boot.stages.get(stage));
    if loaded.map(|reached| reached.last).any(|last| last > *time && since(last, now) >= STARTED_AFTER) {
        return None;
    }
    // What it did with the plan before.
    let began = boot.notes[..at].iter().rposition(|(_, note)| matches!(note, Note::Planned(_)));
    let round = &boot.notes[began.map_or(0, |began| began + 1)..at];
    let cause = round.iter().rev().find_map(|(time, note)| undone(boot, *time, note));
    let cause = cause.or_else(|| module_missing(boot, *failure, round));
    let cause = cause.unwrap_or_else(|| unloaded(boot, *failure, flaw.as_deref(), round));
    let said = match failure.step {
        LoadStep::Kernel => "it asks again, after it could not load the kernel",
        LoadStep::Initrd => "it asks again, after it loaded the kernel and could not load the initrds",
        LoadStep::Boot => "it asks again, after it loaded all files and could not start the kernel",
    };
    Some(cause.seen(*time, said))
}

/// A file that was not there, or did not arrive. That a loader ends a transfer by itself is how it closes a file.
fn undone(boot: &Boot, time: Timestamp, note: &Note) -> Option<Cause> {
    match note {
        // GRUB asks for modules that it may do without.
        Note::NotServed { path, .. } if transfer::may_be_missing(path) || path.ends_with(".mod") => None,
        Note::NotServed { .. } | Note::Stalled { .. } => transfer::ended(boot, time, note),
        Note::Aborted { code, .. } if !matches!(*code, transfer::CLOSED | transfer::OPTIONS_REFUSED) => {
            transfer::ended(boot, time, note)
        }
        // The rest: sent, begun, closed, or no transfer.
        _ => None,
    }
}

/// It did not so much as ask for the kernel, but for a module to load one with.
fn module_missing(boot: &Boot, failure: LoadFailure, round: &[(Timestamp, Note)]) -> Option<Cause> {
    let asked = round
        .iter()
        .any(|(_, note)| matches!(note, Note::Opened { path, .. } if !transfer::may_be_missing(path)));
    if failure.step != LoadStep::Kernel || failure.locked || asked {
        return None;
    }
    round.iter().rev().find_map(|(time, note)| match note {
        Note::NotServed { path, .. } if path.ends_with(".mod") => transfer::ended(boot, *time, note),
        // The rest: no module.
        _ => None,
    })
}

/// All that it asked for was there.
fn unloaded(boot: &Boot, failure: LoadFailure, flaw: Option<&str>, round: &[(Timestamp, Note)]) -> Cause {
    let LoadFailure { step, locked } = failure;
    let asked_for_own = round
        .iter()
        .any(|(_, note)| matches!(note, Note::Opened { path, .. } if path.contains("boot/node/")));
    let by_http = boot.planned().is_some_and(|plan| plan.reports);
    let cause = match (step, flaw) {
        (LoadStep::Kernel, Some(flaw)) => {
            Cause::new(Kind::NotBootable, flaw, "name a kernel in the profile, or boot it by iPXE")
        }
        (LoadStep::Initrd, _) if by_http && !asked_for_own => Cause::new(
            Kind::NotBootable,
            "the loader fetched the kernel, and can't fetch the machine's own initrd, which comes by HTTP: it is a GRUB \
             without HTTP, as distributions sign theirs",
            "serve the loader that `cargo xtask setup` makes; under Secure Boot nothing else has been seen to boot an \
             image (docs/trust.md)",
        ),
        (LoadStep::Kernel | LoadStep::Boot, _) if locked => Cause::new(
            Kind::SecureBoot,
            "Secure Boot is on, and the loader refuses the kernel: nobody signed it whom the loader trusts, or nothing \
             verifies it",
            "switch Secure Boot off in its firmware; a signed loader alone is not enough (docs/trust.md)",
        ),
        (LoadStep::Boot, _) => Cause::new(
            Kind::NotBootable,
            "the loader has the kernel and its initrds, and could not start it",
            "see on its screen what the loader says of it",
        ),
        (LoadStep::Kernel | LoadStep::Initrd, _) => Cause::new(
            Kind::MemoryTooSmall,
            format!(
                "the loader could not load the {}, and nothing is wrong with what it was sent: most likely it has no \
                 memory for it",
                if step == LoadStep::Kernel { "kernel" } else { "initrds" }
            ),
            "see its screen: \"out of memory\" means that the machine has too little for this boot (UEFI 320 MiB, BIOS 112, \
             for the smallest image): give it more, use a smaller image, or stages = \"two\"; anything else is said there",
        )
        .with(transfer::memory(boot)),
    };
    round.iter().fold(cause, |cause, (time, note)| match note {
        Note::Aborted { path, acked, blocks, .. } => {
            cause.seen(*time, format!("it closed {path} after block {acked} of {blocks}"))
        }
        // The rest: nothing that the loader did by itself.
        _ => cause,
    })
}
