//! What a page says of the site as a whole: how many machines are how far, what is sent, what needs attention. Pure.

use maud::{Markup, html};
use serde_json::{Map, Value, json};

use super::chart::Chart;
use super::mark::{Mark, mark};
use super::words::{machines, number, said};
use crate::api::documents::Status;
use crate::machines::Machine;

/// Counters of what is sent to machines: whole frames in the kernel, contents elsewhere.
const SENT: [&str; 4] =
    ["kernel.xdp.reply-bytes", "kernel.tc.reply-bytes", "tftp.bytes-by-daemon", "http.sent-bytes"];

/// Machines by their marks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts([usize; Mark::ALL.len()]);

impl Counts {
    pub(super) fn of<'a>(all: impl IntoIterator<Item = &'a Machine>) -> Self {
        let mut counts = Self::default();
        all.into_iter().for_each(|machine| counts.0[Mark::of(machine) as usize] += 1);
        counts
    }

    pub(super) fn all(&self) -> usize {
        self.0.iter().sum()
    }

    /// Each mark with its share of a bar: where it begins, and how long it is, of 1000.
    fn shares(&self) -> Vec<(Mark, usize, usize, usize)> {
        let all = self.all().max(1);
        let mut before = 0;
        let share = |mark: Mark| {
            let count = self.0[mark as usize];
            let (from, to) = (before * 1000 / all, (before + count) * 1000 / all);
            before += count;
            (mark, count, from, to - from)
        };
        Mark::ALL.into_iter().map(share).collect()
    }

    pub(super) fn markup(&self) -> Markup {
        html! {
            p.figure { b id="all-machines" { (number(self.all())) } " machines seen or declared" }
            svg.bar aria-hidden="true" viewBox="0 0 1000 12" preserveAspectRatio="none" {
                @for (mark, _, from, width) in self.shares() {
                    rect class={ "part " (mark.id()) } id={ "bar-" (mark.id()) } x=(from) y="0" width=(width) height="12" {}
                }
            }
            ul.counts {
                @for (its, count, ..) in self.shares() {
                    li data-none[count == 0] id={ "counted-" (its.id()) } {
                        (mark(its))
                        b id={ "count-" (its.id()) } { (number(count)) }
                        " " span { (its.words()) }
                    }
                }
            }
        }
    }

    pub(super) fn patch(&self, into: &mut Map<String, Value>) {
        into.insert("all-machines".into(), json!({ "text": number(self.all()) }));
        for (mark, count, from, width) in self.shares() {
            let id = mark.id();
            into.insert(format!("bar-{id}"), json!({ "x": from, "width": width }));
            into.insert(format!("count-{id}"), json!({ "text": number(count) }));
            // An attribute that is null is taken away.
            let none = if count == 0 { json!("") } else { Value::Null };
            into.insert(format!("counted-{id}"), json!({ "data-none": none }));
        }
    }
}

/// What the appliance says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Health {
    pub(super) alerts: Vec<String>,
    /// How the present boots go, in a sentence.
    pub(super) wave: String,
    /// Bytes that were sent to machines since the start.
    pub(super) sent: u64,
}

impl Health {
    pub(super) fn of(status: &Status) -> Self {
        let sent = SENT.iter().filter_map(|name| status.counters.get(*name)).sum();
        let wave =
            status.boots.as_ref().map_or_else(|| "no boot is in progress".to_owned(), |w| w.to_string());
        Self { alerts: status.alerts.iter().map(|alert| said(alert)).collect(), wave, sent }
    }

    pub(super) fn markup(&self) -> Markup {
        html! {
            p.wave id="wave" { (self.wave) }
        }
    }

    /// The list is there also while it is empty, so that one that comes is put into it.
    pub(super) fn alerts(&self) -> Markup {
        html! {
            ul.alerts id="alerts" aria-label="Alerts" data-none[self.alerts.is_empty()] {
                @for alert in &self.alerts { li { (alert) } }
            }
        }
    }
}

/// The parts of a page that are the same for everybody.
#[derive(Clone, Debug, Default)]
pub(super) struct Site {
    pub(super) counts: Counts,
    pub(super) health: Health,
    pub(super) chart: Chart,
}

impl Site {
    /// The title of a page that is not looked at, in a browser's tab.
    pub(super) fn summary(&self) -> String {
        let failed = self.counts.0[Mark::Failed as usize];
        match failed {
            0 => machines(self.counts.all()),
            failed => format!("{}, {} failed", machines(self.counts.all()), number(failed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::timeline::Stage;

    fn site(stages: &[Stage]) -> Counts {
        let machine =
            |stage: &Stage| Machine { stage: Some(*stage), ..Machine::new(pxe_common::Mac([2; 6])) };
        Counts::of(&stages.iter().map(machine).collect::<Vec<_>>())
    }

    #[test]
    fn shares_fill_the_bar_without_a_gap() {
        use Stage::{Failed, Kernel, Workload};
        for counts in [site(&[]), site(&[Workload; 7]), site(&[Kernel, Workload, Failed])] {
            let mut end = 0;
            for (_, _, from, width) in counts.shares() {
                assert_eq!(from, end);
                end = from + width;
            }
            assert_eq!(end, if counts.all() == 0 { 0 } else { 1000 });
        }
        let site = Site { counts: site(&[Failed, Workload]), ..Site::default() };
        assert_eq!(site.summary(), "2 machines, 1 failed");
    }

    #[test]
    fn a_patch_names_parts_that_the_page_has() {
        let site = Site { counts: site(&[Stage::Kernel]), ..Site::default() };
        let markup = [site.counts.markup(), site.health.markup(), site.health.alerts(), site.chart.markup()];
        let markup: String = markup.into_iter().map(Markup::into_string).collect();
        let mut patch = Map::new();
        site.counts.patch(&mut patch);
        site.chart.patch(&mut patch);
        for id in patch.keys() {
            assert!(markup.contains(&format!("id=\"{id}\"")), "{id}");
        }
        assert!(markup.contains("id=\"alerts\"") && markup.contains("id=\"wave\""));
    }
}
