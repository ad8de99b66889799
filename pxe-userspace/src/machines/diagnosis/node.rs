//! From the kernel on: what may be wrong with a machine that reports nothing.

use pxe_contract::stage::Stage;

use super::boot::{Note, Refusal};
use super::transfer::memory;
use super::{Boot, Cause, Kind};
use crate::base::text::word;

/// Kernel and initrd are there, stage 1 has not reported.
pub(super) fn kernel_silent(boot: &Boot) -> Option<Cause> {
    if let Some(cause) = refused(boot).or_else(|| other_system(boot)) {
        return Some(cause);
    }
    let consoles = boot.planned().map(|p| p.consoles.as_slice()).unwrap_or_default();
    let console = match consoles {
        [] => {
            "the kernel's command line names no console=: it writes to the screen, if there is one".to_owned()
        }
        consoles => format!("the kernel writes to console={}", consoles.join(", ")),
    };
    let cause = Cause::new(
        Kind::KernelSilent,
        "kernel and initrd were sent and nothing was heard since: the kernel did not start, had too little memory to \
         unpack the initrd, or stage 1 has no network",
        "look at its console. \"out of memory\" or \"write error\": more memory, or a smaller image in two stages \
         (stages = \"two\"). Nothing at all: give the profile's cmdline the console that is looked at. \"no module\" or \
         \"no such interface\": the image's kernel lacks the network card's driver",
    );
    let cause = cause.with(boot.evidence(Stage::Kernel)).with(boot.evidence(Stage::Initrd));
    Some(cause.with(memory(boot)).known(console))
}

/// Stage 1 has reported, and then no more.
pub(super) fn stage1_silent(boot: &Boot) -> Option<Cause> {
    if let Some(cause) = refused(boot).or_else(|| super::transfer::broken(boot)) {
        return Some(cause);
    }
    let last = boot.last_stage()?;
    let cause = Cause::new(
        Kind::Silent,
        format!("it fell silent after {}", word(last)),
        "`bridgehead console` has what it said last; a machine that was switched off says nothing, too",
    );
    Some(cause.with(boot.evidence(last)))
}

/// A request of stage 1 was refused.
fn refused(boot: &Boot) -> Option<Cause> {
    let (time, what, why) = boot.notes.iter().rev().find_map(|(time, note)| match note {
        Note::Refused { what, why } => Some((*time, *what, why)),
        _ => None,
    })?;
    let cause = match what {
        Refusal::Token => token_refused(),
        Refusal::Session => Cause::new(
            Kind::TokenRefused,
            "the machine's address speaks without the certificate that this boot got for its token",
            "boot it again. If that does not help, something else speaks from the machine's address: a leftover of an \
             earlier boot, or another machine that took the address",
        ),
        Refusal::Address => Cause::new(
            Kind::Stage1Network,
            "stage 1 runs, and speaks from another address than its machine's",
            "something else on the machine or its wire changes the address: a relay that translates addresses, a \
             second network card with the same MAC address, an ip= in the profile's cmdline",
        ),
    };
    Some(cause.seen(time, why.clone()))
}

pub(super) fn token_refused() -> Cause {
    Cause::new(
        Kind::TokenRefused,
        "it was given no session, nor keys of encrypted volumes: the token of its boot is not good",
        "boot it again: each boot gets a token of its own, good once and for 15 minutes. If that does not help, see \
         whether somebody else asks in its name: the daemon's log has every refusal",
    )
}

/// An operating system runs where stage 1 should.
fn other_system(boot: &Boot) -> Option<Cause> {
    let loaded = boot.stages.get(&Stage::Initrd)?.last;
    let (time, _) =
        boot.notes.iter().find(|(time, note)| *time > loaded && matches!(note, Note::SystemAsked))?;
    let cause = Cause::new(
        Kind::OtherSystem,
        "after kernel and initrd a system asked for an address that is not our stage 1",
        "see on its console what runs: an initrd of its own before ours in the profile, or a reset that went on to a \
         disk (boot order)",
    );
    Some(
        cause
            .with(boot.evidence(Stage::Initrd))
            .seen(*time, "a DHCP request without a firmware's vendor class"),
    )
}
