//! The timeline's part of the store: events as JSON.

use pxe_common::Mac;

use super::{Event, Stage};
use crate::store::{Change, EventRow, ReadError, Store};

/// Hands an event to the writer.
pub(super) fn add(store: &Store, event: &Event) {
    let body = serde_json::to_string(event).expect("an event has only text keys");
    let row = EventRow { id: event.id, mac: event.mac, moves: event.moves(), body };
    store.post(Change::AddEvent(row));
}

pub(super) fn since(store: &Store, after: u64, limit: usize) -> Result<Vec<Event>, ReadError> {
    read(store, store.reader().events_since(after, limit)?)
}

pub(super) fn of(store: &Store, mac: Mac, after: u64, limit: usize) -> Result<Vec<Event>, ReadError> {
    read(store, store.reader().events_of(mac, after, limit)?)
}

pub(super) fn last_of_each_machine(store: &Store) -> Result<Vec<Event>, ReadError> {
    read(store, store.reader().last_events()?)
}

fn read(store: &Store, rows: Vec<EventRow>) -> Result<Vec<Event>, ReadError> {
    let event = |row: EventRow| {
        let event = serde_json::from_str(&row.body).map_err(|source| ReadError {
            what: "the timeline",
            place: store.reader().place(),
            source: format!("event {}: {source}", row.id).into(),
        })?;
        Ok(with_firmware(event))
    };
    rows.into_iter().map(event).collect()
}

/// Bridgehead 0.1.0 had the firmware's name only in the event's text.
fn with_firmware(mut event: Event) -> Event {
    if event.stage == Stage::Discover && event.firmware.is_none() {
        let name = event.detail.as_deref().and_then(|words| words.split(", waiting").next());
        event.firmware = name.and_then(|name| name.parse().ok());
    }
    event
}
