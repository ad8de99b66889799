//! A machine's row, and an event's, as text: what a page is written with and what a patch puts in its place are the same.
//! Pure.

use jiff::Timestamp;
use maud::{Markup, html};
use pxe_common::Mac;
use serde::Serialize;

use super::mark::{Mark, mark};
use super::words::{exactly, lasting, said, when};
use crate::base::table::{or_dash, size};
use crate::base::text::{hex, percent, word};
use crate::machines::Machine;
use crate::machines::timeline::Event;

/// What a row says of a machine. Each field is put where `data-f` names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub(super) struct Row {
    #[serde(rename = "k")]
    pub(super) mark: Mark,
    #[serde(rename = "s")]
    pub(super) state: String,
    #[serde(rename = "t")]
    pub(super) since: String,
    #[serde(rename = "a")]
    pub(super) address: String,
    #[serde(rename = "n")]
    pub(super) name: String,
    #[serde(rename = "p")]
    pub(super) profile: String,
    /// Name and state in one.
    #[serde(rename = "title")]
    pub(super) title: String,
}

impl Row {
    pub(super) fn of(machine: &Machine, now: Timestamp) -> Self {
        let (name, state) = (said(&machine.label()), said(&machine.state("not seen")));
        Self {
            mark: Mark::of(machine),
            since: or_dash(machine.since.map(|since| when(since, now))),
            address: or_dash(machine.address),
            profile: or_dash(machine.profile.as_deref().map(said)),
            title: format!("{name}: {state}"),
            name,
            state,
        }
    }
}

/// What a machine is called in patches and ids.
pub(super) fn key(mac: Mac) -> String {
    hex(&mac.0)
}

/// The path of a machine's page.
pub(super) fn path(machine: &Machine) -> String {
    format!("/machines/{}", percent(&machine.label(), ":"))
}

/// Mark and words of a state.
pub(super) fn state(row: &Row) -> Markup {
    html! { span.state { (mark(row.mark)) span data-f="s" { (row.state) } } }
}

/// What a row says of an event.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct EventRow {
    pub(super) id: u64,
    #[serde(rename = "k")]
    pub(super) mark: Mark,
    #[serde(rename = "t")]
    pub(super) time: String,
    #[serde(rename = "x")]
    pub(super) exact: String,
    #[serde(rename = "n")]
    pub(super) name: String,
    /// The machine's page.
    #[serde(rename = "h")]
    pub(super) page: String,
    #[serde(rename = "s")]
    pub(super) stage: String,
    #[serde(rename = "b")]
    pub(super) by: String,
    #[serde(rename = "d")]
    pub(super) detail: String,
}

impl EventRow {
    pub(super) fn of(event: &Event) -> Self {
        let name = event.node.clone().unwrap_or_else(|| event.mac.to_string());
        let figures = [event.bytes.map(size), event.duration.map(lasting)];
        let words = [event.detail.as_deref().map(said), event.cause.as_deref().map(said)];
        let detail: Vec<String> = words.into_iter().chain(figures).flatten().collect();
        Self {
            id: event.id,
            mark: Mark::of_stage(Some(event.stage)),
            time: event.time.strftime("%H:%M:%S%.3f").to_string(),
            exact: exactly(event.time),
            page: format!("/machines/{}", percent(&name, ":")),
            name: said(&name),
            stage: word(event.stage),
            by: word(event.answered_by),
            detail: detail.join(", "),
        }
    }

    /// A row of a table of events; the script writes the same for one that arrives later.
    pub(super) fn markup(&self, with_machine: bool) -> Markup {
        html! {
            tr data-event=(self.id) {
                td { time datetime=(self.exact) { (self.time) } }
                @if with_machine { td { a href=(self.page) { (self.name) } } }
                td { span.state { (mark(self.mark)) span { (self.stage) } } }
                td { (self.by) }
                td.wide { (self.detail) }
            }
        }
    }
}

/// A table of events, the newest first, which takes up those that arrive.
pub(super) fn events(rows: &[EventRow], with_machine: bool, most: usize) -> Markup {
    html! {
        .scroll tabindex="0" role="region" aria-label="Table of events" {
            table {
                caption.sr { "Events, the newest first, with times in UTC" }
                thead { tr {
                    th scope="col" { "Time" }
                    @if with_machine { th scope="col" { "Machine" } }
                    th scope="col" { "Stage" }
                    th scope="col" { "Answered by" }
                    th scope="col" { "What" }
                } }
                tbody data-events=(most) data-machine=[with_machine.then_some("")] {
                    @for row in rows { (row.markup(with_machine)) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machines::timeline::{AnsweredBy, Stage};

    #[test]
    fn what_machines_say_is_shown_as_what_it_is() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let now = Timestamp::UNIX_EPOCH;
        let machine = Machine { name: Some("<b>\u{1b}[2J".into()), ..Machine::new(mac) };
        let row = Row::of(&machine, now);
        assert_eq!((row.title.as_str(), row.mark), ("<b>^[[2J: not seen", Mark::None));
        assert_eq!(path(&machine), "/machines/%3Cb%3E%1B%5B2J");
        assert_eq!(path(&Machine::new(mac)), "/machines/02:00:00:00:00:01");
        assert!(state(&Row { state: row.name.clone(), ..row }).into_string().contains("&lt;b&gt;^[[2J"));

        let event = Event {
            id: 7,
            time: now,
            node: None,
            mac,
            address: None,
            stage: Stage::Failed,
            answered_by: AnsweredBy::Daemon,
            bytes: Some(2048),
            duration: Some(1.5),
            detail: Some("/a\u{202e}b".into()),
            firmware: None,
            cause: Some("<script>".into()),
            late: false,
        };
        let row = EventRow::of(&event);
        assert_eq!(row.detail, "/a\\u{202e}b, <script>, 2.0 KiB, 1.5 s");
        let markup = row.markup(true).into_string();
        assert!(markup.contains("&lt;script&gt;") && markup.contains("href=\"/machines/02:00:00:00:00:01\""));
        assert!(!row.markup(false).into_string().contains("href=\"/machines"));
    }
}
