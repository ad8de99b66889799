//! Between DISCOVER and ACK.

use std::net::Ipv4Addr;
use std::time::Duration;

use pxe_contract::stage::Stage;

use super::boot::{Note, since};
use super::{Boot, Cause, Kind};

/// More than `secs` in any firmware's first packets: EDK2 sends 0, iPXE n(n+3) in message n whatever the
/// clock says (4, 10, 18 in tests/corpus), so iPXE reaches this with its fourth.
const SECS_MISSED: u16 = 20;

/// Firmware that gets an offer asks for it within seconds: EDK2 collects for 3.8 s, iPXE for 1 s and 2.
const OFFERS_LOST_AFTER: Duration = Duration::from_secs(7);

/// An offer was sent, and nothing asked for.
pub(super) fn not_taken(boot: &Boot) -> Option<Cause> {
    let discovers = boot.stages.get(&Stage::Discover)?;
    if let Some(cause) = other_server(boot) {
        return Some(cause);
    }
    if let Some(cause) = super::transfer::wrong_architecture(boot) {
        return Some(cause);
    }
    if let Some(cause) = queued(boot) {
        return Some(cause);
    }
    if !boot.has(Stage::Offer) {
        let cause = Cause::new(
            Kind::NoAddress,
            format!("it asked for an address and was offered none ({} DISCOVER)", discovers.times),
            "see `bridgehead status`: the pool may be exhausted ([dhcp] range), or the machine unknown and left alone \
             ([dhcp] unknown)",
        );
        return Some(cause.with(boot.evidence(Stage::Discover)));
    }
    if boot.has(Stage::Request) {
        let cause = Cause::new(
            Kind::OfferNotTaken,
            "it asked for the offered address and the answer did not satisfy it",
            "look at the packets: `bridgehead trace`; a DHCPNAK means that the address belongs to somebody else",
        );
        return Some(cause.with(steps(boot)));
    }
    let cause = Cause::new(
        Kind::OfferNotTaken,
        format!(
            "{} and it never asked for one: they do not reach it, or its ROM refuses an offer that has address and \
             boot file in one",
            match boot.stages.get(&Stage::Offer).map_or(0, |o| o.times) {
                1 => "an offer was sent".to_owned(),
                times => format!("offers were sent {times} times"),
            }
        ),
        "let the switch forward on its port at once (portfast, no spanning tree); see with `bridgehead trace` whether \
         offers leave; if they do, update the ROM, or give the address by another server ([dhcp] mode = \"proxy\")",
    );
    Some(cause.with(steps(boot)).known("no other DHCP server was seen to answer this machine"))
}

/// It is not its turn yet.
pub(super) fn queued(boot: &Boot) -> Option<Cause> {
    let (time, before) = boot.waited().filter(|_| !boot.has(Stage::Offer))?;
    let cause = Cause::new(
        Kind::Queued,
        "it waits for its turn: the links carry no more boots at a time",
        "nothing, if it asks again: whose firmware gives up soonest comes first. A higher [network] ceiling or faster \
         links let in more; `bridgehead status` shows the queue",
    );
    let seen = format!("its DISCOVER was kept: {before} before it");
    Some(cause.with(boot.evidence(Stage::Discover)).seen(time, seen))
}

/// It will not come back by itself, however recent that was.
pub(super) fn taken_elsewhere(boot: &Boot) -> Option<Cause> {
    let taken = others(boot).any(|(.., taken)| taken) && !boot.has(Stage::Request);
    taken.then(|| other_server(boot))?
}

/// The machine uses another DHCP server.
fn other_server(boot: &Boot) -> Option<Cause> {
    let taken = others(boot).find(|(.., taken)| *taken);
    let (time, server, taken) = taken.or_else(|| others(boot).next())?;
    let words = match taken {
        true => {
            format!("it took the offer of another DHCP server, {server}, and boots from there, if at all")
        }
        false => format!("another DHCP server, {server}, answers it, and it asked for none of our offers"),
    };
    let seen = match taken {
        true => format!("its REQUEST names {server} as its server (option 54)"),
        false => format!("an answer of {server} to it was overheard"),
    };
    let remedy = "stop that server or keep it off this segment (DHCP snooping); or leave addresses to it, with \
                  [dhcp] mode = \"proxy\"";
    Some(Cause::new(Kind::OtherDhcpServer, words, remedy).with(steps(boot)).seen(time, seen))
}

fn others(boot: &Boot) -> impl Iterator<Item = (jiff::Timestamp, Ipv4Addr, bool)> {
    boot.notes.iter().filter_map(|(time, note)| match note {
        Note::OtherServer { server, taken } => Some((*time, *server, *taken)),
        _ => None,
    })
}

/// Frames were lost while the link came up. The boot may have gone on since.
pub(super) fn late_link(boot: &Boot) -> Option<Cause> {
    const REMEDY: &str = "let the switch forward on its port at once: portfast (edge port), no spanning tree, no link \
                          aggregation that waits for LACP";
    let discovers = boot.stages.get(&Stage::Discover)?;
    let secs = boot.notes.iter().find_map(|(time, note)| match note {
        Note::Secs(secs) => Some((*time, *secs)),
        _ => None,
    });
    if let Some((time, secs)) = secs.filter(|(_, secs)| *secs >= SECS_MISSED) {
        let cause = Cause::new(Kind::LinkLate, "its link was late: its first requests never arrived", REMEDY);
        let seen =
            format!("the first DISCOVER that arrived says that it has asked for {secs} s (secs field)");
        return Some(cause.seen(time, seen));
    }
    // It accepted an offer in the end, so those before were lost.
    let asked = boot.stages.get(&Stage::Request)?;
    let waited = since(discovers.first, asked.first);
    if discovers.times < 3
        || waited < OFFERS_LOST_AFTER
        || others(boot).next().is_some()
        || boot.waited().is_some()
    {
        return None;
    }
    let words = format!("its link was late: offers did not reach it for {:.0} s", waited.as_secs_f64());
    Some(Cause::new(Kind::LinkLate, words, REMEDY).with(steps(boot)))
}

fn steps(boot: &Boot) -> impl Iterator<Item = super::Evidence> {
    [Stage::Discover, Stage::Offer, Stage::Request].into_iter().filter_map(|stage| boot.evidence(stage))
}
