//! Machines as a picture: racks where their keys say `rack` and `slot`, and a wall of marks of the others. Pure.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::rows::{self, Row};
use super::words::{machines, said};
use crate::machines::Machine;

/// Slots of a rack that is drawn with its gaps. A larger number is no height unit.
const SLOTS_MAX: u32 = 60;
/// Machines of a picture. Of more, a table says more than a picture does.
const DRAWN_MAX: usize = 4_000;

const SLOT: usize = 18;
const WIDTH: usize = 132;
/// Marks of a row of the wall.
const ACROSS: usize = 40;

/// A machine of the picture.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    key: String,
    path: String,
    row: Row,
    place: Option<(String, String)>,
}

impl Drawn {
    pub(super) fn of(machine: &Machine, row: Row) -> Self {
        let key = |name: &str| machine.keys.get(name).filter(|value| !value.is_empty()).cloned();
        let place = key("rack").zip(key("slot"));
        Self { key: rows::key(machine.mac), path: rows::path(machine), row, place }
    }
}

/// Racks first, then the others.
pub(super) fn picture(drawn: Vec<Drawn>) -> Markup {
    let all = drawn.len();
    if all > DRAWN_MAX {
        return html! { p.quiet { "A picture of " (machines(all)) " would show nothing: the list has filters." } };
    }
    let mut racks = BTreeMap::<_, Vec<Drawn>>::new();
    let mut others = Vec::new();
    for machine in drawn {
        match &machine.place {
            Some((rack, _)) => racks.entry(natural(rack)).or_default().push(machine),
            None => others.push(machine),
        }
    }
    let in_racks = !racks.is_empty();
    html! {
        @if in_racks {
            .racks { @for rack in racks.into_values() { (self::rack(rack)) } }
        }
        @if !others.is_empty() {
            @if in_racks { h3 { "Without a rack" } }
            (wall(&others))
        }
        @if !in_racks && !others.is_empty() {
            p.quiet { "Machines whose keys say " code { "rack" } " and " code { "slot" } " are drawn in their racks." }
        }
    }
}

/// One rack, the highest slot on top.
fn rack(mut machines: Vec<Drawn>) -> Markup {
    let slot = |drawn: &Drawn| drawn.place.as_ref().map(|(_, slot)| slot.clone()).unwrap_or_default();
    let name =
        machines.first().and_then(|m| m.place.as_ref()).map(|(rack, _)| said(rack)).unwrap_or_default();
    machines.sort_by_cached_key(|drawn| std::cmp::Reverse(natural(&slot(drawn))));
    let numbers: Option<Vec<u32>> =
        machines.iter().map(|m| slot(m).parse().ok().filter(|n| (1..=SLOTS_MAX).contains(n))).collect();
    // With gaps where each has a height unit of its own; otherwise one below the other.
    let numbers = numbers.filter(|numbers| numbers.windows(2).all(|pair| pair[0] > pair[1]));
    let top = numbers.as_ref().and_then(|numbers| numbers.first().copied());
    let height = top.map_or(machines.len(), |top| top as usize) * SLOT;
    let row = |n: usize| match (&numbers, top) {
        (Some(numbers), Some(top)) => (top - numbers[n]) as usize,
        _ => n,
    };
    html! {
        figure.rack {
            figcaption { (name) }
            svg viewBox={ "0 0 " (WIDTH) " " (height + 4) } width=(WIDTH) height=(height + 4) {
                rect.case x="0.5" y="0.5" width=(WIDTH - 1) height=(height + 3) rx="3" {}
                @for (n, machine) in machines.iter().enumerate() {
                    (unit(machine, &said(&slot(machine)), 2 + row(n) * SLOT))
                }
            }
        }
    }
}

fn unit(machine: &Drawn, slot: &str, y: usize) -> Markup {
    let short: String = machine.row.name.chars().take(13).collect();
    html! {
        a.unit href=(machine.path) data-m=(machine.key) {
            title data-f="title" { (machine.row.title) }
            rect x="2.5" y=(y) width=(WIDTH - 5) height=(SLOT - 2) rx="2" {}
            text.slot x="20" y=(y + 12) text-anchor="end" { (slot) }
            use data-f="k" href={ "#" (machine.row.mark.id()) } x="24" y=(y + 2) width="12" height="12" {}
            text x="41" y=(y + 12) { (short) }
        }
    }
}

/// All of them, in the order of their names. The list has the same as text.
fn wall(machines: &[Drawn]) -> Markup {
    let rows = machines.len().div_ceil(ACROSS);
    let across = machines.len().min(ACROSS);
    html! {
        svg.wall role="img" aria-label={ (self::machines(machines.len())) ", a mark for each; the list says the same in words" }
            viewBox={ "0 0 " (across * 18) " " (rows * 18) } width=(across * 18) {
            @for (n, machine) in machines.iter().enumerate() {
                g data-m=(machine.key) {
                    title data-f="title" { (machine.row.title) }
                    use data-f="k" href={ "#" (machine.row.mark.id()) }
                        x=(n % ACROSS * 18 + 2) y=(n / ACROSS * 18 + 2) width="14" height="14" {}
                }
            }
        }
    }
}

/// Text and numbers in turn, so that `a10` comes behind `a9`.
pub(super) fn natural(text: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let words = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(words);
        let digits = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (number, behind) = behind.split_at(digits);
        parts.push((word.to_lowercase(), number.parse().unwrap_or(u64::MAX)));
        rest = behind;
    }
    parts
}

#[cfg(test)]
fn drawn(name: &str, mac: u8, place: Option<(&str, &str)>) -> Drawn {
    let mut machine =
        Machine { name: Some(name.into()), ..Machine::new(pxe_common::Mac([2, 0, 0, 0, 0, mac])) };
    if let Some((rack, slot)) = place {
        machine.keys.insert("rack".into(), rack.into());
        machine.keys.insert("slot".into(), slot.into());
    }
    machine.stage = Some(crate::machines::timeline::Stage::Workload);
    let row = Row::of(&machine, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(row.mark, super::mark::Mark::Running);
    Drawn::of(&machine, row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_are_numbers() {
        let mut names = ["a10", "a9", "b1", "A1", "a9b2", "12"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["12", "A1", "a9", "a9b2", "a10", "b1"]);
    }

    #[test]
    fn racks_have_their_slots_and_gaps() {
        let machines = vec![
            drawn("n1", 1, Some(("a1", "1"))),
            drawn("n4", 2, Some(("a1", "4"))),
            drawn("x", 3, Some(("a2", "left<"))),
            drawn("y", 4, None),
        ];
        let picture = picture(machines).into_string();
        let svg = picture.split("<figure").nth(1).unwrap();
        let at = |name: &str| svg.find(&format!(">{name}<")).unwrap();
        assert!(at("n4") < at("n1"), "the highest on top: {svg}");
        assert!(svg.contains(&format!("height=\"{}\"", 4 * SLOT + 4)), "with gaps: {svg}");
        assert!(picture.contains("left&lt;") && picture.contains("Without a rack"));
        assert!(picture.contains("<title data-f=\"title\">n1: workload</title>"));
        assert!(!picture.contains("style="), "the policy forbids it");
    }

    #[test]
    fn two_machines_of_one_slot_are_both_seen() {
        let machines = vec![drawn("n1", 1, Some(("a", "1"))), drawn("n2", 2, Some(("a", "1")))];
        let picture = picture(machines).into_string();
        assert!(picture.contains(&format!("height=\"{}\"", 2 * SLOT + 4)), "{picture}");
    }
}
